# `make demo`: environment, sample videos and the whole pipeline. `make test`: environment and all tests.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
WORKSPACE ?= workspace/demo

.PHONY: demo test test-fast check clean

demo: $(VENV)/.run
	$(PY) -m flows sample --out $(WORKSPACE)/videos --workspace $(WORKSPACE)
	$(PY) -m flows pipeline $(WORKSPACE)/videos --profile demo --workspace $(WORKSPACE)

test: $(VENV)/.dev check
	$(PY) -m pytest

test-fast: $(VENV)/.dev
	$(PY) -m pytest -m "not slow"

check: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(PY):
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.txt | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.dev: requirements-dev.txt requirements.txt | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) workspace

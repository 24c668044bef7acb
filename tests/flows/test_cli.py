"""The command line as a user calls it: exit codes, one readable line for an error, machine-readable output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.weights import render_table
from tests.conftest import REPOSITORY


def flows(*arguments: str | Path, workspace: Path, timeout: float = 280, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m flows` in the repository."""
    command = [sys.executable, "-m", "flows", *map(str, arguments), "--workspace", str(workspace)]
    environ = {**os.environ, **environment}
    return subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, timeout=timeout, check=False)


def test_families_as_json_have_the_papers_sizes(tmp_path: Path) -> None:
    done = flows("families", "--profile", "paper", "--json", workspace=tmp_path)
    assert done.returncode == 0, done.stderr
    (fewshot,) = [family for family in json.loads(done.stdout)["families"] if family["name"] == "fewshot"]
    networks = fewshot["stages"][0]["networks"]
    assert 14.5e6 < networks["embedder"] < 15.5e6
    assert 37e6 < networks["generator"] < 39e6
    assert 19e6 < networks["discriminator"] < 20.5e6
    assert [stage["name"] for stage in fewshot["stages"]] == ["meta", "finetune"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("families", "--profile", "tiny"), "no profile 'tiny'; there are: default, demo, paper"),
        (("preprocess", "{empty}", "--out", "{out}"), "no video"),
        (("preprocess", "{empty}/absent", "--out", "{out}"), "absent"),
        (("preprocess", "{empty}", "--out", "{out}", "--set", "stored.pool.sise=3"), "no such setting"),
        (("inspect", "{empty}"), "dataset"),
        (("train", "fewshoot", "--dataset", "{empty}"), "there is no family 'fewshoot'; there are: fewshot"),
        (("train", "fewshot", "--dataset", "{empty}", "--stage", "gan"), "there are: meta, finetune"),
        (("train", "fewshot", "--dataset", "{empty}"), "dataset"),
        (("train", "fewshot", "--dataset", "{empty}", "--set", "who.identity=a"), "start with config, train, filters, split or person"),
        (("generate", "models:/talking-heads-fewshot@champion", "--face", "a.png", "--driver", "b.mp4", "--out", "{out}.mp4"), "none yet"),
        (("evaluate", "{empty}", "--dataset", "{empty}"), "not an exported model"),
        (("pipeline", "{empty}", "--families", "nobody"), "nobody"),
        pytest.param(("pipeline", "{empty}"), "no videos found", marks=[pytest.mark.slow, pytest.mark.prefect]),
    ],
)
def test_an_error_is_one_readable_line_and_exit_code_1(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty folder"
    empty.mkdir()
    filled = [argument.format(empty=empty, out=tmp_path / "out") for argument in arguments]
    done = flows(*filled, workspace=tmp_path / "workspace")
    assert done.returncode == 1, done.stdout
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines[0].startswith("error"), done.stderr
    assert words in lines[0]
    assert "Traceback" not in done.stderr
    assert not list(empty.iterdir()), "inputs stay as they were"


def test_debug_shows_where_it_happened(tmp_path: Path) -> None:
    done = flows("families", "--profile", "tiny", "--debug", workspace=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "FileNotFoundError" in done.stderr


def test_the_readmes_table_of_weights_is_the_declared_one() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    between = readme.partition("<!-- weights -->\n")[2].partition("<!-- /weights -->")[0]
    assert between == render_table(), "python -m flows weights list --markdown"


def test_every_direct_dependency_has_its_reason_in_the_readme() -> None:
    direct = (REPOSITORY / "requirements.txt").read_text().partition("# Direct\n")[2].partition("\n\n")[0].split()
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("## Dependencies")[2]
    assert len(direct) > 15
    assert not [line for line in direct if line.partition("==")[0] not in readme]


def test_imports_run_in_the_houses_direction() -> None:
    allowed = {"models": {"models"}, "tasks": {"models", "tasks"}, "flows": {"models", "tasks", "flows"}}
    frameworks = {"models": {"prefect", "ray", "mlflow"}, "tasks": {"prefect"}, "flows": set[str]()}
    rooms = {"models", "tasks", "flows", "infra"}
    wrong = []
    for room, may in allowed.items():
        for path in (REPOSITORY / room).rglob("*.py"):
            for line in path.read_text(encoding="utf-8").splitlines():
                words = line.split()
                if len(words) > 1 and words[0] in {"from", "import"}:
                    top = words[1].partition(".")[0]
                    if (top in rooms and top not in may) or top in frameworks[room]:
                        wrong.append(f"{path}: {line.strip()}")
    assert not wrong


def shown_commands() -> list[str]:
    """Every `python -m flows …` that the Makefile and the README tell a user to run."""
    make = subprocess.run(["make", "-n", "demo"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    lines = make.splitlines() + (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()
    return [line.partition("-m flows ")[2].partition("#")[0].partition("`")[0].strip() for line in lines if "-m flows " in line]


def test_every_command_that_is_shown_to_users_is_understood() -> None:
    from typer.testing import CliRunner

    from flows.cli import app

    commands = shown_commands()
    assert len(commands) > 12
    for command in commands:
        words = command.replace("[", " ").replace("]", " ").replace("...", "").replace("list | fetch NAME", "fetch NAME").split()
        done = CliRunner().invoke(app, [*words, "--help"])
        assert done.exit_code == 0, f"{command}: {done.output[-300:]}"


def test_the_way_out_of_every_missing_weights_file_is_a_setting_that_exists() -> None:
    import re

    from flows.profiles import parse_overrides, under
    from flows.settings import family_config, pipeline_settings
    from models.registry import families
    from models.weights import TABLE

    found = 0
    for row in TABLE.values():
        users = [name for name in families() if f"{name}:" in row.used_by]
        for setting in re.findall(r"--set (\S+?=[\w-]+)", f"{row.without} {row.used_by}"):
            given = parse_overrides([setting])
            if "config" in given:
                assert users, f"{row.name}: no family is named in {row.used_by!r}"
                for user in users:
                    family_config(user, "default", given["config"])
            else:
                pipeline_settings("default", under("preprocess", given))
            found += 1
    assert found >= 6


@pytest.mark.slow
@pytest.mark.ray
def test_an_interrupt_is_one_line_and_exit_code_130(sample_videos: Path, tmp_path: Path) -> None:
    import signal
    import time

    arguments = ["preprocess", str(sample_videos), "--out", str(tmp_path / "out"), "--workspace", str(tmp_path), "--profile", "demo"]
    command = [sys.executable, "-m", "flows", *arguments]
    for wanted, after in ((signal.SIGTERM, 4.0), (signal.SIGINT, 3.0)):
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
            time.sleep(after)
            running.send_signal(wanted)
            _, said = running.communicate(timeout=60)
        if running.returncode == 0:
            pytest.skip("this machine finished before the signal came")
        assert running.returncode == 130, said
        assert "run the same command again" in said
        assert "Traceback" not in said

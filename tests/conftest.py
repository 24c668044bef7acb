"""Fixtures that more than one room's tests use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("project", deadline=None)
settings.load_profile("project")

REPOSITORY = Path(__file__).resolve().parents[1]

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "true")


@pytest.fixture(scope="session")
def samples_dir() -> Path:
    """Folder of real talking videos; skips where there is none."""
    folder = Path(os.environ.get("TALKING_HEADS_SAMPLES", REPOSITORY.parent / "shared" / "samples"))
    if not folder.is_dir():
        pytest.skip(f"no real sample videos at {folder} (set TALKING_HEADS_SAMPLES)")
    return folder

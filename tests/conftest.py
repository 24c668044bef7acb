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


@pytest.fixture(scope="session")
def sample_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small embedded sample: two people, two videos each, two seconds at 256 px."""
    from tasks.sample.make import make_sample

    folder = tmp_path_factory.mktemp("sample") / "videos"
    make_sample(folder, identities=2, utterances=2, seconds=2.0, size=256)
    return folder

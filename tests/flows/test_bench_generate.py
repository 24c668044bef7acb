"""The bench of generation: every number comes from a process of its own, and failures come back as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from flows.bench_generate import BenchFailed, measure
from flows.progress import ProgressBoard
from models.weights import WeightsStore
from tasks.generation.inputs import GenerationError
from tasks.video.video_out import VideoWriter
from tests.tasks.disc_faces import DiscLandmarker, picture, walk
from tests.tasks.flash_family import FlashFamily, FlashSynthesizer
from tests.tasks.line_family import LineConfig

pytestmark = pytest.mark.slow


class Dying(FlashSynthesizer):
    def synthesize(self, face, driver, *, seed=0):
        import os

        yield from super().synthesize(face, driver, seed=seed)
        os._exit(9)


class DyingFamily(FlashFamily):
    def load(self, checkpoint, device):
        return Dying()


def bench(folder: Path, family, **options):
    face = folder / "face.mp4"
    with VideoWriter(face, width=96, height=96) as writer:
        for centre in walk(30):
            writer.write(picture(centre))
    with ProgressBoard(Console(quiet=True)) as board:
        return measure(
            family,
            LineConfig(),
            seconds=[2.0, 1.0],
            weights=WeightsStore(root=folder, offline=True),
            bar=board.bar,
            face=face,
            device="cpu",
            make_landmarker=DiscLandmarker,
            **options,
        )


def test_rates_and_peaks_of_every_length(tmp_path):
    made = bench(tmp_path, FlashFamily())
    assert (made.alone.frames, made.alone.width) == (34, 96)
    assert [rate.frames for rate in made.videos] == [25, 50]
    assert all(0 < rate.prepared < rate.seconds for rate in made.videos)
    assert all(100 < rate.peak_mib < 2000 for rate in (made.alone, *made.videos))
    assert 0 < made.ratio < 1
    made.table()


def test_a_failure_comes_back(tmp_path):
    with pytest.raises(BenchFailed, match=r"ended with code 9"):
        bench(tmp_path, DyingFamily())
    with pytest.raises(GenerationError, match="no sound"):
        bench(tmp_path, FlashFamily(), audio=tmp_path / "face.mp4")

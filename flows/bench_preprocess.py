"""`flows bench preprocess`: how near the whole comes to the sum of its parts.

In one run: every step alone on one core, over a spread of the videos; then all videos on all cores. The limit is what
the cores would do if nothing but the steps cost time, so the ratio holds the cost of tasks, shards, commits and imbalance.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.progress import Bar
from tasks.preprocessing.executor import cores, start_ray
from tasks.preprocessing.preprocess import PreprocessResult, Progress, plan_preprocess, run_preprocess
from tasks.settings import PreprocessSettings

ALONE_VIDEOS = 8
"""Videos that are measured alone; spread over the list."""


@dataclass(frozen=True, kw_only=True)
class PreprocessBench:
    """What was measured."""

    alone_videos: int
    alone_frames: int
    steps: Mapping[str, float]
    """Seconds of one core by step, over `alone_frames` frames."""
    videos: int
    frames: int
    seconds: float
    """Wall time of all videos on all cores, start of the workers included, start of Ray not."""
    workers: int

    @property
    def limit(self) -> float:
        """Frames per second that `workers` cores would reach if only the steps cost time."""
        return self.workers * self.alone_frames / sum(self.steps.values())

    @property
    def achieved(self) -> float:
        """Frames per second over all videos."""
        return self.frames / self.seconds

    @property
    def ratio(self) -> float:
        """Achieved over limit."""
        return self.achieved / self.limit

    def describe(self) -> list[tuple[str, object]]:
        """Rows for people."""
        whole = sum(self.steps.values())
        rows: list[tuple[str, object]] = [
            (step, f"{1e3 * seconds / self.alone_frames:7.3f} ms a frame  {seconds / whole:6.1%}")
            for step, seconds in sorted(self.steps.items(), key=lambda item: -item[1])
        ]
        rows += [
            (
                "every step alone",
                f"{self.alone_frames / whole:.1f} frames/s on one core ({self.alone_videos} videos, {self.alone_frames} frames)",
            ),
            ("limit", f"{self.limit:.1f} frames/s on {self.workers} cores (sum of parts)"),
            ("achieved", f"{self.achieved:.1f} frames/s ({self.videos} videos, {self.frames} frames, {self.seconds:.1f} s)"),
        ]
        return rows


def measure(videos: Sequence[str], settings: PreprocessSettings, *, alone: Bar, together: Bar) -> PreprocessBench:
    """Measure on these videos, in temporary datasets that are removed afterwards.

    Raises:
        SourceError, PreprocessFailed: as preprocessing does.
    """
    workers = settings.run.workers or cores()
    with tempfile.TemporaryDirectory(prefix="bench-preprocess-") as folder:
        one_core = settings.model_copy(update={"run": settings.run.model_copy(update={"executor": "local", "workers": 1})})
        all_files = _files(videos, Path(folder) / "plan", settings)
        spread = all_files[:: max(1, len(all_files) // ALONE_VIDEOS)][:ALONE_VIDEOS]
        parts = _run(spread, Path(folder) / "alone", one_core, alone)
        if settings.run.executor == "ray":
            start_ray(workers)
        whole = _run(videos, Path(folder) / "together", settings, together)
    return PreprocessBench(
        alone_videos=parts.made_videos,
        alone_frames=parts.decoded_frames,
        steps=parts.steps,
        videos=whole.made_videos,
        frames=whole.decoded_frames,
        seconds=whole.seconds,
        workers=workers,
    )


def _files(videos: Sequence[str], out: Path, settings: PreprocessSettings) -> list[str]:
    return sorted(set(plan_preprocess(videos, out, settings).plan.sources["uri"].to_pylist()))


def _run(videos: Sequence[str], out: Path, settings: PreprocessSettings, bar: Bar) -> PreprocessResult:
    def show(progress: Progress) -> None:
        bar(progress.videos, progress.total_videos, f"{progress.frames / max(progress.seconds, 1e-9):.0f} frames/s")

    result = run_preprocess(plan_preprocess(videos, out, settings), progress=show)
    bar.finish(f"{result.decoded_frames} frames in {result.seconds:.1f} s")
    return result

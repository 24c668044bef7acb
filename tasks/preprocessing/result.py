"""What a preprocessing run reports: while it works, when it is done, and when it failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands; counts are of this run alone."""

    videos: int
    total_videos: int
    shards: int
    total_shards: int
    clips: int
    rejects: int
    frames: int
    """Frames decoded."""
    seconds: float
    """Since the run began."""

    @property
    def remaining(self) -> float | None:
        """Estimated seconds to the end; None before the first video is done."""
        return self.seconds / self.videos * (self.total_videos - self.videos) if self.videos else None


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class PreprocessResult:
    """What a dataset holds after a run, and what this run did."""

    dataset: str
    fingerprint: str
    videos: int
    empty_videos: int
    """Videos that gave no clip."""
    clips: int
    pools: int
    frames: int
    rejects: Mapping[str, int]
    """All rejects of the dataset by code."""
    made_shards: int
    made_videos: int
    made_clips: int
    decoded_frames: int
    """By this run."""
    seconds: float
    """Wall time of this run."""
    steps: Mapping[str, float] = field(default_factory=dict)
    """Work of this run by step, seconds summed over workers."""

    @property
    def clips_per_second(self) -> float:
        """Of this run."""
        return self.made_clips / self.seconds if self.seconds else 0.0

    @property
    def frames_per_second(self) -> float:
        """Frames decoded per second of this run."""
        return self.decoded_frames / self.seconds if self.seconds else 0.0

    @property
    def shares(self) -> Mapping[str, float]:
        """Each step's share of the work, largest first."""
        whole = sum(self.steps.values())
        ordered = sorted(self.steps.items(), key=lambda item: -item[1])
        return {step: value / whole for step, value in ordered} if whole else {}


class PreprocessFailed(Exception):
    """The run did not do what was asked; the message is for the user. What was finished stays, and the next run goes on from it."""

    def __init__(self, message: str, result: PreprocessResult | None = None) -> None:
        super().__init__(message)
        self.result = result

"""Metrics as plug-ins: what a metric is, the registry, and the ones that need nothing beside the pictures.

A metric measures one clip: the generated frames against the true ones. Evaluation asks every
registered metric for the same cases and knows none of them by name, so a new one is a class and a
line in `METRICS` (tasks/evaluation/metrics_registry.py). A metric that can't be measured says why and is never 0.
"""

from __future__ import annotations

import enum
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from models.views import Image, Points
from tasks.video.crop import CropBox, crop_image

if TYPE_CHECKING:
    from torch import Tensor

    from models.family import Squares

PSNR_LIMIT = 100.0
"""dB reported for identical frames, whose PSNR is infinite, and for anything above."""

_BATCH = 16
"""Frames handed to torchmetrics at once; bounds memory, changes no result."""


class Need(enum.StrEnum):
    """What a metric needs beside the frames."""

    WEIGHTS = "weights"
    LANDMARKER = "landmarker"
    SOUND = "sound"
    JUDGE = "judge"
    """A lip-sync judge that was trained with the model (`Synthesizer.lip_sync`)."""


class Better(enum.StrEnum):
    """Where a metric's good end is."""

    HIGHER = "higher"
    LOWER = "lower"
    ZERO = "zero"
    """Nearest to zero: a clip's value has a sign and both ends are bad, so means are of the distance from zero."""

    @property
    def arrow(self) -> str:
        """The mark in a table's heading."""
        return {Better.HIGHER: "↑", Better.LOWER: "↓", Better.ZERO: "→ 0"}[self]


@dataclass(frozen=True, kw_only=True)
class NotComputed:
    """The answer of a metric that can't be measured on a case: the reason, never a number."""

    reason: str

    def __str__(self) -> str:
        return f"not computed: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class TrackedFaces:
    """What the landmarker saw in one video."""

    points: Points
    """float32 [F, 68, 2], pixels of the video; rows without a face are NaN."""

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        """bool [F], whether the frame has a face."""
        return ~np.isnan(self.points).any(axis=(1, 2))


@dataclass(frozen=True, kw_only=True)
class MetricCase:
    """One clip, generated and true, frame by frame."""

    key: str
    generated: Image
    """uint8 [F, H, W, 3], RGB."""
    truth: Image
    """uint8 [F, H, W, 3], RGB, the same shape."""
    generated_faces: TrackedFaces | None = None
    """Of the same landmarker on both videos; None where evaluation runs without one."""
    truth_faces: TrackedFaces | None = None
    audio: npt.NDArray[np.float32] | None = None
    """float32 [640 * F], 16 kHz mono, or None without sound. Always the true clip's, whatever drove the generated video."""
    painted: Squares | None = None
    """What pixel metrics look at; None is the whole frame."""
    lip_sync: npt.NDArray[np.float32] | NotComputed = NotComputed(reason="needs a lip-sync judge")
    """float32 [W, 31], what the model's judge says of the generated video and `audio` (`Synthesizer.lip_sync`), or why there is none."""

    def __post_init__(self) -> None:
        if self.generated.shape != self.truth.shape:
            raise ValueError(
                f"{self.key}: the generated video is {_shape(self.generated)} but the true one is {_shape(self.truth)};"
                " metrics compare frame by frame"
            )
        if len(self.generated) == 0:
            raise ValueError(f"{self.key}: there are no frames to compare")

    @functools.cached_property
    def looked_at(self) -> tuple[Image, Image]:
        """Generated and true pictures that pixel metrics compare: the painted squares, cut alike, or the whole frames."""
        if self.painted is None:
            return self.generated, self.truth
        return cut_squares(self.generated, self.painted), cut_squares(self.truth, self.painted)


class Metric(ABC):
    """One metric. Instances are stateless."""

    name: ClassVar[str]
    """Column name: lower case, digits and `_`."""
    title: ClassVar[str]
    """Short heading of a table."""
    description: ClassVar[str]
    """One sentence: how it is measured, unit, range."""
    better: ClassVar[Better]
    needs: ClassVar[frozenset[Need]]

    @property
    def heading(self) -> str:
        """The title and where the good end is."""
        return f"{self.title} {self.better.arrow}"

    @abstractmethod
    def compute(self, case: MetricCase) -> float | NotComputed:
        """Measure one clip; the result is finite."""


class Psnr(Metric):
    """Peak signal-to-noise ratio, mean over frames."""

    name = "psnr"
    title = "PSNR"
    description = (
        "Peak signal-to-noise ratio in dB per frame (RGB, data range 0..255), mean over frames; where a model paints a part of the frame,"
        f" of that square only; limited to {PSNR_LIMIT:g} dB."
    )
    better = Better.HIGHER
    needs = frozenset()

    def compute(self, case: MetricCase) -> float | NotComputed:
        from torchmetrics.functional.image import peak_signal_noise_ratio

        total = 0.0
        for generated, truth in _batches(case):
            values = peak_signal_noise_ratio(generated, truth, data_range=255.0, reduction="none", dim=(1, 2, 3))
            total += float(values.clamp(max=PSNR_LIMIT).double().sum())
        return total / len(case.truth)


class Ssim(Metric):
    """Structural similarity, mean over frames."""

    name = "ssim"
    title = "SSIM"
    description = (
        "Structural similarity per frame (torchmetrics; RGB, data range 0..255, Gaussian window 11 px, sigma 1.5,"
        " borders reflected and counted, which scikit-image leaves out), mean over frames; where a model paints a part of the frame,"
        " of that square only."
    )
    better = Better.HIGHER
    needs = frozenset()

    def compute(self, case: MetricCase) -> float | NotComputed:
        from torchmetrics.functional.image import structural_similarity_index_measure

        height, width = case.looked_at[1].shape[1:3]
        if min(height, width) < 11:
            return NotComputed(reason=f"pictures of {width}x{height} px are smaller than SSIM's window of 11 px")
        total = 0.0
        for generated, truth in _batches(case):
            values = structural_similarity_index_measure(generated, truth, data_range=255.0, reduction="none")
            if isinstance(values, tuple):  # only where a second picture is asked for
                values = values[0]
            total += float(values.double().sum())
        return total / len(case.truth)


class Smoothness(Metric):
    """How little a video flickers; says nothing about likeness."""

    name = "smoothness"
    title = "Smoothness"
    description = (
        "1 - mean |x_t - (x_t-1 + x_t+1)/2| with pixels 0..1, of the painted square where there is one: a proxy for flicker."
        " A still image scores 1, so it never stands alone."
    )
    better = Better.HIGHER
    needs = frozenset()

    def compute(self, case: MetricCase) -> float | NotComputed:
        pictures, frames = case.looked_at[0], len(case.generated)
        if frames < 3:
            return NotComputed(reason=f"needs three frames, the clip has {frames}")
        deviation = 0.0
        for t in range(1, frames - 1):
            before, now, after = (pictures[i].astype(np.float32) for i in (t - 1, t, t + 1))
            deviation += float(np.abs(now - (before + after) / 2).mean(dtype=np.float64))
        return 1.0 - deviation / (frames - 2) / 255.0


def cut_squares(frames: Image, squares: Squares) -> Image:
    """The square of every frame at one size; beyond a frame its edge pixels are repeated.

    Args:
        frames: uint8 [F, H, W, 3].
        squares: one box per frame.

    Returns:
        uint8 [F, size, size, 3].
    """
    boxes = (CropBox(int(x), int(y), int(side)) for x, y, side in squares.boxes)
    return np.stack([crop_image(frame, box, squares.size) for frame, box in zip(frames, boxes, strict=True)])


def check_finite(metric: Metric, key: str, value: float | NotComputed) -> float | NotComputed:
    """Return `value`; a number that isn't finite becomes the reason for none."""
    if isinstance(value, NotComputed) or math.isfinite(value):
        return value
    return NotComputed(reason=f"{metric.title} of {key} is {value}")


def _batches(case: MetricCase) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs (generated, truth) of float32 tensors [n, 3, H, W], 0..255."""
    import torch

    for start in range(0, len(case.truth), _BATCH):
        generated, truth = (
            torch.from_numpy(np.ascontiguousarray(frames[start : start + _BATCH])).permute(0, 3, 1, 2).float() for frames in case.looked_at
        )
        yield generated, truth


def _shape(frames: Image) -> str:
    return f"{len(frames)} frames of {frames.shape[2]}x{frames.shape[1]} px" if frames.ndim == 4 else f"of shape {frames.shape}"

"""Metrics as plug-ins: what a metric is, the registry, and the ones that need nothing beside the pictures.

A metric measures one clip: the generated frames against the true ones. Evaluation asks every
registered metric for the same cases and knows none of them by name, so a new one is a class and a
line in `METRICS` (tasks/evaluation/metrics_registry.py). A metric that can't be measured says why and is never 0.
"""

from __future__ import annotations

import enum
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from models.views import Image, Points

if TYPE_CHECKING:
    from torch import Tensor

PSNR_LIMIT = 100.0
"""dB reported for identical frames, whose PSNR is infinite, and for anything above."""

_BATCH = 16
"""Frames handed to torchmetrics at once; bounds memory, changes no result."""


class Need(enum.StrEnum):
    """What a metric needs beside the frames."""

    WEIGHTS = "weights"
    LANDMARKER = "landmarker"
    SOUND = "sound"


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
    """float32 [640 * F], 16 kHz mono, or None without sound."""

    def __post_init__(self) -> None:
        if self.generated.shape != self.truth.shape:
            raise ValueError(
                f"{self.key}: the generated video is {_shape(self.generated)} but the true one is {_shape(self.truth)};"
                " metrics compare frame by frame"
            )
        if len(self.generated) == 0:
            raise ValueError(f"{self.key}: there are no frames to compare")


class Metric(ABC):
    """One metric. Instances are stateless."""

    name: ClassVar[str]
    """Column name: lower case, digits and `_`."""
    title: ClassVar[str]
    """Short heading of a table."""
    description: ClassVar[str]
    """One sentence: how it is measured, unit, range."""
    higher_is_better: ClassVar[bool]
    needs: ClassVar[frozenset[Need]]

    @abstractmethod
    def compute(self, case: MetricCase) -> float | NotComputed:
        """Measure one clip; the result is finite."""


class Psnr(Metric):
    """Peak signal-to-noise ratio, mean over frames."""

    name = "psnr"
    title = "PSNR"
    description = f"Peak signal-to-noise ratio in dB per frame (RGB, data range 0..255), mean over frames; limited to {PSNR_LIMIT:g} dB."
    higher_is_better = True
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
        " borders reflected and counted, which scikit-image leaves out), mean over frames."
    )
    higher_is_better = True
    needs = frozenset()

    def compute(self, case: MetricCase) -> float | NotComputed:
        from torchmetrics.functional.image import structural_similarity_index_measure

        if min(case.truth.shape[1:3]) < 11:
            return NotComputed(reason=f"frames of {case.truth.shape[2]}x{case.truth.shape[1]} px are smaller than SSIM's window of 11 px")
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
        "1 - mean |x_t - (x_t-1 + x_t+1)/2| with pixels 0..1: a proxy for flicker. A still image scores 1, so it never stands alone."
    )
    higher_is_better = True
    needs = frozenset()

    def compute(self, case: MetricCase) -> float | NotComputed:
        frames = len(case.generated)
        if frames < 3:
            return NotComputed(reason=f"needs three frames, the clip has {frames}")
        deviation = 0.0
        for t in range(1, frames - 1):
            before, now, after = (case.generated[i].astype(np.float32) for i in (t - 1, t, t + 1))
            deviation += float(np.abs(now - (before + after) / 2).mean(dtype=np.float64))
        return 1.0 - deviation / (frames - 2) / 255.0


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
            torch.from_numpy(np.ascontiguousarray(frames[start : start + _BATCH])).permute(0, 3, 1, 2).float()
            for frames in (case.generated, case.truth)
        )
        yield generated, truth


def _shape(frames: Image) -> str:
    return f"{len(frames)} frames of {frames.shape[2]}x{frames.shape[1]} px" if frames.ndim == 4 else f"of shape {frames.shape}"

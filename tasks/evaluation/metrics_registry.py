"""The metrics that reports show, in the order of their columns. A new metric is one line here."""

from __future__ import annotations

from tasks.evaluation.metrics import Metric, Psnr, Smoothness, Ssim
from tasks.evaluation.metrics_landmarks import FaceFound, LandmarkDistance, MouthLandmarkDistance
from tasks.evaluation.metrics_sync import SyncAccuracy, SyncConfidence, SyncOffset

METRICS: tuple[Metric, ...] = (
    Psnr(),
    Ssim(),
    LandmarkDistance(),
    MouthLandmarkDistance(),
    SyncAccuracy(),
    SyncConfidence(),
    SyncOffset(),
    FaceFound(),
    Smoothness(),
)


def metric_named(name: str) -> Metric:
    """The metric of this name.

    Raises:
        ValueError: naming the metrics that exist.
    """
    for metric in METRICS:
        if metric.name == name:
            return metric
    raise ValueError(f"there is no metric {name!r}; there are: {', '.join(metric.name for metric in METRICS)}")

"""Where one camera shot ends and the next begins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.views import Image

BINS = 8
GRID = 48
"""Pixels looked at per side; a cut is seen without resizing the picture."""


class CutDetector:
    """Says of each picture whether it begins a new shot. One instance per video, pictures in order.

    Compares colour histograms (8 x 8 x 8 bins, RGB). Pixels are shared among neighbouring bins: with hard bins a plain
    background whose grey drifts over a bin's edge would look like a cut.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._before: npt.NDArray[np.float64] | None = None

    def is_cut(self, image: Image) -> bool:
        """True where more than `threshold` of the histogram differs from the picture before; False for the first."""
        now = colour_histogram(image)
        before, self._before = self._before, now
        return before is not None and histogram_change(before, now) > self._threshold


def colour_histogram(image: Image) -> npt.NDArray[np.float64]:
    """Soft joint histogram: float64 [512], sums to 1."""
    height, width = image.shape[:2]
    rows = (np.arange(min(GRID, height)) + 0.5) * height / min(GRID, height)
    columns = (np.arange(min(GRID, width)) + 0.5) * width / min(GRID, width)
    pixels = image[rows.astype(np.intp)[:, None], columns.astype(np.intp)[None, :]].reshape(-1, 3)
    place = pixels * ((BINS - 1) / 255.0)
    low = np.minimum(place.astype(np.intp), BINS - 2)
    high_weight = place - low
    total = np.zeros(BINS**3)
    base = (low[:, 0] * BINS + low[:, 1]) * BINS + low[:, 2]
    for corner in range(8):
        red, green, blue = corner >> 2 & 1, corner >> 1 & 1, corner & 1
        weight = np.ones(len(pixels))
        for channel, high in enumerate((red, green, blue)):
            weight *= high_weight[:, channel] if high else 1 - high_weight[:, channel]
        total += np.bincount(base + (red * BINS + green) * BINS + blue, weights=weight, minlength=BINS**3)
    return total / len(pixels)


def histogram_change(before: npt.NDArray[np.float64], now: npt.NDArray[np.float64]) -> float:
    """Share of the histogram that moved: 0 for equal ones, 1 for disjoint ones."""
    return float(np.abs(before - now).sum() / 2)

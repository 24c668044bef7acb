"""68 landmarks as an RGB raster, drawn at the network's size; mirroring and scaling of points."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from models.views import Image, Points

PARTS: tuple[tuple[slice, tuple[int, int, int], bool], ...] = (
    (slice(0, 17), (0, 128, 0), False),  # jaw
    (slice(17, 22), (255, 165, 0), False),  # brows
    (slice(22, 27), (255, 165, 0), False),
    (slice(27, 31), (0, 0, 255), False),  # nose: bridge, then nostrils
    (slice(31, 36), (0, 0, 255), False),
    (slice(36, 42), (255, 0, 0), True),  # eyes
    (slice(42, 48), (255, 0, 0), True),
    (slice(48, 60), (128, 0, 128), True),  # lips: outer, inner
    (slice(60, 68), (255, 192, 203), True),
)
"""(points, RGB colour, whether the line is closed) of each part, in the order in which they are drawn."""

THICKNESS_AT_256 = 2
_FRACTION_BITS = 4
"""Points are drawn with 1/16 pixel: at small sizes a mouth that opens moves by less than a pixel."""


def _mirror_index() -> npt.NDArray[np.intp]:
    index = np.arange(68)
    swaps = [(i, 16 - i) for i in range(8)]  # jaw
    swaps += [(17 + i, 26 - i) for i in range(5)]  # brows
    swaps += [(31, 35), (32, 34)]  # nostrils
    swaps += [(36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)]  # eyes
    swaps += [(48, 54), (49, 53), (50, 52), (59, 55), (58, 56)]  # outer lip
    swaps += [(60, 64), (61, 63), (67, 65)]  # inner lip
    for left, right in swaps:
        index[left], index[right] = right, left
    return index


MIRROR = _mirror_index()
"""For each point, the index of the point on the other side of the face."""


def draw(points: Points, size: int) -> Image:
    """Draw landmarks as coloured lines on black.

    Args:
        points: float32 [68, 2], pixels of a square picture of side `size`; parts outside are cut off.

    Returns:
        uint8 [size, size, 3], RGB.
    """
    canvas = np.zeros((size, size, 3), np.uint8)
    thickness = max(1, round(THICKNESS_AT_256 * size / 256))
    fixed = np.round(np.clip(points, -8 * size, 8 * size) * (1 << _FRACTION_BITS)).astype(np.int32)
    for part, colour, closed in PARTS:
        cv2.polylines(canvas, [fixed[part]], closed, colour, thickness, cv2.LINE_AA, _FRACTION_BITS)
    return canvas


def mirror_points(points: Points, size: int) -> Points:
    """Points of the horizontally mirrored picture of side `size`, left and right swapped: [..., 68, 2]."""
    mirrored = points[..., MIRROR, :].copy()
    mirrored[..., 0] = size - 1 - mirrored[..., 0]
    return mirrored


def scale_points(points: Points, source: int, target: int) -> Points:
    """Points of a square picture resized from side `source` to `target`; pixel centres lie at whole numbers."""
    if source == target:
        return points.astype(np.float32)
    return ((points + 0.5) * (target / source) - 0.5).astype(np.float32)


def resize_image(image: Image, size: int) -> Image:
    """A square picture resized to side `size`; shrinking averages over areas."""
    if image.shape[0] == size and image.shape[1] == size:
        return image
    shrinking = image.shape[0] > size
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC), np.uint8)

"""One static square crop per clip, and the same map for pixels and points.

Coordinates everywhere in the project follow OpenCV: an integer coordinate is the centre of a pixel, so a
picture of width W reaches from -0.5 to W - 0.5. The box is whole pixels, which makes cutting exact; only the
resize interpolates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.views import Image, Points

HEAD_ABOVE_BROWS = 0.55
"""Forehead and hair above the brows, as a share of the height from brows to chin."""


@dataclass(frozen=True)
class CropBox:
    """A square of whole source pixels; may reach beyond the picture."""

    x: int
    """Left edge: the first column inside."""
    y: int
    """Top edge: the first row inside."""
    side: int
    """Width and height in source pixels."""

    def __post_init__(self) -> None:
        if self.side < 1 or any(value != int(value) for value in (self.x, self.y, self.side)):
            raise ValueError(f"a crop box is whole pixels with a side of at least 1, got {self}")


def face_boxes(points: Points) -> npt.NDArray[np.float32]:
    """Bounding boxes of landmarks, brows to chin: float32 [..., 68, 2] to float32 [..., 4] as x0, y0, x1, y1."""
    return np.concatenate([points.min(axis=-2), points.max(axis=-2)], axis=-1).astype(np.float32)


def head_boxes(points: Points) -> npt.NDArray[np.float32]:
    """Boxes of the whole head, hair included: float32 [..., 68, 2] to float32 [..., 4] as x0, y0, x1, y1."""
    boxes = face_boxes(points)
    boxes[..., 1] -= HEAD_ABOVE_BROWS * (boxes[..., 3] - boxes[..., 1])
    return boxes


def union_box(points: Points, margin: float, *, frame: tuple[int, int] | None = None) -> CropBox:
    """The square that holds the head in every frame.

    With `frame` the margin gives way before the picture's edge does: the square shrinks towards the picture's
    short side (never below the heads themselves) and moves inside, away from hair that the camera cut off. The
    landmarks are always inside; padding is what cannot be helped.

    Args:
        points: float32 [F, 68, 2] in source pixels, F >= 1.
        margin: added on every side of the union, as a share of the union's longer side.
        frame: height and width of the source picture.
    """
    faces, heads = face_boxes(points).reshape(-1, 4), head_boxes(points).reshape(-1, 4)
    if not len(heads) or not np.isfinite(heads).all():
        raise ValueError("a crop needs finite landmarks of at least one frame")
    low, high = heads[:, :2].min(axis=0).astype(float), heads[:, 2:].max(axis=0).astype(float)
    head = max(2, math.ceil((high - low).max()) + 1)
    side = math.ceil(head * (1 + 2 * margin))
    if frame is not None:
        side = max(min(side, *frame), min(side, head))
    corner = (low + high - side + 1) / 2
    if frame is not None:
        for axis, length in enumerate((frame[1], frame[0])):
            first, last = faces[:, axis].min(), faces[:, axis + 2].max()
            corner[axis] = max(min(_moved(corner[axis], side, length), math.floor(first)), math.ceil(last) + 1 - side)
    return CropBox(round(corner[0]), round(corner[1]), side)


def _moved(start: float, side: int, length: int) -> float:
    """`start` moved so that [start, start + side) lies in [0, length), where it fits."""
    return min(max(start, 0.0), length - side) if side <= length else start


def crop_image(image: Image, box: CropBox, size: int) -> Image:
    """Cut `box` out of `image` and resize it to `size` x `size`; beyond the picture its edge pixels are repeated."""
    import cv2

    height, width = image.shape[:2]
    left, right = _inside(box.x, box.side, width)
    top, bottom = _inside(box.y, box.side, height)
    cut = image[top:bottom, left:right]
    borders = [max(0, border) for border in (top - box.y, box.y + box.side - bottom, left - box.x, box.x + box.side - right)]
    # Far outside the picture nothing but the nearest edge pixel is left; the borders then reach one further than the box.
    if any(borders):
        above, below, before, after = borders
        cut = cv2.copyMakeBorder(cut, above, below, before, after, cv2.BORDER_REPLICATE).astype(np.uint8, copy=False)
        cut = cut[: box.side, : box.side]
    if box.side == size:
        return np.array(cut, np.uint8, order="C", copy=True)
    method = cv2.INTER_AREA if box.side > size else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(cut), (size, size), interpolation=method).astype(np.uint8, copy=False)


def crop_points(points: Points, box: CropBox, size: int) -> Points:
    """Where source points lie in the picture that `crop_image` makes: float32 [..., 2] to float32 [..., 2]."""
    origin = np.array([box.x, box.y], np.float64)
    return ((np.asarray(points, np.float64) - origin + 0.5) * (size / box.side) - 0.5).astype(np.float32)


def uncrop_points(points: Points, box: CropBox, size: int) -> Points:
    """The inverse of `crop_points`: from pixels of the crop to pixels of the source."""
    origin = np.array([box.x, box.y], np.float64)
    return ((np.asarray(points, np.float64) + 0.5) * (box.side / size) - 0.5 + origin).astype(np.float32)


def _inside(start: int, side: int, length: int) -> tuple[int, int]:
    """The part of [start, start + side) inside [0, length); at least the nearest pixel."""
    first = min(max(start, 0), length - 1)
    last = max(min(start + side, length), first + 1)
    return first, last

"""The square of a face: where it lies, how it is cut out, masked and put back. One code for training and inference.

Coordinates follow OpenCV: an integer is the centre of a pixel, so a frame of width W reaches from -0.5 to W - 0.5.
spec/synctalk.md, "Crop, mask, input".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from torch import Tensor

from models.synctalk.config import GeometryConfig
from models.views import Image, Points

JAW_LEFT, JAW_RIGHT = 1, 15
"""Points of the jaw's contour at eye level: they give the square's place and side in x."""

RIDGE = slice(28, 30)
"""Middle of the nose's ridge: the square's upper edge."""

JAW = slice(0, 17)
INNER_LIPS = (62, 66)
EYE_CORNERS = (36, 45)
MOUTH = slice(48, 68)

Square = npt.NDArray[np.float64]
"""float64 [..., 3]: left edge, upper edge and side, in pixels of the frame; NaN where there is no face."""

FilledMask = npt.NDArray[np.float32]


def face_squares(landmarks: Points, smoothing: float) -> Square:
    """The square of every frame, steadied over time.

    Nothing of it depends on the mouth or the chin, so that it tells nothing of what is said.

    Args:
        landmarks: float32 [F, 68, 2], pixels of the frames; rows without a face are NaN.
        smoothing: standard deviation in frames of the Gaussian over time. Frames without a face take no part.

    Returns:
        float64 [F, 3]; NaN in the rows without a face.
    """
    points = np.asarray(landmarks, np.float64)
    left, right = points[:, JAW_LEFT, 0], points[:, JAW_RIGHT, 0]
    squares = np.stack([np.minimum(left, right), points[:, RIDGE, 1].mean(axis=1), np.abs(right - left)], axis=1)
    return steadied(squares, smoothing)


def face_outlines(landmarks: Points, smoothing: float) -> npt.NDArray[np.float64]:
    """The jaw's contour of every frame, steadied over time like the squares: float64 [F, 17, 2]; NaN in the rows without a face."""
    points = np.asarray(landmarks, np.float64)[:, JAW]
    return steadied(points.reshape(len(points), -1), smoothing).reshape(points.shape)


def steadied(values: npt.NDArray[np.float64], smoothing: float) -> npt.NDArray[np.float64]:
    """Rows [F, K] under a Gaussian over time of `smoothing` frames' standard deviation; rows with NaN take no part and stay."""
    found = np.isfinite(values).all(axis=1)
    if smoothing == 0 or not found.any():
        return values
    known = np.where(found[:, None], values, 0.0)
    total, weights = np.zeros_like(known), np.zeros(len(known))
    reach = min(math.ceil(3 * smoothing), len(known) - 1)
    for offset in range(-reach, reach + 1):
        weight = math.exp(-0.5 * (offset / smoothing) ** 2)
        to, source = slice(max(0, -offset), len(known) - max(0, offset)), slice(max(0, offset), len(known) + min(0, offset))
        total[to] += weight * known[source]
        weights[to] += weight * found[source]
    steady = total / np.maximum(weights, 1e-12)[:, None]
    return np.where(found[:, None], steady, np.nan)


def cut(frame: Image, square: Square, size: int) -> Image:
    """Cut a square out of a frame, as a picture of side `size`.

    Beyond the frame its edge pixels are repeated, never squashed. Where the square is larger than the result, the picture is
    averaged down, so that nothing flickers.

    Args:
        frame: uint8 [H, W, 3].
        square: float64 [3].

    Returns:
        uint8 [size, size, 3].
    """
    left, top, side = (float(value) for value in square)
    finer = max(1, math.ceil(side / size))
    step = side / (size * finer)
    matrix = np.array([[step, 0, left + step / 2 - 0.5], [0, step, top + step / 2 - 0.5]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    fine = cv2.warpAffine(frame, matrix, (size * finer, size * finer), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return fine if finer == 1 else cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA)


def to_square(points: Points, square: Square, size: int) -> Points:
    """Points of a frame in pixels of its cut-out square: float32 [..., 2]."""
    left, top, side = (float(value) for value in square)
    return ((np.asarray(points, np.float64) + 0.5 - [left, top]) * (size / side) - 0.5).astype(np.float32)


def inner(square: Square, geometry: GeometryConfig) -> Square:
    """The square of the core inside the square of the crop."""
    left, top, side = (float(value) for value in square)
    margin = side * geometry.margin / geometry.crop
    return np.array([left + margin, top + margin, side - 2 * margin])


def cut_core(frame: Image, square: Square, geometry: GeometryConfig) -> Image:
    """The core of a frame's crop: uint8 [core, core, 3]."""
    margin = geometry.margin
    return np.ascontiguousarray(cut(frame, square, geometry.crop)[margin : margin + geometry.core, margin : margin + geometry.core])


def masked(cores: Tensor, geometry: GeometryConfig) -> Tensor:
    """Cores [..., core, core] with everything black that the network has to paint; a new tensor."""
    border, size = geometry.border, geometry.core
    bottom = size if geometry.mask == "v2" else size - geometry.mask_bottom
    result = cores.clone()
    result[..., border:bottom, border : size - border] = 0
    return result


def rim(size: int, feather: float) -> FilledMask:
    """How much of the pasted core shows: 0 on its edge, 1 from `feather` times its side inwards, smooth between.

    Returns:
        float32 [size, size], 0..1.
    """
    width = feather * size
    distance = np.minimum(np.arange(size) + 0.5, size - np.arange(size) - 0.5)
    line = np.clip(distance / width, 0, 1) if width > 0 else np.ones(size)
    line = line * line * (3 - 2 * line)
    return np.minimum(line[:, None], line[None, :]).astype(np.float32)


def face_mask(outline: npt.NDArray[np.float64], square: Square, geometry: GeometryConfig) -> FilledMask:
    """The face inside the core, so that collar and background stay the template's.

    The jaw's contour, enlarged from the ridge by `geometry.outline` because the painted chin may lie lower than the template's, and
    everything above it; its rim is soft.

    Args:
        outline: float64 [17, 2], the jaw in pixels of the frame.

    Returns:
        float32 [core, core], 0..1.
    """
    size = geometry.core
    jaw = to_square(outline.astype(np.float32), inner(square, geometry), size).astype(np.float64)
    middle = np.array([(jaw[0, 0] + jaw[-1, 0]) / 2, 0.0])
    jaw = middle + (jaw - middle) * (1 + geometry.outline)
    corners = np.array([[jaw[-1, 0], -size], [jaw[0, 0], -size]])
    filled = np.zeros((size, size), np.float32)
    fixed = np.rint(np.concatenate([jaw, corners]) * 16).clip(-(1 << 20), 1 << 20).astype(np.int32)
    cv2.fillPoly(filled, [fixed], 1.0, cv2.LINE_AA, 4)
    soft = geometry.feather * size / 2
    return cv2.GaussianBlur(filled, (0, 0), soft) if soft > 0.1 else filled


def paste(frame: Image, core: Image, square: Square, geometry: GeometryConfig, outline: npt.NDArray[np.float64] | None = None) -> Image:
    """Put a painted core back, with a soft rim; outside of it every pixel stays as it was.

    Args:
        frame: uint8 [H, W, 3], left as it is.
        core: uint8 [core, core, 3].
        square: float64 [3], the crop's.
        outline: float64 [17, 2], the jaw in pixels of the frame, see `face_mask`; None pastes the whole core.

    Returns:
        uint8 [H, W, 3], a new picture.
    """
    height, width = frame.shape[:2]
    left, top, side = inner(square, geometry)
    x0, x1 = max(0, math.floor(left)), min(width, math.ceil(left + side))
    y0, y1 = max(0, math.floor(top)), min(height, math.ceil(top + side))
    result = frame.copy()
    if x0 >= x1 or y0 >= y1:
        return result
    shown = rim(geometry.core, geometry.feather)
    if outline is not None:
        shown = shown * face_mask(outline, square, geometry)
    # A core that comes out smaller is averaged down first: sampling it would flicker.
    size = min(geometry.core, max(1, round(side)))
    if size < geometry.core:
        core, shown = (cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA) for picture in (core, shown))
    step = size / side
    matrix = np.array([[step, 0, (x0 + 0.5 - left) * step - 0.5], [0, step, (y0 + 0.5 - top) * step - 0.5]])
    extent = (x1 - x0, y1 - y0)
    painted = cv2.warpAffine(core, matrix, extent, flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
    weight = cv2.warpAffine(shown, matrix, extent, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_CONSTANT)
    part = result[y0:y1, x0:x1].astype(np.float32)
    blended = part + weight[..., None] * (painted.astype(np.float32) - part)
    result[y0:y1, x0:x1] = np.rint(blended).astype(np.uint8)
    return result


def mouth_opening(landmarks: Points) -> npt.NDArray[np.float64]:
    """Distance of the inner lips in inter-ocular distances: [..., 68, 2] -> float64 [...]; NaN without a face."""
    points = np.asarray(landmarks, np.float64)
    lips = np.linalg.norm(points[..., INNER_LIPS[0], :] - points[..., INNER_LIPS[1], :], axis=-1)
    eyes = np.linalg.norm(points[..., EYE_CORNERS[0], :] - points[..., EYE_CORNERS[1], :], axis=-1)
    return np.asarray(lips / np.maximum(eyes, 1e-6))


def closed_mouth(landmarks: Points) -> int:
    """The frame that serves as a reference: of the tenth with the most closed mouth, the one nearest to the median place.

    Raises:
        ValueError: no frame has a face.
    """
    opening = mouth_opening(landmarks)
    found = np.flatnonzero(np.isfinite(opening))
    if not len(found):
        raise ValueError("no frame shows a face")
    candidates = found[np.argsort(opening[found], kind="stable")[: max(1, len(found) // 10)]]
    upper = np.asarray(landmarks, np.float64)[:, :48]
    median = np.median(upper[found], axis=0)
    return int(candidates[np.argmin(np.linalg.norm(upper[candidates] - median, axis=-1).mean(axis=-1))])


def frame_box(shape: Sequence[int], square: Square, geometry: GeometryConfig) -> npt.NDArray[np.int64]:
    """The part of a core that lies in the frame [H, W, ...], the rest being repeated edges: int64 [4] as x0, y0, x1, y1."""
    left, top, side = inner(square, geometry)
    scale = geometry.core / side
    box = np.array([-left * scale, -top * scale, (shape[1] - left) * scale, (shape[0] - top) * scale])
    return np.asarray(np.clip(np.rint(box), 0, geometry.core), np.int64)


def mouth_box(landmarks: Points, square: Square, geometry: GeometryConfig) -> npt.NDArray[np.int64]:
    """The mouth's box in pixels of the core, a third of its width larger on every side: int64 [4] as x0, y0, x1, y1, inside the core."""
    points = to_square(landmarks[MOUTH], inner(square, geometry), geometry.core)
    low, high = points.min(axis=0), points.max(axis=0)
    pad = (high[0] - low[0]) / 3
    box = np.concatenate([np.floor(low - pad), np.ceil(high + pad) + 1])
    return np.asarray(np.clip(box, 0, geometry.core), np.int64)

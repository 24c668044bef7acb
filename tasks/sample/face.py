"""Move a head of the embedded sample: mouth, lids and brows on its canvas, then turn, nod, tilt, shift and scale it.

Everything is a smooth displacement of the one picture, read backwards: for each pixel of the frame, where on the
canvas it comes from. Only the slit of the mouth and the edge of the lid are discontinuous, and they are drawn as edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.views import Image
from tasks.sample.identity import Head
from tasks.sample.portrait import (
    BROWS,
    EYES_LOWER,
    EYES_UPPER,
    HEIGHT,
    LIPS_INNER_UPPER,
    MARGIN,
    SIZE,
    WIDTH,
    Map,
)

_STEP = 8
"""Pixels between the nodes of the pose grid; the field is smooth."""

_INVERSIONS = 6
"""Fixed-point steps that invert a displacement; each divides the error by two or more."""


@dataclass(frozen=True, kw_only=True)
class Pose:
    """What the face does in one frame. Angles in degrees, shifts in pixels of a 512-pixel frame."""

    opening: float = 0.0
    """0 (lips closed) .. 1."""
    width: float = 0.0
    """-1 (rounded) .. 1 (spread)."""
    blink: float = 0.0
    """0 (open) .. 1 (closed)."""
    brow: float = 0.0
    """0..1, raised."""
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    scale: float = 1.0
    shift_x: float = 0.0
    shift_y: float = 0.0


class FaceAnimator:
    """Renders poses of one head before one background; rendering has no state, so frames may be made in any order."""

    def __init__(self, head: Head, background: Image) -> None:
        """Prepare what all frames share. `background` is uint8 [512, 512, 3]."""
        if background.shape != (SIZE, SIZE, 3):
            raise ValueError(f"the background must be {SIZE}x{SIZE}, got {background.shape}")
        self._mouth = _Mouth(head)
        self._eyes = [_Eye(head, side) for side in (0, 1)]
        self._pose = _PoseField(head)
        self._base = np.dstack([head.image, np.round(255 * head.alpha).astype(np.uint8)])
        self._glasses = head.glasses
        self._background = background

    def render(self, pose: Pose) -> Image:
        """Draw one frame: uint8 [512, 512, 3]."""
        import cv2

        canvas = self._base.copy()
        self._mouth.draw(canvas, pose.opening, pose.width)
        for eye in self._eyes:
            eye.draw(canvas, pose.blink)
        rgb, alpha = canvas[..., :3], cv2.merge([canvas[..., 3]] * 3)
        if self._glasses is not None:
            behind = 255 - cv2.merge([self._glasses[..., 3]] * 3)
            rgb = cv2.add(cv2.multiply(rgb, behind, scale=1 / 255), self._glasses[..., :3])
        premultiplied = cv2.merge([*cv2.split(cv2.multiply(rgb, alpha, scale=1 / 255)), cv2.extractChannel(canvas, 3)])
        map_x, map_y = self._pose.maps(pose)
        moved = cv2.remap(premultiplied, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        through = 255 - cv2.merge([moved[..., 3]] * 3)
        return cv2.add(moved[..., :3], cv2.multiply(self._background, through, scale=1 / 255))


class _Mouth:
    """Opens the closed mouth of the canvas.

    Displacement at full opening, downwards, in pixels, as a share of the gap: the jaw carries chin and cheeks, the parting pushes
    the lips away from the line between them and is zero at the corners.
    """

    def __init__(self, head: Head) -> None:
        points = head.points
        face_width = points[454, 0] - points[234, 0]
        corners = points[[78, 308], :2]
        self._middle = float(corners[:, 0].mean())
        self._half = float(corners[1, 0] - corners[0, 0]) / 2
        self._gap = 0.17 * face_width
        chin = points[152, 1]
        left, right = int(self._middle - 0.62 * face_width), int(self._middle + 0.62 * face_width)
        top, bottom = int(points[1, 1] - 20), int(min(HEIGHT, chin + 100))
        self._window = (slice(top, bottom), slice(max(0, left), min(WIDTH, right)))
        self._y, self._x = (a.astype(np.float32) for a in np.mgrid[self._window])
        x, y = self._x, self._y
        curve = np.polyfit(points[list(LIPS_INNER_UPPER), 0] - self._middle, points[list(LIPS_INNER_UPPER), 1], 2)
        corner_y = np.polyval(curve, np.clip(x - self._middle, -1.15 * self._half, 1.15 * self._half))
        self._line = corner_y.astype(np.float32)
        self._centre_y = float(np.polyval(curve, 0))
        across = np.clip(1 - ((x - self._middle) / (0.97 * self._half)) ** 2, 0, 1) ** 0.75
        sideways = np.exp(-(((x - self._middle) / (0.40 * face_width)) ** 2))
        jaw = 0.78 * sideways * _ramp(y, self._line - 50, float(chin - 25)) * (1 - _ramp(y, float(chin), float(chin + 90)))
        at_line = 0.78 * sideways * _ramp(self._line, self._line - 50, float(chin - 25))
        down = (1 - at_line) * across * np.exp(-((np.maximum(y - self._line, 0) / 42) ** 2))
        up = (at_line + 0.14) * across * np.exp(-((np.maximum(self._line - y, 0) / 24) ** 2))
        self._below, self._above = (jaw + down).astype(np.float32), (jaw - up).astype(np.float32)
        self._near = np.exp(-(((x - self._middle) / (1.5 * self._half)) ** 2) - ((y - self._centre_y) / 48) ** 2).astype(np.float32)
        self._full = np.exp(-(((x - self._middle) / (0.8 * self._half)) ** 2) - ((y - self._centre_y) / 26) ** 2).astype(np.float32)
        self._teeth = head.teeth
        self._origin = np.array([self._window[1].start, self._window[0].start], np.float32)

    def draw(self, canvas: npt.NDArray[np.uint8], opening: float, width: float) -> None:
        """Redraw the mouth's window of `canvas` (uint8 [H, W, 4]) in place."""
        import cv2

        opening, width = float(np.clip(opening, 0, 1)), float(np.clip(width, -1, 1))
        gap = self._gap * opening * (1 + 0.12 * min(width, 0.0))
        stretch = 1 + self._near * (0.11 * width if width > 0 else 0.24 * width)
        x = self._middle + (self._x - self._middle) / stretch
        # Rounded lips are fuller, spread lips thinner: vertical scale around the line.
        fuller = 1 + self._full * (-0.16 * width if width < 0 else -0.10 * width)
        y = self._line + (self._y - self._line) / fuller
        lower = self._inverted(self._below, x, y, gap)
        upper = self._inverted(self._above, x, y, gap)
        line = self._sampled(self._line, x, y)
        cover_lower = np.clip(lower - line + 0.5, 0, 1)
        cover_upper = np.clip(line - upper + 0.5, 0, 1)
        from_below = cover_lower > cover_upper
        source_y = np.where(from_below, np.maximum(lower, line), np.minimum(upper, line))
        window = canvas[self._window]
        skin = cv2.remap(
            window, x - self._origin[0], source_y - self._origin[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )  # 4 channels: the chin carries its edge along
        solid = np.clip(cover_lower + cover_upper, 0, 1)
        # Lips turn inwards and darken where they meet the cavity.
        inside = np.abs(x - self._middle) < self._half
        if gap > 0.3 and (solid < 1).any():
            rows = np.flatnonzero((solid < 1).any(1))
            part = slice(max(0, rows[0] - 1), rows[-1] + 2)
            cavity = self._cavity(x[part], y[part], line[part], gap, width)
            weight = ((1 - solid[part]) * inside[part])[..., None]
            skin[part, :, :3] = np.round(skin[part, :, :3] * (1 - weight) + cavity * weight).astype(np.uint8)
        canvas[self._window] = skin

    def _cavity(self, x: Map, y: Map, line: Map, gap: float, width: float) -> Map:
        """What is behind the lips: dark, a tongue that lies on the jaw, and the upper teeth, which do not move."""
        import cv2

        u = (x - self._middle) / self._half
        depth = (y - line) / max(self._gap, 1)
        cavity = np.array([52, 16, 16], np.float32) * (1 - 0.55 * np.clip(depth, 0, 1))[..., None]
        tongue_top = gap * 0.98 - 0.34 * self._gap * (1 - 0.7 * u**2)
        tongue = np.clip((y - line - tongue_top) / 5, 0, 1) * np.clip(1.4 - 1.8 * np.abs(u), 0, 1)
        cavity = cavity * (1 - 0.85 * tongue[..., None]) + np.array([158, 72, 74], np.float32) * (0.85 * tongue[..., None])
        tall, wide = self._teeth.shape[:2]
        height = 0.30 * self._half
        v = (y - (line - 0.10 * self._gap)) / height
        teeth = cv2.remap(self._teeth, (u * 0.47 + 0.5) * (wide - 1), v * (tall - 1), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        shown = np.clip((1.02 - v) * 5, 0, 1) * np.clip(1.6 - 1.7 * np.abs(u), 0, 1)
        # The lip's shadow falls on them; rounded lips show less of them.
        shade = (0.76 + 0.24 * np.clip(v, 0, 1)) * np.clip(1.1 - 0.5 * u**2, 0, 1) * (1 + 0.25 * min(width, 0.0))
        shown = (shown * (0.92 + 0.5 * min(width, 0.0)))[..., None]
        return cavity * (1 - shown) + teeth * shade[..., None] * shown

    def _inverted(self, field: Map, x: Map, y: Map, gap: float) -> Map:
        """Solve source + gap * field(x, source) = y for the source rows."""
        source = y - gap * self._sampled(field, x, y)
        for _ in range(_INVERSIONS - 1):
            source = y - gap * self._sampled(field, x, source)
        return source

    def _sampled(self, field: Map, x: Map, y: Map) -> Map:
        import cv2

        return cv2.remap(field, x - self._origin[0], y - self._origin[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


class _Eye:
    """Draws the upper lid down over the eye; the skin between brow and lid stretches."""

    def __init__(self, head: Head, side: int) -> None:
        upper, lower = head.points[list(EYES_UPPER[side]), :2], head.points[list(EYES_LOWER[side]), :2]
        brow = float(head.points[list(BROWS[side]), 1].mean())
        left, right = int(upper[:, 0].min()) - 6, int(upper[:, 0].max()) + 7
        top, bottom = int(brow), int(lower[:, 1].max()) + 6
        self._window = (slice(top, bottom), slice(left, right))
        self._y, self._x = (a.astype(np.float32) for a in np.mgrid[self._window])
        column = self._x[0]
        # Parabolas through the mesh's lid points: smoother than the points themselves.
        middle = float(upper[:, 0].mean())
        self._upper = np.polyval(np.polyfit(upper[:, 0] - middle, upper[:, 1], 2), column - middle).astype(np.float32)
        closed = np.polyval(np.polyfit(lower[:, 0] - middle, lower[:, 1], 2), column - middle).astype(np.float32) + 1
        along = np.clip((column - upper[:, 0].min()) / np.ptp(upper[:, 0]), 0, 1)
        inside = (4 * along * (1 - along)) ** 0.35
        self._drop = (np.maximum(closed - self._upper, 0) * inside).astype(np.float32)
        self._upper += 0.5
        self._brow = brow

    def draw(self, canvas: npt.NDArray[np.uint8], blink: float) -> None:
        """Redraw the eye's window of `canvas` in place; blink 0..1."""
        import cv2

        if blink < 0.02:
            return
        window = canvas[self._window]
        edge = self._upper + min(blink, 1.0) * self._drop
        # The lid moves as a whole with its lashes; the skin from there up to the brow stretches.
        source = self._y - (edge - self._upper) * _ramp(self._y, self._brow, edge - 6)
        source_y = (source - self._window[0].start).astype(np.float32)
        lid = cv2.remap(window, self._x - self._window[1].start, source_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        cover = (np.clip(edge - self._y + 0.5, 0, 1) * (self._drop > 0))[..., None]
        lashes = np.exp(-(((self._y - edge + 0.6) / 1.3) ** 2)) * (self._drop > 0.3 * self._drop.max()) * 0.5 * min(1.0, 2 * blink)
        mixed = window * (1 - cover) + lid * cover
        mixed[..., :3] *= 1 - lashes[..., None]
        canvas[self._window] = np.round(mixed).astype(np.uint8)


class _PoseField:
    """Turns the head in space; body and shoulders follow only a little."""

    def __init__(self, head: Head) -> None:
        import cv2
        from scipy.interpolate import RBFInterpolator

        points = head.points
        rows, columns = np.mgrid[0 : HEIGHT + _STEP : _STEP, 0:WIDTH:_STEP] + (_STEP - 1) / 2
        self._x, self._y = columns.astype(np.float32), rows.astype(np.float32)
        width, height = points[454, 0] - points[234, 0], points[152, 1] - points[10, 1]
        centre = (points[[234, 454], :2].mean(0) + points[[10, 152], :2].mean(0)) / 2
        # Depth: the mesh on the face, a falling dome for hair, ears and neck.
        angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        rims = [
            centre + (0, -0.12 * height) + factor * width * np.stack([0.95 * np.cos(angles), np.sin(angles)], 1) for factor in (0.8, 1.1)
        ]
        deep = [np.full(32, 0.42 * width), np.full(32, 0.62 * width)]
        keep = points[:468:2]
        known = np.concatenate([keep[:, :2], *rims])
        surface = RBFInterpolator(known, np.concatenate([keep[:, 2], *deep]), kernel="thin_plate_spline", smoothing=60.0, neighbors=None)
        depth = surface(np.stack([columns.ravel(), rows.ravel()], 1)).reshape(rows.shape)
        self._z = cv2.GaussianBlur(np.clip(depth, -0.35 * width, 0.65 * width).astype(np.float32), (0, 0), 1.0)
        # How much of the head's motion a place takes part in.
        away = np.hypot((columns - centre[0]) / (0.86 * width), (rows - centre[1] + 0.12 * height) / (0.80 * height))
        self._share = (0.12 + 0.88 * (1 - _ramp(away, 0.92, 1.55))).astype(np.float32)
        self._pivot = np.array([centre[0], points[152, 1] + 0.15 * height, 0.45 * width], np.float32)
        lifts = [
            np.exp(-(((columns - p[0]) / 40) ** 2) - ((rows - p[1] + 4) / 26) ** 2) for p in (points[list(b), :2].mean(0) for b in BROWS)
        ]
        self._brow = sum(lifts[1:], lifts[0]).astype(np.float32)
        self._frame_y, self._frame_x = (a.astype(np.float32) for a in np.mgrid[:SIZE, :SIZE])
        at = np.arange(0, SIZE, _STEP, dtype=np.float32) + (_STEP - 1) / 2
        self._nodes_x, self._nodes_y = np.meshgrid(at + MARGIN, at)

    def maps(self, pose: Pose) -> tuple[Map, Map]:
        """For each pixel of the frame, x and y on the canvas: two float32 [512, 512]."""
        import cv2

        yaw, pitch, roll = np.radians([pose.yaw, pose.pitch, pose.roll])
        x, y, z = self._x - self._pivot[0], self._y - self._pivot[1], self._z - self._pivot[2]
        x, z = x * np.cos(yaw) - z * np.sin(yaw), x * np.sin(yaw) + z * np.cos(yaw)
        y = y * np.cos(pitch) - z * np.sin(pitch)
        x, y = x * np.cos(roll) - y * np.sin(roll), x * np.sin(roll) + y * np.cos(roll)
        move_x = (pose.scale * x + self._pivot[0] - self._x) * self._share + pose.shift_x * (0.35 + 0.65 * self._share)
        move_y = (pose.scale * y + self._pivot[1] - self._y) * self._share + pose.shift_y * (0.35 + 0.65 * self._share)
        move = np.dstack([move_x, move_y - 5.0 * pose.brow * self._brow]).astype(np.float32)
        source = np.dstack([self._nodes_x, self._nodes_y])
        target = source.copy()
        for _ in range(_INVERSIONS):
            grid = (source - (_STEP - 1) / 2) / _STEP
            source = target - cv2.remap(move, grid[..., 0], grid[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        shift = cv2.resize(source - target, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
        return self._frame_x + (shift[..., 0] + MARGIN), self._frame_y + shift[..., 1]


def _ramp(value: Map, start: Map | float, end: Map | float) -> Map:
    """0 before `start`, 1 after `end`, smooth between."""
    t = np.clip((value - start) / (end - start), 0, 1)
    return t * t * (3 - 2 * t)

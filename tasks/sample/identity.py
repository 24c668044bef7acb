"""The people of the embedded sample: one portrait, other geometry, colours, beard, glasses and background."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from models.views import Image
from tasks.sample.portrait import (
    BROWS,
    EYES_LOWER,
    EYES_UPPER,
    HEIGHT,
    LIPS_INNER_LOWER,
    LIPS_INNER_UPPER,
    WIDTH,
    Map,
    Portrait,
    read_portrait,
)
from tasks.sample.speech import Voice

Vectors = npt.NDArray[np.float64]
Colour = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Face geometry; 0 everywhere is the portrait. Shares of the feature's own size unless said otherwise."""

    face_width: float = 0.0
    jaw_width: float = 0.0
    chin: float = 0.0
    """Chin length in face heights."""
    nose_width: float = 0.0
    nose_length: float = 0.0
    """In face heights."""
    eye_size: float = 0.0
    eye_distance: float = 0.0
    """Outward shift of each eye in face widths."""
    brow_height: float = 0.0
    """In face heights."""
    lips: float = 0.0
    mouth_width: float = 0.0
    hair: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Look:
    """One identity."""

    name: str
    mirrored: bool
    shape: Shape
    skin: Colour
    """Factor on lightness and shift of LAB a, b."""
    hair: Colour
    """The same for the hair."""
    clothes: tuple[int, int, int]
    """RGB of the collar and pullover."""
    beard: float
    """0 (none) .. 1 (full)."""
    glasses: tuple[int, int, int] | None
    """RGB of the frame."""
    background: tuple[tuple[int, int, int], tuple[int, int, int], str]
    """Two RGB colours and a pattern: wall, lights, blinds or panels."""
    voice: Voice


_LOOKS = (
    Look(
        name="ada", mirrored=False, shape=Shape(jaw_width=-0.02, lips=0.12, eye_size=0.06), skin=(1.0, 2, 0), hair=(0.72, 4, -2),
        clothes=(40, 66, 110), beard=0.0, glasses=None, background=((96, 132, 150), (206, 222, 224), "wall"),
        voice=Voice(pitch=205, tract=1.17, breath=0.06),
    ),
    Look(
        name="ben", mirrored=True, skin=(0.74, 5, 8), hair=(0.30, -2, -16), clothes=(92, 34, 38), beard=0.85, glasses=None,
        shape=Shape(face_width=0.07, jaw_width=0.13, chin=0.04, nose_width=0.16, eye_size=-0.08, brow_height=-0.02, lips=0.1, hair=-0.12),
        background=((48, 40, 36), (226, 156, 84), "lights"), voice=Voice(pitch=104, tract=0.98, rate=0.92),
    ),
    Look(
        name="cleo", mirrored=False, skin=(0.52, 4, 10), hair=(0.24, 0, -14), clothes=(214, 168, 48), beard=0.0, glasses=None,
        shape=Shape(face_width=-0.02, chin=-0.03, nose_width=0.2, nose_length=-0.015, eye_size=0.1, eye_distance=0.015,
                    lips=0.42, mouth_width=0.06, hair=0.1),
        background=((52, 92, 74), (150, 186, 140), "panels"), voice=Voice(pitch=182, tract=1.12, rate=1.08, breath=0.04),
    ),
    Look(
        name="dov", mirrored=True, skin=(1.05, 1, -5), hair=(1.28, -3, -22), clothes=(70, 74, 72), beard=0.0, glasses=(30, 30, 34),
        shape=Shape(face_width=-0.01, jaw_width=-0.07, chin=0.05, nose_length=0.03, nose_width=-0.1,
                    eye_distance=-0.012, brow_height=0.02, lips=-0.25, hair=-0.06),
        background=((120, 104, 140), (232, 226, 236), "blinds"), voice=Voice(pitch=128, tract=1.02, rate=1.0, range=0.24),
    ),
    Look(
        name="eve", mirrored=False, skin=(1.06, 5, -3), hair=(0.95, 22, 12), clothes=(46, 110, 92), beard=0.0, glasses=(120, 40, 44),
        shape=Shape(face_width=0.04, jaw_width=-0.09, chin=-0.04, eye_size=0.14, brow_height=0.025, lips=0.2,
                    mouth_width=-0.08, hair=0.06),
        background=((176, 84, 92), (244, 206, 186), "wall"), voice=Voice(pitch=230, tract=1.2, rate=1.12, breath=0.05),
    ),
    Look(
        name="finn", mirrored=True, skin=(0.9, 8, 5), hair=(0.60, 11, 8), clothes=(150, 150, 156), beard=0.6, glasses=None,
        shape=Shape(face_width=0.03, jaw_width=0.06, chin=0.02, nose_width=0.06, nose_length=0.02, eye_size=-0.1,
                    brow_height=-0.03, mouth_width=0.1),
        background=((30, 48, 78), (104, 150, 196), "lights"), voice=Voice(pitch=116, tract=0.95, rate=1.04),
    ),
)  # fmt: skip


def make_looks(count: int, seed: int) -> list[Look]:
    """The first `count` people of `seed`: six clear types with small changes, then their mixtures."""
    looks = []
    for index in range(count):
        rng = np.random.default_rng([seed, index, 0x1D])
        look = _LOOKS[index % len(_LOOKS)]
        if index >= len(_LOOKS):
            look = _mixture(look, [_LOOKS[i] for i in rng.integers(len(_LOOKS), size=3)], rng)
        wobble = {f.name: getattr(look.shape, f.name) + rng.normal(0, 0.006) for f in fields(Shape)}
        looks.append(replace(look, name=f"id{index:04d}-{look.name}", shape=Shape(**wobble)))
    return looks


def _mixture(look: Look, others: list[Look], rng: np.random.Generator) -> Look:
    """`look` with some features of three other people."""
    shape = {f.name: getattr(others[rng.integers(3)].shape, f.name) * rng.uniform(0.6, 1.2) for f in fields(Shape)}
    background = (others[2].background[0], look.background[1], str(rng.choice(["wall", "lights", "blinds", "panels"])))
    voice = replace(look.voice, pitch=look.voice.pitch * rng.uniform(0.88, 1.12))
    return replace(
        look, shape=Shape(**shape), mirrored=bool(rng.integers(2)), skin=others[0].skin, hair=others[1].hair, clothes=others[2].clothes,
        background=background, voice=voice,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Head:
    """An identity ready to be animated, on the canvas of `tasks.sample.portrait`; the mouth is closed."""

    image: Image
    """uint8 [HEIGHT, WIDTH, 3]."""
    alpha: Map
    """float32 [HEIGHT, WIDTH], 0..1."""
    points: Vectors
    """float64 [478, 3]; inner lip points of both lips lie on one line."""
    teeth: Image
    """uint8 [h, w, 3]: the row of teeth, left to right and top to bottom of the mouth."""
    glasses: npt.NDArray[np.uint8] | None
    """uint8 [HEIGHT, WIDTH, 4], RGB times alpha, and alpha."""


def make_head(look: Look) -> Head:
    """Make the identity from the portrait."""
    import cv2
    from scipy.interpolate import RBFInterpolator

    portrait = read_portrait(mirrored=look.mirrored)
    image = _coloured(portrait, look)
    close_y, closed = _closed_mouth(portrait.points)
    target = _deformed(closed[:, :2], closed[:, :2], look.shape)

    anchors = _anchors(closed)
    moved = _deformed(anchors, closed[:, :2], look.shape)
    edge = np.array([(x, y) for x in np.linspace(0, WIDTH, 7) for y in np.linspace(0, HEIGHT, 7) if x in (0, WIDTH) or y in (0, HEIGHT)])
    sources, destinations = np.concatenate([closed[:, :2], anchors, edge]), np.concatenate([target, moved, edge])
    spline = RBFInterpolator(destinations, sources - destinations, kernel="thin_plate_spline", smoothing=2.0, neighbors=None)
    step = 8
    rows, columns = np.mgrid[0:HEIGHT:step, 0:WIDTH:step] + (step - 1) / 2
    shift = spline(np.stack([columns.ravel(), rows.ravel()], 1)).reshape(*rows.shape, 2).astype(np.float32)
    shift = cv2.resize(shift, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    map_x, map_y = x + shift[..., 0], y + shift[..., 1]
    map_y = cv2.remap(close_y, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    points = np.concatenate([target, closed[:, 2:]], 1)
    image = cv2.remap(image, map_x, map_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    image = _lip_line(image, points)
    if look.beard:
        image = _bearded(image, points, look)
    return Head(
        image=image,
        alpha=cv2.remap(portrait.alpha, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE),
        points=points,
        teeth=_teeth(portrait),
        glasses=_glasses(points, look.glasses) if look.glasses else None,
    )


def _coloured(portrait: Portrait, look: Look) -> Image:
    """Skin, hair and clothes in the identity's colours."""
    import cv2

    lab = cv2.cvtColor(portrait.image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    hair, clothes = portrait.hair[..., None], portrait.clothes[..., None]
    light = lab[..., :1]

    def tinted(factor: float, a: float, b: float) -> Map:
        # A power keeps highlights and the whites of eyes and teeth.
        exponent = 1 + (1 / factor - 1) * 0.9
        return np.concatenate([100 * np.clip(light / 100, 0, 1) ** exponent, lab[..., 1:] + np.array([a, b], np.float32)], 2)

    eyes_and_teeth = _bright_parts(portrait)[..., None]
    skin = tinted(*look.skin) * (1 - eyes_and_teeth) + lab * eyes_and_teeth
    target = cv2.cvtColor(np.array([[look.clothes]], np.float32) / 255, cv2.COLOR_RGB2LAB)[0, 0]
    cloth = np.concatenate([np.clip(0.75 * light + 0.55 * target[0], 0, 96), np.broadcast_to(0.85 * target[1:], lab[..., 1:].shape)], 2)
    result = skin * (1 - hair) + _dyed(lab, portrait.hair, look.hair) * hair
    result = result * (1 - clothes) + cloth * clothes
    return np.clip(np.round(255 * cv2.cvtColor(result.astype(np.float32), cv2.COLOR_LAB2RGB)), 0, 255).astype(np.uint8)


def _dyed(lab: Map, hair: Map, dye: Colour) -> Map:
    """Hair of one hue: the mean colour shifted, dark strands less colourful, a third of the old variation kept."""
    factor, a, b = dye
    old = lab[hair > 0.9][:, 1:].mean(0)
    light = 100 * np.clip(lab[..., :1] / 100, 0, 1) ** (1 + (1 / factor - 1) * 0.9)
    depth = np.clip(light / light[hair > 0.9].mean(), 0.25, 1.2)
    return np.concatenate([light, (old + np.array([a, b], np.float32)) * depth + 0.33 * (lab[..., 1:] - old)], 2)


def _bright_parts(portrait: Portrait) -> Map:
    """1 on the eyes and between the lips, which do not take the colour of the skin."""
    import cv2

    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    outlines = [(*EYES_UPPER[i], *EYES_LOWER[i][::-1]) for i in (0, 1)] + [(*LIPS_INNER_UPPER, *LIPS_INNER_LOWER[::-1])]
    for outline in outlines:
        cv2.fillPoly(mask, [np.round(portrait.points[list(outline), :2]).astype(np.int32)], 1)
    return cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.5)


def _closed_mouth(points: Vectors) -> tuple[Map, Vectors]:
    """Where each row of a closed mouth comes from (float32 [HEIGHT, WIDTH]), and the 478 points of the closed mouth.

    The portrait smiles with teeth. Per column, the lower lip comes up by three quarters of the gap and the upper lip down by one;
    the shifts fade over the skin around.
    """
    x = np.arange(WIDTH)
    upper = points[list(LIPS_INNER_UPPER), :2]
    lower = points[list(LIPS_INNER_LOWER), :2]
    top, bottom = np.interp(x, *upper.T), np.interp(x, *lower.T)
    # The bright rims of the teeth and their shine on the lips go too.
    top, bottom = top - 1.0, bottom + 2.0
    gap = np.maximum(bottom - top, 0) * (x > upper[0, 0]) * (x < upper[-1, 0])
    line = top + 0.25 * gap
    rows = np.arange(HEIGHT, dtype=np.float64)[:, None]
    above, below = np.exp(-(((line - rows) / 20) ** 2)), np.exp(-(((rows - line) / 55) ** 2))
    source = np.where(rows < line, rows - 0.25 * gap * above, rows + 0.75 * gap * below)
    closed = points.copy()
    gap_at, line_at = np.interp(points[:, 0], x, gap), np.interp(points[:, 0], x, line)
    for index, (_, y, _) in enumerate(points):
        if y <= line_at[index]:
            closed[index, 1] = y + 0.25 * gap_at[index] * np.exp(-(((line_at[index] - y) / 20) ** 2))
        else:
            closed[index, 1] = y - 0.75 * gap_at[index] * np.exp(-(((y - 0.75 * gap_at[index] - line_at[index]) / 55) ** 2))
    for pair in zip(LIPS_INNER_UPPER, LIPS_INNER_LOWER, strict=True):
        closed[list(pair), 1] = np.interp(points[pair[0], 0], x, line)
    return source.astype(np.float32), closed


def _deformed(where: Vectors, face: Vectors, shape: Shape) -> Vectors:
    """Move positions [n, 2] as `shape` says; `face` [478, 2] tells where the features are."""
    centre = face[[234, 454]].mean(0)
    width, height = face[454, 0] - face[234, 0], face[152, 1] - face[10, 1]
    mouth, nose, brow = face[[61, 291]].mean(0), face[1], face[9]
    x, y = where[:, 0].copy(), where[:, 1].copy()

    def bump(point: Vectors, sigma_x: float, sigma_y: float) -> Vectors:
        return np.exp(-(((where[:, 0] - point[0]) / sigma_x) ** 2) - ((where[:, 1] - point[1]) / sigma_y) ** 2)

    def ramp(start: float, end: float) -> Vectors:
        t = np.clip((where[:, 1] - start) / (end - start), 0, 1)
        return t * t * (3 - 2 * t)

    x += (where[:, 0] - centre[0]) * shape.face_width * bump(centre, 1.1 * width, 0.9 * height)
    jaw = ramp(nose[1] - 30, mouth[1] + 30) * (1 - ramp(face[152, 1], face[152, 1] + 90))
    x += (where[:, 0] - mouth[0]) * shape.jaw_width * jaw * bump(mouth, 0.9 * width, height)
    y += (
        height
        * shape.chin
        * ramp(mouth[1] + 5, face[152, 1])
        * (1 - ramp(face[152, 1] + 20, HEIGHT))
        * bump(face[152], 0.6 * width, height)
    )
    x += (where[:, 0] - nose[0]) * shape.nose_width * bump(face[2], 40, 30)
    y += height * shape.nose_length * bump(face[2], 45, 38)
    for upper, lower, brows, side in zip(EYES_UPPER, EYES_LOWER, BROWS, (-1, 1), strict=True):
        eye = face[[*upper, *lower]].mean(0)
        near = bump(eye, 42, 32)
        x += (where[:, 0] - eye[0]) * shape.eye_size * near + side * width * shape.eye_distance * near
        y += (where[:, 1] - eye[1]) * 1.5 * shape.eye_size * near
        y -= height * shape.brow_height * bump(face[list(brows)].mean(0), 60, 26)
    # Everyone starts from less of a smile: the corners come in and down.
    for corner, side in ((61, 1), (291, -1)):
        x += side * 0.02 * width * bump(face[corner], 34, 34)
        y += 0.018 * height * bump(face[corner], 34, 30)
    x += (where[:, 0] - mouth[0]) * shape.mouth_width * bump(mouth, 75, 40)
    y += (where[:, 1] - mouth[1] - 6) * shape.lips * bump(mouth + np.array([0, 6]), 48, 24)
    away = np.hypot((where[:, 0] - centre[0]) / (0.62 * width), (where[:, 1] - brow[1]) / (0.62 * height))
    rim = np.clip((away - 0.75) / 0.6, 0, 1) * (1 - ramp(nose[1], mouth[1]))
    x += (where[:, 0] - centre[0]) * shape.hair * rim * np.clip(1.9 - away, 0, 1)
    y += (where[:, 1] - brow[1]) * shape.hair * rim * np.clip(1.9 - away, 0, 1)
    return np.stack([x, y], 1)


def _anchors(points: Vectors) -> Vectors:
    """Positions around the face that carry the deformation into hair and neck: float64 [n, 2]."""
    centre, width = points[[234, 454], :2].mean(0), points[454, 0] - points[234, 0]
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    rings = [centre + (0, -40) + radius * width * np.stack([np.cos(angles), 1.05 * np.sin(angles)], 1) for radius in (0.72, 0.88, 1.05)]
    outside = np.concatenate(rings)
    return outside[(outside[:, 1] > 4) & (outside[:, 1] < HEIGHT - 4)]


def _lip_line(image: Image, points: Vectors) -> Image:
    """Shade the line between the closed lips, where the two halves of the picture meet."""
    import cv2

    line = points[list(LIPS_INNER_UPPER), :2]
    x = np.arange(WIDTH)
    middle, half = line[[0, -1], 0].mean(), np.ptp(line[[0, -1], 0]) / 2
    y = np.polyval(np.polyfit(line[:, 0] - middle, line[:, 1], 2), x - middle)
    fade = np.clip((1.12 - np.abs(x - middle) / half) / 0.2, 0, 1)
    away = np.arange(HEIGHT)[:, None] - y
    lips = cv2.GaussianBlur(image, (0, 0), 4).astype(np.float32)
    even = (0.8 * np.exp(-((away / 3.0) ** 2)) * fade)[..., None]
    dark = (np.exp(-((away / 1.4) ** 2)) * fade)[..., None] * np.array([0.38, 0.52, 0.5], np.float32)
    shaded = (image * (1 - even) + lips * even) * (1 - dark)
    return np.round(shaded).astype(np.uint8)


def _bearded(image: Image, points: Vectors, look: Look) -> Image:
    """Darken moustache, cheeks and chin with a fine grain, towards the colour of the hair."""
    import cv2

    mask = np.zeros((HEIGHT, WIDTH), np.float32)
    jaw = [132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361]
    cheek = [410, 287, 2, 57, 186]
    outline = np.concatenate([points[jaw, :2] + (0, 6), points[[435, *cheek, 215], :2]])
    cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1.0)
    lips = points[[61, 40, 37, 0, 267, 270, 291, 321, 314, 17, 84, 91], :2]
    lips = lips.mean(0) + (lips - lips.mean(0)) * (1.06, 1.12)
    cv2.fillPoly(mask, [np.round(lips).astype(np.int32)], 0.0)
    mask = cv2.GaussianBlur(mask, (0, 0), 8)
    rng = np.random.default_rng(0xBEA)
    grain = cv2.GaussianBlur(rng.standard_normal((HEIGHT, WIDTH)).astype(np.float32), (0, 0), sigmaX=0.7, sigmaY=1.1)
    strength = np.clip(mask * look.beard * (0.72 + 0.55 * grain), 0, 0.92)[..., None]
    hair = np.array([52, 38, 30], np.float32) if look.hair[0] < 0.5 else np.array([96, 62, 40], np.float32)
    shade = hair * (0.55 + 0.9 * cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None] / 255)
    return np.clip(np.round(image * (1 - strength) + shade * strength), 0, 255).astype(np.uint8)


def _teeth(portrait: Portrait) -> Image:
    """The portrait's teeth, straightened: uint8 [24, 120, 3]."""
    import cv2

    upper, lower = (portrait.points[list(line), :2] for line in (LIPS_INNER_UPPER, LIPS_INNER_LOWER))
    x = np.linspace(upper[0, 0] + 4, upper[-1, 0] - 4, 120)
    top, bottom = np.interp(x, *upper.T) + 2, np.interp(x, *lower.T) - 2
    v = np.linspace(0, 1, 24)[:, None]
    map_y = top * (1 - v) + bottom * v
    return cv2.remap(portrait.image, np.tile(x, (24, 1)).astype(np.float32), map_y.astype(np.float32), cv2.INTER_LINEAR)


def _glasses(points: Vectors, colour: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Draw glasses on the eyes: uint8 [HEIGHT, WIDTH, 4], premultiplied."""
    import cv2

    fine = 4
    mask = np.zeros((HEIGHT * fine, WIDTH * fine), np.uint8)
    lens = np.zeros_like(mask)
    centres = [points[[*upper, *lower], :2].mean(0) + np.array([0, 4]) for upper, lower in zip(EYES_UPPER, EYES_LOWER, strict=True)]
    half = 0.43 * (centres[1][0] - centres[0][0])
    angles = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    rounded = np.sign(np.cos(angles)) * np.abs(np.cos(angles)) ** 0.7, np.sign(np.sin(angles)) * np.abs(np.sin(angles)) ** 0.7
    for centre in centres:
        outline = np.round(fine * (centre + half * np.stack([rounded[0], 0.78 * rounded[1]], 1))).astype(np.int32)
        cv2.fillPoly(lens, [outline], 255)
        cv2.polylines(mask, [outline], True, 255, 5 * fine, cv2.LINE_AA)
    left, right = centres
    bars = [
        (left + np.array([half, -6]), right - np.array([half, 6])),
        (left - np.array([half, 8]), points[127, :2]),
        (right + np.array([half, -8]), points[356, :2]),
    ]
    for bar in bars:
        cv2.polylines(mask, [np.round(fine * np.array(bar)).astype(np.int32)], False, 255, 4 * fine, cv2.LINE_AA)
    frame = cv2.resize(mask, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / 255
    glass = 0.07 * cv2.resize(lens, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / 255
    alpha = frame + glass * (1 - frame)
    rgb = frame * np.array(colour, np.float32) + glass * (1 - frame) * 235
    return np.round(np.concatenate([rgb, 255 * alpha], 2)).astype(np.uint8)


__all__ = ["Head", "Look", "Shape", "make_head", "make_looks"]

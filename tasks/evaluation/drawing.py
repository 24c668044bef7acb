"""Pictures for people: landmarks drawn over a face, captions, and grids of panels.

Nothing here is read by a network (the raster that a family is driven by belongs to the family).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.views import Image, Points

if TYPE_CHECKING:
    from PIL import ImageFont

Colour = tuple[int, int, int]

INK: Colour = (32, 36, 44)
SOFT_INK: Colour = (104, 112, 124)
PAPER: Colour = (250, 250, 248)
RULE: Colour = (222, 222, 216)
BAD: Colour = (176, 48, 40)

CONTOURS: tuple[tuple[slice, bool, Colour], ...] = (
    (slice(0, 17), False, (80, 220, 120)),
    (slice(17, 22), False, (255, 190, 60)),
    (slice(22, 27), False, (255, 190, 60)),
    (slice(27, 31), False, (90, 160, 255)),
    (slice(31, 36), False, (90, 160, 255)),
    (slice(36, 42), True, (255, 90, 90)),
    (slice(42, 48), True, (255, 90, 90)),
    (slice(48, 60), True, (230, 110, 240)),
    (slice(60, 68), True, (255, 170, 200)),
)
"""Part of the 68 points, whether it closes, and the colour that it is drawn in."""

_SUBPIXEL_BITS = 4


def draw_landmarks(image: Image, points: Points, *, dots: bool = True) -> Image:
    """Return a copy of `image` with the 68 points drawn as contours and dots.

    Args:
        image: uint8 [H, W, 3].
        points: float32 [68, 2], pixels of `image`; NaN draws nothing.
        dots: Also mark every point.
    """
    import cv2

    drawn = np.ascontiguousarray(image).copy()
    if np.isnan(points).any():
        return drawn
    side = min(drawn.shape[:2])
    fixed = np.round(np.asarray(points, np.float64) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    for part, closed, colour in CONTOURS:
        cv2.polylines(drawn, [fixed[part].reshape(-1, 1, 2)], closed, colour, max(1, side // 220), cv2.LINE_AA, _SUBPIXEL_BITS)
    if dots:
        radius = max(1, side // 160)
        for part, _, colour in CONTOURS:
            for x, y in fixed[part]:
                cv2.circle(drawn, (int(x), int(y)), radius << _SUBPIXEL_BITS, colour, -1, cv2.LINE_AA, _SUBPIXEL_BITS)
    return drawn


def fit(image: Image, width: int, height: int | None = None) -> Image:
    """Scale so that the picture fits into `width` x `height` (a square without the latter) and centre it there, on paper colour."""
    import cv2

    height = width if height is None else height
    scale = min(width / image.shape[1], height / image.shape[0])
    size = tuple(min(room, max(1, round(side * scale))) for room, side in ((width, image.shape[1]), (height, image.shape[0])))
    if size != image.shape[1::-1]:
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC), np.uint8)
    paper = np.full((height, width, 3), PAPER, np.uint8)
    top, left = (height - image.shape[0]) // 2, (width - image.shape[1]) // 2
    paper[top : top + image.shape[0], left : left + image.shape[1]] = image
    return paper


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a caption."""

    text: str
    colour: Colour = INK
    size: int = 15


def write_lines(width: int, lines: Sequence[Line], *, padding: int = 6) -> Image:
    """A strip of paper `width` px wide with the lines on it; what doesn't fit loses its middle."""
    from PIL import Image as PilImage
    from PIL import ImageDraw

    height = 2 * padding + sum(_line_height(line) for line in lines)
    strip = PilImage.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(strip)
    top = padding
    for line in lines:
        font = _font(line.size)
        text = " ".join(line.text.encode("utf-8", "replace").decode().split())
        while len(text) > 2 and draw.textlength(text, font=font) > width - 2 * padding:
            middle = len(text) // 2
            text = f"{text[: middle - 1].rstrip('…')}…{text[middle + 1 :].lstrip('…')}"
        draw.text((padding, top), text, fill=line.colour, font=font)
        top += _line_height(line)
    return np.asarray(strip)


def grid(rows: Sequence[Sequence[Image]], *, titles: Sequence[str], labels: Sequence[str], heading: Sequence[Line], side: int) -> Image:
    """Lay panels out under column titles, each row with a label at its left.

    Args:
        rows: Panels, every row as long as `titles`; each is scaled to `side`.
        titles: Column titles.
        labels: One per row.
        heading: Lines over everything.
        side: Side of a panel in pixels.
    """
    gap, label_width = 6, 76
    width = label_width + len(titles) * (side + gap) + gap
    blank = np.full((0, width, 3), PAPER, np.uint8)
    parts = [blank, write_lines(width, heading, padding=10)]
    header = write_lines(label_width + gap, [Line(text=" ")])
    parts.append(np.concatenate([header, *(write_lines(side + gap, [Line(text=t, colour=SOFT_INK)], padding=6) for t in titles)], axis=1))
    for label, panels in zip(labels, rows, strict=True):
        strip = np.full((side + gap, width, 3), PAPER, np.uint8)
        caption = write_lines(label_width, [Line(text=label, colour=SOFT_INK, size=13)])
        top = (side - caption.shape[0]) // 2
        strip[top : top + caption.shape[0], :label_width] = caption
        for column, panel in enumerate(panels):
            left = label_width + gap + column * (side + gap)
            strip[:side, left : left + side] = fit(panel, side)
        parts.append(strip)
    return np.concatenate(parts, axis=0)


def stack(pictures: Sequence[Image], *, gap: int = 14) -> Image:
    """Put pictures under each other on paper, left-aligned, a thin rule between them."""
    width = max(picture.shape[1] for picture in pictures)
    parts = []
    for index, picture in enumerate(pictures):
        padded = np.full((picture.shape[0], width, 3), PAPER, np.uint8)
        padded[:, : picture.shape[1]] = picture
        if index:
            space = np.full((gap, width, 3), PAPER, np.uint8)
            space[gap // 2] = RULE
            parts.append(space)
        parts.append(padded)
    return np.concatenate(parts, axis=0)


def encode_png(image: Image) -> bytes:
    """PNG bytes of an RGB picture."""
    import cv2

    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 6])
    if not done:
        raise ValueError(f"a picture of {image.shape} can't be written as PNG")
    return data.tobytes()


def encode_jpeg(image: Image, quality: int = 88) -> bytes:
    """JPEG bytes of an RGB picture, for pages: a tenth of the PNG's size."""
    import cv2

    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"a picture of {image.shape} can't be written as JPEG")
    return data.tobytes()


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib carries: Latin with accents, Greek, Cyrillic and more."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _line_height(line: Line) -> int:
    return round(line.size * 1.35)

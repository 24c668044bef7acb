"""What a report shows of one clip: a picture of moments, the mouth's opening over time, and a video of the rows side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from models.family import EvaluationCase
from models.views import Image
from tasks.evaluation.drawing import INK, SOFT_INK, Line, draw_landmarks, fit, grid, write_lines
from tasks.evaluation.metrics import TrackedFaces
from tasks.evaluation.metrics_landmarks import mouth_opening
from tasks.evaluation.mouth_plot import draw_mouth_plot
from tasks.evaluation.report import BASELINE, MODEL, SHUFFLED, TRUTH
from tasks.generation.provenance import ModelIdentity
from tasks.video.crop import CropBox, crop_image
from tasks.video.video_out import VideoWriter

PANEL = 176
"""Side of a panel of the picture, in pixels."""

AROUND = 0.15
"""What the picture shows around a painted square on every side, as a share of it: a seam must be seen."""

VIDEO_PANEL = (240, 320)
"""Short side of a panel of the videos in pixels: smaller frames are enlarged to the first, larger ones are reduced to the second."""

LONGEST = 2.0
"""Long side of a panel of the videos over its short side, at most; what is longer still gets paper beside it."""

GAIN = 4
"""How much the videos amplify the difference of model and truth."""

PLOT_WIDTH = 720
"""Of the plot that stands alone in the page, in pixels: its letters can still be read at half of that."""


@dataclass(frozen=True, kw_only=True)
class ClipPictures:
    """What there is to show of one clip."""

    case: EvaluationCase
    made: Mapping[str, Image]
    """Frames by row: uint8 [F, H, W, 3]; a row that failed is absent."""
    rows: tuple[str, ...]
    """The rows of the report."""
    moments: tuple[int, ...]
    """Frame numbers drawn in the picture."""
    faces: Mapping[str, TrackedFaces] = field(default_factory=dict)
    """What the landmarker saw, by row."""

    @classmethod
    def of(
        cls,
        case: EvaluationCase,
        made: Mapping[str, Image],
        count: int,
        *,
        rows: Sequence[str],
        faces: Mapping[str, TrackedFaces] | None = None,
    ) -> ClipPictures:
        """Pictures at `count` moments spread over the clip, its first and last frame left out where there are others."""
        frames = len(case.targets)
        moments = tuple(sorted({round((i + 0.5) * frames / count - 0.5) for i in range(count)}))
        shown = tuple(min(moment, frames - 1) for moment in moments)
        return cls(case=case, made=made, rows=tuple(rows), moments=shown, faces=faces or {})


@dataclass(frozen=True, kw_only=True)
class ShownClip:
    """One clip as the report shows it."""

    key: str
    picture: Image
    """Every row at a few moments."""
    titles: tuple[str, ...]
    """Of the picture's columns."""
    plot: Image | None
    """The mouth's opening over time; for families that sound drives."""
    wide_plot: Image | None
    """The same as wide as the picture."""
    panels: tuple[str, ...]
    """Of the video, which lies beside the page."""

    @property
    def video(self) -> str:
        """Path of the video in the report's folder."""
        return f"videos/{self.key}.mp4"

    @property
    def whole(self) -> Image:
        """The picture with the plot under it."""
        return self.picture if self.wide_plot is None else np.concatenate([self.picture, self.wide_plot])


def show_clip(picture: ClipPictures, model: ModelIdentity, folder: Path) -> ShownClip:
    """Draw a clip and write its video into `folder`; the frames are needed no longer then."""
    drawn = draw_clip(picture)
    plots = [draw_opening(picture, width) for width in (PLOT_WIDTH, drawn.shape[1])]
    shown = ShownClip(
        key=picture.case.key,
        picture=drawn,
        titles=_titles(picture),
        plot=plots[0],
        wide_plot=plots[1],
        panels=tuple(title for title, _ in _video_panels(picture)),
    )
    _write_video(picture, model, folder / shown.video)
    return shown


def draw_clip(picture: ClipPictures) -> Image:
    """Reference, driver landmarks where they drive, and every row of the report beside each other, one line per moment."""
    case = picture.case
    reference = fit(case.face.images[0], PANEL)
    lines = []
    for moment in picture.moments:
        panels = [reference]
        if case.driver.landmarks is not None:
            panels.append(_driver_panel(picture, moment))
        panels += [
            fit(_look_at(picture, picture.made[row][moment], moment), PANEL) if row in picture.made else _absent("none")
            for row in picture.rows
        ]
        lines.append(panels)
    height, width = case.targets.shape[1:3]
    part = "" if case.painted is None else f"; beside the reference: the painted square and {AROUND:.0%} around it"
    return grid(
        lines,
        titles=_titles(picture),
        labels=[f"frame {moment}" for moment in picture.moments],
        heading=[
            Line(text=case.key, colour=INK, size=17),
            Line(
                text=f"{_counted(len(case.face.images), 'reference frame')}, {len(case.targets)} frames of {width}x{height} px{part}",
                colour=SOFT_INK,
            ),
        ],
        side=PANEL,
    )


def draw_opening(picture: ClipPictures, width: int) -> Image | None:
    """The mouth's opening over time by row, over the sound; None where no sound drives or no landmarker looked."""
    rows = [row for row in (TRUTH, MODEL, SHUFFLED) if row in picture.faces and row in picture.made]
    if SHUFFLED not in picture.rows or TRUTH not in rows:
        return None
    curves = {row: mouth_opening(picture.faces[row], picture.faces[TRUTH]) for row in rows}
    return draw_mouth_plot(curves, picture.case.driver.audio, picture.moments, width=width)


def _titles(picture: ClipPictures) -> tuple[str, ...]:
    return ("reference", *(("driver landmarks",) if picture.case.driver.landmarks is not None else ()), *picture.rows)


def _look_at(picture: ClipPictures, frame: Image, moment: int) -> Image:
    """The part of a frame that the picture shows."""
    if picture.case.painted is None:
        return frame
    x, y, side = (int(value) for value in picture.case.painted.boxes[moment])
    around = round(AROUND * side)
    return crop_image(frame, CropBox(x - around, y - around, side + 2 * around), PANEL)


def _driver_panel(picture: ClipPictures, moment: int) -> Image:
    driver = picture.case.driver
    if driver.landmarks is None or moment >= len(driver.landmarks):
        return _absent("none")
    scale = PANEL / (driver.size or picture.case.targets.shape[2])
    return draw_landmarks(np.full((PANEL, PANEL, 3), 24, np.uint8), (driver.landmarks[moment] + 0.5) * scale - 0.5, dots=False)


def _absent(word: str) -> Image:
    return fit(write_lines(PANEL, [Line(text=word, colour=SOFT_INK)]), PANEL)


def _video_panels(picture: ClipPictures) -> list[tuple[str, str]]:
    """Titles of the video's panels, and the row that each one shows; the difference shows the model's."""
    panels = [(row, row) for row in (TRUTH, BASELINE, MODEL) if row in picture.made]
    return [*panels, (f"difference ×{GAIN}", MODEL)] if MODEL in picture.made else panels


def _write_video(picture: ClipPictures, model: ModelIdentity, path: Path) -> None:
    """Truth, baseline, model and the difference of model and truth beside each other, labelled, with the true sound."""
    panels = _video_panels(picture)
    truth = picture.case.targets
    height, width = _panel_size(*truth.shape[1:3])
    labels = np.concatenate([write_lines(width, [Line(text=title, size=16)], padding=5) for title, _ in panels], axis=1)
    labels = labels[: labels.shape[0] // 2 * 2]
    with VideoWriter(
        path,
        width=labels.shape[1],
        height=labels.shape[0] + height,
        crf=21,
        audio=picture.case.driver.audio,
        metadata={**model.metadata(), "clip": picture.case.key, "panels": ", ".join(title for title, _ in panels)},
    ) as writer:
        for index in range(len(truth)):
            frames = [
                picture.made[row][index] if title == row else amplified(picture.made[row][index], truth[index]) for title, row in panels
            ]
            strip = np.concatenate([fit(frame, width, height) for frame in frames], axis=1)
            writer.write(np.concatenate([labels, strip], axis=0))


def amplified(frame: Image, truth: Image) -> Image:
    """How far every pixel is off, `GAIN` times, from black; uint8 [H, W, 3]."""
    return np.minimum(np.abs(frame.astype(np.int16) - truth) * GAIN, 255).astype(np.uint8)


def _panel_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of a video panel, in the frame's shape; both even."""
    short = min(max(min(height, width), VIDEO_PANEL[0]), VIDEO_PANEL[1])
    scale, longest = short / min(height, width), short * LONGEST
    return int(min(height * scale, longest) / 2) * 2, int(min(width * scale, longest) / 2) * 2


def _counted(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"

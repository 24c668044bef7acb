"""Pictures of a dataset: a contact sheet with the landmarks drawn, and one self-contained page around it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.views import FPS, Image
from tasks.data.dataset import Dataset, DatasetError
from tasks.data.inspect_dataset import DatasetSummary, summarise, tiles
from tasks.data.splits import FILTERS
from tasks.data.spread import spread
from tasks.data.storage import Storage
from tasks.evaluation.drawing import BAD, INK, PAPER, RULE, SOFT_INK, Line, draw_landmarks, encode_png, fit, write_lines
from tasks.evaluation.page import Column, Page, histogram_svg
from tasks.settings import FilterSettings

if TYPE_CHECKING:
    import pyarrow as pa

PANEL = 168
"""Side of a frame on the sheet, in pixels."""

CAPTION = 320
"""Width of a clip's caption, in pixels."""

LISTED = 200
"""Most rows of a table on the page."""

READ_ERRORS = (ValueError, LookupError, OSError, DatasetError)

Progress = Callable[[int, int], None]
"""Called with clips drawn and clips in all."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `inspect` wrote."""

    summary: DatasetSummary
    page: Path
    sheet: Path
    json: Path


def inspect(
    dataset: Dataset,
    out: Path,
    *,
    filters: FilterSettings | None = None,
    clips: int = 24,
    frames: int = 6,
    progress: Progress | None = None,
) -> Inspection:
    """Write `contact_sheet.png`, `inspection.html` and `inspection.json` into the folder `out`.

    Args:
        dataset: The dataset.
        out: Folder for the three files; what lies there under these names is replaced.
        filters: Thresholds whose effect is shown; None is their defaults.
        clips: Most clips on the sheet; spread over people and videos.
        frames: Frames per clip.
        progress: Called after every clip.
    """
    filters = filters or FilterSettings()
    summary = summarise(dataset, filters)
    sheet = draw_sheet(dataset, filters=filters, clips=clips, frames=frames, progress=progress)
    storage = Storage.at(out)
    storage.write("contact_sheet.png", encode_png(sheet))
    storage.write("inspection.json", (json.dumps(summary.as_dict(), indent=1) + "\n").encode())
    storage.write("inspection.html", draw_page(dataset, summary, sheet, filters))
    folder = Path(storage.url)
    return Inspection(summary=summary, page=folder / "inspection.html", sheet=folder / "contact_sheet.png", json=folder / "inspection.json")


def draw_sheet(dataset: Dataset, *, filters: FilterSettings, clips: int, frames: int, progress: Progress | None = None) -> Image:
    """One row per clip: key and scores, then frames with landmarks; the rejects below.

    A clip that can't be read is a row with its error. Where the dataset holds more clips than are
    drawn, the sheet says so.
    """
    table = dataset.clips()
    chosen = sorted(spread(table["key"].to_pylist(), clips))
    rows = {row["key"]: row for row in _rows(table, chosen)}
    width = CAPTION + frames * (PANEL + 4) + 8
    counts = f"{len(chosen)} of {table.num_rows} clips · {dataset.rejects().num_rows} rejects"
    title = f"{counts} · green jaw, orange brows, blue nose, red eyes, pink mouth"
    parts = [write_lines(width, [Line(text=_short(dataset.url, 90), size=18), Line(text=title, colour=SOFT_INK)], padding=10)]
    for done, key in enumerate(chosen, start=1):
        parts.append(_rule(width))
        parts.append(_clip_strip(dataset, rows[key], filters, frames, width))
        if progress is not None:
            progress(done, len(chosen))
    rejects = dataset.rejects().slice(0, 40).to_pylist()
    if rejects:
        parts.append(_rule(width))
        parts.append(write_lines(width, [Line(text="Rejects", size=18), *(_reject_line(reject) for reject in rejects)], padding=10))
    return np.concatenate(parts, axis=0)


def failed_filters(row: Mapping[str, Any], filters: FilterSettings) -> list[str]:
    """The filters that one row of the index of clips fails, each with its value."""
    failed = []
    for rule in FILTERS:
        limit = getattr(filters, rule.setting)
        value = row[rule.column]
        if rule.active(limit) and not bool(rule.keep(np.asarray([np.nan if value is None else value]), limit)[0]):
            failed.append(f"{rule.setting} ({rule.column} {value:.3g})" if isinstance(value, float) else f"{rule.setting} ({value})")
    return failed


def draw_page(dataset: Dataset, summary: DatasetSummary, sheet: Image, filters: FilterSettings) -> bytes:
    """The page: numbers, histograms, filters, contact sheet, clips and rejects."""
    page = Page(title=f"Dataset {summary.url}")
    page.heading("Dataset", 1)
    page.paragraph(f"{summary.url} · fingerprint {summary.fingerprint[:16]}", soft=True)
    page.tiles(tiles(summary))
    if summary.rejects:
        page.facts({"Rejects by reason": _listed(summary.rejects), "Rejects by step": _listed(summary.reject_steps)})
    page.facts({"Licences": _listed(summary.licences) or "none"})
    page.heading("Contact sheet")
    page.picture(sheet, "Frames of every clip with the stored landmarks; what a clip fails is red")
    page.heading("Scores")
    page.paragraph(
        "Clips by score; the dashed line is the threshold of the filter that reads it. Thresholds are applied when the data is read.",
        soft=True,
    )
    page.histograms(
        histogram_svg(
            f"{score.name}{f', {score.missing} without' if score.missing else ''}",
            score.edges,
            score.counts,
            limit=score.limit,
            limit_name=f"{score.filter} {score.limit:g}" if score.limit is not None else "",
        )
        for score in summary.scores
        if score.counts
    )
    page.heading("Filters")
    page.table(
        [Column(title="filter"), *(Column(title=title, number=True) for title in ("value", "fail it", "removed first", "left"))],
        [[e.name, f"{e.value:g}", str(e.fails), str(e.removes), str(e.left)] for e in summary.filters],
    )
    clips = dataset.clips()
    page.heading(_count_heading("Clips", clips.num_rows))
    numbers = ("seconds", "face px", "face share", "yaw", "pitch", "one face", "landmarks", "sharpness", "speech")
    page.table(
        [Column(title="clip"), *(Column(title=title, number=True) for title in numbers), Column(title="fails"), Column(title="source")],
        [_clip_cells(row, filters) for row in clips.slice(0, LISTED).to_pylist()],
    )
    rejects = dataset.rejects()
    if rejects.num_rows:
        page.heading(_count_heading("Rejects", rejects.num_rows))
        page.table(
            [Column(title=title) for title in ("reason", "step", "what happened", "source")],
            [[r["code"], r["step"], _span(r) + r["message"], r["uri"]] for r in rejects.slice(0, LISTED).to_pylist()],
        )
    return page.render()


def _clip_strip(dataset: Dataset, row: Mapping[str, Any], filters: FilterSettings, frames: int, width: int) -> Image:
    """A clip's caption and frames, PANEL px high."""
    from tasks.data.readers import read_clip

    lines = _caption(row, filters)
    strip = np.full((PANEL, width, 3), PAPER, np.uint8)
    try:
        clip = read_clip(dataset, row["key"])
        moments = sorted({round((i + 0.5) * clip.num_frames / frames - 0.5) for i in range(frames)})
        images = clip.read_frames(moments)
    except READ_ERRORS as error:
        lines.append(Line(text=f"unreadable: {error}", colour=BAD, size=13))
    else:
        for column, (moment, image) in enumerate(zip(moments, images, strict=True)):
            scale = PANEL / image.shape[0]
            panel = draw_landmarks(fit(image, PANEL), (clip.landmarks[moment] + 0.5) * scale - 0.5, dots=True)
            left = CAPTION + 4 + column * (PANEL + 4)
            strip[:, left : left + PANEL] = panel
    caption = write_lines(CAPTION, lines)[:PANEL]
    strip[: caption.shape[0], :CAPTION] = caption
    return strip


def _caption(row: Mapping[str, Any], filters: FilterSettings) -> list[Line]:
    failed = failed_filters(row, filters)
    sound = "no sound" if not row["has_audio"] else f"speech {row['speech']:.0%}" if row["speech"] is not None else "sound"
    lines = [
        Line(text=row["key"], colour=INK, size=13),
        Line(text=Path(row["uri"]).name, colour=SOFT_INK, size=12),
        Line(
            text=f"{row['num_frames']} frames, {row['num_frames'] / FPS:.1f} s from {row['start']:.1f} s, {sound}", colour=SOFT_INK, size=13
        ),
        Line(text=f"face {row['face_px']:.0f} px, {row['face_share']:.0%} of the crop", colour=SOFT_INK, size=12),
        Line(text=f"yaw {row['yaw_p95']:.0f}°, pitch {row['pitch_p95']:.0f}°, roll {row['roll_p95']:.0f}°", colour=SOFT_INK, size=12),
        Line(text=f"one face {row['one_face']:.0%}, landmarks {row['landmark_rate']:.0%}", colour=SOFT_INK, size=12),
        Line(text=f"sharpness {row['sharpness']:.0f}, brightness {row['brightness']:.0f}", colour=SOFT_INK, size=12),
    ]
    return [*lines, *(Line(text=f"fails {name}", colour=BAD, size=12) for name in failed[:2])]


def _clip_cells(row: Mapping[str, Any], filters: FilterSettings) -> list[str]:
    scores = [
        f"{row[name]:.3g}" if row[name] is not None else "–" for name in ("face_px", "face_share", "yaw_p95", "pitch_p95", "one_face")
    ]
    more = [f"{row[name]:.3g}" if row[name] is not None else "–" for name in ("landmark_rate", "sharpness", "speech")]
    failed = ", ".join(failed_filters(row, filters))
    return [row["key"], f"{row['num_frames'] / FPS:.1f}", *scores, *more, failed or "nothing", Path(row["uri"]).name]


def _reject_line(reject: Mapping[str, Any]) -> Line:
    return Line(text=f"{reject['code']}: {Path(reject['uri']).name}: {_span(reject)}{reject['message']}", colour=BAD, size=13)


def _span(reject: Mapping[str, Any]) -> str:
    if reject["start"] is None:
        return ""
    end = f" to {reject['end']:.2f} s" if reject["end"] is not None else " s on"
    return f"{reject['start']:.2f}{end}: "


def _rows(table: pa.Table, keys: Sequence[str]) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    rows: list[dict[str, Any]] = table.filter(pc.is_in(table["key"], value_set=pa.array(keys, pa.string()))).to_pylist()
    return rows


def _rule(width: int) -> Image:
    rule = np.full((9, width, 3), PAPER, np.uint8)
    rule[4] = RULE
    return rule


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _count_heading(what: str, count: int) -> str:
    return f"{what} (first {LISTED} of {count:,})" if count > LISTED else f"{what} ({count:,})"


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else "…" + text[-length:]

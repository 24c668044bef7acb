"""The files of an evaluation: HTML page, picture, videos, Parquet, JSON and markdown."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import numpy as np

from models.views import Image
from tasks.data.storage import Storage
from tasks.evaluation.drawing import INK, SOFT_INK, Line, draw_landmarks, encode_png, fit, grid, stack, write_lines
from tasks.evaluation.metrics import Metric, NotComputed
from tasks.evaluation.page import Column, Page
from tasks.evaluation.report import BASELINE, MODEL, ROWS, TRUTH, ClipPictures, EvaluationReport, ReportRow
from tasks.generation.provenance import ModelIdentity
from tasks.video.video_out import VideoWriter

PANEL = 176
"""Side of a panel of the picture, in pixels."""

VIDEO_PANEL = 240
"""Side of a panel of the videos: smaller frames are enlarged to it, larger ones are reduced."""

INLINE_LIMIT = 16 << 20
"""Bytes of video that the page carries; beyond that a clip's video lies beside the page only."""


def write_report(report: EvaluationReport, pictures: Sequence[ClipPictures]) -> None:
    """Write all files of the report into its folder, each whole, the page last."""
    report.folder.mkdir(parents=True, exist_ok=True)
    storage = Storage.at(str(report.folder))
    drawn = [draw_clip(picture) for picture in pictures]
    if drawn:
        storage.write(report.grid.name, encode_png(stack(drawn)))
    for picture in pictures:
        _write_video(report, picture)
    storage.write(report.table.name, clips_parquet(report))
    storage.write(report.json.name, (json.dumps(report.as_dict(), indent=1, allow_nan=False) + "\n").encode())
    storage.write("report.md", markdown(report).encode())
    storage.write(report.page.name, _page(report, pictures, drawn))


def markdown(report: EvaluationReport) -> str:
    """The report without pictures, for a Prefect artifact or a model's card."""
    metrics = [metric for metric in report.metrics if _computed(report, metric)]
    lines = [f"**{report.verdict.sentence}**", ""]
    lines.append("| | " + " | ".join(_heading(metric) for metric in metrics) + " | clips | frames | failures |")
    lines.append("|---|" + "---:|" * (len(metrics) + 3))
    for row in report.rows:
        cells = [" ".join(_cell(row, metric)) for metric in metrics]
        lines.append(f"| {row.name} | " + " | ".join([*cells, str(row.clips), str(row.frames), str(row.failures)]) + " |")
    lines += ["", "Mean over clips, ± standard deviation; ↑ higher is better, ↓ lower is better.", ""]
    lines += [f"- {metric.title} {reason}" for metric, reason in _not_computed(report)]
    lines += [f"- {name}: {value}" for name, value in report.facts().items()]
    lines += [f"- failed: {clip.key} ({clip.row}): {' '.join((clip.error or '').split())}" for clip in report.failures]
    return "\n".join(lines) + "\n"


def clips_parquet(report: EvaluationReport) -> bytes:
    """One line per clip and row: metrics as float64 (null where not computed), errors and reasons as text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    clips = report.clips
    columns = {
        "key": pa.array([clip.key for clip in clips], pa.string()),
        "row": pa.array([clip.row for clip in clips], pa.string()),
        "frames": pa.array([clip.frames for clip in clips], pa.int64()),
        "size": pa.array([clip.size for clip in clips], pa.int64()),
        "seconds": pa.array([clip.seconds for clip in clips], pa.float64()),
        "truth_without_face": pa.array([clip.truth_without_face for clip in clips], pa.int64()),
    }
    for metric in report.metrics:
        answers = [clip.values.get(metric.name) for clip in clips]
        columns[metric.name] = pa.array([value if isinstance(value, float) else None for value in answers], pa.float64())
    reasons = [{name: value.reason for name, value in clip.values.items() if isinstance(value, NotComputed)} for clip in clips]
    columns["not_computed"] = pa.array([json.dumps(reason) if reason else None for reason in reasons], pa.string())
    columns["error"] = pa.array([clip.error for clip in clips], pa.string())
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def draw_clip(picture: ClipPictures) -> Image:
    """Reference, driver, truth, baseline and model beside each other, one row per moment."""
    case = picture.case
    driven = case.driver.landmarks is not None
    reference = fit(case.face.images[0], PANEL)
    titles = ["reference", *(["driver landmarks"] if driven else []), *ROWS]
    rows = []
    for moment in picture.moments:
        panels = [reference]
        if driven:
            panels.append(_driver_panel(picture, moment))
        panels += [fit(picture.made[row][moment], PANEL) if row in picture.made else _absent("failed") for row in ROWS]
        rows.append(panels)
    return grid(
        rows,
        titles=titles,
        labels=[f"frame {moment}" for moment in picture.moments],
        heading=[
            Line(text=case.key, colour=INK, size=17),
            Line(
                text=f"{len(case.face.images)} reference frames, {len(case.targets)} frames of {case.targets.shape[2]} px", colour=SOFT_INK
            ),
        ],
        side=PANEL,
    )


def _driver_panel(picture: ClipPictures, moment: int) -> Image:
    driver = picture.case.driver
    if driver.landmarks is None or moment >= len(driver.landmarks):
        return _absent("none")
    scale = PANEL / (driver.size or picture.case.targets.shape[2])
    return draw_landmarks(np.full((PANEL, PANEL, 3), 24, np.uint8), (driver.landmarks[moment] + 0.5) * scale - 0.5, dots=False)


def _absent(word: str) -> Image:
    return fit(write_lines(PANEL, [Line(text=word, colour=SOFT_INK)]), PANEL)


def _write_video(report: EvaluationReport, picture: ClipPictures) -> None:
    """Truth, baseline and model beside each other, labelled, with the driver's sound where it has one."""
    rows = [row for row in ROWS if row in picture.made]
    labels = np.concatenate([write_lines(VIDEO_PANEL, [Line(text=row, size=16)], padding=5) for row in rows], axis=1)
    labels = labels[: labels.shape[0] // 2 * 2]
    metadata = {**report.header.model.metadata(), "clip": picture.case.key, "panels": ", ".join(rows)}
    with VideoWriter(
        report.folder / "videos" / f"{picture.case.key}.mp4",
        width=labels.shape[1],
        height=labels.shape[0] + VIDEO_PANEL,
        crf=21,
        audio=picture.case.driver.audio,
        metadata=metadata,
    ) as writer:
        for index in range(len(picture.case.targets)):
            panels = np.concatenate([fit(picture.made[row][index], VIDEO_PANEL) for row in rows], axis=1)
            writer.write(np.concatenate([labels, panels], axis=0))


def _page(report: EvaluationReport, pictures: Sequence[ClipPictures], drawn: Sequence[Image]) -> bytes:
    model: ModelIdentity = report.header.model
    page = Page(title=f"Evaluation of {model.family}: {model.uri}")
    page.heading(f"Evaluation: {model.family}", 1)
    page.paragraph(f"{model.uri}{f', version {model.version}' if model.version else ''}", soft=True)
    page.verdict(report.verdict.sentence, report.verdict.beats_baseline)
    metrics = [metric for metric in report.metrics if _computed(report, metric)]
    page.table(
        [
            Column(title=""),
            *(Column(title=_heading(metric), number=True, hint=metric.description) for metric in metrics),
            Column(title="clips", number=True),
            Column(title="frames", number=True),
            Column(title="failures", number=True),
        ],
        [
            [row.name, *(_cell(row, metric) for metric in metrics), str(row.clips), str(row.frames), str(row.failures)]
            for row in report.rows
        ],
        strong=frozenset(index for index, row in enumerate(report.rows) if row.name == MODEL),
    )
    page.paragraph(
        "Mean over clips, ± standard deviation; ↑ higher is better, ↓ lower is better. The truth row measures the true video against"
        " itself and shows what a metric's best value is; the baseline needs no learning.",
        soft=True,
    )
    for metric, reason in _not_computed(report):
        page.paragraph(f"{metric.title} {reason}")
    page.heading("What the numbers depend on")
    page.facts(report.facts())
    if report.failures:
        page.heading("Failures")
        page.table(
            [Column(title="clip"), Column(title="row"), Column(title="error")],
            [[clip.key, clip.row, clip.error or ""] for clip in report.failures],
        )
    if pictures:
        page.heading("To look at")
    room = INLINE_LIMIT
    for picture, image in zip(pictures, drawn, strict=True):
        key = picture.case.key
        page.heading(key, 3)
        page.picture(image, "reference, driver landmarks, truth, baseline and model")
        mp4 = (report.folder / "videos" / f"{key}.mp4").read_bytes()
        if len(mp4) <= room:
            page.video(mp4, "truth, baseline and model")
            room -= len(mp4)
        else:
            page.paragraph(f"The video is too large for this page; it lies beside it: videos/{key}.mp4", soft=True)
    page.heading("How it was measured")
    page.facts({metric.title: metric.description for metric in report.metrics})
    page.heading("Every clip")
    page.table(
        [Column(title="clip"), Column(title="row"), *(Column(title=m.title, number=True) for m in metrics)],
        [
            [clip.key, clip.row, *(_number(value) if isinstance(value := clip.values[m.name], float) else "–" for m in metrics)]
            for clip in report.clips
            if clip.error is None and clip.row in (BASELINE, MODEL)
        ],
    )
    return page.render()


def _computed(report: EvaluationReport, metric: Metric) -> bool:
    return any(not isinstance(row.scores[metric.name], NotComputed) for row in report.rows)


def _not_computed(report: EvaluationReport) -> list[tuple[Metric, str]]:
    truth = report.row(TRUTH)
    return [
        (metric, str(score))
        for metric in report.metrics
        if not _computed(report, metric) and isinstance(score := truth.scores[metric.name], NotComputed)
    ]


def _heading(metric: Metric) -> str:
    return f"{metric.title} {'↑' if metric.higher_is_better else '↓'}"


def _cell(row: ReportRow, metric: Metric) -> tuple[str, str]:
    score = row.scores[metric.name]
    if isinstance(score, NotComputed):
        return "–", score.reason
    partial = f", {score.clips} clips" if score.clips != row.clips else ""
    return _number(score.mean), f"± {_number(score.std)}{partial}"


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"

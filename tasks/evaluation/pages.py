"""The files of an evaluation: HTML page, picture, videos, Parquet, JSON and markdown."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

from tasks.data.storage import Storage
from tasks.evaluation.clip_pictures import ShownClip
from tasks.evaluation.drawing import encode_png, stack
from tasks.evaluation.metrics import Metric, NotComputed
from tasks.evaluation.page import Column, Page
from tasks.evaluation.report import MODEL, SHUFFLED, TRUTH, EvaluationReport, ReportRow
from tasks.generation.provenance import ModelIdentity

INLINE_LIMIT = 16 << 20
"""Bytes of video that the page carries; beyond that a clip's video lies beside the page only."""


def write_report(report: EvaluationReport, shown: Sequence[ShownClip]) -> None:
    """Write all files of the report into its folder, where the videos lie already; each whole, the page last."""
    report.folder.mkdir(parents=True, exist_ok=True)
    storage = Storage.at(str(report.folder))
    if shown:
        storage.write(report.grid.name, encode_png(stack([clip.whole for clip in shown])))
    storage.write(report.table.name, clips_parquet(report))
    storage.write(report.json.name, (json.dumps(report.as_dict(), indent=1, allow_nan=False) + "\n").encode())
    storage.write("report.md", markdown(report).encode())
    storage.write(report.page.name, _page(report, shown))


def markdown(report: EvaluationReport) -> str:
    """The report without pictures, for a Prefect artifact or a model's card."""
    metrics = report.computed
    lines = [f"**{report.verdict.sentence}**", ""]
    lines.append("| | " + " | ".join(metric.heading for metric in metrics) + " | clips | frames | failures |")
    lines.append("|---|" + "---:|" * (len(metrics) + 3))
    for row in report.rows:
        cells = [" ".join(_cell(row, metric)) for metric in metrics]
        lines.append(f"| {row.name} | " + " | ".join([*cells, str(row.clips), str(row.frames), str(row.failures)]) + " |")
    lines += ["", _how_to_read(report), ""]
    lines += [f"- {titles} {reason}" for titles, reason in report.not_computed.items()]
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
        "width": pa.array([clip.width for clip in clips], pa.int64()),
        "height": pa.array([clip.height for clip in clips], pa.int64()),
        "painted": pa.array([clip.painted for clip in clips], pa.int64()),
        "sound": pa.array([clip.sound or None for clip in clips], pa.string()),
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


def _page(report: EvaluationReport, shown: Sequence[ShownClip]) -> bytes:
    model: ModelIdentity = report.header.model
    page = Page(title=f"Evaluation of {model.family}: {model.uri}")
    page.heading(f"Evaluation: {model.family}", 1)
    page.paragraph(f"{model.uri}{f', version {model.version}' if model.version else ''}", soft=True)
    page.verdict(report.verdict.comparison, report.verdict.beats_baseline)
    if report.verdict.leakage is not None:
        page.verdict(report.verdict.leakage.sentence, report.verdict.leakage.follows)
    metrics = report.computed
    page.table(
        [
            Column(title=""),
            *(Column(title=_unbroken(metric.heading), number=True, hint=metric.description) for metric in metrics),
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
    page.paragraph(_how_to_read(report), soft=True)
    for titles, reason in report.not_computed.items():
        page.paragraph(f"{titles} {reason}")
    page.heading("What the numbers depend on")
    page.facts(report.facts())
    if report.failures:
        page.heading("Failures")
        page.table(
            [Column(title="clip"), Column(title="row"), Column(title="error")],
            [[clip.key, clip.row, clip.error or ""] for clip in report.failures],
        )
    if shown:
        page.heading("To look at")
    room = INLINE_LIMIT
    for clip in shown:
        page.heading(clip.key, 3)
        page.picture(clip.picture, f"{', '.join(clip.titles[:-1])} and {clip.titles[-1]}")
        if clip.plot is not None:
            page.plot(
                clip.plot,
                "How far the inner lips are apart, in inter-ocular distances of the true face; vertical lines are the moments above.",
            )
        mp4 = (report.folder / clip.video).read_bytes()
        if len(mp4) <= room:
            page.video(mp4, f"{', '.join(clip.panels[:-1])} and {clip.panels[-1]}, with the true sound")
            room -= len(mp4)
        else:
            page.paragraph(f"The video is too large for this page; it lies beside it: {clip.video}", soft=True)
    page.heading("How it was measured")
    page.facts({metric.title: metric.description for metric in report.metrics})
    page.heading("Every clip")
    page.table(
        [Column(title="clip"), Column(title="row"), *(Column(title=m.title, number=True) for m in metrics)],
        [
            [clip.key, clip.row, *(_number(value) if isinstance(value := clip.values[m.name], float) else "–" for m in metrics)]
            for clip in report.clips
            if clip.error is None and clip.frames and clip.row != TRUTH
        ],
    )
    return page.render()


def _unbroken(heading: str) -> str:
    """A heading whose arrow stays on the line of its last word."""
    return heading.replace(" →", "\u00a0→").replace("→ ", "→\u00a0").replace(" ↑", "\u00a0↑").replace(" ↓", "\u00a0↓")


def _how_to_read(report: EvaluationReport) -> str:
    text = "Mean over clips, ± standard deviation; ↑ higher is better, ↓ lower is better, → 0 distance from zero, lower is better."
    text += " The truth row measures the true video against itself and shows what a metric's best value is; the baseline needs no learning."
    if any(row.name == SHUFFLED for row in report.rows):
        text += (
            " The shuffled row is the same model with another sound, measured against the same truth and the true sound:"
            " where it is as good as the model's row, the mouth came from somewhere else than the sound."
        )
    return text


def _cell(row: ReportRow, metric: Metric) -> tuple[str, str]:
    score = row.scores[metric.name]
    if isinstance(score, NotComputed):
        return "–", score.reason
    partial = f", {score.clips} clips" if score.clips != row.clips else ""
    return _number(score.mean), f"± {_number(score.std)}{partial}"


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"

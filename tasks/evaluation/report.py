"""What an evaluation found: rows per clip, the table of means, and whether the model beats its baseline."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.family import EvaluationCase
from models.views import FPS, Image
from tasks.evaluation.metrics import Metric, NotComputed
from tasks.evaluation.metrics_landmarks import MISSING_FACE_DISTANCE, LandmarkDistance
from tasks.generation.provenance import ModelIdentity

TRUTH, BASELINE, MODEL = "truth", "baseline", "model"
ROWS = (TRUTH, BASELINE, MODEL)

GATE = LandmarkDistance.name
"""The metric that decides whether a model beats its baseline."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What every number of a report depends on."""

    model: ModelIdentity
    dataset_url: str = ""
    dataset_fingerprint: str = ""
    crop_rule: str = ""
    landmarker: str = ""
    landmark_side: int = 0
    weights: Mapping[str, str] = field(default_factory=dict)
    """sha256 by name of every pretrained file that the model used."""
    held_out_clips: int = 0
    """Clips that were held out, evaluated or not."""
    note: str = ""
    """What a reader must know before the numbers, e.g. that the model is plumbing-sized."""


@dataclass(frozen=True, kw_only=True)
class ClipRow:
    """One clip measured for one row of the table, or why it wasn't."""

    key: str
    row: str
    frames: int = 0
    seconds: float = 0.0
    """Wall time of making the frames."""
    size: int = 0
    values: Mapping[str, float | NotComputed] = field(default_factory=dict)
    error: str | None = None
    truth_without_face: int | None = None
    """Frames of the true clip in which the landmarker finds no face; None without a landmarker."""

    @classmethod
    def failed(cls, key: str, row: str, error: BaseException) -> ClipRow:
        """The row of a clip that failed with `error`."""
        return cls(key=key, row=row, error=f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric over the clips of one row."""

    mean: float
    std: float
    """Of the population of clips; 0 for one clip."""
    clips: int
    """Clips with a value; the others failed or couldn't be measured."""


@dataclass(frozen=True, kw_only=True)
class ReportRow:
    """One row of the table."""

    name: str
    clips: int
    """Clips for which this row has frames."""
    frames: int
    failures: int
    seconds: float
    scores: Mapping[str, Score | NotComputed]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The gate: model against baseline on `GATE`, over the same clips."""

    beats_baseline: bool | None
    """None where it can't be decided."""
    sentence: str


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """The result of an evaluation; its files lie in `folder`."""

    folder: Path
    header: Header
    metrics: tuple[Metric, ...]
    rows: tuple[ReportRow, ...]
    """Truth, baseline, model."""
    clips: tuple[ClipRow, ...]
    verdict: Verdict

    @property
    def beats_baseline(self) -> bool:
        """Whether the model is better than its baseline; False where that can't be decided."""
        return self.verdict.beats_baseline is True

    @property
    def failures(self) -> tuple[ClipRow, ...]:
        """The clips that failed, per row."""
        return tuple(clip for clip in self.clips if clip.error is not None)

    @property
    def page(self) -> Path:
        """The self-contained HTML page."""
        return self.folder / "report.html"

    @property
    def grid(self) -> Path:
        """The picture: reference, driver, truth, baseline, model. Absent when no clip was to be drawn."""
        return self.folder / "grid.png"

    @property
    def table(self) -> Path:
        """Parquet: one line per clip and row."""
        return self.folder / "clips.parquet"

    @property
    def json(self) -> Path:
        """The report without its pictures."""
        return self.folder / "report.json"

    def row(self, name: str) -> ReportRow:
        """The row `truth`, `baseline` or `model`."""
        return next(row for row in self.rows if row.name == name)

    def values(self, row: str = MODEL) -> dict[str, float]:
        """The means of a row by metric; metrics that weren't computed are absent."""
        return {name: score.mean for name, score in self.row(row).scores.items() if isinstance(score, Score)}

    def facts(self) -> dict[str, str]:
        """The header for people, in order."""
        truth = self.row(TRUTH)
        lengths = sorted({clip.frames for clip in self.clips if clip.row == TRUTH and clip.error is None})
        sizes = sorted({clip.size for clip in self.clips if clip.size})
        span = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}" if lengths else "0"
        faceless = sum(clip.truth_without_face or 0 for clip in self.clips if clip.row == TRUTH)
        videos = {clip.key.rpartition("_")[0] for clip in self.clips if clip.row == TRUTH and clip.error is None}
        header, model = self.header, self.header.model
        weights = ", ".join(f"{name} {digest[:16]}" for name, digest in sorted(header.weights.items()))
        return {
            "Model": " · ".join(part for part in (model.family, model.uri, model.version and f"version {model.version}") if part),
            "Training run": model.run_id or "unknown",
            **({"Note": header.note} if header.note else {}),
            "Videos": f"{len(videos)} videos, {truth.clips} clips, {truth.frames} frames"
            f" (of {header.held_out_clips or truth.clips} held-out clips)",
            "Clip length": f"{span} measured frames per clip; videos play them at {FPS} frames/s",
            "Frame size": ", ".join(f"{size} px" for size in sizes) or "none",
            "Crop": header.crop_rule or "unknown",
            "Landmarker": f"{header.landmarker or 'none'}, on frames enlarged to at least {header.landmark_side} px",
            "True frames without a face": f"{faceless} (left out of landmark metrics, for every row alike)",
            "Pretrained weights": weights or "none used",
            "Dataset": f"{header.dataset_url} · fingerprint {header.dataset_fingerprint or 'unknown'}",
            "Failures": ", ".join(f"{row.name} {row.failures}" for row in self.rows),
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything but pictures, in JSON's types."""
        return {
            "facts": self.facts(),
            "dataset_fingerprint": self.header.dataset_fingerprint,
            "weights": dict(self.header.weights),
            "metrics": [
                {"name": m.name, "title": m.title, "higher_is_better": m.higher_is_better, "how": m.description} for m in self.metrics
            ],
            "rows": [
                {
                    "name": row.name,
                    "clips": row.clips,
                    "frames": row.frames,
                    "failures": row.failures,
                    "seconds": round(row.seconds, 3),
                    "scores": {
                        name: {"not_computed": score.reason}
                        if isinstance(score, NotComputed)
                        else {"mean": score.mean, "std": score.std, "clips": score.clips}
                        for name, score in row.scores.items()
                    },
                }
                for row in self.rows
            ],
            "beats_baseline": self.verdict.beats_baseline,
            "verdict": self.verdict.sentence,
            "failures": [{"key": clip.key, "row": clip.row, "error": clip.error} for clip in self.failures],
        }


@dataclass(frozen=True, kw_only=True)
class ClipPictures:
    """What the report shows of one clip."""

    case: EvaluationCase
    made: Mapping[str, Image]
    """Frames by row: uint8 [F, H, W, 3]; a row that failed is absent."""
    moments: tuple[int, ...]
    """Frame numbers drawn in the picture."""

    @classmethod
    def of(cls, case: EvaluationCase, made: Mapping[str, Image], count: int) -> ClipPictures:
        """Pictures at `count` moments spread over the clip, its first and last frame left out where there are others."""
        frames = len(case.targets)
        moments = tuple(sorted({round((i + 0.5) * frames / count - 0.5) for i in range(count)}))
        return cls(case=case, made=made, moments=tuple(min(moment, frames - 1) for moment in moments))


def summarise(clips: Sequence[ClipRow], *, metrics: Sequence[Metric], header: Header, folder: Path) -> EvaluationReport:
    """Make the table and the verdict from measured clips; a pure function."""
    return EvaluationReport(
        folder=folder,
        header=header,
        metrics=tuple(metrics),
        rows=tuple(_report_row(name, [clip for clip in clips if clip.row == name], metrics) for name in ROWS),
        clips=tuple(clips),
        verdict=judge(clips),
    )


def judge(clips: Sequence[ClipRow]) -> Verdict:
    """Compare model and baseline on `GATE` over the clips for which the baseline has a value.

    A clip on which the model failed, while the baseline didn't, costs what a video without any face
    costs: the worst clip of the model, at least `MISSING_FACE_DISTANCE`. So failing never helps.
    """
    baseline = {clip.key: value for clip in clips if clip.row == BASELINE and isinstance(value := clip.values.get(GATE), float)}
    model = {clip.key: value for clip in clips if clip.row == MODEL and isinstance(value := clip.values.get(GATE), float)}
    if not baseline or not model.keys() & baseline.keys():
        return Verdict(
            beats_baseline=None, sentence="Whether the model beats its baseline can't be said: no clip has a landmark distance of both."
        )
    penalty = max(MISSING_FACE_DISTANCE, max(model.values()))
    missing = sorted(baseline.keys() - model.keys())
    ours = statistics.fmean(model.get(key, penalty) for key in baseline)
    theirs = statistics.fmean(baseline.values())
    better = ours < theirs
    won = sum(model.get(key, penalty) < value for key, value in baseline.items())
    note = f" {len(missing)} clips without a result of the model count as {penalty:.3g}." if missing else ""
    return Verdict(
        beats_baseline=better,
        sentence=f"The model {'beats' if better else 'does not beat'} its baseline on LMD: {ours:.4f} against {theirs:.4f}"
        f" (lower is better), better on {won} of {len(baseline)} clips.{note}",
    )


def _report_row(name: str, clips: Sequence[ClipRow], metrics: Sequence[Metric]) -> ReportRow:
    made = [clip for clip in clips if clip.error is None]
    return ReportRow(
        name=name,
        clips=len(made),
        frames=sum(clip.frames for clip in made),
        failures=len(clips) - len(made),
        seconds=sum(clip.seconds for clip in made),
        scores={metric.name: _score(metric, made) for metric in metrics},
    )


def _score(metric: Metric, clips: Sequence[ClipRow]) -> Score | NotComputed:
    answers = [clip.values[metric.name] for clip in clips]
    values = [answer for answer in answers if not isinstance(answer, NotComputed)]
    if values:
        return Score(mean=float(np.mean(values)), std=float(np.std(values)), clips=len(values))
    reasons = list(dict.fromkeys(answer.reason for answer in answers if isinstance(answer, NotComputed)))
    return NotComputed(reason="; ".join(reasons) or "every clip failed")

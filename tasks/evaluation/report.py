"""What an evaluation found: rows per clip, the table of means, whether the model beats its baseline and follows the sound."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.family import DriverKind, Family
from models.views import FPS
from tasks.evaluation.metrics import Better, Metric, NotComputed
from tasks.evaluation.metrics_landmarks import MISSING_FACE_DISTANCE, LandmarkDistance, MouthLandmarkDistance
from tasks.generation.provenance import ModelIdentity

TRUTH, BASELINE, MODEL, SHUFFLED = "truth", "baseline", "model", "shuffled"

FOLLOWS = 0.3
"""A mouth follows the sound where another sound makes its landmark distance worse by at least this share."""


def row_names(family: Family) -> tuple[str, ...]:
    """The rows of a family's report; with another sound only what is driven by sound can be measured."""
    return (TRUTH, BASELINE, MODEL, SHUFFLED) if family.driver is DriverKind.AUDIO else (TRUTH, BASELINE, MODEL)


def gate_metric(family: Family) -> Metric:
    """The metric that decides whether a model beats its baseline and the champion; lower is better.

    A sound moves the mouth only, so elsewhere the face says nothing about a family that it drives.
    """
    return MouthLandmarkDistance() if family.driver is DriverKind.AUDIO else LandmarkDistance()


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
    width: int = 0
    """Of the frames, in pixels."""
    height: int = 0
    painted: int | None = None
    """Side of the squares that pixel metrics compared; None for whole frames."""
    sound: str = ""
    """Where the sound of a shuffled row comes from."""
    values: Mapping[str, float | NotComputed] = field(default_factory=dict)
    error: str | None = None
    truth_without_face: int | None = None
    """Frames of the true clip in which the landmarker finds no face; None without a landmarker."""

    @classmethod
    def failed(cls, key: str, row: str, error: BaseException) -> ClipRow:
        """The row of a clip that failed with `error`."""
        return cls(key=key, row=row, error=f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)

    @classmethod
    def not_made(cls, key: str, row: str, metrics: Sequence[Metric], reason: NotComputed) -> ClipRow:
        """The row of a clip for which there is nothing to make, which is no failure: no frames, and the reason in every column."""
        return cls(key=key, row=row, values=dict.fromkeys((metric.name for metric in metrics), reason))


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric over the clips of one row."""

    mean: float
    """Of the distances from zero where that is the good end (`Better.ZERO`): offsets to both sides would look right together."""
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
class Leakage:
    """What another sound does to the mouth: where it changes nothing, the mouth came from somewhere else."""

    follows: bool | None
    """Whether the mouth follows the sound (`FOLLOWS`); None where it can't be said."""
    worse: float | None
    """By which share the gate's metric is worse with another sound; None without a number."""
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The gate: model against baseline on the gate's metric, over the same clips; and the leakage beside it."""

    beats_baseline: bool | None
    """None where it can't be decided."""
    comparison: str
    """Model against baseline, one sentence."""
    leakage: Leakage | None
    """None for families that no sound drives."""

    @property
    def sentence(self) -> str:
        """All that is to be said."""
        return " ".join([self.comparison, *([self.leakage.sentence] if self.leakage else [])])


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """The result of an evaluation; its files lie in `folder`."""

    folder: Path
    header: Header
    metrics: tuple[Metric, ...]
    rows: tuple[ReportRow, ...]
    """As `row_names` of the family: truth, baseline, model, and shuffled where sound drives."""
    gate: Metric
    """The metric that decides."""
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
        """The picture: reference, driver landmarks or mouth opening, and every row. Absent when no clip was to be drawn."""
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
        """The row of this name; see `row_names`."""
        return next(row for row in self.rows if row.name == name)

    def values(self, row: str = MODEL) -> dict[str, float]:
        """The means of a row by metric; metrics that weren't computed are absent."""
        return {name: score.mean for name, score in self.row(row).scores.items() if isinstance(score, Score)}

    @property
    def computed(self) -> tuple[Metric, ...]:
        """The metrics that at least one row has a number of."""
        return tuple(m for m in self.metrics if any(isinstance(row.scores[m.name], Score) for row in self.rows))

    @property
    def not_computed(self) -> dict[str, str]:
        """Why the other metrics have no number, by their titles; those with the same reason together."""
        reasons: dict[str, list[str]] = {}
        for metric in self.metrics:
            score = self.row(TRUTH).scores[metric.name]
            if metric not in self.computed and isinstance(score, NotComputed):
                reasons.setdefault(str(score), []).append(metric.title)
        return {", ".join(titles): reason for reason, titles in reasons.items()}

    def facts(self) -> dict[str, str]:
        """The header for people, in order."""
        truth = self.row(TRUTH)
        lengths = sorted({clip.frames for clip in self.clips if clip.row == TRUTH and clip.error is None})
        sizes = sorted({(clip.width, clip.height) for clip in self.clips if clip.width})
        painted = sorted({clip.painted or 0 for clip in self.clips if clip.width})
        sounds = [clip.sound for clip in self.clips if clip.row == SHUFFLED and clip.sound]
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
            "Frame size": ", ".join(f"{width} px" if width == height else f"{width}x{height} px" for width, height in sizes) or "none",
            "Pixel metrics look at": ", ".join(
                f"the painted square of every frame, cut to {side} px, alike in all rows" if side else "the whole frame" for side in painted
            )
            or "nothing",
            "Crop": header.crop_rule or "unknown",
            "Landmarker": f"{header.landmarker or 'none'}, on frames enlarged to at least {header.landmark_side} px",
            "True frames without a face": f"{faceless} (left out of landmark metrics, for every row alike)",
            **({"Another sound": ", ".join(f"{sound} ({sounds.count(sound)} clips)" for sound in dict.fromkeys(sounds))} if sounds else {}),
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
            "metrics": [{"name": m.name, "title": m.title, "better": m.better.value, "how": m.description} for m in self.metrics],
            "gate": self.gate.name,
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
            "leakage": None
            if (leakage := self.verdict.leakage) is None
            else {"follows": leakage.follows, "worse": leakage.worse, "from": FOLLOWS, "sentence": leakage.sentence},
            "failures": [{"key": clip.key, "row": clip.row, "error": clip.error} for clip in self.failures],
        }


def summarise(clips: Sequence[ClipRow], *, family: Family, metrics: Sequence[Metric], header: Header, folder: Path) -> EvaluationReport:
    """Make the table and the verdict from measured clips; a pure function."""
    gate = gate_metric(family)
    return EvaluationReport(
        folder=folder,
        header=header,
        metrics=tuple(metrics),
        rows=tuple(_report_row(name, [clip for clip in clips if clip.row == name], metrics) for name in row_names(family)),
        gate=gate,
        clips=tuple(clips),
        verdict=judge(clips, gate, leakage=measure_leakage(clips, gate) if SHUFFLED in row_names(family) else None),
    )


def judge(clips: Sequence[ClipRow], gate: Metric, *, leakage: Leakage | None = None) -> Verdict:
    """Compare model and baseline on the gate's metric over the clips for which the baseline has a value.

    A clip on which the model failed, while the baseline didn't, costs what a video without any face
    costs: the worst clip of the model, at least `MISSING_FACE_DISTANCE`. So failing never helps.
    """
    baseline, model = _values(clips, BASELINE, gate), _values(clips, MODEL, gate)
    if not baseline or not model.keys() & baseline.keys():
        return Verdict(
            beats_baseline=None,
            comparison=f"Whether the model beats its baseline can't be said: no clip has {gate.title} of both.",
            leakage=leakage,
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
        comparison=f"The model {'beats' if better else 'does not beat'} its baseline on {gate.title}: {ours:.4f} against {theirs:.4f}"
        f" (lower is better), better on {won} of {len(baseline)} clips.{note}",
        leakage=leakage,
    )


def measure_leakage(clips: Sequence[ClipRow], gate: Metric) -> Leakage:
    """Compare the model with itself, driven by another sound, over the clips for which both have a value."""
    model, shuffled = _values(clips, MODEL, gate), _values(clips, SHUFFLED, gate)
    both = sorted(model.keys() & shuffled.keys())
    if not both:
        answers = [clip.error or clip.values.get(gate.name) for clip in clips if clip.row == SHUFFLED]
        reason = next((f" ({answer})" for answer in answers if isinstance(answer, str | NotComputed)), "")
        return Leakage(
            follows=None, worse=None, sentence=f"Whether the mouth follows the sound can't be said: no clip has both sounds{reason}."
        )
    ours, other = (statistics.fmean(values[key] for key in both) for values in (model, shuffled))
    numbers = f"{other:.4f} against {ours:.4f}" + (f", over {len(both)} clips" if len(both) < len(model) else "")
    # A flawless model has nothing to be a share of: any change is infinitely worse.
    worse = other / ours - 1 if ours > 0 else None
    follows = worse >= FOLLOWS if worse is not None else other > 0
    change = "worse" if worse is None else f"{abs(worse):.0%} {'worse' if worse >= 0 else 'better'}"
    return Leakage(
        follows=follows,
        worse=worse,
        sentence=f"With another sound the mouth landmark distance is {change} ({numbers}): the mouth"
        f" {'follows' if follows else 'does not follow'} the sound (the rule: at least {FOLLOWS:.0%} worse).",
    )


def _values(clips: Sequence[ClipRow], row: str, metric: Metric) -> dict[str, float]:
    return {clip.key: value for clip in clips if clip.row == row and isinstance(value := clip.values.get(metric.name), float)}


def _report_row(name: str, clips: Sequence[ClipRow], metrics: Sequence[Metric]) -> ReportRow:
    whole = [clip for clip in clips if clip.error is None]
    return ReportRow(
        name=name,
        clips=sum(clip.frames > 0 for clip in whole),
        frames=sum(clip.frames for clip in whole),
        failures=len(clips) - len(whole),
        seconds=sum(clip.seconds for clip in whole),
        scores={metric.name: _score(metric, whole) for metric in metrics},
    )


def _score(metric: Metric, clips: Sequence[ClipRow]) -> Score | NotComputed:
    answers = [clip.values[metric.name] for clip in clips]
    values = [abs(answer) if metric.better is Better.ZERO else answer for answer in answers if not isinstance(answer, NotComputed)]
    if values:
        return Score(mean=float(np.mean(values)), std=float(np.std(values)), clips=len(values))
    reasons = list(dict.fromkeys(answer.reason for answer in answers if isinstance(answer, NotComputed)))
    return NotComputed(reason="; ".join(reasons) or "every clip failed")

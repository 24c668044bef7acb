"""Evaluation: held-out clips through a model, measured beside the truth and the baseline (spec/evaluation.md).

For every clip the family states the task (`Family.evaluation_case`); the synthesizer and its baseline
make frames; every registered metric measures both against the truth, and the truth against itself.
A clip that fails is a counted failure with its error and the run goes on; only when every clip fails
is there nothing to report and `EvaluationFailed` is raised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.family import EvaluationCase, Family, Synthesizer
from models.views import SAMPLES_PER_FRAME, Clip, Image
from tasks.data.dataset import Dataset, DatasetError
from tasks.data.spread import spread
from tasks.evaluation.metrics import Metric, MetricCase, Need, NotComputed, TrackedFaces, check_finite
from tasks.evaluation.metrics_landmarks import track_faces
from tasks.evaluation.metrics_registry import METRICS
from tasks.evaluation.pages import write_report
from tasks.evaluation.report import BASELINE, MODEL, TRUTH, ClipPictures, ClipRow, EvaluationReport, Header, summarise
from tasks.generation.provenance import ModelIdentity
from tasks.rejects import VideoRejected
from tasks.settings import EvaluateSettings

if TYPE_CHECKING:
    from tasks.data.splits import Selected
    from tasks.video.landmarks import Landmarker

Progress = Callable[[int, int], None]
"""Called with clips done and clips in all."""

CLIP_ERRORS = (ValueError, RuntimeError, OSError, ArithmeticError, LookupError, VideoRejected, DatasetError)
"""What reading or synthesizing one clip may raise and the evaluation outlives: bad data, a full device, a broken file."""


class EvaluationFailed(RuntimeError):
    """Not one clip could be evaluated; the message carries the first error."""


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """A clip that can be read when its turn comes."""

    key: str
    load: Callable[[], Clip]


def evaluate(
    *,
    family: Family,
    config: Any,
    synthesizer: Synthesizer,
    dataset: Dataset,
    selection: Sequence[Selected],
    out: Path,
    settings: EvaluateSettings | None = None,
    model: ModelIdentity | None = None,
    weights: Mapping[str, str] | None = None,
    note: str = "",
    landmarker: Landmarker | None = None,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Evaluate a model on held-out clips of a dataset and write the report into `out`.

    Args:
        family: The model's family.
        config: Its configuration, of `family.config_type`.
        synthesizer: The trained model.
        dataset: Where the clips are.
        selection: Held-out clips of the `clips` view.
        out: Folder of the report; files of an earlier report there are replaced.
        settings: How much is evaluated; None is the default.
        model: Who the model is, for the header and the videos' metadata.
        weights: sha256 by name of every pretrained file that the model used.
        note: What a reader must know before the numbers.
        landmarker: Instead of the one that `settings.landmarks` names.
        progress: Called after every clip.

    Raises:
        EvaluationFailed: the selection is empty, or every clip failed.
    """
    from tasks.data.readers import read_selected

    settings = settings or EvaluateSettings()
    if landmarker is None:
        from tasks.video.landmarks import make_landmarker

        landmarker = make_landmarker(settings.landmarks)

    features = sorted({name for stage in family.stages for name in stage.features})

    def source(selected: Selected) -> ClipSource:
        return ClipSource(
            key=selected.key,
            load=lambda: first_frames(read_selected(dataset, "clips", selected, features=features), settings.max_frames),
        )

    chosen = {selected.key: selected for selected in selection}
    header = Header(
        model=model or ModelIdentity(family=family.name),
        dataset_url=str(dataset.url),
        dataset_fingerprint=dataset.fingerprint,
        crop_rule=crop_rule(dataset.info),
        landmarker=landmarker.version,
        landmark_side=settings.landmark_side,
        weights=dict(weights or {}),
        held_out_clips=len(selection),
        note=note,
    )
    return evaluate_clips(
        [source(chosen[key]) for key in spread(chosen, settings.max_clips)],
        family=family,
        config=config,
        synthesizer=synthesizer,
        landmarker=landmarker,
        settings=settings,
        header=header,
        out=out,
        progress=progress,
    )


def evaluate_clips(
    sources: Sequence[ClipSource],
    *,
    family: Family,
    config: Any,
    synthesizer: Synthesizer,
    landmarker: Landmarker,
    header: Header,
    out: Path,
    settings: EvaluateSettings | None = None,
    metrics: Sequence[Metric] = METRICS,
    progress: Progress | None = None,
) -> EvaluationReport:
    """As `evaluate`, for clips from anywhere."""
    settings = settings or EvaluateSettings()
    if not sources:
        raise EvaluationFailed("there is no held-out clip to evaluate")
    rows: list[ClipRow] = []
    pictures: list[ClipPictures] = []
    for done, source in enumerate(sources, start=1):
        try:
            case = family.evaluation_case(config, source.load())
            _check_case(case)
        except CLIP_ERRORS as error:
            rows += [ClipRow.failed(source.key, row, error) for row in (TRUTH, BASELINE, MODEL)]
        else:
            made = _measure(case, synthesizer, landmarker, settings, metrics, rows)
            if len(pictures) < settings.grid_clips and MODEL in made:
                pictures.append(ClipPictures.of(case, made, settings.grid_frames))
        if progress is not None:
            progress(done, len(sources))
    models = [row for row in rows if row.row == MODEL]
    if all(row.error is not None for row in models):
        raise EvaluationFailed(f"all {len(models)} clips failed; the first, {models[0].key}: {models[0].error}")
    report = summarise(rows, metrics=metrics, header=header, folder=Path(out))
    write_report(report, pictures)
    return report


def first_frames(clip: Clip, count: int) -> Clip:
    """The first `count` frames of a clip, as a clip of its own; the clip itself where it is no longer."""
    if clip.num_frames <= count:
        return clip
    return replace(
        clip,
        num_frames=count,
        landmarks=clip.landmarks[:count],
        confidence=clip.confidence[:count],
        audio=None if clip.audio is None else clip.audio[: count * SAMPLES_PER_FRAME],
        features={name: values[:count] for name, values in clip.features.items()},
    )


def crop_rule(info: Mapping[str, Any]) -> str:
    """How the dataset's clips were cropped, in words."""
    clips = info.get("settings", {}).get("clips") or info.get("settings", {}).get("stored", {}).get("clips") or {}
    if "margin" not in clips:
        return "as the dataset stores its clips"
    return f"one static square per clip: union of the head boxes + {clips['margin']:.0%} margin, stored at {clips['size']} px"


def _measure(
    case: EvaluationCase,
    synthesizer: Synthesizer,
    landmarker: Landmarker,
    settings: EvaluateSettings,
    metrics: Sequence[Metric],
    rows: list[ClipRow],
) -> dict[str, Image]:
    """Append the clip's three rows; return the frames of those that were made."""
    look = any(Need.LANDMARKER in metric.needs for metric in metrics)
    makers: dict[str, Callable[[], Iterator[Image]]] = {
        TRUTH: lambda: iter(case.targets),
        BASELINE: lambda: synthesizer.baseline(case.face, case.driver),
        MODEL: lambda: synthesizer.synthesize(case.face, case.driver, seed=settings.seed),
    }
    truth_faces: TrackedFaces | None = None
    made: dict[str, Image] = {}
    for row, make in makers.items():
        started = time.perf_counter()
        try:
            frames = _collect(make(), case, row)
            seconds = time.perf_counter() - started
            faces = track_faces(frames, landmarker, side=settings.landmark_side) if look else None
            truth_faces = faces if row == TRUTH else truth_faces
            measured = MetricCase(
                key=case.key,
                generated=frames,
                truth=case.targets,
                generated_faces=faces,
                truth_faces=truth_faces,
                audio=case.driver.audio,
            )
            values: dict[str, float | NotComputed] = {m.name: check_finite(m, case.key, m.compute(measured)) for m in metrics}
        except CLIP_ERRORS as error:
            rows.append(ClipRow.failed(case.key, row, error))
            continue
        made[row] = frames
        without_face = None if truth_faces is None else int((~truth_faces.found).sum())
        rows.append(
            ClipRow(
                key=case.key,
                row=row,
                frames=len(frames),
                seconds=seconds,
                size=frames.shape[2],
                values=values,
                truth_without_face=without_face,
            )
        )
    return made


def _collect(frames: Iterator[Image], case: EvaluationCase, row: str) -> Image:
    """All frames of one row, checked against the truth's number and shape."""
    wanted = case.targets.shape
    collected = np.empty(wanted, np.uint8)
    count = 0
    for frame in frames:
        if count == len(collected):
            raise ValueError(f"the {row} made more than the {len(collected)} frames of the truth")
        if frame.dtype != np.uint8 or frame.shape != wanted[1:]:
            raise ValueError(f"the {row} made a {frame.dtype} frame of shape {frame.shape}, the truth is uint8 {wanted[1:]}")
        collected[count] = frame
        count += 1
    if count != len(collected):
        raise ValueError(f"the {row} made {count} frames, the truth has {len(collected)}")
    return collected


def _check_case(case: EvaluationCase) -> None:
    if case.targets.dtype != np.uint8 or case.targets.ndim != 4 or not len(case.targets):
        raise ValueError(f"{case.key}: targets must be uint8 [F, H, W, 3] with F > 0, got {case.targets.dtype} {case.targets.shape}")

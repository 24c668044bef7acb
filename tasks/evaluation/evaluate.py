"""Evaluation: held-out clips through a model, measured beside the truth and the baseline (spec/evaluation.md).

For every clip the family states the task (`Family.evaluation_case`); the synthesizer and its baseline
make frames; every registered metric measures both against the truth, and the truth against itself.
A family that sound drives makes the clip once more with another sound (`tasks.evaluation.other_sound`):
a mouth that is as right as before did not listen. A clip that fails is a counted failure with its
error and the run goes on; only when every clip fails is there nothing to report and
`EvaluationFailed` is raised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.family import Driver, EvaluationCase, Family, Synthesizer
from models.views import SAMPLES_PER_FRAME, Clip, Image
from tasks.data.dataset import Dataset
from tasks.data.spread import spread
from tasks.evaluation.clip_pictures import ClipPictures, ShownClip, show_clip
from tasks.evaluation.metrics import Metric, MetricCase, Need, NotComputed, TrackedFaces, check_finite
from tasks.evaluation.metrics_landmarks import track_faces
from tasks.evaluation.metrics_registry import METRICS
from tasks.evaluation.metrics_sync import OFFSETS
from tasks.evaluation.other_sound import CLIP_ERRORS, ClipSource, OtherSound, audible, other_sound
from tasks.evaluation.pages import write_report
from tasks.evaluation.report import BASELINE, MODEL, SHUFFLED, TRUTH, ClipRow, EvaluationReport, Header, row_names, summarise
from tasks.generation.provenance import ModelIdentity
from tasks.settings import EvaluateSettings

if TYPE_CHECKING:
    from tasks.data.splits import Selected
    from tasks.video.landmarks import Landmarker

Progress = Callable[[int, int], None]
"""Called with clips done and clips in all."""


class EvaluationFailed(RuntimeError):
    """Not one clip could be evaluated; the message carries the first error."""


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

    features = sorted({name for stage in family.stages for name in family.features(config, stage.name)})

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
    names = row_names(family)
    rows: list[ClipRow] = []
    shown: list[ShownClip] = []
    for index, source in enumerate(sources):
        try:
            case = family.evaluation_case(config, source.load())
            _check_case(case)
        except CLIP_ERRORS as error:
            rows += [ClipRow.failed(source.key, row, error) for row in names]
        else:
            other = other_sound(case.driver, sources, index) if SHUFFLED in names else None
            made, faces = _measure(case, other, synthesizer, landmarker, settings, metrics, rows)
            if len(shown) < settings.grid_clips and MODEL in made:
                picture = ClipPictures.of(case, made, settings.grid_frames, rows=names, faces=faces)
                shown.append(show_clip(picture, header.model, Path(out)))
        if progress is not None:
            progress(index + 1, len(sources))
    models = [row for row in rows if row.row == MODEL]
    if all(row.error is not None for row in models):
        raise EvaluationFailed(f"all {len(models)} clips failed; the first, {models[0].key}: {models[0].error}")
    report = summarise(rows, family=family, metrics=metrics, header=header, folder=Path(out))
    write_report(report, shown)
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
    other: OtherSound | NotComputed | None,
    synthesizer: Synthesizer,
    landmarker: Landmarker,
    settings: EvaluateSettings,
    metrics: Sequence[Metric],
    rows: list[ClipRow],
) -> tuple[dict[str, Image], dict[str, TrackedFaces]]:
    """Append the clip's rows; return the frames of those that were made, and the faces seen in them."""
    look = any(Need.LANDMARKER in metric.needs for metric in metrics)
    judge = any(Need.JUDGE in metric.needs for metric in metrics)

    def synthesize(driver: Driver) -> Iterator[Image]:
        return synthesizer.synthesize(case.face, driver, seed=settings.seed)

    makers: dict[str, Callable[[], Iterator[Image]]] = {
        TRUTH: lambda: iter(case.targets),
        BASELINE: lambda: synthesizer.baseline(case.face, case.driver),
        MODEL: lambda: synthesize(case.driver),
    }
    if isinstance(other, OtherSound):
        makers[SHUFFLED] = lambda: synthesize(other.driver)
    seen: dict[str, TrackedFaces] = {}
    made: dict[str, Image] = {}
    for row, make in makers.items():
        started = time.perf_counter()
        try:
            frames = _collect(make(), case, row)
            seconds = time.perf_counter() - started
            faces = track_faces(frames, landmarker, side=settings.landmark_side) if look else None
            if faces is not None:
                seen[row] = faces
            measured = MetricCase(
                key=case.key,
                generated=frames,
                truth=case.targets,
                generated_faces=faces,
                truth_faces=seen.get(TRUTH),
                audio=case.driver.audio,
                painted=case.painted,
                lip_sync=_judge(synthesizer, frames, case) if judge else NotComputed(reason="no metric asks"),
            )
            values: dict[str, float | NotComputed] = {m.name: check_finite(m, case.key, m.compute(measured)) for m in metrics}
        except CLIP_ERRORS as error:
            rows.append(ClipRow.failed(case.key, row, error))
            continue
        made[row] = frames
        rows.append(
            ClipRow(
                key=case.key,
                row=row,
                frames=len(frames),
                seconds=seconds,
                width=frames.shape[2],
                height=frames.shape[1],
                painted=None if case.painted is None else case.painted.size,
                sound=other.origin if row == SHUFFLED and isinstance(other, OtherSound) else "",
                values=values,
                truth_without_face=int((~seen[TRUTH].found).sum()) if TRUTH in seen else None,
            )
        )
    if isinstance(other, NotComputed):
        rows.append(ClipRow.not_made(case.key, SHUFFLED, metrics, other))
    return made, seen


def _judge(synthesizer: Synthesizer, frames: Image, case: EvaluationCase) -> np.ndarray | NotComputed:
    """The model's own judge on one row's frames, with the true sound and the true face's place for every row alike."""
    if case.driver.audio is None:
        return NotComputed(reason="the clip has no sound")
    if not audible(case.driver.audio):
        return NotComputed(reason="the clip's sound is silence")
    audio = np.zeros(len(frames) * SAMPLES_PER_FRAME, np.float32)
    heard = case.driver.audio[: len(audio)]
    audio[: len(heard)] = heard
    scores = synthesizer.lip_sync(frames, case.target_landmarks, audio)
    if scores is None:
        return NotComputed(reason="this model has no lip-sync judge")
    if scores.ndim != 2 or scores.shape[1] != OFFSETS:
        raise ValueError(f"the lip-sync judge answered with shape {scores.shape}, not [windows, {OFFSETS}]")
    return scores


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
    targets, painted = case.targets, case.painted
    if targets.dtype != np.uint8 or targets.ndim != 4 or targets.shape[3] != 3 or not targets.size:
        raise ValueError(f"{case.key}: targets must be uint8 [F, H, W, 3] with F > 0, got {targets.dtype} {targets.shape}")
    if painted is not None and (painted.boxes.shape != (len(targets), 3) or painted.size < 1 or (painted.boxes[:, 2] < 1).any()):
        raise ValueError(
            f"{case.key}: painted must be a square of at least 1 px for each of the {len(targets)} frames,"
            f" got boxes {painted.boxes.shape} cut to {painted.size} px"
        )

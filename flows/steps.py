"""What a command does, stage by stage: plain functions over `tasks/`, which flows wrap in Prefect tasks and commands call as they are.

Every function takes a `Bar` and brings it up to date; none knows whether Prefect is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.progress import Bar
from flows.settings import StageSettings
from flows.workspace import Workspace
from tasks.settings import EvaluateSettings, FilterSettings, PreprocessSettings, Settings, SplitSettings, fingerprint_of

if TYPE_CHECKING:
    from models.weights import WeightsStore
    from tasks.dataset import Dataset
    from tasks.evaluation_report import EvaluationReport
    from tasks.features import FeatureResult
    from tasks.generate import GeneratedVideo
    from tasks.preprocess import PreprocessPlan, PreprocessResult, Progress
    from tasks.registry import LoadedModel, ModelVersion
    from tasks.tracking import TrackingSettings
    from tasks.train_request import TrainOutcome, TrainProgress


class DataSettings(Settings):
    """Which samples of a dataset are used and which are held out."""

    filters: FilterSettings = FilterSettings()
    split: SplitSettings = SplitSettings()


def build_clips(plan: PreprocessPlan, bar: Bar) -> PreprocessResult:
    """Pass 1: make the planned shards that are not there yet."""
    from tasks.preprocess import run_preprocess

    def show(progress: Progress) -> None:
        rate = progress.frames / progress.seconds if progress.seconds else 0.0
        bar(progress.videos, progress.total_videos, f"videos, {progress.clips} clips, {progress.rejects} rejects, {rate:.0f} frames/s")

    result = run_preprocess(plan, progress=show)
    bar.finish(f"{result.clips} clips of {result.videos} videos, {result.made_videos} videos worked on now")
    return result


def build_features(dataset: str, settings: PreprocessSettings, place: Workspace, bar: Bar) -> FeatureResult | None:
    """Pass 2: wav2vec rows for every clip with sound; None where the settings leave it out."""
    if settings.wav2vec is None:
        bar.finish("left out (wav2vec=null)")
        return None
    from tasks.features import extract_features

    result = extract_features(dataset, settings.wav2vec, settings.run, bar, weights=weights_store(place))
    bar.finish(f"{result.clips} clips")
    return result


def train_stage(
    stage: StageSettings, dataset: str, data: DataSettings, place: Workspace, profile: str, bar: Bar, start_from: Path | None = None
) -> TrainOutcome:
    """Train one stage in an MLflow run; the same settings on the same dataset go on where they stopped, and a finished run is not repeated."""
    from tasks.checkpoints import write_json
    from tasks.dataset import Dataset
    from tasks.ray_train import train
    from tasks.tracking import code_version, finish_run, log_files, open_run
    from tasks.train_request import TrainOutcome, TrainRequest, WeightsSettings

    opened = Dataset.open(dataset)
    request = TrainRequest(
        family=stage.family,
        stage=stage.stage,
        config=stage.config.model_dump(mode="json"),
        train=stage.train,
        dataset=opened.url,
        filters=data.filters,
        split=data.split,
        folder=place.runs,
        start_from=start_from,
        weights=WeightsSettings(root=place.weights),
        profile=profile,
        code=code_version(),
    )
    name = f"{stage.family}-{stage.stage}-{fingerprint_of([request.identity(opened.fingerprint), str(start_from)])[:10]}"
    folder = place.runs / name
    before = TrainOutcome.read(folder)
    if before is not None and before.status == "finished" and before.step >= stage.train.steps:
        bar.finish(f"finished before, {before.step} steps")
        return before

    tracking = tracking_settings(place)
    marker = folder / "mlflow_run"
    run_id = open_run(
        tracking,
        family=stage.family,
        name=name,
        parameters={"train": stage.train.model_dump(mode="json"), "config": request.config, **data.model_dump(mode="json")},
        tags={"family": stage.family, "stage": stage.stage, "profile": profile, "code": request.code, "run_folder": str(folder)},
        dataset=(Path(opened.url).name, opened.url, opened.fingerprint),
        run_id=marker.read_text().strip() if marker.is_file() else None,
    )
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(run_id)
    write_json(folder / "request.json", request.model_dump(mode="json"))
    status = "FAILED"
    try:
        outcome = train(request.model_copy(update={"folder": folder, "run_id": run_id}), lambda message: _show(message, bar), tracking=tracking)
        status = "FINISHED" if outcome.status == "finished" else "KILLED"
    finally:
        finish_run(tracking, run_id, status)
    if outcome.export is not None:
        log_files(tracking, run_id, [outcome.export], "model_files")
    if outcome.status == "interrupted":
        raise KeyboardInterrupt
    rate = f"{outcome.samples_per_second:.1f} samples/s" if outcome.samples_per_second else ""
    bar.finish(f"{outcome.step} steps, {rate}")
    return outcome


def _show(message: TrainProgress, bar: Bar) -> None:
    loss = {name: value for name, value in message.metrics.items() if "loss" in name}
    newest = ", ".join(f"{name} {value:.3f}" for name, value in list(loss.items())[:2])
    rate = f"{message.samples_per_second:.1f} samples/s" if message.samples_per_second else message.phase
    bar(message.step, message.steps, f"{rate} {newest}".strip())


def weights_store(place: Workspace) -> WeightsStore:
    """The local folder of pretrained files; HF_HUB_OFFLINE switches downloads off."""
    import os

    from models.weights import WeightsStore

    return WeightsStore(root=place.weights, offline=os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"})


def tracking_settings(place: Workspace) -> TrackingSettings:
    """MLflow's address; its files lie in the workspace where it runs embedded."""
    from tasks.tracking import TrackingSettings

    uri = place.tracking_uri
    return TrackingSettings(uri=uri, artifacts=place.artifacts.as_uri() if uri.startswith("sqlite:") else None)

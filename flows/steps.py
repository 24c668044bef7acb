"""What a command does, stage by stage: plain functions over `tasks/`, which flows wrap in Prefect tasks and commands call as they are.

Every function takes a `Bar` and brings it up to date; none knows whether Prefect is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table

from flows.progress import Bar
from flows.settings import DataSettings, StageSettings
from flows.workspace import Workspace
from tasks.settings import EvaluateSettings, FilterSettings, PreprocessSettings, fingerprint_of

if TYPE_CHECKING:
    from flows.stages import StageSamples, StartingPoint
    from models.family import Family
    from models.weights import WeightsStore
    from tasks.data.contact_sheet import Inspection
    from tasks.data.dataset import Dataset
    from tasks.data.splits import Selected
    from tasks.evaluation.report import EvaluationReport
    from tasks.generation.generate import GeneratedVideo
    from tasks.preprocessing.features import FeatureResult
    from tasks.preprocessing.preprocess import PreprocessPlan, PreprocessResult, Progress
    from tasks.training.registry import LoadedModel, RegisteredVersion
    from tasks.training.request import TrainOutcome, TrainProgress
    from tasks.training.tracking import TrackingSettings


def build_clips(plan: PreprocessPlan, bar: Bar) -> PreprocessResult:
    """Pass 1: make the planned shards that are not there yet."""
    from tasks.preprocessing.preprocess import run_preprocess

    def show(progress: Progress) -> None:
        rate = progress.frames / progress.seconds if progress.seconds else 0.0
        bar(progress.videos, progress.total_videos, f"videos, {progress.clips} clips, {progress.rejects} rejects, {rate:.0f} frames/s")

    result = run_preprocess(plan, progress=show)
    bar.finish(f"{result.clips} clips of {result.videos} videos, {result.made_videos} videos worked on now")
    return result


def check_weights(settings: PreprocessSettings, place: Workspace) -> None:
    """Find (or fetch) what pass 2 needs before hours of pass 1 are spent.

    Raises:
        MissingWeights: it is neither here nor to be had.
    """
    from tasks.preprocessing.speech_networks import find_network

    for network in settings.speech:
        if network.init == "pretrained":
            find_network(network, weights_store(place))


def build_features(dataset: str, settings: PreprocessSettings, place: Workspace, bar: Bar) -> dict[str, FeatureResult]:
    """Pass 2, for every speech network of the settings: rows for every clip with sound; by the rows' name."""
    from tasks.preprocessing.features import extract_features

    made: dict[str, FeatureResult] = {}
    for network in settings.speech:

        def show(done: int, total: int, note: str, name: str = network.feature) -> None:
            bar(done, total, f"{name}, {note}")

        made[network.feature] = extract_features(dataset, network, settings.run, show, weights=weights_store(place))
    bar.finish(", ".join(f"{name} {result.clips} clips" for name, result in made.items()) or "left out (wav2vec=null)")
    return made


def draw_inspection(
    dataset: str, filters: FilterSettings, place: Workspace, bar: Bar, *, out: Path | None = None, clips: int = 24
) -> Inspection:
    """Draw the contact sheet and the page of a dataset."""
    from tasks.data.contact_sheet import inspect
    from tasks.data.dataset import Dataset

    opened = Dataset.open(dataset)
    folder = out or place.root / "inspections" / opened.fingerprint[:12]
    inspection = inspect(opened, folder, filters=filters, clips=clips, progress=bar)
    bar.finish(f"{inspection.page}")
    return inspection


def train_stage(
    stage: StageSettings,
    dataset: str,
    samples: StageSamples,
    place: Workspace,
    profile: str,
    bar: Bar,
    start: StartingPoint | None = None,
) -> TrainOutcome:
    """Train one stage in an MLflow run, on the samples that `flows.stages.stage_samples` chose.

    The same settings on the same dataset, from the same start, go on where they stopped; a finished run is not repeated.
    """
    from tasks.data.dataset import Dataset
    from tasks.training.checkpoints import write_json
    from tasks.training.ray_train import train
    from tasks.training.request import TrainOutcome, TrainRequest, WeightsSettings
    from tasks.training.tracking import code_version, finish_run, log_files, open_run

    opened = Dataset.open(dataset)
    request = TrainRequest(
        family=stage.family,
        stage=stage.stage,
        config=stage.config.model_dump(mode="json"),
        train=stage.train,
        dataset=opened.url,
        filters=samples.data.filters,
        split=samples.data.split,
        folder=place.runs,
        start_from=start and start.folder,
        weights=WeightsSettings(root=place.weights),
        profile=profile,
        code=code_version(),
    )
    name = f"{stage.family}-{stage.stage}-{fingerprint_of([request.identity(opened.fingerprint), str(start and start.run)])[:10]}"
    folder = place.runs / name
    before = TrainOutcome.read(folder)
    about = f", {samples.person.identity}" if samples.person else ""
    if before is not None and before.covers(stage.train):
        bar.finish(f"finished before, {before.step} steps{about}")
        return before

    tracking = tracking_settings(place)
    marker = folder / "mlflow_run"
    parameters: dict[str, Any] = {"train": stage.train.model_dump(mode="json"), "config": request.config}
    tags = {"family": stage.family, "stage": stage.stage, "profile": profile, "code": request.code, "run_folder": str(folder)}
    if samples.person is not None:
        parameters["person"] = {"identity": samples.person.identity, "reason": samples.person.reason}
        tags["person"] = samples.person.identity
    if start is not None:
        tags["start_from"] = start.run
    run_id = open_run(
        tracking,
        family=stage.family,
        name=name,
        parameters={**parameters, **samples.data.model_dump(mode="json")},
        tags=tags,
        dataset=(Path(opened.url).name, opened.url, opened.fingerprint),
        run_id=marker.read_text().strip() if marker.is_file() else None,
    )
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(run_id)
    write_json(folder / "request.json", request.model_dump(mode="json"))
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    try:
        outcome = train(
            request.model_copy(update={"folder": folder, "run_id": run_id}), lambda message: _show(message, bar), tracking=tracking
        )
        status = "FINISHED" if outcome.status == "finished" else "KILLED"
    finally:
        finish_run(tracking, run_id, status)
    if outcome.export is not None:
        log_files(tracking, run_id, [outcome.export], "model_files")
    if outcome.status == "interrupted":
        raise KeyboardInterrupt
    rate = f"{outcome.samples_per_second:.1f} samples/s" if outcome.samples_per_second else ""
    bar.finish(f"{outcome.step} steps{about}, {rate}")
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
    from tasks.training.tracking import TrackingSettings

    uri = place.tracking_uri
    return TrackingSettings(uri=uri, artifacts=place.artifacts.as_uri() if uri.startswith("sqlite:") else None)


def data_of(model: LoadedModel) -> DataSettings:
    """The samples that the model's own stage was trained on and held out: where it is evaluated."""
    return DataSettings.model_validate({name: model.record[name] for name in ("filters", "split")})


def held_out_clips(dataset: Dataset, data: DataSettings) -> tuple[Selected, ...]:
    """Clips that no training with these settings saw."""
    from tasks.data.splits import select

    return select(dataset, "clips", data.filters, data.split).held_out


def evaluate_model(
    model: LoadedModel, dataset: str, data: DataSettings, settings: EvaluateSettings, place: Workspace, bar: Bar, out: Path | None = None
) -> EvaluationReport:
    """Measure a model on held-out clips beside truth and baseline; the report goes into `out` and into the model's MLflow run."""
    from tasks.data.dataset import Dataset
    from tasks.evaluation.evaluate import evaluate
    from tasks.generation.provenance import PLUMBING, ModelIdentity
    from tasks.training.tracking import log_files, log_metrics

    opened = Dataset.open(dataset)
    # Another dataset or other settings are another report: none is written over.
    measured = fingerprint_of([opened.fingerprint, data.model_dump(mode="json"), settings.model_dump(mode="json")])[:8]
    report = evaluate(
        family=model.family,
        config=model.config,
        synthesizer=model.synthesizer,
        dataset=opened,
        selection=held_out_clips(opened, data),
        out=out or place.evaluations / f"{model.family.name}-{(model.run_id or 'unregistered')[:12]}-{measured}",
        settings=settings,
        model=ModelIdentity(family=model.family.name, uri=model.uri, version=str(model.version or ""), run_id=model.run_id or ""),
        weights=_digests(model.record["weights"]),
        note=PLUMBING if model.record["profile"] == "demo" else "",
        progress=bar,
    )
    if model.run_id:
        tracking = tracking_settings(place)
        log_files(tracking, model.run_id, [report.folder], "evaluation")
        rows = {f"evaluation.{row.name}.{metric}": value for row in report.rows for metric, value in report.values(row.name).items()}
        if report.verdict.leakage is not None and report.verdict.leakage.worse is not None:
            rows["evaluation.shuffled.worse"] = report.verdict.leakage.worse
        log_metrics(tracking, model.run_id, rows)
    bar.finish(report.verdict.sentence)
    return report


def _digests(tags: Mapping[str, str]) -> dict[str, str]:
    """sha256 by name of pretrained files, from a run's tags."""
    suffix = ".sha256"
    return {name.removeprefix("weights.").removesuffix(suffix): value for name, value in tags.items() if name.endswith(suffix)}


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A version in the registry, and what the gate said."""

    version: RegisteredVersion
    champion: bool
    reason: str
    """Why it was, or was not, promoted."""


def register_model(
    outcome: TrainOutcome,
    report: EvaluationReport,
    dataset: str,
    data: DataSettings,
    settings: EvaluateSettings,
    place: Workspace,
    bar: Bar,
) -> Registered:
    """Make an evaluated model the registry's `challenger`, and `champion` where the gate lets it through.

    The gate: the model beats its baseline, and where there is a champion of the same people already, it is at least as good as that
    one on the same held-out clips.
    """
    from tasks.training.registry import CHAMPION, promote, register, versions

    tracking = tracking_settings(place)
    if outcome.export is None or outcome.run_id is None:
        raise ValueError(f"the run in {outcome.folder} exported no model, or has no MLflow run")
    before = [version for version in versions(experiment_name_of(report), tracking=tracking) if outcome.run_id == version.run_id]
    version = before[0] if before else register(outcome.export, tracking=tracking, run_id=outcome.run_id, metrics=report.values())
    champions = [other for other in versions(version.name, tracking=tracking) if CHAMPION in other.aliases]
    passes, reason = _gate(report, champions[0] if champions else None, version, dataset, data, settings, place, bar)
    if passes:
        version = promote(version.name, version.version, tracking=tracking)
    bar.finish(f"{version.name} version {version.version}: {reason}")
    return Registered(version=version, champion=passes, reason=reason)


def experiment_name_of(report: EvaluationReport) -> str:
    """Name of the registered model that a report is about."""
    from tasks.training.tracking import experiment_name

    return experiment_name(report.header.model.family)


def _gate(
    report: EvaluationReport,
    champion: RegisteredVersion | None,
    version: RegisteredVersion,
    dataset: str,
    data: DataSettings,
    settings: EvaluateSettings,
    place: Workspace,
    bar: Bar,
) -> tuple[bool, str]:
    if not report.beats_baseline:
        return False, f"stays challenger: {report.verdict.sentence}"
    if champion is None:
        return True, "champion: it beats its baseline and is the first"
    if champion.version == version.version:
        return True, "is the champion already"
    theirs_model = load_model(champion.uri, place)
    if data_of(theirs_model).filters.identities != data.filters.identities:
        return True, f"champion: it beats its baseline, and the champion so far, version {champion.version}, shows somebody else"
    held = evaluate_model(theirs_model, dataset, data, settings, place, bar)
    metric = report.gate
    ours, theirs = report.values()[metric.name], held.values().get(metric.name, float("inf"))
    if ours <= theirs:
        return True, f"champion: {metric.title} {ours:.4f} against {theirs:.4f} of version {champion.version}"
    return False, f"stays challenger: {metric.title} {ours:.4f} against {theirs:.4f} of the champion, version {champion.version}"


def load_model(uri: str, place: Workspace) -> LoadedModel:
    """A model by registry URI, run URI or exported folder."""
    from tasks.training.registry import load

    return load(uri, tracking=tracking_settings(place), cache=place.root / "models")


def make_video(
    model: LoadedModel, face: Path, driver: Path | None, audio: Path | None, out: Path, bar: Bar, **options: Any
) -> GeneratedVideo:
    """Show the face moved by the driver or the audio, as an mp4; `options` are those of `tasks.generation.generate.generate`."""
    from tasks.generation.generate import generate

    inputs: dict[str, Any] = {"face": face, "driver": driver, "audio": audio, "out": out}
    made = generate(model, **inputs, progress=lambda what, done, total: bar(done, total, what), **options)
    bar.finish(f"{made.frames} frames in {made.elapsed:.1f} s")
    return made


@dataclass(frozen=True, kw_only=True)
class ExampleInputs:
    """What to show a model with: local paths of source videos."""

    face: Path
    driver: Path | None = None
    """For families driven by landmarks."""
    audio: Path | None = None
    """For families driven by sound."""


def example_inputs(family: Family, dataset: str, data: DataSettings) -> ExampleInputs:
    """What a model makes its example video of: a held-out person, or the person whom it learned.

    Driven by landmarks: a held-out video moves the face of another video of the same person, where there is one. Driven by sound: the
    held-out person says something else, best what no training heard, best in the own voice: the sound of another held-out
    video, of another person where all of this one's videos were trained on, of another video of the person, or its own.

    Args:
        data: of the model's own stage (`data_of`).
    """
    from models.family import DriverKind
    from tasks.data.dataset import Dataset

    opened = Dataset.open(dataset)
    rows = {row["key"]: row for row in opened.clips().select(["key", "identity", "uri", "has_audio"]).to_pylist()}
    held_out = {clip.key for clip in held_out_clips(opened, data)}
    shown = rows[min(held_out)]
    if family.driver is DriverKind.LANDMARKS:
        same = [row["uri"] for row in rows.values() if row["identity"] == shown["identity"] and row["uri"] != shown["uri"]]
        return ExampleInputs(face=Path(same[0] if same else shown["uri"]), driver=Path(shown["uri"]))

    def preference(row: Mapping[str, Any]) -> tuple[bool, bool, bool, str]:
        own = row["identity"] == shown["identity"]
        whole_video_held_out = data.split.by != "time" and row["key"] in held_out
        stranger = bool(data.filters.identities) and row["identity"] not in data.filters.identities
        return row["uri"] == shown["uri"], not (whole_video_held_out or stranger), not own, row["key"]

    heard = min((row for row in rows.values() if row["has_audio"]), key=preference, default=shown)
    return ExampleInputs(face=Path(shown["uri"]), audio=Path(heard["uri"]))


def show_report(report: EvaluationReport) -> Table:
    """The report's table for a terminal."""
    from tasks.evaluation.report import Score

    table = Table(title="evaluation", title_justify="left")
    table.add_column("")
    for metric in report.computed:
        table.add_column(metric.heading, justify="right")
    for row in report.rows:
        cells = [row.scores.get(metric.name) for metric in report.computed]
        table.add_row(row.name, *(f"{cell.mean:.4f}" if isinstance(cell, Score) else "-" for cell in cells))
    return table

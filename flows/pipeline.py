"""`pipeline`: videos in; a dataset, trained, evaluated and registered models, and a video of each out.

    discover -> preprocess -> features -> for each family: train every stage -> evaluate -> register -> generate

Prefect sees the stages, their progress, results and failures; Ray, inside them, sees shards and workers. The `@task`s stand here
and not in `tasks/`, because Ray workers import that room and Prefect must not travel to them.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Any

from prefect import Task, flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict, Field

from flows import steps
from flows.console import DEFAULT_WORKSPACE, console
from flows.profiles import parse_overrides, profile_names
from flows.progress import ProgressBoard
from flows.settings import FamilySettings, pipeline_settings, stage_settings
from flows.stages import StartingPoint, stage_samples
from flows.workspace import Workspace, prepare_environment
from models.family import Canvas
from models.registry import families, family
from tasks.data.dataset import Dataset, DatasetError
from tasks.evaluation.pages import markdown
from tasks.evaluation.report import EvaluationReport
from tasks.preprocessing.preprocess import PreprocessFailed, PreprocessPlan, PreprocessResult, plan_preprocess

# Made from what is registered, so that a new family changes no line here; mypy knows only enums that are written out.
FamilyName = StrEnum("FamilyName", {name: name for name in families()})  # type: ignore[misc]
ProfileName = StrEnum("ProfileName", {name: name for name in profile_names()})  # type: ignore[misc]


class PipelineParameters(BaseModel):
    """What to run the pipeline on; the form of the Prefect UI."""

    model_config = ConfigDict(extra="forbid")

    videos: list[str] = Field(
        min_length=1, title="Videos", description="Folders, files, CSV or Parquet manifests; paths or URLs such as s3://."
    )
    families: list[FamilyName] = Field(default_factory=lambda: list(FamilyName), title="Families", description="Model families to train.")
    profile: ProfileName = Field(
        ProfileName("default"), title="Profile", description="demo: CPU minutes; default: one GPU; paper: as published."
    )
    dataset: str | None = Field(None, title="Dataset", description="Folder or URL of the dataset; empty: inside the workspace.")
    settings: list[str] = Field([], title="Settings (advanced)", description="Any setting as name=value, e.g. preprocess.stored.seed=1.")


class FamilyResult(BaseModel):
    """What the pipeline made for one family."""

    family: str
    model_uri: str
    champion: bool
    gate: str
    report: Path
    video: Path
    run_id: str


class PipelineResult(BaseModel):
    """Where everything lies that a pipeline run made."""

    dataset: str
    clips: int
    inspection: Path
    families: list[FamilyResult]


def worth_retrying(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether the same call may succeed the second time: not where the input or the settings are at fault."""
    from models.weights import MissingWeights
    from tasks.data.splits import EmptySelection
    from tasks.evaluation.evaluate import EvaluationFailed
    from tasks.generation.generate import GenerationError
    from tasks.preprocessing.sources import SourceError
    from tasks.training.checkpoints import CheckpointError
    from tasks.training.request import TrainingError

    hopeless = (
        PreprocessFailed,
        DatasetError,
        SourceError,
        EmptySelection,
        TrainingError,
        CheckpointError,
        EvaluationFailed,
        GenerationError,
        MissingWeights,
        ValueError,
        TypeError,
    )
    outcome = state.result(raise_on_failure=False)
    return isinstance(outcome, Exception) and not isinstance(outcome, hopeless)


def _as_task(function: Any, name: str) -> Any:
    return task(function, name=name, cache_policy=NO_CACHE, retries=2, retry_delay_seconds=5, retry_condition_fn=worth_retrying)


discover = _as_task(plan_preprocess, "discover")
preprocess = _as_task(steps.build_clips, "preprocess")
features = _as_task(steps.build_features, "features")
train = _as_task(steps.train_stage, "train")
evaluate = _as_task(steps.evaluate_model, "evaluate")
register = _as_task(steps.register_model, "register")
generate = _as_task(steps.make_video, "generate")


def _run_name() -> str:
    parameters = flow_run.parameters["parameters"]
    first = Path(parameters.videos[0]).name
    return f"{'+'.join(parameters.families)} on {first}" + (f" and {len(parameters.videos) - 1} more" if len(parameters.videos) > 1 else "")


@flow(name="pipeline", flow_run_name=_run_name, description=__doc__)
def pipeline(parameters: PipelineParameters) -> PipelineResult:
    """Run everything; finished work is not repeated, so the same run can be started again at any time."""
    parameters = PipelineParameters.model_validate(parameters.model_dump())
    place = Workspace.at(Path(os.environ.get("TALKING_HEADS_WORKSPACE", DEFAULT_WORKSPACE)))
    prepare_environment(place)
    settings = pipeline_settings(parameters.profile, parse_overrides(parameters.settings))
    stages = {
        name: [
            stage_settings(name, stage.name, parameters.profile, settings.families.get(name, FamilySettings()))
            for stage in family(name).stages
            if stage.in_pipeline
        ]
        for name in map(str, parameters.families)
    }
    with ProgressBoard(console) as board:
        plan: PreprocessPlan = discover.with_options(task_run_name="discover")(
            parameters.videos, parameters.dataset or place.dataset, settings.preprocess
        )
        if plan.pending:
            steps.check_weights(settings.preprocess, place)
        clips: PreprocessResult = preprocess.with_options(task_run_name=f"preprocess {plan.pending_videos} videos")(
            plan, board.bar("preprocess")
        )
        features(clips.dataset, settings.preprocess, place, board.bar("features"))
        _show_dataset(clips)
        inspection = steps.draw_inspection(clips.dataset, settings.filters, place, board.bar("contact sheet")).page
        made: list[FamilyResult] = []
        for name, todo in stages.items():
            known, exports = family(name), dict[str, Path]()
            for stage in todo:
                samples = stage_samples(known, stage.stage, Dataset.open(clips.dataset), settings.data, settings.person)
                if samples.person is not None:
                    console.print(f"{name} {stage.stage} learns {samples.person.describe()}")
                if samples.note:
                    console.print(f"{name} {stage.stage} holds out {samples.note}")
                before = exports.get(known.stage(stage.stage).after or "")
                outcome = train.with_options(task_run_name=f"train {name} {stage.stage}")(
                    stage,
                    clips.dataset,
                    samples,
                    place,
                    parameters.profile,
                    board.bar(f"train {name} {stage.stage}"),
                    None if before is None else StartingPoint.at(before),
                )
                exports[stage.stage] = outcome.export
            model = steps.load_model(str(outcome.export), place)
            data = steps.data_of(model)
            report: EvaluationReport = evaluate.with_options(task_run_name=f"evaluate {name}")(
                model, clips.dataset, data, settings.evaluate, place, board.bar(f"evaluate {name}")
            )
            create_markdown_artifact(markdown(report), key=f"evaluation-{name}", description=report.verdict.sentence)
            registered = register.with_options(task_run_name=f"register {name}")(
                outcome, report, clips.dataset, data, settings.evaluate, place, board.bar(f"register {name}")
            )
            inputs = steps.example_inputs(known, clips.dataset, data)
            registered_model = steps.load_model(registered.version.uri, place)
            video = generate.with_options(task_run_name=f"generate with {registered.version.uri}")(
                registered_model,
                inputs.face,
                inputs.driver,
                inputs.audio,
                place.videos / f"{registered.version.name}-{registered.version.version}.mp4",
                board.bar(f"generate {name}"),
                side_by_side=True,
                # A template keeps its own size; a small crop is enlarged to be looked at.
                size=None if known.canvas is Canvas.TEMPLATE else max(256, registered_model.size),
            )
            made.append(
                FamilyResult(
                    family=name,
                    model_uri=registered.version.uri,
                    champion=registered.champion,
                    gate=registered.reason,
                    report=report.page,
                    video=video.path,
                    run_id=outcome.run_id,
                )
            )
            console.print(steps.show_report(report))
    result = PipelineResult(dataset=clips.dataset, clips=clips.clips, inspection=inspection, families=made)
    create_table_artifact([{name: str(value) for name, value in row.model_dump().items()} for row in made], key="models")
    return result


def _show_dataset(result: PreprocessResult) -> None:
    create_table_artifact([{"reason": code, "count": count} for code, count in result.rejects.items()], key="rejects")
    lines = [
        f"# Dataset `{result.dataset}`",
        f"{result.clips} clips ({result.frames} frames) and {result.pools} keyframe pools of {result.videos} videos; "
        f"{result.empty_videos} videos gave none.",
        f"This run made {result.made_clips} clips of {result.made_videos} videos in {result.seconds:.0f} s "
        f"({result.frames_per_second:.0f} frames/s).",
        f"Fingerprint `{result.fingerprint}`.",
    ]
    create_markdown_artifact("\n\n".join(lines), key="dataset")

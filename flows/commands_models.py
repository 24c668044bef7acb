"""Commands about models: families, train, evaluate, generate, pipeline, weights."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from flows.console import DEFAULT_WORKSPACE, DebugOption, ProfileOption, SetOption, WorkspaceOption, console, show_plan, start
from flows.progress import Bar, ProgressBoard

if TYPE_CHECKING:
    from flows.settings import DataSettings, FamilySettings
    from tasks.settings import PersonSettings

weights_app = typer.Typer(no_args_is_help=True, help="Pretrained files: what is declared, what is here, and fetching it.")


def families(
    profile: ProfileOption = "default",
    overrides: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    debug: DebugOption = False,
) -> None:
    """Show every family's stages, what they read, and the parameters of every network (built on the meta device)."""
    start(workspace)
    from flows.profiles import parse_overrides
    from flows.settings import describe_families

    described = describe_families(profile, parse_overrides(overrides or ()))
    if as_json:
        typer.echo(json.dumps({"profile": profile, "families": described}, indent=2))
        return
    for family in described:
        console.print(f"[bold]{family['name']}[/bold]  {family['title']}; driven by {family['driver']}\n[dim]{family['paper']}[/dim]")
        table = Table(box=None, padding=(0, 2))
        for column in ("stage", "reads", "features", "network", "parameters"):
            table.add_column(column, justify="right" if column == "parameters" else "left", no_wrap=column != "features")
        for stage in family["stages"]:
            for row, (network, parameters) in enumerate(stage["networks"].items()):
                first = (stage["name"], stage["view"], ", ".join(stage["features"]) or "-") if row == 0 else ("", "", "")
                table.add_row(*first, network, f"{parameters:,}")
        console.print(table)


def train(
    family: Annotated[str, typer.Argument(help="A family; see `flows families`.")],
    dataset: Annotated[str, typer.Option("--dataset", help="Dataset folder or URL.")],
    stage: Annotated[
        str | None, typer.Option("--stage", help="One stage; all stages of the pipeline otherwise, one after another.")
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            "--start-from",
            help="What the first stage starts from: an exported folder, models:/NAME@ALIAS, runs:/RUN/model_files/export, or none. "
            "Otherwise a stage that follows another takes that one's longest finished run on this dataset.",
        ),
    ] = None,
    profile: ProfileOption = "default",
    overrides: SetOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    debug: DebugOption = False,
) -> None:
    """Train a family; run the same command again to go on where it stopped.

    Settings: config.*, train.*, filters.*, split.*, and person.* for stages that learn one person.
    """
    place = start(workspace)
    from flows.settings import stage_settings
    from flows.stages import StartingPoint, stage_samples, starting_point
    from flows.steps import load_model, train_stage
    from models.registry import family as family_named
    from tasks.data.dataset import Dataset

    known = family_named(family)
    chosen, data, person, settings = _model_settings(family, stage, profile, overrides)
    if not chosen:
        raise ValueError(f"family {family} has no stage that a pipeline runs; name one with --stage")
    opened = Dataset.open(dataset)
    exports: dict[str, Path] = {}
    with ProgressBoard(console) as board:
        for name in chosen:
            resolved = stage_settings(family, name, profile, settings)
            samples = stage_samples(known, name, opened, data, person)
            before = known.stage(name).after or ""
            if before in exports:
                begin: StartingPoint | None = StartingPoint.at(exports[before])
            else:
                command = _train_command(family, before, dataset, profile, overrides, workspace)
                begin = starting_point(known, resolved, opened, place, start_from, first_command=command)
            start_from = None
            rows = [("profile", profile), *samples.describe(), ("starts from", begin.note if begin else "nothing")]
            show_plan(f"train {family} {name}", [*rows, *resolved.train.model_dump().items()])
            outcome = train_stage(resolved, dataset, samples, place, profile, board.bar(f"train {family} {name}"), begin)
            if outcome.export is not None:
                exports[name] = outcome.export
    show_plan(
        "done",
        [
            ("steps", outcome.step),
            ("metrics", ", ".join(f"{name} {value:.4g}" for name, value in outcome.metrics.items() if name.startswith("val"))),
            ("exported model", load_model(str(outcome.export), place).folder),
            ("MLflow run", outcome.run_id),
            ("look at it", f"mlflow ui --backend-store-uri {place.tracking_uri}"),
            (
                "next",
                f"python -m flows evaluate {outcome.export} --dataset {dataset} -p {profile} -w {workspace} --register",
            ),
        ],
    )


def evaluate(
    model_uri: Annotated[
        str, typer.Argument(metavar="MODEL", help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN/model or an exported folder.")
    ],
    dataset: Annotated[str, typer.Option("--dataset", help="Dataset folder or URL; its held-out clips are used.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the report.")] = None,
    register: Annotated[bool, typer.Option("--register", help="Register the model and let the gate decide about champion.")] = False,
    profile: ProfileOption = "default",
    overrides: SetOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    debug: DebugOption = False,
) -> None:
    """Measure a model on clips that were held out from its training, beside truth and baseline.

    Filters and split are those of the model's training; `--set evaluate.*`, `filters.*` and `split.*` change them.
    """
    place = start(workspace)
    from flows.profiles import overlay, parse_overrides
    from flows.settings import pipeline_settings
    from flows.steps import data_of, evaluate_model, load_model, register_model, show_report
    from tasks.training.request import TrainOutcome

    model = load_model(model_uri, place)
    trained_with = data_of(model).model_dump(mode="json")
    settings = pipeline_settings(profile, overlay(trained_with, parse_overrides(overrides or ())))
    data = settings.data
    with ProgressBoard(console) as board:
        report = evaluate_model(model, dataset, data, settings.evaluate, place, board.bar("evaluate"), out)
        if register:
            outcome = TrainOutcome.read(model.folder.parent)
            if outcome is None:
                raise ValueError(f"{model_uri} is no exported folder of a training run; only those can be registered")
            registered = register_model(outcome, report, dataset, data, settings.evaluate, place, board.bar("register"))
    console.print(show_report(report))
    console.print(report.verdict.sentence)
    if register:
        console.print(f"{registered.version.uri}: {registered.reason}")
    console.print(f"report: {report.page}", soft_wrap=True)


def generate(
    model_uri: Annotated[
        str, typer.Argument(metavar="MODEL", help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN/model or an exported folder.")
    ],
    face: Annotated[
        Path, typer.Option("--face", help="Photo, folder of photos, or video of the person; what a template family paints on.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The mp4 to write.")],
    driver: Annotated[Path | None, typer.Option("--driver", help="Video that moves the face (families driven by landmarks).")] = None,
    audio: Annotated[Path | None, typer.Option("--audio", help="Sound that moves the face (families driven by audio).")] = None,
    references: Annotated[int, typer.Option(min=1, help="Most pictures of the face to use.")] = 8,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Show reference and driver, or the template, beside the result.")
    ] = False,
    size: Annotated[
        int | None,
        typer.Option(
            min=32, max=2048, help="Side of the made frames, on a template the short side; otherwise the model's or the template's own."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of models that draw noise.")] = 0,
    speech_network: Annotated[
        Path | None,
        typer.Option("--speech-network", help="Folder of the wav2vec or HuBERT network, where the dataset was made with one of its own."),
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    debug: DebugOption = False,
) -> None:
    """Make a video: a face, moved by a driving video or a sound; or a template, whose mouth is painted to a sound."""
    place = start(workspace)
    from flows.steps import load_model, make_video, weights_store
    from tasks.settings import SPEECH

    model = load_model(model_uri, place)
    heard = model.family.features(model.config, model.stage)
    speech = (
        [] if speech_network is None else [SPEECH[name].model_validate({"path": str(speech_network)}) for name in heard if name in SPEECH]
    )
    with ProgressBoard(console) as board:
        made = make_video(
            model,
            face,
            driver,
            audio,
            out,
            board.bar("generate"),
            references=references,
            side_by_side=side_by_side,
            size=size,
            seed=seed,
            weights=weights_store(place),
            speech=speech,
        )
    for note in made.notes:
        console.print(f"note: {note}")
    console.print(
        f"{made.path}: {made.frames} frames, {made.seconds:.1f} s, {made.width}x{made.height}, {'with' if made.sound else 'without'} sound"
    )


def pipeline(
    videos: Annotated[list[str], typer.Argument(help="Folders, video files, CSV or Parquet manifests; paths or URLs such as s3://.")],
    families: Annotated[str | None, typer.Option("--families", help="Comma-separated; all otherwise.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Dataset folder or URL; inside the workspace otherwise.")] = None,
    profile: ProfileOption = "default",
    overrides: SetOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    debug: DebugOption = False,
) -> None:
    """Run everything as one Prefect flow: preprocess, train, evaluate, register, generate. Settings: see the profiles."""
    import os

    os.environ["TALKING_HEADS_WORKSPACE"] = str(workspace.expanduser().resolve())
    if debug:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "INFO")
    place = start(workspace)
    from flows.pipeline import PipelineParameters
    from flows.pipeline import pipeline as run
    from flows.profiles import resolve

    content: dict[str, object] = {"videos": videos, "profile": profile, "dataset": dataset, "settings": overrides or []}
    if families:
        content["families"] = [name.strip() for name in families.split(",")]
    result = run(resolve(PipelineParameters, content))
    rows: list[tuple[str, object]] = [("dataset", f"{result.dataset} ({result.clips} clips)"), ("contact sheet", result.inspection)]
    for made in result.families:
        rows += [(made.family, f"{made.model_uri}, {made.gate}"), ("  report", made.report), ("  video", made.video)]
    rows.append(("runs and models", f"mlflow ui --backend-store-uri {place.tracking_uri}"))
    rows.append(("flow runs", f"PREFECT_HOME={os.environ['PREFECT_HOME']} prefect server start"))
    show_plan("where to look", rows)


def _model_settings(
    family: str, stage: str | None, profile: str, overrides: list[str] | None
) -> tuple[list[str], DataSettings, PersonSettings, FamilySettings]:
    """Stages to train, and the settings of data, person and family, from `--set`.

    `train.NAME` is for every stage, `train.STAGE.NAME` for one.
    """
    from flows.profiles import SettingsError, overlay, parse_overrides
    from flows.settings import FamilySettings, pipeline_settings
    from models.registry import family as family_named

    known = family_named(family)
    chosen = [known.stage(stage).name] if stage else [each.name for each in known.stages if each.in_pipeline]
    given = parse_overrides(overrides or ())
    about_data = ("filters", "split", "person")
    unknown = set(given) - {"config", "train", *about_data}
    if unknown:
        raise SettingsError(f"{unknown.pop()}: settings of train start with config, train, filters, split or person")
    settings = pipeline_settings(profile, {name: given[name] for name in about_data if name in given})
    for_all = given.get("train", {})
    by_stage = {each.name: for_all[each.name] for each in known.stages if isinstance(for_all.get(each.name), dict)}
    for_all = {name: value for name, value in for_all.items() if name not in by_stage}
    train = {name: overlay(for_all, by_stage.get(name, {})) for name in chosen}
    return chosen, settings.data, settings.person, FamilySettings(config=given.get("config", {}), train=train)


def _train_command(family: str, stage: str, dataset: str, profile: str, overrides: list[str] | None, workspace: Path) -> list[str]:
    """The command that trains another stage with the same settings, but for those of the training itself."""
    words = ["python", "-m", "flows", "train", family, "--dataset", dataset, "--stage", stage, "-p", profile, "-w", str(workspace)]
    return words + [word for pair in overrides or () if not pair.startswith("train.") for word in ("--set", pair)]


def _show_download(bar: Bar, file: str, done: int, total: int) -> None:
    bar(done, total or None, file)


@weights_app.command("list")
def weights_list(
    markdown: Annotated[bool, typer.Option("--markdown", help="The README's table.")] = False,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    debug: DebugOption = False,
) -> None:
    """Show every pretrained file that any setting can ask for, and whether it is here."""
    place = start(workspace)
    from models.weights import TABLE, WeightsStore, render_table

    if markdown:
        typer.echo(render_table(), nl=False)
        return
    store = WeightsStore(place.weights)
    table = Table(box=None, padding=(0, 2))
    for column in ("name", "MB", "here", "licence", "used by", "without it"):
        table.add_column(column, justify="right" if column == "MB" else "left")
    for row in TABLE.values():
        found = store.find(row.name)
        table.add_row(row.name, str(row.megabytes), "yes" if found else "no", row.licence, row.used_by, row.without)
    console.print(table)
    console.print(f"[dim]local folder: {place.weights}[/dim]")


@weights_app.command("fetch")
def weights_fetch(
    names: Annotated[list[str], typer.Argument(help="Names of `weights list`.")],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    debug: DebugOption = False,
) -> None:
    """Download pretrained files into the workspace, checked against their declared hashes."""
    place = start(workspace)
    from models.weights import WeightsStore

    store = WeightsStore(place.weights)
    with ProgressBoard(console) as board:
        for name in names:
            bar = board.bar(name)
            path = store.resolve(name, progress=partial(_show_download, bar))
            bar.finish(str(path))

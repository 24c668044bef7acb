"""Commands that make and look at data: sample, preprocess, inspect, bench."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from flows.console import DEFAULT_WORKSPACE, DebugOption, ProfileOption, SetOption, WorkspaceOption, console, show_plan, start
from flows.progress import ProgressBoard

bench_app = typer.Typer(no_args_is_help=True, help="Measure; each ends with a line `ratio <number>`.")

VideosArgument = Annotated[list[str], typer.Argument(help="Folders, video files, CSV or Parquet manifests; paths or URLs such as s3://.")]


def sample(
    out: Annotated[Path, typer.Option("--out", help="Folder to write the videos into.")],
    identities: Annotated[int, typer.Option(min=1, max=32, help="Different people.")] = 4,
    utterances: Annotated[int, typer.Option(min=1, max=32, help="Videos per person.")] = 2,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Length of each video.")] = 8.0,
    size: Annotated[int, typer.Option(min=128, max=1024, help="Width and height in pixels.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Everything follows from it.")] = 0,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    debug: DebugOption = False,
) -> None:
    """Make talking-head videos offline: an animated public-domain portrait with a synthesised voice."""
    start(workspace)
    from tasks.sample.make import make_sample

    show_plan("sample", [("videos", identities * utterances), ("people", identities), ("seconds each", seconds), ("into", out)])
    with ProgressBoard(console) as board:
        bar = board.bar("videos")
        paths = make_sample(out, seed=seed, identities=identities, utterances=utterances, seconds=seconds, size=size, progress=bar)
        bar.finish()
    console.print(f"{len(paths)} videos in {out}")


def preprocess(
    videos: VideosArgument,
    out: Annotated[str, typer.Option("--out", help="Dataset folder or URL; safe to stop and run again.")],
    profile: ProfileOption = "default",
    overrides: SetOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    debug: DebugOption = False,
) -> None:
    """Turn videos into a sharded dataset: faces, landmarks, scores, crops, sound, and speech features."""
    place = start(workspace)
    from flows.profiles import parse_overrides, under
    from flows.settings import pipeline_settings
    from flows.steps import build_clips, build_features, check_weights
    from tasks.preprocessing.preprocess import plan_preprocess

    settings = pipeline_settings(profile, under("preprocess", parse_overrides(overrides or ()))).preprocess
    plan = plan_preprocess(videos, out, settings)
    if plan.pending:
        check_weights(settings, place)
    show_plan("preprocess", list(plan.describe().items()))
    with ProgressBoard(console) as board:
        result = build_clips(plan, board.bar("videos to clips"))
        features = build_features(result.dataset, settings, place, board.bar("speech features"))
    rejects = ", ".join(f"{code} {count}" for code, count in result.rejects.items()) or "none"
    rows: list[tuple[str, object]] = [
        ("clips", f"{result.clips} ({result.frames} frames, {result.pools} keyframe pools) of {result.videos} videos"),
        ("rejects", rejects),
        ("features", ", ".join(f"{name} {made.clips} clips" for name, made in features.items()) or "left out"),
        ("fingerprint", result.fingerprint),
    ]
    if result.made_videos:
        rows.append(("rate", f"{result.clips_per_second:.2f} clips/s, {result.frames_per_second:.0f} frames/s"))
        rows.append(("time", ", ".join(f"{step} {share:.0%}" for step, share in result.shares.items() if share >= 0.005)))
    show_plan("done", rows)
    console.print(f"look at it: python -m flows inspect {shlex.quote(out)} --profile {profile} --workspace {shlex.quote(str(workspace))}")


def inspect(
    dataset: Annotated[str, typer.Argument(help="Dataset folder or URL.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the page and the contact sheet.")] = None,
    clips: Annotated[int, typer.Option(min=1, max=500, help="Most clips on the contact sheet.")] = 24,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable summary only; writes nothing.")] = False,
    profile: ProfileOption = "default",
    overrides: SetOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    debug: DebugOption = False,
) -> None:
    """Show counts, scores and reject reasons, and draw a contact sheet with landmarks."""
    place = start(workspace)
    import json

    from flows.profiles import parse_overrides, under
    from flows.settings import pipeline_settings
    from flows.steps import draw_inspection
    from tasks.data.dataset import Dataset
    from tasks.data.inspect_dataset import render, summarise

    opened = Dataset.open(dataset)
    filters = pipeline_settings(profile, under("filters", parse_overrides(overrides or ()))).filters
    if as_json:
        typer.echo(json.dumps(summarise(opened, filters).as_dict(), indent=1))
        return
    with ProgressBoard(console) as board:
        inspection = draw_inspection(dataset, filters, place, board.bar("contact sheet"), out=out, clips=clips)
    console.print(render(inspection.summary))
    console.print(f"contact sheet: {inspection.sheet}\npage: {inspection.page}", soft_wrap=True)


@bench_app.command("preprocess")
def bench_preprocess(
    videos: VideosArgument,
    profile: ProfileOption = "default",
    overrides: SetOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    debug: DebugOption = False,
) -> None:
    """Compare the achieved rate with the sum-of-parts limit of this machine's cores, in one run."""
    start(workspace)
    from flows.bench_preprocess import measure
    from flows.profiles import parse_overrides, under
    from flows.settings import pipeline_settings

    settings = pipeline_settings(profile, under("preprocess", parse_overrides(overrides or ()))).preprocess
    with ProgressBoard(console) as board:
        result = measure(videos, settings, alone=board.bar("every step alone"), together=board.bar("all cores"))
    show_plan("bench preprocess", result.describe())
    console.print(f"ratio {result.ratio:.3f}")


@bench_app.command("generate")
def bench_generate(
    family: Annotated[str, typer.Option("--family", help="A family; see `flows families`.")],
    seconds: Annotated[
        list[float] | None, typer.Option("--seconds", min=0.1, help="Length of a video to make; 10 and 60 otherwise.")
    ] = None,
    face: Annotated[Path | None, typer.Option("--face", help="Video of a person; one of the embedded sample otherwise.")] = None,
    audio: Annotated[
        Path | None, typer.Option("--audio", help="Speech, repeated as often as it takes; a synthetic voice otherwise.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    profile: ProfileOption = "default",
    overrides: SetOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    debug: DebugOption = False,
) -> None:
    """Compare the rate of whole videos with that of the networks alone, and their memory with each other, in one run.

    The networks have random weights: nothing is trained, and nothing that is made is kept. Settings: config.*.
    """
    place = start(workspace)
    from flows.bench_generate import measure
    from flows.profiles import parse_overrides, under
    from flows.settings import family_config, pipeline_settings
    from flows.steps import weights_store
    from models.registry import family as family_named
    from tasks.settings import SPEECH

    known = family_named(family)
    config = family_config(family, profile, under("config", parse_overrides(overrides or ()))["config"])
    lengths = sorted(set(seconds or (10.0, 60.0)))
    rows: list[tuple[str, object]] = [
        ("family", f"{known.title} ({family}), profile {profile}"),
        ("networks", "random weights, no training: they work as long as trained ones"),
        ("face", face or "one video of the embedded sample, 8 s, 512x512"),
        ("driver", (audio or "synthetic speech") if known.driver == "audio" else "the face's own video, to and fro"),
        ("lengths", ", ".join(f"{length:g} s" for length in lengths)),
        ("processes", f"{1 + len(lengths)}, one after the other: the synthesis alone (the limit), then a whole video of each length"),
    ]
    show_plan("bench generate", rows)
    networks = {network.feature: network for network in pipeline_settings(profile, {}).preprocess.speech}
    heard = [name for stage in known.stages for name in known.features(config, stage.name) if name in SPEECH]
    with ProgressBoard(console) as board:
        result = measure(
            known,
            config,
            seconds=lengths,
            weights=weights_store(place),
            bar=board.bar,
            face=face,
            audio=audio,
            device=device,
            speech=[networks.get(name) or SPEECH[name].model_validate({}) for name in heard],
        )
    console.print(result.table())
    console.print(f"ratio {result.ratio:.3f}")

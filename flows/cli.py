"""The command line: `python -m flows COMMAND`. Start here; every command is one short function of the modules beside this one."""

from __future__ import annotations

import typer

from flows import commands_data, commands_models
from flows.console import run_guarded

app = typer.Typer(
    name="flows",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Talking-head models from videos: preprocess, train, evaluate, generate.",
)

app.command("sample")(commands_data.sample)
app.command("preprocess")(commands_data.preprocess)
app.command("inspect")(commands_data.inspect)
app.command("families")(commands_models.families)
app.command("train")(commands_models.train)
app.command("evaluate")(commands_models.evaluate)
app.command("generate")(commands_models.generate)
app.command("pipeline")(commands_models.pipeline)
app.add_typer(commands_models.weights_app, name="weights")
app.add_typer(commands_data.bench_app, name="bench")


def main() -> None:
    """Entry point of `python -m flows`."""
    run_guarded(lambda: app())

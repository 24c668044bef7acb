"""Commands about models: families, train, evaluate, generate, pipeline, weights."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from flows.console import DEFAULT_WORKSPACE, DebugOption, ProfileOption, SetOption, WorkspaceOption, console, start

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
    from flows.progress import ProgressBoard
    from models.weights import WeightsStore

    store = WeightsStore(place.weights)
    with ProgressBoard(console) as board:
        for name in names:
            bar = board.bar(name)
            path = store.resolve(name, progress=lambda file, done, total, bar=bar: bar(done, total or None, file))
            bar.finish(str(path))

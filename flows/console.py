"""What every command shares: options, the console, and errors in one readable line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.workspace import Workspace, prepare_environment

WorkspaceOption = Annotated[
    Path, typer.Option("--workspace", "-w", envvar="TALKING_HEADS_WORKSPACE", help="Folder of all state.", show_default=True)
]
ProfileOption = Annotated[str, typer.Option("--profile", "-p", help="demo (CPU minutes), default (one GPU) or paper (as published).")]
SetOption = Annotated[list[str] | None, typer.Option("--set", "-s", help="Any setting, as name=value; may be given several times.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

DEFAULT_WORKSPACE = Path("workspace")

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM."""

PLAIN_WIDTH = None if sys.stdout.isatty() else 140
"""Logs and pipes have no width of their own."""

console = Console(highlight=False, width=PLAIN_WIDTH)
errors = Console(stderr=True, highlight=False)


def start(workspace: Path) -> Workspace:
    """Begin a command: the workspace, and the environment that its libraries read."""
    place = Workspace.at(workspace)
    if place.root.exists() and not place.root.is_dir():
        raise ValueError(f"--workspace {workspace} is a file; name a folder")
    prepare_environment(place)
    return place


def show_plan(title: str, rows: Sequence[tuple[str, object]]) -> None:
    """Print what is about to be done, before it is done."""
    table = Table(title=title, show_header=False, title_justify="left", box=None, padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(f"[dim]{escape(name)}[/dim]", escape(str(value)))
    console.print(table)


def run_guarded(command: Callable[[], Any]) -> None:
    """Run the command line; a failure is one line on stderr and exit code 1 (130 when interrupted).

    `--debug`, or TALKING_HEADS_DEBUG=1, shows the traceback instead.
    """
    debug = "--debug" in sys.argv or os.environ.get("TALKING_HEADS_DEBUG") == "1"
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        command()
    except (KeyboardInterrupt, SystemExit) as stop:
        # Typer turns an interrupt into exit code 130 by itself; Ray, while it starts, SIGTERM into 15.
        if isinstance(stop, SystemExit) and stop.code not in (INTERRUPTED, signal.SIGTERM):
            raise
        errors.print("interrupted; run the same command again to go on where it stopped")
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        if debug:
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        known = type(error).__module__.partition(".")[0] in {"flows", "tasks", "models", "builtins", "prefect"}
        prefix = "error" if known else f"error ({type(error).__name__})"
        errors.print(f"[bold red]{prefix}:[/bold red] {escape(' '.join(line.strip() for line in lines))}", soft_wrap=True)
        if not known:
            errors.print("[dim]--debug shows where it happened[/dim]")
        raise SystemExit(1) from None
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(number: int, frame: object) -> None:
    raise KeyboardInterrupt

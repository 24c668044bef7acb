"""One progress display: a bar in the terminal, and a progress artifact where a Prefect task is running."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self, cast
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

ARTIFACT_SECONDS = 2.0
"""A progress artifact costs a request; it is brought up to date no more often than this."""


class Bar:
    """Progress of one stage; call it with what is done."""

    def __init__(self, progress: Progress, task: TaskID, name: str) -> None:
        self._progress = progress
        self._task = task
        self._name = name
        self._artifact = _ProgressArtifact(name)

    def __call__(self, done: float, total: float | None = None, note: str = "") -> None:
        """Show `done` of `total` (None: not known yet) and a short note such as a rate."""
        self._progress.update(self._task, completed=done, total=total, note=note)
        if total:
            self._artifact.update(100.0 * done / total)

    def finish(self, note: str = "") -> None:
        """Fill the bar and keep it on the screen with a closing note."""
        task = self._progress.tasks[self._progress.task_ids.index(self._task)]
        self._progress.update(self._task, completed=task.total or 1, total=task.total or 1, note=note)
        self._artifact.update(100.0, force=True)


class ProgressBoard:
    """The bars of one command.

    >>> with ProgressBoard(Console(quiet=True)) as board:
    ...     bar = board.bar("frames")
    ...     bar(3, 10, "30 frames/s")
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}", table_column=Column(min_width=20, no_wrap=True)),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", table_column=Column(ratio=1, overflow="ellipsis", no_wrap=True)),
            console=console,
            expand=True,
            refresh_per_second=4,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def bar(self, name: str) -> Bar:
        """A new bar below the others."""
        return Bar(self._progress, self._progress.add_task(name, total=None, note=""), name)


class _ProgressArtifact:
    """Mirrors a bar into Prefect, when a task run is there to own it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._id: UUID | None = None
        self._last = 0.0

    def update(self, percent: float, *, force: bool = False) -> None:
        if not _in_task_run():
            return
        now = time.monotonic()
        if not force and self._id is not None and now - self._last < ARTIFACT_SECONDS:
            return
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        self._last = now
        if self._id is None:
            key = "".join(c if c.isalnum() else "-" for c in self._name.lower()).strip("-")
            self._id = cast(UUID, create_progress_artifact(percent, key=key, description=self._name))
        else:
            update_progress_artifact(self._id, percent)


def _in_task_run() -> bool:
    import sys

    if "prefect" not in sys.modules:
        return False
    from prefect.context import TaskRunContext

    return TaskRunContext.get() is not None

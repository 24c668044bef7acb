"""A training run's own record: an append-only file in the run folder that everything else is made from.

The loop writes lines (metrics, artifacts, tags) and never talks to a server. `tasks.training.tracking` sends the lines to
MLflow at its own pace, `tasks.training.curves` draws them, and a resumed run goes on where the record ends: a metric that is
already there for a step is not written again, so a repeated step leaves no second point on a curve.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

FILE = "run.jsonl"

Kind = Literal["metrics", "artifact", "tags"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the spool."""

    kind: Kind
    time: int
    """Milliseconds since 1970."""
    content: Mapping[str, Any]
    """metrics: `step` and `values`; artifact: `file` (relative to the run folder) and `folder`; tags: name -> value."""
    end: int
    """Byte offset behind the line: what has been read once this line is done."""


class Spool:
    """Appends lines; one writer at a time.

    Args:
        folder: the run folder; it and the file are made where they are missing. A torn last line, left by a kill,
            is cut off: nobody has read it, because readers stop at the last line end.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        self._last = _repair(self.path)
        self._file = self.path.open("ab", buffering=0)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record values of one step; those that the record already has for this step, or a later one, are left out.

        A value that is not finite is left out too: curves and databases have no place for it.
        """
        fresh = {name: float(value) for name, value in values.items() if self._last.get(name, -1) < step and math.isfinite(value)}
        if fresh:
            self._write("metrics", {"step": step, "values": fresh})
            self._last.update(dict.fromkeys(fresh, step))

    def artifact(self, file: Path, folder: str) -> None:
        """Record that `file`, inside the run folder, belongs under `folder` of the run's artifacts."""
        self._write("artifact", {"file": file.relative_to(self.path.parent).as_posix(), "folder": folder})

    def tags(self, tags: Mapping[str, str]) -> None:
        """Record tags of the run."""
        self._write("tags", dict(tags))

    def _write(self, kind: Kind, content: Mapping[str, Any]) -> None:
        record = json.dumps({"kind": kind, "time": int(time.time() * 1000), "content": content}, separators=(",", ":"))
        self._file.write(record.encode() + b"\n")

    def close(self) -> None:
        """Make the record durable and close it."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_lines(folder: Path, start: int = 0) -> Iterator[Line]:
    """The whole lines from byte `start` on; ends at the last line end, so a line being written is left for later."""
    path = folder / FILE
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(start)
        end = start
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            end += len(raw)
            record = json.loads(raw)
            yield Line(kind=record["kind"], time=record["time"], content=record["content"], end=end)


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every metric's (step, value) points in the order of their steps."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in read_lines(folder):
        if line.kind == "metrics":
            for name, value in line.content["values"].items():
                curves.setdefault(name, []).append((line.content["step"], value))
    return curves


def _repair(path: Path) -> dict[str, int]:
    """Cut off a torn last line; return the last step of every metric."""
    last: dict[str, int] = {}
    end = 0
    for line in read_lines(path.parent):
        end = line.end
        if line.kind == "metrics":
            last.update(dict.fromkeys(line.content["values"], line.content["step"]))
    if path.is_file() and path.stat().st_size > end:
        os.truncate(path, end)
    return last

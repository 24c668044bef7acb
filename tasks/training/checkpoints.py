"""Checkpoints of a training run: whole or not there, and only ever resumed by the configuration that wrote them.

RUN/checkpoints/step-00000500/state.pt          torch.save of tensors and plain values (read with weights_only=True)
                              checkpoint.json   step, validation loss, configuration, code version, sizes
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.data.storage import Storage

if TYPE_CHECKING:
    import torch

STATE = "state.pt"
RECORD = "checkpoint.json"
NAME = re.compile(r"step-(\d{8,})")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read, or used by this configuration."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One finished checkpoint on disk."""

    folder: Path
    step: int
    """Steps that are done; the resumed run begins with step `step`."""
    loss: float | None
    """Validation loss of these very networks; None where they were not validated, as when a run is interrupted."""
    identity: Mapping[str, Any]
    """The configuration that it belongs to, flat: dotted name -> value."""
    code: str

    def load(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """The saved state, tensors on `device`.

        Raises:
            CheckpointError: the file is damaged.
        """
        import pickle

        import torch

        path = self.folder / STATE
        try:
            return torch.load(path, map_location=device, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            raise CheckpointError(f"checkpoint {path} is damaged ({error}); delete {self.folder} to go on from the one before") from error


def checkpoints(run: Path) -> list[Checkpoint]:
    """The finished checkpoints of a run folder, oldest first."""
    found = []
    for folder in (run / "checkpoints").glob("step-*"):
        record = folder / RECORD
        if NAME.fullmatch(folder.name) and record.is_file():
            content = json.loads(record.read_text())
            if (folder / STATE).stat().st_size == content["bytes"]:
                found.append(
                    Checkpoint(
                        folder=folder, step=content["step"], loss=content["loss"], identity=content["identity"], code=content["code"]
                    )
                )
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def latest(run: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
    """The newest checkpoint of a run folder, or None where there is none.

    Args:
        identity: nested settings that decide what is trained.

    Raises:
        CheckpointError: it was written by another configuration; names every field that differs.
    """
    found = checkpoints(run)
    if not found:
        return None
    newest = found[-1]
    mine = json.loads(json.dumps(flatten(identity)))
    differing = [name for name in sorted({*mine, *newest.identity}) if mine.get(name, "absent") != newest.identity.get(name, "absent")]
    if differing:
        listed = ", ".join(f"{name} ({newest.identity.get(name, 'absent')} there, {mine.get(name, 'absent')} here)" for name in differing)
        raise CheckpointError(
            f"{run} holds a checkpoint of another configuration (step {newest.step}): {listed}. Use these settings, or another run folder"
        )
    return newest


def best(run: Path) -> Checkpoint | None:
    """The kept checkpoint with the lowest validation loss, the later one of equals; None where none was validated."""
    scored = [(checkpoint.loss, -checkpoint.step, checkpoint) for checkpoint in checkpoints(run) if checkpoint.loss is not None]
    return min(scored, key=lambda entry: entry[:2])[2] if scored else None


def save(
    run: Path, *, step: int, state: Mapping[str, Any], identity: Mapping[str, Any], loss: float | None, code: str, keep: int = 2
) -> Path:
    """Write a checkpoint beside its final name, make it durable, rename it; then drop the old ones.

    Kept are the newest `keep` and the one with the lowest validation loss.

    Raises:
        CheckpointError: the disk is too full; names the sizes. Nothing half-written is left.
    """
    root = run / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(".*"):
        # What a killed run was writing or deleting; only one writer works in a run folder.
        shutil.rmtree(left)
    target = root / f"step-{step:08d}"
    temporary = root / f".{target.name}.tmp"
    need = _bytes_of(state) + (1 << 20)
    free = shutil.disk_usage(root).free
    if free < need:
        raise CheckpointError(f"no room for the checkpoint of step {step}: it needs {_gib(need)}, {root} has {_gib(free)} free")
    temporary.mkdir()
    try:
        _write(temporary, step=step, state=state, identity=identity, loss=loss, code=code)
        if target.exists():
            _remove(target)
        temporary.rename(target)
        _sync(root)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"the checkpoint of step {step} could not be written to {root}: {error}") from error
    _drop_old(run, keep)
    return target


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one: {"a": {"b": 1}} becomes {"a.b": 1}; empty ones stay as they are."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            flat.update(flatten(item, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = item
    return flat


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole."""
    Storage.at(path.parent).write(path.name, json.dumps(value, indent=1, sort_keys=True).encode())


def _write(folder: Path, *, step: int, state: Mapping[str, Any], identity: Mapping[str, Any], loss: float | None, code: str) -> None:
    import torch

    with (folder / STATE).open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    write_json(folder / RECORD, {"step": step, "loss": loss, "identity": flatten(identity), "code": code, "bytes": size})
    _sync(folder)


def _drop_old(run: Path, keep: int) -> None:
    kept = best(run)
    for checkpoint in checkpoints(run)[:-keep]:
        if kept is None or checkpoint.step != kept.step:
            _remove(checkpoint.folder)


def _remove(folder: Path) -> None:
    """Rename first: a deletion that is killed half-way must not look like a checkpoint."""
    doomed = folder.with_name(f".{folder.name}.old")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _bytes_of(value: Any) -> int:
    import torch

    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(_bytes_of(item) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(_bytes_of(item) for item in value)
    return 0


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"

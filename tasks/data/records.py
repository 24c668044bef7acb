"""The record of a finished shard: written last, and the only sign that the shard is done."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tasks.data.storage import Storage
from tasks.settings import fingerprint_of

RECORDS = "records"


def shard_name(shard: int) -> str:
    """`7` -> `000007`, the stem of every file of the shard."""
    return f"{shard:06d}"


def record_name(shard: int, folder: str = RECORDS) -> str:
    """Name of the record of a shard; `folder` is `features/<name>` for pass 2."""
    return f"{folder}/{shard_name(shard)}.json"


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One file of a shard."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What a finished shard holds, what it was made from, and what that cost."""

    shard: int
    fingerprint: str
    """`fingerprint_of(inputs)`: a shard is up to date when this equals what the plan asks for."""
    inputs: Mapping[str, str]
    """What the bytes depend on: settings, code, weights, sources (pass 1) or clips (pass 2), each a version or a hash."""
    files: Mapping[str, FileRecord]
    """By name relative to the dataset."""
    counts: Mapping[str, int]
    """Pass 1: videos, clips, pools, frames, rejects, empty_videos (videos without any clip)."""
    rejects: Mapping[str, int] = field(default_factory=dict)
    """Number of rejects by code."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Work by step, and `total`: wall time of the shard. Differs from run to run; everything else does not."""

    def to_json(self) -> bytes:
        """The file's content."""
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> ShardRecord:
        """Inverse of `to_json`.

        Raises:
            ValueError: where the content is no record.
        """
        try:
            values = json.loads(content)
            values["files"] = {name: FileRecord(**entry) for name, entry in values["files"].items()}
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a shard record: {error}") from error

    @property
    def content(self) -> str:
        """Hash of what the shard holds: of the names and hashes of its files."""
        return fingerprint_of({name: entry.sha256 for name, entry in self.files.items()})


def write_record(storage: Storage, record: ShardRecord, folder: str = RECORDS) -> None:
    """Commit a shard whose files are all in place."""
    storage.write(record_name(record.shard, folder), record.to_json())


def read_records(storage: Storage, folder: str = RECORDS) -> dict[int, ShardRecord]:
    """All finished shards by id, in order."""
    names = [name for name in storage.sizes(folder) if name.endswith(".json") and Path(name).stem.isdigit()]
    contents = storage.read_many(names)
    records = (ShardRecord.from_json(contents[name]) for name in names)
    return {record.shard: record for record in sorted(records, key=lambda record: record.shard)}


def content_fingerprint(records: Mapping[int, ShardRecord]) -> str:
    """Fingerprint of a dataset: of what its finished shards hold, in the order of their ids."""
    return fingerprint_of([[shard, records[shard].content] for shard in sorted(records)])


_LIBRARIES = ("av", "decord", "librosa", "mediapipe", "opencv-python", "pyarrow", "webdataset")
_NOT_CODE = frozenset({"tasks.settings", "tasks.data.storage", "tasks.preprocessing.journal", "tasks.data.records"})
"""Settings have their own fingerprint; the others move bytes or keep notes and make none."""


@functools.cache
def code_version(*roots: str) -> str:
    """Version of the code that makes stored bytes: of `roots` and every module of this project that they import.

    It hashes syntax trees without docstrings, so comments and layout change nothing, and the versions of the
    libraries that decode, encode and write. No version number has to be remembered by hand.

    Example:
        >>> code_version("tasks.video.process_video", "tasks.data.shards")
        '3f0c…'
    """
    trees: dict[str, str] = {}
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        path = _module_path(module)
        if module in trees or module in _NOT_CODE or path is None:
            continue
        tree = ast.parse(path.read_bytes())
        waiting += _imports(tree)
        trees[module] = hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest()
    versions = {library: _library_version(library) for library in _LIBRARIES}
    return fingerprint_of({"modules": trees, "libraries": versions})[:16]


def _module_path(module: str) -> Path | None:
    root = Path(__file__).resolve().parents[2]
    if module.split(".", 1)[0] not in {"tasks", "models"}:
        return None
    path = root.joinpath(*module.split(".")).with_suffix(".py")
    return path if path.is_file() else None


def _imports(tree: ast.Module) -> list[str]:
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # A bare string is a docstring wherever it stands: this project documents fields that way.
            node.body = [part for part in node.body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))] or [
                ast.Pass()
            ]
    return tree


def _library_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"

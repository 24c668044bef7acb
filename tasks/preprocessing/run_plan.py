"""What a preprocessing run would do: sources found, plan continued, finished shards recognised. Writes nothing."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tasks.data.dataset import CARD_FILE, DATASET_FILE, FOLDERS, Dataset, DatasetError
from tasks.data.records import ShardRecord, code_version, read_records
from tasks.data.shards import read_parquet, rejects_name
from tasks.data.storage import Storage, filesystem, is_url
from tasks.preprocessing.build_shard import ProcessVideo
from tasks.preprocessing.executor import cores
from tasks.preprocessing.plan import PLAN_FILE, SOURCES_FILE, Plan, PlannedShard, make_plan, moved
from tasks.preprocessing.sources import SourceError, discover
from tasks.rejects import RejectCode
from tasks.settings import PreprocessSettings, StoredSettings, fingerprint_of


@dataclass(frozen=True, kw_only=True)
class PreprocessPlan:
    """What a run would do, resolved; nothing has been written yet."""

    dataset: str
    plan: Plan
    settings: PreprocessSettings
    inputs: Mapping[str, str]
    """Of every shard: settings, code, weights."""
    pending: tuple[int, ...]
    """Shards to make, by id."""
    outdated: Mapping[str, int]
    """Of those, how many are made again, by what changed."""
    skipped: tuple[str, ...]
    """Places that could not be looked into."""
    workers: int
    basis: str | None
    """Hash of the plan that this one continues."""
    process: ProcessVideo | None = None

    @property
    def pending_videos(self) -> int:
        """Videos to work on."""
        return sum(shard.videos for shard in self._pending())

    @property
    def pending_bytes(self) -> int:
        """Bytes of their files, as far as known."""
        return sum(shard.bytes for shard in self._pending())

    def _pending(self) -> list[PlannedShard]:
        wanted = set(self.pending)
        return [shard for shard in self.plan.shards if shard.shard in wanted]

    def describe(self) -> dict[str, str]:
        """The resolved plan for people, label by label."""
        lines = {
            "dataset": self.dataset,
            "videos": f"{self.plan.videos} ({self.plan.videos - self.pending_videos} done, {self.pending_videos} to do)",
            "shards": f"{len(self.plan.shards)} ({len(self.plan.shards) - len(self.pending)} done, {len(self.pending)} to do)",
            "bytes": f"{self.pending_bytes / 1e6:.1f} MB of sources to read",
            "workers": f"{self.workers} ({self.settings.run.executor})",
            "landmarks": self.inputs["weights"],
            "code": self.inputs["code"],
        }
        if self.outdated:
            lines["made again"] = ", ".join(f"{count} shards ({reason} changed)" for reason, count in self.outdated.items())
        if self.skipped:
            lines["skipped"] = "; ".join(self.skipped)
        return lines


def plan_preprocess(
    videos: Sequence[str | Path], out: str | Path, settings: PreprocessSettings, *, process: ProcessVideo | None = None
) -> PreprocessPlan:
    """What `preprocess` would do. Reads sources and dataset, writes nothing; raises what `preprocess` raises before its work."""
    storage = Storage.at(out)
    _check_dataset(storage, settings.stored)
    discovery = discover([str(video) for video in videos])
    basis, previous = read_sources(storage)
    if previous is not None:
        _check_moved(discovery.table, previous)
    plan = make_plan(discovery.table, previous, videos_per_shard=settings.videos_per_shard)
    inputs = _inputs(settings.stored, process)
    pending, outdated = _pending(storage, plan, inputs)
    return PreprocessPlan(
        dataset=storage.url,
        plan=plan,
        settings=settings,
        inputs=inputs,
        pending=pending,
        outdated=outdated,
        skipped=discovery.skipped,
        workers=min(settings.run.workers or cores(), max(1, len(pending))),
        basis=basis,
        process=process,
    )


def _inputs(stored: StoredSettings, process: ProcessVideo | None) -> dict[str, str]:
    from tasks.video.landmarks import make_landmarker

    code = code_version("tasks.video.process_video", "tasks.preprocessing.build_shard")
    if process is not None:
        code += f"+{process.__module__}.{process.__qualname__}"
    return {"settings": stored.fingerprint(), "code": code, "weights": make_landmarker(stored.landmarks).version}


def _pending(storage: Storage, plan: Plan, inputs: Mapping[str, str]) -> tuple[tuple[int, ...], dict[str, int]]:
    """Shards without a record that fits, and why those that have one do not fit."""
    records = read_records(storage)
    sizes = {name: size for folder in ("clips", "keyframes", "index", "rejects") for name, size in storage.sizes(folder).items()}
    pending: list[int] = []
    outdated: Counter[str] = Counter()
    for shard in plan.shards:
        record = records.get(shard.shard)
        wanted = {**inputs, "sources": shard.inputs}
        if record is not None and record.fingerprint == fingerprint_of(wanted):
            if any(sizes.get(name) != entry.bytes for name, entry in record.files.items()):
                outdated["files"] += 1
            elif _readable_now(storage, record):
                outdated["readable sources"] += 1
            else:
                continue
        elif record is not None:
            outdated.update(name for name in wanted if record.inputs.get(name) != wanted[name])
        pending.append(shard.shard)
    return tuple(pending), dict(outdated)


def _readable_now(storage: Storage, record: ShardRecord) -> bool:
    """Whether a source that was missing or unreadable when the shard was made can be read by now."""
    codes = (RejectCode.MISSING, RejectCode.UNREADABLE)
    if not any(record.rejects.get(code) for code in codes):
        return False
    rows = read_parquet(storage.read(rejects_name(record.shard))).select(["uri", "code"]).to_pylist()
    wanted = (Path(row["uri"]) for row in rows if row["code"] in codes and not is_url(row["uri"]))
    return any(path.is_file() and os.access(path, os.R_OK) for path in wanted)


def read_sources(storage: Storage) -> tuple[str | None, pa.Table | None]:
    """Hash and content of the sources that are planned already."""
    try:
        content = storage.read(SOURCES_FILE)
    except FileNotFoundError:
        return None, None
    return hashlib.sha256(content).hexdigest(), read_parquet(content)


def _check_dataset(storage: Storage, stored: StoredSettings) -> None:
    if storage.exists(DATASET_FILE):
        before = Dataset.open(storage.url).info["settings"]
        differing = list(_differences(before, stored.model_dump(mode="json")))
        if differing:
            raise DatasetError(
                f"{storage.url} was made with other settings: {'; '.join(differing)}. Use the same settings, or another --out"
            )
        return
    if storage.local is not None and storage.local.is_file():
        raise DatasetError(f"{storage.url} is a file; a dataset is a folder")
    if storage.local is not None and storage.local.is_dir():
        others = [path.name for path in storage.local.iterdir() if not path.name.startswith(".")]
        strange = sorted(set(others) - {*FOLDERS, SOURCES_FILE, PLAN_FILE, CARD_FILE})
        if strange:
            raise DatasetError(f"{storage.url} is no dataset and not empty (it holds {strange[0]}); choose a new folder for --out")


def _differences(before: Mapping[str, object], now: Mapping[str, object], prefix: str = "stored.") -> Iterator[str]:
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name} is {old!r} there and {new!r} now"


def _check_moved(discovered: pa.Table, previous: pa.Table) -> None:
    """A known source in a new place is the same one under another mount, unless the old file is still there and differs."""
    changed = moved(discovered, previous)
    differ = changed.filter(pc.not_equal(changed["size"], changed["old_size"])).slice(0, 100)
    for row in differ.to_pylist():
        if _exists(row["old_uri"]):
            raise SourceError(
                f"{row['uri']} would get the key {row['key']}, which belongs to {row['old_uri']}, another file that is still there. "
                "Give their common parent folder in a new dataset, or a manifest with a column `video` that tells them apart"
            )


def _exists(uri: str) -> bool:
    if not is_url(uri):
        return Path(uri).exists()
    fs, path = filesystem(uri)
    return bool(fs.exists(path))

"""A dataset directory: what it holds and how to open it.

```
dataset.json                 schema version, settings, code and weights versions, fingerprint, totals
plan.json, sources.parquet   which source belongs to which shard (tasks.preprocessing.plan)
records/000000.json          written last; a shard without it does not exist for any reader
clips/000000.tar             keyframes/000000.tar             features/<name>/000000.tar + 000000.json
index/clips-000000.parquet   index/pools-000000.parquet       rejects/000000.parquet
README.md                    the data card
```
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.data.records import ShardRecord, content_fingerprint, read_records
from tasks.data.shards import clips_schema, index_name, pools_schema, read_parquet, rejects_name, rejects_schema, tar_name
from tasks.data.storage import Storage

View = Literal["clips", "keyframes"]

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1
DATASET_FILE = "dataset.json"
CARD_FILE = "README.md"
FOLDERS = ("clips", "keyframes", "index", "rejects", "records")
"""Folders that pass 1 writes."""


class DatasetError(Exception):
    """A dataset cannot be read or used as asked; the message is for the user and names the way out."""


@dataclass(frozen=True)
class Dataset:
    """A dataset directory, local or on object storage. Only finished shards count: those whose record is there.

    Tables and records are read once per object and kept; open again to see shards that were finished later.
    The object is picklable: a worker gets the URL and reads for itself.

    Example:
        >>> dataset = Dataset.open("workspace/dataset")
        >>> table = dataset.clips()                                  # one row per clip: scores, shard, members
        >>> members = dataset.read_sample("clips", table["key"][0].as_py(), only={"mp4", "landmarks.npy"})
    """

    storage: Storage

    @classmethod
    def open(cls, url: str | Path) -> Dataset:
        """Open an existing dataset.

        Raises:
            DatasetError: where there is none, or it was written by a newer version of this project.
        """
        dataset = cls(Storage.at(url))
        version = dataset.info.get("schema_version")
        if version != SCHEMA_VERSION:
            raise DatasetError(f"{dataset.url} has schema version {version}; this code reads version {SCHEMA_VERSION}")
        return dataset

    def __reduce__(self) -> tuple[type[Dataset], tuple[Storage]]:
        return (Dataset, (self.storage,))

    @property
    def url(self) -> str:
        """Absolute local path or fsspec URL."""
        return self.storage.url

    @functools.cached_property
    def info(self) -> Mapping[str, Any]:
        """The content of dataset.json."""
        try:
            content = self.storage.read(DATASET_FILE)
        except FileNotFoundError:
            raise DatasetError(f"there is no dataset at {self.url}: make one with `flows preprocess VIDEOS --out {self.url}`") from None
        try:
            info: Mapping[str, Any] = json.loads(content)
        except json.JSONDecodeError as error:
            raise DatasetError(f"{self.storage.url_of(DATASET_FILE)} is not valid JSON: {error}") from error
        return info

    @functools.cached_property
    def _records(self) -> Mapping[int, ShardRecord]:
        return read_records(self.storage)

    @property
    def fingerprint(self) -> str:
        """Hash of what the finished shards hold, in the order of their ids."""
        return content_fingerprint(self._records)

    def records(self) -> tuple[ShardRecord, ...]:
        """The records of finished shards, by id."""
        return tuple(self._records.values())

    def shards(self) -> tuple[int, ...]:
        """Ids of finished shards, sorted."""
        return tuple(self._records)

    def tar_url(self, view: str, shard: int) -> str:
        """Path or URL of a shard's tar; `view` is `clips`, `keyframes` or `features/<name>`."""
        return self.storage.url_of(tar_name(view, shard))

    def clips(self) -> pa.Table:
        """The index of clips (`shards.clips_schema`), sorted by key."""
        return self._clips

    def pools(self) -> pa.Table:
        """The index of keyframes pools (`shards.pools_schema`), sorted by key."""
        return self._pools

    def rejects(self) -> pa.Table:
        """All rejects of pass 1 (`shards.rejects_schema`), sorted by key."""
        return self._rejects

    @functools.cached_property
    def _clips(self) -> pa.Table:
        return self._table([index_name("clips", shard) for shard in self._records], clips_schema())

    @functools.cached_property
    def _pools(self) -> pa.Table:
        return self._table([index_name("keyframes", shard) for shard in self._records], pools_schema())

    @functools.cached_property
    def _rejects(self) -> pa.Table:
        return self._table([rejects_name(shard) for shard in self._records], rejects_schema())

    def _table(self, names: list[str], schema: pa.Schema) -> pa.Table:
        import pyarrow as pa

        contents = self.storage.read_many(names)
        parts = [read_parquet(contents[name]) for name in names]
        return pa.concat_tables([schema.empty_table(), *parts]).sort_by("key").combine_chunks()

    @functools.cached_property
    def _places(self) -> Mapping[str, Mapping[str, int]]:
        tables = {"clips": self._clips, "keyframes": self._pools}
        return {view: {key: row for row, key in enumerate(table["key"].to_pylist())} for view, table in tables.items()}

    def row(self, view: View, key: str) -> dict[str, Any]:
        """One row of a view's index as a dictionary.

        Raises:
            DatasetError: where no finished shard holds the key.
        """
        place = self._places[view].get(key)
        if place is None:
            raise DatasetError(f"{self.url} has no sample {key!r} in the view {view}")
        table = self._clips if view == "clips" else self._pools
        return {name: table[name][place].as_py() for name in table.column_names}

    def read_sample(self, view: View, key: str, *, only: Collection[str] | None = None) -> dict[str, bytes]:
        """The bytes of one sample's members by name (`mp4`, `landmarks.npy`, …), by byte ranges of its tar.

        Args:
            only: Read just these members; those that the sample lacks are left out.

        Raises:
            DatasetError: where no finished shard holds the key.
        """
        row = self.row(view, key)
        members = [member for member in row["members"] if only is None or member["name"] in only]
        parts = self.storage.read_ranges(tar_name(view, row["shard"]), [(member["offset"], member["size"]) for member in members])
        return {member["name"]: part for member, part in zip(members, parts, strict=True)}

    def damaged(self) -> Iterator[str]:
        """Names of files that are missing or whose bytes differ from their record; reads everything."""
        import hashlib

        for record in self.records():
            for name, entry in record.files.items():
                if not self.storage.exists(name) or hashlib.sha256(self.storage.read(name)).hexdigest() != entry.sha256:
                    yield name

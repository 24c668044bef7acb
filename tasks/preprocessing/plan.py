"""Which source belongs to which shard: arrays in, plan out, no I/O.

The plan only grows: a video that was planned keeps its shard, new videos get new shards at the end, a source that
disappeared stays (its shard, if it is made again, records it as missing). So a shard id never depends on what is left to do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.data.shards import table_bytes
from tasks.samples import SourceVideo, Utterance

SOURCES_FILE = "sources.parquet"
PLAN_FILE = "plan.json"

SOURCES_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("identity", pa.string()),
        ("video", pa.string()),
        ("name", pa.string()),
        ("uri", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("size", pa.int64()),
        ("licence", pa.string()),
        ("consent", pa.string()),
    ]
)
"""One row per utterance, the fields of `SourceVideo` and `Utterance`."""

PLANNED_SCHEMA = SOURCES_SCHEMA.append(pa.field("shard", pa.int32()))

_HASHED = ("key", "name", "start", "end", "size", "licence", "consent")
"""What a shard's input fingerprint covers. Not `uri`: the same sources under another mount are the same inputs."""

SPREAD = 32
"""A plan of few videos is cut into about so many shards, so that cores have something to share; a constant, because
shards must not depend on the machine."""


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """One shard of the plan."""

    shard: int
    videos: int
    utterances: int
    bytes: int
    """Of its sources, as far as discovery knows them."""
    inputs: str
    """Hash of its rows."""


@dataclass(frozen=True)
class Plan:
    """All sources with their shards."""

    sources: pa.Table
    """`PLANNED_SCHEMA`, sorted by shard, key and name."""
    shards: tuple[PlannedShard, ...]

    def to_json(self) -> bytes:
        """plan.json: the shards, for people and for checks; `sources.parquet` is what a plan is read back from."""
        content = {"version": 1, "utterances": self.sources.num_rows, "shards": [asdict(shard) for shard in self.shards]}
        return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()

    def sources_bytes(self) -> bytes:
        """sources.parquet."""
        return table_bytes(self.sources)

    @property
    def videos(self) -> int:
        """Number of videos."""
        return sum(shard.videos for shard in self.shards)

    def videos_of(self, shard: int) -> tuple[SourceVideo, ...]:
        """The videos of one shard, sorted by key."""
        return tuple(_videos(self._rows_of(shard)))

    def _rows_of(self, shard: int) -> pa.Table:
        column = self.sources["shard"].to_numpy()
        first, last = np.searchsorted(column, [shard, shard + 1])
        return self.sources.slice(int(first), int(last - first))


def videos_per_new_shard(new_videos: int, most: int) -> int:
    """Videos in each new shard: `most` in a large plan, fewer in a small one.

    Example:
        >>> [videos_per_new_shard(n, 64) for n in (1, 40, 1000, 1_000_000)]
        [1, 2, 32, 64]
    """
    return max(1, min(most, -(-new_videos // SPREAD)))


def make_plan(discovered: pa.Table, previous: pa.Table | None = None, *, videos_per_shard: int) -> Plan:
    """Lay discovered sources into shards, after those that are planned already.

    Args:
        discovered: `SOURCES_SCHEMA`, in any order; (key, name) unique.
        previous: `sources` of the last plan. A row with the same (key, name) is replaced: its size or place may have changed.
        videos_per_shard: Most videos in a new shard.

    Raises:
        ValueError: two rows with one (key, name).
    """
    rows = _with_previous(discovered.cast(SOURCES_SCHEMA), previous)
    videos = pc.unique(rows["key"])
    shards = _shard_of_videos(videos, previous, videos_per_shard)
    column = pa.array(shards, pa.int32()).take(pc.index_in(rows["key"].combine_chunks(), value_set=videos))
    planned = rows.append_column(PLANNED_SCHEMA.field("shard"), column)
    planned = planned.take(pc.sort_indices(planned, [("shard", "ascending"), ("key", "ascending"), ("name", "ascending")]))
    planned = planned.combine_chunks()
    return Plan(planned, tuple(_summaries(planned)))


def moved(discovered: pa.Table, previous: pa.Table) -> pa.Table:
    """Rows known before under another place: columns `key`, `old_uri`, `uri`, `old_size`, `size`."""
    place = pc.index_in(_row_ids(discovered), value_set=_row_ids(previous))
    known = discovered.select(["key", "uri", "size"]).append_column("place", place).filter(pc.is_valid(place))
    old = previous.select(["uri", "size"]).take(known["place"]).rename_columns(["old_uri", "old_size"])
    both = known.append_column("old_uri", old["old_uri"]).append_column("old_size", old["old_size"])
    return both.filter(pc.not_equal(both["uri"], both["old_uri"])).drop_columns(["place"])


def _row_ids(rows: pa.Table) -> pa.Array:
    joined = pc.binary_join_element_wise(rows["key"], rows["name"], "/")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def _with_previous(discovered: pa.Table, previous: pa.Table | None) -> pa.Table:
    ids = _row_ids(discovered)
    if pc.count_distinct(ids).as_py() != len(ids):
        counts = pc.value_counts(ids)
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")[0].as_py()
        raise ValueError(f"two sources have the key {twice}")
    if previous is None:
        return discovered
    gone = pc.invert(pc.is_in(_row_ids(previous), value_set=ids))
    return pa.concat_tables([previous.select(SOURCES_SCHEMA.names).cast(SOURCES_SCHEMA).filter(gone), discovered])


def _shard_of_videos(videos: pa.Array, previous: pa.Table | None, videos_per_shard: int) -> np.ndarray:
    """int32 [len(videos)]: the shard of every video."""
    shards = np.full(len(videos), -1, np.int64)
    first = 0
    if previous is not None and previous.num_rows:
        place = pc.index_in(videos, value_set=previous["key"].combine_chunks())
        known = pc.is_valid(place).to_numpy(zero_copy_only=False)
        shards[known] = previous["shard"].take(place.drop_null()).to_numpy()
        first = pc.max(previous["shard"]).as_py() + 1
    new = np.flatnonzero(shards < 0)
    # Ordered by a hash: identities mix over shards, and the order of discovery does not matter.
    digests = [hashlib.sha256(key.encode()).digest() for key in videos.take(pa.array(new)).to_pylist()]
    order = np.argsort(np.array(digests, dtype="S32"), kind="stable")
    shards[new[order]] = first + np.arange(len(new)) // videos_per_new_shard(len(new), videos_per_shard)
    return shards.astype(np.int32)


def _summaries(planned: pa.Table) -> Iterator[PlannedShard]:
    column = planned["shard"].to_numpy()
    edges = np.flatnonzero(np.diff(column, prepend=-1))
    for first, last in zip(edges, [*edges[1:], len(column)], strict=True):
        rows = planned.slice(int(first), int(last - first))
        content = json.dumps([rows[name].to_pylist() for name in _HASHED], separators=(",", ":"))
        yield PlannedShard(
            shard=int(column[first]),
            videos=pc.count_distinct(rows["key"]).as_py(),
            utterances=rows.num_rows,
            bytes=pc.sum(rows["size"]).as_py() or 0,
            inputs=hashlib.sha256(content.encode()).hexdigest(),
        )


def _videos(rows: pa.Table) -> Iterator[SourceVideo]:
    for key, group in groupby(rows.to_pylist(), key=itemgetter("key")):
        parts: list[dict[str, Any]] = list(group)
        first = parts[0]
        yield SourceVideo(
            key=key,
            identity=first["identity"],
            video=first["video"],
            utterances=tuple(
                Utterance(**{name: part[name] for name in ("uri", "name", "start", "end", "size")})  # the same names
                for part in parts
            ),
            licence=first["licence"],
            consent=first["consent"],
        )

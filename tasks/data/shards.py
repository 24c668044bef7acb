"""How samples lie in tar shards, and the rows of the index that describe them.

One sample is a run of members `<key>.<member>` in a WebDataset tar. The index row of a sample carries
`shard` and `members`: a list of {name, offset, size}, so a reader can fetch any member by a byte range.

| view | member | content |
|---|---|---|
| clips | `mp4` | H.264, short GOP, square crop, 25 fps, no sound |
| clips | `wav` | PCM16 mono 16 kHz; absent where the source has no sound |
| clips | `landmarks.npy`, `confidence.npy` | float32 [F, 68, 2] pixels of the crop; float32 [F] |
| clips | `json` | identity, video, source, start, crop box, scores, container facts, licence, consent |
| keyframes | `0000.jpg`, `0001.jpg`, … | square face crops |
| keyframes | `landmarks.npy`, `json` | float32 [N, 68, 2] pixels of the JPEG; where each frame comes from |
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt

from tasks.data.records import shard_name
from tasks.data.storage import AtomicFile
from tasks.rejects import Reject
from tasks.samples import ClipSample, PoolSample, QualityScores

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK = 512
_KEY = re.compile(r"[A-Za-z0-9_-]+")
MAX_NAME = 100
"""Longest member name that USTAR holds, in bytes."""


class Member(TypedDict):
    """Where one member's bytes lie in its tar."""

    name: str
    """Without the key: `mp4`, `landmarks.npy`, …"""
    offset: int
    size: int


def tar_name(view: str, shard: int) -> str:
    """Name of a shard's tar: `view` is `clips`, `keyframes` or `features/<name>`."""
    return f"{view}/{shard_name(shard)}.tar"


def index_name(view: str, shard: int) -> str:
    """Name of a shard's index: `view` is `clips` or `keyframes`."""
    kind = {"clips": "clips", "keyframes": "pools"}[view]
    return f"index/{kind}-{shard_name(shard)}.parquet"


def rejects_name(shard: int) -> str:
    """Name of a shard's table of rejects."""
    return f"rejects/{shard_name(shard)}.parquet"


class TarShard:
    """Writes samples into a tar whose bytes depend on the samples alone.

    Members of a sample are sorted, times are 0, owner and mode are fixed, the format is USTAR, nothing is
    compressed. The caller opens, publishes and discards the file; `close` only ends the archive.

    Example:
        >>> with storage.create("features/wav2vec/000000.tar") as file, TarShard(file) as tar:
        ...     members = tar.add("anna_v-1a2b3c4d_0-0", {"npy": npy_bytes(states)})
    """

    def __init__(self, file: AtomicFile) -> None:
        from webdataset import TarWriter

        self._tar = TarWriter(file, mtime=0, encoder=False, compress=False)
        self._keys: set[str] = set()

    def __enter__(self) -> TarShard:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add(self, key: str, members: Mapping[str, bytes]) -> list[Member]:
        """Append one sample; returns where each member lies, sorted by name.

        Raises:
            ValueError: for a key with other characters than [A-Za-z0-9_-], a second sample of the same key, or too long a name.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"key {key!r} may hold only [A-Za-z0-9_-]")
        if key in self._keys:
            raise ValueError(f"two samples with the key {key!r} in one shard")
        longest = max(members, key=len)
        if len(key) + 1 + len(longest) > MAX_NAME:
            raise ValueError(f"the name {key}.{longest} is longer than {MAX_NAME} bytes")
        self._keys.add(key)
        position = self._tar.tarstream.offset
        placed: list[Member] = []
        for name in sorted(members):
            placed.append(Member(name=name, offset=position + _BLOCK, size=len(members[name])))
            position += _BLOCK + -(-len(members[name]) // _BLOCK) * _BLOCK
        self._tar.write({"__key__": key, **members})
        if self._tar.tarstream.offset != position:
            raise ValueError(f"the tar holds {self._tar.tarstream.offset} bytes after {key} where {position} were expected")
        return placed

    def close(self) -> None:
        """End the archive."""
        self._tar.close()


def npy_bytes(array: npt.NDArray[Any]) -> bytes:
    """A .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def read_npy(content: bytes) -> npt.NDArray[Any]:
    """Inverse of `npy_bytes`; never unpickles."""
    array: npt.NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    return array


def json_bytes(value: Mapping[str, object]) -> bytes:
    """Canonical JSON: sorted keys."""
    return json.dumps(value, sort_keys=True).encode()


def clip_members(clip: ClipSample, *, video: str, full_history: bool) -> dict[str, bytes]:
    """The members of one clip; `video` is the persistent key `<identity>_<video>`."""
    meta = {
        **clip.meta,
        "key": clip.key,
        "identity": clip.identity,
        "video": video,
        "uri": clip.uri,
        "start": clip.start,
        "num_frames": clip.num_frames,
        "size": clip.size,
        "crop_box": list(clip.crop_box),
        "full_history": full_history,
        "scores": asdict(clip.scores),
    }
    members = {
        "mp4": clip.mp4,
        "landmarks.npy": npy_bytes(clip.landmarks.astype(np.float32, copy=False)),
        "confidence.npy": npy_bytes(clip.confidence.astype(np.float32, copy=False)),
        "json": json_bytes(meta),
    }
    if clip.wav is not None:
        members["wav"] = clip.wav
    return members


def pool_members(pool: PoolSample, *, video: str) -> dict[str, bytes]:
    """The members of one keyframes pool; `video` is the persistent key `<identity>_<video>`."""
    meta = {
        "key": pool.key,
        "identity": pool.identity,
        "video": video,
        "size": pool.size,
        "clips": list(pool.clips),
        "frames": [int(frame) for frame in pool.frames],
    }
    members = {f"{number:04d}.jpg": jpeg for number, jpeg in enumerate(pool.jpegs)}
    members["landmarks.npy"] = npy_bytes(pool.landmarks.astype(np.float32, copy=False))
    members["json"] = json_bytes(meta)
    return members


def _members_type() -> pa.DataType:
    import pyarrow as pa

    return pa.list_(pa.struct([("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64())]))


def clips_schema() -> pa.Schema:
    """Columns of the index of clips; every field of `QualityScores` is one."""
    import pyarrow as pa

    types = {"static": pa.bool_()}
    scores = [(entry.name, types.get(entry.name, pa.float64())) for entry in fields(QualityScores)]
    return pa.schema(
        [
            ("key", pa.string()),
            ("identity", pa.string()),
            ("video", pa.string()),
            ("shard", pa.int32()),
            ("uri", pa.string()),
            ("start", pa.float64()),
            ("num_frames", pa.int32()),
            ("size", pa.int32()),
            ("has_audio", pa.bool_()),
            ("full_history", pa.bool_()),
            ("licence", pa.string()),
            ("consent", pa.string()),
            ("crop_box", pa.list_(pa.float64(), 3)),
            *scores,
            ("members", _members_type()),
        ]
    )


def pools_schema() -> pa.Schema:
    """Columns of the index of keyframes pools."""
    import pyarrow as pa

    return pa.schema(
        [
            ("key", pa.string()),
            ("identity", pa.string()),
            ("video", pa.string()),
            ("shard", pa.int32()),
            ("num_frames", pa.int32()),
            ("size", pa.int32()),
            ("licence", pa.string()),
            ("consent", pa.string()),
            ("clips", pa.list_(pa.string())),
            ("frames", pa.list_(pa.int64())),
            ("members", _members_type()),
        ]
    )


def rejects_schema() -> pa.Schema:
    """Columns of the table of rejects: the fields of `Reject` and the shard."""
    import pyarrow as pa

    return pa.schema(
        [
            ("key", pa.string()),
            ("uri", pa.string()),
            ("scope", pa.string()),
            ("step", pa.string()),
            ("code", pa.string()),
            ("message", pa.string()),
            ("start", pa.float64()),
            ("end", pa.float64()),
            ("shard", pa.int32()),
        ]
    )


def clip_row(
    clip: ClipSample, *, video: str, shard: int, licence: str | None, consent: str | None, full_history: bool, members: list[Member]
) -> dict[str, object]:
    """One row of the index of clips."""
    return {
        "key": clip.key,
        "identity": clip.identity,
        "video": video,
        "shard": shard,
        "uri": clip.uri,
        "start": clip.start,
        "num_frames": clip.num_frames,
        "size": clip.size,
        "has_audio": clip.wav is not None,
        "full_history": full_history,
        "licence": licence,
        "consent": consent,
        "crop_box": [float(value) for value in clip.crop_box],
        **asdict(clip.scores),
        "members": members,
    }


def pool_row(
    pool: PoolSample, *, video: str, shard: int, licence: str | None, consent: str | None, members: list[Member]
) -> dict[str, object]:
    """One row of the index of pools."""
    return {
        "key": pool.key,
        "identity": pool.identity,
        "video": video,
        "shard": shard,
        "num_frames": len(pool.jpegs),
        "size": pool.size,
        "licence": licence,
        "consent": consent,
        "clips": list(pool.clips),
        "frames": [int(frame) for frame in pool.frames],
        "members": members,
    }


def reject_row(reject: Reject, *, shard: int) -> dict[str, object]:
    """One row of the table of rejects."""
    return {**asdict(reject), "scope": str(reject.scope), "code": str(reject.code), "shard": shard}


def parquet_bytes(rows: Sequence[Mapping[str, object]], schema: pa.Schema) -> bytes:
    """A Parquet file of these rows; the same rows give the same bytes."""
    import pyarrow as pa

    return table_bytes(pa.Table.from_pylist(list(rows), schema=schema))


def table_bytes(table: pa.Table) -> bytes:
    """A Parquet file of this table; the same table gives the same bytes."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_parquet(content: bytes) -> pa.Table:
    """Inverse of `table_bytes`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.read_table(pa.BufferReader(content))

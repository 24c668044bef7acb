"""Where learned features lie: one row per clip, beside the feature shards of `features/<name>/`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.data.records import ShardRecord, read_records, shard_name
from tasks.data.shards import read_parquet
from tasks.data.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa


class MissingFeatures(ValueError):
    """A feature that was asked for is not in the dataset; the message names the command that makes it."""


def feature_folder(name: str) -> str:
    """Folder of a feature in a dataset."""
    return f"features/{name}"


def feature_index_name(name: str, shard: int) -> str:
    """Name of a shard's index of a feature."""
    return f"{feature_folder(name)}/{shard_name(shard)}.parquet"


def feature_rejects_name(name: str, shard: int) -> str:
    """Name of a shard's table of clips without the feature."""
    return f"{feature_folder(name)}/{shard_name(shard)}.rejects.parquet"


def feature_info_name(name: str) -> str:
    """Name of the file that says which network made a feature."""
    return f"{feature_folder(name)}/feature.json"


def read_feature_info(storage: Storage, name: str) -> Mapping[str, Any] | None:
    """Version, settings, `pretrained`, fingerprint and totals of a feature; None where the dataset does not have it."""
    try:
        info: Mapping[str, Any] = json.loads(storage.read(feature_info_name(name)))
    except FileNotFoundError:
        return None
    return info


def feature_schema() -> pa.Schema:
    """Columns of the index: a float16 array of `shape`, C order, lies at byte `offset` of the shard's tar."""
    import pyarrow as pa

    return pa.schema(
        [
            ("key", pa.string()),
            ("shard", pa.int32()),
            ("offset", pa.int64()),
            ("frames", pa.int32()),
            ("layers", pa.int32()),
            ("width", pa.int32()),
        ]
    )


def feature_records(storage: Storage, name: str) -> dict[int, ShardRecord]:
    """The finished shards of a feature by id."""
    return read_records(storage, feature_folder(name))


def read_feature_index(storage: Storage, name: str, shards: Iterable[int] | None = None) -> pa.Table:
    """The rows of finished shards of a feature.

    Args:
        storage: the dataset.
        name: the feature.
        shards: only these, where they are finished; None is all of them.

    Raises:
        MissingFeatures: none is finished.
    """
    import pyarrow as pa

    files = storage.sizes(feature_folder(name))
    finished = {int(Path(file).stem) for file in files if file.endswith(".json") and Path(file).stem.isdigit()}
    if not finished:
        raise MissingFeatures(f"the dataset {storage.url} has no {name} features: {how_to_make(storage.url, name)}")
    wanted = sorted(finished if shards is None else finished & set(shards))
    contents = storage.read_many(feature_index_name(name, shard) for shard in wanted)
    return pa.concat_tables([feature_schema().empty_table(), *(read_parquet(content) for content in contents.values())])


def read_feature_rejects(storage: Storage, name: str) -> pa.Table:
    """The clips that have no row of the feature, and why (columns of `tasks.data.shards.rejects_schema`)."""
    import pyarrow as pa

    from tasks.data.shards import rejects_schema

    contents = storage.read_many(feature_rejects_name(name, shard) for shard in feature_records(storage, name))
    return pa.concat_tables([rejects_schema().empty_table(), *(read_parquet(content) for content in contents.values())])


def how_to_make(url: str, name: str) -> str:
    """The command that makes a feature, for messages."""
    return (
        f"run `python -m flows preprocess VIDEOS --out {url}` with {name} on (--set {name}.init=random needs no download); "
        f"finished clips are not made again"
    )

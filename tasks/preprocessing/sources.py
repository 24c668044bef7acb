"""What is there to work on: folders, VoxCeleb2 trees, single files and manifests become rows of `plan.SOURCES_SCHEMA`.

How a path relative to the given folder is read:

| path | identity | video | utterance |
|---|---|---|---|
| `file.mp4` (HDTF, a folder of videos) | file | file | the whole file |
| `person/file.mp4` | person | file | the whole file |
| `…/person/video/file.mp4` (VoxCeleb2: `[dev/]mp4/person/video/file.mp4`) | person | video | file |

A manifest (CSV or Parquet) names them itself: `path`, and optionally `identity`, `video`, `start`, `end`, `licence`, `consent`.
Input is only read.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tasks.data.storage import filesystem, is_url
from tasks.preprocessing.keys import SINGLE_UTTERANCE, identity_part, utterance_part, video_key, video_part
from tasks.preprocessing.plan import SOURCES_SCHEMA

_ENDINGS = (
    *("3g2", "3gp", "asf", "avi", "divx", "f4v", "flv", "m2ts", "m2v", "m4v", "mkv", "mov", "mp4", "mpe", "mpeg", "mpg"),
    *("mts", "mxf", "ogv", "rm", "rmvb", "ts", "vob", "webm", "wmv", "y4m"),
)
VIDEO_EXTENSIONS = frozenset(f".{ending}" for ending in _ENDINGS)
MANIFEST_EXTENSIONS = frozenset({".csv", ".parquet"})
_VOX_PARTS = frozenset({"dev", "test", "train", "mp4"})


class SourceError(Exception):
    """The given sources cannot be used at all; the message is for the user and names the way out."""


@dataclass(frozen=True)
class Discovery:
    """What was found."""

    table: pa.Table
    """`plan.SOURCES_SCHEMA`."""
    skipped: tuple[str, ...]
    """Places that could not be looked into, one sentence each."""


@dataclass(frozen=True)
class _Found:
    """Files of one given location; columns of equal length."""

    uris: list[str]
    relative: list[str]
    """With `/`, below the given location."""
    sizes: list[int | None]


def discover(locations: Sequence[str]) -> Discovery:
    """Find the videos of folders, files and manifests, local or on object storage.

    Raises:
        SourceError: a location does not exist, a manifest is not readable, two different files get the same key, or nothing was found.
    """
    skipped: list[str] = []
    tables = []
    for location in locations:
        suffix = posixpath.splitext(location)[1].lower()
        if suffix in MANIFEST_EXTENSIONS:
            from tasks.preprocessing.manifests import read_manifest

            tables.append(read_manifest(location))
        else:
            tables.append(_table_of_files(_find(location, skipped)))
    table = pa.concat_tables(tables) if tables else SOURCES_SCHEMA.empty_table()
    table = _without_duplicates(table.combine_chunks(), skipped)
    if not table.num_rows:
        given = ", ".join(str(location) for location in locations) or "nothing"
        reasons = "".join(f"; {reason}" for reason in skipped)
        raise SourceError(
            f"no videos found in {given}{reasons}. Give a folder with video files (.mp4, .mov, .mkv, …), a file, or a CSV/Parquet manifest"
        )
    return Discovery(table, tuple(skipped))


def name_file(relative: str) -> tuple[str, str, str, str]:
    """Identity, video label, what tells the video from others, and utterance name of a file, from its relative path.

    Example:
        >>> name_file("dev/mp4/id00012/21Uxsk56VDQ/00001.mp4")
        ('id00012', '21Uxsk56VDQ', 'id00012/21Uxsk56VDQ', '00001')
    """
    parts = relative.split("/")
    stem, extension = posixpath.splitext(parts[-1])
    if len(parts) < 3:
        return (parts[0] if len(parts) == 2 else stem), stem, relative, SINGLE_UTTERANCE
    above = parts[:-3]
    tree = "/".join(parts[-3:-1] if not above or above[-1] in _VOX_PARTS else parts[:-1])
    return parts[-3], parts[-2], tree, utterance_part(stem, None if extension.lower() == ".mp4" else extension)


def stat_sizes(uris: Iterable[str]) -> list[int | None]:
    """Bytes of local files; None for those that cannot be asked (missing, a loop of links, object storage)."""
    sizes: list[int | None] = []
    for uri in uris:
        try:
            sizes.append(None if is_url(uri) else os.stat(uri).st_size)  # noqa: PTH116 (a million times: Path costs three times as much)
        except OSError:
            sizes.append(None)
    return sizes


def join(folder: str, path: str) -> str:
    """`path` seen from `folder`, which may be a URL; absolute paths and URLs stay."""
    if is_url(path) or posixpath.isabs(path):
        return path
    if is_url(folder):
        return f"{folder.rstrip('/')}/{path}"
    return posixpath.normpath(f"{folder}/{path}")


def _find(location: str, skipped: list[str]) -> _Found:
    if is_url(location):
        return _find_remote(location)
    path = Path(location.removeprefix("file://")).expanduser().absolute()
    if path.is_dir():
        return _find_in_folder(str(path), skipped)
    if not path.exists() and not path.is_symlink():
        raise SourceError(f"{location} does not exist")
    return _Found([str(path)], [path.name], stat_sizes([str(path)]))


def _find_in_folder(root: str, skipped: list[str]) -> _Found:
    found = _Found([], [], [])
    for path, size in _walk(root, skipped):
        found.uris.append(path)
        found.relative.append(path[len(root.rstrip("/")) + 1 :])
        found.sizes.append(size)
    return found


def _walk(root: str, skipped: list[str]) -> Iterator[tuple[str, int | None]]:
    """Video files below `root` in a fixed order; a folder is entered once, however many links lead to it."""
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in seen:
                skipped.append(f"{folder}: a link to a folder that was visited already")
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                inside = sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError as error:
            skipped.append(f"{folder}: {error.strerror}")
            continue
        folders = []
        for entry in inside:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                folders.append(entry.path)
            elif posixpath.splitext(entry.name)[1].lower() in VIDEO_EXTENSIONS:
                yield entry.path, stat_sizes([entry.path])[0]
        waiting += reversed(folders)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _find_remote(location: str) -> _Found:
    fs, root = filesystem(location)
    scheme = location.partition("://")[0]
    if fs.isfile(root):
        return _Found([location], [posixpath.basename(root)], [int(fs.size(root))])
    try:
        listing: dict[str, dict[str, Any]] = fs.find(root, detail=True)
    except FileNotFoundError as error:
        raise SourceError(f"{location} does not exist") from error
    found = _Found([], [], [])
    prefix = len(root.rstrip("/")) + 1
    for path in sorted(listing):
        relative = path[prefix:]
        hidden = any(part.startswith(".") for part in relative.split("/"))
        if not hidden and posixpath.splitext(path)[1].lower() in VIDEO_EXTENSIONS:
            found.uris.append(f"{scheme}://{path}")
            found.relative.append(relative)
            found.sizes.append(int(listing[path]["size"]))
    return found


def _table_of_files(found: _Found) -> pa.Table:
    names = [name_file(relative) for relative in found.relative]
    rows = len(names)
    return sources_table(
        identities=[name[0] for name in names],
        videos=[name[1] for name in names],
        places=[name[2] for name in names],
        utterances=[name[3] for name in names],
        uris=found.uris,
        sizes=found.sizes,
        extra={name: pa.nulls(rows, SOURCES_SCHEMA.field(name).type) for name in ("start", "end", "licence", "consent")},
    )


def sources_table(
    *,
    identities: Sequence[str],
    videos: Sequence[str],
    places: Sequence[str],
    utterances: Sequence[str],
    uris: Sequence[str],
    sizes: Sequence[int | None],
    extra: dict[str, pa.Array],
) -> pa.Table:
    """Rows of `plan.SOURCES_SCHEMA` from names as they were given; every distinct name is turned into a key once."""
    identity_parts: dict[str, str] = {}
    video_parts: dict[tuple[str, str], str] = {}
    identity_column, video_column, key_column = [], [], []
    for identity, video, place in zip(identities, videos, places, strict=True):
        first = identity_parts.get(identity)
        if first is None:
            first = identity_parts[identity] = identity_part(identity)
        second = video_parts.get((video, place))
        if second is None:
            second = video_parts[video, place] = video_part(video, place)
        identity_column.append(first)
        video_column.append(second)
        key_column.append(video_key(first, second))
    columns = {
        "key": pa.array(key_column, pa.string()),
        "identity": pa.array(identity_column, pa.string()),
        "video": pa.array(video_column, pa.string()),
        "name": pa.array(utterances, pa.string()),
        # A name that is not valid UTF-8 cannot be a string of the index: such bytes are written as escapes and the file reads as missing.
        "uri": pa.array(_utf8(uris), pa.string()),
        "size": pa.array(sizes, pa.int64()),
        **extra,
    }
    return pa.table([columns[name] for name in SOURCES_SCHEMA.names], schema=SOURCES_SCHEMA)


def _utf8(uris: Sequence[str]) -> list[str]:
    return [uri.encode("utf-8", "backslashreplace").decode() for uri in uris]


def _without_duplicates(table: pa.Table, skipped: list[str]) -> pa.Table:
    """Drop rows that were given twice; refuse different files with one key."""
    ids = pc.binary_join_element_wise(table["key"], table["name"], "/").combine_chunks()
    if not table.num_rows or pc.count_distinct(ids).as_py() == len(ids):
        return table
    first = pc.index_in(ids, value_set=ids)
    again = pc.not_equal(first, pa.array(range(len(ids)), pa.int32()))
    repeated = table.filter(again).select(["key", "uri", "start", "end"]).to_pylist()
    originals = table.take(first.filter(again)).select(["key", "uri", "start", "end"]).to_pylist()
    for one, other in zip(originals, repeated, strict=True):
        if one != other:
            raise SourceError(
                f"two sources get the same key {one['key']}: {one['uri']} and {other['uri']}. "
                "Give their common parent folder instead, or a manifest with a column `video` that tells them apart"
            )
    skipped.append(f"{len(repeated)} sources were given twice")
    return table.filter(pc.invert(again))

"""CSV and Parquet manifests: a table of sources that names identities, videos, times and rights itself."""

from __future__ import annotations

import io
import posixpath
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tasks.data.storage import filesystem, is_url
from tasks.preprocessing.keys import utterance_part
from tasks.preprocessing.sources import SourceError, join, name_file, sources_table, stat_sizes

_TEXT = ("path", "identity", "video", "licence", "consent")
_TIMES = ("start", "end")
_OTHER_NAMES = {"license": "licence"}


def read_manifest(location: str) -> pa.Table:
    """Read a manifest into rows of `plan.SOURCES_SCHEMA`.

    Columns: `path` (relative to the manifest's folder, absolute, or a URL), and optionally `identity`, `video`, `start` and
    `end` in seconds, `licence`, `consent`; others are ignored. Without `identity` or `video` the path is read as in a folder.
    Rows of the same identity and video are utterances of one video.

    Raises:
        SourceError: not readable, no column `path`, an empty path, or an end that is not after its start; with the row's number.
    """
    table = _columns(location, _load(location))
    rows = table.num_rows
    folder = location.rpartition("/")[0] if is_url(location) else str(Path(location).expanduser().absolute().parent)
    paths: list[str] = table["path"].to_pylist()
    uris = [join(folder, path) for path in paths]
    relative = [uri[len(folder) + 1 :] if uri.startswith(f"{folder}/") else path for uri, path in zip(uris, paths, strict=True)]
    identities, videos, places, names = [], [], [], []
    given = (table[name].to_pylist() for name in ("identity", "video", "start", "end"))
    for path, identity, video, start, end in zip(relative, *given, strict=True):
        own_identity, own_video, place, name = name_file(path)
        if identity is not None or video is not None:
            identity = own_identity if identity is None else identity
            if video is None:
                video = posixpath.splitext(posixpath.basename(path))[0]
                place = f"{identity}/{path}"
                name = name_file(posixpath.basename(path))[3]
            else:
                place = f"{identity}/{video}"
                name = name_file(f"{identity}/{video}/{posixpath.basename(path)}")[3]
        if start is not None or end is not None:
            name = utterance_part(posixpath.splitext(posixpath.basename(path))[0], f"{path}/{start}/{end}")
        identities.append(own_identity if identity is None else identity)
        videos.append(own_video if video is None else video)
        places.append(place)
        names.append(name)
    if not rows:
        raise SourceError(f"{location} has no rows")
    return sources_table(
        identities=identities,
        videos=videos,
        places=places,
        utterances=names,
        uris=uris,
        sizes=_sizes(uris),
        extra={name: table[name].combine_chunks() for name in ("start", "end", "licence", "consent")},
    )


def _load(location: str) -> pa.Table:
    import pyarrow.csv as csv
    import pyarrow.parquet as pq

    try:
        if is_url(location):
            fs, path = filesystem(location)
            content = fs.cat_file(path)
        else:
            content = Path(location).expanduser().read_bytes()
    except OSError as error:
        raise SourceError(f"the manifest {location} cannot be read: {error}") from error
    try:
        if location.lower().endswith(".parquet"):
            return pq.read_table(io.BytesIO(content))
        texts = {name: pa.string() for name in (*_TEXT, *_OTHER_NAMES)}
        options = csv.ConvertOptions(column_types=texts | dict.fromkeys(_TIMES, pa.float64()), strings_can_be_null=True, null_values=[""])
        return csv.read_csv(io.BytesIO(content), convert_options=options, parse_options=csv.ParseOptions(newlines_in_values=True))
    except pa.ArrowInvalid as error:
        raise SourceError(f"the manifest {location} is not a readable table: {error}") from error


def _columns(location: str, table: pa.Table) -> pa.Table:
    """Exactly the known columns, with their types; those that are absent are null."""
    table = table.rename_columns([_OTHER_NAMES.get(name, name) for name in (name.strip().lower() for name in table.column_names)])
    if "path" not in table.column_names:
        raise SourceError(f"the manifest {location} has no column `path`; its columns are {', '.join(table.column_names)}")
    types = dict.fromkeys(_TEXT, pa.string()) | dict.fromkeys(_TIMES, pa.float64())
    columns = {}
    for name, kind in types.items():
        try:
            columns[name] = table[name].cast(kind) if name in table.column_names else pa.nulls(table.num_rows, kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError) as error:
            raise SourceError(f"the manifest {location} has an unusable column `{name}`: {error}") from error
        if kind == pa.string():
            columns[name] = pc.if_else(pc.equal(columns[name], ""), pa.scalar(None, kind), columns[name])
    checked = pa.table(columns).combine_chunks()
    _refuse(location, pc.is_null(checked["path"]), "has no path")
    _refuse(location, pc.fill_null(pc.less(checked["start"], 0.0), False), "starts before 0")
    _refuse(
        location, pc.fill_null(pc.less_equal(checked["end"], pc.fill_null(checked["start"], 0.0)), False), "does not end after its start"
    )
    return checked


def _refuse(location: str, wrong: pa.ChunkedArray, what: str) -> None:
    row = pc.index(wrong, True).as_py()
    if row >= 0:
        raise SourceError(f"the manifest {location}: row {row + 1} {what}")


def _sizes(uris: list[str]) -> list[int | None]:
    """Sizes of local files, asked once for files that are named by many rows."""
    distinct = dict.fromkeys(uris)
    known = dict(zip(distinct, stat_sizes(distinct), strict=True))
    return [known[uri] for uri in uris]

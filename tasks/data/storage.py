"""Where bytes lie: one folder, local or on object storage, with one way to write a file whole.

`Storage` is a small value that travels to workers by its URL alone. `Storage.create` is the one
commit of the project: bytes go to a temporary file, are hashed while they are written, fsynced, and
appear under their name in one step (rename, or one upload for object storage).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

TEMPORARY_SUFFIX = ".tmp"
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def is_url(location: str) -> bool:
    """Whether `location` names object storage (`s3://…`) rather than a local path."""
    scheme, separator, _ = location.partition("://")
    return bool(separator) and scheme != "file"


def is_disk_full(error: BaseException) -> bool:
    """Whether `error` says that there is no room left to write."""
    return isinstance(error, OSError) and error.errno in _DISK_FULL


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL and the path inside it; never serves a cached listing.

    S3 takes its credentials and endpoint from the usual places (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `FSSPEC_S3_ENDPOINT_URL`, …).
    """
    import fsspec

    return fsspec.core.url_to_fs(url, use_listings_cache=False)


@contextlib.contextmanager
def open_local(uri: str) -> Iterator[Path]:
    """A readable local file with the content of `uri`: the file itself, or a download that is removed afterwards.

    Raises:
        OSError: a remote file cannot be read (FileNotFoundError where there is none). A local path is passed on untouched.
    """
    if not is_url(uri):
        yield Path(uri.removeprefix("file://"))
        return
    with tempfile.TemporaryDirectory(prefix="talking-heads-") as folder:
        target = Path(folder) / uri.rsplit("/", 1)[-1]
        fs, path = filesystem(uri)
        fs.get_file(path, str(target))
        yield target


class AtomicFile:
    """A file that is being written under another name; `publish` makes it appear, `discard` forgets it.

    Attributes:
        name: Where it will appear, relative to the storage.
        bytes: Bytes written so far.
    """

    def __init__(self, name: str, temporary: Path, publish: Callable[[Path], None]) -> None:
        self.name = name
        self.bytes = 0
        self._temporary = temporary
        self._publish = publish
        self._hash = hashlib.sha256()
        self._file: IO[bytes] = temporary.open("wb")

    @property
    def sha256(self) -> str:
        """Hash of what was written so far, hexadecimal."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> int:
        """Append `data`."""
        self._file.write(data)
        self._hash.update(data)
        self.bytes += len(data)
        return len(data)

    def finish(self) -> None:
        """Flush to the disk; the file is then complete but still invisible."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def publish(self) -> None:
        """Make the finished file appear under its name, in one step."""
        self.finish()
        self._publish(self._temporary)

    def discard(self) -> None:
        """Forget what was written; whatever stood under the name stays."""
        with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
            self._file.close()
        self._temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Storage:
    """A folder of files with relative names; local path or fsspec URL. Use `Storage.at`.

    Example:
        >>> storage = Storage.at("s3://bucket/dataset")
        >>> storage.write("plan.json", b"{}")
    """

    url: str

    @classmethod
    def at(cls, location: str | Path) -> Storage:
        """The folder at a local path (made absolute) or URL; it need not exist yet."""
        text = str(location)
        if is_url(text):
            return cls(text.rstrip("/"))
        return cls(str(Path(text.removeprefix("file://")).expanduser().absolute()))

    @property
    def local(self) -> Path | None:
        """The folder as a local path; None for object storage."""
        return None if is_url(self.url) else Path(self.url)

    def url_of(self, name: str) -> str:
        """Full path or URL of the file `name`."""
        return f"{self.url}/{name}"

    def _remote(self, name: str) -> tuple[Any, str]:
        return filesystem(self.url_of(name))

    def exists(self, name: str) -> bool:
        """Whether the file `name` is there."""
        if self.local:
            return (self.local / name).is_file()
        fs, path = self._remote(name)
        return bool(fs.isfile(path))

    def read(self, name: str) -> bytes:
        """All bytes of the file `name`.

        Raises:
            FileNotFoundError: when it is not there.
        """
        if self.local:
            return (self.local / name).read_bytes()
        fs, path = self._remote(name)
        content: bytes = fs.cat_file(path)
        return content

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes at each (offset, size) of the file `name`, in the order asked."""
        if self.local:
            with (self.local / name).open("rb") as file:
                parts = []
                for offset, size in ranges:
                    file.seek(offset)
                    parts.append(file.read(size))
                return parts
        fs, path = self._remote(name)
        starts = [offset for offset, _ in ranges]
        return list(fs.cat_ranges([path] * len(ranges), starts, [offset + size for offset, size in ranges]))

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """All bytes of several files, by name; concurrently on object storage."""
        wanted = list(names)
        if self.local or not wanted:
            return {name: self.read(name) for name in wanted}
        fs, root = filesystem(self.url)
        content = fs.cat([f"{root}/{name}" for name in wanted])
        if isinstance(content, bytes):
            return {wanted[0]: content}
        return {name: content[f"{root}/{name}"] for name in wanted}

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every finished file directly inside `folder`, by name relative to this storage, sorted."""
        found: dict[str, int] = {}
        if self.local:
            with contextlib.suppress(FileNotFoundError), os.scandir(self.local / folder) as entries:
                found = {f"{folder}/{entry.name}": entry.stat().st_size for entry in entries if entry.is_file()}
        else:
            fs, path = self._remote(folder)
            with contextlib.suppress(FileNotFoundError):
                found = {
                    f"{folder}/{entry['name'].rsplit('/', 1)[-1]}": int(entry["size"])
                    for entry in fs.ls(path, detail=True)
                    if entry["type"] == "file"
                }
        return {name: found[name] for name in sorted(found) if not name.endswith(TEMPORARY_SUFFIX)}

    def remove(self, name: str) -> None:
        """Remove the file `name`; nothing happens where there is none."""
        if self.local:
            (self.local / name).unlink(missing_ok=True)
            return
        fs, path = self._remote(name)
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(path)

    def begin(self, name: str) -> AtomicFile:
        """Start to write the file `name`; the caller ends it with `publish` or `discard`."""
        if self.local:
            target = self.local / name
            target.parent.mkdir(parents=True, exist_ok=True)
            return AtomicFile(name, target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}", self._rename_to(target))
        handle, temporary = tempfile.mkstemp(prefix="talking-heads-", suffix=TEMPORARY_SUFFIX)
        os.close(handle)
        return AtomicFile(name, Path(temporary), self._upload_to(name))

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[AtomicFile]:
        """Write the file `name` whole: it appears when the body ends well, and not at all when it raises."""
        file = self.begin(name)
        try:
            yield file
            file.publish()
        finally:
            file.discard()

    def write(self, name: str, content: bytes) -> None:
        """Write the file `name` whole, replacing what was there."""
        with self.create(name) as file:
            file.write(content)

    def remove_temporaries(self, folders: Iterable[str], *, of: str = "") -> int:
        """Remove what a killed process left half-written in `folders`; returns how many files. Only under the dataset's lock.

        Args:
            of: Only files with this in their name.
        """
        if not self.local:
            return 0
        count = 0
        for folder in folders:
            for path in (self.local / folder).glob(f"*{TEMPORARY_SUFFIX}"):
                if of in path.name:
                    path.unlink(missing_ok=True)
                    count += 1
        return count

    def _rename_to(self, target: Path) -> Callable[[Path], None]:
        def rename(temporary: Path) -> None:
            temporary.replace(target)
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

        return rename

    def _upload_to(self, name: str) -> Callable[[Path], None]:
        def upload(temporary: Path) -> None:
            fs, path = self._remote(name)
            fs.put_file(str(temporary), path)
            temporary.unlink()

        return upload


def this_host() -> str:
    """Name of this machine, as written to locks."""
    return socket.gethostname()


def publish_together(files: Sequence[AtomicFile], *, before: Callable[[], None]) -> None:
    """Finish all `files`, call `before`, then publish them in order; nothing appears where one of them cannot be finished."""
    for file in files:
        file.finish()
    before()
    for file in files:
        file.publish()

"""One writer per dataset: a lock file that says who holds it and that a dead holder does not keep."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from tasks.data.dataset import DatasetError
from tasks.data.storage import Storage, this_host

LOCK_FILE = ".lock"


@contextlib.contextmanager
def dataset_lock(storage: Storage) -> Iterator[None]:
    """Hold the dataset while the body runs.

    On a local file system the kernel holds the lock (flock), so it ends with its process, however that ends. Object storage
    has no locks: there the file is written and read back, which keeps out a second run that starts later.

    Raises:
        DatasetError: another run holds it; the message says which, and what to do when that run is gone.
    """
    own = {"host": this_host(), "pid": os.getpid(), "token": uuid.uuid4().hex}
    if storage.local is not None:
        with _flock(storage, storage.local / LOCK_FILE, own):
            yield
        return
    with contextlib.suppress(FileNotFoundError):
        holder = json.loads(storage.read(LOCK_FILE))
        if not (holder["host"] == own["host"] and not _alive(holder["pid"])):
            raise DatasetError(_refusal(storage, holder))
    storage.write(LOCK_FILE, json.dumps(own).encode())
    if json.loads(storage.read(LOCK_FILE))["token"] != own["token"]:
        raise DatasetError(_refusal(storage, json.loads(storage.read(LOCK_FILE))))
    try:
        yield
    finally:
        storage.remove(LOCK_FILE)


@contextlib.contextmanager
def _flock(storage: Storage, path: Path, own: dict[str, object]) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise DatasetError(_refusal(storage, _holder(file.read()))) from None
            if not _is_at(path, os.fstat(file.fileno())):
                continue  # its holder removed the file between our opening and locking it
            file.truncate(0)
            file.write(json.dumps(own))
            file.flush()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), status)
    except FileNotFoundError:
        return False


def _holder(text: str) -> dict[str, object]:
    try:
        holder: dict[str, object] = json.loads(text)
    except json.JSONDecodeError:
        return {"host": "an unknown host", "pid": "unknown"}
    return holder


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _refusal(storage: Storage, holder: dict[str, object]) -> str:
    return (
        f"another run is writing {storage.url} (process {holder['pid']} on {holder['host']}). Wait for it; "
        f"where it is gone for certain, remove {storage.url_of(LOCK_FILE)}"
    )

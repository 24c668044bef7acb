"""What a worker is about to touch, and which videos killed their worker.

A worker notes a video's key before it touches it. When a living supervisor sees the worker die, the noted key gets the
blame, and the blame is kept across runs; after enough of it the video is quarantined. When the whole run is killed
nobody is there to see it, so nothing is counted. Everything here is removed when its shard is done.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO

from tasks.data.records import shard_name
from tasks.data.storage import Storage

JOURNAL = ".journal"
_CRASHES = f"{JOURNAL}/crashes.json"

_FAULTS = {
    "Segmentation fault": signal.SIGSEGV,
    "Aborted": signal.SIGABRT,
    "Bus error": signal.SIGBUS,
    "Floating point exception": signal.SIGFPE,
    "Illegal instruction": signal.SIGILL,
}
"""What faulthandler writes for each deadly signal."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Where a worker stands in its shard."""

    key: str | None
    """The video in flight; None between videos."""
    videos: int
    """Videos finished."""
    clips: int
    rejects: int
    frames: int
    """Frames decoded."""


@dataclass(frozen=True)
class AttemptJournal:
    """A worker's note of what it is about to touch: one small file per shard, replaced in one step."""

    storage: Storage
    shard: int

    @property
    def name(self) -> str:
        """Name of the note."""
        return f"{JOURNAL}/{shard_name(self.shard)}.json"

    @property
    def _faults(self) -> str:
        return f"{JOURNAL}/{shard_name(self.shard)}.fault"

    def note(self, attempt: Attempt) -> None:
        """Replace the note. It survives the death of the process, which is all that it is for: no fsync."""
        content = json.dumps(asdict(attempt)).encode()
        local = self.storage.local
        if local is None:
            self.storage.write(self.name, content)
            return
        temporary = local / f"{self.name}.tmp"
        try:
            temporary.write_bytes(content)
        except FileNotFoundError:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
        temporary.replace(local / self.name)

    def read(self) -> Attempt | None:
        """The last note; None where there is none."""
        try:
            return Attempt(**json.loads(self.storage.read(self.name)))
        except FileNotFoundError:
            return None

    def clear(self) -> None:
        """Forget the note."""
        self.storage.remove(self.name)
        self.storage.remove(self._faults)

    @contextlib.contextmanager
    def watch_faults(self) -> Iterator[None]:
        """Have the interpreter write down a deadly signal that hits this process (local datasets only)."""
        local = self.storage.local
        if local is None:
            yield
            return
        path = local / self._faults
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file, _faults_to(file):
            yield

    def fault(self) -> int | None:
        """The deadly signal that the worker wrote down, if it came to that."""
        try:
            text = self.storage.read(self._faults).decode(errors="replace")
        except FileNotFoundError:
            return None
        return next((int(number) for words, number in _FAULTS.items() if f"Fatal Python error: {words}" in text), None)


@contextlib.contextmanager
def _faults_to(file: IO[str]) -> Iterator[None]:
    was_on = faulthandler.is_enabled()
    faulthandler.enable(file, all_threads=False)
    try:
        yield
    finally:
        faulthandler.disable()
        if was_on:
            faulthandler.enable()


@dataclass(frozen=True, kw_only=True)
class Crash:
    """One death of a worker, blamed on a video."""

    key: str
    fingerprint: str
    """Of the shard: with other code or other input the video gets another chance."""
    signal: int | None


class CrashLog:
    """The supervisor's memory of which videos killed their worker; one writer, under the dataset's lock."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._crashes: list[Crash] = []
        with contextlib.suppress(FileNotFoundError):
            self._crashes = [Crash(**entry) for entry in json.loads(storage.read(_CRASHES))]

    def add(self, crash: Crash) -> None:
        """Remember a crash, on disk before anything is retried."""
        self._crashes.append(crash)
        self._save()

    def forget(self, keys: Sequence[str]) -> None:
        """Drop the crashes of these videos: their shard is done and says what became of them."""
        gone = set(keys)
        kept = [crash for crash in self._crashes if crash.key not in gone]
        if len(kept) < len(self._crashes):
            self._crashes = kept
            self._save()

    def quarantined(self, fingerprint: str, keys: Sequence[str], most: int) -> Mapping[str, int | None]:
        """Those of `keys` that crashed at least `most` times in this shard, with the last known signal."""
        found: dict[str, int | None] = {}
        for key in keys:
            crashes = [crash for crash in self._crashes if crash.key == key and crash.fingerprint == fingerprint]
            if len(crashes) >= most:
                found[key] = next((crash.signal for crash in reversed(crashes) if crash.signal is not None), None)
        return found

    def _save(self) -> None:
        if self._crashes:
            self._storage.write(_CRASHES, json.dumps([asdict(crash) for crash in self._crashes], indent=1).encode())
        else:
            self._storage.remove(_CRASHES)


def signal_name(number: int | None) -> str:
    """`SIGSEGV` for 11; `an unknown signal` for None."""
    if number is None:
        return "an unknown signal"
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

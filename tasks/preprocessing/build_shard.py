"""Pass 1 for one shard: its videos in, two tars, their index, the rejects and the record out.

A plain function of a job; Ray, a child process or a debugger may run it, and it gives the same bytes.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.data.records import FileRecord, ShardRecord, record_name, write_record
from tasks.data.shards import (
    TarShard,
    clip_members,
    clip_row,
    clips_schema,
    index_name,
    parquet_bytes,
    pool_members,
    pool_row,
    pools_schema,
    reject_row,
    rejects_name,
    rejects_schema,
    tar_name,
)
from tasks.data.storage import AtomicFile, Storage, is_disk_full, open_local, publish_together
from tasks.preprocessing.journal import Attempt, AttemptJournal, signal_name
from tasks.rejects import Reject, RejectCode, RejectScope, VideoRejected
from tasks.samples import ClipSample, PoolSample, SourceVideo, VideoDone, VideoEvent
from tasks.settings import LandmarkSettings, StoredSettings, fingerprint_of

if TYPE_CHECKING:
    from tasks.video.landmarks import Landmarker

logger = logging.getLogger(__name__)

OpenLocal = Callable[[str], AbstractContextManager[Path]]
ProcessVideo = Callable[[SourceVideo, StoredSettings, "Landmarker", OpenLocal], Iterator[VideoEvent]]
"""The signature of `tasks.video.process_video.process_video`."""


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Everything that a worker needs; paths, never bytes."""

    dataset: str
    """Path or URL."""
    shard: int
    videos: tuple[SourceVideo, ...]
    """Sorted by key."""
    settings: StoredSettings
    inputs: Mapping[str, str]
    """What the bytes depend on (`ShardRecord.inputs`)."""
    quarantined: Mapping[str, int | None] = field(default_factory=dict)
    """Videos that killed their worker too often, with the signal where it is known; they are not touched again."""
    process: ProcessVideo | None = None
    """A function of a module; None is `tasks.video.process_video.process_video`."""

    @property
    def fingerprint(self) -> str:
        """What a finished record of this shard must carry."""
        return fingerprint_of(self.inputs)


def build_shard(job: ShardJob) -> ShardRecord:
    """Make a shard and commit it; the record is written last.

    Every failure of a video is a reject. Whatever stood under the shard's names is replaced in one step at the end, after
    its old record is gone, so no reader ever sees a record beside files that it does not describe.

    Raises:
        OSError: the dataset cannot be written (a full disk among others); nothing of this shard is visible then.
    """
    started = time.perf_counter()
    storage = Storage.at(job.dataset)
    journal = AttemptJournal(storage, job.shard)
    work = _Work(job, journal)
    work.note(None)
    clips_file, pools_file = storage.begin(tar_name("clips", job.shard)), storage.begin(tar_name("keyframes", job.shard))
    files = [clips_file, pools_file]
    try:
        with journal.watch_faults(), TarShard(clips_file) as clips, TarShard(pools_file) as pools:
            for video in job.videos:
                work.note(video.key)
                work.add_video(video, clips, pools)
            work.note(None)
        tables = {
            index_name("clips", job.shard): parquet_bytes(work.clip_rows, clips_schema()),
            index_name("keyframes", job.shard): parquet_bytes(work.pool_rows, pools_schema()),
            rejects_name(job.shard): parquet_bytes(work.reject_rows, rejects_schema()),
        }
        for name, content in tables.items():
            files.append(storage.begin(name))
            files[-1].write(content)
        publish_together(files, before=lambda: storage.remove(record_name(job.shard)))
        record = work.record(files, total=time.perf_counter() - started)
        write_record(storage, record)
    finally:
        for file in files:
            file.discard()
    journal.clear()
    return record


class _Work:
    """What has come out of a shard's videos so far."""

    def __init__(self, job: ShardJob, journal: AttemptJournal) -> None:
        self.job = job
        self.journal = journal
        self.clip_rows: list[dict[str, object]] = []
        self.pool_rows: list[dict[str, object]] = []
        self.reject_rows: list[dict[str, object]] = []
        self.rejects: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.videos = self.empty_videos = self.clip_frames = self.decoded_frames = 0

    def note(self, key: str | None) -> None:
        """Write down what is touched next."""
        attempt = Attempt(
            key=key,
            videos=self.videos,
            clips=len(self.clip_rows),
            rejects=len(self.reject_rows),
            frames=self.decoded_frames,
        )
        self.journal.note(attempt)

    def add_video(self, video: SourceVideo, clips: TarShard, pools: TarShard) -> None:
        """Write all that a video gives."""
        before = len(self.clip_rows)
        for event in _events(self.job, video):
            started = time.perf_counter()
            self._add(event, video, clips, pools)
            self.seconds["write"] += time.perf_counter() - started
        self.videos += 1
        self.empty_videos += len(self.clip_rows) == before

    def _add(self, event: VideoEvent, video: SourceVideo, clips: TarShard, pools: TarShard) -> None:
        shard = self.job.shard
        if isinstance(event, ClipSample):
            full = event.num_frames >= self.job.settings.clips.history_frames
            placed = clips.add(event.key, clip_members(event, video=video.key, full_history=full))
            row = clip_row(
                event,
                video=video.key,
                shard=shard,
                licence=video.licence,
                consent=video.consent,
                full_history=full,
                members=placed,
            )
            self.clip_rows.append(row)
            self.clip_frames += event.num_frames
        elif isinstance(event, PoolSample):
            placed = pools.add(event.key, pool_members(event, video=video.key))
            self.pool_rows.append(
                pool_row(event, video=video.key, shard=shard, licence=video.licence, consent=video.consent, members=placed)
            )
        elif isinstance(event, Reject):
            self.reject_rows.append(reject_row(event, shard=shard))
            self.rejects[str(event.code)] += 1
        elif isinstance(event, VideoDone):
            self.decoded_frames += event.decoded_frames
            for step, seconds in event.seconds.items():
                self.seconds[step] += seconds

    def record(self, files: list[AtomicFile], *, total: float) -> ShardRecord:
        """The record of what was written."""
        return ShardRecord(
            shard=self.job.shard,
            fingerprint=self.job.fingerprint,
            inputs=dict(self.job.inputs),
            files={file.name: FileRecord(bytes=file.bytes, sha256=file.sha256) for file in files},
            counts={
                "videos": self.videos,
                "empty_videos": self.empty_videos,
                "clips": len(self.clip_rows),
                "pools": len(self.pool_rows),
                "rejects": len(self.reject_rows),
                "frames": self.clip_frames,
                "decoded_frames": self.decoded_frames,
            },
            rejects=dict(self.rejects),
            seconds={**{step: round(value, 6) for step, value in self.seconds.items()}, "total": round(total, 6)},
        )


def _events(job: ShardJob, video: SourceVideo) -> Iterator[VideoEvent]:
    """What a video gives; an exception ends it with a reject. Clips that were finished before are whole samples and stay."""
    if video.key in job.quarantined:
        killer = signal_name(job.quarantined[video.key])
        yield _reject(video, RejectCode.CRASHED, "process", f"processing it killed the worker process ({killer})")
        return
    process = job.process
    if process is None:
        from tasks.video.process_video import process_video

        process = process_video
    try:
        yield from process(video, job.settings, _landmarker(job.settings.landmarks), open_local)
    except VideoRejected as error:
        yield _reject(video, error.code, error.step, error.message)
    except Exception as error:
        if is_disk_full(error):
            raise
        logger.exception("%s failed", video.key)
        yield _reject(video, RejectCode.FAILED, "process", f"{type(error).__name__}: {error}")


def _reject(video: SourceVideo, code: RejectCode, step: str, message: str) -> Reject:
    return Reject(key=video.key, uri=video.utterances[0].uri, scope=RejectScope.VIDEO, step=step, code=code, message=message)


@functools.cache
def _landmarker(settings: LandmarkSettings) -> Landmarker:
    """Networks are loaded once per worker."""
    from tasks.video.landmarks import make_landmarker

    return make_landmarker(settings)

"""Pass 2: speech features of finished clip shards, by workers that keep the network loaded.

A feature shard has the id and keys of its clip shard and is committed the same way: files first, record last. It is made
again only when the clips' bytes or the network change. No video is decoded here; sound comes as the clips' wav members.
"""

from __future__ import annotations

import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from models.views import FPS, SAMPLES_PER_FRAME
from models.weights import WeightsStore
from tasks.data.dataset import Dataset, DatasetError
from tasks.data.feature_index import (
    feature_folder,
    feature_index_name,
    feature_info_name,
    feature_records,
    feature_rejects_name,
    feature_schema,
    read_feature_info,
)
from tasks.data.lock import dataset_lock
from tasks.data.records import FileRecord, ShardRecord, content_fingerprint, record_name, write_record
from tasks.data.sample_reader import read_wav
from tasks.data.shards import TarShard, index_name, npy_bytes, parquet_bytes, read_parquet, reject_row, rejects_schema, tar_name
from tasks.data.storage import Storage, is_disk_full, publish_together
from tasks.preprocessing.executor import Died, Executor, Raised
from tasks.preprocessing.model_workers import make_model_executor, uses_gpu
from tasks.preprocessing.speech_networks import default_store, find_network, load_network, network_version, speech_rows
from tasks.rejects import Reject, RejectCode, RejectScope
from tasks.settings import RunSettings, SpeechSettings, fingerprint_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

READ_CLIPS = 32
"""Clips whose sound is read in one request: ~10 MB."""

Progress = Callable[[int, int, str], None]
"""Called with (clips done, clips to do, a short note)."""


@dataclass(frozen=True, kw_only=True)
class FeatureResult:
    """What pass 2 did."""

    shards: int
    """Finished shards of the feature, all in all."""
    made: int
    """Of them, those made in this run."""
    clips: int
    """Clips with the feature, all in all."""
    rejects: Mapping[str, int] = field(default_factory=dict)
    """Clips without it by reason."""
    seconds: float = 0.0
    audio_seconds: float = 0.0
    """Seconds of sound that went through the network in this run."""
    fingerprint: str = ""
    """Of all finished shards of the feature."""


@dataclass(frozen=True, kw_only=True)
class FeatureJob:
    """Everything that a worker needs for one shard."""

    dataset: str
    shard: int
    settings: SpeechSettings
    inputs: Mapping[str, str]
    weights: WeightsStore
    """Where each worker looks for the network's files."""
    quarantined: tuple[str, ...] = ()
    """Clips that killed their worker; they are not touched again."""
    only: str | None = None
    """Try this clip alone and write nothing: how the clip that kills its worker is found."""


def extract_features(
    dataset_url: str, settings: SpeechSettings, run: RunSettings, progress: Progress | None = None, *, weights: WeightsStore | None = None
) -> FeatureResult:
    """Give every clip with sound its rows of a speech network, in shards beside the clips'; safe to stop and run again.

    Args:
        dataset_url: a dataset whose finished clip shards are read; it is locked meanwhile.
        settings: which network.
        run: executor, number of workers (0: one per GPU, else per core), and how often a shard may kill its worker before
            the clip at fault is looked for and left out.
        progress: told after every shard.
        weights: where pretrained files are looked for (`tasks.preprocessing.speech_networks.default_store` by default).

    Raises:
        DatasetError: no dataset, another run is writing it, or a worker cannot do its work; one readable line.
        MissingWeights: a pretrained network that is neither here nor to be downloaded; before any work.
        OSError: the dataset cannot be written (a full disk among others).
    """
    started = time.perf_counter()
    dataset = Dataset.open(dataset_url)
    store = default_store() if weights is None else weights
    name, version = settings.feature, network_version(settings)
    with dataset_lock(dataset.storage):
        dataset = Dataset.open(dataset_url)
        dataset.storage.remove_temporaries([feature_folder(name)])
        plan = {record.shard: _inputs(record, version) for record in dataset.records()}
        done = feature_records(dataset.storage, name)
        todo = [shard for shard, inputs in plan.items() if shard not in done or done[shard].fingerprint != fingerprint_of(inputs)]
        audio_seconds = 0.0
        if todo:
            if settings.init == "pretrained":  # one clear error before work, instead of one per worker
                find_network(settings, store)
            jobs = [FeatureJob(dataset=dataset.url, shard=shard, settings=settings, inputs=plan[shard], weights=store) for shard in todo]
            clips = {record.shard: record.counts["clips"] for record in dataset.records()}
            workers = min(run.workers, len(jobs)) if run.workers else 0
            with make_model_executor(run.executor, run_feature_job, workers=workers, device=settings.device) as executor:
                for record in _supervise(executor, jobs, clips, run.max_crashes, progress):
                    done[record.shard] = record
                    audio_seconds += record.counts["frames"] / FPS
        current = {shard: done[shard] for shard in plan}
        result = _result(current, made=len(todo), seconds=time.perf_counter() - started, audio_seconds=audio_seconds)
        _write_info(dataset.storage, settings, version, result)
    return result


def run_feature_job(job: FeatureJob) -> ShardRecord | None:
    """Make one feature shard and commit it; with `job.only`, try one clip and return None.

    Raises:
        OSError: the dataset cannot be written; nothing of this shard is visible then.
    """
    started = time.perf_counter()
    storage = Storage.at(job.dataset)
    rows = read_parquet(storage.read(index_name("clips", job.shard))).sort_by("key").to_pylist()
    if job.only is not None:
        for _, waveform in _sounds(storage, job.shard, [row for row in rows if row["key"] == job.only]):
            if waveform is not None:
                speech_rows(waveform, _network_of(job))
        return None
    name = job.settings.feature
    tar_file = storage.begin(tar_name(feature_folder(name), job.shard))
    files = [tar_file]
    work = _Work(job)
    try:
        with TarShard(tar_file) as tar:
            touched = [row for row in rows if row["key"] not in job.quarantined]
            for row in rows:
                if row["key"] in job.quarantined:
                    work.reject(row, RejectCode.CRASHED, "its sound killed the worker process more than once")
            for row, waveform in _sounds(storage, job.shard, touched):
                work.add(row, waveform, tar)
        tables = {
            feature_index_name(name, job.shard): parquet_bytes(work.index, feature_schema()),
            feature_rejects_name(name, job.shard): parquet_bytes(work.rejects, rejects_schema()),
        }
        for table, content in tables.items():
            files.append(storage.begin(table))
            files[-1].write(content)
        publish_together(files, before=lambda: storage.remove(record_name(job.shard, feature_folder(name))))
        record = ShardRecord(
            shard=job.shard,
            fingerprint=fingerprint_of(job.inputs),
            inputs=dict(job.inputs),
            files={file.name: FileRecord(bytes=file.bytes, sha256=file.sha256) for file in files},
            counts={"clips": len(work.index), "missing": len(work.rejects), "frames": work.frames},
            rejects=dict(work.codes),
            seconds={name: round(work.seconds, 6), "total": round(time.perf_counter() - started, 6)},
        )
        write_record(storage, record, feature_folder(name))
    finally:
        for file in files:
            file.discard()
    return record


class _Work:
    """What has come out of a shard's clips so far."""

    def __init__(self, job: FeatureJob) -> None:
        self.job = job
        self.index: list[dict[str, object]] = []
        self.rejects: list[dict[str, object]] = []
        self.codes: Counter[str] = Counter()
        self.frames = 0
        self.seconds = 0.0

    def add(self, row: Mapping[str, Any], waveform: npt.NDArray[np.float32] | None, tar: TarShard) -> None:
        """Write the rows of one clip, or say why there are none."""
        if waveform is None:
            self.reject(row, RejectCode.NO_AUDIO, "the clip has no sound")
            return
        started = time.perf_counter()
        try:
            if waveform.size != row["num_frames"] * SAMPLES_PER_FRAME:
                raise ValueError(f"{waveform.size} samples of sound for {row['num_frames']} frames")
            states = speech_rows(waveform, _network_of(self.job))
        except ValueError as error:
            self.reject(row, RejectCode.FAILED, str(error))
            return
        self.seconds += time.perf_counter() - started
        content = npy_bytes(states)
        placed = tar.add(row["key"], {f"{self.job.settings.feature}.npy": content})[0]
        frames, layers, width = states.shape
        self.index.append(
            {
                "key": row["key"],
                "shard": self.job.shard,
                "offset": placed["offset"] + len(content) - states.nbytes,
                "frames": frames,
                "layers": layers,
                "width": width,
            }
        )
        self.frames += frames

    def reject(self, row: Mapping[str, Any], code: RejectCode, message: str) -> None:
        """Note a clip that goes without."""
        reject = Reject(
            key=row["key"],
            uri=row["uri"],
            scope=RejectScope.FEATURE,
            step=self.job.settings.feature,
            code=code,
            message=message,
            start=row["start"],
        )
        self.rejects.append(reject_row(reject, shard=self.job.shard))
        self.codes[str(code)] += 1


def _sounds(
    storage: Storage, shard: int, rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], npt.NDArray[np.float32] | None]]:
    """Each clip's row and waveform (float32 [S], 16 kHz mono; None without sound), reading only the wav members."""
    for first in range(0, len(rows), READ_CLIPS):
        group = rows[first : first + READ_CLIPS]
        places = [next(((member["offset"], member["size"]) for member in row["members"] if member["name"] == "wav"), None) for row in group]
        contents = iter(storage.read_ranges(tar_name("clips", shard), [place for place in places if place is not None]))
        for row, place in zip(group, places, strict=True):
            yield row, None if place is None else read_wav(next(contents))


def _network_of(job: FeatureJob) -> PreTrainedModel:
    store = job.weights
    return _network(job.settings, store.root, tuple(sorted(store.overrides.items())), store.offline)


@functools.lru_cache(maxsize=1)
def _network(settings: SpeechSettings, root: Path, overrides: tuple[tuple[str, Path], ...], offline: bool) -> PreTrainedModel:
    """The network of this process, loaded once. One thread each: as many workers as cores share the machine."""
    import torch

    if not uses_gpu(settings.device):
        torch.set_num_threads(1)
    return load_network(settings, WeightsStore(root=root, overrides=dict(overrides), offline=offline))


def _supervise(
    executor: Executor[FeatureJob, ShardRecord | None],
    jobs: Sequence[FeatureJob],
    clips: Mapping[int, int],
    max_crashes: int,
    progress: Progress | None,
) -> Iterator[ShardRecord]:
    """Run the jobs to the end; yields the record of each finished shard."""
    lives = {job.shard: _shard_life(job, max_crashes) for job in jobs}
    for life in lives.values():
        executor.submit(next(life))
    total = sum(clips[job.shard] for job in jobs)
    finished = 0
    if progress is not None:
        progress(0, total, "loading the network")
    while executor.outstanding:
        for outcome in executor.wait(1.0):
            if isinstance(outcome, Raised):
                if is_disk_full(OSError(outcome.errno, outcome.message)):
                    raise OSError(outcome.errno, outcome.message)
                raise DatasetError(
                    f"{outcome.job.settings.feature} features of shard {outcome.job.shard} failed: {outcome.type}: {outcome.message}"
                )
            shard = outcome.job.shard
            try:
                executor.submit(lives[shard].send(outcome))
            except StopIteration as end:
                finished += clips[shard]
                if progress is not None:
                    progress(finished, total, f"shard {shard}")
                yield end.value


def _shard_life(job: FeatureJob, max_crashes: int) -> Any:
    """What is asked for one shard, one job after the other, until its record is there (the generator's return value).

    Usually that is one job. A shard that kills its worker is tried again; then each of its clips is tried alone, with
    nothing written, so that the clip that kills is known for certain and the others are kept.
    """
    for _ in range(max_crashes):
        outcome = yield job
        while isinstance(outcome, Died) and not outcome.blame:
            outcome = yield job
        if not isinstance(outcome, Died):
            return outcome.result
    bad = []
    rows = read_parquet(Storage.at(job.dataset).read(index_name("clips", job.shard)))
    for key in sorted(rows.column("key").to_pylist()):
        trial = FeatureJob(**{**vars(job), "only": key})
        if isinstance((yield trial), Died):
            bad.append(key)
    outcome = yield FeatureJob(**{**vars(job), "quarantined": tuple(bad)})
    if isinstance(outcome, Died):
        raise DatasetError(
            f"{job.settings.feature} features: shard {job.shard} kills its worker process, but none of its clips does alone. "
            f"Is there enough memory? Use fewer workers (run.workers)"
        )
    return outcome.result


def _inputs(clips: ShardRecord, version: str) -> dict[str, str]:
    return {"feature": version, "clips": clips.files[tar_name("clips", clips.shard)].sha256}


def _result(records: Mapping[int, ShardRecord], *, made: int, seconds: float, audio_seconds: float) -> FeatureResult:
    rejects: Counter[str] = Counter()
    for record in records.values():
        rejects.update(record.rejects)
    return FeatureResult(
        shards=len(records),
        made=made,
        clips=sum(record.counts["clips"] for record in records.values()),
        rejects=dict(rejects),
        seconds=seconds,
        audio_seconds=audio_seconds,
        fingerprint=content_fingerprint(records),
    )


def _write_info(storage: Storage, settings: SpeechSettings, version: str, result: FeatureResult) -> None:
    """Say beside the shards what they hold; nothing is written when it is said already.

    dataset.json is not touched: it belongs to pass 1, which would otherwise have to know every feature to keep it.
    """
    info = {
        "name": settings.feature,
        "version": version,
        "settings": settings.model_dump(mode="json", exclude={"device", "path"}),
        "pretrained": settings.init == "pretrained",
        "fingerprint": result.fingerprint,
        "shards": result.shards,
        "clips": result.clips,
        "rejects": dict(sorted(result.rejects.items())),
    }
    if read_feature_info(storage, settings.feature) != info:
        storage.write(feature_info_name(settings.feature), (json.dumps(info, indent=1, sort_keys=True) + "\n").encode())

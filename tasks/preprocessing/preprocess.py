"""Pass 1 from end to end: sources in, a dataset out. Stop it at any moment and run it again.

`plan_preprocess` says what would be done, `run_preprocess` does it, `preprocess` is both.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tasks.data.data_card import write_card, write_info
from tasks.data.dataset import CARD_FILE, DATASET_FILE, FOLDERS, Dataset, DatasetError
from tasks.data.lock import dataset_lock
from tasks.data.records import ShardRecord, read_records
from tasks.data.storage import Storage, is_disk_full
from tasks.preprocessing.build_shard import ProcessVideo, ShardJob, build_shard
from tasks.preprocessing.executor import Executor, make_executor
from tasks.preprocessing.journal import JOURNAL
from tasks.preprocessing.plan import PLAN_FILE, SOURCES_FILE
from tasks.preprocessing.result import PreprocessFailed, PreprocessResult, Progress, ProgressCallback
from tasks.preprocessing.run_plan import PreprocessPlan, plan_preprocess, read_sources
from tasks.preprocessing.supervisor import Supervisor, disk_full
from tasks.settings import PreprocessSettings

__all__ = [
    "PreprocessFailed",
    "PreprocessPlan",
    "PreprocessResult",
    "Progress",
    "ProgressCallback",
    "plan_preprocess",
    "preprocess",
    "run_preprocess",
]


def preprocess(
    videos: Sequence[str | Path],
    out: str | Path,
    settings: PreprocessSettings,
    *,
    progress: ProgressCallback | None = None,
    process: ProcessVideo | None = None,
) -> PreprocessResult:
    """Discover, plan and do pass 1; work that is finished already is not repeated.

    Args:
        videos: Folders, files, manifests; local or fsspec URLs.
        out: The dataset; local or fsspec URL.
        progress: Called about twice a second.
        process: What is done with one video, a function of a module; None is `process_video`.

    Raises:
        SourceError: nothing to work on.
        DatasetError: the dataset was made with other settings, is being written by another run, or is not a dataset.
        PreprocessFailed: see `run_preprocess`.
    """
    return run_preprocess(plan_preprocess(videos, out, settings, process=process), progress=progress)


def run_preprocess(plan: PreprocessPlan, *, progress: ProgressCallback | None = None) -> PreprocessResult:
    """Make the pending shards, then dataset.json and the data card.

    Raises:
        DatasetError: another run holds the dataset or has changed its plan since.
        PreprocessFailed: no clip at all, more rejected videos than `run.error_budget` (both after everything is finished and
            recorded), a full disk, or shards that could not be made.
    """
    started = time.monotonic()
    storage = Storage.at(plan.dataset)
    try:
        with dataset_lock(storage):
            if read_sources(storage)[0] != plan.basis:
                raise DatasetError(f"the plan of {storage.url} was changed by another run in the meantime; run again")
            _clean(storage)
            _write_plan(storage, plan)
            try:
                made = _make_shards(storage, plan, progress) if plan.pending else {}
            finally:  # workers are gone by now, however it ended
                _clean(storage)
            records = read_records(storage)
            changed = write_info(storage, plan.settings.stored, plan.inputs, plan.plan.videos, records)
            if changed or made or not storage.exists(CARD_FILE):
                write_card(Dataset.open(storage.url))
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise PreprocessFailed(disk_full(storage)) from error
    result = _result(storage, plan, records, made, time.monotonic() - started)
    _check_result(result, plan.settings.run.error_budget)
    return result


def _make_shards(storage: Storage, plan: PreprocessPlan, progress: ProgressCallback | None) -> dict[int, ShardRecord]:
    executor: Executor[ShardJob, ShardRecord] = make_executor(
        plan.settings.run.executor, build_shard, workers=min(plan.settings.run.workers, len(plan.pending))
    )
    with executor:
        return Supervisor(storage, plan, executor, progress or (lambda _: None)).run()


def _write_plan(storage: Storage, plan: PreprocessPlan) -> None:
    content = plan.plan.sources_bytes()
    if hashlib.sha256(content).hexdigest() != plan.basis:
        storage.write(SOURCES_FILE, content)
    summary = plan.plan.to_json()
    if not storage.exists(PLAN_FILE) or storage.read(PLAN_FILE) != summary:
        storage.write(PLAN_FILE, summary)
    if not storage.exists(DATASET_FILE):
        write_info(storage, plan.settings.stored, plan.inputs, plan.plan.videos, {})


def _clean(storage: Storage) -> None:
    """Remove what killed workers left behind. Crashes that were counted stay until their shard is done."""
    storage.remove_temporaries([*FOLDERS, JOURNAL, "."])
    for name in storage.sizes(JOURNAL):
        if Path(name).stem.isdigit():
            storage.remove(name)
    if storage.local is not None:
        with contextlib.suppress(OSError):  # not there, or it still holds crashes
            (storage.local / JOURNAL).rmdir()


def _result(
    storage: Storage, plan: PreprocessPlan, records: Mapping[int, ShardRecord], made: Mapping[int, ShardRecord], seconds: float
) -> PreprocessResult:
    steps: dict[str, float] = defaultdict(float)
    for record in made.values():
        for step, value in record.seconds.items():
            if step != "total":
                steps[step] += value
    rejects: Counter[str] = Counter()
    for record in records.values():
        rejects.update(record.rejects)

    def total(name: str, of: Iterable[ShardRecord]) -> int:
        return sum(record.counts[name] for record in of)

    return PreprocessResult(
        dataset=storage.url,
        fingerprint=Dataset.open(storage.url).info["fingerprint"],
        videos=plan.plan.videos,
        empty_videos=total("empty_videos", records.values()),
        clips=total("clips", records.values()),
        pools=total("pools", records.values()),
        frames=total("frames", records.values()),
        rejects=dict(sorted(rejects.items())),
        made_shards=len(made),
        made_videos=total("videos", made.values()),
        made_clips=total("clips", made.values()),
        decoded_frames=total("decoded_frames", made.values()),
        seconds=seconds,
        steps=dict(steps),
    )


def _check_result(result: PreprocessResult, budget: float) -> None:
    reasons = ", ".join(f"{code} {count}" for code, count in sorted(result.rejects.items(), key=lambda item: -item[1])) or "none"
    if not result.clips:
        raise PreprocessFailed(
            f"none of {result.videos} videos gave a clip (rejects: {reasons}); every reason is in {result.dataset}/rejects", result
        )
    if result.empty_videos > budget * result.videos:
        raise PreprocessFailed(
            f"{result.empty_videos} of {result.videos} videos gave no clip, more than run.error_budget={budget:g} allows "
            f"(rejects: {reasons}). All clips that could be made are made; every reason is in {result.dataset}/rejects. "
            f"To go on with them, raise it: --set run.error_budget=1",
            result,
        )

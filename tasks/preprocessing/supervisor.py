"""Keeps workers fed, blames videos for dead workers, and reports where the work stands."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque

from tasks.data.dataset import FOLDERS
from tasks.data.records import ShardRecord, shard_name
from tasks.data.storage import Storage, is_disk_full
from tasks.preprocessing.build_shard import ShardJob
from tasks.preprocessing.executor import Died, Executor, Finished, Raised
from tasks.preprocessing.journal import AttemptJournal, Crash, CrashLog
from tasks.preprocessing.result import PreprocessFailed, Progress, ProgressCallback
from tasks.preprocessing.run_plan import PreprocessPlan
from tasks.settings import fingerprint_of

logger = logging.getLogger(__name__)

NAMELESS_DEATHS = 3
"""Times that a shard's worker may die outside of any video before the run gives up: then the machine is the reason."""

_POLL_SECONDS = 0.5
_REMOTE_POLL_SECONDS = 10.0


class Supervisor:
    """Feeds the executor, blames videos for dead workers, and reports where the work stands."""

    def __init__(
        self, storage: Storage, plan: PreprocessPlan, executor: Executor[ShardJob, ShardRecord], progress: ProgressCallback
    ) -> None:
        self.storage = storage
        self.plan = plan
        self.executor = executor
        self.progress = progress
        self.crashes = CrashLog(storage)
        self.made: dict[int, ShardRecord] = {}
        self.nameless: Counter[int] = Counter()
        self.failures: list[Raised[ShardJob]] = []
        self.started = time.monotonic()
        self.polled = -_REMOTE_POLL_SECONDS
        self.planned = {shard.shard: shard for shard in plan.plan.shards}

    def run(self) -> dict[int, ShardRecord]:
        """Make every pending shard.

        Raises:
            PreprocessFailed: a full disk, workers that die without a video to blame, or shards whose making raised.
        """
        # The largest first, so that no core is left alone with a long shard at the end.
        waiting = deque(sorted(self.plan.pending, key=lambda shard: (-self.planned[shard].bytes, shard)))
        while waiting or self.executor.outstanding:
            while waiting and self.executor.outstanding <= self.executor.workers:
                self.executor.submit(self.job(waiting.popleft()))
            for outcome in self.executor.wait(_POLL_SECONDS):
                if isinstance(outcome, Finished):
                    self.finished(outcome.job, outcome.result)
                elif isinstance(outcome, Died):
                    self.died(outcome)
                else:
                    self.raised(outcome)
            self.report()
        if self.failures:
            first = self.failures[0]
            raise PreprocessFailed(
                f"{len(self.failures)} of {len(self.plan.pending)} shards could not be made; shard {shard_name(first.job.shard)}: "
                f"{first.type}: {first.message}. The others are finished; run again to try these"
            )
        return self.made

    def job(self, shard: int) -> ShardJob:
        """The job of a shard, with its videos that are in quarantine by now."""
        videos = self.plan.plan.videos_of(shard)
        inputs = {**self.plan.inputs, "sources": self.planned[shard].inputs}
        quarantined = self.crashes.quarantined(fingerprint_of(inputs), [video.key for video in videos], self.plan.settings.run.max_crashes)
        return ShardJob(
            dataset=self.storage.url,
            shard=shard,
            videos=videos,
            settings=self.plan.settings.stored,
            inputs=inputs,
            quarantined=quarantined,
            process=self.plan.process,
        )

    def finished(self, job: ShardJob, record: ShardRecord) -> None:
        """A shard is committed: its record says what became of its videos."""
        self.made[record.shard] = record
        self.crashes.forget([video.key for video in job.videos])

    def died(self, death: Died[ShardJob]) -> None:
        """A worker died: blame the video that it had noted, and try the shard again."""
        job = death.job
        journal = AttemptJournal(self.storage, job.shard)
        attempt, fault = journal.read(), journal.fault()
        self.storage.remove_temporaries(FOLDERS, of=shard_name(job.shard))
        journal.clear()
        if death.blame and attempt is not None and attempt.key is not None:
            killer = death.signal if death.signal is not None else fault
            logger.warning("%s killed its worker (signal %s)", attempt.key, killer)
            self.crashes.add(Crash(key=attempt.key, fingerprint=job.fingerprint, signal=killer))
        else:
            self.nameless[job.shard] += 1
            if self.nameless[job.shard] >= NAMELESS_DEATHS:
                raise PreprocessFailed(
                    f"the worker of shard {shard_name(job.shard)} died {NAMELESS_DEATHS} times outside of any video "
                    f"(signal {death.signal}): is there enough memory for {self.plan.workers} workers? Set run.workers lower and run again"
                )
        self.executor.submit(self.job(job.shard))

    def raised(self, failure: Raised[ShardJob]) -> None:
        """A shard could not be made: stop on a full disk, else go on with the others."""
        logger.error("shard %s failed:\n%s", shard_name(failure.job.shard), failure.traceback)
        if failure.errno is not None and is_disk_full(OSError(failure.errno, failure.message)):
            raise PreprocessFailed(disk_full(self.storage))
        self.failures.append(failure)

    def report(self) -> None:
        """Tell the caller where the work stands, from records and the notes of running workers."""
        now = time.monotonic()
        if self.storage.local is None and now - self.polled < _REMOTE_POLL_SECONDS:
            return
        self.polled = now
        attempts = [AttemptJournal(self.storage, job.shard).read() for job in self.executor.running()]
        running = [attempt for attempt in attempts if attempt is not None]
        done = [record.counts for record in self.made.values()]
        self.progress(
            Progress(
                videos=sum(counts["videos"] for counts in done) + sum(attempt.videos for attempt in running),
                total_videos=self.plan.pending_videos,
                shards=len(self.made),
                total_shards=len(self.plan.pending),
                clips=sum(counts["clips"] for counts in done) + sum(attempt.clips for attempt in running),
                rejects=sum(counts["rejects"] for counts in done) + sum(attempt.rejects for attempt in running),
                frames=sum(counts["decoded_frames"] for counts in done) + sum(attempt.frames for attempt in running),
                seconds=now - self.started,
            )
        )


def disk_full(storage: Storage) -> str:
    """What to tell the user when the disk is full."""
    return f"no space left to write {storage.url}; free some and run again: finished shards are kept, and nothing half-written stays"

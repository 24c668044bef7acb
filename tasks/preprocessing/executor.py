"""Runs one picklable function over many jobs in other processes, a bounded number at a time.

`ray` gives one task per job; `local` gives child processes, no Ray. Both return results as they finish, and both
report the death of a worker and an exception as data, so that one place (`tasks.preprocessing.preprocess`) decides what is retried.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

logger = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Finished(Generic[Job, Result]):
    """The function returned."""

    job: Job
    result: Result


@dataclass(frozen=True)
class Died(Generic[Job]):
    """The worker died in the middle of the job."""

    job: Job
    signal: int | None
    """Where it is known: Ray does not tell."""
    blame: bool
    """Whether the job may be the reason; False where the machine went away."""


@dataclass(frozen=True)
class Raised(Generic[Job]):
    """The function raised."""

    job: Job
    type: str
    message: str
    errno: int | None
    traceback: str


Outcome = Finished[Job, Result] | Died[Job] | Raised[Job]


class Executor(ABC, Generic[Job, Result]):
    """A queue of jobs and the workers that empty it.

    Example:
        >>> with make_executor("local", build_shard, workers=2) as executor:
        ...     for job in jobs:
        ...         executor.submit(job)
        ...     while executor.outstanding:
        ...         for outcome in executor.wait(0.5):
        ...             ...
    """

    def __init__(self, function: Callable[[Job], Result], workers: int) -> None:
        self.function = function
        self.workers = workers or cores()
        self.queue: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        """Append a job; it starts when a worker is free."""
        self.queue.append(job)

    @property
    def outstanding(self) -> int:
        """Jobs that wait or run."""
        return len(self.queue) + len(self.running())

    @abstractmethod
    def running(self) -> list[Job]:
        """Jobs in flight."""

    @abstractmethod
    def wait(self, seconds: float) -> list[Outcome[Job, Result]]:
        """Keep workers busy and return what has finished, after at most `seconds` (workers' start-up aside)."""

    @abstractmethod
    def close(self) -> None:
        """Stop: jobs in flight are given up."""

    def __enter__(self) -> Executor[Job, Result]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def make_executor(kind: Literal["ray", "local"], function: Callable[[Job], Result], *, workers: int) -> Executor[Job, Result]:
    """The executor of this kind; nothing is started before the first job. `workers` 0 means one per core (of the cluster)."""
    return RayExecutor(function, workers) if kind == "ray" else LocalExecutor(function, workers)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _raised(job: Job, error: BaseException) -> Raised[Job]:
    text = "".join(traceback.format_exception(error))
    return Raised(job, type(error).__name__, str(error), error.errno if isinstance(error, OSError) else None, text)


class _Worker(Generic[Job]):
    """One child process and what it works on."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, function), daemon=True, name="talking-heads-worker")
        with _environment(OMP_NUM_THREADS="1", MALLOC_ARENA_MAX="2"):
            self.process.start()
        theirs.close()
        self.job: Job | None = None

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class LocalExecutor(Executor[Job, Result]):
    """Supervised child processes. A child serves many jobs; one that dies is replaced."""

    def __init__(self, function: Callable[[Job], Result], workers: int) -> None:
        super().__init__(function, workers)
        self._children: list[_Worker[Job]] = []

    def running(self) -> list[Job]:
        return [worker.job for worker in self._children if worker.job is not None]

    def wait(self, seconds: float) -> list[Outcome[Job, Result]]:
        self._feed()
        waiting: dict[Any, _Worker[Job]] = {worker.connection: worker for worker in self._children if worker.job is not None}
        if not waiting:
            return []
        return [self._outcome(waiting[ready]) for ready in wait(list(waiting), seconds) if ready in waiting]

    def _feed(self) -> None:
        idle = [worker for worker in self._children if worker.job is None]
        while self.queue and (idle or len(self._children) < self.workers):
            if not idle:
                idle.append(_Worker(self.function))
                self._children.append(idle[-1])
            worker = idle.pop()
            worker.job = self.queue.popleft()
            with contextlib.suppress(BrokenPipeError):  # it died while idle: `wait` sees the closed connection
                worker.connection.send(worker.job)

    def _outcome(self, worker: _Worker[Job]) -> Outcome[Job, Result]:
        job = worker.job
        assert job is not None
        try:
            outcome: Outcome[Job, Result] = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            code = worker.process.exitcode or 0
            self._children.remove(worker)
            worker.connection.close()
            return Died(job, -code if code < 0 else None, blame=True)
        worker.job = None
        return outcome

    def close(self) -> None:
        for worker in self._children:
            worker.stop()
        self._children.clear()


def _work(connection: Connection, function: Callable[[Any], Any]) -> None:
    """A child's life: take a job, do it, answer; end when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        try:
            outcome: Any = Finished(job, function(job))
        except Exception as error:  # noqa: BLE001 (it is data for the parent, which logs it)
            outcome = _raised(job, error)
        connection.send(outcome)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class RayExecutor(Executor[Job, Result]):
    """One Ray task per job, at most `workers` of them in Ray's hands.

    Uses the Ray that is running in this process, else the cluster of `RAY_ADDRESS`, else starts one on this machine
    (without dashboard and usage statistics) and ends it with the executor.
    """

    def __init__(self, function: Callable[[Job], Result], workers: int) -> None:
        super().__init__(function, workers)
        self._flying: dict[Any, Job] = {}
        self._task: Any = None
        self._started_ray = False
        self._all_cores = not workers

    def running(self) -> list[Job]:
        return list(self._flying.values())

    def wait(self, seconds: float) -> list[Outcome[Job, Result]]:
        import ray

        self._start()
        while self.queue and len(self._flying) < self.workers:
            job = self.queue.popleft()
            self._flying[self._task.remote(self.function, job)] = job
        if not self._flying:
            return []
        ready, _ = ray.wait(list(self._flying), num_returns=1, timeout=seconds)
        return [self._outcome(reference) for reference in ready]

    def _outcome(self, reference: Any) -> Outcome[Job, Result]:
        import ray
        from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

        job = self._flying.pop(reference)
        try:
            outcome: Outcome[Job, Result] = ray.get(reference)
        except RayTaskError as error:
            return _raised(job, error)
        except (WorkerCrashedError, OutOfMemoryError) as error:
            logger.warning("a Ray worker died: %s", str(error).splitlines()[0])
            return Died(job, None, blame=not isinstance(error, NodeDiedError))
        except RayError as error:
            logger.warning("Ray lost a task: %s", str(error).splitlines()[0])
            return Died(job, None, blame=False)
        return outcome

    def _start(self) -> None:
        import ray

        if self._task is not None:
            return
        if not ray.is_initialized():
            start_ray(self.workers)
            self._started_ray = True
        if self._all_cores:
            self.workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
        # Retries are decided by the caller, who keeps the journal.
        self._task = ray.remote(num_cpus=1, max_retries=0)(_guarded)

    def close(self) -> None:
        import ray

        if self._task is None:
            return
        if self._started_ray:
            stop_ray()
        else:
            for reference in self._flying:
                ray.cancel(reference, force=True)
        self._flying.clear()
        self._task = None


def _guarded(function: Callable[[Any], Any], job: Any) -> Any:
    """Runs in a Ray worker: an exception comes back as data, with its number."""
    try:
        return Finished(job, function(job))
    except Exception as error:  # noqa: BLE001 (it is data for the driver, which logs it)
        return _raised(job, error)


def start_ray(workers: int) -> None:
    """Connect to `RAY_ADDRESS`, or start Ray on this machine with `workers` cores. Workers import this checkout."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    with _environment(
        PYTHONPATH=os.pathsep.join(dict.fromkeys(paths)),
        OMP_NUM_THREADS="1",
        MALLOC_ARENA_MAX="2",  # every thread's own arena keeps freed frames: a third more memory after a hundred videos
        RAY_USAGE_STATS_ENABLED="0",
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    ):
        import ray

        local: dict[str, Any] = {"address": "local", "num_cpus": workers, "include_dashboard": False}
        if os.environ.get("RAY_ADDRESS"):
            local = {}
        with _own_signals():
            _in_a_lasting_thread(lambda: ray.init(log_to_driver=False, logging_level=logging.ERROR, **local))


def stop_ray() -> None:
    """Leave Ray; a local one ends."""
    import ray

    with _own_signals():
        ray.shutdown()


def _in_a_lasting_thread(start: Callable[[], object]) -> None:
    """Call `start` where no signal interrupts it: half-started, Ray would end the process with an abort or a segmentation fault.

    The thread lasts as long as the process, because Ray's processes are killed when the thread that started them ends.
    """
    started: Future[None] = Future()

    def run() -> None:
        try:
            start()
        except BaseException as error:  # noqa: BLE001 (it is raised where it is waited for)
            started.set_exception(error)
        else:
            started.set_result(None)
            threading.Event().wait()

    threading.Thread(target=run, name="ray", daemon=True).start()
    started.result()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's handlers: Ray replaces that of SIGTERM when it starts, and takes it away when it stops.

    A signal that comes meanwhile waits until Ray is whole again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []

    def remember(number: int, _: object) -> None:
        waiting.append(number)
        # Ray's own handler, which hands SIGTERM on to this one, has set an alarm that would abort the process after three seconds.
        signal.alarm(0)

    before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for came in waiting[:1]:
            signal.raise_signal(came)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables for processes that are started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

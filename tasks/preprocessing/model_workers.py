"""Workers that keep a network loaded: Ray actors, one per GPU or core, behind the same interface as `tasks.preprocessing.executor`.

A job's function loads its network on first use and keeps it in its process; Ray would give each plain task to any idle
process and start and end those as it likes, an actor stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

from tasks.preprocessing.executor import Died, Executor, Finished, Job, LocalExecutor, Outcome, Raised, Result, cores, start_ray, stop_ray

logger = logging.getLogger(__name__)


def make_model_executor(
    kind: Literal["ray", "local"], function: Callable[[Job], Result], *, workers: int, device: str
) -> Executor[Job, Result]:
    """Workers for `function`, which keeps a network per process.

    Args:
        kind: ray gives actors, local gives child processes.
        function: a function of a module.
        workers: how many; 0 means one per GPU where the device is one, one per core otherwise.
        device: auto, cpu or cuda.
    """
    if kind == "ray":
        return ActorExecutor(function, workers, device=device)
    # Child processes on one machine would share its first GPU: one is enough to fill it.
    return LocalExecutor(function, 1 if uses_gpu(device) else workers or cores())


def uses_gpu(device: str) -> bool:
    """Whether the device means a GPU on this machine."""
    import torch

    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


class _Actor:
    """One actor and what it works on."""

    def __init__(self, actor_type: Any) -> None:
        self.handle = actor_type.remote()
        self.job: Any = None


class ActorExecutor(Executor[Job, Result]):
    """Ray actors, each with at most one job in flight; one that dies is replaced, its job comes back as `Died`.

    Uses the Ray that runs in this process or at `RAY_ADDRESS`, else starts one and ends it with the executor.
    """

    def __init__(self, function: Callable[[Job], Result], workers: int, *, device: str) -> None:
        super().__init__(function, max(1, workers))
        self._asked = workers
        self._device = device
        self._actors: list[_Actor] = []
        self._flying: dict[Any, _Actor] = {}
        self._actor_type: Any = None
        self._started_ray = False

    def running(self) -> list[Job]:
        return [actor.job for actor in self._flying.values()]

    def wait(self, seconds: float) -> list[Outcome[Job, Result]]:
        import ray

        self._start()
        idle = [actor for actor in self._actors if actor not in self._flying.values()]
        while self.queue and (idle or len(self._actors) < self.workers):
            if not idle:
                idle.append(_Actor(self._actor_type))
                self._actors.append(idle[-1])
            actor = idle.pop()
            actor.job = self.queue.popleft()
            self._flying[actor.handle.run.remote(self.function, actor.job)] = actor
        if not self._flying:
            return []
        ready, _ = ray.wait(list(self._flying), num_returns=1, timeout=seconds)
        return [self._outcome(reference) for reference in ready]

    def _outcome(self, reference: Any) -> Outcome[Job, Result]:
        import ray
        from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

        actor = self._flying.pop(reference)
        job: Job = actor.job
        try:
            return Finished(job, ray.get(reference))
        except RayTaskError as error:
            cause = error.cause
            errno = cause.errno if isinstance(cause, OSError) else None
            return Raised(job, type(cause).__name__, str(cause), errno, str(error))
        except RayError as error:
            logger.warning("a Ray actor is gone: %s", str(error).splitlines()[0])
            self._actors.remove(actor)
            ray.kill(actor.handle)
            return Died(job, None, blame=isinstance(error, RayActorError) and not isinstance(error, ActorUnavailableError))

    def _start(self) -> None:
        import ray

        if self._actor_type is not None:
            return
        if not ray.is_initialized():
            start_ray(self._asked or cores())
            self._started_ray = True
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        on_gpu = gpus > 0 and self._device != "cpu"
        places = gpus if on_gpu else int(resources.get("CPU", 1))
        self.workers = max(1, min(self._asked or places, places))
        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": 1 if on_gpu else 0, "max_restarts": 0, "max_task_retries": 0}
        self._actor_type = ray.remote(**options)(_ModelActor)

    def close(self) -> None:
        import ray

        if self._actor_type is None:
            return
        for actor in self._actors:
            ray.kill(actor.handle)
        self._actors.clear()
        self._flying.clear()
        self._actor_type = None
        if self._started_ray:
            stop_ray()
            self._started_ray = False


class _ModelActor:
    """Lives in a Ray process; what its function loads stays."""

    def run(self, function: Callable[[Any], Any], job: Any) -> Any:
        """Do one job."""
        return function(job)

"""Training by Ray Train: the loop of `tasks.training.train` on 1..N workers, restarted when a worker dies.

`train` is what flows call. It starts the workers, passes on their progress, sends the run's record to MLflow beside
them, and turns SIGTERM and SIGINT into a clean stop. Workers and driver share the run folder:

    RUN/progress.json   the newest `TrainProgress`, replaced by worker 0
    RUN/stop            exists when the workers are to save and stop
    RUN/outcome.json    what it came to

Checkpoints are the loop's own (`tasks.training.checkpoints`): a restarted worker group goes on from the newest. With workers
on several machines the run folder must be on storage that all of them see.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from models.family import Family
from tasks.data.storage import Storage
from tasks.preprocessing.executor import cores, start_ray, stop_ray
from tasks.training.checkpoints import CheckpointError
from tasks.training.request import OUTCOME, ShowProgress, TrainingError, TrainOutcome, TrainProgress, TrainRequest
from tasks.training.stage_data import OpenData, open_data
from tasks.training.stopping import stop_on_signals
from tasks.training.tracking import RunLogger, TrackingSettings

logger = logging.getLogger(__name__)

PROGRESS = "progress.json"
STOP = "stop"
LOOK_EVERY = 0.3
"""Seconds between two looks of the driver at the run folder."""


def train(
    request: TrainRequest,
    progress: ShowProgress | None = None,
    *,
    tracking: TrackingSettings | None = None,
    stop: Callable[[], bool] = lambda: False,
    family: Family | None = None,
    data: OpenData = open_data,
) -> TrainOutcome:
    """Train one stage to its end, or until it is asked to stop; resumes what an earlier call of this folder began.

    Args:
        progress: called in this process, about three times a second at most.
        tracking: sends the record to the request's MLflow run (`run_id`) while it grows.
        stop: asked about three times a second, beside SIGTERM and SIGINT (which only a main thread can catch).
        family, data: as in `tasks.training.train.run_stage`; they travel to the workers.

    Raises:
        TrainingError, CheckpointError, FileNotFoundError, ValueError: as `run_stage`; not retried.
        TrainingError: workers died more often than `train.max_failures`, or the cluster is too small.
    """
    folder = request.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    request = request.model_copy(update={"folder": folder, "start_from": request.start_from and request.start_from.absolute()})
    before = TrainOutcome.read(folder)
    if before is not None and not before.covers(request.train):
        (folder / OUTCOME).unlink()
    for left in (folder / STOP, folder / PROGRESS):
        left.unlink(missing_ok=True)

    logging_to_mlflow = RunLogger(tracking, request.run_id, folder) if tracking is not None and request.run_id else None
    with stop_on_signals() as signalled, logging_to_mlflow or contextlib.nullcontext():
        if TrainOutcome.read(folder) is None:
            _run_workers(request, progress, lambda: signalled() or stop(), family, data)
    outcome = TrainOutcome.read(folder)
    if outcome is None:
        raise TrainingError(f"training in {folder} ended without an outcome; Ray's logs say why (/tmp/ray/session_latest/logs)")
    if outcome.status == "failed":
        raise TrainingError(outcome.error or "training failed")
    return outcome.model_copy(update={"unsent": 0 if logging_to_mlflow is None else logging_to_mlflow.unsent})


def _run_workers(
    request: TrainRequest, progress: ShowProgress | None, stop: Callable[[], bool], family: Family | None, data: OpenData
) -> None:
    """Run the workers in a thread and watch the run folder from here, where signals arrive."""
    import ray

    folder = request.folder
    with _ray(request):
        gpu = _wants_gpu(request, ray.cluster_resources())
        settings = request.train.model_copy(update={"device": "cuda" if gpu else "cpu"})
        config = {"request": request.model_copy(update={"train": settings}), "family": family, "data": data}
        ended: list[BaseException | None] = []

        def fit() -> None:
            try:
                _trainer(config, settings.workers, gpu, folder, settings.max_failures).fit()
            except (ray.exceptions.RayError, ray.train.TrainingFailedError, RuntimeError) as error:
                ended.append(error)

        thread = threading.Thread(target=fit, name="ray-train", daemon=True)
        thread.start()
        seen = ""
        while thread.is_alive():
            thread.join(LOOK_EVERY)
            if stop() and not (folder / STOP).exists():
                (folder / STOP).touch()
            seen = _pass_on(folder, seen, progress)
        _pass_on(folder, seen, progress)
        shutil.rmtree(folder / "ray", ignore_errors=True)
        if ended and (done := TrainOutcome.read(folder)) is None:
            raise TrainingError(
                f"training workers failed more than {settings.max_failures} times (train.max_failures): {_cause(ended[0])}"
            ) from ended[0]
        if ended and done is not None and done.status != "failed":
            logger.warning("Ray Train reported an error after the outcome was written: %s", _cause(ended[0]))


def _trainer(config: dict[str, Any], workers: int, gpu: bool, folder: Path, max_failures: int) -> Any:
    # Before Ray Train is imported: its controller looks after the workers this often, and a demo run lasts seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    return TorchTrainer(
        _worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": 1, **({"GPU": 1} if gpu else {})}),
        # A new name each time: Ray Train must not look for a state of its own, the checkpoints are ours.
        run_config=RunConfig(
            name=uuid.uuid4().hex[:8], storage_path=str(folder / "ray"), failure_config=FailureConfig(max_failures=max_failures)
        ),
    )


def _worker(config: dict[str, Any]) -> None:
    """One Ray Train worker: the plain loop with its rank. An error that a retry would repeat is an outcome, not a crash."""
    import ray.train

    from tasks.data.dataset import DatasetError
    from tasks.training.train import run_stage

    context = ray.train.get_context()
    request: TrainRequest = config["request"]
    folder = request.folder
    if (done := TrainOutcome.read(folder)) is not None and done.status == "failed":
        return
    storage = Storage.at(folder)
    last = [0.0]

    def write_progress(message: TrainProgress) -> None:
        if message.phase != "training" or time.monotonic() - last[0] > LOOK_EVERY:
            storage.write(PROGRESS, message.to_json().encode())
            last[0] = time.monotonic()

    try:
        run_stage(
            request,
            rank=context.get_world_rank(),
            world=context.get_world_size(),
            family=config["family"],
            data=config["data"],
            progress=write_progress,
            stop=(folder / STOP).exists,
        )
    except (TrainingError, CheckpointError, DatasetError, ValueError, FileNotFoundError) as error:
        _write_failure(request, error)
        if context.get_world_size() > 1:
            # The others may wait for this worker in a collective: failing tears the group down, and the retry returns at once.
            raise


def _write_failure(request: TrainRequest, error: Exception) -> None:
    TrainOutcome(
        status="failed",
        step=0,
        folder=request.folder,
        export=None,
        checkpoint=None,
        metrics={},
        run_id=request.run_id,
        # A loader's process hands on its traceback; the last line is what it says.
        error=_cause(error) if "Original Traceback" in str(error) else str(error),
    ).write()


@contextlib.contextmanager
def _ray(request: TrainRequest) -> Iterator[None]:
    """The Ray that runs already, or one of our own for as long as the training lasts."""
    import ray

    if ray.is_initialized():
        yield
        return
    start_ray(max(cores(), request.train.workers))
    try:
        yield
    finally:
        stop_ray()


def _wants_gpu(request: TrainRequest, resources: dict[str, float]) -> bool:
    """Whether workers get a GPU each.

    Raises:
        TrainingError: the cluster has too few cores or GPUs, so that Ray would wait for ever.
    """
    wanted, workers = request.train.device, request.train.workers
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    if cpus < workers:
        raise TrainingError(f"train.workers is {workers}, but Ray has {cpus} cores; set train.workers={max(cpus, 1)}, or grow the cluster")
    if wanted == "cpu" or (wanted == "auto" and gpus == 0):
        return False
    if gpus < workers:
        raise TrainingError(f"train.workers is {workers}, but Ray has {gpus} GPUs; lower train.workers, or set train.device=cpu")
    return True


def _pass_on(folder: Path, seen: str, progress: ShowProgress | None) -> str:
    """Hand the newest progress on, once."""
    path = folder / PROGRESS
    if progress is None or not path.is_file():
        return seen
    text = path.read_text()
    if text != seen:
        progress(TrainProgress.from_json(text))
    return text


def _cause(error: BaseException | None) -> str:
    """The worker's own words: the last line of the deepest error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)

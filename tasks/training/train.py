"""The one training loop, for every stage of every family: `run_stage` reads from top to bottom.

It knows no Ray and no MLflow. It writes into the run folder

    run.jsonl  checkpoints/  previews/  export/  outcome.json

and stops cleanly when it is asked to. Run it again with the same request and it goes on where it stopped, to the bit:
every step's randomness comes from (seed, step, rank), the loader's from its saved position.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.family import Batch, BuildContext, Family, FamilyConfig, TrainingModule
from models.views import Image
from models.weights import WeightsStore
from tasks.settings import TrainSettings
from tasks.training import checkpoints
from tasks.training.gradients import GradientAverager, largest, same_start
from tasks.training.meter import Meter
from tasks.training.output import Record, Silence, write_export
from tasks.training.preview import write_preview
from tasks.training.request import ShowProgress, TrainingError, TrainOutcome, TrainPlan, TrainRequest
from tasks.training.spool import read_curves
from tasks.training.stage_data import OpenData, StageData, Stream, open_data

BUILD_STREAM = 1 << 40
VALIDATION_STREAM = BUILD_STREAM + 1
"""Stand in for the step number in the seeds of the first weights and of validations, so that all validations draw the same."""


def run_stage(
    request: TrainRequest,
    *,
    rank: int = 0,
    world: int = 1,
    family: Family | None = None,
    data: OpenData = open_data,
    progress: ShowProgress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainOutcome:
    """Train one stage to its last step, or until `stop()` says so.

    Args:
        rank, world: this worker and how many there are; with several, torch.distributed is initialised.
        family: instead of the registered family of that name.
        data: instead of reading the request's dataset.
        progress: called on worker 0, at least at every point of the curves.
        stop: asked after every step (with several workers, at points of the curves); then a checkpoint is written.

    Returns:
        On every worker the same: finished with an export, or interrupted with a checkpoint.

    Raises:
        TrainingError: a loss is not finite, or the settings cannot work; the message has the way out.
        CheckpointError: the run folder belongs to another configuration, or the disk is full.
    """
    settings, folder, lead = request.train, request.folder, rank == 0
    done = TrainOutcome.read(folder)
    if done is not None and done.covers(settings):
        return done

    family = family or _registered(request.family)
    config = family.config_type.model_validate(request.config)
    device = choose_device(settings.device)
    _prepare_torch(request, device, world)

    # Data, then networks: W-tables need the videos' keys, and every worker builds the same weights from the same seed.
    source = data(request, family, rank, world)
    store = WeightsStore(root=request.weights.root, overrides=request.weights.overrides, offline=request.weights.offline)
    torch.manual_seed(step_seed(settings.seed, BUILD_STREAM, 0))
    context = BuildContext(device=device, weights=store, video_keys=source.video_keys, start_from=request.start_from, face=source.face)
    module = family.build(config, request.stage, context)
    if settings.channels_last and device.type == "cuda":
        for parameter in module.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    # Resume where an earlier call stopped, refusing another configuration's checkpoint.
    first = 0
    identity = request.identity(source.fingerprint)
    found = checkpoints.latest(folder, identity)
    if found is not None:
        saved = found.load(device)
        module.load_training_state(saved["training"])
        source.train.load_state_dict(saved["loaders"][rank])
        first = found.step
    if world > 1:
        same_start(module)
        module.sync_gradients = GradientAverager()

    meter = Meter(device=device, samples_per_step=settings.batch_size * world, world=world)
    record = Record(folder, settings.steps, progress) if lead else Silence()
    record.start(_plan(request, module, source, device, world, first), tags=store.tags())

    def save(step: int, loss: float | None) -> None:
        """Checkpoint after `step` steps; every worker takes part, worker 0 writes."""
        loaders = _gather(source.train.state_dict(), world)
        if lead:
            record.saving(step)
            _require_finite(module, step, folder)
            state = {"training": module.training_state(), "loaders": loaders}
            checkpoints.save(folder, step=step, state=state, identity=identity, loss=loss, code=request.code)

    began, step, stopping = time.perf_counter(), first, False
    held_out: list[Batch] = []
    module.train()
    with contextlib.closing(_batches(source.train)) as batches:
        while step < settings.steps and not stopping:
            waiting = time.perf_counter()
            batch = to_device(next(batches), device, settings.channels_last)
            meter.waited(time.perf_counter() - waiting)

            torch.manual_seed(step_seed(settings.seed, step, rank))
            with _autocast(settings.precision, device):
                losses = module.training_step(batch, step)
            step += 1
            meter.step(losses, step)
            record.step(step, meter)

            # What happens between steps, on a schedule that all workers share.
            last = step == settings.steps
            log, validate, preview, keep = (
                last or step % every == 0
                for every in (settings.log_every, settings.validate_every, settings.preview_every, settings.checkpoint_every)
            )
            due = log or validate or preview or keep
            if due or world == 1:
                # Reading the flag waits for the device: without a reason to wait, a GPU is left running ahead.
                stopping, bad = _agree(stop(), meter.first_bad_step() if due else None, world, device)
                if bad is not None:
                    raise TrainingError(_not_finite(f"a loss was not finite at step {bad}", folder))
            if log:
                record.metrics(meter.take(), step, meter)
            pause = time.perf_counter()
            loss = None
            # A checkpoint is validated, so that the best one is known; one that is written to stop soon is not.
            if (validate or preview or keep) and lead and source.held_out_samples:
                held_out = held_out or source.held_out(settings.validate_batches)
                shown = [to_device(batch, device, settings.channels_last) for batch in held_out]
                if validate or keep:
                    scores = _validation(module, shown, settings, device)
                    loss = scores.get("validation/loss")
                    record.metrics(scores, step, meter)
                if preview:
                    record.picture(_preview(module, shown[0], settings, device), step)
                    _preview_video(record, family, config, module, source, request, step, device)
            if keep or stopping:
                save(step, loss)
            meter.paused(time.perf_counter() - pause)

    finished = step >= settings.steps
    export = folder / "export" if finished else None
    if export is not None and lead:
        kept = checkpoints.best(folder) if settings.export == "best" else None
        if kept is not None and kept.step != step:
            module.load_training_state(kept.load(device)["training"])
        write_export(export, module, request, source, tags=store.tags(), step=step if kept is None else kept.step)
    outcome = TrainOutcome(
        status="finished" if finished else "interrupted",
        step=step,
        folder=folder,
        export=export,
        checkpoint=folder / "checkpoints" / f"step-{step:08d}",
        metrics={name: points[-1][1] for name, points in read_curves(folder).items()},
        weights=store.tags(),
        samples_per_second=meter.samples_per_second,
        data_wait_share=meter.data_wait_share,
        seconds=time.perf_counter() - began,
        dataset_fingerprint=source.fingerprint,
        run_id=request.run_id,
        exported=settings.export,
    )
    record.finish(outcome)
    return outcome


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for torch's generator from three numbers, well spread: near steps get unrelated streams."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]) >> 1


def choose_device(wanted: str) -> torch.device:
    """The device of a setting.

    Raises:
        TrainingError: cuda is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TrainingError("train.device is cuda, but this worker sees no GPU; set train.device to auto or cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def to_device(batch: Batch, device: torch.device, channels_last: bool) -> dict[str, Tensor]:
    """The batch on `device`; on a GPU through pinned memory and, where wanted, with images (4 axes) channels-last."""
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in batch.items()}
    moved = {name: (t if t.is_cuda else t.pin_memory()).to(device, non_blocking=True) for name, t in batch.items()}
    if not channels_last:
        return moved
    return {name: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for name, t in moved.items()}


def _registered(name: str) -> Family:
    from models.registry import family

    return family(name)


def _prepare_torch(request: TrainRequest, device: torch.device, world: int) -> None:
    if request.train.precision == "fp16" and device.type == "cuda":
        raise TrainingError("train.precision fp16 needs loss scaling, which the families' steps do not do; use bf16 or fp32")
    if device.type == "cpu":
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(request.train.threads or max(1, cores // world))
        return
    # The same step must give the same bits after a resume: no kernel that adds in a different order every time.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)


def _autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if precision == "fp32" or device.type != "cuda":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _plan(request: TrainRequest, module: TrainingModule, source: StageData, device: torch.device, world: int, first: int) -> TrainPlan:
    settings = request.train
    trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return TrainPlan(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        workers=world,
        first_step=first,
        steps=settings.steps,
        batch_size=settings.batch_size * world,
        samples=source.samples,
        held_out=source.held_out_samples,
        epochs=(settings.steps - first) * settings.batch_size * world / max(source.samples, 1),
        parameters={name: count for name, child in module.named_children() if (count := sum(p.numel() for p in child.parameters()))},
        trainable=trainable,
        # Adam keeps two more values per trained parameter.
        checkpoint_bytes=4 * (sum(p.numel() for p in module.parameters()) + 2 * trainable),
    )


def _batches(stream: Stream) -> Generator[Batch]:
    """The stream as something that can be closed, which ends its threads and processes."""
    yield from stream


def _gather(state: dict[str, Any], world: int) -> list[dict[str, Any]]:
    """Every worker's loader position, on every worker."""
    if world == 1:
        return [state]
    states: list[Any] = [None] * world
    torch.distributed.all_gather_object(states, state)
    return states


def _agree(stop: bool, bad: int | None, world: int, device: torch.device) -> tuple[bool, int | None]:
    """One worker's wish to stop, or its broken loss, is everybody's: nobody is left waiting for the others."""
    if world > 1:
        stopped, worst = largest([int(stop), -1 if bad is None else bad], device)
        return bool(stopped), None if worst < 0 else worst
    return stop, bad


def _validation(
    module: TrainingModule, batches: list[dict[str, Tensor]], settings: TrainSettings, device: torch.device
) -> dict[str, float]:
    """Mean scores over the held-out batches; draws the same random numbers every time."""
    sums: dict[str, float] = {}
    with _looking(module, settings, device):
        for batch in batches:
            for name, value in module.validation_step(batch).items():
                sums[name] = sums.get(name, 0.0) + float(value.float().mean())
    return {f"validation/{name}": total / len(batches) for name, total in sums.items()}


def _preview(module: TrainingModule, batch: dict[str, Tensor], settings: TrainSettings, device: torch.device) -> Image:
    with _looking(module, settings, device):
        return module.preview(batch)


def _preview_video(
    record: Record,
    family: Family,
    config: FamilyConfig,
    module: TrainingModule,
    source: StageData,
    request: TrainRequest,
    step: int,
    device: torch.device,
) -> None:
    """A held-out clip as the networks are now, where the stage makes frames; in full precision, as the exported model works."""
    settings = request.train
    if not settings.preview_frames or source.held_out_clip is None:
        return
    with _looking(module, settings, device, precision="fp32"):
        synthesizer = module.synthesizer()
        if synthesizer is not None:
            clip = source.held_out_clip(settings.preview_frames)
            record.video(
                step,
                lambda path: write_preview(
                    path, family=family, config=config, clip=clip, synthesizer=synthesizer, step=step, run_id=request.run_id
                ),
            )


@contextlib.contextmanager
def _looking(module: TrainingModule, settings: TrainSettings, device: torch.device, precision: str | None = None) -> Iterator[None]:
    """Evaluation mode without gradients, with random numbers that are the same at every validation."""
    torch.manual_seed(step_seed(settings.seed, VALIDATION_STREAM, 0))
    module.eval()
    try:
        with torch.no_grad(), _autocast(precision or settings.precision, device):
            yield
    finally:
        module.train()


def _require_finite(module: TrainingModule, step: int, folder: Path) -> None:
    """A broken update can hide behind a finite loss; it must not become the newest checkpoint."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TrainingError(_not_finite(f"{name} is not finite after step {step}", folder))


def _not_finite(what: str, folder: Path) -> str:
    found = checkpoints.checkpoints(folder)
    back = f"the last good checkpoint is {found[-1].folder} (step {found[-1].step})" if found else "there is no checkpoint yet"
    return f"training diverged: {what}; {back}. Lower the learning rate, or use train.precision fp32, in a new run folder"

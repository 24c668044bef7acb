"""Training by Ray Train: workers share the work exactly, dead ones are replaced, and a stop is clean."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.family import Batch, BuildContext, TrainingModule
from tasks.preprocessing.executor import start_ray
from tasks.settings import TrainSettings
from tasks.training import checkpoints
from tasks.training.ray_train import train
from tasks.training.request import TrainingError, TrainOutcome, TrainProgress, TrainRequest
from tasks.training.spool import read_curves
from tasks.training.train import run_stage
from tests.tasks import line_family
from tests.tasks.line_family import LineFamily, LineModule, line_data

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    import sys

    import ray
    from ray import cloudpickle

    # Workers know this checkout, not the tests: what is defined here travels with the request.
    for module in (line_family, sys.modules[__name__]):
        cloudpickle.register_pickle_by_value(module)
    started = not ray.is_initialized()
    if started:
        start_ray(2)
    yield
    if started:
        ray.shutdown()


def request_of(folder: Path, *, config: dict[str, Any] | None = None, **train: Any) -> TrainRequest:
    settings = {"steps": 8, "batch_size": 4, "log_every": 2, "validate_every": 4, "checkpoint_every": 3, "device": "cpu", "threads": 1}
    return TrainRequest(
        family="line", stage="fit", config=config or {}, train=TrainSettings(**{**settings, **train}), dataset="none", folder=folder
    )


def weights(outcome: TrainOutcome) -> dict[str, Tensor]:
    assert outcome.export is not None
    return torch.load(outcome.export / "line.pt")


def test_two_workers_learn_what_one_learns_from_twice_the_batch(tmp_path: Path) -> None:
    seen: list[TrainProgress] = []
    quiet = {"noise": 0.0}
    two = train(request_of(tmp_path / "two", config=quiet, workers=2, batch_size=4), seen.append, family=LineFamily(), data=line_data)
    one = run_stage(request_of(tmp_path / "one", config=quiet, workers=1, batch_size=8), family=LineFamily(), data=line_data)
    assert (two.status, two.step, one.step) == ("finished", 8, 8)
    for name, value in weights(one).items():
        assert torch.allclose(value, weights(two)[name], atol=1e-6), name
    for (step, a), (other, b) in zip(read_curves(two.folder)["train/loss"], read_curves(one.folder)["train/loss"], strict=True):
        assert step == other
        assert a == pytest.approx(b, rel=1e-5)
    assert seen[0].plan is not None
    assert (seen[0].plan.workers, seen[0].plan.batch_size) == (2, 8)
    assert (seen[-1].phase, seen[-1].step) == ("done", 8)
    assert not (tmp_path / "two" / "ray").exists()


class FatalModule(LineModule):
    """Kills its process once, in the middle of step 5."""

    flag: Path

    def training_step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        if step == 5 and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, step)


class FatalFamily(LineFamily):
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def build(self, config: Any, stage: str, context: BuildContext) -> TrainingModule:
        module = FatalModule(config)
        module.flag = self.flag
        return module


def test_a_killed_worker_is_replaced_and_the_result_is_the_same(tmp_path: Path) -> None:
    killed = train(request_of(tmp_path / "killed"), family=FatalFamily(tmp_path / "flag"), data=line_data)
    assert (tmp_path / "flag").exists()
    assert (killed.status, killed.step) == ("finished", 8)
    straight = run_stage(request_of(tmp_path / "straight"), family=LineFamily(), data=line_data)
    assert all(torch.equal(value, weights(killed)[name]) for name, value in weights(straight).items())
    assert [step for step, _ in read_curves(killed.folder)["train/loss"]] == [2, 4, 6, 8]


def test_a_signal_to_the_driver_saves_and_stops(tmp_path: Path) -> None:
    sent: list[int] = []

    def interrupt(progress: TrainProgress) -> None:
        if progress.step > 0 and not sent:
            sent.append(progress.step)
            os.kill(os.getpid(), signal.SIGTERM)

    request = request_of(tmp_path, steps=1_000_000, validate_every=10_000, preview_every=10**6, checkpoint_every=10**6, log_every=100)
    outcome = train(request, interrupt, family=LineFamily(), data=line_data)
    assert outcome.status == "interrupted"
    assert 0 < sent[0] <= outcome.step < 1_000_000
    assert checkpoints.checkpoints(tmp_path)[-1].step == outcome.step


def test_a_broken_loss_is_not_retried_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not finite at step 5"):
        train(request_of(tmp_path, config={"nan_at": 4}, workers=2), family=LineFamily(), data=line_data)
    with pytest.raises(TrainingError, match=r"train\.workers is 64, but Ray has \d+ cores"):
        train(request_of(tmp_path / "other", workers=64), family=LineFamily(), data=line_data)

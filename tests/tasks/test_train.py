"""The training loop: exact resume, clean stops, broken losses, refused checkpoints."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.settings import TrainSettings
from tasks.training import checkpoints
from tasks.training.checkpoints import CheckpointError
from tasks.training.curves import draw_curves
from tasks.training.request import TrainingError, TrainOutcome, TrainPlan, TrainProgress, TrainRequest
from tasks.training.spool import read_curves, read_lines
from tasks.training.stopping import stop_on_signals
from tasks.training.train import run_stage, step_seed
from tests.tasks.line_family import LineFamily, line_data

SETTINGS: dict[str, Any] = {
    "steps": 10,
    "batch_size": 4,
    "log_every": 2,
    "validate_every": 4,
    "validate_batches": 2,
    "preview_every": 5,
    "checkpoint_every": 3,
    "device": "cpu",
    "threads": 1,
}


def request_of(folder: Path, *, config: dict[str, Any] | None = None, **train: Any) -> TrainRequest:
    return TrainRequest(
        family="line", stage="fit", config=config or {}, train=TrainSettings(**{**SETTINGS, **train}), dataset="none", folder=folder
    )


def fit(request: TrainRequest, **options: Any) -> TrainOutcome:
    return run_stage(request, family=LineFamily(), data=line_data, **options)


def final_state(folder: Path) -> dict[str, Any]:
    return checkpoints.checkpoints(folder)[-1].load()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def stop_after(count: int) -> Callable[[], bool]:
    asked = iter(range(10_000))
    return lambda: next(asked) + 1 >= count


@pytest.mark.parametrize("stop", [1, 5, 9])
def test_a_stopped_and_resumed_run_ends_in_the_same_bits(tmp_path: Path, stop: int) -> None:
    straight = fit(request_of(tmp_path / "straight"))
    first = fit(request_of(tmp_path / "parts"), stop=stop_after(stop))
    assert (first.status, first.step, first.export) == ("interrupted", stop, None)
    second = fit(request_of(tmp_path / "parts"))
    assert (second.status, second.step) == ("finished", 10)
    one, two = final_state(tmp_path / "straight"), final_state(tmp_path / "parts")
    assert one["training"]["optimizers"]["line"]["state"], "the optimiser's moments are part of the state"
    assert one["loaders"] == [{"position": 10}]
    assert same(one, two)
    assert same(torch.load(straight.export / "line.pt"), torch.load(second.export / "line.pt"))
    assert read_curves(tmp_path / "straight")["validation/loss"] == read_curves(tmp_path / "parts")["validation/loss"]


def test_a_killed_run_repeats_the_lost_steps_without_a_second_point(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def die_after_eight(progress: TrainProgress) -> None:
        if progress.phase == "training" and progress.step == 8:
            raise Killed

    fit(request_of(tmp_path / "straight"))
    with pytest.raises(Killed):
        fit(request_of(tmp_path / "killed"), progress=die_after_eight)
    assert checkpoints.checkpoints(tmp_path / "killed")[-1].step == 6
    with (tmp_path / "killed" / "run.jsonl").open("ab") as file:
        file.write(b'{"kind":"metr')
    fit(request_of(tmp_path / "killed"))
    assert same(final_state(tmp_path / "straight"), final_state(tmp_path / "killed"))
    curves = read_curves(tmp_path / "killed")
    for name, points in read_curves(tmp_path / "straight").items():
        assert [step for step, _ in curves[name]] == [step for step, _ in points]
        if name.startswith("validation/"):
            assert curves[name] == points


def test_the_noise_of_a_step_matters(tmp_path: Path) -> None:
    """Guards the two tests above: with another seed the bits differ, so equality is not by accident."""
    fit(request_of(tmp_path / "a"))
    fit(request_of(tmp_path / "b", seed=1))
    assert not same(final_state(tmp_path / "a")["training"], final_state(tmp_path / "b")["training"])


def test_outputs_and_progress(tmp_path: Path) -> None:
    seen: list[TrainProgress] = []
    outcome = fit(request_of(tmp_path), progress=seen.append)
    assert isinstance(seen[0].plan, TrainPlan)
    assert (seen[0].plan.steps, seen[0].plan.samples, seen[0].plan.parameters) == (10, 100, {"line": 4, "table": 6})
    assert (seen[-1].phase, seen[-1].step) == ("done", 10)
    assert TrainProgress.from_json(seen[0].to_json()) == seen[0]
    assert TrainOutcome.read(tmp_path) == outcome
    curves = read_curves(tmp_path)
    assert [step for step, _ in curves["train/loss"]] == [2, 4, 6, 8, 10]
    assert [step for step, _ in curves["validation/loss"]] == [3, 4, 6, 8, 9, 10], "on schedule, and at every checkpoint"
    assert outcome.metrics["validation/loss"] == curves["validation/loss"][-1][1]
    assert 0 <= outcome.data_wait_share <= 1
    assert outcome.samples_per_second > 0
    artifacts = [line.content["file"] for line in read_lines(tmp_path) if line.kind == "artifact"]
    assert artifacts == ["previews/step-00000005.png", "previews/step-00000010.png", "curves.png"]
    assert all((tmp_path / name).stat().st_size > 100 for name in artifacts)
    record = json.loads((outcome.export / "run.json").read_text())
    assert (record["family"], record["step"], record["dataset"]["fingerprint"]) == ("line", 10, "f" * 64)


def test_a_finished_run_does_nothing_and_a_longer_one_goes_on(tmp_path: Path) -> None:
    first = fit(request_of(tmp_path / "run"))
    before = (tmp_path / "run" / "run.jsonl").read_bytes()
    assert fit(request_of(tmp_path / "run")) == first
    assert (tmp_path / "run" / "run.jsonl").read_bytes() == before
    longer = fit(request_of(tmp_path / "run", steps=14))
    assert (longer.status, longer.step) == ("finished", 14)
    fit(request_of(tmp_path / "straight", steps=14))
    assert same(final_state(tmp_path / "run"), final_state(tmp_path / "straight"))


def test_another_configuration_is_refused_by_name(tmp_path: Path) -> None:
    fit(request_of(tmp_path), stop=stop_after(3))
    with pytest.raises(CheckpointError, match=r"config\.rate .*0\.5 here.*train\.batch_size \(4 there, 8 here\)"):
        fit(request_of(tmp_path, config={"rate": 0.5}, batch_size=8))
    assert fit(request_of(tmp_path, log_every=1, threads=2)).status == "finished"


def test_a_broken_loss_stops_with_its_step_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"at step 8.*step-00000006 \(step 6\)"):
        fit(request_of(tmp_path, config={"nan_at": 7}))
    assert [checkpoint.step for checkpoint in checkpoints.checkpoints(tmp_path)] == [3, 6]


def test_a_broken_weight_never_becomes_a_checkpoint(tmp_path: Path) -> None:
    def poison(request: TrainRequest, family: Any, rank: int, world: int) -> Any:
        source = line_data(request, family, rank, world)
        inner = source.train.sample

        def sample(index: int) -> Any:
            made = inner(index)
            return {**made, "x": made["x"] * 1e38} if index == 11 else made

        source.train.sample = sample
        return source

    with pytest.raises(TrainingError, match="not finite"):
        run_stage(request_of(tmp_path, steps=3, checkpoint_every=3), family=LineFamily(), data=poison)
    assert not checkpoints.checkpoints(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    sent: list[int] = []

    def kill(progress: TrainProgress) -> None:
        if progress.phase == "training" and progress.step == 4 and not sent:
            sent.append(progress.step)
            os.kill(os.getpid(), number)

    with stop_on_signals() as stop:
        outcome = fit(request_of(tmp_path), progress=kill, stop=stop)
    assert (outcome.status, outcome.step) == ("interrupted", 5), "the step that was running is finished"
    assert checkpoints.checkpoints(tmp_path)[-1].step == 5
    assert signal.getsignal(number) is before


def test_kept_are_the_newest_and_the_best(tmp_path: Path) -> None:
    for step, loss in enumerate([0.9, 0.2, 0.5, 0.4, 0.8], start=1):
        checkpoints.save(tmp_path, step=step, state={"x": torch.ones(2)}, identity={}, loss=loss, code="c", keep=2)
    assert [checkpoint.step for checkpoint in checkpoints.checkpoints(tmp_path)] == [2, 4, 5]


def test_the_loss_of_a_checkpoint_is_that_of_its_own_networks(tmp_path: Path) -> None:
    fit(request_of(tmp_path, steps=7), stop=stop_after(5))
    assert checkpoints.checkpoints(tmp_path)[-1].loss is None, "written to stop soon, not validated"
    fit(request_of(tmp_path, steps=7))
    curve = dict(read_curves(tmp_path)["validation/loss"])
    found = {checkpoint.step: checkpoint.loss for checkpoint in checkpoints.checkpoints(tmp_path)}
    assert found[7] == curve[7]
    assert all(loss == curve[step] for step, loss in found.items() if loss is not None)
    best = checkpoints.best(tmp_path)
    assert best is not None
    assert best.loss == min(curve[step] for step in (3, 6, 7))


def test_the_best_networks_can_be_exported_also_afterwards(tmp_path: Path) -> None:
    """Steps this large make the loss grow again, so that last and best are not the same."""
    wild = {"rate": 3.0, "noise": 0.0}
    last = fit(request_of(tmp_path, config=wild))
    kept = checkpoints.best(tmp_path)
    assert kept is not None
    assert kept.step < 10
    assert json.loads((last.export / "run.json").read_text())["step"] == 10
    for _ in range(2):  # a finished run exports anew where it is asked for the other networks, and then nothing is left to do
        best = fit(request_of(tmp_path, config=wild, export="best"))
        record = json.loads((best.export / "run.json").read_text())
        assert (best.step, record["step"], record["train"]["export"]) == (10, kept.step, "best")
        assert same(dict(torch.load(best.export / "line.pt")), dict(kept.load()["training"]["module"]))
    assert checkpoints.checkpoints(tmp_path)[-1].step == 10


def test_half_written_and_damaged_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save(tmp_path, step=1, state={"x": torch.ones(2)}, identity={}, loss=None, code="c")
    half = tmp_path / "checkpoints" / ".step-00000002.tmp"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half")
    torn = tmp_path / "checkpoints" / "step-00000003"
    torn.mkdir()
    (torn / "state.pt").write_bytes(b"half")
    assert [checkpoint.step for checkpoint in checkpoints.checkpoints(tmp_path)] == [1]
    (tmp_path / "checkpoints" / "step-00000001" / "state.pt").write_bytes(
        b"x" * (tmp_path / "checkpoints" / "step-00000001" / "state.pt").stat().st_size
    )
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.latest(tmp_path, {}).load()
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(CheckpointError, match="no room for the checkpoint of step 4"):
        checkpoints.save(tmp_path, step=4, state={"x": torch.ones(2)}, identity={}, loss=None, code="c")
    assert not half.exists()


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(state: Any, file: Any) -> None:
        file.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoints.save(tmp_path, step=1, state={}, identity={}, loss=None, code="c")
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_curves_of_an_empty_run(tmp_path: Path) -> None:
    assert draw_curves(tmp_path) is None


@given(st.tuples(*[st.integers(0, 10**9)] * 3), st.tuples(*[st.integers(0, 10**9)] * 3))
def test_different_steps_get_different_seeds(a: tuple[int, int, int], b: tuple[int, int, int]) -> None:
    assert (step_seed(*a) == step_seed(*b)) == (a == b)
    assert 0 <= step_seed(*a) < 2**63

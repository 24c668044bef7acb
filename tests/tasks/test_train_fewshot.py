"""The loop with the first real family, reading a real dataset through the real loader."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tasks.settings import FilterSettings, SplitSettings, TrainSettings
from tasks.training import checkpoints
from tasks.training.request import TrainRequest, WeightsSettings
from tasks.training.train import run_stage
from tests.models.fewshot_material import TINY
from tests.tasks.small_dataset import small_dataset
from tests.tasks.test_train import same, stop_after


def request_of(folder: Path, dataset: Path, **train: object) -> TrainRequest:
    settings = {"steps": 6, "batch_size": 2, "log_every": 2, "validate_every": 3, "validate_batches": 1, "preview_every": 3}
    return TrainRequest(
        family="fewshot",
        stage="meta",
        config=TINY,
        train=TrainSettings.model_validate({**settings, "checkpoint_every": 4, "device": "cpu", "threads": 1, **train}),
        dataset=str(dataset),
        filters=FilterSettings(min_face_share=0.0),
        split=SplitSettings(by="video", holdout=0.3),
        folder=folder,
        weights=WeightsSettings(root=folder / "weights", offline=True),
    )


@pytest.mark.slow
@pytest.mark.parametrize("loader_workers", [0, 1])
def test_a_stopped_and_resumed_run_ends_in_the_same_bits(tmp_path: Path, loader_workers: int) -> None:
    small_dataset(tmp_path / "data", shards=1, videos=5)
    straight = run_stage(request_of(tmp_path / "straight", tmp_path / "data"))
    first = run_stage(request_of(tmp_path / "parts", tmp_path / "data", loader_workers=loader_workers), stop=stop_after(3))
    assert (first.status, first.step) == ("interrupted", 3)
    second = run_stage(request_of(tmp_path / "parts", tmp_path / "data", loader_workers=loader_workers))
    assert (straight.status, second.status, second.step) == ("finished", "finished", 6)
    one = checkpoints.checkpoints(straight.folder)[-1].load()
    two = checkpoints.checkpoints(second.folder)[-1].load()
    assert any(name.startswith("average_generator") for name in one["training"]["module"]), "the averaged networks are compared too"
    assert same(one, two)
    assert second.weights["weights.vgg19.pretrained"] == "false"
    assert (straight.folder / "previews" / "step-00000006.png").stat().st_size > 1000
    exported = {file.name for file in straight.export.iterdir()}
    assert {"run.json", "config.json"} < exported
    for file in straight.export.glob("*.safetensors"):
        assert file.read_bytes() == (second.export / file.name).read_bytes()
    assert torch.isfinite(torch.tensor(list(straight.metrics.values()))).all()

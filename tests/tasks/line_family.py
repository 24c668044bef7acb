"""A family of one line: what the generic training code needs, and nothing more. Used by several tests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.family import Batch, BuildContext, Driver, DriverKind, Face, Family, FamilyConfig, Stage, Synthesizer, TrainingModule
from models.views import Image
from tasks.training.request import TrainRequest
from tasks.training.stage_data import StageData

WIDTH = 3


class LineConfig(FamilyConfig):
    rate: float = 0.05
    noise: float = 0.1
    nan_at: int = -1


class LineModule(TrainingModule):
    """y = w x + b + table[i], with noise from torch's generator, momentum and an exponential mean of the weights."""

    def __init__(self, config: LineConfig) -> None:
        super().__init__()
        self.config = config
        self.line = nn.Linear(WIDTH, 1)
        self.table = nn.Embedding(6, 1, sparse=True)
        self.register_buffer("mean", self.line.weight.detach().clone())
        self._optimizers = {
            "line": torch.optim.Adam(self.line.parameters(), lr=config.rate),
            "table": torch.optim.SparseAdam(self.table.parameters(), lr=config.rate),
        }

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        return self._optimizers

    def loss(self, batch: Batch) -> Tensor:
        return ((self.line(batch["x"]) + self.table(batch["row"]) - batch["y"]) ** 2).mean()

    def training_step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        noise = self.config.noise * torch.randn(batch["x"].shape)
        for optimizer in self._optimizers.values():
            optimizer.zero_grad()
        loss = self.loss({**batch, "x": batch["x"] + noise})
        if step == self.config.nan_at:
            loss = loss * float("nan")
        loss.backward()
        self.sync_gradients(self.parameters())
        for optimizer in self._optimizers.values():
            optimizer.step()
        self.mean.lerp_(self.line.weight.detach(), 0.1)
        return {"loss": loss.detach()}

    def validation_step(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": self.loss(batch).detach()}

    def preview(self, batch: Batch) -> Image:
        return np.full((16, 32, 3), 120, np.uint8)

    def export(self, folder: Path) -> None:
        torch.save(self.state_dict(), folder / "line.pt")
        (folder / "config.json").write_text(self.config.model_dump_json())


class LineSynthesizer(Synthesizer):
    size = 16

    def synthesize(self, face: Face, driver: Driver, *, seed: int = 0) -> Iterator[Image]:
        yield np.zeros((16, 16, 3), np.uint8)

    def baseline(self, face: Face, driver: Driver) -> Iterator[Image]:
        yield np.zeros((16, 16, 3), np.uint8)


class LineFamily(Family):
    name = "line"
    title = "A line"
    paper = "none"
    driver = DriverKind.LANDMARKS
    config_type = LineConfig
    stages = (Stage(name="fit", view="keyframes", description="fit the line"),)

    def networks(self, config: Any, stage: str) -> Mapping[str, nn.Module]:
        return {"line": nn.Linear(WIDTH, 1)}

    def examples(self, config: Any, stage: str) -> Any:
        return None

    def build(self, config: Any, stage: str, context: BuildContext) -> TrainingModule:
        return LineModule(config).to(context.device)

    def load(self, checkpoint: Path, device: torch.device) -> Synthesizer:
        json.loads((checkpoint / "config.json").read_text())
        return LineSynthesizer()

    def evaluation_case(self, config: Any, clip: Any) -> Any:
        return None


class LineStream:
    """Batch i of rank r holds samples [(i * world + r) * size, ...) of one endless sequence."""

    def __init__(self, size: int, rank: int, world: int) -> None:
        self.size, self.rank, self.world, self.position = size, rank, world, 0

    def sample(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([7, index])
        x = rng.normal(size=WIDTH).astype(np.float32)
        row = int(rng.integers(6))
        return {
            "x": torch.from_numpy(x),
            "row": torch.tensor(row),
            "y": torch.tensor([float(x @ np.array([1.0, -2.0, 0.5])) + 0.3 + row], dtype=torch.float32),
        }

    def __iter__(self) -> Iterator[Batch]:
        while True:
            start = (self.position * self.world + self.rank) * self.size
            self.position += 1
            samples = [self.sample(start + offset) for offset in range(self.size)]
            yield {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


def line_data(request: TrainRequest, family: Family, rank: int, world: int) -> StageData:
    size = request.train.batch_size

    def held_out(count: int) -> list[Batch]:
        batches = iter(LineStream(size, 10_000, 10_001))
        return [next(batches) for _ in range(count)]

    return StageData(
        train=LineStream(size, rank, world),
        held_out=held_out,
        video_keys=("a_1", "b_1"),
        samples=100,
        held_out_samples=10,
        fingerprint="f" * 64,
    )

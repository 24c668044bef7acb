"""One of two processes that average gradients; see test_gradients.py."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tasks.training.gradients import GradientAverager, average_scalars, largest, same_start


class Net(nn.Module):
    """A dense path, a sparse and a dense table, and a part that only some batches use."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(9, 4, sparse=True)
        self.dense_table = nn.Embedding(9, 4)
        self.out = nn.Linear(4, 2)
        self.sometimes = nn.Linear(4, 2)
        self.never = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, rows: Tensor, use: Tensor) -> Tensor:
        x = self.table(rows) + self.dense_table(rows)
        y = self.out(x) ** 2 * self.scale.sum().float()
        if bool(use.any()):
            y = y + self.sometimes(x) * use[:, None]
        return y.sum(1).mean()


def samples(rank: int | None) -> tuple[Tensor, Tensor]:
    """Rank 0's, rank 1's, or all; only rank 1 has samples that use `sometimes`."""
    rows, use = torch.tensor([0, 3, 3, 5, 3, 8, 8, 1]), torch.tensor([0.0, 0, 0, 0, 0, 1, 1, 0])
    return (rows, use) if rank is None else (rows[4 * rank : 4 * rank + 4], use[4 * rank : 4 * rank + 4])


def run(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    net = Net(seed=rank)
    same_start(net)
    net(*samples(rank)).backward()
    GradientAverager()(net.parameters())
    shared = average_scalars({"a": float(rank), "b": 4.0}, torch.device("cpu")), largest([rank, -rank], torch.device("cpu"))
    grads = {name: parameter.grad for name, parameter in net.named_parameters()}
    torch.save({"grads": grads, "shared": list(shared)}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()

"""Averaged networks: what is exported of a training run."""

from __future__ import annotations

import torch
from torch import nn


def warm_decay(updates: int, limit: float) -> float:
    """Grows from 0.1 to `limit`, so that the random start is soon forgotten."""
    return min(limit, (1 + updates) / (10 + updates))


@torch.no_grad()
def update_average(average: nn.Module, online: nn.Module, decay: float) -> None:
    """Move the parameters of `average` towards those of `online`; buffers (running statistics) are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(online.parameters()), 1 - decay)
    torch._foreach_copy_(list(average.buffers()), list(online.buffers()))

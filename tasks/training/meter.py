"""Measures a training loop: averaged losses, speed, the share of time lost to waiting for data, and memory."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tasks.training.gradients import average_scalars


class Meter:
    """Adds up what happens between two points of the curves.

    Losses stay on their device until `take`, so that a GPU is not stopped at every step.
    """

    def __init__(self, *, device: torch.device, samples_per_step: int, world: int) -> None:
        self.device = device
        self.samples_per_step = samples_per_step
        self.world = world
        self.total_steps = 0
        self.total_wait = 0.0
        self.total_seconds = 0.0
        self._bad = torch.full((), -1, dtype=torch.int64, device=device)
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._wait = 0.0
        self._paused = 0.0
        self._start = time.perf_counter()
        self._cpu = time.process_time()

    def waited(self, seconds: float) -> None:
        """Add time spent waiting for a batch."""
        self._wait += seconds

    def paused(self, seconds: float) -> None:
        """Add time that is neither training nor waiting: validation, previews, checkpoints."""
        self._paused += seconds

    def step(self, losses: Mapping[str, Tensor], step: int) -> None:
        """Add one step's scalars; remembers the first step with one that is not finite."""
        values = {name: value.detach().float().mean() for name, value in losses.items()}
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        if values:
            finite = torch.isfinite(torch.stack([value.to(self.device) for value in values.values()])).all()
            self._bad = torch.where(finite | (self._bad >= 0), self._bad, step)
        self._steps += 1

    def first_bad_step(self) -> int | None:
        """The first step with a loss that is not finite, None while all are."""
        bad = int(self._bad.item())
        return None if bad < 0 else bad

    def take(self) -> dict[str, float]:
        """Means since the last call, over all workers, with speeds; starts the next stretch. Call it on every worker."""
        means = {f"train/{name}": float(total.item()) / self._steps for name, total in self._sums.items()}
        # The `.item()` above waits for the device: only now is the time what the steps took.
        seconds = max(time.perf_counter() - self._start - self._paused, 1e-9)
        values = {
            **means,
            "speed/samples_per_s": self._steps * self.samples_per_step / seconds,
            "speed/step_s": seconds / max(self._steps, 1),
            "system/process_cpu_percentage": 100 * (time.process_time() - self._cpu) / (time.perf_counter() - self._start),
            "speed/data_wait_share": min(self._wait / seconds, 1.0),
        }
        self.total_steps += self._steps
        self.total_wait += self._wait
        self.total_seconds += seconds
        self._reset()
        if self.world > 1:
            values = average_scalars(values, self.device)
        return {**values, **system_metrics(self.device)}

    @property
    def samples_per_second(self) -> float | None:
        """Over the whole call; None before the first `take`."""
        return self.total_steps * self.samples_per_step / self.total_seconds if self.total_steps else None

    @property
    def data_wait_share(self) -> float | None:
        """Over the whole call, 0..1; None before the first `take`."""
        return min(self.total_wait / self.total_seconds, 1.0) if self.total_steps else None


def system_metrics(device: torch.device) -> dict[str, float]:
    """Load and memory of this process and machine, named so that MLflow shows them on its system page."""
    import resource

    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    values = {
        "system/load_per_core": os.getloadavg()[0] / (os.cpu_count() or 1),
        "system/free_memory_percentage": 100 * os.sysconf("SC_AVPHYS_PAGES") / pages,
        "system/process_memory_megabytes": int(Path("/proc/self/statm").read_text().split()[1]) * page / 1e6,
        "system/process_peak_memory_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        values["system/gpu_memory_usage_megabytes"] = (total - free) / 1e6
        values["system/gpu_peak_allocated_megabytes"] = torch.cuda.max_memory_allocated(device) / 1e6
    return values

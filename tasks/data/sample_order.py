"""In which order samples are read: a pure function of (seed, epoch, position), whoever reads.

One endless global stream of positions 0, 1, 2, ... runs through epoch after epoch. Batch k of rank r takes `batch_size`
positions in a row; all ranks together take `world * batch_size`. So two ranks with batches of 2 see what one rank with a batch of
4 sees, an epoch holds every sample exactly once however many readers there are, and a position is all that a resume needs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MIX_SHARDS = 16
"""Samples of this many shards are mixed with each other: well shuffled, and still near one another on the disk."""


def epoch_order(shards: npt.NDArray[np.int64], *, seed: int, epoch: int, shuffle: bool, mix: int = MIX_SHARDS) -> npt.NDArray[np.int64]:
    """The order in which one epoch reads its samples: shards shuffled, then samples within groups of `mix` shards.

    Args:
        shards: int64 [N], the shard of each sample.
        seed, epoch: what the order depends on.
        shuffle: False reads in index order.
        mix: shards per group.

    Returns:
        int64 [N], a permutation of 0..N-1.
    """
    if not shuffle:
        return np.arange(len(shards))
    rng = np.random.default_rng([seed, epoch])
    names, inverse = np.unique(shards, return_inverse=True)
    rank = rng.permutation(len(names))[inverse] // mix
    shuffled = rng.permutation(len(shards))
    return shuffled[np.argsort(rank[shuffled], kind="stable")]


@dataclass(frozen=True, kw_only=True)
class Position:
    """One place of the global stream."""

    epoch: int
    position: int
    """Place inside the epoch, 0..N-1."""
    sample: int
    """Which of the N samples is read there."""


class SampleOrder:
    """The global stream of one selection.

    Args:
        shards: int64 [N], the shard of each selected sample.
        seed: of every epoch's order.
        shuffle: False reads in index order.
    """

    def __init__(self, *, shards: npt.NDArray[np.int64], seed: int, shuffle: bool) -> None:
        if len(shards) == 0:
            raise ValueError("there is no sample to read")
        self.shards = np.asarray(shards, np.int64)
        self.seed = seed
        self.shuffle = shuffle
        self._epoch = functools.lru_cache(maxsize=2)(
            lambda epoch: epoch_order(self.shards, seed=self.seed, epoch=epoch, shuffle=self.shuffle)
        )

    def __len__(self) -> int:
        return len(self.shards)

    def __reduce__(self) -> tuple[object, ...]:
        return functools.partial(SampleOrder, shards=self.shards, seed=self.seed, shuffle=self.shuffle), ()

    def at(self, place: int) -> Position:
        """What lies at `place` of the stream (0, 1, 2, ...)."""
        epoch, position = divmod(place, len(self))
        return Position(epoch=epoch, position=position, sample=int(self._epoch(epoch)[position]))

    def batch(self, index: int, *, start: int, batch_size: int, rank: int, world: int) -> list[Position]:
        """The places of batch `index` of `rank`, counted from place `start` of the stream."""
        first = start + (index * world + rank) * batch_size
        return [self.at(place) for place in range(first, first + batch_size)]

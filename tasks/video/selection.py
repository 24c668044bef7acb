"""Which frames enter a video's keyframe pool: a function of seed and keys alone, decided while the frames stream by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

BLOCK_FRAMES = 8
"""Neighbouring frames look alike: one frame of each block comes before the second of any block."""

Item = TypeVar("Item")


class Candidate(NamedTuple):
    """A frame and its place in the order of choice; the lowest are taken."""

    rank: int
    """Order inside its block of neighbours."""
    draw: int
    """Hash of seed, clip and frame: the lot."""
    clip: str
    frame: int


def candidates(seed: int, clip: str, frames: Sequence[int]) -> list[Candidate]:
    """All usable frames of a clip in the order of choice."""
    blocks: dict[int, list[tuple[int, int]]] = {}
    for frame in sorted(set(frames)):
        blocks.setdefault(frame // BLOCK_FRAMES, []).append((_draw(seed, clip, frame), frame))
    return sorted(Candidate(rank, draw, clip, frame) for block in blocks.values() for rank, (draw, frame) in enumerate(sorted(block)))


def shares(available: Mapping[str, int], size: int) -> dict[str, int]:
    """Divide `size` places among utterances: equal shares, and what one cannot fill goes to the others.

    Args:
        available: frames that each utterance offers, in the order in which odd places are handed out.
    """
    given = dict.fromkeys(available, 0)
    left = min(size, sum(available.values()))
    while left:
        for name in available:
            if left and given[name] < available[name]:
                given[name] += 1
                left -= 1
    return given


@dataclass
class PoolPicker(Generic[Item]):
    """Keeps the best `size` frames of every utterance while clips come by; memory is bounded by utterances x size."""

    seed: int
    size: int
    _kept: dict[str, dict[Candidate, Item]] = field(default_factory=dict)

    def wanted(self, utterance: str, clip: str, frames: Sequence[int]) -> list[Candidate]:
        """The frames of this clip that would be kept now; hand their pictures to `keep`."""
        new = candidates(self.seed, clip, frames)[: self.size]
        best = sorted([*self._kept.get(utterance, {}), *new])[: self.size]
        return [candidate for candidate in best if candidate.clip == clip]

    def keep(self, utterance: str, items: Mapping[Candidate, Item]) -> None:
        """Keep these and forget what they push out."""
        together = {**self._kept.get(utterance, {}), **items}
        self._kept[utterance] = {candidate: together[candidate] for candidate in sorted(together)[: self.size]}

    def chosen(self) -> list[tuple[Candidate, Item]]:
        """At most `size` frames, each utterance with its share, in order of clip and frame."""
        lots = sorted(self._kept, key=lambda name: (_draw(self.seed, name, -1), name))
        places = shares({name: len(self._kept[name]) for name in lots}, self.size)
        taken = [(candidate, self._kept[name][candidate]) for name in lots for candidate in sorted(self._kept[name])[: places[name]]]
        return sorted(taken, key=lambda pair: (pair[0].clip, pair[0].frame))


def _draw(seed: int, key: str, frame: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}/{frame}".encode()).digest()[:8])

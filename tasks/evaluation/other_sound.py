"""Another sound for a clip, to see whether a mouth follows the sound that it is given.

The sound of the next evaluated clip; with one clip, or where no other one has a sound that can be told from the clip's
own, the clip's own sound rolled by half its length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from models.family import Driver
from models.views import SAMPLES_PER_FRAME, Clip
from tasks.data.dataset import DatasetError
from tasks.evaluation.metrics import NotComputed
from tasks.rejects import VideoRejected

CLIP_ERRORS = (ValueError, RuntimeError, OSError, ArithmeticError, LookupError, VideoRejected, DatasetError)
"""What reading or synthesizing one clip may raise and the evaluation outlives: bad data, a full device, a broken file."""

SILENCE = 1e-3
"""Sounds whose loudest sample is below this (-60 dB) are silence."""

ALIKE = 0.5
"""Two waveforms that correlate more are the same recording; unrelated speech stays below 0.1."""


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """A clip that can be read when its turn comes."""

    key: str
    load: Callable[[], Clip]


@dataclass(frozen=True, kw_only=True)
class OtherSound:
    """What drives the shuffled row."""

    driver: Driver
    """As the clip's own, with another sound of the same length."""
    origin: str
    """Where it comes from, for people."""


def other_sound(own: Driver, sources: Sequence[ClipSource], index: int) -> OtherSound | NotComputed:
    """Another sound for clip `index` of `sources`, whose own driver is `own`.

    Clips that can't be read, have no sound or lack a learned feature are passed over; their failure is counted where it is
    their turn.
    """
    if own.audio is None:
        return NotComputed(reason="the clip has no sound")
    for step in range(1, len(sources)):
        try:
            clip = sources[(index + step) % len(sources)].load()
        except CLIP_ERRORS:
            continue
        if clip.audio is None or not audible(clip.audio) or not own.features.keys() <= clip.features.keys():
            continue
        audio = _repeated(clip.audio, len(own.audio)).astype(np.float32)
        if alike(audio, own.audio):
            continue
        features = {name: _repeated(clip.features[name], len(values)) for name, values in own.features.items()}
        return OtherSound(
            driver=replace(own, audio=audio, features=features), origin="of the next evaluated clip, repeated or cut to length"
        )
    if not audible(own.audio):
        return NotComputed(reason="the clip's own sound is silence and there is no other")
    frames = len(own.audio) // SAMPLES_PER_FRAME // 2
    if not frames:
        return NotComputed(reason="the clip is too short to roll its sound, and there is no other")
    return OtherSound(
        driver=replace(
            own,
            audio=np.roll(own.audio, frames * SAMPLES_PER_FRAME),
            features={name: np.roll(values, frames, axis=0) for name, values in own.features.items()},
        ),
        origin="the clip's own, rolled by half its length",
    )


def audible(audio: npt.NDArray[np.float32]) -> bool:
    """Whether there is anything to hear."""
    return bool(audio.size) and float(np.abs(audio).max()) >= SILENCE


def alike(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> bool:
    """Whether two waveforms of one length are the same recording, however loud."""
    first, second = one.astype(np.float64), other.astype(np.float64)
    energy = float(np.sqrt((first @ first) * (second @ second)))
    return energy > 0 and float(first @ second) > ALIKE * energy


def _repeated(values: npt.NDArray[np.generic], length: int) -> npt.NDArray[np.generic]:
    return values[np.arange(length) % len(values)]

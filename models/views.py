"""What families read: one sample of each dataset view.

`tasks.data.readers` makes these from WebDataset shards; families turn them into tensors. The two views
are the contract between data and models, so they live on the lower floor and know no storage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

FPS = 25
"""Frames per second of every clip, keyframe time base and generated video."""

SAMPLE_RATE = 16_000
"""Samples per second of every stored waveform; 640 samples belong to one frame."""

SAMPLES_PER_FRAME = SAMPLE_RATE // FPS

NUM_LANDMARKS = 68
"""iBUG 68-point order: jaw 0:17, brows 17:27, nose 27:36, eyes 36:48, outer lip 48:60, inner lip 60:68."""

Image = npt.NDArray[np.uint8]
"""uint8 [H, W, 3], RGB, 0..255."""

Points = npt.NDArray[np.float32]
"""float32 [..., 68, 2], x then y, in pixels of the image that they belong to."""


@dataclass(frozen=True, kw_only=True)
class Keyframes:
    """A video's pool of face crops: one sample of the `keyframes` view.

    The pool holds N frames spread over all utterances of one video of one identity.
    """

    key: str
    """`<identity>_<video>_pool`."""
    identity: str
    video: str
    """The persistent key of the video: `<identity>_<video>`."""
    jpegs: tuple[bytes, ...]
    """N encoded square face crops."""
    landmarks: Points
    """float32 [N, 68, 2], pixels of the stored JPEG."""
    clips: tuple[str, ...]
    """For each frame, the key of the clip that it comes from."""
    frames: npt.NDArray[np.int64]
    """int64 [N], frame index inside that clip."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.jpegs)

    def image(self, index: int) -> Image:
        """Decode frame `index`: uint8 [size, size, 3], RGB."""
        import cv2

        decoded = cv2.imdecode(np.frombuffer(self.jpegs[index], np.uint8), cv2.IMREAD_COLOR)
        if decoded is None:
            raise ValueError(f"{self.key}: frame {index} is not a readable JPEG")
        return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A contiguous, single-shot, single-face crop with its sound: one sample of the `clips` view."""

    key: str
    """`<identity>_<video>_<clip>`."""
    identity: str
    video: str
    """The persistent key of the video: `<identity>_<video>`."""
    num_frames: int
    size: int
    """Side of the square crop in pixels."""
    landmarks: Points
    """float32 [num_frames, 68, 2], pixels of the crop."""
    confidence: npt.NDArray[np.float32]
    """float32 [num_frames], 0..1; 0 where the landmarks were held over from another frame."""
    audio: npt.NDArray[np.float32] | None
    """float32 [640 * num_frames], 16 kHz mono, -1..1; None where the source has no sound."""
    features: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Learned features by name, e.g. `wav2vec`: float16 [num_frames, layers, width]."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    read_frames: Callable[[Sequence[int]], Image]
    """Decode the frames of these indices, in this order: uint8 [n, size, size, 3], RGB."""

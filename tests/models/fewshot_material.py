"""Small few-shot settings and made-up pools, clips and faces for the tests of the lower room."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch

from models.family import Batch, Face
from models.fewshot.config import FewShotConfig
from models.fewshot.examples import MetaExamples
from models.views import Clip, Keyframes, Points

TINY: dict[str, Any] = {
    "network": {"image_size": 64, "channels": 8, "max_channels": 16, "embedding": 16, "bottleneck_blocks": 1},
    "losses": {"content": "off", "pixel_l1": 1.0},
    "data": {"frames": 2},
    "diagnostics_every": 1,
}


def face_points(size: int, shift: float = 0.0, opening: float = 0.05) -> Points:
    """A schematic face of 68 points inside a square of side `size`; `opening` parts the lips."""
    unit = np.zeros((68, 2))
    jaw = np.linspace(0, np.pi, 17)
    unit[:17] = np.stack([0.5 - 0.35 * np.cos(jaw), 0.45 + 0.4 * np.sin(jaw)], 1)
    unit[17:22] = np.stack([np.linspace(0.22, 0.42, 5), np.full(5, 0.3)], 1)
    unit[22:27] = np.stack([np.linspace(0.58, 0.78, 5), np.full(5, 0.3)], 1)
    unit[27:31] = np.stack([np.full(4, 0.5), np.linspace(0.36, 0.52, 4)], 1)
    unit[31:36] = np.stack([np.linspace(0.43, 0.57, 5), np.full(5, 0.56)], 1)

    def ring(count: int, x: float, y: float, width: float, height: float) -> np.ndarray:
        angle = np.pi - np.linspace(0, 2 * np.pi, count, endpoint=False)
        return np.stack([x + width * np.cos(angle), y - height * np.sin(angle)], 1)

    unit[36:42] = ring(6, 0.34, 0.38, 0.06, 0.025)
    unit[42:48] = ring(6, 0.66, 0.38, 0.06, 0.025)
    unit[48:60] = ring(12, 0.5, 0.69, 0.13, 0.03 + opening)
    unit[60:68] = ring(8, 0.5, 0.69, 0.09, opening)
    return ((unit + np.array([shift, 0.0])) * size).astype(np.float32)


def make_pool(video: str = "a_1", count: int = 6, size: int = 80) -> Keyframes:
    """A pool whose frame i is of one grey level that names it."""
    points = np.stack([face_points(size, shift=0.01 * i) for i in range(count)])
    jpegs = []
    for i in range(count):
        image = np.full((size, size, 3), 20 * i + 10, np.uint8)
        jpegs.append(cv2.imencode(".png", image)[1].tobytes())
    return Keyframes(
        key=f"{video}_pool",
        identity=video.split("_")[0],
        video=video,
        jpegs=tuple(jpegs),
        landmarks=points,
        clips=tuple(f"{video}_0" for _ in range(count)),
        frames=np.arange(count),
    )


def make_clip(num_frames: int = 40, size: int = 96, confidence: np.ndarray | None = None) -> Clip:
    """A clip whose frame i has grey level i."""
    return Clip(
        key="a_1_0-0",
        identity="a",
        video="a_1",
        num_frames=num_frames,
        size=size,
        landmarks=np.stack([face_points(size, shift=0.002 * i) for i in range(num_frames)]),
        confidence=np.ones(num_frames, np.float32) if confidence is None else confidence,
        audio=None,
        read_frames=lambda indices: np.stack([np.full((size, size, 3), i, np.uint8) for i in indices]),
    )


def make_face(size: int = 96, count: int = 3) -> Face:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return Face(images=images, landmarks=np.stack([face_points(size, 0.01 * i) for i in range(count)]))


def make_batch(config: FewShotConfig, videos: list[str], seed: int = 0) -> Batch:
    maker = MetaExamples(image_size=config.network.image_size, frames=config.data.frames, flip=0.5)
    rng = np.random.default_rng(seed)
    examples = [maker(make_pool(video), rng) for video in videos]
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}

"""A drawn person whose mouth opens with the loudness of the sound: clips without a codec or a landmarker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from models.synctalk.config import SyncTalkConfig
from models.views import SAMPLES_PER_FRAME, Clip, Image, Points

SIDE = 128


def tiny_config(**changes: Any) -> SyncTalkConfig:
    """The smallest geometry with few channels; every part is there."""
    content: dict[str, Any] = {
        "geometry": {"core": 80, "margin": 1, "border": 2, "mask_bottom": 3},
        "audio": {"channels": 4, "layers": 2, "width": 16},
        "network": {"channels": [4, 8, 8, 8], "sync_channels": 4},
        "sync": {"positives": 4, "lr": 2e-3},
        "losses": {"content": "off", "sync_from": 2},
        "synthesis_batch": 6,
    }
    for name, value in changes.items():
        content[name] = {**content.get(name, {}), **value} if isinstance(value, dict) else value
    return SyncTalkConfig.model_validate(content)


def landmarks(centre: tuple[float, float], opening: float) -> Points:
    """A front face of 60 pixels' width at `centre`, its inner lips `opening` pixels apart: float32 [68, 2]."""
    x, y = centre
    points = np.zeros((68, 2), np.float32)
    points[:17] = [(x - 30 * np.cos(np.pi * i / 16), y + 42 * np.sin(np.pi * i / 16)) for i in range(17)]
    points[1], points[15] = (x - 30, y), (x + 30, y)
    points[17:27] = [(x - 24 + 48 * i / 9, y - 14) for i in range(10)]
    points[27:36] = [(x, y - 6 + 3 * i) for i in range(9)]
    points[36:48] = [(x + side * 14 + dx, y - 4) for side in (-1, 1) for dx in (-5, -2, 2, 5, 2, -2)]
    points[48:60] = [(x - 10 + 20 * i / 11, y + 26) for i in range(12)]
    points[60:68] = [(x - 8 + 16 * i / 7, y + 26) for i in range(8)]
    points[62], points[66] = (x, y + 26 - opening / 2), (x, y + 26 + opening / 2)
    return points


def loudness(frames: int, seed: int) -> np.ndarray:
    """A smooth envelope 0..1 with pauses: float64 [frames]."""
    rng = np.random.default_rng([11, seed])
    return np.clip(cv2.GaussianBlur(rng.normal(size=(1, frames)), (0, 0), 1.2)[0] * 1.4 + 0.3, 0, 1)


def clip(frames: int = 60, seed: int = 0, *, audio: bool = True, missing: Sequence[int] = (), features: bool = False) -> Clip:
    """A clip of the drawn person; `missing` frames have no face."""
    envelope = loudness(frames, seed)
    rng = np.random.default_rng([12, seed])
    centres = [(64 + 3 * np.sin(i / 9 + seed), 50 + 2 * np.cos(i / 7)) for i in range(frames)]
    points = np.stack([landmarks(centre, 10 * loud) for centre, loud in zip(centres, envelope, strict=True)])
    pictures = np.stack([draw(point) for point in points])
    carrier = rng.normal(size=frames * SAMPLES_PER_FRAME) * 0.2 + np.sin(np.arange(frames * SAMPLES_PER_FRAME) * 0.3)
    sound = (carrier * np.repeat(envelope, SAMPLES_PER_FRAME) * 0.3).astype(np.float32)
    confidence = np.ones(frames, np.float32)
    confidence[list(missing)] = 0
    return Clip(
        key=f"id{seed}_vid_0000",
        identity=f"id{seed}",
        video=f"id{seed}_vid",
        num_frames=frames,
        size=SIDE,
        landmarks=points,
        confidence=confidence,
        audio=sound if audio else None,
        features={"wav2vec": rng.normal(size=(frames, 2, 16)).astype(np.float16)} if features else {},
        read_frames=lambda indices: pictures[list(indices)],
    )


def draw(points: Points) -> Image:
    """The face that these landmarks mean: skin, eyes, and a dark mouth as open as its inner lips."""
    picture = np.full((SIDE, SIDE, 3), (40, 70, 90), np.uint8)
    x, y = (points[1] + points[15]) / 2
    cv2.ellipse(picture, (round(float(x)), round(float(y) + 8)), (30, 38), 0, 0, 360, (205, 160, 130), -1, cv2.LINE_AA)
    for eye in (points[36:42], points[42:48]):
        cv2.circle(picture, tuple(round(float(v)) for v in eye.mean(axis=0)), 4, (30, 30, 30), -1, cv2.LINE_AA)
    opening = float(points[66, 1] - points[62, 1])
    centre = ((points[62] + points[66]) / 2 * 16).round().astype(int)
    cv2.ellipse(picture, tuple(map(int, centre)), (160, int(16 + 8 * opening)), 0, 0, 360, (120, 30, 40), -1, cv2.LINE_AA, 4)
    return picture

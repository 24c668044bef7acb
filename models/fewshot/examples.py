"""From a pool of frames to training examples. Pure functions of (pool, generator), picklable for loader processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.family import Example
from models.fewshot.networks import video_id
from models.fewshot.raster import draw, mirror_points, resize_image, scale_points
from models.pictures import to_tensor
from models.views import Image, Keyframes, Points


@dataclass(frozen=True, kw_only=True)
class MetaExamples:
    """K frames to embed and another one to make, of one video; drawn anew at every call."""

    image_size: int
    frames: int
    """K."""
    flip: float

    def __call__(self, pool: Keyframes, rng: np.random.Generator) -> Example:
        """Draw an example.

        Returns:
            `refs`, `ref_rasters` uint8 [K, 3, S, S]; `target`, `target_raster` uint8 [3, S, S]; `video` int64 [], see `video_id`.

        Raises:
            ValueError: the pool has fewer than two frames, so that nothing but the target could be embedded.
        """
        target, *refs = draw_frames(len(pool), self.frames, rng, pool.key)
        mirrored = bool(rng.random() < self.flip)
        drawn = {index: example_frame(pool, index, self.image_size, mirrored) for index in {target, *refs}}
        return {
            "refs": torch.stack([drawn[index][0] for index in refs]),
            "ref_rasters": torch.stack([drawn[index][1] for index in refs]),
            "target": drawn[target][0],
            "target_raster": drawn[target][1],
            "video": torch.tensor(video_id(pool.video), dtype=torch.int64),
        }


def draw_frames(count: int, k: int, rng: np.random.Generator, key: str = "pool") -> Sequence[int]:
    """The target's index, then K others, never the target; repeated only where the pool is smaller than K+1.

    Raises:
        ValueError: fewer than two frames.
    """
    if count < 2:
        raise ValueError(f"{key} has {count} frames; one to make and at least one other to embed are needed")
    order = [int(i) for i in rng.permutation(count)]
    target, others = order[0], order[1:]
    if len(others) < k:
        others += [int(i) for i in rng.choice(others, k - len(others))]
    return [target, *others[:k]]


def example_frame(pool: Keyframes, index: int, size: int, mirrored: bool) -> tuple[Tensor, Tensor]:
    """Frame `index` and its raster: two uint8 [3, size, size]."""
    stored = pool.image(index)
    points = scale_points(pool.landmarks[index], stored.shape[0], size)
    image = resize_image(stored, size)
    if mirrored:
        image, points = image[:, ::-1], mirror_points(points, size)
    return to_tensor(image), to_tensor(draw(points, size))


def to_network(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1; pictures [B, 3, H, W] lie channels-last, which is faster on CPU and with half precision."""
    scaled = images.float() / 127.5 - 1
    return scaled.contiguous(memory_format=torch.channels_last) if scaled.ndim == 4 else scaled


def to_image(pictures: Tensor) -> Image:
    """float [..., 3, H, W] in -1..1 -> uint8 [..., H, W, 3]."""
    pixels = ((pictures.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(np.moveaxis(pixels.cpu().numpy(), -3, -1))


def frames_of(images: Image, points: Points, size: int) -> tuple[Tensor, Tensor]:
    """Square pictures uint8 [T, H, H, 3] and their points, resized: pictures and rasters, float32 [T, 3, size, size] in -1..1."""
    side = images.shape[1]
    resized = np.stack([resize_image(image, size) for image in images])
    rasters = np.stack([draw(scale_points(frame, side, size), size) for frame in points])
    return to_network(to_tensor(resized)), to_network(to_tensor(rasters))

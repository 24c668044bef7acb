"""Pictures as tensors, and as a labelled grid for previews."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import torch
from torch import Tensor

from models.views import Image

HEADER = 24
GAP = 4
SMALLEST_CELL = 128


def to_tensor(image: Image) -> Tensor:
    """uint8 [..., H, W, 3] -> uint8 [..., 3, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, -3)))


def labelled_grid(columns: Mapping[str, Image]) -> Image:
    """Draw columns of pictures under their names.

    Args:
        columns: by name, uint8 [N, S, S, 3]; the same N and S in all. Small pictures are enlarged.

    Returns:
        uint8 [H, W, 3], RGB, black letters on white.
    """
    first = next(iter(columns.values()))
    count, side = first.shape[0], first.shape[1]
    cell = side * max(1, -(-SMALLEST_CELL // side))
    height = HEADER + count * (cell + GAP)
    canvas = np.full((height, len(columns) * (cell + GAP) + GAP, 3), 255, np.uint8)
    for c, (name, pictures) in enumerate(columns.items()):
        x = GAP + c * (cell + GAP)
        cv2.putText(canvas, name, (x, HEADER - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        for r, picture in enumerate(pictures):
            y = HEADER + r * (cell + GAP)
            canvas[y : y + cell, x : x + cell] = cv2.resize(picture, (cell, cell), interpolation=cv2.INTER_NEAREST)
    return canvas

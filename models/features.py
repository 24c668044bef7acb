"""Features of VGG19 and VGGFace for content losses: short modules that read the published state dicts.

Each file was trained with its own input (channel order, range, means), which belongs to the file and is kept
here beside it; feeding another is a mistake that only shows as a worse result.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.weights import CorruptWeights, load_state

CONVOLUTIONS: Mapping[int, tuple[int, ...]] = {16: (2, 2, 3, 3, 1), 19: (2, 2, 4, 4, 1)}
"""By depth, 3x3 convolutions per stage up to relu5_1."""

_STAGES_WHOLE: Mapping[int, tuple[int, ...]] = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_WIDTHS = (64, 128, 256, 512, 512)


@dataclass(frozen=True, kw_only=True)
class InputFormat:
    """What a network was fed with in its training."""

    bgr: bool
    scale: float
    """Value of white before the mean is subtracted: 1 or 255."""
    mean: tuple[float, float, float]
    """In the network's channel order."""
    std: tuple[float, float, float]


TORCHVISION = InputFormat(bgr=False, scale=1.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CAFFE_BGR = InputFormat(bgr=True, scale=255.0, mean=(103.939, 116.779, 123.680), std=(1.0, 1.0, 1.0))
OXFORD_RGB = InputFormat(bgr=False, scale=255.0, mean=(129.186279296875, 104.76238250732422, 93.59396362304688), std=(1.0, 1.0, 1.0))
"""Stated in vgg_face_dag.py of the University of Oxford's conversion."""

INPUT_FORMATS: Mapping[str, InputFormat] = {"torchvision": TORCHVISION, "caffe_bgr": CAFFE_BGR, "oxford_rgb": OXFORD_RGB}


class VggFeatures(nn.Module):
    """relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1 of a VGG, frozen.

    Args:
        depth: 16 or 19.
        input_format: what the weights expect.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, depth: int, input_format: InputFormat) -> None:
        super().__init__()
        self.depth = depth
        self.input_format = input_format
        stages = []
        inputs = 3
        for count, width in zip(CONVOLUTIONS[depth], _WIDTHS, strict=True):
            stages.append(nn.ModuleList(nn.Conv2d(inputs if i == 0 else width, width, 3, padding=1) for i in range(count)))
            inputs = width
        self.stages = nn.ModuleList(stages)
        self._layers: tuple[tuple[nn.Module, ...], ...] = tuple(tuple(stage) for stage in stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # He's rule keeps random features alive through 13 ReLUs; loaded weights replace it.
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.get_parameter("bias"))
        self.register_buffer("mean", torch.tensor(input_format.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(input_format.std).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def load(self, path: Path) -> VggFeatures:
        """Load a state dict with torchvision's names (`features.0.weight`) or Caffe's (`conv1_1.weight`).

        Raises:
            CorruptWeights: a layer is missing or has another shape.
        """
        state = {_canonical(name, self.depth): value for name, value in load_state(path).items()}
        own = {}
        for s, stage in enumerate(self._layers):
            for c, layer in enumerate(stage):
                for kind in ("weight", "bias"):
                    name = f"conv{s + 1}_{c + 1}.{kind}"
                    if name not in state:
                        raise CorruptWeights(f"{path} is not a VGG{self.depth}: it has no {name}")
                    expected = tuple(layer.get_parameter(kind).shape)
                    if tuple(state[name].shape) != expected:
                        raise CorruptWeights(f"{path}: {name} has shape {tuple(state[name].shape)}, a VGG{self.depth} has {expected}")
                    own[f"stages.{s}.{c}.{kind}"] = state[name].float()
        self.load_state_dict({**own, "mean": self.mean, "std": self.std})
        return self

    def normalise(self, images: Tensor) -> Tensor:
        """RGB in -1..1 -> what the weights expect."""
        x = (images + 1) / 2 * self.input_format.scale
        if self.input_format.bgr:
            x = x.flip(1)
        return (x - self.mean) / self.std

    def forward(self, images: Tensor) -> list[Tensor]:
        """images [B, 3, H, W], RGB in -1..1 -> five feature maps."""
        x = self.normalise(images)
        features = []
        for s, stage in enumerate(self._layers):
            if s > 0:
                x = F.max_pool2d(x, 2)
            for c, layer in enumerate(stage):
                x = F.relu(layer(x))
                if c == 0:
                    features.append(x)
        return features

    def convolution(self, images: Tensor, stage: int, number: int) -> Tensor:
        """One feature map as its convolution leaves it, before the ReLU; nothing after it is computed.

        Args:
            images: [B, 3, H, W], RGB in -1..1.
            stage, number: counted from 1 on: 3, 3 is conv3_3.
        """
        x = self.normalise(images)
        for s, layers in enumerate(self._layers[:stage], start=1):
            if s > 1:
                x = F.max_pool2d(x, 2)
            for c, layer in enumerate(layers, start=1):
                x = layer(x)
                if (s, c) == (stage, number):
                    return x
                x = F.relu(x)
        raise ValueError(f"this VGG{self.depth} ends before conv{stage}_{number}")


def _canonical(name: str, depth: int) -> str:
    """`features.0.weight`, `0.weight` or `conv1_1.weight` -> `conv1_1.weight`; other names stay."""
    match = re.fullmatch(r"(?:features\.)?(\d+)\.(weight|bias)", name)
    if match is None:
        return name
    position = int(match[1])
    index = 0
    for s, count in enumerate(_STAGES_WHOLE[depth]):
        for c in range(count):
            if index == position:
                return f"conv{s + 1}_{c + 1}.{match[2]}"
            index += 2  # convolution and ReLU
        index += 1  # pooling
    return name

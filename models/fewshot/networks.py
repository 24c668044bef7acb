"""Embedder E, generator G, discriminator D and the per-video vectors W. spec/fewshot.md; arXiv 1905.08233 section 3-4."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.fewshot.blocks import AdaIN, ResidualBlock, SelfAttention, conv, spectral
from models.fewshot.config import NetworkConfig, Pooling

BOTTLENECK = 16
"""Side of the generator's smallest features: 256 is halved four times. Smaller pictures are halved less often, because
there are no skip connections: the landmarks reach the picture only through these features. (The public code that halves
256 six times has 59.8 M parameters instead of 38 M.)"""

ATTENTION_AFTER = 3
"""Down blocks of E and D before the self-attention: at 32 x 32 for pictures of 256."""


def widths_down(first: int, largest: int, count: int) -> list[int]:
    """Channels after each of `count` halvings: doubling from `first` up to `largest`."""
    return [min(first * 2**i, largest) for i in range(count)]


def _halvings_to_four(config: NetworkConfig) -> int:
    return int(math.log2(config.image_size)) - 2


def _downward(config: NetworkConfig) -> list[nn.Module]:
    """The trunk that E and D share in form: halved to 4 x 4, ending with `embedding` channels."""
    widths = widths_down(config.channels, config.max_channels, _halvings_to_four(config))
    widths[-1] = config.embedding
    blocks: list[nn.Module] = []
    inputs = 6
    for i, width in enumerate(widths):
        blocks.append(ResidualBlock(inputs, width, scale="down", first=i == 0))
        if i + 1 == ATTENTION_AFTER:
            blocks.append(SelfAttention(width))
        inputs = width
    return blocks


def _pool(x: Tensor, pooling: Pooling) -> Tensor:
    """[B, C, H, W] -> [B, C], after a ReLU. fp32: a sum over positions may leave the range of half precision."""
    x = F.relu(x).flatten(2).float()
    return x.sum(2) if pooling == "sum" else x.amax(2)


class Embedder(nn.Module):
    """E(x, y): a picture and its landmark raster -> the person's vector, without normalisation layers."""

    def __init__(self, config: NetworkConfig, pooling: Pooling) -> None:
        super().__init__()
        self.pooling: Pooling = pooling
        self.blocks = nn.ModuleList(_downward(config))

    def forward(self, image: Tensor, raster: Tensor) -> Tensor:
        """image, raster [B, 3, S, S] in -1..1 -> [B, embedding], >= 0."""
        x = torch.cat([image, raster], dim=1)
        for block in self.blocks:
            x = block(x)
        return _pool(x, self.pooling)


class Generator(nn.Module):
    """G(y, psi): a landmark raster and AdaIN parameters -> a picture. psi = P e (`project`) or a parameter of its own."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        size = config.image_size
        widths = widths_down(config.generator_channels or config.channels, config.max_channels, int(math.log2(size // BOTTLENECK)))
        # At 256 the self-attentions are at 32 on the way down and at 64 on the way up.
        attention_down, attention_up = max(size // 8, BOTTLENECK), max(size // 4, 2 * BOTTLENECK)
        down: list[nn.Module] = []
        inputs = 3
        for i, width in enumerate(widths):
            down.append(ResidualBlock(inputs, width, norm="instance", scale="down", first=i == 0))
            size //= 2
            if size == attention_down:
                down.append(SelfAttention(width))
            inputs = width
        self.down = nn.ModuleList(down)
        self.bottleneck = nn.ModuleList(ResidualBlock(inputs, inputs, norm="adaptive") for _ in range(config.bottleneck_blocks))
        up: list[nn.Module] = []
        for width in reversed(widths):
            up.append(ResidualBlock(inputs, width, norm="adaptive", scale="up"))
            size *= 2
            if size == attention_up:
                up.append(SelfAttention(width))
            inputs = width
        self.up = nn.ModuleList(up)
        self.last_norm = AdaIN(inputs)
        self.last_conv = conv(inputs, 3, 3)
        self.psi_length = 0
        for layer in self.adaptive_layers():
            layer.offset = self.psi_length
            self.psi_length += 2 * layer.channels
        self.projection = spectral(nn.Linear(config.embedding, self.psi_length))

    def adaptive_layers(self) -> list[AdaIN]:
        """The AdaIN layers in the order of their slices of psi."""
        return [module for module in self.modules() if isinstance(module, AdaIN)]

    def project(self, embedding: Tensor) -> Tensor:
        """P e: [B, embedding] -> psi [B, psi_length]."""
        return self.projection(embedding)

    def gains(self, psi: Tensor) -> Tensor:
        """The AdaIN gains 1 + s that psi holds: [B, psi_length / 2]."""
        return 1 + torch.cat([psi[:, layer.offset : layer.offset + layer.channels] for layer in self.adaptive_layers()], dim=1)

    def forward(self, raster: Tensor, psi: Tensor) -> Tensor:
        """raster [B, 3, S, S] in -1..1, psi [B or 1, psi_length] -> picture [B, 3, S, S] in -1..1."""
        x = raster
        for block in (*self.down, *self.bottleneck, *self.up):
            x = block(x, psi)
        return torch.tanh(self.last_conv(F.relu(self.last_norm(x, psi))))


class Discriminator(nn.Module):
    """D(x, y, i): raw score v . (w_i + w0) + b and the features after each block."""

    def __init__(self, config: NetworkConfig, pooling: Pooling) -> None:
        super().__init__()
        self.pooling: Pooling = pooling
        self.blocks = nn.ModuleList([*_downward(config), ResidualBlock(config.embedding, config.embedding)])
        self.linear = spectral(nn.Linear(config.embedding, 1))
        """Its weight is w0, its bias b."""

    def shared_row(self) -> Tensor:
        """w0: [1, embedding]."""
        return self.linear.weight

    def forward(self, image: Tensor, raster: Tensor, person: Tensor | None, *, whole: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Judge pictures.

        Args:
            image, raster: [B, 3, S, S] in -1..1.
            person: [B or 1, embedding], the row W_i; None scores realism alone.
            whole: `person` is w', which has w0 in it (fine-tuning).

        Returns:
            The unbounded score [B], and the features after each residual block (7 at 256).
        """
        features = []
        x = torch.cat([image, raster], dim=1)
        for block in self.blocks:
            x = block(x)
            if isinstance(block, ResidualBlock):
                features.append(x)
        v = _pool(x, self.pooling)
        if person is not None and whole:
            return (v * person.float()).sum(1) + self.linear.bias.float(), features
        score = self.linear(v)[:, 0].float()
        if person is not None:
            score = score + (v * person.float()).sum(1)
        return score, features


def video_id(key: str) -> int:
    """A persistent video key as a 63-bit number, so that an example can carry it in an int64 tensor."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


class VideoTable(nn.Module):
    """W: one vector per training video, in rows that belong to persistent video keys.

    Rows are only ever appended: a dataset that grows or shrinks leaves the meaning of every row as it was.
    Gradients are sparse: a step touches only the rows of its batch (VoxCeleb2 has ~145,000).
    """

    used: Tensor

    def __init__(self, keys: Sequence[str], width: int) -> None:
        super().__init__()
        self.width = width
        self.keys: list[str] = []
        self._rows: dict[int, int] = {}
        self.rows = nn.Embedding(0, width, sparse=True)
        self.register_buffer("used", torch.zeros(0, dtype=torch.bool))
        self.add(sorted(keys))

    def add(self, keys: Iterable[str]) -> None:
        """Append a row for each key that has none yet. Optimisers must be built, or their state padded, afterwards."""
        fresh = [key for key in dict.fromkeys(keys) if video_id(key) not in self._rows]
        if not fresh:
            return
        for key in fresh:
            self._rows[video_id(key)] = len(self.keys)
            self.keys.append(key)
        weight = self.rows.weight
        # A row's start is a function of its key alone, not of the order in which videos came.
        start = [torch.empty(self.width).uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(video_id(key))) for key in fresh]
        added = torch.stack(start).to(weight.device, weight.dtype)
        self.rows = nn.Embedding(len(self.keys), self.width, sparse=True, _weight=torch.cat([weight.detach(), added]))
        self.used = torch.cat([self.used, self.used.new_zeros(len(fresh))])

    def row(self, key: str) -> int:
        """The row of a key; raises KeyError where it has none."""
        return self._rows[video_id(key)]

    def row_indices(self, ids: Tensor) -> Tensor:
        """Rows of the videos with these `video_id`s: int64 [B] -> int64 [B].

        Raises:
            KeyError: a video that was not among the keys.
        """
        unknown = [i for i in ids.tolist() if i not in self._rows]
        if unknown:
            raise KeyError(f"{len(unknown)} of {len(ids)} videos of the batch are not among the {len(self.keys)} training videos")
        return torch.tensor([self._rows[i] for i in ids.tolist()], device=ids.device)

    def forward(self, indices: Tensor) -> Tensor:
        """Rows by index: int64 [B] -> [B, width]."""
        return self.rows(indices)

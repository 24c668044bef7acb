"""Building blocks of E, G and D: spectral norm, AdaIN, self-attention and the residual blocks.

BigGAN-deep-style residual blocks as in the paper's section 4: average-pool 2 down, nearest x2 up. In the
skip branches the 1x1 convolution and the resampling commute; the cheaper order is used, the function is the same.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

Norm = Literal["none", "instance", "adaptive"]

Layer = TypeVar("Layer", bound=nn.Module)

EPS = 1e-4


class SpectralNorm(nn.Module):
    """Divides a weight by its largest singular value (Miyato et al. 2018), one power iteration per training forward.

    torch's own parametrisation multiplies in the autocast type, where the two vectors then differ in type;
    this one stays in the weight's type.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, iterations: int = 15) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        self.register_buffer("u", F.normalize(matrix.new_empty(matrix.shape[0]).normal_(), dim=0, eps=1e-12))
        self.register_buffer("v", F.normalize(matrix.new_empty(matrix.shape[1]).normal_(), dim=0, eps=1e-12))
        self._iterate(matrix, iterations)

    @torch.no_grad()
    def _iterate(self, matrix: Tensor, iterations: int) -> None:
        for _ in range(iterations):
            self.u.copy_(F.normalize(torch.mv(matrix, self.v), dim=0, eps=1e-12))
            self.v.copy_(F.normalize(torch.mv(matrix.t(), self.u), dim=0, eps=1e-12))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with spectral norm 1 (as well as the iteration has converged)."""
        matrix = weight.flatten(1)
        with nullcontext() if weight.is_meta else torch.autocast(device_type=weight.device.type, enabled=False):
            if self.training:
                self._iterate(matrix.detach(), 1)
            # Copies: the buffers change in place at the next forward, before this one's backward.
            sigma = torch.dot(self.u.clone(), torch.mv(matrix, self.v.clone()))
            return weight / sigma


def spectral(layer: Layer) -> Layer:
    """The same layer with a spectrally normalised weight."""
    parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.get_parameter("weight")))
    return layer


def conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """A spectrally normalised convolution that keeps the size."""
    return spectral(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))


def instance_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Instance norm as group norm with a group per channel: the same function, which keeps channels-last pictures as they lie."""
    return F.group_norm(x, x.shape[1], weight, bias, eps=EPS)


class AdaIN(nn.Module):
    """Instance norm whose gain and bias are a slice of psi: x -> (1 + s) * IN(x) + t.

    The gain is 1 + s, so that a psi of zeros leaves the normalised features as they are.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.offset = -1
        """Where this layer's slice of psi starts; the generator assigns it."""

    def forward(self, x: Tensor, psi: Tensor) -> Tensor:
        """x [B, C, H, W]; psi [B or 1, P], whose slice is C gains then C biases."""
        gain = psi[:, self.offset : self.offset + self.channels, None, None]
        bias = psi[:, self.offset + self.channels : self.offset + 2 * self.channels, None, None]
        return torch.addcmul(bias, instance_norm(x), 1 + gain)


class _InstanceNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, psi: Tensor | None = None) -> Tensor:
        return instance_norm(x, self.weight, self.bias)


class _NoNorm(nn.Module):
    def forward(self, x: Tensor, psi: Tensor | None = None) -> Tensor:
        return x


def _norm(kind: Norm, channels: int) -> nn.Module:
    if kind == "adaptive":
        return AdaIN(channels)
    if kind == "instance":
        return _InstanceNorm(channels)
    return _NoNorm()


class ResidualBlock(nn.Module):
    """norm, ReLU, conv3, norm, ReLU, conv3 beside a 1x1 skip; halves, keeps or doubles the size.

    Args:
        first: the input is a raw image: it is neither normalised nor activated (a ReLU would cut its dark half).
    """

    def __init__(
        self, inputs: int, outputs: int, *, norm: Norm = "none", scale: Literal["down", "same", "up"] = "same", first: bool = False
    ) -> None:
        super().__init__()
        self.scale = scale
        self.first = first
        self.norm1 = _NoNorm() if first else _norm(norm, inputs)
        self.conv1 = conv(inputs, outputs, 3)
        self.norm2 = _norm(norm, outputs)
        self.conv2 = conv(outputs, outputs, 3)
        self.skip = conv(inputs, outputs, 1) if scale != "same" or inputs != outputs else None

    def forward(self, x: Tensor, psi: Tensor | None = None) -> Tensor:
        """x [B, inputs, H, W] -> [B, outputs, H', W']; psi is read by adaptive norms only."""
        h = x if self.first else F.relu(self.norm1(x, psi))
        if self.scale == "up":
            h = _double(h)
        h = self.conv1(h)
        h = self.conv2(F.relu(self.norm2(h, psi)))
        if self.scale == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        if self.skip is not None:
            x = self.skip(x)
        return h + (_double(x) if self.scale == "up" else x)


class SelfAttention(nn.Module):
    """SAGAN's self-attention over positions: x + gamma * attention(x); gamma starts at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 8)
        self.query = conv(channels, inner, 1)
        self.key = conv(channels, inner, 1)
        self.value = conv(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, psi: Tensor | None = None) -> Tensor:
        """x [B, C, H, W] -> the same shape."""
        query, key, value = (layer(x).flatten(2).transpose(1, 2) for layer in (self.query, self.key, self.value))
        # SAGAN's scores are not scaled by the root of their length.
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return x + self.gamma * attended.transpose(1, 2).unflatten(2, x.shape[2:])


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")

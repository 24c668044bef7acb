"""The family's networks: the encoder of sound, the U-Net that paints, and SyncNet, which judges. spec/synctalk.md, "Networks".

In the compatible configuration (a core of 320, the encoder `ave`, 32 channels) structure and parameter counts are those of
SyncTalk_2D's public code: AudioEncoder 2,812,672, U-Net 12,186,935; at 160 those of Ultralight-Digital-Human's U-Net.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.layout import lay_channels_last
from models.synctalk.config import AUDIO_WINDOW, BOTTLENECK, HUBERT_SIDE, MEL_BANDS, MEL_ROWS, AudioConfig, SyncTalkConfig
from models.weights import CorruptWeights, load_state

EMBEDDING = 256
"""Width of SyncNet's embeddings."""

JUDGED_ROWS = 80
"""Rows of the lower half that SyncNet looks at, at most: larger cores are averaged down, because it needs no pores."""

MOTION_GAIN = 4.0
"""Brings the changes between neighbouring pictures to about the size of the pictures."""

GRID_ROWS = 5
"""Rows of SyncNet's smallest feature map."""


class ConvBlock(nn.Module):
    """Convolution, normalisation over the batch, ReLU; residual where asked for."""

    def __init__(
        self, inputs: int, outputs: int, *, stride: int | tuple[int, int] = 1, kernel: int = 3, padding: int = 1, residual: bool = False
    ) -> None:
        super().__init__()
        self.residual = residual
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H', W']."""
        y = self.norm(self.conv(x))
        return F.relu(x + y if self.residual else y)


class AudioEncoder(nn.Module):
    """The "ave" encoder: 0.2 s of mel -> one feature; 2,812,672 parameters at 32 channels (Wav2Lip's, without LeakyReLU).

    Args:
        channels: of the first blocks; the last have 16 times as many.
    """

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        c = channels
        self.width = 16 * c
        plan: list[tuple[int, int | tuple[int, int], int]] = [(c, 1, 3), (2 * c, (3, 1), 3), (4 * c, 3, 3), (8 * c, (3, 2), 2)]
        blocks: list[ConvBlock] = []
        inputs = 1
        for width, stride, count in plan:
            blocks.append(ConvBlock(inputs, width, stride=stride))
            blocks += [ConvBlock(width, width, residual=True) for _ in range(count - 1)]
            inputs = width
        blocks += [ConvBlock(inputs, self.width, padding=0), ConvBlock(self.width, self.width, kernel=1, padding=0)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, mels: Tensor) -> Tensor:
        """Mel windows [N, 1, 80, 16] -> [N, 16 * channels], not negative."""
        if mels.shape[1:] != (1, MEL_BANDS, MEL_ROWS):
            raise ValueError(f"mel windows are [N, 1, {MEL_BANDS}, {MEL_ROWS}], got {list(mels.shape)}")
        encoded: Tensor = self.blocks(mels)
        return encoded.flatten(1)


def load_published_audio_encoder(path: Path) -> dict[str, Tensor]:
    """Read SyncTalk_2D's `audio_visual_encoder.pth` as the state of an `AudioEncoder(32)`.

    Its names are `0.conv_block.0.weight`; with `audio_encoder.` before them, beside a `face_encoder.` that is left out, they
    are those of a whole SyncNet of Wav2Lip, which has the same encoder.

    Raises:
        CorruptWeights: the file cannot be read, or holds anything else.
    """
    with torch.device("meta"):
        wanted = AudioEncoder(32).state_dict()
    own: dict[str, Tensor] = {}
    for name, value in load_state(path).items():
        if name.startswith("face_encoder."):
            continue
        match = re.fullmatch(r"(?:audio_encoder\.)?(\d+)\.conv_block\.([01])\.(\w+)", name)
        key = f"blocks.{match[1]}.{('conv', 'norm')[int(match[2])]}.{match[3]}" if match else name
        if key not in wanted:
            raise CorruptWeights(f"{path} is not SyncTalk_2D's audio encoder: it has {name}")
        if value.shape != wanted[key].shape:
            raise CorruptWeights(
                f"{path}: {name} has shape {tuple(value.shape)}, SyncTalk_2D's audio encoder has {tuple(wanted[key].shape)}"
            )
        own[key] = value.to(wanted[key].dtype)
    for key in wanted:
        # Older files do not count the batches that their statistics were taken from.
        if key.endswith("num_batches_tracked"):
            own.setdefault(key, torch.zeros((), dtype=torch.int64))
        elif key not in own:
            raise CorruptWeights(f"{path} is not SyncTalk_2D's audio encoder: it has nothing for {key}")
    return own


class InvertedResidual(nn.Module):
    """1x1 to twice the width, depthwise 3x3, 1x1 to the output; residual where asked for."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        inner = 2 * inputs
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


def double(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """Two of them, the second residual ("DoubleConvDW")."""
    return nn.Sequential(InvertedResidual(inputs, outputs, stride=stride), InvertedResidual(outputs, outputs, residual=True))


class AudioBranch(nn.Module):
    """What is heard around a frame, laid out as a picture and folded down to the U-Net's smallest feature map.

    Args:
        inputs: channels of the picture.
        size: its side, 16 or 32.
        channels: five widths; the last is the output's.
    """

    def __init__(self, inputs: int, size: int, channels: Sequence[int]) -> None:
        super().__init__()
        _, second, third, fourth, last = channels
        self.layers = nn.Sequential(
            InvertedResidual(inputs, second),
            InvertedResidual(second, third),
            nn.Conv2d(third, fourth, 3, stride=size // 16, padding=1),
            nn.BatchNorm2d(fourth),
            nn.ReLU(inplace=True),
            InvertedResidual(fourth, fourth, residual=True),
            # Padding 3 makes 10 of 16, as many as the picture's smallest map has.
            nn.Conv2d(fourth, last, 3, stride=2, padding=3),
            nn.BatchNorm2d(last),
            nn.ReLU(inplace=True),
            InvertedResidual(last, last, residual=True),
            InvertedResidual(last, last, residual=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, size, size] -> [N, last, 10, 10]."""
        folded: Tensor = self.layers(x)
        return folded


class AudioPicture(nn.Module):
    """The features of 16 frames as one picture; the numbers are laid out in their order, as published.

    ave: [N, 16, 16 c] -> [N, c, 16, 16], 512 numbers a frame at 32 channels;
    hubert: [N, 16, 2, width] -> [N, width / 32, 32, 32], which is [N, 32, 32, 32] of HuBERT-large;
    wav2vec: [N, 16, layers, width] -> a learned mean of the layers, projected to 16 c numbers a frame, then as ave.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.heard: tuple[int, ...]
        if config.encoder == "ave":
            self.channels, self.size, self.heard = config.channels, 16, (AUDIO_WINDOW, 16 * config.channels)
        else:
            self.heard = (AUDIO_WINDOW, config.layers, config.width)
            if config.encoder == "hubert":
                self.channels, self.size = config.width // HUBERT_SIDE, HUBERT_SIDE
            else:
                self.channels, self.size = config.channels, 16
        self.layers: nn.Parameter | None = None
        if config.encoder == "wav2vec":
            self.layers = nn.Parameter(torch.zeros(config.layers))
            self.project = nn.Linear(config.width, 16 * config.channels)

    def forward(self, heard: Tensor) -> Tensor:
        """[N, 16, ...] -> [N, channels, size, size]."""
        if heard.shape[1:] != self.heard:
            raise ValueError(f"what is heard around a frame is [N, {', '.join(map(str, self.heard))}], got {list(heard.shape)}")
        if self.layers is not None:
            # The layers of wav2vec differ in scale by an order of magnitude; a softmax alone would hear the loudest.
            levelled = F.layer_norm(heard.float(), heard.shape[-1:])
            heard = self.project(torch.einsum("ntlw,l->ntw", levelled, self.layers.float().softmax(dim=0)))
        return heard.reshape(-1, self.channels, self.size, self.size)


class UNet(nn.Module):
    """Paints the masked part of a core: what to look like comes from a reference, what to say from the sound."""

    def __init__(self, config: SyncTalkConfig) -> None:
        super().__init__()
        self.core = config.geometry.core
        channels = config.network.channels
        widths = _extended(channels, config.geometry.levels + 1)
        top = widths[-1]
        self.sound = AudioPicture(config.audio)
        self.audio = AudioBranch(self.sound.channels, self.sound.size, _extended(channels, 5))
        self.first = InvertedResidual(6, widths[0])
        self.down = nn.ModuleList(double(a, b, stride=2) for a, b in itertools.pairwise(widths))
        self.fuse = nn.Sequential(double(2 * top, top), double(top, widths[-2]))
        # The finest map is half as wide where the first width is used twice (SyncTalk_2D at 320), and not otherwise (Ultralight).
        finest = widths[0] // 2 if widths[0] == widths[1] else widths[0]
        outputs = [finest, *widths[:-2]]
        self.up = nn.ModuleList(double(2 * width, output) for width, output in zip(widths[:-1], outputs, strict=True))
        self.last = nn.Conv2d(finest, 3, 1)

    def forward(self, pictures: Tensor, heard: Tensor) -> Tensor:
        """Paint cores.

        Args:
            pictures: [N, 6, core, core] in 0..1: the reference's core, then the masked core.
            heard: [N, 16, ...], the features of frames i - 8 .. i + 7; see `AudioPicture`.

        Returns:
            [N, 3, core, core] in 0..1.

        Raises:
            ValueError: other shapes.
        """
        if pictures.shape[1:] != (6, self.core, self.core):
            raise ValueError(f"pictures are [N, 6, {self.core}, {self.core}], got {list(pictures.shape)}")
        if len(heard) != len(pictures):
            raise ValueError(f"{len(pictures)} pictures and {len(heard)} audio windows do not belong together")
        x = self.first(pictures)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        x = self.fuse(torch.cat([x, self.audio(self.sound(heard))], dim=1))
        for up, skip in zip(reversed(self.up), reversed(skips), strict=True):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = up(torch.cat([x, skip], dim=1))
        painted: Tensor = self.last(x)
        return painted.sigmoid()


def folded(network: UNet) -> UNet:
    """A copy for inference only, with every normalisation folded into the convolution before it: a third faster on CPU.

    It must not be trained, and its state is no `UNet`'s any more.
    """
    quick = copy.deepcopy(network).eval().requires_grad_(False)
    for layers in quick.modules():
        if isinstance(layers, nn.Sequential):
            for i, (layer, norm) in enumerate(itertools.pairwise(list(layers))):
                if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    layers[i], layers[i + 1] = fuse_conv_bn_eval(layer, norm), nn.Identity()
    lay_channels_last(quick)
    return quick


def _extended(channels: Sequence[int], count: int) -> tuple[int, ...]:
    """`count` widths: the first one repeated as often as it takes."""
    return (channels[0],) * (count - len(channels)) + tuple(channels)


class FaceBlock(nn.Module):
    """Halves the size, then looks again."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False)
        self.reduce_norm = nn.BatchNorm2d(outputs)
        self.again = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.again_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / 2, W / 2]."""
        x = F.relu(self.reduce_norm(self.reduce(x)))
        return F.relu(x + self.again_norm(self.again(x)))


class FaceEncoder(nn.Module):
    """Consecutive lower halves of a core -> what they say.

    It is shown the window's mean and the changes from picture to picture: bare pictures teach it faces sooner than speech. On held-out
    sample videos after 300 steps the exact offset was retrieved in 65 % of windows; in 53 % from bare pictures, and in 57 % where
    every window was normalised by itself instead of with its batch.

    Args:
        frames: pictures of a window.
        core: side of the core.
        channels: of the first block.
    """

    def __init__(self, frames: int, core: int, channels: int) -> None:
        super().__init__()
        self.shape = (3 * frames, core // 2, core)
        self.shrink = max(1, core // 2 // JUDGED_ROWS)
        rows = core // 2 // self.shrink
        blocks: list[FaceBlock] = []
        inputs, width = 3 * frames, channels
        while rows > GRID_ROWS:
            blocks.append(FaceBlock(inputs, width, kernel=3 if blocks else 5))
            inputs, width, rows = width, min(2 * width, 8 * channels), rows // 2
        self.blocks = nn.Sequential(*blocks)
        # Where in the picture something is seen matters; weights of its own for each place, few for each channel.
        self.place = nn.Conv2d(inputs, 4 * inputs, (GRID_ROWS, 2 * GRID_ROWS), groups=inputs, bias=False)
        self.norm = nn.LayerNorm(4 * inputs)
        self.project = nn.Linear(4 * inputs, EMBEDDING)

    def forward(self, windows: Tensor) -> Tensor:
        """[N, 3 * frames, core / 2, core] in -1..1 -> [N, 256]."""
        if windows.shape[1:] != self.shape:
            raise ValueError(f"windows of lower halves are [N, {', '.join(map(str, self.shape))}], got {list(windows.shape)}")
        if self.shrink > 1:
            windows = F.avg_pool2d(windows, self.shrink)
        pictures = windows.unflatten(1, (-1, 3))
        changes = MOTION_GAIN * (pictures[:, 1:] - pictures[:, :-1])
        windows = torch.cat([changes, pictures.mean(dim=1, keepdim=True)], dim=1).flatten(1, 2)
        seen = self.place(self.blocks(windows)).flatten(1)
        embedded: Tensor = self.project(F.relu(self.norm(seen)))
        return embedded


class SyncNet(nn.Module):
    """Says whether `sync.frames` consecutive pictures of a mouth and 0.2 s of sound from the first one on belong together."""

    def __init__(self, config: SyncTalkConfig) -> None:
        super().__init__()
        self.face_encoder = FaceEncoder(config.sync.frames, config.geometry.core, config.network.sync_channels)
        self.audio_encoder = AudioEncoder(config.audio.channels)
        self.audio_project = nn.Linear(self.audio_encoder.width, EMBEDDING)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.zeros(()))

    def face(self, windows: Tensor) -> Tensor:
        """Lower halves of consecutive cores [N, 3 * frames, core / 2, core] in -1..1 -> float32 [N, 256] of length 1."""
        return F.normalize(self.face_encoder(windows).float(), dim=1)

    def audio(self, mels: Tensor) -> Tensor:
        """Mel windows [N, 1, 80, 16], each beginning with its pictures -> float32 [N, 256] of length 1."""
        return F.normalize(self.audio_project(self.audio_encoder(mels)).float(), dim=1)

    def logits(self, similarity: Tensor) -> Tensor:
        """scale * cosine + bias; the scale is learned, up to 100."""
        return similarity * self.log_scale.clamp(max=math.log(100.0)).exp() + self.bias

    def forward(self, windows: Tensor, mels: Tensor) -> Tensor:
        """The logit of each window with its own sound: [N]."""
        return self.logits((self.face(windows) * self.audio(mels)).sum(dim=1))


assert BOTTLENECK == (16 + 2 * 3 - 3) // 2 + 1

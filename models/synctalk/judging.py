"""Stage `syncnet`: a judge of lip sync, and with it the encoder of sound that the U-Net hears through.

The negatives are real: other moments of the same clip, at least 0.2 s away, and other clips (spec/synctalk.md, "Networks").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.averaging import update_average, warm_decay
from models.exports import save_network
from models.family import Batch, BuildContext, TrainingModule
from models.layout import lay_channels_last
from models.pictures import labelled_grid
from models.synctalk.config import MEL_ROWS, SyncTalkConfig
from models.synctalk.examples import OFFSETS
from models.synctalk.networks import SyncNet, load_published_audio_encoder
from models.views import Image

CONFIG_FILE = "config.json"
NEAR = 1
"""Frames that a retrieved offset may be off and still count as right."""


class SyncTalkJudge(TrainingModule):
    """SyncNet by contrast: every window's own sound against the sounds of all other windows of the batch, and back."""

    updates: Tensor

    def __init__(self, config: SyncTalkConfig, context: BuildContext) -> None:
        super().__init__()
        self.config = config
        self.syncnet = SyncNet(config)
        if config.audio.ave == "pretrained":
            self.syncnet.audio_encoder.load_state_dict(load_published_audio_encoder(context.weights.resolve("synctalk-ave")))
            self.syncnet.audio_encoder.requires_grad_(False)
        else:
            context.weights.record("synctalk-ave", "off")
        self.average_syncnet = SyncNet(config).requires_grad_(False)
        self.average_syncnet.load_state_dict(self.syncnet.state_dict())
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        lay_channels_last(self).to(context.device)
        trained = [parameter for parameter in self.syncnet.parameters() if parameter.requires_grad]
        self._optimizers = {"syncnet": torch.optim.AdamW(trained, lr=config.sync.lr, weight_decay=config.sync.weight_decay)}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """One AdamW."""
        return self._optimizers

    def train(self, mode: bool = True) -> SyncTalkJudge:
        """The average and a published encoder stay in evaluation."""
        super().train(mode)
        self.average_syncnet.eval()
        if self.config.audio.ave == "pretrained":
            self.syncnet.audio_encoder.eval()
        return self

    def training_step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One update; `batch` as of `SyncExamples`, B clips of P windows."""
        options = self.config.sync
        faces = distort(look(batch["faces"].flatten(0, 1), self.config), options.light, options.place)
        mels = batch["mels"].flatten(0, 1)
        similarity = self.syncnet.face(faces) @ self.syncnet.audio(muffle(mels, options.muffle)).T
        logits = self.syncnet.logits(similarity)
        allowed = comparable(batch["clip"].flatten(), batch["starts"].flatten(), self.config.sync.apart)
        loss = contrast(logits, allowed)
        optimizer = self._optimizers["syncnet"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.sync_gradients(parameter for group in optimizer.param_groups for parameter in group["params"])
        optimizer.step()
        torch.clear_autocast_cache()
        self.updates += 1
        update_average(self.average_syncnet, self.syncnet, warm_decay(int(self.updates), self.config.sync.ema))
        right = logits.detach().masked_fill(~allowed, -torch.inf).argmax(dim=1) == torch.arange(len(logits), device=logits.device)
        return {
            "loss": loss.detach(),
            "batch_accuracy": right.float().mean(),
            "similarity_right": similarity.detach().diagonal().mean(),
            "similarity_wrong": similarity.detach()[allowed & ~eye(allowed)].mean(),
        }

    @torch.no_grad()
    def validation_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """Retrieval of the right offset among 31, which is the report's number; and the contrast of `training_step`."""
        faces = self.average_syncnet.face(look(batch["faces"].flatten(0, 1), self.config)).float()
        right = self.average_syncnet.audio(batch["mels"].flatten(0, 1)).float()
        allowed = comparable(batch["clip"].flatten(), batch["starts"].flatten(), self.config.sync.apart)
        scores = offset_scores(self.average_syncnet, faces, batch)
        return {
            "loss": contrast(self.average_syncnet.logits(faces @ right.T), allowed),
            "retrieval_accuracy": (scores.argmax(dim=1) - OFFSETS).abs().le(NEAR).float().mean(),
            "retrieval_exact": scores.argmax(dim=1).eq(OFFSETS).float().mean(),
        }

    @torch.no_grad()
    def preview(self, batch: Batch) -> Image:
        """What the judge sees of the first window of each clip, and how it scores the sound at every offset."""
        windows = batch["faces"][:4, 0]
        seen = region(windows[:, windows.shape[1] // 2]).float() / 255
        faces = self.average_syncnet.face(look(batch["faces"].flatten(0, 1), self.config)).float()
        scores = offset_scores(self.average_syncnet, faces, batch).unflatten(0, batch["faces"].shape[:2])[:4, 0]
        side = max(seen.shape[-2:])
        pictures = F.pad(seen, (0, side - seen.shape[-1], 0, side - seen.shape[-2]))
        return labelled_grid({"seen": to_image(pictures), "score by offset": bars(scores, side)})

    def export(self, folder: Path) -> None:
        """The averaged SyncNet, which holds the encoder of sound."""
        save_network(folder, "syncnet", self.average_syncnet)
        write_config(folder, self.config, stage="syncnet", updates=int(self.updates))


def region(cores: Tensor) -> Tensor:
    """The part of cores [..., S, S] that the judge looks at, with the mouth in its middle: [..., S/2, S]."""
    size = cores.shape[-1]
    return cores[..., size // 4 : size // 4 + size // 2, :]


def look(cores: Tensor, config: SyncTalkConfig) -> Tensor:
    """Windows of cores [N, T, 3, S, S], uint8 or float 0..1, as SyncNet reads them: float32 [N, 3 T, S/2, S] in -1..1."""
    seen = region(cores)
    scaled = seen.float() / 127.5 - 1 if seen.dtype == torch.uint8 else seen.float() * 2 - 1
    return scaled.flatten(1, 2).contiguous(memory_format=torch.channels_last)


def distort(faces: Tensor, light: float, place: float) -> Tensor:
    """Windows seen elsewhere: another place, size and turn, half of them mirrored, in another light; all frames of a window alike.

    Args:
        faces: [N, C, H, W] in -1..1.
        light: largest change of brightness, and of contrast as a share.
        place: largest shift in shares of the picture, change of size as a share, and turn in radians.
    """
    count, device = len(faces), faces.device
    draw = torch.rand(6, count, device=device) * 2 - 1
    angle, size = draw[0] * place, 1 + draw[1] * place
    mirror = torch.where(draw[2] < 0, -1.0, 1.0)
    height, width = faces.shape[-2:]
    cos, sin = torch.cos(angle) * size, torch.sin(angle) * size
    across = torch.stack([cos * mirror, -sin * height / width, draw[3] * 2 * place], dim=1)
    down = torch.stack([sin * mirror * width / height, cos, draw[4] * 2 * place], dim=1)
    grid = F.affine_grid(torch.stack([across, down], dim=1), list(faces.shape), align_corners=False)
    moved = F.grid_sample(faces.float(), grid, padding_mode="border", align_corners=False)
    contrast_by, brightness = torch.rand(2, count, 1, 1, 1, device=device) * 2 * light - light
    return (moved * (1 + contrast_by) + brightness).contiguous(memory_format=torch.channels_last)


def muffle(mels: Tensor, amount: float) -> Tensor:
    """Mel windows [N, 1, 80, 16] as another microphone hears them: another loudness of the whole and of broad bands, and noise."""
    count, device = len(mels), mels.device
    curve = F.interpolate(torch.randn(count, 1, 6, device=device), size=mels.shape[2], mode="linear")[..., None]
    return mels + amount * (curve + torch.randn(count, 1, 1, 1, device=device) + 0.5 * torch.randn_like(mels))


def comparable(clip: Tensor, start: Tensor, apart: int) -> Tensor:
    """Which pairs of windows may be compared: a window with itself, with other clips, and with moments that are apart. bool [N, N]."""
    near = (clip[:, None] == clip[None]) & ((start[:, None] - start[None]).abs() < apart)
    return ~near | eye(near)


def eye(like: Tensor) -> Tensor:
    """bool identity of the shape of a square matrix."""
    return torch.eye(len(like), dtype=torch.bool, device=like.device)


def contrast(logits: Tensor, allowed: Tensor) -> Tensor:
    """InfoNCE, faces to sounds and sounds to faces, over the pairs that may be compared; logits [N, N]."""
    logits = logits.float().masked_fill(~allowed, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def offset_scores(syncnet: SyncNet, faces: Tensor, batch: Batch) -> Tensor:
    """Similarity of windows [N, D] to the sound at every offset: [N, 31], -inf where the clip has no such sound."""
    around, rows, there = (batch[name].flatten(0, 1) for name in ("around", "rows", "there"))
    count, offsets = rows.shape
    wanted = rows[..., None] + torch.arange(MEL_ROWS, device=rows.device)
    mels = torch.take_along_dim(around[:, None], wanted[..., None], dim=2)
    sounds = syncnet.audio(mels.flatten(0, 1).transpose(1, 2)[:, None]).float().unflatten(0, (count, offsets))
    return torch.einsum("nd,nod->no", faces, sounds).masked_fill(~there, -torch.inf)


def bars(scores: Tensor, side: int) -> Image:
    """Scores [N, 31] in -1..1 as bars, the right offset green: uint8 [N, side, side, 3]."""
    import numpy as np

    pictures = np.full((len(scores), side, side, 3), 255, np.uint8)
    edges = np.linspace(0, side, scores.shape[1] + 1).round().astype(int)
    for picture, row in zip(pictures, scores.float().cpu().numpy(), strict=True):
        for offset, score in enumerate(row):
            height = round(side * (min(max(float(score), -1.0), 1.0) + 1) / 2)
            picture[side - height :, edges[offset] : max(edges[offset] + 1, edges[offset + 1] - 1)] = (
                (0, 140, 60) if offset == OFFSETS else (120, 120, 120)
            )
    return pictures


def to_image(pictures: Tensor) -> Image:
    """float [..., 3, H, W] in 0..1 -> uint8 [..., H, W, 3]."""
    import numpy as np

    pixels = (pictures.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(np.moveaxis(pixels.cpu().numpy(), -3, -1))


def write_config(folder: Path, config: SyncTalkConfig, **extra: Any) -> None:
    """Write config.json, which inference reads its geometry, mask, interpolation and audio window from."""
    content = {"family": "synctalk", "config": config.model_dump(mode="json"), **extra}
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_config(folder: Path) -> SyncTalkConfig:
    """The configuration of an export.

    Raises:
        FileNotFoundError: the folder is no exported model.
        ValueError: it is another family's.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no exported synctalk model: it has no {CONFIG_FILE}")
    content = json.loads(path.read_text())
    if content.get("family") != "synctalk":
        raise ValueError(f"{folder} holds a model of family {content.get('family')!r}, not synctalk")
    return SyncTalkConfig.model_validate(content["config"])

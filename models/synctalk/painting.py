"""Stage `unet`: paints the lower face of one person as the sound wants it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.averaging import update_average, warm_decay
from models.exports import load_network, save_network
from models.family import Batch, BuildContext, Face, TrainingModule
from models.layout import lay_channels_last
from models.pictures import labelled_grid, to_tensor
from models.synctalk.config import AUDIO_WINDOW, OptimizerConfig, SyncTalkConfig
from models.synctalk.geometry import closed_mouth, cut_core, face_squares, masked
from models.synctalk.judging import look, to_image, write_config
from models.synctalk.losses import build_perceptual_loss
from models.synctalk.networks import SyncNet, UNet
from models.synctalk.synthesis import SyncTalkSynthesizer
from models.views import Image

LOWEST_RATE = 0.02
"""Share of the learning rate that is left at the end of its cosine."""


@dataclass(frozen=True)
class Frozen:
    """Networks of the stage before, which this one uses and never trains; not a submodule, so that checkpoints stay small."""

    syncnet: SyncNet


class SyncTalkPainter(TrainingModule):
    """The U-Net, its average, and the person's reference picture."""

    updates: Tensor
    reference: Tensor

    def __init__(self, config: SyncTalkConfig, context: BuildContext) -> None:
        super().__init__()
        self.config = config
        if context.start_from is None:
            raise ValueError("synctalk's stage unet starts from the export of its stage syncnet: train that first, or give --start-from")
        syncnet = SyncNet(config).eval().requires_grad_(False)
        load_network(syncnet, context.start_from, "syncnet", "synctalk")
        lay_channels_last(syncnet).to(context.device)
        self._frozen = Frozen(syncnet)
        self._perceptual = (build_perceptual_loss(config.losses, context.weights).to(context.device),)
        self.unet = UNet(config)
        self.average_unet = UNet(config).requires_grad_(False)
        self.average_unet.load_state_dict(self.unet.state_dict())
        core = config.geometry.core
        self.register_buffer("reference", torch.zeros(3, core, core, dtype=torch.uint8))
        if context.face is not None:
            self.reference.copy_(reference_of(context.face, config))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        lay_channels_last(self).to(context.device)
        options = config.optimizer
        self._optimizers = {"unet": torch.optim.Adam(self.unet.parameters(), lr=options.lr, betas=(options.beta1, options.beta2))}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """One Adam."""
        return self._optimizers

    def train(self, mode: bool = True) -> SyncTalkPainter:
        """The average stays in evaluation."""
        super().train(mode)
        self.average_unet.eval()
        return self

    def training_step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One update; `batch` as of `PaintExamples`, B examples of T frames."""
        made = self.paint(self.unet, batch)
        terms = self.losses(made, batch, step)
        total = torch.stack(list(terms.values())).sum()
        optimizer = self._optimizers["unet"]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(self.config.optimizer, step)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.sync_gradients(self.unet.parameters())
        optimizer.step()
        torch.clear_autocast_cache()
        self.updates += 1
        update_average(self.average_unet, self.unet, warm_decay(int(self.updates), self.config.optimizer.ema))
        return {
            "loss": total.detach(),
            "lr": torch.tensor(learning_rate(self.config.optimizer, step)),
            **{f"loss_{name}": term.detach() for name, term in terms.items()},
        }

    def paint(self, unet: nn.Module, batch: Batch) -> Tensor:
        """Painted cores of a batch: [B, T, 3, S, S] in 0..1."""
        shape = batch["cores"].shape[:2]
        truth = batch["cores"].flatten(0, 1).float() / 255
        references = (batch["reference"].float() / 255).repeat_interleave(shape[1], dim=0)
        pictures = torch.cat([references, masked(truth, self.config.geometry)], dim=1).contiguous(memory_format=torch.channels_last)
        painted: Tensor = unet(pictures, hear(self._frozen.syncnet.audio_encoder, batch["sound"], batch["hears"], self.config))
        return painted.unflatten(0, shape)

    def losses(self, made: Tensor, batch: Batch, step: int) -> dict[str, Tensor]:
        """Weighted terms by name; `made` [B, T, 3, S, S] in 0..1."""
        options = self.config.losses
        made = made.float()
        truth = batch["cores"].float() / 255
        error = (made - truth).abs().mean(dim=2)
        there = box_mask(batch["inside"], error.shape[-1])
        terms = {"l1": options.l1 * mean_inside(error, there)}
        if options.mouth:
            terms["mouth"] = options.mouth * mean_inside(error, there * box_mask(batch["mouths"], error.shape[-1]))
        if self._perceptual[0].active:
            # Where the frame ends, the picture is the truth's: its repeated edges are never shown.
            seen = torch.where(there[:, :, None] > 0, made, truth)
            terms["perceptual"] = options.perceptual * self._perceptual[0](seen.flatten(0, 1), truth.flatten(0, 1))
        if options.sync and step >= options.sync_from:
            terms["sync"] = options.sync * (1 - self.sync_similarity(made, batch["mel"])).mean()
        return terms

    def sync_similarity(self, made: Tensor, mels: Tensor) -> Tensor:
        """The judge's cosine of cores [B, T, 3, S, S] in 0..1 and their sound [B, 1, 80, 16]: [B], in single precision."""
        with torch.autocast(made.device.type, enabled=False):
            syncnet = self._frozen.syncnet
            return (syncnet.face(look(made.float(), self.config)) * syncnet.audio(mels.float())).sum(dim=1)

    @torch.no_grad()
    def validation_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """Errors of the averaged U-Net on pixels 0..1, PSNR in dB, and the judge's cosine of what it made and of the truth."""
        made = self.paint(self.average_unet, batch).float()
        truth = batch["cores"].float() / 255
        error = (made - truth).abs().mean(dim=2)
        there = box_mask(batch["inside"], error.shape[-1])
        squared = ((made - truth).square().mean(dim=2) * there).flatten(2).sum(dim=2) / there.flatten(2).sum(dim=2).clamp_min(1)
        return {
            "loss": mean_inside(error, there),
            "mouth_l1": mean_inside(error, there * box_mask(batch["mouths"], error.shape[-1])),
            "psnr": (-10 * torch.log10(squared.clamp_min(1e-10))).mean(),
            "sync_similarity": self.sync_similarity(made, batch["mel"]).mean(),
            "sync_similarity_truth": self.sync_similarity(truth, batch["mel"]).mean(),
        }

    @torch.no_grad()
    def preview(self, batch: Batch) -> Image:
        """Rows of at most four examples: reference, masked, made, truth, and their difference five times."""
        made = self.paint(self.average_unet, batch)[:4, 0].float()
        truth = batch["cores"][:4, 0].float() / 255
        columns = {
            "reference": to_image(batch["reference"][:4].float() / 255),
            "masked": to_image(masked(truth, self.config.geometry)),
            "made": to_image(made),
            "truth": to_image(truth),
            "difference x5": to_image((made - truth).abs() * 5),
        }
        return labelled_grid(columns)

    def synthesizer(self) -> SyncTalkSynthesizer:
        """The averaged U-Net at work."""
        device = self.updates.device
        return SyncTalkSynthesizer(self.config, self.average_unet, self._frozen.syncnet, self.reference, device)

    def export(self, folder: Path) -> None:
        """The averaged U-Net, SyncNet with the encoder of sound, and the reference picture."""
        save_network(folder, "unet", self.average_unet)
        save_network(folder, "syncnet", self._frozen.syncnet)
        holder = nn.Module()
        holder.register_buffer("reference", self.reference)
        save_network(folder, "person", holder)
        write_config(folder, self.config, stage="unet", updates=int(self.updates))


def learning_rate(options: OptimizerConfig, step: int) -> float:
    """The rate of a step: a function of the step alone, so that a resumed run goes on with it."""
    if not options.cosine_steps:
        return options.lr
    done = min(1.0, step / options.cosine_steps)
    return options.lr * (LOWEST_RATE + (1 - LOWEST_RATE) * (1 + math.cos(math.pi * done)) / 2)


def hear(encoder: nn.Module, sound: Tensor, hears: Tensor, config: SyncTalkConfig) -> Tensor:
    """What the U-Net hears for each frame, of what `heard` gives.

    Args:
        encoder: the frozen encoder of mel windows; unused where the sound comes as learned features.
        sound: [B, T + 15, ...], `hears`: bool [B, T + 15].

    Returns:
        float32 [B T, 16, ...]: rows i - 8 .. i + 7 of every frame i, zero where `hears` is False.
    """
    if config.audio.encoder == "ave":
        with torch.no_grad():
            sound = encoder(sound.flatten(0, 1)).unflatten(0, sound.shape[:2])
    present = hears.reshape(*hears.shape, *[1] * (sound.ndim - 2))
    rows = sound * present
    return rows.unfold(1, AUDIO_WINDOW, 1).movedim(-1, 2).flatten(0, 1)


def mean_inside(values: Tensor, inside: Tensor) -> Tensor:
    """Mean of `values` where `inside` is 1, both of one shape; 0 where that is nowhere."""
    return (values * inside).sum() / inside.sum().clamp_min(1)


def box_mask(boxes: Tensor, size: int) -> Tensor:
    """Boxes [..., 4] as x0, y0, x1, y1 -> float32 [..., size, size], 1 inside."""
    at = torch.arange(size, device=boxes.device)
    x0, y0, x1, y1 = (boxes[..., i, None] for i in range(4))
    inside_x, inside_y = (at >= x0) & (at < x1), (at >= y0) & (at < y1)
    return (inside_y[..., :, None] & inside_x[..., None, :]).float()


def reference_of(face: Face, config: SyncTalkConfig) -> Tensor:
    """The fixed picture that the looks are taken from: the core of a frame with closed mouth, uint8 [3, core, core]."""
    chosen = closed_mouth(face.landmarks)
    square = face_squares(face.landmarks[chosen : chosen + 1], smoothing=0)[0]
    return to_tensor(cut_core(np.ascontiguousarray(face.images[chosen]), square, config.geometry))

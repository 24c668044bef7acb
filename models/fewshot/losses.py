"""Losses of the few-shot family. spec/fewshot.md, "Losses and steps"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.features import INPUT_FORMATS, TORCHVISION, VggFeatures
from models.fewshot.config import LossConfig
from models.weights import WeightsStore


def discriminator_hinge(real: Tensor, fake: Tensor) -> Tensor:
    """max(0, 1 - real) + max(0, 1 + fake) on raw scores [B], averaged over the batch.

    A sigmoid before it, or a missing max, leaves a discriminator that answers 1 to everything.
    """
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def adversarial(fake: Tensor) -> Tensor:
    """-D(fake), averaged over the batch: its gradient does not fade where D is sure."""
    return -fake.mean()


def feature_matching(fake: Sequence[Tensor], real: Sequence[Tensor], over: Literal["sum", "mean"]) -> Tensor:
    """L1 means over D's feature maps of fake and (detached) real, summed or averaged over the maps."""
    terms = torch.stack([F.l1_loss(f.float(), r.detach().float()) for f, r in zip(fake, real, strict=True)])
    return terms.sum() if over == "sum" else terms.mean()


def matching(embedding: Tensor, rows: Tensor) -> Tensor:
    """L1 mean between e and detached W_i: it pulls e; W_i is trained by D's hinge alone. Both [B, width]."""
    return F.l1_loss(embedding.float(), rows.detach().float())


class ContentLoss(nn.Module):
    """L1 means over relu1_1..relu5_1, summed, weighted per network; no gradient into the networks."""

    def __init__(self, networks: dict[str, VggFeatures], weights: dict[str, float]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)
        self.weights = dict(weights)

    def forward(self, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Weighted terms by network name; pictures [B, 3, H, W] in -1..1."""
        terms = {}
        for name, network in self.networks.items():
            with torch.no_grad():
                wanted = network(real)
            pairs = zip(network(fake), wanted, strict=True)
            terms[name] = self.weights[name] * torch.stack([F.l1_loss(f.float(), r.float()) for f, r in pairs]).sum()
        return terms


def build_content_loss(config: LossConfig, store: WeightsStore) -> ContentLoss:
    """The content loss that the config asks for; what was used is remembered in `store`.

    Raises:
        MissingWeights: pretrained files are asked for and cannot be had.
    """
    preset = config.resolved()
    wanted = {
        "vgg19": (19, TORCHVISION, preset.vgg19),
        "vggface": (16, INPUT_FORMATS[config.vggface_input], preset.vggface),
    }
    networks: dict[str, VggFeatures] = {}
    for name, (depth, input_format, weight) in wanted.items():
        if config.content == "off" or weight == 0:
            store.record(name, "off")
            continue
        # A seed of its own: random features must be the same ones after a resume.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(depth)
            network = VggFeatures(depth, input_format)
        if config.content == "pretrained":
            network.load(store.resolve(name))
        else:
            store.record(name, "random")
        networks[name] = network
    return ContentLoss(networks, {name: wanted[name][2] for name in networks})

"""The perceptual loss of the U-Net. spec/synctalk.md, "Losses and training"."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.features import TORCHVISION, VggFeatures
from models.synctalk.config import LossConfig
from models.weights import WeightsStore

STD = 0.226
"""Mean of the three standard deviations that ImageNet's pictures are divided by."""


class PerceptualLoss(nn.Module):
    """Mean squared difference of VGG19's conv3_3, as the convolution leaves it; no gradient into the network.

    The public code feeds VGG19 with bare 0..1 pictures, blue first, which it was not trained on. Here it gets what it was trained on,
    and the result is multiplied by the square of `STD`, so that the published weight of 0.01 weighs what it did.
    """

    def __init__(self, network: VggFeatures | None) -> None:
        super().__init__()
        self.network = network

    @property
    def active(self) -> bool:
        """False where the config wants no perceptual loss."""
        return self.network is not None

    def forward(self, made: Tensor, truth: Tensor) -> Tensor:
        """Pictures [N, 3, H, W], RGB in 0..1 -> a scalar; 0 where it is off."""
        if self.network is None:
            return made.new_zeros(())
        with torch.no_grad():
            wanted = self.network.convolution(truth * 2 - 1, 3, 3)
        got = self.network.convolution(made * 2 - 1, 3, 3)
        return (got.float() - wanted.float()).square().mean() * STD**2


def build_perceptual_loss(config: LossConfig, store: WeightsStore) -> PerceptualLoss:
    """The perceptual loss that the config asks for; what was used is remembered in `store`.

    Raises:
        MissingWeights: the pretrained file is asked for and cannot be had.
    """
    if config.content == "off" or config.perceptual == 0:
        store.record("vgg19", "off")
        return PerceptualLoss(None)
    # A seed of its own: random features must be the same ones after a resume.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(19)
        network = VggFeatures(19, TORCHVISION)
    if config.content == "pretrained":
        network.load(store.resolve("vgg19"))
    else:
        store.record("vgg19", "random")
    return PerceptualLoss(network)

"""Content features: the right layers, the right input for the weights, published names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.features import CAFFE_BGR, TORCHVISION, VggFeatures
from models.weights import CorruptWeights

VGG19 = (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512, "M")
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def published(layout: tuple[int | str, ...]) -> nn.Sequential:
    """`features` of torchvision's VGG, layer by layer."""
    layers: list[nn.Module] = []
    inputs = 3
    for entry in layout:
        if isinstance(entry, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(inputs, entry, 3, padding=1), nn.ReLU()]
            inputs = entry
    return nn.Sequential(*layers)


@pytest.mark.parametrize(("depth", "layout", "taps"), [(19, VGG19, (1, 6, 11, 20, 29)), (16, VGG16, (1, 6, 11, 18, 25))])
def test_loads_torchvision_names_and_gives_relu_x_1(
    tmp_path: Path, depth: int, layout: tuple[int | str, ...], taps: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    reference = published(layout)
    torch.save({f"features.{name}": value for name, value in reference.state_dict().items()}, tmp_path / "vgg.pth")
    network = VggFeatures(depth, TORCHVISION).load(tmp_path / "vgg.pth")
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    x = (images / 2 + 0.5 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    expected = []
    for i, layer in enumerate(reference):
        x = layer(x)
        if i in taps:
            expected.append(x)
    for got, wanted in zip(network(images), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)


def test_loads_caffe_names(tmp_path: Path) -> None:
    reference = VggFeatures(16, CAFFE_BGR)
    state = {
        f"conv{s + 1}_{c + 1}.{kind}": layer.get_parameter(kind)
        for s, stage in enumerate(reference.stages)
        for c, layer in enumerate(stage)
        for kind in ("weight", "bias")
    }
    torch.save({**state, "fc6.weight": torch.zeros(1)}, tmp_path / "face.pth")
    loaded = VggFeatures(16, CAFFE_BGR).load(tmp_path / "face.pth")
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    for got, wanted in zip(loaded(images), reference(images), strict=True):
        assert torch.equal(got, wanted)


def test_caffe_input_is_bgr_0_255_minus_mean() -> None:
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1)
    got = VggFeatures(16, CAFFE_BGR).normalise(red).flatten()
    torch.testing.assert_close(got, torch.tensor([-103.939, -116.779, 255 - 123.680]))


def test_another_networks_file_is_refused(tmp_path: Path) -> None:
    torch.save({"conv1_1.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "part.pth")
    with pytest.raises(CorruptWeights, match=r"conv1_1\.bias"):
        VggFeatures(16, CAFFE_BGR).load(tmp_path / "part.pth")


def test_frozen_but_passes_gradients_on() -> None:
    network = VggFeatures(19, TORCHVISION)
    images = torch.zeros(1, 3, 16, 16, requires_grad=True)
    F.l1_loss(network(images)[4], torch.ones(1, 512, 1, 1)).backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert all(p.grad is None for p in network.parameters())

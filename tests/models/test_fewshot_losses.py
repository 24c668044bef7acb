"""Losses and presets, each against the mistake that earlier public code made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from models.fewshot import losses
from models.fewshot.config import FewShotConfig, LossConfig, NetworkConfig
from models.weights import MissingWeights, WeightsStore


def test_hinge_pushes_real_up_and_fake_down_until_the_margin() -> None:
    real = torch.tensor([0.5, 2.0], requires_grad=True)
    fake = torch.tensor([-0.5, -2.0], requires_grad=True)
    losses.discriminator_hinge(real, fake).backward()
    assert real.grad is not None
    assert fake.grad is not None
    torch.testing.assert_close(real.grad, torch.tensor([-0.5, 0.0]))
    torch.testing.assert_close(fake.grad, torch.tensor([0.5, 0.0]))


def test_hinge_is_not_the_sum_whose_gradient_vanishes() -> None:
    """-r + relu(1 + r) of the public code gives no gradient at all for r > -1; so does a sigmoid that is sure."""
    score = torch.tensor([0.7], requires_grad=True)
    losses.adversarial(score).backward()
    assert score.grad is not None
    assert float(score.grad) == -1
    sure = torch.tensor([30.0], requires_grad=True)
    losses.adversarial(sure).backward()
    assert sure.grad is not None
    assert float(sure.grad) == -1, "the generator's gradient does not fade where D is sure"


def test_feature_matching_sums_or_averages_and_holds_the_real_side() -> None:
    fake = [torch.ones(1, 2, 4, 4, requires_grad=True), torch.ones(1, 8, 2, 2, requires_grad=True)]
    real = [torch.zeros(1, 2, 4, 4, requires_grad=True), torch.full((1, 8, 2, 2), 3.0, requires_grad=True)]
    assert float(losses.feature_matching(fake, real, "sum").detach()) == 3
    losses.feature_matching(fake, real, "mean").backward()
    assert float(losses.feature_matching(fake, real, "mean").detach()) == 1.5
    assert all(f.grad is not None for f in fake)
    assert all(r.grad is None for r in real)


def test_matching_pulls_e_and_never_the_row() -> None:
    e, row = torch.ones(2, 4, requires_grad=True), torch.zeros(2, 4, requires_grad=True)
    losses.matching(e, row).backward()
    assert e.grad is not None
    assert row.grad is None


def test_presets_are_the_published_ones() -> None:
    v1, v2 = LossConfig(preset="paper_v1").resolved(), LossConfig(preset="paper_v2").resolved()
    assert (v1.vgg19, v1.vggface, v1.feature_matching, v1.matching, v1.pooling) == (1e-2, 2e-3, 10, 80, "max")
    assert (v2.vgg19, v2.vggface, v2.feature_matching, v2.matching, v2.pooling) == (0.15, 0.025, 10, 10, "sum")
    assert FewShotConfig().losses.preset == "paper_v2"
    assert LossConfig(variant="ff").resolved().matching == 0
    assert LossConfig(variant="ff", matching=5).resolved().matching == 0
    assert LossConfig(vgg19=0.5).resolved().vgg19 == 0.5


def test_published_settings_are_the_defaults() -> None:
    config = FewShotConfig()
    assert (config.optimizer.generator_lr, config.optimizer.discriminator_lr) == (5e-5, 2e-4)
    assert config.optimizer.discriminator_updates == 2
    assert config.data.frames == 8
    assert config.losses.pixel_l1 == 0
    assert config.network.image_size == 256


@pytest.mark.parametrize("wrong", [{"image_size": 100}, {"image_size": 224}, {"chanels": 64}])
def test_wrong_sizes_and_names_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        NetworkConfig.model_validate(wrong)


def test_content_loss_is_a_choice_that_is_tagged(tmp_path: Path) -> None:
    store = WeightsStore(root=tmp_path, offline=True)
    with pytest.raises(MissingWeights, match="content=random or off"):
        losses.build_content_loss(LossConfig(content="pretrained"), store)
    off = losses.build_content_loss(LossConfig(content="off"), store)
    assert off(torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)) == {}
    assert store.tags()["weights.vgg19"] == "off"
    first = losses.build_content_loss(LossConfig(content="random"), store)
    second = losses.build_content_loss(LossConfig(content="random"), store)
    assert store.tags()["weights.vggface"] == "random"
    fake = torch.zeros(1, 3, 32, 32, requires_grad=True)
    terms = first(fake, torch.ones(1, 3, 32, 32))
    assert set(terms) == {"vgg19", "vggface"}
    again = second(fake, torch.ones(1, 3, 32, 32))
    assert all(torch.equal(terms[name], again[name]) for name in terms), "a resumed run must get the same random features"
    sum(terms.values()).backward()
    assert fake.grad is not None
    assert float(fake.grad.abs().sum()) > 0

"""Meta-training and fine-tuning: the spec's failure table, resuming, and the rows of W."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.family import Batch, BuildContext
from models.fewshot.config import FewShotConfig
from models.fewshot.training import FewShotMeta
from models.registry import family
from tests.models.fewshot_material import TINY, make_batch, make_face

Make = Callable[..., BuildContext]


def meta(config: FewShotConfig, context: BuildContext, seed: int = 0) -> FewShotMeta:
    torch.manual_seed(seed)
    module = family("fewshot").build(config, "meta", context)
    assert isinstance(module, FewShotMeta)
    return module.train()


def step(module: Any, batch: Batch, number: int) -> dict[str, float]:
    torch.manual_seed(1000 + number)
    return {name: float(value) for name, value in module.training_step(batch, number).items()}


def snapshot(network: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def changed(network: nn.Module, before: list[torch.Tensor]) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(network.parameters(), before, strict=True))


def test_a_step_trains_everything_and_logs_the_diagnostics(tiny: FewShotConfig, context: Make, batch: Batch) -> None:
    module = meta(tiny, context())
    parts = (module.embedder, module.generator, module.discriminator, module.videos, module.average_embedder, module.average_generator)
    before = [snapshot(part) for part in parts]
    logs = step(module, batch, 0)
    assert all(changed(part, old) for part, old in zip(parts, before, strict=True))
    assert all(np.isfinite(value) for value in logs.values())
    for name in ("loss", "d_real", "d_fake", "d_hinge", "gain_mean", "gain_std", "video_rows_used", "loss_matching", "loss_pixel"):
        assert name in logs
    assert logs["adversarial_grad_norm"] > 0, "the discriminator's answer must reach the generator"
    assert abs(logs["gain_mean"] - 1) < 0.3
    assert logs["video_rows_used"] == 1


def test_two_discriminator_updates_on_a_detached_picture(tiny: FewShotConfig, context: Make, batch: Batch) -> None:
    module = meta(tiny, context())
    calls: list[str] = []
    for name, optimizer in module.optimizers().items():
        optimizer.register_step_pre_hook(lambda o, a, k, n=name: calls.append(n))

    def generator_untouched(optimizer: Any, args: Any, kwargs: Any) -> None:
        assert all(p.grad is None for p in (*module.generator.parameters(), *module.embedder.parameters()))

    module.optimizers()["discriminator"].register_step_pre_hook(generator_untouched)
    step(module, batch, 0)
    assert calls == ["discriminator", "videos"] * 2 + ["generator"]


def test_gradients_are_averaged_before_every_optimiser_step(tiny: FewShotConfig, context: Make, batch: Batch) -> None:
    module = meta(tiny, context())
    seen: list[int] = []

    def sync(parameters: Iterable[nn.Parameter]) -> None:
        listed = list(parameters)
        assert any(parameter.grad is not None for parameter in listed)
        seen.append(len(listed))

    module.sync_gradients = sync
    step(module, batch, 0)
    discriminator, drawing = (
        len(list(module.discriminator.parameters())),
        len([*module.embedder.parameters(), *module.generator.parameters()]),
    )
    assert seen == [discriminator, 1] * 2 + [drawing]


def test_scores_pass_the_margin(tiny: FewShotConfig, context: Make, batch: Batch) -> None:
    """A sigmoid before the hinge would keep them within 0..1, and D would soon answer 1 to everything."""
    for sign in (1, -1):
        module = meta(tiny, context())
        with torch.no_grad():
            module.videos.rows.weight.fill_(sign)
        logs = step(module, batch, 0)
        assert sign * logs["d_real"] > 1
        assert sign * logs["d_fake"] > 1


def test_feed_forward_variant_has_no_matching_loss(context: Make) -> None:
    config = FewShotConfig.model_validate({**TINY, "losses": {**TINY["losses"], "variant": "ff"}})
    assert "loss_matching" not in step(meta(config, context()), make_batch(config, ["a_1", "b_1"]), 0)


def test_only_the_batchs_rows_are_touched(tiny: FewShotConfig, context: Make) -> None:
    module = meta(tiny, context(video_keys=("a_1", "b_1", "c_1")))
    before = module.videos.rows.weight.detach().clone()
    step(module, make_batch(tiny, ["a_1", "a_1"]), 0)
    moved = (module.videos.rows.weight.detach() != before).any(1)
    assert [bool(moved[module.videos.row(key)]) for key in ("a_1", "b_1", "c_1")] == [True, False, False]
    with pytest.raises(KeyError, match="not among the 3 training videos"):
        step(module, make_batch(tiny, ["z_9"]), 1)


def through_file(state: dict[str, Any]) -> dict[str, Any]:
    """As a checkpoint does it: only what `weights_only=True` reads."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_a_resumed_run_takes_the_same_steps_to_the_bit(tiny: FewShotConfig, context: Make) -> None:
    batches = [make_batch(tiny, ["a_1", "b_1"], seed) for seed in range(4)]
    straight = meta(tiny, context())
    logs = [step(straight, batch, i) for i, batch in enumerate(batches)]
    first = meta(tiny, context())
    for i in (0, 1):
        step(first, batches[i], i)
    resumed = meta(tiny, context(), seed=99)
    resumed.load_training_state(through_file(first.training_state()))
    assert [step(resumed, batches[i], i) for i in (2, 3)] == logs[2:]
    wanted, got = straight.state_dict(), resumed.state_dict()
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)


def test_rows_survive_a_dataset_that_grows_and_shrinks(tiny: FewShotConfig, context: Make) -> None:
    old = meta(tiny, context(video_keys=("b_1", "d_1")))
    step(old, make_batch(tiny, ["b_1", "d_1"]), 0)
    kept = {key: old.videos.rows.weight[old.videos.row(key)].detach().clone() for key in ("b_1", "d_1")}
    # b_1 is gone, a_1 and c_1 are new and sort before d_1.
    new = meta(tiny, context(video_keys=("a_1", "c_1", "d_1")), seed=5)
    new.load_training_state(through_file(old.training_state()))
    for key, value in kept.items():
        assert torch.equal(new.videos.rows.weight[new.videos.row(key)], value)
    step(new, make_batch(tiny, ["a_1", "c_1", "d_1"]), 1)
    assert torch.equal(new.videos.rows.weight[new.videos.row("b_1")], kept["b_1"])
    assert not torch.equal(new.videos.rows.weight[new.videos.row("d_1")], kept["d_1"])
    moments = new.optimizers()["videos"].state_dict()["state"][0]["exp_avg"]
    assert moments.shape == (4, tiny.network.embedding)
    assert moments[new.videos.row("c_1")].abs().sum() > 0


def test_a_state_of_another_configuration_is_refused(tiny: FewShotConfig, context: Make) -> None:
    state = meta(tiny, context()).training_state()
    wider = FewShotConfig.model_validate({**TINY, "network": {**TINY["network"], "channels": 12}})
    with pytest.raises(RuntimeError, match="size mismatch"):
        meta(wider, context()).load_training_state(state)


def test_average_follows_and_is_what_validation_uses(tiny: FewShotConfig, context: Make, batch: Batch) -> None:
    module = meta(tiny, context())
    for i in range(3):
        step(module, batch, i)
    module.eval()
    scores = module.validation_step(batch)
    assert {"loss", "psnr"} <= set(scores)
    with torch.no_grad():
        for parameter in module.generator.parameters():
            parameter.zero_()
    assert module.validation_step(batch)["loss"] == scores["loss"]
    module.train()
    assert not module.average_generator.training


def test_preview_is_one_labelled_picture(tiny: FewShotConfig, context: Make, batch: Batch) -> None:
    picture = meta(tiny, context()).eval().preview(batch)
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    assert picture.shape[1] > 4 * 128
    assert picture.std() > 0


def test_half_precision_steps_stay_close(tiny: FewShotConfig, context: Make, batch: Batch) -> None:
    exact, half = meta(tiny, context()), meta(tiny, context())
    wanted = step(exact, batch, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = step(half, batch, 0)
    assert got["loss"] == pytest.approx(wanted["loss"], rel=0.1)
    assert all(p.dtype == torch.float32 for p in half.parameters())


@pytest.fixture
def exported(tiny: FewShotConfig, context: Make, batch: Batch, tmp_path: Path) -> Path:
    module = meta(tiny, context())
    step(module, batch, 0)
    folder = tmp_path / "meta"
    folder.mkdir()
    module.eval().export(folder)
    return folder


def test_fine_tuning_moves_psi_and_row_and_leaves_the_embedder(tiny: FewShotConfig, context: Make, exported: Path, tmp_path: Path) -> None:
    face = make_face()
    module: Any = family("fewshot").build(tiny, "finetune", context(start_from=exported, face=face)).train()
    with torch.no_grad():
        synthesizer: Any = family("fewshot").load(exported, torch.device("cpu"))
        torch.testing.assert_close(module.psi, synthesizer.embed(face), atol=1e-4, rtol=1e-3)
    psi, row, embedder = module.psi.detach().clone(), module.person.detach().clone(), snapshot(module.embedder)
    generator, discriminator = snapshot(module.generator), snapshot(module.discriminator)
    batch = {name: tensor for name, tensor in make_batch(tiny, ["p_1", "p_1"]).items() if name.startswith("target")}
    logs = step(module, batch, 0)
    assert "loss_matching" not in logs
    assert not torch.equal(module.psi, psi)
    assert not torch.equal(module.person, row)
    assert changed(module.generator, generator)
    assert changed(module.discriminator, discriminator)
    assert not changed(module.embedder, embedder)
    folder = tmp_path / "person"
    folder.mkdir()
    module.eval().export(folder)
    own: Any = family("fewshot").load(folder, torch.device("cpu"))
    torch.testing.assert_close(own.psi, module.average_psi)
    resumed: Any = family("fewshot").build(tiny, "finetune", context(start_from=exported)).train()
    resumed.load_training_state(through_file(module.training_state()))
    module.train()
    assert step(resumed, batch, 1) == step(module, batch, 1)


def test_fine_tuning_needs_a_start(tiny: FewShotConfig, context: Make) -> None:
    with pytest.raises(ValueError, match="start_from"):
        family("fewshot").build(tiny, "finetune", context(face=make_face()))


def test_meta_training_can_go_on_from_an_export(tiny: FewShotConfig, context: Make, exported: Path) -> None:
    again = meta(tiny, context(start_from=exported), seed=7)
    loaded: Any = family("fewshot").load(exported, torch.device("cpu"))
    assert torch.equal(again.generator.last_conv.bias, loaded.generator.last_conv.bias)
    assert torch.equal(again.average_generator.last_conv.bias, loaded.generator.last_conv.bias)

"""The two stages: losses against independent computations, nothing leaks through the mask, resume to the bit, and that they learn."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import default_collate

from models.family import BuildContext, Face
from models.synctalk.config import OptimizerConfig, SyncTalkConfig
from models.synctalk.family import SyncTalk
from models.synctalk.judging import OFFSETS, SyncTalkJudge, comparable, contrast, distort, look, muffle, offset_scores
from models.synctalk.painting import SyncTalkPainter, box_mask, hear, learning_rate
from tests.models.synctalk_material import clip, tiny_config

FAMILY = SyncTalk()
MakeContext = Callable[..., BuildContext]


def batch_of(config: SyncTalkConfig, stage: str, size: int = 2, seed: int = 0, **fields: Any) -> dict[str, torch.Tensor]:
    maker = FAMILY.examples(config, stage)
    people = [clip(seed=i % 2, **fields) for i in range(size)]
    batch: dict[str, torch.Tensor] = default_collate([maker(person, np.random.default_rng([seed, i])) for i, person in enumerate(people)])
    return batch


def person() -> Face:
    source = clip(frames=40)
    return Face(images=source.read_frames(range(0, 40, 4)), landmarks=source.landmarks[::4])


@pytest.fixture
def judged(context: MakeContext, tmp_path: Path) -> Path:
    """An untrained export of stage syncnet."""
    torch.manual_seed(0)
    folder = tmp_path / "syncnet"
    folder.mkdir()
    FAMILY.build(tiny_config(), "syncnet", context()).export(folder)
    return folder


def painter(context: MakeContext, judged: Path, config: SyncTalkConfig | None = None, **fields: Any) -> SyncTalkPainter:
    torch.manual_seed(1)
    module = FAMILY.build(config or tiny_config(), "unet", context(start_from=judged, face=person(), **fields))
    assert isinstance(module, SyncTalkPainter)
    return module


def train(module: Any, config: SyncTalkConfig, stage: str, steps: range, **fields: Any) -> list[float]:
    module.train()
    losses = []
    for step in steps:
        torch.manual_seed(step)
        losses.append(float(module.training_step(batch_of(config, stage, seed=step, **fields), step)["loss"]))
    return losses


def test_only_windows_that_are_apart_are_negatives() -> None:
    allowed = comparable(torch.tensor([1, 1, 1, 2]), torch.tensor([0, 4, 5, 2]), apart=5)
    assert allowed.tolist() == [
        [True, False, True, True],
        [False, True, False, True],
        [True, False, True, True],
        [True, True, True, True],
    ]


def test_contrast_is_the_mean_of_both_cross_entropies_over_the_allowed_pairs() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 5)
    allowed = comparable(torch.tensor([1, 1, 1, 2, 2]), torch.tensor([0, 3, 9, 0, 4]), apart=5)
    expected = 0.0
    for matrix, may in ((logits, allowed), (logits.T, allowed.T)):
        for i in range(5):
            expected += float(torch.log(torch.exp(matrix[i][may[i]]).sum()) - matrix[i, i]) / 10
    assert float(contrast(logits, allowed)) == pytest.approx(expected, rel=1e-5)


def test_the_score_of_an_offset_is_the_cosine_with_the_sound_so_many_frames_later(context: MakeContext) -> None:
    config = tiny_config()
    module = FAMILY.build(config, "syncnet", context()).eval()
    batch = batch_of(config, "syncnet", frames=50)
    with torch.no_grad():
        faces = module.average_syncnet.face(look(batch["faces"].flatten(0, 1), config))
        scores = offset_scores(module.average_syncnet, faces, batch)
        own = (faces * module.average_syncnet.audio(batch["mels"].flatten(0, 1))).sum(dim=1)
    assert scores.shape == (8, 31)
    torch.testing.assert_close(scores[:, OFFSETS], own)
    assert (scores.isinf() == ~batch["there"].flatten(0, 1)).all()


def test_distortions_do_nothing_at_zero_and_something_beyond() -> None:
    torch.manual_seed(0)
    faces, mels = torch.rand(6, 15, 40, 80) * 2 - 1, torch.rand(6, 1, 80, 16)
    still = distort(faces, 0, 0)
    for i in range(6):
        same, mirrored = (float((still[i] - other).abs().max()) for other in (faces[i], faces[i].flip(-1)))
        assert min(same, mirrored) < 1e-4
    assert (distort(faces, 0.2, 0.05) - still).abs().mean() > 0.01
    assert torch.equal(muffle(mels, 0), mels)
    assert (muffle(mels, 0.3) - mels).abs().mean() > 0.1


def test_a_judge_learns_which_sound_belongs_to_a_mouth(context: MakeContext) -> None:
    """From drawn mouths that open with the loudness: held-out windows are found far more often than by chance (3 of 31)."""
    config = tiny_config(audio={"channels": 8}, network={"sync_channels": 8}, sync={"positives": 8, "place": 0.02})
    torch.manual_seed(0)
    module = FAMILY.build(config, "syncnet", context())
    losses = train(module, config, "syncnet", range(50), frames=90)
    module.eval()
    scores = module.validation_step(batch_of(config, "syncnet", seed=999, frames=90))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert float(scores["retrieval_accuracy"]) > 0.25


def test_the_painter_starts_from_a_judge_and_says_so(context: MakeContext, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train that first"):
        FAMILY.build(tiny_config(), "unet", context(face=person()))
    with pytest.raises(FileNotFoundError, match="no exported synctalk model"):
        FAMILY.build(tiny_config(), "unet", context(start_from=tmp_path, face=person()))


def test_a_judge_of_another_size_is_refused(context: MakeContext, judged: Path) -> None:
    with pytest.raises(ValueError, match="another configuration"):
        painter(context, judged, tiny_config(network={"sync_channels": 8}))


@pytest.mark.parametrize("mask", ["v1", "v2"])
def test_nothing_of_the_hidden_part_reaches_the_network(context: MakeContext, judged: Path, mask: str) -> None:
    config = tiny_config(geometry={"mask": mask})
    module = painter(context, judged, config).eval()
    batch = batch_of(config, "unet")
    other = dict(batch)
    hidden = batch["cores"].clone()
    bottom = 80 if mask == "v2" else 77
    hidden[..., 2:bottom, 2:78] = torch.randint(0, 255, hidden[..., 2:bottom, 2:78].shape, dtype=torch.uint8)
    other["cores"] = hidden
    with torch.no_grad():
        assert torch.equal(module.paint(module.average_unet, batch), module.paint(module.average_unet, other))
        shown = dict(batch)
        shown["cores"] = batch["cores"].clone()
        shown["cores"][..., :2, :] = 255
        assert not torch.equal(module.paint(module.average_unet, batch), module.paint(module.average_unet, shown))


def test_each_frame_hears_the_sixteen_rows_around_it() -> None:
    config = tiny_config(audio={"encoder": "wav2vec", "layers": 2, "width": 16})
    batch = batch_of(config, "unet", features=True)
    heard = hear(torch.nn.Identity(), batch["sound"], batch["hears"], config).unflatten(0, (2, 5))
    for t in range(5):
        torch.testing.assert_close(heard[:, t], batch["sound"][:, t : t + 16])


def test_losses_are_what_they_say(context: MakeContext, judged: Path) -> None:
    config = tiny_config(losses={"mouth": 0.5, "sync": 0.1, "l1": 2.0, "sync_from": 2})
    module = painter(context, judged, config)
    batch = batch_of(config, "unet")
    made = torch.rand(batch["cores"].shape)
    truth = batch["cores"].float() / 255
    batch["inside"][..., 3] = 70  # the frame ends above the core's last rows
    early, late = module.losses(made, batch, step=1), module.losses(made, batch, step=2)
    assert set(early) == {"l1", "mouth"}
    assert float(late["l1"]) == pytest.approx(2.0 * float(F.l1_loss(made[..., :70, :], truth[..., :70, :])), rel=1e-5)
    total = count = 0.0
    for b in range(2):
        for t in range(5):
            x0, y0, x1, y1 = batch["mouths"][b, t].tolist()
            part = (made - truth)[b, t, :, y0:y1, x0:x1].abs().mean(dim=0)
            total, count = total + float(part.sum()), count + part.numel()
    assert float(late["mouth"]) == pytest.approx(0.5 * total / count, rel=1e-4)
    judge = module._frozen.syncnet
    cosine = (judge.face(look(made, config)) * judge.audio(batch["mel"])).sum(dim=1)
    assert float(late["sync"]) == pytest.approx(0.1 * float((1 - cosine).mean()), rel=1e-4)


def test_boxes_as_masks() -> None:
    inside = box_mask(torch.tensor([[1, 2, 4, 5]]), 8)[0]
    assert inside.sum() == 9
    assert inside[2:5, 1:4].all()


def test_a_resumed_painter_takes_the_same_steps(context: MakeContext, judged: Path) -> None:
    config = tiny_config()
    whole = painter(context, judged)
    train(whole, config, "unet", range(4))
    first = painter(context, judged)
    train(first, config, "unet", range(2))
    second = FAMILY.build(config, "unet", context(start_from=judged))
    second.load_training_state(first.training_state())
    train(second, config, "unet", range(2, 4))
    for (name, a), (_, b) in zip(whole.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_a_painter_learns_the_drawn_person(context: MakeContext, judged: Path) -> None:
    config = tiny_config(optimizer={"lr": 4e-3, "ema": 0.5}, losses={"mouth": 1.0, "sync": 0.0})
    module = painter(context, judged, config)
    module.eval()
    before = module.validation_step(batch_of(config, "unet", seed=77))
    losses = train(module, config, "unet", range(30))
    module.eval()
    after = module.validation_step(batch_of(config, "unet", seed=77))
    assert np.mean(losses[-5:]) < 0.6 * losses[0]
    assert float(after["loss"]) < 0.8 * float(before["loss"])
    grid = module.preview(batch_of(config, "unet"))
    assert grid.dtype == np.uint8
    assert grid.shape[1] > 5 * 128


def test_judges_preview_shows_mouths_and_scores(context: MakeContext) -> None:
    config = tiny_config()
    module = FAMILY.build(config, "syncnet", context()).eval()
    assert isinstance(module, SyncTalkJudge)
    grid = module.preview(batch_of(config, "syncnet"))
    assert grid.dtype == np.uint8
    assert (grid == [0, 140, 60]).all(axis=-1).any()


def test_what_was_not_pretrained_is_recorded(context: MakeContext, judged: Path) -> None:
    given = context()
    FAMILY.build(tiny_config(), "syncnet", given)
    assert given.weights.tags()["weights.synctalk-ave.pretrained"] == "false"
    given = context(start_from=judged, face=person())
    FAMILY.build(tiny_config(), "unet", given)
    assert given.weights.tags()["weights.vgg19"] == "off"


def test_the_learning_rate_is_a_function_of_the_step() -> None:
    constant = OptimizerConfig(lr=0.01)
    assert {learning_rate(constant, step) for step in (0, 10, 10**6)} == {0.01}
    falling = OptimizerConfig(lr=0.01, cosine_steps=100)
    rates = [learning_rate(falling, step) for step in range(0, 101, 10)]
    assert rates[0] == 0.01
    assert rates[5] == pytest.approx(0.0051)
    assert rates[-1] == pytest.approx(0.0002) == learning_rate(falling, 500)
    assert all(a > b for a, b in itertools.pairwise(rates))

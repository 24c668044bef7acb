"""Making frames: order, streaming, faceless frames, silence, and that training and inference see the same pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from models.family import BuildContext, Driver, Face, Template, ping_pong
from models.synctalk.examples import PaintExamples
from models.synctalk.family import SyncTalk
from models.synctalk.geometry import cut_core, face_squares, inner
from models.synctalk.synthesis import SyncTalkSynthesizer
from models.views import SAMPLES_PER_FRAME, Image
from tests.models.synctalk_material import clip, tiny_config

FAMILY = SyncTalk()
CONFIG = tiny_config(optimizer={"ema": 0.0}, sync={"ema": 0.0})


@pytest.fixture
def exported(context: Callable[..., BuildContext], tmp_path: Path) -> Path:
    torch.manual_seed(0)
    source = clip(frames=40)
    face = Face(images=source.read_frames(range(0, 40, 4)), landmarks=source.landmarks[::4])
    judge, folder = tmp_path / "judge", tmp_path / "model"
    judge.mkdir()
    folder.mkdir()
    for stage, out in (("syncnet", judge), ("unet", folder)):
        module = FAMILY.build(CONFIG, stage, context(start_from=judge, face=face))
        # A few steps, so that the batch norms know their inputs: before, nothing of the sound reaches the picture.
        maker = FAMILY.examples(CONFIG, stage)
        for step in range(4):
            module.training_step(default_collate([maker(source, np.random.default_rng([step, i])) for i in range(2)]), step)
        module.export(out)
    return folder


@pytest.fixture
def model(exported: Path) -> SyncTalkSynthesizer:
    return FAMILY.load(exported, torch.device("cpu"))


def sound(frames: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=int(frames * SAMPLES_PER_FRAME)) * 0.1).astype(np.float32)


def template(frames: int = 8, missing: Sequence[int] = (), asked: list[list[int]] | None = None) -> tuple[Face, Image]:
    source = clip(frames=frames)
    pictures = source.read_frames(range(frames))
    points = source.landmarks.copy()
    points[list(missing)] = np.nan

    def read(indices: Sequence[int]) -> Image:
        if asked is not None:
            asked.append(list(indices))
        return pictures[list(indices)]

    return Face(images=pictures[:1], landmarks=source.landmarks[:1], template=Template(read=read, landmarks=points)), pictures


def test_frames_outside_of_the_square_are_the_templates_in_ping_pong_order(model: SyncTalkSynthesizer) -> None:
    face, pictures = template(frames=5)
    assert face.template is not None
    squares = face_squares(face.template.landmarks, CONFIG.geometry.smoothing)
    made = list(model.synthesize(face, Driver(audio=sound(12))))
    assert len(made) == 12
    for frame, index in zip(made, islice(ping_pong(5), 12), strict=True):
        left, top, side = inner(squares[index], CONFIG.geometry)
        outside = np.ones(frame.shape[:2], bool)
        outside[max(0, int(top)) : int(top + side) + 1, max(0, int(left)) : int(left + side) + 1] = False
        assert (frame[outside] == pictures[index][outside]).all()
        assert (frame != pictures[index]).any()


def test_frames_come_as_they_are_made(model: SyncTalkSynthesizer) -> None:
    """One batch of the template is read for the first frame, however long the sound."""
    asked: list[list[int]] = []
    face, _ = template(frames=8, asked=asked)
    stream = model.synthesize(face, Driver(audio=sound(500)))
    next(stream)
    assert asked == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize(("frames", "expected"), [(0.01, 1), (1, 1), (2.5, 3), (31, 31)])
def test_any_length_of_sound_gives_its_frames(model: SyncTalkSynthesizer, frames: float, expected: int) -> None:
    face, _ = template()
    assert len(list(model.synthesize(face, Driver(audio=sound(frames))))) == expected


def test_frames_without_a_face_are_shown_as_they_are(model: SyncTalkSynthesizer) -> None:
    face, pictures = template(frames=8, missing=[2, 3])
    made = list(model.synthesize(face, Driver(audio=sound(8))))
    for index in range(8):
        assert (made[index] == pictures[index]).all() == (index in {2, 3})
    whole, pictures = template(frames=4, missing=range(4))
    assert all((frame == pictures[i]).all() for i, frame in enumerate(model.synthesize(whole, Driver(audio=sound(4)))))


def test_one_picture_is_a_template_too(model: SyncTalkSynthesizer) -> None:
    source = clip(frames=1)
    face = Face(images=source.read_frames([0]), landmarks=source.landmarks)
    made = list(model.synthesize(face, Driver(audio=sound(9))))
    assert len(made) == 9
    assert made[0].shape == (128, 128, 3)


def test_how_many_frames_are_painted_at_once_changes_nothing(exported: Path, model: SyncTalkSynthesizer) -> None:
    face, _ = template(frames=7)
    driver = Driver(audio=sound(20))
    one = FAMILY.load(exported, torch.device("cpu"))
    one.config = CONFIG.model_copy(update={"synthesis_batch": 1})
    for a, b in zip(model.synthesize(face, driver), one.synthesize(face, driver), strict=True):
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 1


def test_what_is_heard_changes_with_the_sound_and_rests_in_silence(model: SyncTalkSynthesizer) -> None:
    heard: list[torch.Tensor] = []

    class Listener(torch.nn.Module):
        def forward(self, pictures: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
            heard.append(windows)
            return pictures[:, :3]

    model.unet = Listener()  # type: ignore[assignment]
    source = clip(frames=1)
    face = Face(images=source.read_frames([0]), landmarks=source.landmarks)
    for audio, moves in ((clip(frames=42).audio, True), (np.zeros(42 * SAMPLES_PER_FRAME, np.float32), False)):
        heard.clear()
        made = list(model.synthesize(face, Driver(audio=audio)))
        windows = torch.cat(heard)
        assert len(windows) == len(made) == 42
        change = windows.diff(dim=0).abs().amax(dim=(1, 2))
        # In silence nothing changes from the first frame to the last: a mouth at rest does not twitch where the sound begins and ends.
        assert bool((change > 1e-6).all()) == moves
        assert moves or float(change.max()) < 1e-5


def test_training_and_inference_cut_the_same_pixels(model: SyncTalkSynthesizer) -> None:
    source = clip(frames=30)
    example = PaintExamples(geometry=CONFIG.geometry, audio=CONFIG.audio, frames=5)(source, np.random.default_rng(3))
    case = FAMILY.evaluation_case(CONFIG, source)
    assert case.face.template is not None
    squares = face_squares(case.face.template.landmarks, CONFIG.geometry.smoothing)
    cores = [cut_core(case.face.template.read([i])[0], squares[i], CONFIG.geometry) for i in range(30)]
    for frame in example["cores"]:
        assert any(np.array_equal(np.moveaxis(core, -1, 0), frame.numpy()) for core in cores)


def test_the_case_hides_nothing_but_the_mouth_and_names_what_is_painted() -> None:
    case = FAMILY.evaluation_case(CONFIG, clip(frames=20, missing=[4]))
    assert case.face.template is not None
    assert case.painted is not None
    assert len(case.targets) == len(case.face.template) == len(case.painted.boxes) == 20
    assert np.isnan(case.face.template.landmarks[4]).all()
    assert case.painted.size == 80
    assert (abs(case.painted.boxes[4] - case.painted.boxes[3]) <= 2).all()
    with pytest.raises(ValueError, match="no sound"):
        FAMILY.evaluation_case(CONFIG, clip(audio=False))


def test_the_baseline_shows_the_references_mouth_in_place(model: SyncTalkSynthesizer) -> None:
    face, pictures = template(frames=6)
    made = list(model.baseline(face, Driver(audio=sound(6))))
    assert len(made) == 6
    assert face.template is not None
    squares = face_squares(face.template.landmarks, CONFIG.geometry.smoothing)
    reference = np.moveaxis(model.reference.numpy(), 0, -1)
    seen = cut_core(made[3], squares[3], CONFIG.geometry)
    middle = slice(20, 60)
    assert np.abs(seen[middle, middle].astype(int) - reference[middle, middle].astype(int)).mean() < 6
    assert (made[3][:8] == pictures[3][:8]).all()


def test_lip_sync_scores_every_window_against_every_offset_that_exists(model: SyncTalkSynthesizer) -> None:
    source = clip(frames=40, missing=[20])
    scores = model.lip_sync(
        source.read_frames(range(40)), np.where(source.confidence[:, None, None] > 0, source.landmarks, np.nan), source.audio
    )
    assert scores is not None
    starts = [*range(16), *range(21, 36)]
    assert scores.shape == (len(starts), 31)
    for row, start in zip(scores, starts, strict=True):
        there = [0 <= start + offset < 36 for offset in range(-15, 16)]
        assert (np.isfinite(row) == there).all()
    short = clip(frames=3)
    assert model.lip_sync(short.read_frames(range(3)), short.landmarks, short.audio).shape == (0, 31)


def test_what_is_missing_is_said(model: SyncTalkSynthesizer, exported: Path, tmp_path: Path) -> None:
    face, _ = template()
    with pytest.raises(ValueError, match="driven by sound"):
        next(model.synthesize(face, Driver()))
    with pytest.raises(FileNotFoundError, match="no exported synctalk model"):
        FAMILY.load(tmp_path, torch.device("cpu"))
    (exported / "unet.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="makes no frames"):
        FAMILY.load(exported, torch.device("cpu"))

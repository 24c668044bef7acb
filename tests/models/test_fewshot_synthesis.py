"""Exported models, synthesis, the baseline and the evaluation's task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.family import BuildContext, Driver, Face, Synthesizer
from models.fewshot.config import FewShotConfig
from models.fewshot.family import split_clip
from models.fewshot.synthesis import nearest_pose
from models.registry import family
from tests.models.fewshot_material import face_points, make_clip, make_face

DEVICE = torch.device("cpu")


@pytest.fixture
def exported(tiny: FewShotConfig, context: Callable[..., BuildContext], tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "model"
    folder.mkdir()
    family("fewshot").build(tiny, "meta", context()).eval().export(folder)
    return folder


def made(model: Synthesizer, face: Face, driver: Driver) -> np.ndarray:
    return np.stack(list(model.synthesize(face, driver)))


def test_an_exported_model_makes_the_same_frames_after_loading(exported: Path) -> None:
    face = make_face()
    points = np.stack([face_points(64, shift=0.01 * i) for i in range(11)])
    model = family("fewshot").load(exported, DEVICE)
    frames = made(model, face, Driver(landmarks=points, size=64))
    assert frames.shape == (11, 64, 64, 3)
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, made(family("fewshot").load(exported, DEVICE), face, Driver(landmarks=points, size=64)))
    assert (frames[0] != frames[10]).any(), "the landmarks must matter"
    assert sorted(p.suffix for p in exported.iterdir()) == [".json", ".safetensors", ".safetensors", ".safetensors"]


def test_the_drivers_own_size_does_not_matter(exported: Path) -> None:
    model = family("fewshot").load(exported, DEVICE)
    small, large = face_points(64)[None], ((face_points(64) + 0.5) * 8 - 0.5)[None].astype(np.float32)
    face = make_face()
    difference = made(model, face, Driver(landmarks=small, size=64)).astype(int) - made(model, face, Driver(landmarks=large, size=512))
    assert np.abs(difference).max() <= 1


def test_frames_come_as_they_are_made(exported: Path) -> None:
    model = family("fewshot").load(exported, DEVICE)
    frames = model.synthesize(make_face(), Driver(landmarks=np.repeat(face_points(64)[None], 10_000, 0), size=64))
    assert next(frames).shape == (64, 64, 3)


def test_baseline_copies_the_nearest_pose(exported: Path) -> None:
    model = family("fewshot").load(exported, DEVICE)
    landmarks = np.stack([face_points(64, shift=s) for s in (-0.1, 0.0, 0.1)])
    images = np.stack([np.full((64, 64, 3), level, np.uint8) for level in (10, 20, 30)])
    driver = Driver(landmarks=np.stack([face_points(128, shift=s) for s in (0.09, -0.2, 0.02)]), size=128)
    copies = list(model.baseline(Face(images=images, landmarks=landmarks), driver))
    assert [int(copy.mean()) for copy in copies] == [30, 10, 20]


def test_nearest_pose_takes_the_mouth_into_account() -> None:
    references = np.stack([face_points(64, opening=o) for o in (0.0, 0.1)])
    assert nearest_pose(face_points(64, opening=0.08), references) == 1


def test_wrong_drivers_and_faces_are_refused(exported: Path) -> None:
    model = family("fewshot").load(exported, DEVICE)
    with pytest.raises(ValueError, match="driven by landmarks"):
        next(iter(model.synthesize(make_face(), Driver(audio=np.zeros(640, np.float32)))))
    nobody = Face(images=np.zeros((0, 64, 64, 3), np.uint8), landmarks=np.zeros((0, 68, 2), np.float32))
    with pytest.raises(ValueError, match="0 pictures"):
        next(iter(model.synthesize(nobody, Driver(landmarks=face_points(64)[None], size=64))))


def test_a_folder_that_is_no_model_is_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        family("fewshot").load(tmp_path / "nothing", DEVICE)
    content = json.loads((exported / "config.json").read_text())
    content["config"]["network"]["channels"] = 12
    (exported / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="another configuration"):
        family("fewshot").load(exported, DEVICE)
    (exported / "config.json").write_text(json.dumps({**content, "family": "loopy"}))
    with pytest.raises(ValueError, match="'loopy'"):
        family("fewshot").load(exported, DEVICE)


@given(st.integers(2, 300), st.integers(1, 40), st.integers(1, 60), st.floats(0.05, 0.95))
def test_shown_and_wanted_frames_never_overlap(num_frames: int, faces: int, frames: int, part: float) -> None:
    config = FewShotConfig.model_validate({"evaluation": {"faces": faces, "frames": frames, "first_part": part}})
    shown, wanted = split_clip(make_clip(num_frames), config)
    assert shown
    assert wanted
    assert max(shown) < min(wanted)
    assert max(wanted) < num_frames
    assert len(shown) <= faces
    assert len(wanted) <= frames
    for indices in (shown, wanted):
        assert indices == sorted(set(indices))


def test_frames_without_a_face_are_not_used() -> None:
    confidence = np.ones(40, np.float32)
    confidence[::2] = 0
    shown, wanted = split_clip(make_clip(40, confidence=confidence), FewShotConfig())
    assert all(index % 2 == 1 for index in (*shown, *wanted))


def test_evaluation_case_is_resized_and_in_order(tiny: FewShotConfig) -> None:
    clip = make_clip(40, size=96)
    case = family("fewshot").evaluation_case(tiny, clip)
    shown, wanted = split_clip(clip, tiny)
    assert case.key == clip.key
    assert case.targets.shape == (len(wanted), 64, 64, 3)
    assert [int(frame.mean()) for frame in case.targets] == wanted
    assert [int(frame.mean()) for frame in case.face.images] == shown
    assert case.driver.size == 64
    assert case.driver.landmarks is not None
    np.testing.assert_allclose(case.target_landmarks, (clip.landmarks[wanted] + 0.5) * 64 / 96 - 0.5, atol=1e-3)


def test_a_clip_of_one_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="1 frame"):
        family("fewshot").evaluation_case(FewShotConfig(), make_clip(1))

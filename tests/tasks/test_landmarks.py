"""Landmarkers: order of the points, tracking, determinism, and errors that say what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tasks.rejects import RejectCode, VideoRejected
from tasks.settings import LandmarkSettings
from tasks.video.landmarks import FaceFrame, Landmarker, comparable_faces, make_landmarker, overlap
from tasks.video.landmarks_sidecar import SidecarLandmarker, sidecar_uri
from tests.tasks.made_videos import face_frames, plain_frames, portrait


@pytest.fixture(scope="module")
def mediapipe() -> Landmarker:
    return make_landmarker(LandmarkSettings())


def parts(points: np.ndarray) -> dict[str, np.ndarray]:
    cuts = {"jaw": (0, 17), "brow_r": (17, 22), "brow_l": (22, 27), "bridge": (27, 31), "nostrils": (31, 36), "eye_r": (36, 42)}
    cuts |= {"eye_l": (42, 48), "lips": (48, 60), "inner": (60, 68)}
    return {name: points[a:b] for name, (a, b) in cuts.items()}


def test_points_are_in_ibug_order(mediapipe: Landmarker) -> None:
    """Subject's right is the picture's left; every part where a face has it."""
    face = mediapipe.detect(portrait(256))
    assert face.points is not None
    assert face.points.dtype == np.float32
    assert face.points.shape == (68, 2)
    p = parts(face.points)
    assert (np.diff(p["jaw"][:, 0]) > -2).all()
    assert p["jaw"][:, 1].argmax() in (7, 8, 9)
    for name in ("brow_r", "brow_l", "nostrils"):
        assert (np.diff(p[name][:, 0]) > 0).all()
    assert (np.diff(p["bridge"][:, 1]) > 0).all()
    assert p["brow_r"][:, 0].max() < p["brow_l"][:, 0].min()
    for eye, brow in (("eye_r", "brow_r"), ("eye_l", "brow_l")):
        assert p[eye][:, 1].min() > p[brow][:, 1].mean()
        assert p[eye][0, 0] < p[eye][1, 0] < p[eye][2, 0] < p[eye][3, 0]
        assert p[eye][1:3, 1].mean() < p[eye][4:6, 1].mean()
    assert p["lips"][0, 0] < p["lips"][3, 0] < p["lips"][6, 0]
    assert p["lips"][3, 1] < p["lips"][9, 1]
    assert p["inner"][0, 0] < p["inner"][4, 0]
    assert p["lips"][3, 1] <= p["inner"][2, 1] <= p["inner"][6, 1] <= p["lips"][9, 1]
    assert p["bridge"][3, 1] < p["nostrils"][:, 1].mean() < p["lips"][3, 1]
    assert face.confidence > 0.5
    assert face.faces == 1


def test_the_same_pictures_give_the_same_bytes(mediapipe: Landmarker) -> None:
    """Also after other videos, and in a second instance."""
    frames = face_frames(12)
    first = [face.points for face in mediapipe.track(frames)]
    list(mediapipe.track([*plain_frames(3), *face_frames(2, 300, 500)]))
    again = [face.points for face in mediapipe.track(frames)]
    other = [face.points for face in make_landmarker(LandmarkSettings()).track(frames)]
    for one, two, three in zip(first, again, other, strict=True):
        assert one is not None
        assert two is not None
        assert three is not None
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


def test_points_follow_the_picture(mediapipe: Landmarker) -> None:
    """The same face placed 100 px further is found 100 px further: regions and offsets are right."""
    face = portrait(256)
    places = [(20, 30), (20, 130), (240, 330)]
    found = []
    for top, left in places:
        picture = np.full((560, 640, 3), 128, np.uint8)
        picture[top : top + 256, left : left + 256] = face
        result = mediapipe.detect(picture)
        assert result.points is not None
        found.append(result.points - np.array([left, top], np.float32))
    assert np.abs(found[0] - found[1]).max() < 4
    assert np.abs(found[0] - found[2]).max() < 4


def test_a_moving_face_is_followed_through_the_picture(mediapipe: Landmarker) -> None:
    """The mesh's region has to move with it."""
    face = portrait(160)
    lefts = list(range(0, 740, 10))
    errors, reference = [], None
    frames = []
    for left in lefts:
        picture = np.full((420, 900, 3), 128, np.uint8)
        picture[100:260, left : left + 160] = face
        frames.append(picture)
    for left, result in zip(lefts, mediapipe.track(frames), strict=True):
        assert result.points is not None, left
        own = result.points - np.array([left, 0], np.float32)
        reference = own if reference is None else reference
        errors.append(np.abs(own - reference).mean())
    assert max(errors) < 5


def test_small_face_in_a_tall_picture(mediapipe: Landmarker) -> None:
    picture = np.full((1920, 1080, 3), 150, np.uint8)
    picture[300:520, 400:620] = portrait(220)
    face = mediapipe.detect(picture)
    assert face.points is not None
    assert (face.points.min(axis=0) > [400, 300]).all()
    assert (face.points.max(axis=0) < [620, 520]).all()


def test_two_faces_are_counted_and_none_is_none(mediapipe: Landmarker) -> None:
    two = np.concatenate([portrait(256), portrait(256)], axis=1)
    assert mediapipe.detect(two).faces == 2
    empty = list(mediapipe.track(plain_frames(12)))
    assert [face.points for face in empty] == [None] * 12
    assert [face.confidence for face in empty] == [0.0] * 12


def test_a_face_that_comes_back_is_found_again(mediapipe: Landmarker) -> None:
    frames = [*face_frames(4), *plain_frames(14, 256, 256), *face_frames(10)]
    seen = [face.points is not None for face in mediapipe.track(frames)]
    assert seen[:4] == [True] * 4
    assert not any(seen[6:18])
    assert all(seen[23:])


def test_boxes() -> None:
    assert overlap((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 10, 10), (20, 0, 30, 10)) == 0
    assert comparable_faces([]) == 0
    assert comparable_faces([100, 60, 20]) == 2
    points = np.zeros((68, 2), np.float32)
    points[5] = (30, 40)
    assert FaceFrame(points=points, confidence=1, faces=1).box == (0, 0, 30, 40)
    assert FaceFrame(points=None, confidence=0, faces=0).box is None


def test_sidecar(tmp_path: Path) -> None:
    points = np.random.default_rng(0).uniform(0, 99, (5, 68, 2))
    points[2] = np.nan
    np.save(tmp_path / "a.npy", points)
    bound = SidecarLandmarker().bind(tmp_path / "a.npy", 1.0)
    faces = list(bound.at(1).track([np.zeros((4, 4, 3), np.uint8)] * 6))
    assert [face.points is None for face in faces] == [False, True, False, False, True, True]
    assert faces[0].points is not None
    np.testing.assert_allclose(faces[0].points, points[1], rtol=1e-5)
    np.save(tmp_path / "bad.npy", np.zeros((5, 67, 2)))
    (tmp_path / "text.npy").write_text("no array")
    for name in ("bad.npy", "text.npy"):
        with pytest.raises(VideoRejected) as error:
            SidecarLandmarker().bind(tmp_path / name, 1.0)
        assert error.value.code == RejectCode.SIDECAR_MISSING
    with pytest.raises(VideoRejected, match="without its video"):
        list(SidecarLandmarker().track([np.zeros((4, 4, 3), np.uint8)]))
    assert sidecar_uri("s3://b/dir.x/a b.mp4") == "s3://b/dir.x/a b.npy"
    assert sidecar_uri("/dir.x/plain") == "/dir.x/plain.npy"


def test_missing_weights_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        make_landmarker(LandmarkSettings(backend="face-alignment"))
    for word in ("2DFAN4-11f355bf06.pth.tar", "s3fd-619a316812.pth", str(tmp_path), "stored.landmarks.backend=mediapipe"):
        assert word in str(error.value)


@pytest.mark.slow
def test_face_alignment_runs_its_real_networks() -> None:
    """Random weights find nothing sensible, but every line of the way is walked; the same weights in every process."""
    landmarker = make_landmarker(LandmarkSettings(backend="face-alignment", detector="blazeface", init="random", device="cpu"))
    face = landmarker.detect(face_frames(1, 128, 128)[0])
    assert face.points is not None
    assert face.points.shape == (68, 2)
    assert face.points.dtype == np.float32
    assert np.isfinite(face.points).all()
    assert 0 < face.confidence <= 1
    assert "random" in landmarker.version

"""The embedded sample: people who differ, faces that are found, mouths that follow the sound, files that repeat."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.views import SAMPLES_PER_FRAME
from tasks.sample.face import FaceAnimator, Pose
from tasks.sample.identity import Head, make_head, make_looks
from tasks.sample.make import make_sample, move
from tasks.sample.portrait import SIZE
from tasks.sample.speech import Voice, speak


def decode(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 [F, H, W, 3] and sound float32 [S]."""
    with av.open(str(path)) as container:
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    with av.open(str(path)) as container:
        sound = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    return frames, sound


def mesh_points(frames: np.ndarray) -> list[np.ndarray | None]:
    """MediaPipe's 478 points of every frame in pixels, None where it finds no face."""
    from mediapipe.python.solutions.face_mesh import FaceMesh

    found: list[np.ndarray | None] = []
    with FaceMesh(refine_landmarks=True) as mesh:
        for frame in frames:
            faces = mesh.process(frame).multi_face_landmarks
            found.append(np.array([(p.x, p.y) for p in faces[0].landmark]) * frame.shape[1::-1] if faces else None)
    return found


def mouth_opening(points: np.ndarray) -> float:
    return float(np.linalg.norm(points[13] - points[14]) / np.linalg.norm(points[234] - points[454]))


@pytest.fixture(scope="module")
def heads() -> dict[str, Head]:
    return {look.name: make_head(look) for look in make_looks(4, seed=0)}


@pytest.fixture(scope="module")
def animator(heads: dict[str, Head]) -> FaceAnimator:
    return FaceAnimator(next(iter(heads.values())), np.full((SIZE, SIZE, 3), (90, 110, 100), np.uint8))


def test_tree_sizes_and_repetition(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    arguments = {"identities": 2, "utterances": 2, "seconds": 0.4, "size": 128}
    first = make_sample(tmp_path / "a", **arguments, workers=1, progress=lambda done, total: seen.append((done, total)))
    assert [p.relative_to(tmp_path / "a").parts for p in first] == [
        ("id0000-ada", "0000a", "00001.mp4"),
        ("id0000-ada", "0000b", "00001.mp4"),
        ("id0001-ben", "0001a", "00001.mp4"),
        ("id0001-ben", "0001b", "00001.mp4"),
    ]
    assert seen == [(0, 4), (2, 4), (4, 4)]
    decoded = [decode(path) for path in first]
    for frames, sound in decoded:
        assert frames.shape == (10, 128, 128, 3)
        assert abs(len(sound) - 10 * SAMPLES_PER_FRAME) <= 1024
    assert all(np.abs(a[0].astype(int) - b[0]).mean() > 2 for a, b in combinations(decoded, 2))

    again = make_sample(tmp_path / "b", **arguments, workers=1)
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in first]
    other = make_sample(tmp_path / "c", **(arguments | {"identities": 1, "utterances": 1}), seed=1, workers=1)
    assert not np.array_equal(decode(other[0])[0], decoded[0][0])


@pytest.mark.slow
def test_processes_write_the_same_bytes(tmp_path: Path) -> None:
    arguments = {"identities": 2, "utterances": 1, "seconds": 0.2, "size": 128}
    alone = make_sample(tmp_path / "alone", **arguments, workers=1)
    together = make_sample(tmp_path / "together", **arguments, workers=2)
    assert [p.read_bytes() for p in alone] == [p.read_bytes() for p in together]


@pytest.mark.slow
def test_face_is_found_and_the_mouth_follows_the_sound(tmp_path: Path) -> None:
    path = make_sample(tmp_path, identities=1, utterances=1, seconds=8.0, workers=1)[0]
    frames, sound = decode(path)
    assert frames.shape == (200, 512, 512, 3)
    found = mesh_points(frames)
    assert sum(points is not None for points in found) >= 0.99 * len(found)
    opening = np.array([mouth_opening(points) if points is not None else np.nan for points in found])
    loudness = np.sqrt((sound[: 200 * SAMPLES_PER_FRAME].reshape(200, -1) ** 2).mean(1))
    known = ~np.isnan(opening)
    assert np.corrcoef(opening[known], loudness[known])[0, 1] > 0.6
    # The mouth and the sound belong to the same moment: no shift by more than a frame fits better.
    lags = {lag: np.corrcoef(opening[5:-5], np.roll(loudness, lag)[5:-5])[0, 1] for lag in range(-5, 6)}
    assert abs(max(lags, key=lambda lag: lags[lag])) <= 1
    sizes = [np.ptp(points, axis=0).min() for points in found if points is not None]
    assert np.percentile(sizes, 5) > 200, "the default filter wants faces of 200 pixels"


def test_people_differ_in_geometry_and_colour(heads: dict[str, Head]) -> None:
    def features(head: Head) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        xy = head.points[:, :2]
        width = np.linalg.norm(xy[454] - xy[234])
        lengths = [
            np.linalg.norm(xy[a] - xy[b]) / width for a, b in ((10, 152), (58, 288), (61, 291), (98, 327), (0, 17), (159, 145), (133, 362))
        ]
        skin = np.median(
            head.image[int(xy[50, 1]) - 8 : int(xy[50, 1]) + 8, int(xy[50, 0]) - 8 : int(xy[50, 0]) + 8].reshape(-1, 3), axis=0
        )
        top = int(xy[10, 1])
        hair = np.median(head.image[top - 70 : top - 40, int(xy[10, 0]) - 40 : int(xy[10, 0]) + 40].reshape(-1, 3), axis=0)
        return np.log(lengths), skin, hair

    described = [features(head) for head in heads.values()]
    for (shape_a, skin_a, hair_a), (shape_b, skin_b, hair_b) in combinations(described, 2):
        assert np.abs(shape_a - shape_b).max() > 0.06, "some proportion differs by at least 6 %"
        assert np.abs(skin_a - skin_b).max() + np.abs(hair_a - hair_b).max() > 25, "skin and hair differ by at least 25 of 255"


def test_every_control_moves_its_feature_alone(animator: FaceAnimator) -> None:
    poses = [Pose(), Pose(opening=1.0), Pose(width=1.0), Pose(width=-1.0), Pose(blink=1.0), Pose(yaw=12.0), Pose(yaw=-12.0)]
    neutral, opened, wide, round_, blink, right, left = mesh_points(np.stack([animator.render(p) for p in poses]).repeat(4, 0))[3::4]
    assert neutral is not None
    assert opened is not None
    assert mouth_opening(neutral) < 0.015
    assert mouth_opening(opened) > 0.12

    def width(points: np.ndarray | None) -> float:
        assert points is not None
        return float(np.linalg.norm(points[61] - points[291]))

    assert width(wide) > 1.04 * width(neutral) > 1.08 * width(round_)

    def eye(points: np.ndarray | None) -> float:
        assert points is not None
        return float(np.linalg.norm(points[159] - points[145]))

    assert eye(blink) < 0.4 * eye(neutral)
    assert eye(opened) > 0.85 * eye(neutral)

    def turn(points: np.ndarray | None) -> float:
        assert points is not None
        return float((points[1, 0] - points[234, 0]) / (points[454, 0] - points[234, 0]))

    assert abs(turn(right) - turn(left)) > 0.15


def test_mouth_opens_without_tearing_the_rest(animator: FaceAnimator) -> None:
    shut, opened = animator.render(Pose()).astype(int), animator.render(Pose(opening=1.0)).astype(int)
    changed = np.abs(shut - opened).max(-1) > 2
    assert changed[:250].sum() == 0
    assert changed[:, :60].sum() == 0
    assert changed.sum() > 2000
    assert np.array_equal(animator.render(Pose()), shut), "rendering has no state"


@settings(max_examples=15, deadline=None)
@given(
    opening=st.floats(0, 1), width=st.floats(-1, 1), blink=st.floats(0, 1), brow=st.floats(0, 1), yaw=st.floats(-15, 15),
    pitch=st.floats(-10, 10), roll=st.floats(-10, 10), scale=st.floats(0.9, 1.1), x=st.floats(-20, 20), y=st.floats(-12, 12),
)  # fmt: skip
def test_small_steps_move_the_picture_little(
    animator: FaceAnimator,
    opening: float,
    width: float,
    blink: float,
    brow: float,
    yaw: float,
    pitch: float,
    roll: float,
    scale: float,
    x: float,
    y: float,
) -> None:
    first = Pose(opening=opening, width=width, blink=blink, brow=brow, yaw=yaw, pitch=pitch, roll=roll, scale=scale, shift_x=x, shift_y=y)
    near = Pose(opening=min(1, opening + 0.01), width=width, blink=blink, brow=brow, yaw=yaw + 0.05, pitch=pitch, roll=roll, scale=scale,
                shift_x=x + 0.05, shift_y=y)  # fmt: skip
    a, b = animator.render(first), animator.render(near)
    assert a.shape == (SIZE, SIZE, 3)
    assert np.abs(a.astype(int) - b).mean() < 1.5


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), seconds=st.floats(0.05, 3.0), pitch=st.floats(80, 260), tract=st.floats(0.9, 1.2))
def test_speech_is_bounded_and_has_one_row_per_frame(seed: int, seconds: float, pitch: float, tract: float) -> None:
    speech = speak(Voice(pitch=pitch, tract=tract), seconds=seconds, seed=seed)
    frames = len(speech.opening)
    assert frames == max(1, round(seconds * 25))
    assert speech.audio.shape == (frames * SAMPLES_PER_FRAME,)
    assert speech.audio.dtype == np.float32
    assert np.isfinite(speech.audio).all()
    assert np.abs(speech.audio).max() <= 1
    assert 0 <= speech.opening.min() <= speech.opening.max() <= 1
    assert -1 <= speech.width.min() <= speech.width.max() <= 1
    assert len(move(speech, np.random.default_rng(seed))) == frames


def test_mouth_is_closed_in_silence_and_vowels_have_their_formants() -> None:
    speech = speak(Voice(pitch=110), seconds=60, seed=4)
    loudness = np.sqrt((speech.audio.reshape(-1, SAMPLES_PER_FRAME) ** 2).mean(1))
    silent = loudness < 0.003
    silent &= np.roll(silent, 1) & np.roll(silent, -1) & np.roll(silent, 2) & np.roll(silent, -2)
    assert silent.sum() > 20
    assert speech.opening[silent].max() < 0.15
    assert np.corrcoef(loudness, speech.opening)[0, 1] > 0.6
    # Spread lips have a high second formant: more energy at 1.8-2.6 kHz against 0.6-1.2 kHz than rounded lips.
    spectrum = np.abs(np.fft.rfft(speech.audio.reshape(-1, SAMPLES_PER_FRAME) * np.hanning(SAMPLES_PER_FRAME), axis=1)) ** 2
    hertz = np.fft.rfftfreq(SAMPLES_PER_FRAME, 1 / 16000)
    ratio = np.log(spectrum[:, (hertz > 1800) & (hertz < 2600)].sum(1) / spectrum[:, (hertz > 600) & (hertz < 1200)].sum(1))
    loud = loudness > np.median(loudness)
    spread, rounded = ratio[loud & (speech.width > 0.4)], ratio[loud & (speech.width < -0.4)]
    assert spread.mean() > rounded.mean() + 1.0


def test_same_seed_says_the_same() -> None:
    voice = Voice(pitch=150)
    np.testing.assert_array_equal(speak(voice, seconds=1, seed=7).audio, speak(voice, seconds=1, seed=7).audio)
    assert not np.array_equal(speak(voice, seconds=1, seed=7).audio, speak(voice, seconds=1, seed=8).audio)


def test_more_people_than_types_are_still_different() -> None:
    looks = make_looks(14, seed=3)
    assert len({look.name for look in looks}) == 14
    assert len({(look.shape, look.skin, look.hair) for look in looks}) == 14
    assert looks == make_looks(14, seed=3)
    assert looks[:5] == make_looks(5, seed=3), "asking for more people keeps the first ones"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"identities": 0}, "identity"),
        ({"utterances": 0}, "utterances"),
        ({"utterances": 99}, "utterances"),
        ({"seconds": 0.0}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"size": 129}, "size"),
        ({"size": 2}, "size"),
    ],
)
def test_impossible_requests_are_refused(tmp_path: Path, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_sample(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()

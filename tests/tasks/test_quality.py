"""Scores of hand-made inputs with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.video.crop import CropBox
from tasks.video.quality import (
    HEAD_MODEL,
    RIGID,
    camera_motion,
    face_light,
    face_side,
    head_angles,
    head_inside,
    is_static,
    nose_travel,
    score_clip,
    speech_share,
)
from tests.tasks.made_videos import face_frames


def turned_head(yaw: float = 0, pitch: float = 0, roll: float = 0, size: float = 200, at: tuple[float, float] = (300, 200)) -> np.ndarray:
    """68 points of the model head, seen from far away: float32 [68, 2]."""
    y, p, r = np.radians([yaw, pitch, roll])
    about_y = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    about_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    turned = HEAD_MODEL @ (about_z @ about_y @ about_x).T
    points = np.zeros((68, 2), np.float32)
    points[:] = turned[:, :2].mean(axis=0)
    points[list(RIGID)] = turned[:, :2]
    points[8] = turned[:, :2].mean(axis=0) + np.array([0, 55])
    return (points * (size / 100) + at).astype(np.float32)


@pytest.mark.parametrize(
    ("yaw", "pitch", "roll"), [(0, 0, 0), (30, 0, 0), (-45, 0, 0), (0, 25, 0), (0, -20, 0), (0, 0, 35), (20, 10, -15), (60, 0, 0)]
)
@pytest.mark.parametrize("at", [(300.0, 200.0), (-500.0, 1500.0)])
def test_head_angles_are_those_of_the_model(yaw: float, pitch: float, roll: float, at: tuple[float, float]) -> None:
    """Wherever the head is in the picture."""
    np.testing.assert_allclose(head_angles(turned_head(yaw, pitch, roll, at=at)[None])[0], [yaw, pitch, roll], atol=4)


def test_head_size_does_not_turn_the_head() -> None:
    small, large = head_angles(np.stack([turned_head(25, size=30), turned_head(25, size=900)]))
    np.testing.assert_allclose(small, large, atol=0.5)


def test_nose_travel_is_in_face_widths_over_twelve_frames() -> None:
    still = np.stack([turned_head()] * 40)
    width = still[0, :, 0].max() - still[0, :, 0].min()
    assert nose_travel(still) == 0
    slow = still + (np.arange(40)[:, None, None] * [width / 120, 0]).astype(np.float32)
    assert nose_travel(slow) == pytest.approx(0.1, rel=1e-3)
    there_and_back = still.copy()
    there_and_back[20:23] += np.float32(width)
    assert nose_travel(there_and_back) == pytest.approx(np.sqrt(2), rel=1e-3)
    assert nose_travel(still[:1]) == 0


def test_face_side_is_the_median_of_the_smaller_side() -> None:
    points = np.zeros((3, 68, 2), np.float32)
    points[:, 1] = [(100, 150), (200, 120), (300, 400)]
    assert face_side(points) == 120


def test_head_inside_counts_hair() -> None:
    points = np.full((4, 68, 2), 100, np.float32)
    points[:, 1] = [180, 180]
    assert head_inside(points, 400, 400) == 1
    assert head_inside(points - [0, 40], 400, 400) == 1
    assert head_inside(points - [0, 80], 400, 400) == 0
    points[0] += 300
    assert head_inside(points, 400, 400) == 0.75


def test_brightness_and_sharpness() -> None:
    import cv2

    points = np.zeros((1, 68, 2), np.float32) + 64
    points[:, 1] = 191
    plain = np.full((256, 256, 3), 120, np.uint8)
    assert face_light([plain], points) == (0.0, pytest.approx(120, abs=1))
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    sharp, _ = face_light([noise], points)
    soft, _ = face_light([cv2.GaussianBlur(noise, (0, 0), 3)], points)
    assert sharp > 50 * soft
    # Only the face counts.
    outside = noise.copy()
    outside[64:193, 64:193] = 120
    assert face_light([outside], points)[0] == 0


def test_static_means_that_nothing_moves() -> None:
    points = np.zeros((5, 68, 2), np.float32) + 40
    points[:, 1] = 200
    face = face_frames(1)[0]
    rng = np.random.default_rng(0)
    noisy = [np.clip(face.astype(int) + rng.integers(-2, 3, face.shape), 0, 255).astype(np.uint8) for _ in range(5)]
    assert is_static(noisy, points)
    blink = [*noisy]
    blink[3] = noisy[3].copy()
    blink[3][90:110, 90:130] //= 2
    assert not is_static(blink, points)
    assert not is_static(face_frames(25)[::5], points)


def test_camera_motion_is_a_share_of_the_width_per_frame() -> None:
    """A pan of 1 pixel per frame in 320 is 1/320; a head that moves before a still wall is 0."""
    import cv2

    wall = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 255, (240, 480, 3), dtype=np.uint8), (0, 0), 3)
    points = np.zeros((5, 68, 2), np.float32) + np.array([140, 100])
    points[:, 1] = [180, 150]
    pan = [np.ascontiguousarray(wall[:, 5 * i : 5 * i + 320]) for i in range(5)]
    assert camera_motion(pan, points) == pytest.approx(1 / 320, rel=0.1)
    head = []
    for i in range(5):
        frame = np.ascontiguousarray(wall[:, :320])
        frame[90:150, 140 + 4 * i : 180 + 4 * i] = 200 - 10 * np.arange(40, dtype=np.uint8)[None, :, None] % 255
        head.append(frame)
    assert camera_motion(head, points) < 1e-4
    assert camera_motion(pan[:1], points[:1]) == 0
    assert camera_motion([np.full((240, 320, 3), 80, np.uint8)] * 3, points[:3]) == 0


def test_speech_is_loud_and_tonal() -> None:
    time = np.arange(16000) / 16000
    vowel = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 20)).astype(np.float32) * 0.1
    rng = np.random.default_rng(0)
    assert speech_share(vowel) > 0.95
    assert speech_share(np.zeros(16000, np.float32)) == 0
    assert speech_share(vowel * 0.001) == 0
    assert speech_share(rng.normal(0, 0.1, 16000).astype(np.float32)) < 0.1
    half = vowel.copy()
    half[8000:] = 0
    assert speech_share(half) == pytest.approx(0.5, abs=0.08)


def test_score_clip_puts_them_together() -> None:
    frames = face_frames(30)
    points = np.stack([turned_head(10, size=100, at=(128, 128))] * 30)
    confidence, faces = np.ones(30, np.float32), np.ones(30, np.int64)
    confidence[:3], faces[:6] = 0, 2
    scores = score_clip(frames, points, confidence, faces, box=CropBox(0, 0, 200), scale=0.5, sound=None)
    assert scores.landmark_rate == pytest.approx(0.9)
    assert scores.one_face == pytest.approx(0.8)
    assert scores.face_px == pytest.approx(2 * face_side(points))
    assert scores.face_share == pytest.approx(face_side(points) / 200)
    assert scores.yaw_p95 == pytest.approx(10, abs=3)
    assert scores.speech is None
    assert not scores.static

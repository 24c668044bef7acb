"""Metrics: perfect on the truth itself, worse the more is wrong, and never blind to a missing face."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from models.family import Squares
from models.views import Image
from tasks.evaluation.metrics import PSNR_LIMIT, MetricCase, Need, NotComputed, Psnr, Smoothness, Ssim, TrackedFaces, check_finite
from tasks.evaluation.metrics_landmarks import (
    MISSING_FACE_DISTANCE,
    FaceFound,
    LandmarkDistance,
    MouthLandmarkDistance,
    mouth_opening,
    track_faces,
)
from tasks.evaluation.metrics_registry import METRICS, metric_named
from tasks.evaluation.metrics_sync import SyncAccuracy, SyncConfidence, SyncOffset
from tests.tasks.disc_faces import EYES, SIZE, DiscLandmarker, picture, shape, walk


def video(count: int = 5, dx: float = 0, dy: float = 0, faceless: tuple[int, ...] = ()) -> Image:
    return np.stack([picture(None if i in faceless else (x + dx, y + dy)) for i, (x, y) in enumerate(walk(count))])


def case(generated: Image, truth: Image, landmarker: DiscLandmarker | None = None, side: int = SIZE) -> MetricCase:
    landmarker = landmarker or DiscLandmarker()
    return MetricCase(
        key="anna_a_0",
        generated=generated,
        truth=truth,
        generated_faces=track_faces(generated, landmarker, side=side),
        truth_faces=track_faces(truth, DiscLandmarker(), side=side),
    )


def value(metric, measured: MetricCase) -> float:
    answer = metric.compute(measured)
    assert isinstance(answer, float)
    return answer


def faces(points: np.ndarray) -> MetricCase:
    """A case whose landmarks are given; its pixels say nothing."""
    blank = np.zeros((len(points), 16, 16, 3), np.uint8)
    truth = np.repeat(shape()[None] + 40, len(points), axis=0).astype(np.float32)
    return MetricCase(
        key="k",
        generated=blank,
        truth=blank,
        generated_faces=TrackedFaces(points=points.astype(np.float32)),
        truth_faces=TrackedFaces(points=truth),
    )


def test_a_video_against_itself_is_perfect():
    truth = video()
    measured = case(truth, truth)
    values = {metric.name: value(metric, measured) for metric in METRICS if Need.JUDGE not in metric.needs}
    assert values["psnr"] == PSNR_LIMIT
    assert values["ssim"] == pytest.approx(1, abs=1e-6)
    assert values["lmd"] == values["mouth_lmd"] == 0
    assert values["face_found"] == 1


@pytest.mark.parametrize("metric", [Psnr(), Ssim()], ids=lambda m: m.name)
@pytest.mark.parametrize("damage", ["noise", "blur", "shift"])
def test_picture_metrics_fall_with_every_kind_of_damage(metric, damage):
    truth = video()
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, truth.shape)
    damaged = {
        "noise": lambda amount: np.clip(truth + noise * 6 * amount, 0, 255).astype(np.uint8),
        "blur": lambda amount: np.stack([cv2.GaussianBlur(frame, (0, 0), 0.6 * amount) for frame in truth]),
        "shift": lambda amount: np.roll(truth, amount, axis=2),
    }[damage]
    values = [value(metric, case(damaged(amount), truth)) for amount in (1, 2, 3, 4)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 4
    assert values[0] < value(metric, case(truth, truth))


def test_psnr_and_ssim_agree_with_another_implementation():
    truth = video(3)
    generated = np.clip(truth + np.random.default_rng(1).normal(0, 20, truth.shape), 0, 255).astype(np.uint8)
    measured = case(generated, truth)
    assert value(Psnr(), measured) == pytest.approx(
        np.mean([peak_signal_noise_ratio(t, g) for t, g in zip(truth, generated, strict=True)]), abs=1e-3
    )
    theirs = [
        structural_similarity(
            t, g, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, full=True
        )[1].mean()
        for t, g in zip(truth, generated, strict=True)
    ]
    assert value(Ssim(), measured) == pytest.approx(np.mean(theirs), abs=0.002)


def test_batches_do_not_change_a_metric():
    truth = video(35)
    generated = np.roll(truth, 1, axis=1)
    alone = [value(Psnr(), case(generated[i : i + 1], truth[i : i + 1])) for i in range(35)]
    assert value(Psnr(), case(generated, truth)) == pytest.approx(np.mean(alone), abs=1e-6)


def test_ssim_of_tiny_frames_says_why_not():
    tiny = np.zeros((2, 8, 8, 3), np.uint8)
    answer = Ssim().compute(MetricCase(key="k", generated=tiny, truth=tiny))
    assert isinstance(answer, NotComputed)
    assert "11 px" in answer.reason


@pytest.mark.parametrize("dx", [1, 2, 5, -3])
def test_landmark_distance_of_a_shift_is_the_shift_in_inter_ocular_distances(dx):
    truth = video()
    measured = case(video(dx=dx), truth)
    for metric in (LandmarkDistance(), MouthLandmarkDistance()):
        assert value(metric, measured) == pytest.approx(abs(dx) / EYES, rel=0.02)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=6), st.floats(0.2, 4))
def test_landmark_distance_by_an_independent_computation(moves, scale):
    """Moving frame i by a vector moves every point by it: the mean length over the eyes' distance, at any scale."""
    truth = np.repeat((shape(scale) + 50)[None], len(moves), axis=0).astype(np.float32)
    generated = (truth + np.array(moves, np.float32)[:, None]).astype(np.float32)
    blank = np.zeros((len(moves), 16, 16, 3), np.uint8)
    measured = MetricCase(
        key="k", generated=blank, truth=blank, generated_faces=TrackedFaces(points=generated), truth_faces=TrackedFaces(points=truth)
    )
    expected = sum(math.hypot(x, y) for x, y in moves) / len(moves) / (EYES * scale)
    assert value(LandmarkDistance(), measured) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_mouth_distance_sees_only_the_mouth():
    truth = (shape() + 40)[None].repeat(4, axis=0)
    brows, mouth = truth.copy(), truth.copy()
    brows[:, 17:48] += 5
    mouth[:, 48:68, 1] += 6
    assert value(MouthLandmarkDistance(), faces(brows)) == 0
    assert value(LandmarkDistance(), faces(brows)) > 0.05
    assert value(MouthLandmarkDistance(), faces(mouth)) == pytest.approx(6 / EYES, rel=1e-5)
    assert value(LandmarkDistance(), faces(mouth)) == pytest.approx(6 / EYES * 20 / 68, rel=1e-5)


def test_a_missing_face_is_never_cheaper_than_a_wrong_one():
    truth = video(6)
    whole = value(LandmarkDistance(), case(video(6, dx=2), truth))
    one_missing = case(video(6, dx=2, faceless=(3,)), truth)
    assert value(FaceFound(), one_missing) == pytest.approx(5 / 6)
    assert value(LandmarkDistance(), one_missing) == pytest.approx((whole * 5 + MISSING_FACE_DISTANCE) / 6, rel=0.02)
    all_missing = case(video(6, faceless=tuple(range(6))), truth)
    assert value(LandmarkDistance(), all_missing) == MISSING_FACE_DISTANCE
    assert value(MouthLandmarkDistance(), all_missing) == MISSING_FACE_DISTANCE
    assert value(FaceFound(), all_missing) == 0


def test_a_missing_face_costs_the_worst_frame_where_that_is_worse_than_the_penalty():
    points = (shape() + 40)[None].repeat(3, axis=0)
    points[0, :, 0] += 3 * EYES
    points[2] = np.nan
    assert value(LandmarkDistance(), faces(points)) == pytest.approx((3 + 0 + 3) / 3, rel=1e-5)


def test_frames_whose_truth_has_no_face_are_left_out_for_every_row():
    truth = video(6, faceless=(0, 1))
    assert value(LandmarkDistance(), case(truth, truth)) == 0
    assert value(LandmarkDistance(), case(video(6, dx=3), truth)) == pytest.approx(3 / EYES, rel=0.02)
    nothing = video(3, faceless=(0, 1, 2))
    for metric in (LandmarkDistance(), FaceFound()):
        answer = metric.compute(case(video(3), nothing))
        assert isinstance(answer, NotComputed)
        assert "no face in the true video" in answer.reason


def test_without_a_landmarker_the_reason_is_said():
    truth = video(3)
    answer = LandmarkDistance().compute(MetricCase(key="k", generated=truth, truth=truth))
    assert str(answer) == "not computed: needs a landmarker"


def test_small_frames_are_enlarged_and_points_come_back_in_their_pixels():
    frames = video(3)
    landmarker = DiscLandmarker()
    enlarged = track_faces(frames, landmarker, side=4 * SIZE)
    assert landmarker.shapes == [(4 * SIZE, 4 * SIZE)] * 3
    plain = track_faces(frames, DiscLandmarker(), side=SIZE)
    np.testing.assert_allclose(enlarged.points, plain.points, atol=0.6)
    np.testing.assert_allclose(enlarged.points.mean(axis=1), plain.points.mean(axis=1), atol=0.1)


def test_smoothness_is_one_for_a_still_and_falls_with_flicker():
    still = np.repeat(video(1), 6, axis=0)
    assert value(Smoothness(), MetricCase(key="k", generated=still, truth=still)) == 1
    flicker = still.copy()
    flicker[::2] = 255 - flicker[::2]
    small = still.copy()
    small[::2] = np.clip(small[::2].astype(int) + 10, 0, 255)
    values = [value(Smoothness(), MetricCase(key="k", generated=frames, truth=still)) for frames in (still, small, flicker)]
    assert values == sorted(values, reverse=True)
    ramp = np.stack([np.full((16, 16, 3), 10 * i, np.uint8) for i in range(6)])
    assert value(Smoothness(), MetricCase(key="k", generated=ramp, truth=ramp)) == pytest.approx(1)
    answer = Smoothness().compute(MetricCase(key="k", generated=still[:2], truth=still[:2]))
    assert isinstance(answer, NotComputed)


def test_videos_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="3 frames of 96x96 px but the true one is 4 frames of 96x96 px"):
        MetricCase(key="k", generated=video(3), truth=video(4))


def test_a_number_that_is_not_finite_becomes_a_reason():
    assert check_finite(Psnr(), "k", 3.0) == 3.0
    assert isinstance(check_finite(Psnr(), "k", float("nan")), NotComputed)


def test_names_are_unique_and_found():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    assert metric_named("lmd").title == "LMD"
    with pytest.raises(ValueError, match="psnr"):
        metric_named("fid")


@pytest.mark.parametrize("size", [24, 12])
def test_painted_squares_are_measured_as_numpy_does_it(size):
    """Moving squares of 24 px, one of them beyond the picture's corner, whole or halved: damage outside of them costs nothing."""
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 256, (4, 40, 60, 3)).astype(np.uint8)
    generated = np.clip(truth + rng.normal(0, 25, truth.shape), 0, 255).astype(np.uint8)
    boxes = np.array([(3, 5, 24), (30, 10, 24), (-6, -4, 24), (45, 28, 24)])

    def cut(frames: Image) -> np.ndarray:
        padded = np.pad(frames, ((0, 0), (24, 24), (24, 24), (0, 0)), mode="edge").astype(float)
        squares = np.stack([frame[y + 24 : y + 48, x + 24 : x + 48] for frame, (x, y, _) in zip(padded, boxes, strict=True)])
        halves = squares if size == 24 else squares.reshape(4, 12, 2, 12, 2, 3).mean(axis=(2, 4))
        return np.floor(halves + 0.5)

    measured = MetricCase(key="k", generated=generated, truth=truth, painted=Squares(boxes=boxes, size=size))
    ours, theirs = cut(generated), cut(truth)
    np.testing.assert_allclose(measured.looked_at[0], ours, atol=1)
    errors = ((ours - theirs) ** 2).mean(axis=(1, 2, 3))
    assert value(Psnr(), measured) == pytest.approx(np.mean(10 * np.log10(255**2 / errors)), abs=0.02)
    assert value(Smoothness(), measured) == pytest.approx(
        1 - np.mean([np.abs(ours[t] - (ours[t - 1] + ours[t + 1]) / 2).mean() for t in (1, 2)]) / 255, abs=1e-3
    )
    similar = [
        structural_similarity(
            t, g, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, full=True
        )
        for t, g in zip(theirs, ours, strict=True)
    ]
    assert value(Ssim(), measured) == pytest.approx(np.mean([full.mean() for _, full in similar]), abs=0.004)
    outside = truth.copy()
    outside[0, 35:, 40:] = 255 - outside[0, 35:, 40:]
    assert value(Psnr(), MetricCase(key="k", generated=outside, truth=truth, painted=measured.painted)) == PSNR_LIMIT
    assert value(Psnr(), MetricCase(key="k", generated=outside, truth=truth)) < PSNR_LIMIT


def judged(scores: np.ndarray) -> MetricCase:
    blank = np.zeros((5, 16, 16, 3), np.uint8)
    return MetricCase(key="k", generated=blank, truth=blank, lip_sync=scores.astype(np.float32))


def test_sync_metrics_by_hand():
    """Four windows: two are right (offsets 0 and -1), one says +2, one draws between right and wrong."""
    scores = np.zeros((4, 31))
    scores[0, 15], scores[1, 14], scores[2, 17] = 8, 4, 2
    assert value(SyncAccuracy(), judged(scores)) == 0.5
    assert value(SyncConfidence(), judged(scores)) == 8 / 4 - 0
    assert value(SyncOffset(), judged(scores)) == 0
    scores[:, 21] = 3
    assert value(SyncAccuracy(), judged(scores)) == 0.5
    assert value(SyncConfidence(), judged(scores)) == 3
    assert value(SyncOffset(), judged(scores)) == 6


def test_offsets_outside_of_the_clip_are_no_choice():
    scores = np.full((4, 31), np.nan)
    scores[:, 13:18] = [0, 1, 2, 1, 0]
    scores[0, 30] = 99
    assert value(SyncAccuracy(), judged(scores)) == 0.75
    assert value(SyncConfidence(), judged(scores)) == 2 - 1
    assert value(SyncOffset(), judged(scores)) == 0
    only_right = np.full((4, 31), np.nan)
    only_right[:, 14:16] = 1
    for metric in (SyncAccuracy(), SyncConfidence(), SyncOffset()):
        answer = metric.compute(judged(only_right))
        assert isinstance(answer, NotComputed)
        assert "too short" in answer.reason
        assert isinstance(metric.compute(judged(np.empty((0, 31)))), NotComputed)


def test_a_judge_that_hears_nothing_is_not_right_by_chance():
    assert value(SyncAccuracy(), judged(np.ones((4, 31)))) == 0
    assert value(SyncConfidence(), judged(np.ones((4, 31)))) == 0
    assert isinstance(SyncOffset().compute(judged(np.ones((4, 31)))), NotComputed)


def test_mouth_opening_is_the_inner_lips_distance():
    points = (shape(2.0) + 40)[None].repeat(3, axis=0)
    points[1, [61, 62, 63], 1] -= 6
    points[2, 0] = np.nan
    truth = TrackedFaces(points=points[:1].astype(np.float32))
    opening = mouth_opening(TrackedFaces(points=points.astype(np.float32)), truth)
    assert opening[1] - opening[0] == pytest.approx(6 / (2 * EYES), rel=1e-4)
    assert np.isnan(opening[2])


def test_faces_of_wide_frames_come_back_in_their_pixels():
    wide = [np.concatenate([frame, picture(None, SIZE, 3)], axis=1) for frame in video(2)]
    plain = track_faces(wide, DiscLandmarker(), side=SIZE)
    enlarged = track_faces(wide, DiscLandmarker(), side=3 * SIZE)
    np.testing.assert_allclose(plain.points, track_faces(video(2), DiscLandmarker(), side=SIZE).points, atol=0.01)
    np.testing.assert_allclose(enlarged.points.mean(axis=1), plain.points.mean(axis=1), atol=0.1)

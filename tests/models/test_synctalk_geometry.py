"""The square of a face: where it lies, and that cutting, masking and pasting are exact."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.synctalk.config import GeometryConfig
from models.synctalk.geometry import (
    closed_mouth,
    cut,
    cut_core,
    face_mask,
    face_outlines,
    face_squares,
    frame_box,
    inner,
    masked,
    mouth_box,
    mouth_opening,
    paste,
    rim,
    to_square,
)
from models.views import Image, Points

G = GeometryConfig()


def face(centre: tuple[float, float] = (256, 256), width: float = 200.0, opening: float = 0.0) -> Points:
    """Landmarks of a front face: jaw contour `width` wide at eye level, inner lips `opening` pixels apart."""
    points = np.zeros((68, 2), np.float32)
    x, y = centre
    for i in range(17):
        angle = np.pi * i / 16
        points[i] = (x - width / 2 * np.cos(angle), y - 20 + 0.7 * width * np.sin(angle))
    points[1], points[15] = (x - width / 2, y), (x + width / 2, y)
    points[17:27] = [(x - 80 + 160 * i / 9, y - 60) for i in range(10)]
    points[27:36] = [(x, y - 30 + 12 * i) for i in range(9)]
    points[36:48] = [(x + side * 45 + dx, y - 25) for side in (-1, 1) for dx in (-15, -8, 8, 15, 8, -8)]
    points[48:68] = [(x - 30 + 60 * i / 19, y + 60) for i in range(20)]
    points[62], points[66] = (x, y + 60 - opening / 2), (x, y + 60 + opening / 2)
    return points


def gradient(height: int, width: int) -> Image:
    """A picture whose red is x / 2 and green is y / 2: what is cut can be computed by hand."""
    yy, xx = np.mgrid[:height, :width]
    return np.stack([xx / 2, yy / 2, np.full((height, width), 7)], axis=-1).round().astype(np.uint8)


def test_the_square_is_the_contours_width_from_the_ridge_down() -> None:
    points = face()
    left, top, side = face_squares(points[None], smoothing=0)[0]
    assert (left, side) == (156, 200)
    assert top == pytest.approx(points[28:30, 1].mean())


def test_the_square_ignores_mouth_and_chin() -> None:
    shut, wide = face(opening=0), face(opening=40)
    wide[5:12, 1] += 30
    assert (face_squares(shut[None], 0) == face_squares(wide[None], 0)).all()


@given(sigma=st.floats(0.3, 4), frames=st.integers(1, 40), seed=st.integers(0, 99))
def test_smoothing_is_a_normalised_gaussian_that_skips_frames_without_a_face(sigma: float, frames: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = np.stack([face((256 + 9 * rng.normal(), 256 + 9 * rng.normal()), 200 + 5 * rng.normal()) for _ in range(frames)])
    missing = rng.random(frames) < 0.2
    points[missing] = np.nan
    raw, steady = face_squares(points, 0), face_squares(points, sigma)
    assert (np.isnan(steady).all(axis=1) == missing).all()
    known = np.flatnonzero(~missing)
    for i in known:
        near = [j for j in known if abs(j - i) <= np.ceil(3 * sigma)]
        weights = np.exp(-0.5 * ((np.array(near) - i) / sigma) ** 2)
        np.testing.assert_allclose(steady[i], weights @ raw[near] / weights.sum(), rtol=1e-9)


def test_inside_a_longer_clip_the_same_frames_give_the_same_bits() -> None:
    rng = np.random.default_rng(1)
    points = np.stack([face((256 + rng.normal(), 256 + rng.normal())) for _ in range(60)])
    whole, part = face_squares(points, 2.0), face_squares(points[10:50], 2.0)
    assert (whole[16:44] == part[6:34]).all()


def test_cutting_keeps_places_to_a_tenth_of_a_pixel() -> None:
    picture = gradient(400, 400)
    for square, size in ((np.array([100.25, 60.75, 200.0]), 328), (np.array([40.0, 30.0, 300.0]), 84)):
        out = cut(picture, square, size).astype(float)
        at = (np.arange(size) + 0.5) * square[2] / size - 0.5
        inside = slice(3, -3)
        np.testing.assert_allclose(out[size // 2, inside, 0], ((at + square[0]) / 2)[inside], atol=1.1)
        np.testing.assert_allclose(out[inside, size // 2, 1], ((at + square[1]) / 2)[inside], atol=1.1)
        assert abs((out[size // 2, inside, 0] - ((at + square[0]) / 2)[inside]).mean()) < 0.05


def test_points_follow_the_cut() -> None:
    picture = np.zeros((300, 300, 3), np.uint8)
    cv2.circle(picture, (170, 120), 6, (255, 255, 255), -1)
    square = np.array([90.3, 50.6, 160.0])
    out = cut(picture, square, 328).astype(float)[..., 0]
    yy, xx = np.mgrid[:328, :328]
    seen = np.array([(xx * out).sum(), (yy * out).sum()]) / out.sum()
    np.testing.assert_allclose(to_square(np.array([170, 120], np.float32), square, 328), seen, atol=0.15)


def test_beyond_the_frame_its_edge_is_repeated_and_nothing_is_squashed() -> None:
    picture = gradient(200, 200)
    out = cut(picture, np.array([-50.0, 20.0, 100.0]), 100)
    assert (out[:, :48, 0] <= 1).all()
    np.testing.assert_allclose(out[50, 60:95, 0], (np.arange(60, 95) - 50) / 2, atol=1)


def test_masks_are_the_published_ones() -> None:
    ones = torch.ones(2, 3, 320, 320)
    v2 = masked(ones, G)
    assert v2[..., 5:, 5:315].sum() == 0
    assert v2.sum() == 2 * 3 * (320 * 320 - 315 * 310)
    v1 = masked(ones, G.model_copy(update={"mask": "v1"}))
    assert v1[..., 5:310, 5:315].sum() == 0
    assert v1[..., 310:, :].all()
    assert float((1 - v1).mean()) == pytest.approx(0.923, abs=5e-4)
    assert ones.all()
    small = GeometryConfig(core=160)
    assert (small.crop, small.levels, G.crop, G.levels) == (168, 4, 328, 5)


def test_a_core_that_is_pasted_back_changes_nothing_but_rounding() -> None:
    """What the network returns unchanged must come out unchanged: no shift, no visible box."""
    rng = np.random.default_rng(0)
    picture = cv2.GaussianBlur(rng.integers(0, 255, (512, 512, 3), dtype=np.uint8), (0, 0), 5)
    for square in (np.array([120.3, 140.7, 260.0]), np.array([100.0, 90.0, 400.5]), np.array([-30.0, 300.0, 328.0])):
        back = paste(picture, cut_core(picture, square, G), square, G)
        difference = np.abs(back.astype(int) - picture.astype(int))
        assert difference.max() <= 6, square
        assert difference.mean() < 0.25
        left, top, side = inner(square, G)
        outside = np.ones((512, 512), bool)
        outside[max(0, int(top)) : int(top + side) + 1, max(0, int(left)) : int(left + side) + 1] = False
        assert (difference[outside] == 0).all()


def test_the_rim_is_soft_and_its_middle_whole() -> None:
    shown = rim(320, 0.08)
    assert shown[160, 160] == 1
    assert shown[0].max() < 0.01
    assert (np.diff(shown[160, :160]) >= 0).all()
    assert np.diff(shown[160]).max() < 0.08
    assert (rim(10, 0) == 1).all()


def test_a_foreign_core_leaves_no_step_at_its_edge() -> None:
    picture = np.full((400, 400, 3), 120, np.uint8)
    square = np.array([80.0, 80.0, 240.0])
    out = paste(picture, np.full((320, 320, 3), 200, np.uint8), square, G)[200, :, 0].astype(int)
    assert out.max() == 200
    assert np.abs(np.diff(out)).max() <= 10


def test_beyond_the_jaw_the_template_stays() -> None:
    picture = np.full((512, 512, 3), 120, np.uint8)
    points = face()
    square = face_squares(points[None], 0)[0]
    outline = face_outlines(points[None], 0)[0]
    out = paste(picture, np.full((320, 320, 3), 220, np.uint8), square, G, outline)[..., 0].astype(int)
    chin = points[8]
    assert out[int(points[57, 1]), 256] == 220, "the mouth is painted"
    assert out[int(chin[1]) - 5, 256] == 220, "the chin is painted"
    assert out[int(chin[1]) + 5, 256] > 180, "and room below it, where a painted chin may lie"
    corner = (int(square[1] + 0.9 * square[2]), int(square[0] + 0.08 * square[2]))
    assert out[corner] == 120, "collar and background are the template's"
    assert np.abs(np.diff(out, axis=0)).max() <= 12
    assert np.abs(np.diff(out, axis=1)).max() <= 12
    whole = face_mask(outline, square, G.model_copy(update={"outline": 1.0}))
    assert whole.mean() > 1.3 * face_mask(outline, square, G).mean()


def test_the_reference_has_a_closed_mouth_in_the_usual_place() -> None:
    points = np.stack([face(opening=5 + i % 7) for i in range(40)])
    points[13] = face((300, 256), opening=0)
    points[22] = face(opening=0.5)
    points[30] = face((280, 240), opening=0.2)
    points[0] = np.nan
    assert closed_mouth(points) == 22
    assert np.isnan(mouth_opening(points)[0])
    with pytest.raises(ValueError, match="no frame shows a face"):
        closed_mouth(points[:1])


def test_the_part_of_a_core_in_the_frame_is_what_is_not_repeated() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    square = np.array([-40.0, 120.0, 240.0])
    x0, y0, x1, y1 = frame_box(picture.shape, square, G)
    assert (y0, x1) == (0, 320)
    core = cut_core(picture, square, G).astype(int)
    assert np.abs(np.diff(core[10:200, : x0 - 5], axis=1)).max() <= 1
    assert np.abs(np.diff(core[y1 + 5 :, 100:], axis=0)).max() <= 1
    assert np.abs(np.diff(core[10:200, x0 : x0 + 20], axis=1)).max() > 10
    assert np.abs(np.diff(core[y1 - 20 : y1, 100:], axis=0)).max() > 10


def test_the_mouths_box_holds_the_mouth() -> None:
    points = face()
    square = face_squares(points[None], 0)[0]
    x0, y0, x1, y1 = mouth_box(points, square, G)
    lips = to_square(points[48:68], inner(square, G), 320)
    assert (lips > [x0, y0]).all()
    assert (lips < [x1, y1]).all()
    assert (x1 - x0) * (y1 - y0) < 0.25 * 320 * 320


@pytest.mark.parametrize("core", [0, 100, 240, 640])
def test_a_core_is_ten_times_a_power_of_two(core: int) -> None:
    with pytest.raises(ValueError, match="core"):
        GeometryConfig(core=core)

"""Landmark rasters: the spec's colours, size-scaled lines, mirroring that swaps left and right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.fewshot.raster import MIRROR, draw, mirror_points, resize_image, scale_points
from tests.models.fewshot_material import face_points

COLOURS = {
    "jaw": (0, 128, 0),
    "brows": (255, 165, 0),
    "nose": (0, 0, 255),
    "eyes": (255, 0, 0),
    "outer lip": (128, 0, 128),
    "inner lip": (255, 192, 203),
}


def test_all_parts_have_their_colour() -> None:
    picture = draw(face_points(256), 256)
    assert picture.shape == (256, 256, 3)
    assert picture.dtype == np.uint8
    for part, colour in COLOURS.items():
        assert (picture == colour).all(-1).sum() > 20, part
    assert (picture == 0).all(-1).mean() > 0.8


@pytest.mark.parametrize(("start", "end", "closed"), [(0, 16, False), (36, 41, True), (48, 59, True), (60, 67, True), (31, 35, False)])
def test_eyes_and_lips_are_closed_and_others_open(start: int, end: int, closed: bool) -> None:
    points = np.full((68, 2), -5000, np.float32)
    ring = np.stack([np.linspace(30, 220, end - start + 1), np.full(end - start + 1, 40.0)], 1)
    ring[1:-1, 1] = 200
    points[start : end + 1] = ring
    middle = draw(points, 256)[40, 125]
    assert bool(middle.any()) == closed


def test_lines_scale_with_the_picture() -> None:
    def thickness(size: int) -> int:
        points = np.full((68, 2), -5000, np.float32)
        points[27:31] = np.stack([np.full(4, size / 2), np.linspace(0.2, 0.8, 4) * size], 1)
        return int((draw(points, size)[size // 2, :, 2] > 120).sum())

    assert thickness(512) > thickness(256) > thickness(128) >= 1


def test_a_small_movement_shows_at_small_sizes() -> None:
    assert (draw(face_points(64, opening=0.05), 64) != draw(face_points(64, opening=0.055), 64)).any()


def test_points_far_outside_do_no_harm() -> None:
    points = face_points(64)
    points[::3] = 1e7
    assert draw(points, 64).shape == (64, 64, 3)


@given(arrays(np.float32, (3, 68, 2), elements=st.floats(-50, 300, width=32)))
def test_mirroring_twice_is_nothing(points: np.ndarray) -> None:
    np.testing.assert_allclose(mirror_points(mirror_points(points, 256), 256), points, atol=1e-3)


def test_mirroring_swaps_left_and_right() -> None:
    assert sorted(MIRROR) == list(range(68))
    points = face_points(100)
    mirrored = mirror_points(points, 100)
    for side in (slice(0, 8), slice(17, 22), slice(36, 42)):
        assert (mirrored[side, 0] < 50).all(), "the subject's right stays on the left of the picture"
    assert mirrored[48, 0] < mirrored[54, 0]
    assert mirrored[60, 0] < mirrored[64, 0]
    for upper, lower in ((37, 41), (38, 40), (43, 47), (44, 46), (51, 57), (62, 66), (50, 58), (61, 67)):
        assert mirrored[upper, 1] < mirrored[lower, 1] + 1e-4, "above stays above"


def test_raster_of_mirrored_points_is_the_mirrored_raster() -> None:
    points = np.round(face_points(128, shift=0.05))
    difference = np.abs(draw(mirror_points(points, 128), 128).astype(int) - draw(points, 128)[:, ::-1])
    assert (difference > 64).any(-1).mean() < 0.01


def test_scaling_keeps_the_place_in_the_picture() -> None:
    points = np.array([[-0.5, -0.5], [511.5, 511.5], [255.5, 255.5]], np.float32)
    np.testing.assert_allclose(scale_points(points, 512, 128), [[-0.5, -0.5], [127.5, 127.5], [63.5, 63.5]])
    assert resize_image(np.zeros((512, 512, 3), np.uint8), 128).shape == (128, 128, 3)

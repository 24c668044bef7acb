"""The crop: pixels and points go through the same map."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.video.crop import HEAD_ABOVE_BROWS, CropBox, crop_image, crop_points, face_boxes, head_boxes, uncrop_points, union_box


def dot_picture(height: int, width: int, x: int, y: int) -> np.ndarray:
    picture = np.zeros((height, width, 3), np.uint8)
    picture[y - 1 : y + 2, x - 1 : x + 2] = 255
    return picture


def centre_of_light(picture: np.ndarray) -> np.ndarray:
    light = picture[..., 0].astype(np.float64)
    ys, xs = np.indices(light.shape)
    return np.array([(xs * light).sum(), (ys * light).sum()]) / light.sum()


@settings(max_examples=40, deadline=None)
@given(
    x=st.integers(40, 80),
    y=st.integers(40, 60),
    left=st.integers(-40, 30),
    top=st.integers(-40, 30),
    side=st.integers(70, 200),
    size=st.sampled_from([64, 96, 128, 200, 256]),
)
def test_points_land_on_the_dot_that_the_image_shows(x: int, y: int, left: int, top: int, side: int, size: int) -> None:
    """Fails for any half-pixel mistake, wrong padding or wrong order of x and y."""
    box = CropBox(left, top, max(side, x - left + 5, y - top + 5))
    crop = crop_image(dot_picture(100, 120, x, y), box, size)
    assert crop.shape == (size, size, 3)
    expected = crop_points(np.array([[x, y]], np.float32), box, size)[0]
    assert np.abs(centre_of_light(crop) - expected).max() < 0.12


def test_beyond_the_edge_the_edge_pixels_are_repeated() -> None:
    picture = np.arange(10 * 10 * 3, dtype=np.uint8).reshape(10, 10, 3)
    crop = crop_image(picture, CropBox(-3, -2, 16), 16)
    np.testing.assert_array_equal(crop[2:12, 3:13], picture)
    np.testing.assert_array_equal(crop[0, 3:13], picture[0])
    np.testing.assert_array_equal(crop[2:12, 15], picture[:, -1])
    np.testing.assert_array_equal(crop[0, 0], picture[0, 0])


@settings(max_examples=40, deadline=None)
@given(left=st.integers(-60, 60), top=st.integers(-60, 60), side=st.integers(1, 90))
def test_any_box_gives_a_picture_of_source_colours(left: int, top: int, side: int) -> None:
    """Also boxes that lie wholly outside."""
    crop = crop_image(np.full((20, 30, 3), 77, np.uint8), CropBox(left, top, side), 16)
    assert crop.shape == (16, 16, 3)
    assert (crop == 77).all()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), margin=st.floats(0, 2), height=st.integers(100, 1000), width=st.integers(100, 1000))
def test_the_union_holds_every_head_and_pads_only_where_it_must(seed: int, margin: float, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    points = (rng.uniform(0, 1, (7, 68, 2)) * [width * 0.6, height * 0.6] + rng.uniform(0, 60, 2)).astype(np.float32)
    heads, faces = head_boxes(points), face_boxes(points)
    loose, box = union_box(points, margin), union_box(points, margin, frame=(height, width))
    for holder, held, low in ((loose, heads, (-np.inf, -np.inf)), (box, faces, (-np.inf, -np.inf)), (box, heads, (0, 0))):
        assert holder.x <= max(low[0], held[:, 0].min()) + 1
        assert holder.y <= max(low[1], held[:, 1].min()) + 1
        assert holder.x + holder.side >= min(np.inf if low[0] < 0 else width, held[:, 2].max()) - 1
        assert holder.y + holder.side >= min(np.inf if low[1] < 0 else height, held[:, 3].max()) - 1
    assert box.side <= loose.side
    # Nothing is padded where the faces are in the picture and the square fits.
    if box.side <= min(height, width) and faces.min() >= 0 and (faces[:, 2:].max(axis=0) < [width - 1, height - 1]).all():
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.side <= width
        assert box.y + box.side <= height


def test_margin_and_hair() -> None:
    points = np.zeros((1, 68, 2), np.float32)
    points[0, 0], points[0, 1] = (100, 200), (200, 300)
    box = union_box(points[:, :2], 0.5)
    head = 100 * (1 + HEAD_ABOVE_BROWS)
    assert abs(box.side - 2 * head) <= 3
    assert abs(box.x + box.side / 2 - 150) <= 1
    assert abs(box.y + box.side / 2 - (300 - head / 2)) <= 1


def test_uncrop_is_the_inverse() -> None:
    points = np.random.default_rng(0).uniform(0, 500, (5, 68, 2)).astype(np.float32)
    box = CropBox(-12, 30, 333)
    np.testing.assert_allclose(uncrop_points(crop_points(points, box, 256), box, 256), points, atol=1e-3)


@pytest.mark.parametrize("bad", [(0, 0, 0), (0.5, 0, 10)])
def test_a_box_is_whole_pixels(bad: tuple) -> None:
    with pytest.raises(ValueError, match="whole pixels"):
        CropBox(*bad)


def test_no_landmarks_no_crop() -> None:
    with pytest.raises(ValueError, match="finite landmarks"):
        union_box(np.full((2, 68, 2), np.nan, np.float32), 0.3)

"""Training examples: the target is never embedded, flips are whole, drawing is a pure function of (pool, generator)."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.fewshot.examples import MetaExamples, draw_frames, to_image, to_network
from models.fewshot.finetuning import PersonExamples
from models.fewshot.networks import video_id
from models.fewshot.raster import draw, mirror_points, scale_points
from models.pictures import to_tensor
from tests.models.fewshot_material import make_pool


@given(st.integers(2, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_target_is_never_among_the_k(count: int, k: int, seed: int) -> None:
    target, *refs = draw_frames(count, k, np.random.default_rng(seed))
    assert len(refs) == k
    assert target not in refs
    assert all(0 <= index < count for index in (target, *refs))
    if k < count:
        assert len(set(refs)) == k


def test_the_pictures_of_an_example_do_not_hold_the_target() -> None:
    maker = MetaExamples(image_size=64, frames=4, flip=0.0)
    pool = make_pool(count=6)
    for seed in range(20):
        example = maker(pool, np.random.default_rng(seed))
        assert example["refs"].shape == example["ref_rasters"].shape == (4, 3, 64, 64)
        assert example["target"].shape == example["target_raster"].shape == (3, 64, 64)
        level = example["target"].float().mean()
        assert all(abs(float(ref.float().mean() - level)) > 5 for ref in example["refs"])
        assert int(example["video"]) == video_id(pool.video)


def test_frames_are_drawn_anew_and_reproducibly() -> None:
    maker = pickle.loads(pickle.dumps(MetaExamples(image_size=64, frames=2, flip=0.5)))
    pool = make_pool(count=8)
    first = maker(pool, np.random.default_rng([1, 2]))
    again = maker(pool, np.random.default_rng([1, 2]))
    assert all(torch.equal(first[name], again[name]) for name in first)
    levels = {float(maker(pool, np.random.default_rng([1, i]))["target"].float().mean()) for i in range(30)}
    assert len(levels) >= 5


def test_a_flip_mirrors_frame_and_points_and_swaps_sides() -> None:
    pool = make_pool(count=2, size=64)
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 64, 3))
    import cv2

    pool = replace(pool, jpegs=(cv2.imencode(".png", ramp.copy())[1].tobytes(),) * 2)
    example = MetaExamples(image_size=64, frames=1, flip=1.0)(pool, np.random.default_rng(0))
    target = int(draw_frames(2, 1, np.random.default_rng(0))[0])
    assert torch.equal(example["target"], to_tensor(ramp[:, ::-1]))
    expected = draw(mirror_points(scale_points(pool.landmarks[target], 64, 64), 64), 64)
    assert torch.equal(example["target_raster"], to_tensor(expected))


def test_a_pool_of_one_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="a_1_pool has 1 frames"):
        MetaExamples(image_size=64, frames=1, flip=0)(make_pool(count=1), np.random.default_rng(0))


def test_fine_tuning_draws_single_frames() -> None:
    example = PersonExamples(image_size=64, flip=0.5)(make_pool(), np.random.default_rng(0))
    assert set(example) == {"target", "target_raster"}


@given(st.integers(0, 255))
def test_pictures_survive_the_way_to_the_network_and_back(level: int) -> None:
    image = np.full((2, 4, 4, 3), level, np.uint8)
    scaled = to_network(to_tensor(image))
    assert -1 <= float(scaled.min()) <= float(scaled.max()) <= 1
    assert np.array_equal(to_image(scaled), image)

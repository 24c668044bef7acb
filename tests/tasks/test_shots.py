"""Cuts are seen; movement, noise and drifting light are not cuts."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.settings import ShotSettings
from tasks.video.shots import CutDetector, colour_histogram, histogram_change
from tests.tasks.made_videos import face_frames, plain_frames


def cuts(frames: list[np.ndarray]) -> list[int]:
    detector = CutDetector(ShotSettings().threshold)
    return [index for index, frame in enumerate(frames) if detector.is_cut(frame)]


def test_a_cut_is_found_where_it_is() -> None:
    assert cuts([*face_frames(6), *plain_frames(6, 256, 256), *face_frames(3)]) == [6, 12]


def test_movement_is_no_cut() -> None:
    assert cuts(face_frames(40)) == []


@pytest.mark.parametrize("grey", range(100, 140, 4))
def test_a_plain_background_that_drifts_over_a_bin_edge_is_no_cut(grey: int) -> None:
    """With hard bins one grey level moves the whole picture to the next bin."""
    assert cuts([np.full((90, 160, 3), grey + step, np.uint8) for step in range(4)]) == []


def test_histogram() -> None:
    red, blue = np.zeros((50, 70, 3), np.uint8), np.zeros((50, 70, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    assert colour_histogram(red).sum() == pytest.approx(1)
    assert histogram_change(colour_histogram(red), colour_histogram(blue)) == pytest.approx(1)
    half = red.copy()
    half[:, 35:] = blue[:, 35:]
    assert histogram_change(colour_histogram(red), colour_histogram(half)) == pytest.approx(0.5, abs=0.03)

"""Chosen frames are those of a full decode, in the order asked."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.video.clip_frames import BadClip, decode_frames
from tasks.video.video_out import encode_clip

FRAMES = 40
GOP = 12


def moving(frames: int = FRAMES, size: int = 64) -> list[np.ndarray]:
    """A square that walks over a gradient: no two frames are alike."""
    background = np.add.outer(np.arange(size), np.arange(size)).astype(np.uint8)
    images = []
    for index in range(frames):
        image = np.repeat(background[..., None], 3, axis=2).copy()
        at = 2 + index % (size - 12)
        image[at : at + 8, at : at + 8] = (250, 20, 4 * index % 255)
        images.append(image)
    return images


@pytest.fixture(scope="module")
def clip() -> bytes:
    return encode_clip(moving(), crf=17, gop=GOP)


@pytest.fixture(scope="module")
def full(clip: bytes) -> np.ndarray:
    with av.open(io.BytesIO(clip)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_all_frames_are_there_and_look_like_what_was_encoded(clip: bytes, full: np.ndarray) -> None:
    decoded = decode_frames(clip, range(FRAMES))
    assert np.array_equal(decoded, full)
    assert np.abs(decoded.astype(int) - np.stack(moving()).astype(int)).mean() < 3


@settings(deadline=None, max_examples=60)
@given(indices=st.lists(st.integers(0, FRAMES - 1), min_size=1, max_size=20))
def test_any_order_and_repeats_give_the_frames_of_a_full_decode(clip: bytes, full: np.ndarray, indices: list[int]) -> None:
    assert np.array_equal(decode_frames(clip, indices), full[indices])


def test_b_frames_and_open_ends_are_exact_too() -> None:
    """Clips written here have no B-frames; a clip made elsewhere may, and its frames come out of order."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "3", "crf": "20"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.gop_size = GOP
        for image in moving():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(io.BytesIO(buffer.getvalue())) as container:
        full = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    for indices in ([0], [39], [11, 12, 13], [38, 1, 25, 25], list(range(40)), [5, 30]):
        assert np.array_equal(decode_frames(buffer.getvalue(), indices), full[indices]), indices


@pytest.mark.parametrize("indices", [[-1], [FRAMES], [0, 400], []])
def test_frames_outside_the_clip_are_refused(clip: bytes, indices: list[int]) -> None:
    with pytest.raises(IndexError):
        decode_frames(clip, indices)


def test_damaged_bytes_are_an_error_not_other_frames(clip: bytes) -> None:
    with pytest.raises(BadClip):
        decode_frames(clip[:200], [0])
    with pytest.raises(BadClip):
        decode_frames(b"text that was renamed to mp4" * 10, [0])

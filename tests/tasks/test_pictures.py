"""Pictures by number: the bits that decord gives, in any order, and no more memory than is asked for."""

from __future__ import annotations

import time
from pathlib import Path

import av
import numpy as np
import pytest

from tasks.video import decode
from tasks.video import pictures as module
from tasks.video.decode import FrameReader, read_frames
from tasks.video.pictures import PictureSource, Unreadable
from tasks.video.probe import probe
from tests.tasks.made_videos import face_frames, plain_frames, rotate_by_metadata, write_video


def encode(path: Path, codec: str, pixels: str, options: dict[str, str]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 288, 160, pixels
        for image in face_frames(40, 160, 288):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


MADE = {
    "b-frames.mp4": ("libx264", "yuv420p", {"bf": "3", "g": "30"}),
    "open gops.mp4": ("libx264", "yuv420p", {"bf": "3", "x264-params": "open-gop=1:keyint=12:min-keyint=12"}),
    "open gops.mkv": ("libx264", "yuv420p", {"bf": "3", "x264-params": "open-gop=1:keyint=12:min-keyint=12"}),
    "full range.avi": ("mjpeg", "yuvj420p", {}),
    "turned.mp4": ("libx264", "yuv420p", {"g": "10"}),
}


@pytest.mark.parametrize("short_side", [None, 96])
@pytest.mark.parametrize("name", MADE)
def test_the_bits_are_decords_in_any_order(tmp_path, monkeypatch, name, short_side):
    path = encode(tmp_path / name, *MADE[name])
    if name == "turned.mp4":
        rotate_by_metadata(path, 1)
    assert FrameReader(path, probe(path))._source is None, "short files are decord's"
    monkeypatch.setattr(decode, "READ_AHEAD_BYTES", 0)
    reader = FrameReader(path, probe(path), short_side=short_side)
    truth = reader._open().get_batch(np.arange(40)).asnumpy()
    source = reader._source
    assert source is not None
    assert np.array_equal(np.stack(source.pictures(np.arange(40))), truth)
    monkeypatch.setattr(module, "PASS_OVER", 2)
    for number in np.random.default_rng(0).integers(0, 40, 25):
        assert np.array_equal(source.pictures(np.array([number]))[0], truth[number]), number
    assert np.array_equal(np.stack(reader.read([30, 3, 3])), truth[[30, 3, 3]])


def test_pictures_that_are_not_there_are_said(tmp_path):
    path = write_video(tmp_path / "a.mp4", plain_frames(10))
    times = np.arange(12) / 25
    with pytest.raises(Unreadable):
        PictureSource(str(path), times, (128, 128), 0).pictures(np.array([11]))
    with pytest.raises(Unreadable):
        PictureSource(str(path), times + 0.5, (128, 128), 0).pictures(np.array([0]))


@pytest.mark.slow
def test_a_slow_reader_is_not_overrun(tmp_path):
    """decord decodes ahead without a limit: here it would hold 500 frames, 390 MB."""
    path = write_video(tmp_path / "long.mp4", plain_frames(600, 512, 512))
    started = None
    for count, _ in enumerate(read_frames(path, probe(path)), start=1):
        time.sleep(0.003)
        started = resident() if count == 50 else started
        if count == 300:
            break
    assert started is not None
    assert resident() - started < 60


def resident() -> float:
    """MiB of memory of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024

"""Probe and decode on real files that are as odd as users' files."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.rejects import RejectCode, VideoRejected
from tasks.video.decode import BrokenOff, read_frames, scaled_size, timeline
from tasks.video.probe import content_fingerprint, probe
from tests.tasks.made_videos import frame_number, numbered_frames, plain_frames, rotate_by_metadata, write_sound, write_video


def numbers(path: Path, **kwargs: float) -> list[int]:
    return [frame_number(frame.image) for frame in read_frames(path, probe(path), **kwargs)]


def test_25_fps_is_taken_as_it_is(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a b'c é.mp4", numbered_frames(50))
    assert numbers(path) == list(range(50))
    assert [frame.tick for frame in read_frames(path, probe(path), start=0.5, end=1.0)] == list(range(13, 25))
    assert numbers(path, start=0.5, end=1.0) == list(range(13, 25))


def test_24_fps_repeats_and_30_fps_drops(tmp_path: Path) -> None:
    slow = numbers(write_video(tmp_path / "24.mp4", numbered_frames(48), fps=24))
    assert len(slow) == 50
    assert sorted(set(slow)) == list(range(48))
    assert np.count_nonzero(np.diff(slow) == 0) == 2
    fast = numbers(write_video(tmp_path / "30.mp4", numbered_frames(60), fps=30))
    assert len(fast) == 50
    assert len(set(fast)) == 50
    ntsc = numbers(write_video(tmp_path / "2997.mp4", numbered_frames(60), fps=Fraction(30000, 1001)))
    assert len(ntsc) == 50
    assert np.abs(np.array(ntsc) - np.arange(50) * 1.2).max() < 1


def test_variable_frame_rate_goes_by_timestamps(tmp_path: Path) -> None:
    times = [0, 40, 80, 400, 440, 480, 1000, 1040]
    path = write_video(tmp_path / "vfr.mkv", numbered_frames(8), times_ms=times)
    got = numbers(path)
    for tick, number in enumerate(got):
        assert number == max(i for i, time in enumerate(times) if time <= tick * 40 + 20)
    assert len(got) >= 27


@given(
    gaps=st.lists(st.integers(5, 300), min_size=1, max_size=60),
    start=st.none() | st.floats(0, 3),
    length=st.none() | st.floats(0, 3),
)
def test_timeline_shows_what_is_on_screen(gaps: list[int], start: float | None, length: float | None) -> None:
    times = 5.0 + np.concatenate([[0], np.cumsum(gaps)]) / 1000
    end = None if length is None else (start or 0) + length
    plan = timeline(times, times[-1] + 0.04, start=start, end=end)
    for index, source in enumerate(plan.sources):
        moment = (plan.first_tick + index) / 25
        assert start is None or moment >= start - 1e-5
        assert end is None or moment < end + 1e-5
        assert times[source] - 5 <= moment + 0.0202 or source == 0
        if source + 1 < len(times):
            assert times[source + 1] - 5 > moment
    assert (np.diff(plan.sources) >= 0).all()


def corners(path: Path) -> list[str]:
    image = next(iter(read_frames(path, probe(path)))).image
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 1): "white"}
    spots = (image[20, 20], image[20, -20], image[-20, 20], image[-20, -20])
    return [names[tuple(int(value > 127) for value in spot)] for spot in spots]


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (0, ["red", "green", "blue", "white"]),
        (1, ["blue", "red", "white", "green"]),
        (2, ["white", "blue", "green", "red"]),
        (3, ["green", "white", "red", "blue"]),
    ],
)
def test_rotation_by_metadata_is_applied_once(tmp_path: Path, turns: int, expected: list[str]) -> None:
    """decord turns mp4 itself: turning again would put it upside down."""
    picture = np.zeros((96, 160, 3), np.uint8)
    picture[:48, :80], picture[:48, 80:], picture[48:, :80], picture[48:, 80:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3
    path = write_video(tmp_path / "turned.mp4", [picture] * 10)
    rotate_by_metadata(path, turns)
    facts = probe(path)
    assert (facts.width, facts.height) == ((160, 96) if turns % 2 == 0 else (96, 160))
    assert corners(path) == expected
    small = next(iter(read_frames(path, facts, short_side=80))).image
    assert min(small.shape[:2]) == 80


def test_odd_sizes_are_exact(tmp_path: Path) -> None:
    frames = plain_frames(5, 87, 101)
    path = write_video(tmp_path / "odd.mkv", frames, codec="ffv1", pixels="bgr0")
    for frame, truth in zip(read_frames(path, probe(path)), frames, strict=True):
        np.testing.assert_array_equal(frame.image, truth)


def test_large_pictures_are_scaled_while_decoding(tmp_path: Path) -> None:
    path = write_video(tmp_path / "large.mp4", plain_frames(3, 240, 320))
    reader = read_frames(path, probe(path), short_side=128)
    assert next(iter(reader)).image.shape == (128, 170, 3)
    assert reader.size == (128, 170)
    assert scaled_size((100, 200), 128) == (100, 200)
    assert scaled_size((1920, 1080), 1080) == (1920, 1080)


def broken_second(path: Path) -> tuple[list[int], float]:
    got = []
    with pytest.raises(BrokenOff) as error:
        got += [frame.tick for frame in read_frames(path, probe(path))]
    ticks = []
    try:
        for frame in read_frames(path, probe(path)):
            ticks.append(frame.tick)
    except BrokenOff:
        pass
    assert "Stack trace" not in error.value.message
    return ticks, error.value.second


@pytest.mark.parametrize(("suffix", "options"), [("mp4", {"movflags": "faststart"}), ("mkv", {})])
def test_a_truncated_file_gives_what_decodes(tmp_path: Path, suffix: str, options: dict[str, str]) -> None:
    path = write_video(tmp_path / f"whole.{suffix}", plain_frames(100, 160, 160), container_options=options)
    content = path.read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(content[: len(content) * 6 // 10])
    ticks, second = broken_second(cut)
    assert ticks == list(range(len(ticks)))
    assert 20 <= len(ticks) < 90
    assert abs(second - len(ticks) / 25) <= 0.3


def test_a_hole_of_zeros_ends_the_video_there(tmp_path: Path) -> None:
    path = write_video(tmp_path / "whole.mp4", plain_frames(100, 160, 160), container_options={"movflags": "faststart"})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + len(content) // 4] = bytes(len(content) // 4)
    path.write_bytes(content)
    ticks, second = broken_second(path)
    assert ticks == list(range(len(ticks)))
    assert 20 <= len(ticks) < 90
    assert second < 4


def code_of(path: Path) -> RejectCode:
    with pytest.raises(VideoRejected) as error:
        probe(path)
    assert error.value.step == "probe"
    assert "\n" not in error.value.message
    return error.value.code


def test_what_is_no_video_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("this is no video " * 500)
    sound = np.sin(np.arange(16000) / 10).astype(np.float32)
    write_sound(tmp_path / "sound.m4a", sound)
    write_video(tmp_path / "whole.mp4", plain_frames(30))
    content = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "headless.mp4").write_bytes(content[: len(content) // 2])
    assert code_of(tmp_path / "none.mp4") == RejectCode.MISSING
    assert code_of(tmp_path / "empty.mp4") == RejectCode.EMPTY_FILE
    assert code_of(tmp_path / "text.mp4") == RejectCode.NOT_A_VIDEO
    assert code_of(tmp_path / "sound.m4a") == RejectCode.NO_VIDEO_STREAM
    assert code_of(tmp_path / "headless.mp4") == RejectCode.CORRUPT
    assert code_of(tmp_path) == RejectCode.UNREADABLE


def test_a_file_without_permission(tmp_path: Path) -> None:
    path = write_video(tmp_path / "secret.mp4", plain_frames(3))
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root reads everything: be nobody for a moment
    try:
        assert code_of(path) == RejectCode.UNREADABLE
    finally:
        if user == 0:
            os.seteuid(0)


def test_facts_and_fingerprint(tmp_path: Path) -> None:
    sound = np.sin(np.arange(44100) / 10).astype(np.float32)
    path = write_video(tmp_path / "a.mp4", plain_frames(25), sound=sound, sound_rate=44100, channels=2)
    facts = probe(path)
    assert (facts.codec, facts.fps, facts.width, facts.height, facts.rotation) == ("h264", 25.0, 128, 128, 0)
    assert (facts.audio_codec, facts.audio_rate, facts.audio_channels) == ("aac", 44100, 2)
    assert facts.declared_frames == 25
    copy = tmp_path / "b.mp4"
    copy.write_bytes(path.read_bytes())
    assert content_fingerprint(copy) == content_fingerprint(path)
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    copy.write_bytes(changed)
    assert content_fingerprint(copy) != content_fingerprint(path)


def test_pictures_too_small_for_decord_are_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "tiny.mp4", plain_frames(5, 64, 48))
    with pytest.raises(VideoRejected) as error:
        read_frames(path, probe(path))
    assert error.value.code == RejectCode.FACE_TOO_SMALL

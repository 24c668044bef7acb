"""Files that the encoder writes, read back with PyAV."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest

from models.views import FPS, SAMPLE_RATE
from tasks.video.video_out import VideoWriter, encode_clip


def moving_frames(count: int, size: tuple[int, int] = (48, 64), seed: int = 0) -> list[np.ndarray]:
    noise = np.random.default_rng(seed).integers(0, 255, (size[0] + count, size[1], 3), dtype=np.uint8)
    return [noise[i : i + size[0]] for i in range(count)]


def decode_video(source: object) -> tuple[list[np.ndarray], list[float], list[bool]]:
    with av.open(source) as container:
        frames = list(container.decode(video=0))
    return [f.to_ndarray(format="rgb24") for f in frames], [f.time for f in frames], [f.key_frame for f in frames]


def decode_audio(path: Path) -> tuple[np.ndarray, float]:
    """The waveform and the time of its first sample in seconds."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    return np.concatenate([f.to_ndarray()[0] for f in frames]), frames[0].time


@pytest.mark.parametrize("fps", [25, 30])
def test_flashes_and_clicks_stay_within_half_a_frame(tmp_path: Path, fps: int) -> None:
    flashes = np.random.default_rng(3).random(5 * fps) < 0.15
    audio = np.zeros(SAMPLE_RATE * 5, np.float32)
    burst = np.sin(2 * np.pi * 1000 * np.arange(160) / SAMPLE_RATE).astype(np.float32)
    for index in np.flatnonzero(flashes):
        start = round(index * SAMPLE_RATE / fps)
        audio[start : start + 160] += 0.8 * burst
    path = tmp_path / "sync.mp4"
    with VideoWriter(path, width=64, height=48, fps=fps, audio=audio) as writer:
        for flash in flashes:
            writer.write(np.full((48, 64, 3), 255 if flash else 0, np.uint8))

    frames, times, _ = decode_video(str(path))
    sound, start = decode_audio(path)
    assert len(frames) == len(flashes)
    np.testing.assert_allclose(times, np.arange(len(flashes)) / fps, atol=1e-3)
    # Both as events on one millisecond grid, compared at every lag of up to 100 ms.
    seen = np.zeros(5200)
    seen[np.round(1000 * np.array(times)[[f.mean() > 127 for f in frames]]).astype(int)] = 1
    loud = np.flatnonzero((np.abs(sound) > 0.3) & (np.convolve(np.abs(sound) > 0.3, np.ones(200))[: len(sound)] <= 1))
    heard = np.zeros(5200)
    heard[np.round(1000 * (start + loud / SAMPLE_RATE)).astype(int)] = 1
    heard = np.convolve(heard, np.ones(7), "same")
    lags = range(-100, 101)
    best = max(lags, key=lambda lag: float((np.roll(seen, lag) * heard).sum()))
    assert abs(best) < 500 / fps, f"sound is {best} ms late"
    assert (np.roll(seen, best) * heard).sum() >= 0.9 * flashes.sum()


def test_sound_keeps_its_level_and_ends_with_the_last_frame(tmp_path: Path) -> None:
    audio = (0.5 * np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE * 4) / SAMPLE_RATE)).astype(np.float32)
    path = tmp_path / "tone.mp4"
    with VideoWriter(path, width=64, height=48, audio=audio) as writer:
        for frame in moving_frames(50):
            writer.write(frame)
    sound, start = decode_audio(path)
    assert abs(start) < 1e-6
    assert abs(len(sound) - 2 * SAMPLE_RATE) <= 1024
    assert np.sqrt((sound[4000:28000] ** 2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.03)


def test_colours_survive(tmp_path: Path) -> None:
    colours = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (255, 255, 255), (0, 0, 0), (128, 128, 128)]
    path = tmp_path / "colours.mp4"
    with VideoWriter(path, width=64, height=48, crf=10) as writer:
        for colour in colours:
            writer.write(np.full((48, 64, 3), colour, np.uint8))
    frames, _, _ = decode_video(str(path))
    for frame, colour in zip(frames, colours, strict=True):
        assert np.abs(frame.reshape(-1, 3).mean(0) - colour).max() < 5


def test_metadata_comes_back(tmp_path: Path) -> None:
    metadata = {"synthetic": "true", "talking_heads_model": "models:/talking-heads-fewshot/3", "title": "naïve “test” 试"}
    path = tmp_path / "meta.mp4"
    with VideoWriter(path, width=64, height=48, metadata=metadata) as writer:
        for frame in moving_frames(3):
            writer.write(frame)
    with av.open(str(path)) as container:
        assert metadata.items() <= dict(container.metadata).items()


@pytest.mark.parametrize("name", ["a b.mp4", 'it\'s "quoted".mp4', "größe 试 é.mp4", "a:b%03d.v1.2.mp4"])
def test_any_name_is_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"dir {name}" / name
    with VideoWriter(path, width=64, height=48, audio=np.zeros(4000, np.float32)) as writer:
        for frame in moving_frames(4):
            writer.write(frame)
    with path.open("rb") as file:
        assert len(decode_video(file)[0]) == 4
    assert [p.name for p in path.parent.iterdir()] == [name]


@pytest.mark.parametrize("existing", [None, b"what was there"])
def test_an_exception_leaves_no_file_and_keeps_the_old_one(tmp_path: Path, existing: bytes | None) -> None:
    path = tmp_path / "out.mp4"
    if existing is not None:
        path.write_bytes(existing)
    before = sorted(p.name for p in tmp_path.iterdir())

    def body() -> None:
        with VideoWriter(path, width=64, height=48, audio=np.zeros(16000, np.float32)) as writer:
            for frame in moving_frames(20):
                writer.write(frame)
            assert not path.exists() or path.read_bytes() == existing
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        body()
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    if existing is not None:
        assert path.read_bytes() == existing


def test_no_frame_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    def body() -> None:
        with VideoWriter(tmp_path / "empty.mp4", width=64, height=48):
            pass

    with pytest.raises(ValueError, match="no frame"):
        body()
    assert list(tmp_path.iterdir()) == []


def test_same_frames_give_the_same_file(tmp_path: Path) -> None:
    audio = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    for name in ("a.mp4", "b.mp4"):
        with VideoWriter(tmp_path / name, width=64, height=48, audio=audio, metadata={"k": "v"}) as writer:
            for frame in moving_frames(25):
                writer.write(frame)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize(("width", "height"), [(63, 48), (64, 47), (0, 48), (64, -2)])
def test_odd_and_empty_sizes_are_refused(tmp_path: Path, width: int, height: int) -> None:
    with pytest.raises(ValueError, match=f"{width}x{height}"):
        VideoWriter(tmp_path / "odd.mp4", width=width, height=height)


@pytest.mark.parametrize("bad", [np.zeros((48, 64), np.uint8), np.zeros((48, 66, 3), np.uint8), np.zeros((48, 64, 3), np.float32)])
def test_wrong_frames_are_refused(tmp_path: Path, bad: np.ndarray) -> None:
    def body() -> None:
        with VideoWriter(tmp_path / "bad.mp4", width=64, height=48) as writer:
            writer.write(bad)

    with pytest.raises(ValueError, match="frame 0"):
        body()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("audio", [np.zeros((2, 100), np.float32), np.zeros(100, np.int16), np.full(100, np.nan, np.float32)])
def test_wrong_audio_is_refused(tmp_path: Path, audio: np.ndarray) -> None:
    with pytest.raises(ValueError, match="audio"):
        VideoWriter(tmp_path / "bad.mp4", width=64, height=48, audio=audio)


@pytest.mark.parametrize(("count", "gop"), [(1, 12), (12, 12), (30, 12), (7, 1)])
def test_clip_has_every_frame_and_exactly_its_key_frames(count: int, gop: int) -> None:
    data = encode_clip(iter(moving_frames(count)), crf=17, gop=gop)
    frames, times, keys = decode_video(io.BytesIO(data))
    assert len(frames) == count
    assert [i for i, key in enumerate(keys) if key] == list(range(0, count, gop))
    np.testing.assert_allclose(times, np.arange(count) / FPS, atol=1e-6)


def test_clip_bytes_repeat_and_follow_the_content() -> None:
    first = encode_clip(moving_frames(20), crf=17, gop=12)
    assert first == encode_clip(moving_frames(20), crf=17, gop=12)
    assert first != encode_clip(moving_frames(20, seed=1), crf=17, gop=12)


def test_clip_frames_keep_their_order_in_decord(tmp_path: Path) -> None:
    decord = pytest.importorskip("decord")
    frames = [np.full((64, 64, 3), 12 * i, np.uint8) for i in range(20)]
    reader = decord.VideoReader(io.BytesIO(encode_clip(frames, crf=10, gop=6)))
    assert len(reader) == 20
    order = [13, 2, 19, 0, 7]
    got = reader.get_batch(order).asnumpy().reshape(5, -1).mean(1)
    np.testing.assert_allclose(got, [12 * i for i in order], atol=3)


def test_clip_refuses_nothing_and_mixed_sizes() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        encode_clip([], crf=17, gop=12)
    with pytest.raises(ValueError, match="frame 1"):
        encode_clip([np.zeros((48, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)], crf=17, gop=12)
    with pytest.raises(ValueError, match="63x48"):
        encode_clip([np.zeros((48, 63, 3), np.uint8)], crf=17, gop=12)

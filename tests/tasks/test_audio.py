"""Sound: level, alignment, length."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
import pytest

from tasks.video.audio import clip_audio, fit_length, read_audio, wav_bytes
from tests.tasks.made_videos import numbered_frames, write_sound, write_video


def tone(seconds: float, rate: int, hertz: float = 440.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def clicks(seconds: float, rate: int, at: tuple[float, ...]) -> np.ndarray:
    sound = np.zeros(round(seconds * rate), np.float32)
    for second in at:
        begin = round(second * rate)
        sound[begin : begin + rate // 200] = 0.8
    return sound


def first_loud(sound: np.ndarray, after: float) -> float:
    begin = round(after * 16000)
    return after + float(np.argmax(np.abs(sound[begin:]) > 0.3)) / 16000


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2), (48000, 1), (22050, 2)])
def test_level_and_time_survive(tmp_path: Path, rate: int, channels: int) -> None:
    """decord's sound is sqrt(2) too loud, and AAC's priming would shift it by 64 ms."""
    sound = tone(2.0, rate)
    sound[rate : rate + rate // 2] = 0
    path = write_video(tmp_path / "a.mp4", numbered_frames(50), sound=sound, sound_rate=rate, channels=channels)
    got = read_audio(path)
    assert got is not None
    assert got.dtype == np.float32
    assert abs(len(got) - 32000) < 2048
    assert np.sqrt((got[3200:14400] ** 2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.03)
    assert np.abs(got[17000:23000]).max() < 0.05
    assert first_loud(got, 1.2) == pytest.approx(1.5, abs=0.01)


def test_a_clip_is_exactly_as_long_as_its_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_frames(100), sound=clicks(3.0, 16000, (1.0, 2.2)))
    clip = clip_audio(path, 0.8, 50)
    assert clip is not None
    assert len(clip) == 50 * 640
    assert first_loud(clip, 0.0) == pytest.approx(0.2, abs=0.006)
    assert first_loud(clip, 0.6) == pytest.approx(1.4, abs=0.006)
    tail = clip_audio(path, 3.2, 20)
    assert tail is not None
    assert len(tail) == 20 * 640
    assert np.abs(tail).max() < 1e-3


def test_parts_equal_the_whole(tmp_path: Path) -> None:
    """Seeking and the resampler's edges must not show inside a clip."""
    rng = np.random.default_rng(0)
    sound = np.convolve(rng.normal(0, 0.2, 44100 * 4), np.ones(8) / 8, "same").astype(np.float32)
    path = write_video(tmp_path / "a.mp4", numbered_frames(100), sound=sound, sound_rate=44100)
    whole = read_audio(path)
    part = read_audio(path, start=1.48, end=2.48)
    assert whole is not None
    assert part is not None
    assert len(part) == 16000
    # AAC's noise substitution draws afresh after a seek, so equal samples cannot be asked for; a shift of one sample can be seen.
    match = [float(np.corrcoef(part[100:-100], whole[23780 + shift : 39580 + shift])[0, 1]) for shift in range(-3, 4)]
    assert int(np.argmax(match)) == 3
    assert match[3] > 0.99


def test_silent_film_and_pure_sound(tmp_path: Path) -> None:
    assert read_audio(write_video(tmp_path / "a.mp4", numbered_frames(10))) is None
    got = read_audio(write_sound(tmp_path / "s.m4a", tone(1.0, 16000)))
    assert got is not None
    assert 15000 < len(got) < 18000


def test_the_resampler_is_librosas(tmp_path: Path) -> None:
    """One second at 24 kHz keeps its tone."""
    path = write_sound(tmp_path / "s.m4a", tone(1.0, 24000, hertz=1000), 24000)
    got = read_audio(path)
    assert got is not None
    spectrum = np.abs(np.fft.rfft(got[:16000]))
    assert np.argmax(spectrum) == 1000


def test_wav_is_pcm16_mono_16k() -> None:
    sound = np.array([0, 0.5, -0.5, 1.5, -1.5], np.float32)
    with wave.open(io.BytesIO(wav_bytes(sound))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (1, 2, 16000, 5)
        pcm = np.frombuffer(file.readframes(5), "<i2")
    assert pcm.tolist() == [0, 16384, -16384, 32767, -32767]


def test_fit_length() -> None:
    assert fit_length(np.ones(3, np.float32), 5).tolist() == [1, 1, 1, 0, 0]
    assert fit_length(np.ones(3, np.float32), 2).tolist() == [1, 1]

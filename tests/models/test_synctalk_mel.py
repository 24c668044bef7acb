"""The mel rows: equal to the published recipe in librosa, and windows for every frame of any sound."""

from __future__ import annotations

import warnings

import librosa
import numpy as np
import numpy.typing as npt
import pytest
from scipy import signal

from models.synctalk import mel
from models.synctalk.config import MEL_BANDS, MEL_ROWS
from models.synctalk.examples import frames_of_sound

Sound = npt.NDArray[np.float32]


def published(sound: Sound) -> npt.NDArray[np.float64]:
    """The recipe of Wav2Lip's and SyncTalk_2D's audio code, with librosa: [rows, 80]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        spectrum = librosa.stft(y=signal.lfilter([1, -0.97], [1], sound), n_fft=800, hop_length=200, win_length=800)
    basis = librosa.filters.mel(sr=16000, n_fft=800, n_mels=80, fmin=55, fmax=7600)
    level = 20 * np.log10(np.maximum(1e-5, basis @ np.abs(spectrum))) - 20
    return np.asarray(np.clip(8 * (level + 100) / 100 - 4, -4, 4).T, np.float64)


def noise(samples: int, seed: int = 0) -> Sound:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=samples) * np.exp(2 * rng.normal(size=samples)) * 0.02).astype(np.float32)


def sweep(samples: int) -> Sound:
    t = np.arange(samples) / 16000
    return np.sin(2 * np.pi * 300 * t * t).astype(np.float32)


def test_the_filters_are_librosas() -> None:
    wanted = librosa.filters.mel(sr=16000, n_fft=800, n_mels=80, fmin=55, fmax=7600)
    np.testing.assert_allclose(mel.mel_filters(), wanted, atol=1e-7)


@pytest.mark.parametrize("sound", [noise(1), noise(399), noise(640), noise(1600), noise(48_077), sweep(80_000)], ids=len)
def test_the_rows_are_the_published_ones(sound: Sound) -> None:
    got = mel.mel_spectrogram(sound)
    assert got.dtype == np.float32
    assert got.shape == (1 + len(sound) // 200, MEL_BANDS)
    np.testing.assert_allclose(got, published(sound), atol=1e-4)


def test_a_long_sound_is_cut_into_blocks_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = noise(16_000)
    whole = mel.mel_spectrogram(sound)
    monkeypatch.setattr(mel, "_ROWS_AT_ONCE", 7)
    np.testing.assert_allclose(mel.mel_spectrogram(sound), whole, atol=1e-6)


def test_silence_is_one_finite_value() -> None:
    rows = mel.mel_spectrogram(np.zeros(5000, np.float32))
    assert (rows == mel.SILENCE).all()
    assert (mel.mel_windows(mel.mel_spectrogram(np.zeros(640, np.float32)), [0]) == mel.SILENCE).all()


@pytest.mark.parametrize("samples", [640, 641, 1600, 3000, 3199, 3200, 6400, 16_000, 33_333])
def test_every_frame_of_any_sound_has_its_window(samples: int) -> None:
    rows = mel.mel_spectrogram(noise(samples))
    count = frames_of_sound(noise(samples))
    windows = mel.mel_windows(rows, range(count))
    assert windows.shape == (count, 1, MEL_BANDS, MEL_ROWS)
    assert np.isfinite(windows).all()
    for frame in range(count):
        first = int(80 * frame / 25)
        if first + MEL_ROWS <= len(rows):
            np.testing.assert_array_equal(windows[frame, 0].T, rows[first : first + MEL_ROWS])
        elif len(rows) >= MEL_ROWS:
            np.testing.assert_array_equal(windows[frame, 0].T, rows[-MEL_ROWS:], "the public rule at the end")
        else:
            np.testing.assert_array_equal(windows[frame, 0, :, : len(rows)].T, rows)
            assert (windows[frame, 0, :, len(rows) :] == mel.SILENCE).all()


def test_a_window_spans_the_five_frames_that_begin_with_it() -> None:
    """Frames 8 to 12 begin within the 0.2 s before the click; 13 begins 20 ms after it, which is the transform's half width."""
    sound = np.zeros(16_000, np.float32)
    sound[8000] = 1  # frame 12.5
    loud = [bool((window > mel.SILENCE).any()) for window in mel.mel_windows(mel.mel_spectrogram(sound), range(25))]
    assert [frame for frame, it in enumerate(loud) if it] == list(range(8, 14))


def test_frames_come_in_the_order_asked_for() -> None:
    rows = mel.mel_spectrogram(noise(16_000))
    one_by_one = np.concatenate([mel.mel_windows(rows, [frame]) for frame in (7, 0, 7)])
    np.testing.assert_array_equal(mel.mel_windows(rows, [7, 0, 7]), one_by_one)
    assert mel.mel_windows(rows, []).shape == (0, 1, MEL_BANDS, MEL_ROWS)


@pytest.mark.parametrize(
    ("sound", "words"),
    [
        (np.empty(0, np.float32), "one row of samples"),
        (np.zeros((2, 100), np.float32), "one row of samples"),
        (np.array([0, np.nan], np.float32), "no numbers"),
    ],
)
def test_what_is_no_sound_is_refused(sound: Sound, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mel.mel_spectrogram(sound)


def test_negative_frames_and_other_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="from 0 on, got -2"):
        mel.mel_windows(np.zeros((20, 80), np.float32), [3, -2])
    with pytest.raises(ValueError, match=r"\[rows, 80\], got \(80, 20\)"):
        mel.mel_windows(np.zeros((80, 20), np.float32), [0])

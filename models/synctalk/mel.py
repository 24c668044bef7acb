"""What the family hears: the mel rows of a sound, 80 a second, and the windows that belong to frames.

The numbers are those of Wav2Lip's `audio.py`, which SyncTalk_2D's published encoder was trained with; here without librosa,
because a machine that trains has PyTorch and NumPy only. spec/synctalk.md, "Audio".
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.synctalk.config import MEL_BANDS, MEL_ROWS, MEL_ROWS_PER_SECOND
from models.views import FPS

SAMPLE_RATE = 16_000
FFT = 800
HOP = SAMPLE_RATE // MEL_ROWS_PER_SECOND
LOWEST, HIGHEST = 55.0, 7600.0
PRE_EMPHASIS = 0.97
FLOOR = 1e-5
"""Amplitude below which everything is silence: -100 dB."""

SILENCE = -4.0
"""Every value of a silent row."""

_ROWS_AT_ONCE = 2048
"""Rows that are transformed together: 26 s of sound in 40 MB, however long it is."""


def mel_spectrogram(audio: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The mel rows of a sound.

    Row r is centred on sample 200 r; beyond its ends the sound is zero, as librosa 0.10 and later pad (Wav2Lip's own
    librosa 0.7 mirrored the two outermost rows).

    Args:
        audio: float32 [S], 16 kHz mono, -1..1.

    Returns:
        float32 [1 + S // 200, 80], 80 rows a second, in -4..4; -4 is silence.

    Raises:
        ValueError: not one row of finite samples, or none at all.
    """
    if audio.ndim != 1 or not len(audio):
        raise ValueError(f"a sound is one row of samples, got the shape {audio.shape}")
    if not np.isfinite(audio).all():
        raise ValueError("the sound holds samples that are no numbers")
    rows = 1 + len(audio) // HOP
    window = np.hanning(FFT + 1)[:-1]
    basis = mel_filters().T
    result = np.empty((rows, MEL_BANDS), np.float32)
    for first in range(0, rows, _ROWS_AT_ONCE):
        last = min(first + _ROWS_AT_ONCE, rows)
        sound = _emphasised(audio, first * HOP - FFT // 2, (last - 1) * HOP + FFT // 2)
        frames = np.lib.stride_tricks.sliding_window_view(sound, FFT)[::HOP]
        # Double precision: next to a loud one, a quiet band lies below what single precision resolves.
        amplitude = np.abs(np.fft.rfft(frames * window, axis=1)) @ basis
        level = 20 * np.log10(np.maximum(FLOOR, amplitude)) - 20
        result[first:last] = np.clip(8 * (level + 100) / 100 - 4, -4, 4)
    return result


def mel_windows(mel: npt.NDArray[np.float32], frames: Sequence[int]) -> npt.NDArray[np.float32]:
    """The sound of frames: 16 rows (0.2 s) from the frame's beginning on.

    Frames whose window would reach beyond the sound hear its last 16 rows, as in the public code. A sound shorter than
    that, which the public code refuses, is followed by silence.

    Args:
        mel: float32 [rows, 80] of `mel_spectrogram`.
        frames: numbers of frames at 25 fps, from 0 on.

    Returns:
        float32 [n, 1, 80, 16]: bands by rows.

    Raises:
        ValueError: a negative frame, or something that is no mel.
    """
    if mel.ndim != 2 or mel.shape[1] != MEL_BANDS or not len(mel):
        raise ValueError(f"mel rows are [rows, {MEL_BANDS}], got {mel.shape}")
    numbers = np.asarray(frames, np.int64).reshape(-1)
    if (numbers < 0).any():
        raise ValueError(f"frames are counted from 0 on, got {numbers.min()}")
    missing = MEL_ROWS - len(mel)
    if missing > 0:
        mel = np.concatenate([mel, np.full((missing, MEL_BANDS), SILENCE, np.float32)])
    starts = np.minimum(numbers * MEL_ROWS_PER_SECOND // FPS, len(mel) - MEL_ROWS)
    windows = mel[starts[:, None] + np.arange(MEL_ROWS)]
    return np.ascontiguousarray(windows.swapaxes(1, 2)[:, None], dtype=np.float32)


@functools.cache
def mel_filters() -> npt.NDArray[np.float64]:
    """80 triangles between 55 and 7600 Hz, evenly spaced on Slaney's mel scale and of one area: float64 [80, 401]."""
    edges = _hertz(np.linspace(_mel(LOWEST), _mel(HIGHEST), MEL_BANDS + 2))
    bins = np.arange(FFT // 2 + 1) * (SAMPLE_RATE / FFT)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    triangles.setflags(write=False)
    return np.asarray(triangles, np.float64)


_LINEAR_UP_TO = 1000.0
_HERTZ_PER_MEL = 200 / 3
_MELS_LINEAR = _LINEAR_UP_TO / _HERTZ_PER_MEL
_LOG_STEP = float(np.log(6.4)) / 27


def _mel(hertz: float) -> float:
    """Slaney's scale: linear up to 1 kHz, 27 mels for a factor of 6.4 above."""
    if hertz < _LINEAR_UP_TO:
        return hertz / _HERTZ_PER_MEL
    return _MELS_LINEAR + float(np.log(hertz / _LINEAR_UP_TO)) / _LOG_STEP


def _hertz(mels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    above = _LINEAR_UP_TO * np.exp(_LOG_STEP * (mels - _MELS_LINEAR))
    return np.asarray(np.where(mels < _MELS_LINEAR, mels * _HERTZ_PER_MEL, above), np.float64)


def _emphasised(audio: npt.NDArray[np.float32], first: int, last: int) -> npt.NDArray[np.float64]:
    """Samples first..last-1 after pre-emphasis, zero outside of the sound: float64 [last - first]."""
    begin, end = max(0, first), min(len(audio), last)
    result = np.zeros(last - first)
    if begin < end:
        result[begin - first : end - first] = audio[begin:end]
        behind = max(1, begin)
        result[behind - first : end - first] -= PRE_EMPHASIS * audio[behind - 1 : end - 1]
    return result

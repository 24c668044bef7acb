"""Speech-like sound by formant synthesis, and the mouth that would make it.

A random sentence of phonemes is drawn once; the same phoneme track, smoothed once for co-articulation, gives both
the filters of the sound and the opening and width of the mouth. So the mouth is a function of the sound.

Source-filter synthesis after D. H. Klatt, "Software for a cascade/parallel formant synthesizer", JASA 67(3), 1980;
vowel formants after G. E. Peterson and H. L. Barney, "Control methods used in a study of the vowels", JASA 24(2), 1952.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.views import FPS, SAMPLE_RATE

CONTROL_RATE = 200
"""Control values per second; 80 samples share one filter setting."""

_BLOCK = SAMPLE_RATE // CONTROL_RATE

Track = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Voice:
    """What differs from speaker to speaker."""

    pitch: float
    """Mean fundamental frequency in Hz."""
    range: float = 0.18
    """Pitch movement as a share of `pitch`."""
    tract: float = 1.0
    """Factor on all formants: 1 for an average man, 1.17 for an average woman."""
    rate: float = 1.0
    """Factor on the speed of speaking."""
    breath: float = 0.03
    """Noise mixed into the voice."""


@dataclass(frozen=True, kw_only=True)
class Speech:
    """One utterance and what the face does with it; the tracks have one value per video frame."""

    audio: npt.NDArray[np.float32]
    """float32 [640 F], 16 kHz mono, -1..1."""
    opening: Track
    """float64 [F], 0 (lips closed) .. 1 (widest)."""
    width: Track
    """float64 [F], -1 (rounded, as in "oo") .. 1 (spread, as in "ee")."""
    accent: Track
    """float64 [F], 0..1: stress of the syllable; moves brows and head."""


@dataclass(frozen=True)
class _Phoneme:
    """Targets of one sound: formants in Hz, amplitudes 0..1, mouth, mean duration in ms."""

    formants: tuple[float, float, float]
    opening: float
    width: float
    duration: float
    voice: float = 1.0
    noise: float = 0.0
    noise_hz: float = 4000.0
    noise_width: float = 2000.0


_SILENCE = _Phoneme((500, 1500, 2500), 0.0, 0.0, 220, voice=0.0)

# Mouth values follow the formants: F1 rises with the opening, F2 falls with rounding.
_VOWELS = {
    "i": _Phoneme((270, 2290, 3010), 0.30, 0.95, 115),
    "e": _Phoneme((480, 1950, 2600), 0.50, 0.65, 110),
    "ae": _Phoneme((660, 1720, 2410), 0.80, 0.45, 130),
    "a": _Phoneme((730, 1090, 2440), 1.00, 0.00, 140),
    "o": _Phoneme((530, 840, 2410), 0.68, -0.60, 130),
    "u": _Phoneme((300, 870, 2240), 0.32, -1.00, 120),
    "er": _Phoneme((490, 1350, 1690), 0.42, -0.25, 110),
}
_CONSONANTS = {
    "m": _Phoneme((250, 1100, 2200), 0.00, 0.0, 75, voice=0.40),
    "n": _Phoneme((250, 1500, 2500), 0.18, 0.1, 65, voice=0.45),
    "l": _Phoneme((360, 1300, 2700), 0.35, 0.1, 65, voice=0.70),
    "w": _Phoneme((300, 650, 2200), 0.14, -0.95, 70, voice=0.65),
    "r": _Phoneme((400, 1100, 1600), 0.28, -0.45, 70, voice=0.70),
    "z": _Phoneme((300, 1600, 2600), 0.14, 0.35, 80, voice=0.35, noise=0.25, noise_hz=5500),
    "v": _Phoneme((300, 1200, 2300), 0.06, 0.1, 65, voice=0.40, noise=0.10, noise_hz=4500, noise_width=4000),
    "s": _Phoneme((300, 1600, 2600), 0.14, 0.45, 105, voice=0.0, noise=0.50, noise_hz=5800),
    "sh": _Phoneme((300, 1700, 2500), 0.18, -0.50, 105, voice=0.0, noise=0.55, noise_hz=3000, noise_width=1300),
    "f": _Phoneme((300, 1200, 2300), 0.05, 0.1, 95, voice=0.0, noise=0.22, noise_hz=4800, noise_width=4500),
    "h": _Phoneme((550, 1500, 2500), 0.40, 0.1, 60, voice=0.05, noise=0.22, noise_hz=1500, noise_width=2500),
}
# A stop is a closure without sound and then a burst; b, p close the lips.
_CLOSURES = {
    "b": (_Phoneme((200, 900, 2200), 0.0, 0.0, 60, voice=0.12), _Phoneme((350, 1000, 2300), 0.20, 0.0, 14, noise=0.35, noise_hz=900)),
    "p": (
        _Phoneme((200, 900, 2200), 0.0, 0.0, 75, voice=0.0),
        _Phoneme((350, 1000, 2300), 0.20, 0.0, 24, voice=0.1, noise=0.5, noise_hz=1100),
    ),
    "d": (_Phoneme((250, 1700, 2600), 0.15, 0.2, 50, voice=0.12), _Phoneme((350, 1700, 2600), 0.25, 0.2, 14, noise=0.35, noise_hz=3800)),
    "t": (
        _Phoneme((250, 1700, 2600), 0.14, 0.2, 65, voice=0.0),
        _Phoneme((350, 1700, 2600), 0.22, 0.2, 26, voice=0.1, noise=0.55, noise_hz=4500),
    ),
    "k": (
        _Phoneme((250, 1900, 2300), 0.25, 0.0, 65, voice=0.0),
        _Phoneme((350, 1900, 2300), 0.28, 0.0, 26, voice=0.1, noise=0.5, noise_hz=2200),
    ),
}

_BANDWIDTHS = (70.0, 100.0, 140.0, 220.0, 300.0)


def speak(voice: Voice, *, seconds: float, seed: int) -> Speech:
    """Say something; the same arguments give the same samples.

    Args:
        voice: The speaker.
        seconds: Length; rounded to whole video frames, at least one.
        seed: Chooses the words.
    """
    frames = max(1, round(seconds * FPS))
    rng = np.random.default_rng([seed, 0x5EED])
    controls = _controls(voice, rng, frames * CONTROL_RATE // FPS)
    audio = _synthesize(voice, rng, controls)
    # A video frame shows the mouth in the middle of its exposure: the mean over its 40 ms.
    per_frame = {name: controls[name].reshape(frames, -1).mean(1) for name in ("opening", "width", "accent")}
    return Speech(audio=audio, opening=per_frame["opening"], width=per_frame["width"], accent=per_frame["accent"])


def _sentence(voice: Voice, rng: np.random.Generator, seconds: float) -> list[tuple[_Phoneme, float, float]]:
    """Draw (phoneme, duration in s, stress 0..1) until `seconds` are full: words of 1-4 syllables, a pause every few words."""
    said: list[tuple[_Phoneme, float, float]] = [(_SILENCE, rng.uniform(0.15, 0.3), 0.0)]
    words_left = int(rng.integers(3, 7))
    vowels, consonants, stops = list(_VOWELS.values()), list(_CONSONANTS.values()), list(_CLOSURES.values())
    while sum(duration for _, duration, _ in said) < seconds:
        syllables = int(rng.choice([1, 2, 3, 4], p=[0.3, 0.4, 0.2, 0.1]))
        stressed = int(rng.integers(syllables))
        for syllable in range(syllables):
            stress = 1.0 if syllable == stressed else 0.0
            parts: list[_Phoneme] = []
            if rng.random() < 0.45:
                parts += stops[rng.integers(len(stops))]
            else:
                parts.append(consonants[rng.integers(len(consonants))])
            parts.append(vowels[rng.integers(len(vowels))])
            if rng.random() < 0.3:
                parts.append(consonants[rng.integers(len(consonants))])
            for part in parts:
                stretch = rng.uniform(0.85, 1.2) * (1.3 if stress and part.voice == 1.0 and not part.noise else 1.0)
                said.append((part, part.duration / 1000 * stretch / voice.rate, stress))
        words_left -= 1
        if words_left == 0:
            said.append((_SILENCE, rng.uniform(0.25, 0.5), 0.0))
            words_left = int(rng.integers(3, 7))
    return said


def _controls(voice: Voice, rng: np.random.Generator, count: int) -> dict[str, Track]:
    """All tracks at CONTROL_RATE, smoothed for co-articulation: [count] each, `formants` [count, 3]."""
    steps: list[npt.NDArray[np.float64]] = []
    tail = 0.25 * CONTROL_RATE  # the utterance ends in silence
    for phoneme, duration, stress in _sentence(voice, rng, count / CONTROL_RATE):
        row = [
            *phoneme.formants,
            phoneme.opening,
            phoneme.width,
            phoneme.voice,
            phoneme.noise,
            phoneme.noise_hz,
            phoneme.noise_width,
            stress,
        ]
        steps.append(np.tile(row, (max(1, round(duration * CONTROL_RATE)), 1)))
    table = np.concatenate(steps)[:count]
    table[max(0, int(count - tail)) :] = [*_SILENCE.formants, 0, 0, 0, 0, 4000, 2000, 0]
    loud = 1 + 0.25 * _smooth(table[:, 9], 0.06)
    return {
        "formants": np.stack([_smooth(table[:, i], 0.018) for i in range(3)], 1) * voice.tract,
        "opening": np.clip(_smooth(table[:, 3], 0.030) * (0.85 + 0.15 * loud), 0, 1),
        "width": np.clip(_smooth(table[:, 4], 0.040), -1, 1),
        "voice": _smooth(table[:, 5], 0.008) * loud,
        "noise": _smooth(table[:, 6], 0.005),
        "noise_hz": _smooth(table[:, 7], 0.010),
        "noise_width": _smooth(table[:, 8], 0.010),
        "accent": np.clip(_smooth(table[:, 9], 0.080), 0, 1),
        "pitch": _pitch(voice, rng, table[:, 9], table[:, 5] + table[:, 6]),
    }


def _pitch(voice: Voice, rng: np.random.Generator, stress: Track, sounding: Track) -> Track:
    """Fundamental in Hz: falls over every phrase (declination), rises on stressed syllables, wanders a little."""
    fall = np.zeros(len(stress))
    since = 0
    silent = _smooth(sounding, 0.05) < 0.05
    for index, quiet in enumerate(silent):
        since = 0 if quiet else since + 1
        fall[index] = since / CONTROL_RATE
    wander = _smooth(rng.standard_normal(len(stress)), 0.12) * 1.5
    contour = 0.6 - 0.35 * fall + 1.0 * _smooth(stress, 0.07) + 0.5 * wander
    return voice.pitch * np.clip(1 + voice.range * contour, 0.6, 1.8)


def _synthesize(voice: Voice, rng: np.random.Generator, controls: dict[str, Track]) -> npt.NDArray[np.float32]:
    """Glottal pulses and noise through time-varying resonators: float32 [80 * count]."""
    from scipy.signal import lfilter

    count = len(controls["pitch"])
    samples = count * _BLOCK
    at = np.arange(samples) / _BLOCK

    def stretched(track: Track) -> Track:
        return np.interp(at, np.arange(count) + 0.5, track)

    # Jitter of about 1 % from period to period makes the voice less of a buzzer.
    jitter = 1 + 0.012 * np.interp(at, np.arange(count), rng.standard_normal(count))
    phase = np.cumsum(stretched(controls["pitch"]) * jitter / SAMPLE_RATE) % 1.0
    # Rosenberg pulse: opens over 40 % of the period, closes over 16 %; its derivative drives the tract.
    pulse = np.where(
        phase < 0.4, 0.5 * (1 - np.cos(np.pi * phase / 0.4)), np.where(phase < 0.56, np.cos(np.pi * (phase - 0.4) / 0.32), 0.0)
    )
    breath = voice.breath * rng.standard_normal(samples) * (0.3 + pulse)
    source = (np.diff(pulse, prepend=pulse[:1]) * 12 + breath) * stretched(controls["voice"])
    hiss = rng.standard_normal(samples) * stretched(controls["noise"])

    out = np.zeros(samples)
    states = [np.zeros(2) for _ in _BANDWIDTHS]
    noise_state = np.zeros(2)
    for block in range(count):
        window = slice(block * _BLOCK, (block + 1) * _BLOCK)
        signal = source[window]
        formants = (*controls["formants"][block], 3500 * voice.tract, 4600 * voice.tract)
        for index, (frequency, bandwidth) in enumerate(zip(formants, _BANDWIDTHS, strict=True)):
            gain, feedback = _resonator(frequency, bandwidth)
            signal, states[index] = lfilter(gain, feedback, signal, zi=states[index])
        gain, feedback = _resonator(controls["noise_hz"][block], controls["noise_width"][block])
        fricative, noise_state = lfilter(gain, feedback, hiss[window], zi=noise_state)
        out[window] = signal + 0.35 * fricative
    out = lfilter([1, -0.97], [1, -0.90], out)  # removes what lies below the voice; lips radiate high frequencies better
    peak = np.abs(out).max()
    room = 0.0006 * rng.standard_normal(samples)
    return (0.7 * out / max(peak, 1e-9) + room).astype(np.float32)


def _resonator(frequency: float, bandwidth: float) -> tuple[list[float], list[float]]:
    """Klatt's two-pole resonator with gain 1 at 0 Hz, as (b, a) of `lfilter`."""
    frequency = min(frequency, 0.47 * SAMPLE_RATE)
    radius = np.exp(-np.pi * bandwidth / SAMPLE_RATE)
    second = 2 * radius * np.cos(2 * np.pi * frequency / SAMPLE_RATE)
    third = -radius * radius
    return [1 - second - third, 0.0], [1.0, -second, -third]


def _smooth(track: Track, seconds: float) -> Track:
    """Gaussian smoothing with the given standard deviation; the ends are held."""
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(np.asarray(track, np.float64), seconds * CONTROL_RATE, mode="nearest")

"""From a clip to training examples. Pure functions of (clip, generator), picklable for loader processes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.family import Example
from models.pictures import to_tensor
from models.synctalk.config import AUDIO_WINDOW, MEL_ROWS, MEL_ROWS_PER_SECOND, AudioConfig, GeometryConfig
from models.synctalk.geometry import Square, cut_core, face_squares, frame_box, mouth_box
from models.synctalk.mel import SILENCE, mel_spectrogram, mel_windows
from models.views import FPS, SAMPLES_PER_FRAME, Clip, Image

OFFSETS = 15
"""Frames that the sound is shifted by at most, either way, when the right offset is looked for: 31 candidates."""

AROUND_ROWS = 128
"""Mel rows that hold 31 neighbouring windows: 30 frames are 96 rows, and 16 more belong to the last window."""

assert AROUND_ROWS >= 2 * OFFSETS * MEL_ROWS_PER_SECOND // FPS + 1 + MEL_ROWS


@dataclass(frozen=True, kw_only=True)
class SyncExamples:
    """Windows of one clip with their sound, for the stage `syncnet`; drawn anew at every call."""

    geometry: GeometryConfig
    frames: int
    """Frames of a window."""
    positives: int
    """Windows."""
    apart: int
    """Frames that two windows are apart at least."""

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Example:
        """Draw windows.

        Returns:
            `faces` uint8 [P, frames, 3, core, core]; `starts` int64 [P], their first frames in the clip; `clip` int64 [P], a
            number of the clip; `mels` float32 [P, 1, 80, 16], their sound; `around` float32 [P, 128, 80], the mel rows from 15 frames
            before each to 15 frames after it, `rows` int64 [P, 31], where the window of every offset begins in them, and
            `there` bool [P, 31], which of the offsets lie in the clip.

        Raises:
            ValueError: the clip has no sound, or is too short for its windows; the message has the way out.
        """
        squares = squares_of(clip, self.geometry)
        mel = clip_mel(clip)
        starts = draw_starts(usable_starts(squares, self.frames), self.positives, self.apart, rng, clip.key)
        wanted = [start + offset for start in starts for offset in range(self.frames)]
        cores = clip_cores(clip, wanted, squares, self.geometry)
        return {
            "faces": to_tensor(cores).unflatten(0, (self.positives, self.frames)),
            "starts": torch.tensor(starts),
            "clip": torch.full((self.positives,), clip_number(clip), dtype=torch.int64),
            "mels": torch.from_numpy(mel_windows(mel, starts)),
            **around(mel, starts, clip.num_frames - self.frames + 1),
        }


@dataclass(frozen=True, kw_only=True)
class PaintExamples:
    """Consecutive frames of one clip to paint, another frame to take the looks from, and what is heard; for the stage `unet`."""

    geometry: GeometryConfig
    audio: AudioConfig
    frames: int
    """Consecutive frames: as many as the lip-sync judge looks at."""

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Example:
        """Draw an example.

        Returns:
            `cores` uint8 [T, 3, core, core]; `reference` uint8 [3, core, core], a frame that is none of them; `mouths` int64 [T, 4],
            boxes in the core as x0, y0, x1, y1, and `inside` int64 [T, 4], the part that lies in the frame; `mel` float32
            [1, 80, 16], the sound of the T frames; and what is heard
            around each, see `heard`.

        Raises:
            ValueError: the clip has no sound, or is too short.
        """
        squares = squares_of(clip, self.geometry)
        starts = usable_starts(squares, self.frames)
        if not len(starts) or clip.num_frames <= self.frames:
            raise ValueError(f"{clip.key}: {clip.num_frames} frames hold no {self.frames} consecutive ones with a face and another one")
        start = int(rng.choice(starts))
        window = np.arange(start, start + self.frames)
        others = np.setdiff1d(np.flatnonzero(np.isfinite(squares).all(axis=1)), window)
        if not len(others):
            raise ValueError(f"{clip.key}: no frame with a face is left to take the looks from")
        cores = clip_cores(clip, [*window, int(rng.choice(others))], squares, self.geometry)
        mel = clip_mel(clip)
        return {
            "cores": to_tensor(cores[:-1]),
            "reference": to_tensor(cores[-1]),
            "mouths": torch.from_numpy(np.stack([mouth_box(clip.landmarks[i], squares[i], self.geometry) for i in window])),
            "inside": torch.from_numpy(np.stack([frame_box((clip.size, clip.size), squares[i], self.geometry) for i in window])),
            "mel": torch.from_numpy(mel_windows(mel, [start]))[0],
            **heard(mel, clip.features, self.audio, window, clip.num_frames),
        }


def squares_of(clip: Clip, geometry: GeometryConfig) -> Square:
    """The steadied squares of a clip, NaN where the landmarker saw no face."""
    landmarks = np.where(clip.confidence[:, None, None] > 0, clip.landmarks, np.float32(np.nan))
    return face_squares(landmarks, geometry.smoothing)


def clip_cores(clip: Clip, indices: Sequence[int], squares: Square, geometry: GeometryConfig) -> Image:
    """Cores of these frames, in this order: uint8 [n, core, core, 3]; each frame is decoded once."""
    different = sorted({int(index) for index in indices})
    frames = clip.read_frames(different)
    cores = {index: cut_core(frame, squares[index], geometry) for index, frame in zip(different, frames, strict=True)}
    return np.stack([cores[int(index)] for index in indices])


def clip_mel(clip: Clip) -> npt.NDArray[np.float32]:
    """The mel rows of a clip's sound.

    Raises:
        ValueError: it has none.
    """
    if clip.audio is None:
        raise ValueError(f"{clip.key} has no sound; set filters.need_audio=true")
    return mel_spectrogram(clip.audio)


def usable_starts(squares: Square, frames: int) -> npt.NDArray[np.int64]:
    """First frames of all runs of `frames` frames that show a face: int64 [n], ascending."""
    found = np.isfinite(squares).all(axis=1)
    if len(found) < frames:
        return np.empty(0, np.int64)
    return np.flatnonzero(np.lib.stride_tricks.sliding_window_view(found, frames).all(axis=1))


def draw_starts(starts: npt.NDArray[np.int64], count: int, apart: int, rng: np.random.Generator, key: str) -> list[int]:
    """`count` of the starts, any two at least `apart` frames apart: uniform over a random phase of a grid.

    Raises:
        ValueError: there are not that many.
    """
    usable = set(starts.tolist())
    phases = [[start for start in range(phase, max(usable, default=0) + 1, apart) if start in usable] for phase in range(apart)]
    enough = [phase for phase in phases if len(phase) >= count]
    if not enough:
        longest = max(map(len, phases))
        raise ValueError(
            f"{key} holds {longest} windows that are {apart} frames apart, and {count} are wanted: "
            f"lower config.sync.positives, or leave short clips out with filters.min_frames"
        )
    phase = enough[int(rng.integers(len(enough)))]
    return sorted(int(start) for start in rng.choice(phase, count, replace=False))


def heard(
    mel: npt.NDArray[np.float32],
    features: Mapping[str, npt.NDArray[Any]],
    audio: AudioConfig,
    frames: npt.NDArray[np.int64],
    count: int,
) -> dict[str, Tensor]:
    """What the U-Net hears around consecutive frames: rows [first - 8, last + 8) of the clip's sound.

    The same for training and inference. Beyond the clip the encoder `ave` hears silence, so that a mouth at rest does not twitch where a
    sound begins and ends; learned features are zero there.

    Args:
        mel: the clip's mel rows.
        features: learned features of the clip by name: float [count, layers, width].
        frames: int64 [T], consecutive.
        count: frames of the clip.

    Returns:
        `sound`: ave: float32 [T + 15, 1, 80, 16] mel windows; otherwise float32 [T + 15, layers, width]. `hears`: bool [T + 15], where
        `sound` is to be used; zero features elsewhere.

    Raises:
        ValueError: learned features of another size than the configuration says.
    """
    rows = np.arange(frames[0] - AUDIO_WINDOW // 2, frames[-1] + AUDIO_WINDOW // 2)
    inside = (rows >= 0) & (rows < count)
    nearest = rows.clip(0, count - 1)
    if audio.encoder == "ave":
        sound = mel_windows(mel, nearest.tolist())
        sound[~inside] = SILENCE
        return {"sound": torch.from_numpy(sound), "hears": torch.ones(len(rows), dtype=torch.bool)}
    learned = features[audio.encoder]
    if learned.shape[1:] != (audio.layers, audio.width):
        layers, width = learned.shape[1:]
        raise ValueError(
            f"the {audio.encoder} features are {layers} layers of {width}: set config.audio.layers={layers} and config.audio.width={width}"
        )
    return {"sound": torch.from_numpy(np.asarray(learned[nearest], np.float32)), "hears": torch.from_numpy(inside)}


def around(mel: npt.NDArray[np.float32], starts: Sequence[int], windows: int) -> dict[str, Tensor]:
    """The sound at every offset of -15..15 frames from each start, for retrieval; see `SyncExamples.__call__`.

    Args:
        windows: windows of the clip: offsets beyond them are not there.
    """
    frames = np.asarray(starts)[:, None] + np.arange(-OFFSETS, OFFSETS + 1)
    rows = frames.clip(0, windows - 1) * MEL_ROWS_PER_SECOND // FPS
    first = rows.min(axis=1, keepdims=True)
    wanted = (first + np.arange(AROUND_ROWS)).clip(0, len(mel) - 1)
    return {
        "around": torch.from_numpy(mel[wanted]),
        "rows": torch.from_numpy(rows - first),
        "there": torch.from_numpy((frames >= 0) & (frames < windows)),
    }


def clip_number(clip: Clip) -> int:
    """A number that stays with a clip's key."""
    return int.from_bytes(hashlib.sha256(clip.key.encode()).digest()[:7], "big")


def frames_of_sound(audio: npt.NDArray[np.float32]) -> int:
    """Frames that a sound lasts, the last one begun counted: 640 samples each."""
    return max(1, -(-len(audio) // SAMPLES_PER_FRAME))

"""Small real videos for the tests of pass 1: a moving face (the public-domain astronaut portrait) or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np

from models.views import Image
from tasks.samples import SourceVideo, Utterance, VideoEvent
from tasks.settings import StoredSettings
from tasks.video.process_video import process_video


@cache
def portrait(size: int = 256) -> Image:
    """The astronaut's head and shoulders, uint8 [size, size, 3]."""
    import cv2
    from skimage import data

    return cv2.resize(np.ascontiguousarray(data.astronaut()[:320, 60:380]), (size, size), interpolation=cv2.INTER_AREA)


def face_frames(count: int, height: int = 256, width: int = 256) -> list[Image]:
    """The portrait swaying a little on a striped background."""
    import cv2

    frames = []
    face = portrait(min(height, width))
    top, left = (height - face.shape[0]) // 2, (width - face.shape[1]) // 2
    for index in range(count):
        angle = 3 * np.sin(index / 6)
        turn = cv2.getRotationMatrix2D((face.shape[1] / 2, face.shape[0] / 2), angle, 1.0)
        picture = np.full((height, width, 3), 90, np.uint8)
        picture[:, ::16] = 140
        moved = cv2.warpAffine(face, turn, face.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
        picture[top : top + face.shape[0], left : left + face.shape[1]] = moved
        frames.append(picture)
    return frames


def plain_frames(count: int, height: int = 128, width: int = 128, seed: int = 0) -> list[Image]:
    """Moving coloured blocks: a picture without a face."""
    blocks = np.random.default_rng(seed).integers(0, 255, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    full = blocks.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    return [np.roll(full, index, axis=1) for index in range(count)]


def numbered_frames(count: int, height: int = 64, width: int = 64) -> list[Image]:
    """Grey level 4 * n + 8 says the frame's number, for up to 60 frames."""
    return [np.full((height, width, 3), min(8 + 4 * index, 250), np.uint8) for index in range(count)]


def frame_number(image: Image) -> int:
    """Which of `numbered_frames` a decoded picture is."""
    return round((float(image.mean()) - 8) / 4)


def write_video(
    path: Path,
    frames: Sequence[Image],
    *,
    fps: int | Fraction = 25,
    times_ms: Sequence[int] | None = None,
    sound: np.ndarray | None = None,
    sound_rate: int = 16000,
    channels: int = 1,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a file by PyAV; `times_ms` gives every frame its own time (variable frame rate); `sound` is float32 [S]."""
    import av

    height, width = frames[0].shape[:2]
    options = {"crf": "12", "preset": "veryfast", "g": "12", "bf": "0"} if codec == "libx264" else {}
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if codec == "mpeg4":
            stream.bit_rate = 4_000_000
        if times_ms is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        audio = None
        if sound is not None:
            audio = container.add_stream("aac", rate=sound_rate, layout="mono" if channels == 1 else "stereo")
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None and sound is not None:
            _write_sound(container, audio, sound, sound_rate, channels)
    return path


def write_sound(path: Path, sound: np.ndarray, rate: int = 16000) -> Path:
    """An audio-only m4a."""
    import av

    with av.open(str(path), "w") as container:
        _write_sound(container, container.add_stream("aac", rate=rate, layout="mono"), sound, rate, 1)
    return path


def _write_sound(container, stream, sound: np.ndarray, rate: int, channels: int) -> None:
    import av

    for begin in range(0, len(sound), 1024):
        block = np.tile(sound[begin : begin + 1024].astype(np.float32), (channels, 1))
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout="mono" if channels == 1 else "stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate, begin, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def rotate_by_metadata(path: Path, quarter_turns: int) -> None:
    """Set the display matrix of the first track of an mp4: players turn it `quarter_turns` x 90 degrees clockwise."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd")
    version = data[place + 4]
    matrix = place + 4 + (52 if version else 40)
    one = 0x00010000
    cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarter_turns % 4]
    values = (cosine * one, sine * one, 0, -sine * one, cosine * one, 0, 0, 0, 0x40000000)
    data[matrix : matrix + 36] = b"".join((value & 0xFFFFFFFF).to_bytes(4, "big") for value in values)
    path.write_bytes(bytes(data))


def source(*paths: Path | str, start: float | None = None, end: float | None = None) -> SourceVideo:
    """A video whose utterances are these files."""
    utterances = tuple(Utterance(uri=str(path), name=f"u{index}", start=start, end=end) for index, path in enumerate(paths))
    return SourceVideo(key="anna_v1", identity="anna", video="v1", utterances=utterances, licence="CC0", consent="yes")


@contextmanager
def open_local(uri: str) -> Iterator[Path]:
    """Files are local already."""
    yield Path(uri)


def events(video: SourceVideo, settings: StoredSettings, landmarker, opener: Callable = open_local) -> list[VideoEvent]:
    """All events of a video."""
    return list(process_video(video, settings, landmarker, opener))

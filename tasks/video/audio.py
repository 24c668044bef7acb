"""Sound of any container as 16 kHz mono, on the video's clock.

PyAV decodes (decord's sound is wrong by a factor, librosa needs an ffmpeg program for mp4); librosa's resampler, soxr, resamples.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.views import SAMPLE_RATE, SAMPLES_PER_FRAME
from tasks.rejects import RejectCode, VideoRejected

if TYPE_CHECKING:
    from av.container import InputContainer

Waveform = npt.NDArray[np.float32]
"""float32 [S], 16 kHz mono, -1..1."""

CONTEXT_SECONDS = 0.1
"""Sound decoded around a wanted range, so that the resampler's filter has no edge inside it."""

SEEK_BACK_SECONDS = 0.5
"""How far before the wanted range decoding starts: AAC needs a frame or two to settle."""


def read_audio(path: Path | str, *, start: float | None = None, end: float | None = None) -> Waveform | None:
    """Sound between two moments of the video's clock, or None where the file has no audio stream.

    Time zero is the first video frame (the first sound in a file without pictures). Channels are averaged, gaps
    between packets are silence, and where the sound begins late the result begins with silence.

    Args:
        path: any file that FFmpeg reads.
        start: seconds; None is time zero.
        end: seconds; None is the end of the sound. With an `end` the result has exactly
            round((end - start) * 16000) samples, zeros where there is no sound.

    Raises:
        VideoRejected: the stream is there but cannot be decoded (code CORRUPT, step audio).
    """
    import av

    begin = start or 0.0
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                return None
            pieces, rate = _pieces(container, max(0.0, begin - CONTEXT_SECONDS), None if end is None else end + CONTEXT_SECONDS)
    except av.error.FFmpegError as error:
        raise VideoRejected(RejectCode.CORRUPT, "audio", f"the sound cannot be decoded: {error.strerror}") from error
    first = max(0.0, begin - CONTEXT_SECONDS)
    last = end + CONTEXT_SECONDS if end is not None else max((time + len(mono) / rate for time, mono in pieces), default=first)
    line = _on_one_line(pieces, rate, first, last)
    sound = _resample(line, rate)
    skip = round((begin - first) * SAMPLE_RATE)
    wanted = round((end - begin) * SAMPLE_RATE) if end is not None else max(0, round((last - begin) * SAMPLE_RATE))
    return fit_length(sound[skip:], wanted)


def clip_audio(path: Path | str, start: float, num_frames: int) -> Waveform | None:
    """Sound of one clip: float32 [640 * num_frames], or None where the file has no audio stream; raises as `read_audio`."""
    sound = read_audio(path, start=start, end=start + num_frames * SAMPLES_PER_FRAME / SAMPLE_RATE)
    return None if sound is None else fit_length(sound, num_frames * SAMPLES_PER_FRAME)


def fit_length(sound: Waveform, length: int) -> Waveform:
    """Cut or pad with zeros at the end: float32 [length]."""
    if len(sound) >= length:
        return sound[:length]
    return np.concatenate([sound, np.zeros(length - len(sound), np.float32)])


def wav_bytes(sound: Waveform) -> bytes:
    """A RIFF file: PCM16, mono, 16 kHz; values beyond -1..1 are clipped."""
    pcm = np.round(np.clip(sound, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()
    out = io.BytesIO()
    out.write(
        struct.pack(
            "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(pcm), b"WAVE", b"fmt ", 16, 1, 1, SAMPLE_RATE, SAMPLE_RATE * 2, 2, 16, b"data", len(pcm)
        )
    )
    out.write(pcm)
    return out.getvalue()


def _pieces(container: InputContainer, first: float, last: float | None) -> tuple[list[tuple[float, Waveform]], int]:
    """Decoded mono pieces with their times on the video's clock, and their sample rate."""
    stream = container.streams.audio[0]
    rate = stream.codec_context.sample_rate
    if first > SEEK_BACK_SECONDS:
        zero = _time_zero(container)
        container.seek(max(0, int((first + zero - SEEK_BACK_SECONDS) / float(stream.time_base or 1))), stream=stream, backward=True)
        pieces = list(_decode(container, first, last))
        if pieces and pieces[0][0] <= first:
            return pieces, rate
        container.seek(0, stream=stream, backward=True)  # a container whose index points too late: read from the beginning
    return list(_decode(container, first, last)), rate


def _decode(container: InputContainer, first: float, last: float | None) -> Iterator[tuple[float, Waveform]]:
    """Pieces of sound that touch [first, last)."""
    import av

    stream = container.streams.audio[0]
    rate = stream.codec_context.sample_rate
    zero = _time_zero(container)
    to_float = av.AudioResampler(format="fltp", rate=rate)
    clock: float | None = None
    for frame in container.decode(stream):
        clock = float(frame.pts * frame.time_base) - zero if frame.pts is not None and frame.time_base is not None else (clock or 0.0)
        if last is not None and clock >= last:
            return
        duration = frame.samples / frame.sample_rate
        if clock + duration > first:
            for planar in to_float.resample(frame):
                yield clock, planar.to_ndarray().mean(axis=0, dtype=np.float32)
        clock += duration


def _time_zero(container: InputContainer) -> float:
    """Presentation time of the first picture, or of the first sound where there are no pictures."""
    streams = container.streams.video or container.streams.audio
    stream = streams[0]
    return float(stream.start_time * stream.time_base) if stream.start_time is not None and stream.time_base is not None else 0.0


def _on_one_line(pieces: list[tuple[float, Waveform]], rate: int, first: float, last: float) -> Waveform:
    """Lay the pieces on a line of zeros that reaches from `first` to `last`."""
    line = np.zeros(max(0, round((last - first) * rate)), np.float32)
    expected = None
    for time, mono in pieces:
        offset = round((time - first) * rate)
        # Container clocks are coarser than samples (1 ms in Matroska): neighbours that touch within 2 ms stay seamless.
        if expected is not None and abs(offset - expected) <= rate // 500:
            offset = expected
        expected = offset + len(mono)
        begin, end = max(0, offset), min(len(line), expected)
        if begin < end:
            line[begin:end] = mono[begin - offset : end - offset]
    return line


def _resample(sound: Waveform, rate: int) -> Waveform:
    if rate == SAMPLE_RATE or not len(sound):
        return sound
    import librosa

    return np.asarray(librosa.resample(sound, orig_sr=rate, target_sr=SAMPLE_RATE, res_type="soxr_hq"), np.float32)

"""Write H.264 video: files with sound for people, short-GOP clips in memory for shards.

One encoder set-up for everything that this project writes. Single-threaded x264, so that the same
frames give the same bytes on every machine with the pinned PyAV.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from models.views import FPS, SAMPLE_RATE, Image

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import OutputContainer
    from av.video.stream import VideoStream

AUDIO_BIT_RATE = 64_000
"""Transparent for 16 kHz mono speech; AAC allows 96,000 at this rate."""

_AUDIO_CHUNK = 1024
"""Samples per AAC frame."""


class VideoWriter:
    """Write one mp4 (H.264 yuv420p, AAC where there is sound); use it as a context manager.

    The file appears under its name only when the `with` block ends well: until then it is `<name>.tmp` beside it, and an
    exception inside the block removes that and leaves an existing target as it was. Frame 0 and sample 0 start together.

    Args:
        path: Where to write; missing parent folders are made.
        width, height: Frame size in pixels; both even (4:2:0 chroma).
        fps: Frames per second.
        crf: Quality, 0..51, lower is better.
        gop: Most frames from one key frame to the next.
        preset: x264 preset.
        audio: float32 [S], 16 kHz mono, -1..1. What lies beyond the last frame is left out.
        metadata: Any keys and values, stored in the container.

    Raises:
        ValueError: for an odd or empty size, a frame of another shape or type, bad audio, or when no frame was written.

    Example:
        >>> with VideoWriter(out, width=512, height=512, audio=waveform, metadata={"synthetic": "true"}) as writer:
        ...     for frame in frames:
        ...         writer.write(frame)
    """

    def __init__(
        self,
        path: Path | str,
        *,
        width: int,
        height: int,
        fps: float | Fraction = FPS,
        crf: int = 18,
        gop: int = 250,
        preset: str = "veryfast",
        audio: npt.NDArray[np.float32] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        _check_size(width, height)
        if audio is not None and (audio.ndim != 1 or not np.issubdtype(audio.dtype, np.floating) or not np.isfinite(audio).all()):
            raise ValueError(f"audio must be finite floats of shape [S], got {audio.dtype} {audio.shape}")
        self.path = Path(path).absolute()
        self.frames_written = 0
        self._temporary = self.path.with_name(self.path.name + ".tmp")
        self._shape = (height, width, 3)
        self._fps = Fraction(fps).limit_denominator(1001)
        self._crf, self._gop, self._preset = crf, gop, preset
        self._sound = None if audio is None or audio.size == 0 else audio
        self._sound_at = 0
        self._metadata = dict(metadata or {})
        self._container: OutputContainer | None = None
        self._video: VideoStream | None = None
        self._audio: AudioStream | None = None

    def __enter__(self) -> Self:
        import av

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary.unlink(missing_ok=True)
        # use_metadata_tags stores any key (mp4 otherwise drops what it has no atom for); faststart lets a browser play while it loads.
        options = {"movflags": "use_metadata_tags+faststart"}
        container = av.open(str(self._temporary), "w", format="mp4", options=options)
        self._container = container
        container.metadata.update(self._metadata)
        self._video = _video_stream(container, self._shape, self._fps, crf=self._crf, gop=self._gop, preset=self._preset)
        if self._sound is not None:
            self._audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
            self._audio.bit_rate = AUDIO_BIT_RATE
        return self

    def write(self, frame: Image) -> None:
        """Append one frame, uint8 [height, width, 3], RGB."""
        if self._container is None or self._video is None:
            raise RuntimeError("VideoWriter.write outside of its with block")
        _encode_frame(self._container, self._video, frame, self._shape, self.frames_written)
        self.frames_written += 1
        self._write_sound(final=False)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        finished = False
        try:
            if kind is None and self.frames_written:
                self._flush()
            if self._container is not None:
                self._container.close()
            if kind is None:
                if not self.frames_written:
                    raise ValueError(f"no frame was written to {self.path}")
                _fsync(self._temporary)
                self._temporary.replace(self.path)
                finished = True
        finally:
            self._container = None
            if not finished:
                self._temporary.unlink(missing_ok=True)

    def _write_sound(self, *, final: bool) -> None:
        """Encode the sound that belongs to the frames written so far, so that the muxer never has to buffer much."""
        import av

        if self._sound is None or self._audio is None or self._container is None:
            return
        end = min(len(self._sound), round(self.frames_written * SAMPLE_RATE / self._fps))
        while self._sound_at < end and (final or end - self._sound_at >= _AUDIO_CHUNK):
            chunk = np.clip(self._sound[self._sound_at : min(end, self._sound_at + _AUDIO_CHUNK)], -1, 1).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(chunk[None], format="fltp", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            frame.pts = self._sound_at
            frame.time_base = Fraction(1, SAMPLE_RATE)
            self._container.mux(self._audio.encode(frame))
            self._sound_at += len(chunk)

    def _flush(self) -> None:
        if self._container is None or self._video is None:
            return
        self._write_sound(final=True)
        self._container.mux(self._video.encode(None))
        if self._audio is not None:
            self._container.mux(self._audio.encode(None))


def encode_clip(frames: Iterable[Image], *, crf: int, gop: int, fps: int = FPS, preset: str = "veryfast") -> bytes:
    """Encode frames for random access: an mp4 without sound, in memory, with the same bytes on every run.

    Every `gop`-th frame, and no other, is a key frame, and there are no B-frames: a reader finds any frame by decoding at
    most `gop` frames, and frame i has presentation time i / fps without an edit list.

    Args:
        frames: uint8 [H, W, 3], RGB, all of one even size.
        crf: Quality, 0..51, lower is better.
        gop: Frames from one key frame to the next.

    Raises:
        ValueError: when there is no frame, an odd size, or frames of different shapes.
    """
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: VideoStream | None = None
        shape: tuple[int, ...] = ()
        for index, frame in enumerate(frames):
            if stream is None:
                shape = frame.shape
                _check_size(*shape[1::-1])
                stream = _video_stream(container, shape, Fraction(fps), crf=crf, gop=gop, preset=preset, exact_gop=True)
            _encode_frame(container, stream, frame, shape, index)
        if stream is None:
            raise ValueError("a clip needs at least one frame")
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _check_size(width: int, height: int) -> None:
    if width < 2 or height < 2 or width % 2 or height % 2:
        raise ValueError(f"H.264 with 4:2:0 chroma needs an even width and height, got {width}x{height}")


def _video_stream(
    container: OutputContainer,
    shape: tuple[int, ...],
    fps: Fraction,
    *,
    crf: int,
    gop: int,
    preset: str,
    exact_gop: bool = False,
) -> VideoStream:
    from av.video.reformatter import ColorRange, Colorspace

    # Macroblock trees off: with them about one small file in a thousand came out with another quantiser in the last
    # macroblock (PyAV 18.1, x264 core 165, 64x48), and the same frames must give the same bytes.
    options = {"crf": str(crf), "preset": preset, "mbtree": "0"}
    if exact_gop:
        options |= {"sc_threshold": "0", "bf": "0"}
    stream = container.add_stream("libx264", rate=fps, options=options)
    context = stream.codec_context
    context.height, context.width = shape[0], shape[1]
    context.pix_fmt = "yuv420p"
    context.gop_size = gop
    context.time_base = 1 / fps
    # What swscale converts to by default; said in the stream so that no player guesses BT.709 for tall frames.
    context.colorspace = int(Colorspace.ITU601)
    context.color_range = int(ColorRange.MPEG)
    context.thread_count = 1  # x264's decisions, and so the bytes, depend on the number of threads
    return stream


def _encode_frame(container: OutputContainer, stream: VideoStream, image: Image, shape: tuple[int, ...], index: int) -> None:
    import av
    from av.video.reformatter import Colorspace

    if image.dtype != np.uint8 or image.shape != shape:
        raise ValueError(f"frame {index} must be uint8 {shape}, got {image.dtype} {image.shape}")
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    # One thread: starting swscale's own for every frame takes five times as long as the conversion.
    frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU601, threads=1)
    frame.pts = index
    frame.time_base = stream.codec_context.time_base
    container.mux(stream.encode(frame))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

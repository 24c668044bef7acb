"""What a file is before it is decoded: container facts, or the reason why it is no video."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.rejects import RejectCode, VideoRejected

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

FINGERPRINT_BYTES = 1 << 20
FRAMES_TO_TRY = 8

CONTAINER_MAGIC = ((4, b"ftyp"), (4, b"moov"), (4, b"mdat"), (0, b"\x1a\x45\xdf\xa3"), (0, b"RIFF"), (0, b"FLV"), (0, b"OggS"))
"""Offsets and bytes by which a broken video is told from a file that never was one."""


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """Container facts of a readable video."""

    container: str
    codec: str
    fps: float
    """Average; 0 where the container does not say."""
    width: int
    """Upright: after the rotation."""
    height: int
    rotation: int
    """Quarter turns that make it upright, in degrees anticlockwise: 0, 90, 180, 270."""
    duration: float
    """Seconds by the container; 0 where it does not say."""
    declared_frames: int
    """Frames by the container's table; 0 where it has none."""
    audio_codec: str | None
    audio_rate: int | None
    audio_channels: int | None

    def as_meta(self) -> dict[str, object]:
        """For the sample's JSON."""
        return asdict(self)


def probe(path: Path) -> VideoFacts:
    """Open a file and decode its first picture.

    Raises:
        VideoRejected: MISSING, UNREADABLE, EMPTY_FILE, NOT_A_VIDEO, NO_VIDEO_STREAM or CORRUPT (step probe).
    """
    import av

    _readable(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoRejected(RejectCode.NO_VIDEO_STREAM, "probe", "the file holds sound but no video stream")
            return _facts(container, container.streams.video[0])
    except av.error.FFmpegError as error:
        if _looks_like_video(path):
            message = f"the container is cut off or damaged: {error.strerror}"
            raise VideoRejected(RejectCode.CORRUPT, "probe", message) from error
        raise VideoRejected(RejectCode.NOT_A_VIDEO, "probe", f"FFmpeg knows no such container: {error.strerror}") from error


def last_packet_end(path: Path | str) -> float:
    """Second at which the last packet of any stream ends, by reading all packets without decoding them."""
    import av

    last = 0.0
    try:
        with av.open(str(path)) as container:
            for packet in container.demux():
                if packet.pts is not None and packet.time_base is not None:
                    last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    except av.error.FFmpegError:
        return last  # what comes after cannot be read
    return last


def content_fingerprint(path: Path) -> str:
    """Size and sha256 of the first and the last MiB: `<bytes>-<hex>`. Names and times of files do not matter."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(FINGERPRINT_BYTES))
        if size > FINGERPRINT_BYTES:
            file.seek(max(FINGERPRINT_BYTES, size - FINGERPRINT_BYTES))
            digest.update(file.read(FINGERPRINT_BYTES))
    return f"{size}-{digest.hexdigest()}"


def _readable(path: Path) -> None:
    try:
        if path.exists() and not path.is_file():
            # Opening a pipe would wait for a writer for ever.
            raise VideoRejected(RejectCode.UNREADABLE, "probe", "it is no regular file")
        with path.open("rb") as file:
            first = file.read(1)
    except FileNotFoundError as error:
        raise VideoRejected(RejectCode.MISSING, "probe", "the file does not exist") from error
    except OSError as error:
        raise VideoRejected(RejectCode.UNREADABLE, "probe", f"the file cannot be read: {error.strerror}") from error
    if not first:
        raise VideoRejected(RejectCode.EMPTY_FILE, "probe", "the file has 0 bytes")


def _looks_like_video(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(16)
    return any(head[offset : offset + len(magic)] == magic for offset, magic in CONTAINER_MAGIC)


def _facts(container: InputContainer, stream: VideoStream) -> VideoFacts:
    audio = container.streams.audio[0] if container.streams.audio else None
    rotation, duration, declared = _rotation(container, stream), container.duration, stream.frames
    width, height = stream.codec_context.width, stream.codec_context.height
    if not width or not height:
        raise VideoRejected(RejectCode.CORRUPT, "probe", "no picture could be decoded and the picture size is not known")
    if rotation in (90, 270):
        width, height = height, width
    seconds = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else float(duration or 0) / 1_000_000
    return VideoFacts(
        container=container.format.name,
        codec=stream.codec_context.name,
        fps=round(float(stream.average_rate or 0), 6),
        width=width,
        height=height,
        rotation=rotation,
        duration=round(seconds, 6),
        declared_frames=declared,
        audio_codec=audio.codec_context.name if audio else None,
        audio_rate=audio.codec_context.sample_rate if audio else None,
        audio_channels=audio.codec_context.channels if audio else None,
    )


def _rotation(container: InputContainer, stream: VideoStream) -> int:
    """Degrees anticlockwise by the first picture's display matrix; 0 where no picture decodes (decoding will say so)."""
    import av

    stream.thread_type = "NONE"
    for tried, packet in enumerate(container.demux(stream)):
        try:
            for frame in packet.decode():
                return round(frame.rotation / 90) * 90 % 360
        except av.error.FFmpegError:
            if tried >= FRAMES_TO_TRY:
                break
    return 0

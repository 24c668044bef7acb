"""Frames of a video at 25 fps on timestamps, upright, decoded by decord; pictures of long files by PyAV, bit for bit the same."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.views import FPS, Image
from tasks.rejects import RejectCode, VideoRejected
from tasks.video.pictures import PictureSource, Unreadable
from tasks.video.probe import VideoFacts, last_packet_end

if TYPE_CHECKING:
    from decord import VideoReader

SMALLEST_SIDE = 64
"""decord 0.6 returns four garbled channels for pictures less than 64 pixels wide (it divides the padded line by the width)."""

CHUNK_FRAMES = 32
CHUNK_BYTES = 64 << 20
"""A chunk of large pictures is shorter, so that decoding never holds more than this."""

READ_AHEAD_BYTES = 256 << 20
"""decord decodes ahead without a limit where its caller is slower; files whose pictures fill more than this are left to `pictures`."""

MISSING_SECONDS = 0.25
"""A video that ends this much before its container says is called cut off."""

MISSING_CONTAINER_SECONDS = 1.0
"""The same for containers that declare a duration but no number of pictures."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One output frame."""

    tick: int
    """Output frame number: it is shown at tick / 25 seconds after the first picture of the file."""
    image: Image


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Which source picture every output frame shows."""

    first_tick: int
    sources: npt.NDArray[np.int64]
    """int64 [n]: source picture of output frame first_tick + i; never decreases."""


class BrokenOff(Exception):
    """Raised after the last good frame of a damaged file."""

    def __init__(self, second: float, message: str) -> None:
        super().__init__(message)
        self.second = second
        """Where it broke, on the video's clock."""
        self.message = message


def timeline(times: npt.NDArray[np.float64], end_time: float, *, start: float | None = None, end: float | None = None) -> Timeline:
    """Lay pictures with any timestamps on ticks of 1/25 s.

    Output frame k shows the picture that is on screen at k / 25: the last one whose time is at most half a source frame
    (and at most half a tick) later. So 24 fps repeats every 24th picture and 30 fps drops every 6th.

    Args:
        times: float64 [N], seconds of each picture, ascending; the first is time zero.
        end_time: seconds at which the last picture ends.
        start, end: seconds of the wanted part, [start, end).
    """
    if not len(times):
        return Timeline(first_tick=0, sources=np.empty(0, np.int64))
    relative = times - times[0]
    spacing = float(np.median(np.diff(relative))) if len(relative) > 1 else 1 / FPS
    slack = min(spacing, 1 / FPS) / 2
    total = max(1, math.floor((end_time - times[0]) * FPS + 0.5 + 1e-6))
    first = 0 if start is None else max(0, math.ceil(start * FPS - 1e-6))
    last = total if end is None else min(total, math.ceil(end * FPS - 1e-6))
    ticks = np.arange(first, max(first, last))
    sources = np.searchsorted(relative, ticks / FPS + slack + 1e-4, side="right") - 1
    return Timeline(first_tick=first, sources=np.clip(sources, 0, len(times) - 1).astype(np.int64))


class FrameReader:
    """One pass over the wanted part of one file.

    Raises:
        VideoRejected: decord cannot open the file (CORRUPT, step decode).
    """

    def __init__(
        self, path: Path | str, facts: VideoFacts, *, start: float | None = None, end: float | None = None, short_side: int | None = None
    ) -> None:
        if min(facts.width, facts.height) < SMALLEST_SIDE:
            message = f"{facts.width}x{facts.height} is too small for a face; {SMALLEST_SIDE} pixels a side are needed"
            raise VideoRejected(RejectCode.FACE_TOO_SMALL, "decode", message)
        self._path = str(path)
        self._salvaged: tempfile.TemporaryDirectory[str] | None = None
        upright = (facts.height, facts.width)
        self.full_size = upright
        """Height and width of the upright frames before they are scaled."""
        self._size = scaled_size(upright, short_side)
        try:
            self._turns = quarter_turns_left(self._path, facts)
            self._reader = self._open()
        except VideoRejected:
            # decord refuses a file whose last packet is cut in two; what comes before it is copied out and read.
            self._salvaged = tempfile.TemporaryDirectory(prefix="salvaged-")
            self._path = salvage(self._path, Path(self._salvaged.name))
            self._turns = quarter_turns_left(self._path, facts)
            self._reader = self._open()
        stamps = self._timestamps()
        self._times = stamps[:, 0]
        turned = 0 if self._turns else facts.rotation // 90
        self._source: PictureSource | None = None
        if len(self._times) * upright[0] * upright[1] * 3 > READ_AHEAD_BYTES:
            self._source = PictureSource(self._path, self._times, self._decoded_size, turned)
        self._plan = timeline(self._times, float(stamps[-1, 1]), start=start, end=end)
        self._missing = self._cut_off(facts)
        if self._salvaged is not None and self._missing is None:
            second = round(self.duration, 3)
            self._missing = BrokenOff(second, f"the file is cut off at second {second:.2f}")
        self._to_the_end = len(self._plan.sources) > 0 and self._plan.sources[-1] == len(self._times) - 1
        self.scale = self._size[1] / upright[1]
        """Decoded pixels per source pixel."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright frames."""
        return self._size

    @property
    def num_frames(self) -> int:
        """Output frames that the container promises for the wanted part."""
        return len(self._plan.sources)

    @property
    def duration(self) -> float:
        """Seconds from the first picture to the start of the last one."""
        return float(self._times[-1] - self._times[0])

    def __iter__(self) -> Iterator[Frame]:
        """Frames in order. Raises `BrokenOff` after the last good frame of a damaged file."""
        sources = self._plan.sources
        height, width = self._size
        chunk = max(1, min(CHUNK_FRAMES, CHUNK_BYTES // (height * width * 3)))
        position = 0
        while position < len(sources):
            first = int(sources[position])
            wanted = np.unique(sources[(sources >= first) & (sources < first + chunk)])
            images, error = self._pictures(wanted)
            for source, image in zip(wanted, images, strict=False):
                while position < len(sources) and sources[position] == source:
                    yield Frame(tick=self._plan.first_tick + position, image=image)
                    position += 1
            if error is not None:
                second = round(float(self._times[wanted[len(images)]] - self._times[0]), 3)
                raise BrokenOff(second, f"the video breaks off at second {second:.2f}: {error}")
        if self._missing is not None and self._to_the_end:
            raise self._missing

    def read(self, positions: Sequence[int]) -> list[Image]:
        """Frames at these places of the wanted part, in any order: the pixels that a pass gives, found by exact seeks.

        A run of neighbours costs one seek; many frames at once cost their memory.

        Raises:
            BrokenOff: one of them cannot be decoded.
        """
        wanted, places = np.unique(self._plan.sources[np.asarray(positions, np.int64)], return_inverse=True)
        images, error = self._pictures(wanted)
        if error is not None:
            second = round(float(self._times[wanted[len(images)]] - self._times[0]), 3)
            raise BrokenOff(second, f"the video cannot be read at second {second:.2f}: {error}")
        return [images[place] for place in places]

    def _pictures(self, wanted: npt.NDArray[np.int64]) -> tuple[list[Image], str | None]:
        """Decoded pictures of these source numbers; fewer, and the reason, where the file breaks."""
        from decord import DECORDError

        if self._source is not None:
            try:
                return [self._upright(image) for image in self._source.pictures(wanted)], None
            except Unreadable:
                self._source = None  # decord can tell which pictures a damaged file still has
        try:
            return [self._upright(image) for image in self._reader.get_batch(wanted).asnumpy()], None
        except (DECORDError, RuntimeError) as error:
            reason = _first_line(error)
        # The decoder fails for the whole chunk. Begin again before it and take picture by picture what is good.
        good: list[Image] = []
        try:
            self._reader = self._open()
            for source in wanted:
                good.append(self._upright(self._reader[int(source)].asnumpy()))
        except (DECORDError, RuntimeError, VideoRejected):
            return good, reason
        return good, None

    @property
    def _decoded_size(self) -> tuple[int, int]:
        """Height and width before `_upright`."""
        return self._size[::-1] if self._turns % 2 else self._size

    def _upright(self, image: Image) -> Image:
        return np.ascontiguousarray(np.rot90(image, self._turns)) if self._turns else image

    def _open(self) -> VideoReader:
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        height, width = self._decoded_size
        try:
            return decord.VideoReader(self._path, ctx=decord.cpu(0), num_threads=1, width=width, height=height)
        except (decord.DECORDError, RuntimeError, AssertionError) as error:
            raise VideoRejected(RejectCode.CORRUPT, "decode", f"the video cannot be decoded: {_first_line(error)}") from error

    def _timestamps(self) -> npt.NDArray[np.float64]:
        from decord import DECORDError

        try:
            stamps = self._reader.get_frame_timestamp(np.arange(len(self._reader)))
        except (DECORDError, RuntimeError) as error:
            raise VideoRejected(RejectCode.CORRUPT, "decode", f"the video has no readable timestamps: {_first_line(error)}") from error
        return np.asarray(stamps, np.float64).reshape(-1, 2)

    def _cut_off(self, facts: VideoFacts) -> BrokenOff | None:
        """The error of a file whose pictures end before its container says."""
        there, second = len(self._times), round(self.duration, 3)
        spacing = self.duration / max(1, there - 1)
        if facts.declared_frames:
            if (facts.declared_frames - there) * spacing <= MISSING_SECONDS:
                return None
            return BrokenOff(second, f"the file is cut off at second {second:.2f}: {there} of {facts.declared_frames} pictures are there")
        # Matroska declares only a duration, of its longest stream: sound may rightly go on longer than the pictures.
        if facts.duration - second - spacing <= MISSING_CONTAINER_SECONDS:
            return None
        if facts.duration - last_packet_end(self._path) <= MISSING_CONTAINER_SECONDS:
            return None
        return BrokenOff(second, f"the file is cut off at second {second:.2f} of {facts.duration:.2f}")


def read_frames(
    path: Path | str, facts: VideoFacts, *, start: float | None = None, end: float | None = None, short_side: int | None = None
) -> FrameReader:
    """Iterable over the frames of [start, end) seconds at 25 fps: RGB uint8, upright, short side at most `short_side`."""
    return FrameReader(path, facts, start=start, end=end, short_side=short_side)


def salvage(path: str, folder: Path) -> str:
    """Copy the readable packets of the first video stream into a file in `folder`, without decoding.

    Raises:
        VideoRejected: nothing can be read (CORRUPT, step decode).
    """
    import av

    target = folder / "salvaged.mkv"
    copied = 0
    try:
        with av.open(path) as broken, av.open(str(target), "w") as whole:
            source = broken.streams.video[0]
            stream = whole.add_stream_from_template(source)
            try:
                for packet in broken.demux(source):
                    if packet.dts is None:
                        continue
                    packet.stream = stream
                    whole.mux(packet)
                    copied += 1
            except av.error.FFmpegError as error:
                reason = error.strerror
            else:
                reason = "no frames"
    except av.error.FFmpegError as error:
        raise VideoRejected(RejectCode.CORRUPT, "decode", f"nothing can be read: {error.strerror}") from error
    if not copied:
        raise VideoRejected(RejectCode.CORRUPT, "decode", f"nothing can be read: {reason}")
    return str(target)


def quarter_turns_left(path: str, facts: VideoFacts) -> int:
    """Anticlockwise quarter turns that decord leaves to us.

    It turns mp4 and mov by their display matrix, but not what other containers say, so its first picture is held
    against PyAV's unturned one.
    """
    if not facts.rotation:
        return 0
    import av
    import decord

    turns = facts.rotation // 90
    try:
        with av.open(path) as container:
            raw = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(np.uint8, copy=False)
        shown = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)[0].asnumpy()
    except (av.error.FFmpegError, decord.DECORDError, RuntimeError, AssertionError) as error:
        raise VideoRejected(RejectCode.CORRUPT, "decode", f"the first picture cannot be decoded: {_first_line(error)}") from error
    return turns if _difference(shown, raw) < _difference(shown, np.rot90(raw, turns)) else 0


def _difference(a: Image, b: Image) -> float:
    """Mean absolute difference in grey levels; infinite for different shapes."""
    return float(np.abs(a.astype(np.int16) - b.astype(np.int16)).mean()) if a.shape == b.shape else math.inf


def scaled_size(size: tuple[int, int], short_side: int | None) -> tuple[int, int]:
    """Height and width with the short side brought down to `short_side`, never up; even numbers where it scales."""
    height, width = size
    if short_side is None or min(size) <= short_side:
        return size
    factor = short_side / min(size)
    return max(2, 2 * round(height * factor / 2)), max(2, 2 * round(width * factor / 2))


def _first_line(error: BaseException) -> str:
    """The last cause in decord's message, without its C++ locations and stack."""
    text = str(error).split("Stack trace")[0].strip().splitlines()
    return text[-1].split(": ")[-1][:160] if text else type(error).__name__

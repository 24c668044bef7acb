"""Pictures of a video file by their number, decoded by PyAV one after the other and never ahead.

decord knows the pictures' times, and which of them a damaged file still has. It decodes ahead on a thread of its own, though, without
a limit: while its caller is slower than it is, it fills the memory with pictures (1.9 GB for two minutes of 512x512, at 3 ms a
picture). So the pixels of long files come from here; they are the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.views import Image

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.filter import Graph

PASS_OVER = 128
"""So many unwanted pictures are decoded rather than sought over: they cost little, and a key frame may be far."""

STEPS_BACK = (0.0, 2.0, 10.0, 60.0)
"""Seconds before a wanted picture at which a key frame is looked for, one after the other; then the file's beginning."""


class Unreadable(Exception):
    """PyAV does not give the pictures that decord counted."""


class PictureSource:
    """Pictures by number, quick in order; the file stays open.

    Args:
        path: a video file.
        times: float64 [N], seconds of every picture, ascending.
        size: height and width to which pictures are scaled, after `turns`.
        turns: anticlockwise quarter turns, before they are scaled.

    Raises:
        Unreadable: here and in `pictures`.
    """

    def __init__(self, path: str, times: npt.NDArray[np.float64], size: tuple[int, int], turns: int) -> None:
        self._path, self._times, self._size, self._turns = path, times, size, turns
        self._tolerance = min(0.02, float(np.diff(times).min(initial=1.0)) / 2.5)
        self._container: InputContainer | None = None
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._graph: Graph | None = None
        self._next = 0
        """Number of the picture that the decoder gives next."""
        self._held: tuple[int, av.VideoFrame] | None = None
        """A picture that a seek found, which comes before what the decoder gives next."""

    def pictures(self, wanted: npt.NDArray[np.int64]) -> list[Image]:
        """Pictures of these numbers, which ascend: uint8 [H, W, 3], RGB."""
        import av

        try:
            if not len(wanted):
                return []
            self._go_to(int(wanted[0]))
            found: list[Image] = []
            while len(found) < len(wanted):
                number, frame = self._decode()
                if number > wanted[len(found)]:
                    raise Unreadable(f"picture {wanted[len(found)]} is missing")
                if number == wanted[len(found)]:
                    found.append(self._rgb(frame))
        except (av.error.FFmpegError, StopIteration, ValueError) as error:
            self.close()
            raise Unreadable(str(error)) from error
        return found

    def close(self) -> None:
        """Forget the decoder; the next call begins anew."""
        self._frames, self._graph, self._held = iter(()), None, None
        if self._container is not None:
            self._container.close()
            self._container = None

    def _go_to(self, number: int) -> None:
        """Make sure that `number` is still to come, and not far."""
        coming = self._next if self._held is None else self._held[0]
        if self._container is not None and coming <= number <= coming + PASS_OVER:
            return
        if self._container is None:
            self._begin()
            if number <= PASS_OVER:
                return
        for back in STEPS_BACK:
            if self._seek(float(self._times[number]) - back, number):
                return
        self._begin()

    def _begin(self) -> None:
        """Open the file at its beginning."""
        import av

        self.close()
        self._container = av.open(self._path)
        stream = self._container.streams.video[0]
        stream.thread_type = "NONE"  # a frame thread holds as many pictures as there are threads
        self._frames, self._next = self._container.decode(stream), 0

    def _seek(self, second: float, number: int) -> bool:
        """Go to a key frame that is shown no later than `number`; False where the one before `second` is not.

        Pictures that come out before the key frame itself refer to what was not decoded, and are dropped.
        """
        import av

        assert self._container is not None
        stream = self._container.streams.video[0]
        try:
            self._container.seek(int(max(second, float(self._times[0])) / float(stream.time_base or 1)), stream=stream, backward=True)
            self._frames, self._held = self._container.decode(stream), None
            for frame in self._frames:
                if frame.key_frame:
                    found = self._number(frame)
                    self._held, self._next = (found, frame), found + 1
                    return found <= number
        except av.error.FFmpegError:
            self._begin()
        return False

    def _decode(self) -> tuple[int, av.VideoFrame]:
        if self._held is not None:
            held, self._held = self._held, None
            return held
        frame = next(self._frames)
        number = self._number(frame)
        if number != self._next:
            raise Unreadable(f"picture {number} comes where {self._next} should")
        self._next += 1
        return number, frame

    def _number(self, frame: av.VideoFrame) -> int:
        if frame.time is None:
            raise Unreadable("a picture has no time")
        number = int(np.searchsorted(self._times, frame.time - self._tolerance))
        if number >= len(self._times) or abs(self._times[number] - frame.time) > self._tolerance:
            raise Unreadable(f"there is no picture at second {frame.time:.3f}")
        return number

    def _rgb(self, frame: av.VideoFrame) -> Image:
        if self._graph is None:
            self._graph = self._scaling()
        self._graph.push(frame)
        made = self._graph.pull()
        return np.ascontiguousarray(made.to_ndarray(), np.uint8)

    def _scaling(self) -> Graph:
        """Filters that turn and scale as decord's do."""
        from av.filter import Graph

        assert self._container is not None
        height, width = self._size
        graph = Graph()
        last = graph.add_buffer(template=self._container.streams.video[0])
        turn = {0: [], 1: [("transpose", "cclock")], 2: [("hflip", ""), ("vflip", "")], 3: [("transpose", "clock")]}[self._turns]
        for name, options in [*turn, ("scale", f"{width}:{height}:flags=bilinear:threads=1"), ("format", "rgb24"), ("buffersink", "")]:
            node = graph.add(name, options or None)
            last.link_to(node)
            last = node
        graph.configure()
        return graph

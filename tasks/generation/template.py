"""What families of `Canvas.TEMPLATE` paint on: the frames of a video of the person, or one picture, with their landmarks.

The landmarks are found once, in one pass, and kept; the pixels are decoded again when their turn comes. A template is shown
forwards and backwards in turns, and videos decode forwards only: so they are decoded in blocks, each of which costs one seek.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.family import Template
from models.views import Image, Points
from tasks.generation.faces import BETTER_FACE, PreparedFace, References, face_files, is_picture, read_photo
from tasks.generation.inputs import GenerationError, Progress, TrackedVideo, fill_gaps, track_video

if TYPE_CHECKING:
    from tasks.video.decode import FrameReader
    from tasks.video.landmarks import Landmarker

LONGEST_GAP = 5
"""Frames without a face between two faces over which landmarks are interpolated (0.2 s: a blink of the landmarker, not a turned head)."""

BLOCK_FRAMES = 64
BLOCKS = 3
"""Blocks in memory: the one that is read, the one before, and the next, which is decoded meanwhile."""

CACHE_BYTES = 576 << 20
"""All blocks together; of large frames a block holds fewer (30 of 1080x1920)."""

READ_BYTES = 8 << 20
"""Frames that are decoded at once into a block, so that few are held twice."""


class BlockReader:
    """Frames of a video by index, in blocks: quick for runs forwards and backwards, and of bounded memory; for one thread.

    Args:
        reader: an open video; nothing else may read from it meanwhile.
        frames: how many of its frames there are to read.
        size: height and width of what is given; what the video's frames have more is cut off at the right and at the bottom.
    """

    def __init__(self, reader: FrameReader, frames: int, size: tuple[int, int]) -> None:
        self._reader = reader
        self._frames = frames
        self._size = size
        height, width = reader.size
        frame_bytes = height * width * 3
        self.block = min(frames, max(1, min(BLOCK_FRAMES, CACHE_BYTES // BLOCKS // frame_bytes)))
        self._at_once = max(1, READ_BYTES // frame_bytes)
        self._blocks: dict[int, tuple[Image, Future[None]]] = {}
        # Memory is taken once and used again, so that it can't be frayed by hours of taking and giving back.
        self._free = [np.empty((self.block, *size, 3), np.uint8) for _ in range(min(BLOCKS, -(-frames // self.block)))]
        self._newest, self._direction = 0, 1
        # One thread: it alone touches the decoder, and fills a block that is used again after what it did before.
        self._decoder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="template")

    def __call__(self, indices: Sequence[int]) -> Image:
        """Frames of these indices, in this order: uint8 [n, H, W, 3], a copy.

        Raises:
            IndexError: there is no such frame.
            GenerationError: a frame can't be decoded.
        """
        for index in indices:
            if not 0 <= index < self._frames:
                raise IndexError(f"the template has frames 0 to {self._frames - 1}, not {index}")
        found = np.empty((len(indices), *self._size, 3), np.uint8)
        for place, index in enumerate(indices):
            number = index // self.block
            found[place] = self._get(number)[index - number * self.block]
        return found

    def _get(self, number: int) -> Image:
        missing = number not in self._blocks
        if missing:
            self._direction = 1 if number >= self._newest else -1
        # A step back to the block before changes nothing: whoever reads batches and looks at single frames takes many.
        if missing or number == self._newest + self._direction:
            self._newest = number
            self._begin(number)
            self._begin(number + self._direction)
        block, decoded = self._blocks[number]
        decoded.result()
        return block

    def _begin(self, number: int) -> None:
        """Have a block decoded, where there is one of this number, in place of the one that is farthest away."""
        if number in self._blocks or not 0 <= number * self.block < self._frames:
            return
        if not self._free:
            block, decoded = self._blocks.pop(max(self._blocks, key=lambda other: abs(other - self._newest)))
            decoded.cancel()
            self._free.append(block)
        block = self._free.pop()
        self._blocks[number] = block, self._decoder.submit(self._decode, number, block)

    def _decode(self, number: int, block: Image) -> None:
        from tasks.video.decode import BrokenOff

        first, end = number * self.block, min(self._frames, (number + 1) * self.block)
        height, width = self._size
        try:
            for start in range(first, end, self._at_once):
                for index, image in enumerate(self._reader.read(range(start, min(end, start + self._at_once))), start=start):
                    block[index - first] = image[:height, :width]
        except BrokenOff as error:
            raise GenerationError(f"--face: the template can't be read again: {error.message}") from error


def prepare_template(
    sources: Sequence[Path], landmarker: Landmarker, *, references: int, size: int, margin: float, progress: Progress | None = None
) -> PreparedFace:
    """A template with its landmarks, and square crops of the face beside it as `prepare_face` makes them.

    The template is the first video; where there is none, the first photo that shows a face. All files give crops.
    Its frames are upright, at 25 fps, at most 1080 pixels on the short side, and of even height and width.

    Args:
        sources: Files and folders; of a folder every photo in it, by name.
        references, size, margin: As in `prepare_face`.

    Raises:
        GenerationError: nothing there, nothing readable, or no face in any frame.
    """
    files = face_files(sources)
    crops = References(wanted=references, size=size, margin=margin)
    videos = [file for file in files if not is_picture(file)]
    if videos:
        return _of_video(videos[0], [file for file in files if file != videos[0]], crops, landmarker, progress)
    return _of_photos(files, crops, landmarker)


def bridge_gaps(points: Points, longest: int = LONGEST_GAP) -> Points:
    """Landmarks with short gaps between two faces interpolated; longer ones, and those at the ends, stay; a pure function.

    Args:
        points: float32 [F, 68, 2]; rows without a face are NaN.
        longest: frames of the longest gap that is filled.
    """
    known = np.flatnonzero(~np.isnan(points).any(axis=(1, 2)))
    bridged = points.copy()
    for before, after in pairwise(known):
        if 1 < after - before <= longest + 1:
            bridged[before : after + 1] = fill_gaps(points[before : after + 1])
    return bridged


def _of_video(path: Path, others: Sequence[Path], crops: References, landmarker: Landmarker, progress: Progress | None) -> PreparedFace:
    tracked = track_video(path, landmarker, what="--face", progress=progress)
    landmarks = bridge_gaps(tracked.points)
    without = int(np.isnan(landmarks).any(axis=(1, 2)).sum())
    if without == len(landmarks):
        raise GenerationError(f"--face: no face found in any of the {without} frames of {path.name}; {BETTER_FACE}")
    crops.add_video(tracked)
    crops.add_files(others, landmarker)
    canvas, notes = _even(tracked.size, path)
    template = Template(read=BlockReader(tracked.reader, len(landmarks), canvas), landmarks=landmarks)
    return PreparedFace(
        face=crops.face(template), canvas=canvas, without_face=without, notes=(*_said_of(tracked, landmarks, path), *notes, *crops.notes)
    )


def _said_of(tracked: TrackedVideo, landmarks: Points, path: Path) -> list[str]:
    """What the user should know of a template video."""
    frames, notes = len(landmarks), []
    missing, left = (int(np.isnan(points).any(axis=(1, 2)).sum()) for points in (tracked.points, landmarks))
    if min(tracked.reader.full_size) > min(tracked.size):
        notes.append(f"{path.name} is {_pixels(tracked.reader.full_size)}; it is worked on at {_pixels(tracked.size)}")
    if left:
        notes.append(f"{left} of {frames} template frames show no face; they are shown as they are")
    if missing > left:
        notes.append(f"{missing - left} of {frames} template frames show no face for a moment; their landmarks were interpolated")
    if tracked.several:
        notes.append(f"{tracked.several} of {frames} template frames show several faces; the largest one speaks")
    if tracked.broken:
        notes.append(f"the template ends early: {tracked.broken}")
    return notes


def _of_photos(files: Sequence[Path], crops: References, landmarker: Landmarker) -> PreparedFace:
    from tasks.settings import ClipSettings
    from tasks.video.decode import SMALLEST_SIDE, scaled_size

    for place, file in enumerate(files):
        whole = read_photo(file)
        height, width = before = whole.shape[:2]
        if min(before) < SMALLEST_SIDE:
            raise GenerationError(
                f"--face: {file.name} is {_pixels(before)}, too small for a face; {SMALLEST_SIDE} pixels a side are needed"
            )
        image, notes = _scaled(whole, scaled_size((height, width), ClipSettings().decode_short_side)), []
        if image.shape[:2] != before:
            notes.append(f"{file.name} is {_pixels(before)}; it is worked on at {_pixels(image.shape[:2])}")
        canvas, cut = _even(image.shape[:2], file)
        image = np.ascontiguousarray(image[: canvas[0], : canvas[1]])
        found = landmarker.detect(image)
        if found.points is None:
            crops.left_out.append(f"{file.name} (no face found)")
            continue
        if found.faces > 1:
            notes.append(f"{file.name} shows several faces; the largest one speaks")
        crops.add_photo(image, found.points)
        crops.add_files(files[place + 1 :], landmarker)
        template = Template(read=_Still(image), landmarks=found.points[None].astype(np.float32))
        return PreparedFace(face=crops.face(template), canvas=canvas, notes=(*notes, *cut, *crops.notes))
    names = ", ".join(file.name for file in files[:5]) + (" …" if len(files) > 5 else "")
    raise GenerationError(f"--face: no face found in {names}; {BETTER_FACE}")


class _Still:
    """A picture as the only frame of a template."""

    def __init__(self, image: Image) -> None:
        self._image = image

    def __call__(self, indices: Sequence[int]) -> Image:
        return np.stack([self._image[None][index] for index in indices])


def _even(size: tuple[int, ...], path: Path) -> tuple[tuple[int, int], list[str]]:
    """The size that H.264 can hold, at most one pixel less, and a note where that is another one."""
    height, width = size
    even = height - height % 2, width - width % 2
    if even == (height, width):
        return even, []
    return even, [f"{path.name} is {_pixels(size)}; the made video is {_pixels(even)}, because H.264 wants even sizes"]


def _scaled(image: Image, size: tuple[int, int]) -> Image:
    import cv2

    if image.shape[:2] == size:
        return image
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def _pixels(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]}"

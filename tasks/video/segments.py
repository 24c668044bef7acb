"""Cuts a stream of tracked frames into segments: contiguous, one shot, one face, at most one clip long."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from models.views import Image, Points
from tasks.settings import ClipSettings
from tasks.video.landmarks import FaceFrame, box_of, overlap

MAX_GAP = 3
"""Frames without a face that a segment bridges with held landmarks."""

SAME_FACE_OVERLAP = 0.3
"""Boxes of one face in neighbouring frames overlap at least this much; a face that jumps is another face."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """What may become a clip."""

    first_tick: int
    images: list[Image]
    points: Points
    """float32 [F, 68, 2], pixels of the images; held where confidence is 0."""
    confidence: npt.NDArray[np.float32]
    faces: npt.NDArray[np.int64]
    """int64 [F], faces of comparable size."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def end_tick(self) -> int:
        return self.first_tick + len(self.images)


@dataclass(frozen=True, kw_only=True)
class NoFace:
    """A stretch without a face: ticks [first_tick, end_tick)."""

    first_tick: int
    end_tick: int


def next_length(remaining: int, settings: ClipSettings) -> int:
    """Frames of the next clip when `remaining` follow without a break.

    Equal parts leave no tiny tail; where equal parts would lose the full history, the first part keeps it.
    """
    parts = -(-remaining // settings.max_frames)
    equal = -(-remaining // max(1, parts))
    return min(settings.max_frames, max(equal, min(remaining, settings.history_frames)))


@dataclass
class Segmenter:
    """Push frames in order; segments and stretches without a face come out as soon as they are complete.

    Holds at most `max_frames` images.
    """

    settings: ClipSettings
    total: int
    """Frames that the stream promises: the last tick is first tick + total - 1."""
    _seen: int = 0
    _first: int = 0
    _target: int = 0
    _gap_from: int | None = None
    _held: int = 0
    _images: list[Image] = field(default_factory=list)
    _points: list[Points] = field(default_factory=list)
    _confidence: list[float] = field(default_factory=list)
    _faces: list[int] = field(default_factory=list)

    def push(self, tick: int, image: Image, face: FaceFrame, *, new_shot: bool) -> Iterator[Segment | NoFace]:
        """Take one frame."""
        if new_shot:
            yield from self.finish(tick)
        if face.points is None:
            yield from self._without_face(tick, image, face)
        else:
            if self._images and overlap(box_of(self._points[-1]), box_of(face.points)) < SAME_FACE_OVERLAP:
                yield from self.finish(tick)
            if self._gap_from is not None:
                yield NoFace(first_tick=self._gap_from, end_tick=tick)
                self._gap_from = None
            if not self._images:
                self._first, self._target = tick, next_length(max(1, self.total - self._seen), self.settings)
            self._held = 0
            self._append(image, face.points, face.confidence, face.faces)
        self._seen += 1
        if len(self._images) >= self._target > 0:
            held = self._held
            yield self._take(len(self._images) - held)
            self._gap_from = tick + 1 - held if held else None

    def finish(self, tick: int) -> Iterator[Segment | NoFace]:
        """End what is open; `tick` is the first frame that no longer belongs to it."""
        if self._images:
            held, length = self._held, len(self._images) - self._held
            yield self._take(length)
            if held:
                self._gap_from = tick - held
        if self._gap_from is not None:
            yield NoFace(first_tick=self._gap_from, end_tick=tick)
            self._gap_from = None

    def _without_face(self, tick: int, image: Image, face: FaceFrame) -> Iterator[Segment | NoFace]:
        if not self._images:
            self._gap_from = tick if self._gap_from is None else self._gap_from
        elif self._held < MAX_GAP:
            self._held += 1
            self._append(image, self._points[-1], 0.0, face.faces)
        else:
            held = self._held
            yield self._take(len(self._images) - held)
            self._gap_from = tick - held

    def _append(self, image: Image, points: Points, confidence: float, faces: int) -> None:
        self._images.append(image)
        self._points.append(points)
        self._confidence.append(confidence)
        self._faces.append(faces)

    def _take(self, length: int) -> Segment:
        segment = Segment(
            first_tick=self._first,
            images=self._images[:length],
            points=np.stack(self._points[:length]),
            confidence=np.array(self._confidence[:length], np.float32),
            faces=np.array(self._faces[:length], np.int64),
        )
        self._images, self._points, self._confidence, self._faces, self._held, self._target = [], [], [], [], 0, 0
        return segment

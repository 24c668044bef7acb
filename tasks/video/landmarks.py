"""Face landmarks behind one interface: 68 iBUG points in pixels, whatever finds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from models.views import Image, Points
from tasks.settings import LandmarkSettings

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""

COMPARABLE_SIDE = 0.5
"""A second face counts when its side is at least this share of the largest face's side."""


@dataclass(frozen=True, kw_only=True)
class FaceFrame:
    """The tracked face in one picture."""

    points: Points | None
    """float32 [68, 2] in pixels of the picture (integers are pixel centres); None where no face was found."""
    confidence: float
    """0..1; 0 where no face was found."""
    faces: int
    """Faces of comparable size; counted every few frames and held between."""

    @property
    def box(self) -> Box | None:
        """Bounding box of the points."""
        return None if self.points is None else box_of(self.points)


class Landmarker(Protocol):
    """Finds the largest face and follows it. One instance serves one process; calls do not share state."""

    @property
    def version(self) -> str:
        """Name and version of code and weights; part of every shard's fingerprint."""
        ...

    def track(self, frames: Iterable[Image]) -> Iterator[FaceFrame]:
        """Follow one face through consecutive pictures of one size: one result per picture, in order.

        State is fresh at every call: the same pictures give the same bytes.
        """
        ...

    def detect(self, image: Image) -> FaceFrame:
        """The largest face of a single picture."""
        ...


def make_landmarker(settings: LandmarkSettings) -> Landmarker:
    """The landmarker that the settings name; loads its networks, so call it once per worker.

    Raises:
        FileNotFoundError: weights of face-alignment are missing; the message names the files and the way out.
    """
    if settings.backend == "mediapipe":
        from tasks.video.landmarks_mediapipe import MediaPipeLandmarker

        return MediaPipeLandmarker()
    if settings.backend == "face-alignment":
        from tasks.video.landmarks_face_alignment import FaceAlignmentLandmarker

        return FaceAlignmentLandmarker(detector=settings.detector, device=settings.device, init=settings.init)
    from tasks.video.landmarks_sidecar import SidecarLandmarker

    return SidecarLandmarker()


def box_of(points: Points) -> Box:
    """Bounding box of float32 [68, 2]."""
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    return float(x0), float(y0), float(x1), float(y1)


def box_side(box: Box) -> float:
    """Side of the square with the box's area."""
    return float(max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])) ** 0.5


def comparable_faces(sides: Iterable[float]) -> int:
    """How many faces are at least half as large as the largest; 0 for none."""
    ordered = sorted(sides, reverse=True)
    return sum(side >= COMPARABLE_SIDE * ordered[0] for side in ordered) if ordered else 0


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0

"""Landmark metrics: how far the generated face's points are from the true face's.

The same landmarker looks at both videos, enlarged alike (`track_faces`), so its own error is the
same on both sides. Distances are divided by the true face's inter-ocular distance (outer eye
corners, mean over the clip), which makes them independent of the picture's size.

The rule for a missing face. A frame in which the true video shows a face and the generated one
doesn't is a failure and counts with a penalty: as much as the worst frame of the clip in which a
face was found, and at least `MISSING_FACE_DISTANCE`. Leaving such frames out would reward a model
that makes no face where it would be wrong. Frames in which the truth itself has no face can't be
measured; they are left out for every row alike and counted by evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from models.views import NUM_LANDMARKS, Image, Points
from tasks.evaluation.metrics import Better, Metric, MetricCase, Need, NotComputed, TrackedFaces

if TYPE_CHECKING:
    from tasks.video.landmarks import Landmarker

MISSING_FACE_DISTANCE = 1.0
"""Inter-ocular distances that a frame without a face costs at least: every point off by the width of the eyes."""

OUTER_EYE_CORNERS = (36, 45)
MOUTH = slice(48, 68)
INNER_LIP_PAIRS = ((61, 67), (62, 66), (63, 65))
"""Points of the upper and the lower inner lip that lie over each other."""


class LandmarkDistance(Metric):
    """LMD: mean distance of all 68 points."""

    name = "lmd"
    title = "LMD"
    description = (
        "Mean distance of all 68 landmarks in inter-ocular distances of the truth, mean over frames;"
        f" a frame without a face costs as much as the clip's worst frame and at least {MISSING_FACE_DISTANCE:g}."
    )
    better = Better.LOWER
    needs = frozenset({Need.LANDMARKER})
    points: ClassVar[slice] = slice(0, NUM_LANDMARKS)

    def compute(self, case: MetricCase) -> float | NotComputed:
        distances = frame_distances(case, self.points)
        return distances if isinstance(distances, NotComputed) else float(distances.mean())


class MouthLandmarkDistance(LandmarkDistance):
    """M-LMD: mean distance of the 20 mouth points, without aligning the faces first."""

    name = "mouth_lmd"
    title = "M-LMD"
    description = (
        "As LMD, over the 20 points of the mouth (48:68), the faces not aligned;"
        f" a frame without a face costs as much as the clip's worst frame and at least {MISSING_FACE_DISTANCE:g}."
    )
    points: ClassVar[slice] = MOUTH


class FaceFound(Metric):
    """Share of frames in which the generated video shows a face that the landmarker finds."""

    name = "face_found"
    title = "Face found"
    description = "Share of the frames with a face in the truth in which the landmarker finds a face in the generated video too."
    better = Better.HIGHER
    needs = frozenset({Need.LANDMARKER})

    def compute(self, case: MetricCase) -> float | NotComputed:
        both = _both_faces(case)
        if isinstance(both, NotComputed):
            return both
        generated, truth = both
        return float(generated.found[truth.found].mean())


def frame_distances(case: MetricCase, points: slice = slice(0, NUM_LANDMARKS)) -> npt.NDArray[np.float64] | NotComputed:
    """Per frame with a face in the truth: the mean distance of the chosen points in inter-ocular distances.

    Returns:
        float64 [frames with a true face], missing faces replaced by the penalty, or why there is none.
    """
    both = _both_faces(case)
    if isinstance(both, NotComputed):
        return both
    generated, truth = both
    usable = truth.found
    true_points = truth.points[usable].astype(np.float64)
    eyes = inter_ocular(truth)
    if eyes <= 0:
        return NotComputed(reason="the eyes of the true face fall on one point")
    offsets = generated.points[usable, points].astype(np.float64) - true_points[:, points]
    distances = np.linalg.norm(offsets, axis=2).mean(axis=1) / eyes
    missing = ~generated.found[usable]
    distances[missing] = max(MISSING_FACE_DISTANCE, float(distances[~missing].max(initial=0.0)))
    return distances


def inter_ocular(faces: TrackedFaces) -> float:
    """Distance of the outer eye corners in pixels, mean over the frames with a face; 0 where there is none."""
    left, right = OUTER_EYE_CORNERS
    points = faces.points[faces.found].astype(np.float64)
    return float(np.linalg.norm(points[:, left] - points[:, right], axis=1).mean()) if len(points) else 0.0


def mouth_opening(faces: TrackedFaces, truth: TrackedFaces) -> npt.NDArray[np.float64]:
    """How far the inner lips are apart, in inter-ocular distances of the true face.

    Returns:
        float64 [F], the mean of the inner lip's three upright pairs; NaN in frames without a face, everywhere where the truth has none.
    """
    upper, lower = (list(points) for points in zip(*INNER_LIP_PAIRS, strict=True))
    eyes = inter_ocular(truth)
    points = faces.points.astype(np.float64)
    apart = np.linalg.norm(points[:, upper] - points[:, lower], axis=2).mean(axis=1)
    return np.where(faces.found, apart, np.nan) / (eyes if eyes > 0 else np.nan)


def track_faces(frames: Iterable[Image], landmarker: Landmarker, *, side: int) -> TrackedFaces:
    """Landmarks of every frame, in pixels of the frames as they were given.

    Args:
        frames: uint8 [H, W, 3], RGB, all of one shape.
        landmarker: Looks at the frames in order, with fresh tracking state.
        side: Frames whose shorter side is smaller are enlarged to it first: landmarkers are trained
            on larger faces than small models make. Truth and generated frames must be given the same.
    """
    import cv2

    scales: list[float] = []

    def enlarged() -> Iterator[Image]:
        for frame in frames:
            scale = max(1.0, side / min(frame.shape[:2]))
            scales.append(scale)
            if scale == 1:
                yield frame
            else:
                yield np.asarray(cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC), np.uint8)

    rows = [
        np.full((NUM_LANDMARKS, 2), np.nan, np.float32) if face.points is None else np.asarray(face.points, np.float32)
        for face in landmarker.track(enlarged())
    ]
    if len(rows) != len(scales):
        raise RuntimeError(f"the landmarker answered {len(rows)} times for {len(scales)} frames")
    if not rows:
        return TrackedFaces(points=np.empty((0, NUM_LANDMARKS, 2), np.float32))
    return TrackedFaces(points=np.stack([_shrink(row, scale) for row, scale in zip(rows, scales, strict=True)]))


def _shrink(points: Points, scale: float) -> Points:
    """Undo `cv2.resize`, which aligns pixel areas: x' = (x + 0.5) * scale - 0.5."""
    return ((points + 0.5) / scale - 0.5).astype(np.float32) if scale > 1 else points


def _both_faces(case: MetricCase) -> tuple[TrackedFaces, TrackedFaces] | NotComputed:
    if case.generated_faces is None or case.truth_faces is None:
        return NotComputed(reason="needs a landmarker")
    if not case.truth_faces.found.any():
        return NotComputed(reason="the landmarker finds no face in the true video")
    return case.generated_faces, case.truth_faces

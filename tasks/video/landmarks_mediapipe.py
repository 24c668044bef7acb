"""Landmarks by MediaPipe: weights inside its wheel, ~150-250 frames/s on one core.

Its own detector is short-range: a small face in a tall full-body picture is lost. So the full-range detector finds
and counts the faces every few frames, and the mesh runs on a square region around the face. The region stays where it
is while the face stays inside, because the mesh follows the face in the region's coordinates.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from importlib.metadata import version as package_version
from typing import Any

import numpy as np
import numpy.typing as npt

from models.views import Image, Points
from tasks.video.crop import CropBox
from tasks.video.landmarks import Box, FaceFrame, box_of, box_side, comparable_faces, overlap

# fmt: off
JAW = (127, 234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454, 356)
"""Mesh vertices along the jaw, from the subject's right ear (left in the picture) over the chin; 17 points are spaced evenly on them."""

REST = (
    # brows, each from left to right in the picture
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,
    # bridge of the nose downwards, then under the nostrils
    168, 197, 5, 4, 98, 97, 2, 326, 327,
    # eyes, clockwise in the picture from the left corner
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    # outer lip, then inner lip, clockwise from the left corner
    61, 40, 37, 0, 267, 270, 291, 321, 314, 17, 84, 91,
    78, 81, 13, 311, 308, 402, 14, 178,
)
"""The mesh vertex (of 478) that lies on each iBUG point from 17 on."""
# fmt: on

JAW_STEPS = np.linspace(0, len(JAW) - 1, 17)
VERTICES = np.array(JAW + REST)

COUNT_EVERY = 5
"""Frames from one count of the faces to the next; the detector costs more than the mesh."""

REGION_SIDES = 3.0
"""Side of the mesh's region in face sides."""

REGION_REST = 0.35
"""The region moves when the face comes nearer to its edge than this share of the face's side."""

LONG_PICTURE = 1.25
"""From this ratio of its sides on a picture is also searched in squares."""

LOST_FRAMES = 5
"""After so many frames without a face it is looked for only in every COUNT_EVERY-th: empty scenes would cost most."""

STRAYED_COUNTS = 2
"""The track is dropped after so many counts in a row that saw faces, but none where the mesh is."""


BLANK = np.zeros((64, 64, 3), np.uint8)


GREETING = re.compile(rb"[IW]\d{4} |INFO: Created TensorFlow Lite|WARNING: All log messages before absl::InitializeLog")


@contextmanager
def without_greetings() -> Iterator[None]:
    """Leave out of stderr what MediaPipe's C++ writes when a graph starts, and no setting of its own turns off; other lines pass."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        try:
            os.dup2(caught.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            caught.seek(0)
            for line in caught:
                if not GREETING.match(line):
                    os.write(2, line)


def _restart(graph: Any) -> None:
    """Forget the track. The blank picture starts the graph here, where its greetings are left out."""
    with without_greetings():
        graph.reset()
        graph.process(BLANK)


class MediaPipeLandmarker:
    """FaceMesh with refined lips and eyes, tracking; its graphs are built on first use. See `tasks.video.landmarks.Landmarker`."""

    _met_a_face = False
    """The last greeting comes with the first face."""

    @cached_property
    def _mesh(self) -> Any:
        with without_greetings():
            from mediapipe.python.solutions.face_mesh import FaceMesh

            mesh = FaceMesh(static_image_mode=False, max_num_faces=1, refine_landmarks=True)
            mesh.process(BLANK)
        return mesh

    @cached_property
    def _detector(self) -> Any:
        with without_greetings():
            from mediapipe.python.solutions.face_detection import FaceDetection

            detector = FaceDetection(model_selection=1, min_detection_confidence=0.5)
            detector.process(BLANK)
        return detector

    @property
    def version(self) -> str:
        return f"mediapipe {package_version('mediapipe')} face mesh (refined), full-range detector, mapping 1"

    def track(self, frames: Iterable[Image]) -> Iterator[FaceFrame]:
        """Follow the largest face; see `tasks.video.landmarks.Landmarker.track`."""
        region: CropBox | None = None
        faces, strayed, lost, score = 0, 0, 0, 0.0
        last: Points | None = None
        _restart(self._mesh)
        _restart(self._detector)
        for index, frame in enumerate(frames):
            if lost >= LOST_FRAMES and index % COUNT_EVERY:
                yield FaceFrame(points=None, confidence=0.0, faces=faces)
                continue
            if last is None or index % COUNT_EVERY == 0:
                found = self._find(frame) if last is None else self._detect(frame)
                faces = comparable_faces(box_side(box) for box, _ in found)
                if last is not None:
                    agreeing = [value for box, value in found if overlap(box, box_of(last)) > 0.1]
                    score = max(agreeing, default=score if not found else 0.5)
                    strayed = strayed + 1 if found and not agreeing else 0
                    if strayed >= STRAYED_COUNTS:
                        last = None
                if last is None:
                    _restart(self._mesh)
                    strayed = 0
                    region = _around(max(found, key=lambda item: box_side(item[0]))[0], frame) if found else _whole(frame)
                    score = max((value for _, value in found), default=0.5)
            elif region is not None and _near_edge(box_of(last), region, frame):
                region = _around(box_of(last), frame)
                _restart(self._mesh)
            last = self._points(frame, region) if region is not None else None
            lost = lost + 1 if last is None else 0
            if last is None:
                yield FaceFrame(points=None, confidence=0.0, faces=faces)
            else:
                yield FaceFrame(points=last, confidence=score, faces=max(1, faces))

    def detect(self, image: Image) -> FaceFrame:
        """The largest face of a single picture."""
        return next(self.track([image]))

    def close(self) -> None:
        """Free the graphs."""
        self._mesh.close()
        self._detector.close()

    def _find(self, frame: Image) -> list[tuple[Box, float]]:
        """Faces of the whole picture, or else of squares cut from it: the detector sees 192 pixels a side, however large its input."""
        if found := self._detect(frame):
            return found
        for left, top, side in _squares(*frame.shape[:2]):
            for (x0, y0, x1, y1), score in self._detect(np.ascontiguousarray(frame[top : top + side, left : left + side])):
                box = (x0 + left, y0 + top, x1 + left, y1 + top)
                if all(overlap(box, other) < 0.3 for other, _ in found):
                    found.append((box, score))
        return found

    def _detect(self, frame: Image) -> list[tuple[Box, float]]:
        """Boxes and scores of one picture."""
        height, width = frame.shape[:2]
        found: list[tuple[Box, float]] = []
        for detection in self._detector.process(frame).detections or ():
            box = detection.location_data.relative_bounding_box
            x0, y0 = box.xmin * width, box.ymin * height
            found.append(((x0, y0, x0 + box.width * width, y0 + box.height * height), float(detection.score[0])))
        return found

    def _points(self, frame: Image, region: CropBox) -> Points | None:
        """Landmarks in pixels of the frame, or None."""
        height, width = frame.shape[:2]
        left, top = max(0, region.x), max(0, region.y)
        part = np.ascontiguousarray(frame[top : min(height, region.y + region.side), left : min(width, region.x + region.side)])
        with nullcontext() if self._met_a_face else without_greetings():
            result: Any = self._mesh.process(part).multi_face_landmarks
        if not result:
            return None
        self._met_a_face = True
        mesh = result[0].landmark
        relative = np.array([(mesh[vertex].x, mesh[vertex].y) for vertex in VERTICES.tolist()], np.float64)
        points = ibug_points(relative) * (part.shape[1], part.shape[0]) + (left - 0.5, top - 0.5)
        return points.astype(np.float32)


def ibug_points(vertices: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The 68 points from the mesh vertices `VERTICES`: float64 [74, 2] to float64 [68, 2]."""
    steps = np.arange(len(JAW))
    jaw = np.stack([np.interp(JAW_STEPS, steps, vertices[: len(JAW), axis]) for axis in (0, 1)], axis=1)
    return np.concatenate([jaw, vertices[len(JAW) :]])


def _whole(frame: Image) -> CropBox:
    height, width = frame.shape[:2]
    return CropBox(0, 0, max(height, width))


def _around(box: Box, frame: Image) -> CropBox:
    """A square region around a face, moved (not shrunk) into the picture where it fits."""
    height, width = frame.shape[:2]
    side = max(64, round(REGION_SIDES * box_side(box)))
    x, y = round((box[0] + box[2] - side) / 2), round((box[1] + box[3] - side) / 2)
    return CropBox(max(0, min(x, width - side)), max(0, min(y, height - side)), side)


def _squares(height: int, width: int) -> list[tuple[int, int, int]]:
    """Overlapping squares (left, top, side) along the picture's long side; none for a nearly square picture."""
    side, length = min(height, width), max(height, width)
    if length < LONG_PICTURE * side:
        return []
    count = 1 + -(-2 * (length - side) // side)
    starts = [round(index * (length - side) / (count - 1)) for index in range(count)]
    return [(start, 0, side) if width > height else (0, start, side) for start in starts]


def _near_edge(box: Box, region: CropBox, frame: Image) -> bool:
    """Whether the face is about to leave the region at a side where the picture goes on."""
    height, width = frame.shape[:2]
    rest = REGION_REST * box_side(box)
    return (
        (region.x > 0 and box[0] - region.x < rest)
        or (region.y > 0 and box[1] - region.y < rest)
        or (region.x + region.side < width and region.x + region.side - box[2] < rest)
        or (region.y + region.side < height and region.y + region.side - box[3] < rest)
    )

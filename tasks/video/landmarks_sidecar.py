"""Landmarks that somebody else made: a `.npy` beside each video."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from models.views import NUM_LANDMARKS, Image, Points
from tasks.rejects import RejectCode, VideoRejected
from tasks.video.landmarks import FaceFrame


class SidecarLandmarker:
    """Reads float [F, 68, 2] from `<video without its ending>.npy`: row k belongs to second k / 25, in pixels of the upright source.

    Rows with NaN are frames without a face.
    """

    def __init__(self, points: Points | None = None, first_tick: int = 0) -> None:
        self._points, self._first_tick = points, first_tick

    @property
    def version(self) -> str:
        return "sidecar 1"

    def bind(self, path: Path, scale: float) -> SidecarLandmarker:
        """The landmarker for one video, in pixels of frames decoded at `scale`.

        Raises:
            VideoRejected: the file is no such array (SIDECAR_MISSING, step landmarks).
        """
        try:
            points = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise VideoRejected(RejectCode.SIDECAR_MISSING, "landmarks", f"{path.name} is no readable .npy: {error}") from error
        if points.ndim != 3 or points.shape[1:] != (NUM_LANDMARKS, 2) or not np.issubdtype(points.dtype, np.floating):
            message = f"{path.name} must be float [frames, 68, 2], got {points.dtype} {list(points.shape)}"
            raise VideoRejected(RejectCode.SIDECAR_MISSING, "landmarks", message)
        return SidecarLandmarker(((points.astype(np.float64) + 0.5) * scale - 0.5).astype(np.float32))

    def at(self, tick: int) -> SidecarLandmarker:
        """The same from output frame `tick` on."""
        return SidecarLandmarker(self._points, tick)

    def track(self, frames: Iterable[Image]) -> Iterator[FaceFrame]:
        """See `tasks.video.landmarks.Landmarker.track`; raises VideoRejected when not bound to a video."""
        if self._points is None:
            raise VideoRejected(RejectCode.SIDECAR_MISSING, "landmarks", "the sidecar landmarker knows no picture without its video")
        for tick, _ in enumerate(frames, start=self._first_tick):
            row = self._points[tick] if tick < len(self._points) else None
            if row is None or not np.isfinite(row).all():
                yield FaceFrame(points=None, confidence=0.0, faces=0)
            else:
                yield FaceFrame(points=row, confidence=1.0, faces=1)

    def detect(self, image: Image) -> FaceFrame:
        """See `tasks.video.landmarks.Landmarker.detect`; raises VideoRejected when not bound to a video."""
        return next(self.track([image]))


def sidecar_uri(uri: str) -> str:
    """Where the landmarks of a video lie."""
    return uri[: -len(suffix)] + ".npy" if (suffix := PurePosixPath(uri).suffix) else uri + ".npy"

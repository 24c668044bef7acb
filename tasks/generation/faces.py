"""Whom `flows generate` shows: pictures of the person, out of photos, folders of photos and videos.

Crops follow preprocessing: the union of the head boxes plus the margin, one static square per video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.family import Face, Template
from models.views import Image, Points
from tasks.generation.inputs import GenerationError, TrackedVideo, track_video
from tasks.video.crop import CropBox, crop_image, crop_points, union_box

if TYPE_CHECKING:
    from tasks.video.landmarks import Landmarker

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})

BETTER_FACE = "use a picture or video that shows the face from the front, large and sharp"


@dataclass(frozen=True, kw_only=True)
class PreparedFace:
    """The person to show."""

    face: Face
    canvas: tuple[int, int] | None = None
    """Height and width of the template's frames, where there is a template."""
    without_face: int = 0
    """Template frames that show no face, and are left as they are."""
    notes: tuple[str, ...] = ()
    """What the user should know, e.g. photos that were left out."""


@dataclass(kw_only=True)
class References:
    """Square face crops, as they are collected from files."""

    wanted: int
    """Most pictures to use."""
    size: int
    """Side of the crops in pixels."""
    margin: float
    """As in preprocessing (`ClipSettings.margin`)."""
    images: list[Image] = field(default_factory=list)
    landmarks: list[Points] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Files that gave none, with the reason."""

    @property
    def room(self) -> int:
        """Pictures that are still wanted."""
        return self.wanted - len(self.images)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know."""
        return (f"left out of the face: {', '.join(self.left_out)}",) if self.left_out else ()

    def face(self, template: Template | None = None) -> Face:
        """The collected pictures; there must be one."""
        return Face(images=np.stack(self.images), landmarks=np.stack(self.landmarks), template=template)

    def add(self, image: Image, points: Points, box: CropBox) -> None:
        """Take the crop of one picture."""
        self.images.append(crop_image(image, box, self.size))
        self.landmarks.append(crop_points(points, box, self.size))

    def add_files(self, files: Sequence[Path], landmarker: Landmarker) -> None:
        """Take what there is room for; of a video, frames spread over it."""
        for file in files:
            if self.room <= 0:
                self.left_out.append(f"{file.name} (there are {self.wanted} references already)")
                continue
            before = len(self.images)
            if is_picture(file):
                image = read_photo(file)
                points = landmarker.detect(image).points
                if points is not None:
                    self.add_photo(image, points)
            else:
                self.add_video(track_video(file, landmarker, what="--face"))
            if len(self.images) == before:
                self.left_out.append(f"{file.name} (no face found)")

    def add_photo(self, image: Image, points: Points) -> None:
        """Take the crop of a photo."""
        height, width = image.shape[:2]
        self.add(image, points, union_box(points[None], self.margin, frame=(height, width)))

    def add_video(self, tracked: TrackedVideo) -> None:
        """Frames spread evenly over those with a face, in the one static crop of the video."""
        known = np.flatnonzero(~np.isnan(tracked.points).any(axis=(1, 2)))
        if not len(known):
            return
        box = union_box(tracked.points[known], self.margin, frame=tracked.size)
        for index in known[np.unique(np.linspace(0, len(known) - 1, min(self.room, len(known))).round().astype(int))]:
            self.add(tracked.reader.read([int(index)])[0], tracked.points[index], box)


def prepare_face(sources: Sequence[Path], landmarker: Landmarker, *, references: int, size: int, margin: float) -> PreparedFace:
    """Square face crops with landmarks out of photos, folders of photos and videos.

    Args:
        sources: Files and folders; of a folder every photo in it, by name.
        references: Most pictures to use; of a video, frames spread over it.
        size: Side of the crops in pixels.
        margin: As in preprocessing (`ClipSettings.margin`).

    Raises:
        GenerationError: nothing there, nothing readable, or no face in any of it.
    """
    files = face_files(sources)
    found = References(wanted=references, size=size, margin=margin)
    found.add_files(files, landmarker)
    if not found.images:
        raise GenerationError(f"--face: no face found in {_named(files)}; {BETTER_FACE}")
    return PreparedFace(face=found.face(), notes=found.notes)


def face_files(sources: Sequence[Path]) -> list[Path]:
    """Photos and videos: the sources, and of a folder every photo in it, by name.

    Raises:
        GenerationError: one of them does not exist, a folder holds no photo, or there is none at all.
    """
    files = [file for source in sources for file in _face_files(Path(source))]
    if not files:
        raise GenerationError("--face: give at least one photo, folder of photos or video")
    return files


def _face_files(source: Path) -> list[Path]:
    if source.is_dir():
        files = sorted(file for file in source.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file())
        if not files:
            raise GenerationError(f"--face: the folder {source} holds no photo ({', '.join(sorted(PICTURE_SUFFIXES))})")
        return files
    if not source.is_file():
        raise GenerationError(f"--face: {source} does not exist")
    return [source]


def is_picture(path: Path) -> bool:
    """Whether a file is a photo, and not a video."""
    from PIL import Image as PilImage

    if path.suffix.lower() in PICTURE_SUFFIXES:
        return True
    try:
        with PilImage.open(path):
            return True
    except OSError:
        return False


def read_photo(path: Path) -> Image:
    """Upright RGB pixels; what is transparent becomes white.

    Raises:
        GenerationError: it can't be read.
    """
    from PIL import Image as PilImage
    from PIL import ImageOps

    try:
        with PilImage.open(path) as picture:
            upright = ImageOps.exif_transpose(picture)
            if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                layer = upright.convert("RGBA")
                upright = PilImage.alpha_composite(PilImage.new("RGBA", layer.size, "white"), layer)
            return np.asarray(upright.convert("RGB")).copy()
    except (OSError, SyntaxError, ValueError, PilImage.DecompressionBombError) as error:
        raise GenerationError(f"--face: {path.name} can't be read as a photo: {error}") from error


def _named(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files[:5]) + (" …" if len(files) > 5 else "")

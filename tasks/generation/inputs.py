"""What a person hands to `flows generate`, made ready for a synthesizer: a face, and what drives it.

Crops follow preprocessing: the union of the head boxes plus the margin, one static square per video.
Only landmarks are kept of a driving video, never its pixels, so memory doesn't grow with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.family import Driver, Face
from models.views import FPS, NUM_LANDMARKS, SAMPLES_PER_FRAME, Image, Points
from tasks.rejects import VideoRejected
from tasks.video.crop import CropBox, crop_image, crop_points, face_boxes, union_box

if TYPE_CHECKING:
    from tasks.video.landmarks import Landmarker

SMALL_FACE = 0.2
"""A face of less than this share of the crop's side is worth a note: the head wanders, or the video has cuts."""

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})

Progress = Callable[[str, int, int], None]
"""Called with what is being done, frames done and frames in all."""


class GenerationError(ValueError):
    """The inputs can't become a video; the message says which and what to do."""


@dataclass(frozen=True, kw_only=True)
class PreparedFace:
    """The person to show."""

    face: Face
    notes: tuple[str, ...] = ()
    """What the user should know, e.g. photos that were left out."""


@dataclass(frozen=True, kw_only=True)
class PreparedDriver:
    """What moves the face."""

    driver: Driver
    frames: int
    """Frames that the synthesis makes."""
    sound: npt.NDArray[np.float32] | None
    """float32 [640 * frames], what the made video sounds like; None for silence."""
    video: Path | None = None
    box: CropBox | None = None
    """The crop of the driving video, in pixels of its upright frames as `open_frames` gives them."""
    without_face: int = 0
    """Frames whose landmarks were interpolated or held because no face was found."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrackedVideo:
    """Landmarks of a whole video."""

    points: Points
    """float32 [F, 68, 2], pixels of the upright frames; rows without a face are NaN."""
    size: tuple[int, int]
    """Height and width of the upright frames."""
    several: int
    """Frames with more than one face."""
    broken: str | None
    """Why the video ended early, where it did."""


@dataclass(frozen=True, kw_only=True)
class OpenFrames:
    """A video that is being decoded."""

    images: Iterator[Image]
    promised: int
    """Frames that the container promises."""
    size: tuple[int, int]
    """Height and width."""


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
    images: list[Image] = []
    landmarks: list[Points] = []
    left_out: list[str] = []
    files = [file for source in sources for file in _face_files(Path(source))]
    if not files:
        raise GenerationError("--face: give at least one photo, folder of photos or video")
    for file in files:
        if len(images) >= references:
            left_out.append(f"{file.name} (there are {references} references already)")
            continue
        if not _is_picture(file):
            found = _faces_of_video(file, landmarker, count=references - len(images), size=size, margin=margin)
        else:
            found = _face_of_photo(file, landmarker, size=size, margin=margin)
        if not found:
            left_out.append(f"{file.name} (no face found)")
        images += [image for image, _ in found]
        landmarks += [points for _, points in found]
    if not images:
        names = ", ".join(file.name for file in files[:5]) + (" …" if len(files) > 5 else "")
        raise GenerationError(f"--face: no face found in {names}; use a photo that shows the face from the front, large and sharp")
    notes = (f"left out of the face: {', '.join(left_out)}",) if left_out else ()
    return PreparedFace(face=Face(images=np.stack(images), landmarks=np.stack(landmarks)), notes=notes)


def prepare_landmark_driver(
    path: Path, landmarker: Landmarker, *, size: int, margin: float, progress: Progress | None = None
) -> PreparedDriver:
    """Landmarks of a driving video in one static crop of side `size`, and its sound.

    Raises:
        GenerationError: the file is no video, or no frame of it shows a face.
    """
    from tasks.video.audio import fit_length, read_audio

    tracked = track_video(path, landmarker, what="--driver", progress=progress)
    found = ~np.isnan(tracked.points).any(axis=(1, 2))
    if not found.any():
        raise GenerationError(f"--driver: no face found in any of the {len(found)} frames of {path.name}")
    box = union_box(tracked.points[found], margin, frame=tracked.size)
    notes = []
    if not found.all():
        notes.append(f"{int((~found).sum())} of {len(found)} driver frames show no face; their landmarks were interpolated")
    if tracked.several:
        notes.append(f"{tracked.several} of {len(found)} driver frames show several faces; the largest one drives")
    if tracked.broken:
        notes.append(f"the driver ends early: {tracked.broken}")
    boxes = face_boxes(tracked.points[found])
    share = float(np.median((boxes[:, 2:] - boxes[:, :2]).max(axis=1))) / box.side
    if share < SMALL_FACE:
        notes.append(f"the driver's face fills only {share:.0%} of its crop, because the head wanders or the video has cuts; trim it")
    try:
        sound = read_audio(path, start=0, end=len(found) / FPS)
    except VideoRejected as error:
        sound = None
        notes.append(f"the made video is silent: {error.message}")
    points = crop_points(fill_gaps(tracked.points), box, size)
    return PreparedDriver(
        driver=Driver(landmarks=points, size=size, audio=sound),
        frames=len(found),
        sound=None if sound is None else fit_length(sound, len(found) * SAMPLES_PER_FRAME),
        video=path,
        box=box,
        without_face=int((~found).sum()),
        notes=tuple(notes),
    )


def prepare_audio_driver(path: Path) -> PreparedDriver:
    """The sound of a file, cut into frames; the last one is filled up with silence.

    Raises:
        GenerationError: the file can't be read or holds no sound.
    """
    from tasks.video.audio import fit_length, read_audio

    if not path.is_file():
        raise GenerationError(f"--audio: {path} is not a file")
    try:
        with _readable("--audio", path):
            sound = read_audio(path)
    except OSError as error:
        raise GenerationError(f"--audio: {path.name} can't be read as sound: {error}") from error
    if sound is None or not len(sound):
        raise GenerationError(f"--audio: {path.name} holds no sound")
    frames = -(-len(sound) // SAMPLES_PER_FRAME)
    sound = fit_length(sound, frames * SAMPLES_PER_FRAME)
    return PreparedDriver(driver=Driver(audio=sound), frames=frames, sound=sound)


def fill_gaps(points: Points) -> Points:
    """Replace rows without a face: between two faces by linear interpolation, at the ends by the nearest face; a pure function.

    Args:
        points: float32 [F, 68, 2]; rows without a face are NaN, at least one isn't.
    """
    found = ~np.isnan(points).any(axis=(1, 2))
    if not found.any():
        raise ValueError("there is no face to fill gaps from")
    times, known = np.arange(len(points)), np.flatnonzero(found)
    flat = points.reshape(len(points), -1)
    filled = np.stack([np.interp(times, known, column[known]) for column in flat.T], axis=1)
    return filled.reshape(points.shape).astype(np.float32)


def track_video(path: Path, landmarker: Landmarker, *, what: str, progress: Progress | None = None) -> TrackedVideo:
    """Follow the largest face through a video; keeps landmarks only.

    Raises:
        GenerationError: the file is no readable video; `what` names the option in the message.
    """
    broken: list[str] = []
    rows: list[Points] = []
    several = 0
    with _readable(what, path):
        frames = open_frames(path, broken)
        for face in landmarker.track(frames.images):
            rows.append(np.full((NUM_LANDMARKS, 2), np.nan, np.float32) if face.points is None else face.points)
            several += face.faces > 1
            if progress is not None:
                progress("tracking the driver" if what == "--driver" else "tracking the face", len(rows), max(frames.promised, len(rows)))
    if not rows:
        raise GenerationError(f"{what}: {path.name} has no readable frame{f' ({broken[0]})' if broken else ''}")
    return TrackedVideo(points=np.stack(rows), size=frames.size, several=several, broken=broken[0] if broken else None)


def open_frames(path: Path, broken: list[str]) -> OpenFrames:
    """Frames of a video at 25 fps as they are decoded.

    Where the file breaks off the frames end, and the reason is appended to `broken`.
    """
    from tasks.settings import ClipSettings
    from tasks.video.decode import BrokenOff, read_frames
    from tasks.video.probe import probe

    reader = read_frames(path, probe(path), short_side=ClipSettings().decode_short_side)

    def images() -> Iterator[Image]:
        try:
            for frame in reader:
                yield frame.image
        except BrokenOff as error:
            broken.append(error.message)

    return OpenFrames(images=images(), promised=reader.num_frames, size=reader.size)


def _faces_of_video(path: Path, landmarker: Landmarker, *, count: int, size: int, margin: float) -> list[tuple[Image, Points]]:
    """Frames spread evenly over those with a face, in the one static crop of the video."""
    tracked = track_video(path, landmarker, what="--face")
    known = np.flatnonzero(~np.isnan(tracked.points).any(axis=(1, 2)))
    if not len(known):
        return []
    box = union_box(tracked.points[known], margin, frame=tracked.size)
    chosen = known[np.unique(np.linspace(0, len(known) - 1, min(count, len(known))).round().astype(int))]
    wanted = {int(index) for index in chosen}
    found = []
    for index, image in enumerate(_up_to(open_frames(path, []).images, int(chosen[-1]))):
        if index in wanted:
            found.append((crop_image(image, box, size), crop_points(tracked.points[index], box, size)))
    return found


def _face_of_photo(path: Path, landmarker: Landmarker, *, size: int, margin: float) -> list[tuple[Image, Points]]:
    image = _read_photo(path)
    points = landmarker.detect(image).points
    if points is None:
        return []
    height, width = image.shape[:2]
    box = union_box(points[None], margin, frame=(height, width))
    return [(crop_image(image, box, size), crop_points(points, box, size))]


def _face_files(source: Path) -> list[Path]:
    if source.is_dir():
        files = sorted(file for file in source.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file())
        if not files:
            raise GenerationError(f"--face: the folder {source} holds no photo ({', '.join(sorted(PICTURE_SUFFIXES))})")
        return files
    if not source.is_file():
        raise GenerationError(f"--face: {source} does not exist")
    return [source]


def _is_picture(path: Path) -> bool:
    from PIL import Image as PilImage

    if path.suffix.lower() in PICTURE_SUFFIXES:
        return True
    try:
        with PilImage.open(path):
            return True
    except OSError:
        return False


def _read_photo(path: Path) -> Image:
    """Upright RGB pixels; what is transparent becomes white."""
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


@contextmanager
def _readable(what: str, path: Path) -> Iterator[None]:
    """Turn a refused file into an error that names the option and the file."""
    try:
        yield
    except VideoRejected as error:
        raise GenerationError(f"{what}: {path.name}: {error.message}") from error


def _up_to(frames: Iterable[Image], last: int) -> Iterator[Image]:
    for index, frame in enumerate(frames):
        yield frame
        if index == last:
            return

"""What drives the face in `flows generate`, made ready for a synthesizer: a video's landmarks, or sound.

Crops follow preprocessing: the union of the head boxes plus the margin, one static square per video.
Only landmarks are kept of a video, never its pixels, so memory doesn't grow with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.family import Driver
from models.views import FPS, NUM_LANDMARKS, SAMPLES_PER_FRAME, Image, Points
from tasks.rejects import VideoRejected
from tasks.video.crop import CropBox, crop_points, face_boxes, union_box

if TYPE_CHECKING:
    from tasks.video.decode import FrameReader
    from tasks.video.landmarks import Landmarker

SMALL_FACE = 0.2
"""A face of less than this share of the crop's side is worth a note: the head wanders, or the video has cuts."""

SILENCE = 1e-3
"""Sound that never reaches this amplitude (-60 dB) is called silent."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, frames done and frames in all."""


class GenerationError(ValueError):
    """The inputs can't become a video; the message says which and what to do."""


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
    reader: FrameReader
    """Gives the frames again, also out of order."""


@dataclass(frozen=True, kw_only=True)
class OpenFrames:
    """A video that is being decoded."""

    images: Iterator[Image]
    promised: int
    """Frames that the container promises."""
    size: tuple[int, int]
    """Height and width."""
    reader: FrameReader


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
    low, high = float(sound.min()), float(sound.max())
    if not np.isfinite([low, high]).all():
        raise GenerationError(f"--audio: {path.name} holds samples that are no numbers; write it again, as 16-bit sound")
    frames = -(-len(sound) // SAMPLES_PER_FRAME)
    sound = fit_length(sound, frames * SAMPLES_PER_FRAME)
    silent = max(-low, high) < SILENCE
    notes = (f"the sound of {path.name} is silent: the mouth has nothing to follow",) if silent else ()
    return PreparedDriver(driver=Driver(audio=sound), frames=frames, sound=sound, notes=notes)


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
    return TrackedVideo(
        points=np.stack(rows), size=frames.size, several=several, broken=broken[0] if broken else None, reader=frames.reader
    )


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

    return OpenFrames(images=images(), promised=reader.num_frames, size=reader.size, reader=reader)


@contextmanager
def _readable(what: str, path: Path) -> Iterator[None]:
    """Turn a refused file into an error that names the option and the file."""
    try:
        yield
    except VideoRejected as error:
        raise GenerationError(f"{what}: {path.name}: {error.message}") from error

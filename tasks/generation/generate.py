"""Make a video with a registered model: a face and a driver in, one mp4 out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.family import DriverKind, Family, Synthesizer
from models.views import FPS, Image
from tasks.generation.inputs import (
    GenerationError,
    PreparedDriver,
    PreparedFace,
    Progress,
    open_frames,
    prepare_audio_driver,
    prepare_face,
    prepare_landmark_driver,
)
from tasks.generation.provenance import ModelIdentity
from tasks.settings import LandmarkSettings
from tasks.video.crop import crop_image
from tasks.video.video_out import VideoWriter

if TYPE_CHECKING:
    from tasks.training.registry import LoadedModel
    from tasks.video.landmarks import Landmarker

__all__ = ["GeneratedVideo", "GenerationError", "Progress", "generate"]

SIZES = range(32, 2049)
"""Sides that the made video can be scaled to, in pixels."""


@dataclass(frozen=True, kw_only=True)
class GeneratedVideo:
    """What was made."""

    path: Path
    frames: int
    seconds: float
    """Length of the video."""
    fps: int
    width: int
    height: int
    sound: bool
    references: int
    """Pictures of the face that the model saw."""
    driver_frames_without_face: int
    """Interpolated or held."""
    notes: tuple[str, ...]
    """What the user should know, one sentence each."""
    elapsed: float
    """Seconds that it took, loading of the model not included."""


def generate(
    model: LoadedModel,
    *,
    face: Path | Sequence[Path],
    driver: Path | None = None,
    audio: Path | None = None,
    out: Path,
    references: int = 8,
    side_by_side: bool = False,
    size: int | None = None,
    seed: int = 0,
    margin: float | None = None,
    landmarks: LandmarkSettings | None = None,
    landmarker: Landmarker | None = None,
    progress: Progress | None = None,
) -> GeneratedVideo:
    """Show `face` moved by `driver` (or by `audio`, as the family wants), as an mp4 that says that it is synthetic.

    The frames are written as they are made. An existing `out` is replaced in one step when the new video is whole.

    Args:
        model: From `tasks.training.registry.load`.
        face: Photos, folders of photos, or videos of the person.
        driver: A video whose landmarks move the face; its sound goes into the result.
        audio: A file whose sound moves the face.
        out: The mp4 to write.
        references: Most pictures of the face to use.
        side_by_side: Also show the reference and the driving frame, left of the result.
        size: Side of the made frames in pixels; None keeps the model's.
        seed: Of models that draw noise.
        margin: Around the head, as in preprocessing; None is that of the dataset that the model was trained on.
        landmarks: Which landmarker; None is that of the dataset that the model was trained on.
        landmarker: Instead of the one that `landmarks` names.
        progress: Called with what is being done, frames done and frames in all.

    Raises:
        GenerationError: inputs that can't become a video, with the way out.
    """
    started = time.perf_counter()
    out = Path(out)
    faces = [Path(face)] if isinstance(face, str | Path) else [Path(path) for path in face]
    _check_driver(model.family, driver, audio)
    _check_output(out, [*faces, *(path for path in (driver, audio) if path is not None)])
    if references < 1:
        raise GenerationError(f"--references must be at least 1, got {references}")
    if size is not None and (size not in SIZES or size % 2):
        raise GenerationError(f"--size must be even and between {SIZES[0]} and {SIZES[-1]}, got {size}")
    if landmarker is None:
        from tasks.video.landmarks import make_landmarker

        landmarker = make_landmarker(landmarks or model.stored.landmarks)
    synthesizer, margin = model.synthesizer, model.stored.clips.margin if margin is None else margin
    person = prepare_face(faces, landmarker, references=references, size=synthesizer.size, margin=margin)
    if driver is not None:
        moved = prepare_landmark_driver(Path(driver), landmarker, size=synthesizer.size, margin=margin, progress=progress)
    else:
        moved = prepare_audio_driver(Path(str(audio)))
    identity = ModelIdentity(family=model.family.name, uri=str(model.uri), version=str(model.version or ""), run_id=str(model.run_id or ""))
    side = size or synthesizer.size + synthesizer.size % 2
    panels = 1 if not side_by_side else 3 if moved.video is not None else 2
    with VideoWriter(out, width=side * panels, height=side, fps=FPS, audio=moved.sound, metadata=identity.metadata()) as writer:
        made = _made(synthesizer, person, moved, seed)
        frames = _panels(made, person, moved, side) if side_by_side else (_scaled(frame, side) for frame in made)
        for done, frame in enumerate(frames, start=1):
            writer.write(frame)
            if progress is not None:
                progress("making frames", done, moved.frames)
    return GeneratedVideo(
        path=out,
        frames=moved.frames,
        seconds=moved.frames / FPS,
        fps=FPS,
        width=side * panels,
        height=side,
        sound=moved.sound is not None,
        references=len(person.face.images),
        driver_frames_without_face=moved.without_face,
        notes=(*person.notes, *moved.notes),
        elapsed=time.perf_counter() - started,
    )


def _made(synthesizer: Synthesizer, person: PreparedFace, moved: PreparedDriver, seed: int) -> Iterator[Image]:
    """The model's frames; raises where it makes more or fewer than it was asked for."""
    count = 0
    for frame in synthesizer.synthesize(person.face, moved.driver, seed=seed):
        count += 1
        if count > moved.frames:
            break
        yield frame
    if count != moved.frames:
        number = f"more than {moved.frames}" if count > moved.frames else f"{count} of {moved.frames}"
        raise RuntimeError(f"the model made {number} frames")


def _panels(made: Iterator[Image], person: PreparedFace, moved: PreparedDriver, side: int) -> Iterator[Image]:
    """Reference, driving frame (where a video drives) and made frame, beside each other."""
    reference = _scaled(person.face.images[0], side)
    driving = None if moved.video is None else open_frames(moved.video, []).images
    for frame in made:
        row = [reference]
        if driving is not None and moved.box is not None:
            row.append(crop_image(next(driving), moved.box, side))
        yield np.concatenate([*row, _scaled(frame, side)], axis=1)


def _scaled(image: Image, side: int) -> Image:
    import cv2

    if image.shape[:2] == (side, side):
        return image
    method = cv2.INTER_AREA if image.shape[0] > side else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (side, side), interpolation=method), np.uint8)


def _check_driver(family: Family, driver: Path | None, audio: Path | None) -> None:
    """A family is driven by one thing; the error names the option that it wants."""
    wants_video = family.driver is DriverKind.LANDMARKS
    wanted, other = ("--driver VIDEO", "--audio") if wants_video else ("--audio FILE", "--driver")
    if (audio if wants_video else driver) is not None:
        raise GenerationError(f"{family.name} is driven by {'a video' if wants_video else 'sound'}: give {wanted} instead of {other}")
    if (driver if wants_video else audio) is None:
        raise GenerationError(f"{family.name} is driven by {'a video' if wants_video else 'sound'}: give {wanted}")


def _check_output(out: Path, inputs: Sequence[Path]) -> None:
    if out.suffix.lower() != ".mp4":
        raise GenerationError(f"--out must end in .mp4, got {out}")
    if out.is_dir():
        raise GenerationError(f"--out: {out} is a folder")
    for path in inputs:
        if path.exists() and out.exists() and path.samefile(out):
            raise GenerationError(f"--out: {out} is also an input; inputs are never overwritten")

"""Make a video with a registered model: a face and a driver in, one mp4 out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.family import Canvas, DriverKind, Family, Synthesizer, ping_pong
from models.views import FPS, Image
from tasks.generation.faces import PreparedFace, prepare_face
from tasks.generation.inputs import (
    GenerationError,
    PreparedDriver,
    Progress,
    open_frames,
    prepare_audio_driver,
    prepare_landmark_driver,
)
from tasks.generation.provenance import PLUMBING, ModelIdentity
from tasks.generation.sound_features import sound_features
from tasks.generation.template import prepare_template
from tasks.settings import LandmarkSettings, SpeechSettings
from tasks.video.crop import crop_image
from tasks.video.video_out import VideoWriter

if TYPE_CHECKING:
    from models.weights import WeightsStore
    from tasks.training.registry import LoadedModel
    from tasks.video.landmarks import Landmarker

__all__ = ["GeneratedVideo", "GenerationError", "Progress", "generate"]

SIZES = range(32, 2049)
"""Sides that the made video can be scaled to, in pixels."""

WAITING_FRAMES = 8
"""Made frames that may wait for the encoder, which works beside the model."""


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
    template_frames: int | None = None
    """Length of the template, for families that paint on one."""
    template_frames_without_face: int = 0
    """Shown as they are."""
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
    weights: WeightsStore | None = None,
    speech: Sequence[SpeechSettings] = (),
    progress: Progress | None = None,
) -> GeneratedVideo:
    """Show `face` moved by `driver` (or by `audio`, as the family wants), as an mp4 that says that it is synthetic.

    The frames are written as they are made. An existing `out` is replaced in one step when the new video is whole.
    A family of `Canvas.TEMPLATE` paints on the first video of `face`, played forwards and backwards for as long as the sound
    goes on, or on the first photo; the made video is as large as that.

    Args:
        model: From `tasks.training.registry.load`.
        face: Photos, folders of photos, or videos of the person.
        driver: A video whose landmarks move the face; its sound goes into the result.
        audio: A file whose sound moves the face.
        out: The mp4 to write.
        references: Most pictures of the face to use.
        side_by_side: Also show the reference and the driving frame, or the template's frame, left of the result.
        size: Side of the made frames in pixels, of a painted template the short side; None keeps the model's or the template's.
        seed: Of models that draw noise.
        margin: Around the head, as in preprocessing; None is that of the dataset that the model was trained on.
        landmarks: Which landmarker; None is that of the dataset that the model was trained on.
        landmarker: Instead of the one that `landmarks` names.
        weights: Where pretrained networks for learned features of the sound are looked for.
        speech: Networks that make these features, in place of those that the model's dataset was made with.
        progress: Called with what is being done, frames done and frames in all.

    Raises:
        GenerationError: inputs that can't become a video, with the way out.
    """
    started = time.perf_counter()
    # Absolute, because FFmpeg takes what stands before the colon of "12:30.wav" for a protocol.
    out = Path(out).absolute()
    faces = [Path(path).absolute() for path in ([face] if isinstance(face, str | Path) else face)]
    driver, audio = (None if path is None else Path(path).absolute() for path in (driver, audio))
    _check_driver(model.family, driver, audio)
    _check_output(out, [*faces, *(path for path in (driver, audio) if path is not None)])
    if references < 1:
        raise GenerationError(f"--references must be at least 1, got {references}")
    if size is not None and (size not in SIZES or size % 2):
        raise GenerationError(f"--size must be even and between {SIZES[0]} and {SIZES[-1]}, got {size}")
    synthesizer, margin = model.synthesizer, model.stored.clips.margin if margin is None else margin
    # Sound is checked first: a template can take minutes.
    heard = None if audio is None else prepare_audio_driver(audio)
    if landmarker is None:
        from tasks.video.landmarks import make_landmarker

        landmarker = make_landmarker(landmarks or model.stored.landmarks)
    if model.family.canvas is Canvas.TEMPLATE:
        person = prepare_template(faces, landmarker, references=references, size=synthesizer.size, margin=margin, progress=progress)
    else:
        person = prepare_face(faces, landmarker, references=references, size=synthesizer.size, margin=margin)
    if heard is None:
        moved = prepare_landmark_driver(Path(str(driver)), landmarker, size=synthesizer.size, margin=margin, progress=progress)
    else:
        moved = heard
        names = model.family.features(model.config, model.stage)
        if names and moved.sound is not None:
            if progress is not None:
                progress("listening", 0, moved.frames)
            features = sound_features(names, moved.sound, model.record, weights=weights, speech=speech)
            moved = replace(moved, driver=replace(moved.driver, features=features))
    identity = ModelIdentity(family=model.family.name, uri=str(model.uri), version=str(model.version or ""), run_id=str(model.run_id or ""))
    height, width = _shape(person, synthesizer, size)
    panels = 1 if not side_by_side else 3 if moved.video is not None and person.canvas is None else 2
    with VideoWriter(out, width=width * panels, height=height, fps=FPS, audio=moved.sound, metadata=identity.metadata()) as writer:
        made = _made(synthesizer, person, moved, seed)
        shape = (height, width)
        frames = _panels(made, person, moved, shape) if side_by_side else (_scaled(frame, shape) for frame in made)
        _write(writer, frames, moved.frames, progress)
    return GeneratedVideo(
        path=out,
        frames=moved.frames,
        seconds=moved.frames / FPS,
        fps=FPS,
        width=width * panels,
        height=height,
        sound=moved.sound is not None,
        references=len(person.face.images),
        driver_frames_without_face=moved.without_face,
        template_frames=None if person.face.template is None else len(person.face.template),
        template_frames_without_face=person.without_face,
        notes=(*person.notes, *moved.notes, *((PLUMBING,) if model.record.get("profile") == "demo" else ())),
        elapsed=time.perf_counter() - started,
    )


def _write(writer: VideoWriter, frames: Iterable[Image], total: int, progress: Progress | None) -> None:
    """Encode the frames in order on a thread of its own, while the next ones are made; few wait in between."""
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder") as encoder:
        try:
            for done, frame in enumerate(frames, start=1):
                waiting.append(encoder.submit(writer.write, frame))
                if len(waiting) > WAITING_FRAMES:
                    waiting.popleft().result()
                if progress is not None:
                    progress("making frames", done, total)
            for written in waiting:
                written.result()
        finally:
            for left in waiting:
                left.cancel()


def _shape(person: PreparedFace, synthesizer: Synthesizer, size: int | None) -> tuple[int, int]:
    """Even height and width of one panel of the made video."""
    if person.canvas is None:
        side = size or synthesizer.size + synthesizer.size % 2
        return side, side
    if size is None:
        return person.canvas
    height, width = (2 * round(side * size / min(person.canvas) / 2) for side in person.canvas)
    return height, width


def _made(synthesizer: Synthesizer, person: PreparedFace, moved: PreparedDriver, seed: int) -> Iterator[Image]:
    """The model's frames; raises where it makes more or fewer than it was asked for."""
    count = 0
    for frame in synthesizer.synthesize(person.face, moved.driver, seed=seed):
        count += 1
        if count > moved.frames:
            break
        if person.canvas is not None and frame.shape[:2] != person.canvas:
            raise RuntimeError(f"the model made a frame of {frame.shape[1]}x{frame.shape[0]} on a template of {person.canvas[::-1]}")
        yield frame
    if count != moved.frames:
        number = f"more than {moved.frames}" if count > moved.frames else f"{count} of {moved.frames}"
        raise RuntimeError(f"the model made {number} frames")


def _panels(made: Iterator[Image], person: PreparedFace, moved: PreparedDriver, shape: tuple[int, int]) -> Iterator[Image]:
    """Reference and driving frame (where a video drives), or the template's frame, and beside it the made frame."""
    template = person.face.template
    if template is not None:
        for index, frame in zip(ping_pong(len(template)), made, strict=False):
            yield np.concatenate([_scaled(template.read([index])[0], shape), _scaled(frame, shape)], axis=1)
        return
    reference = _scaled(person.face.images[0], shape)
    driving = None if moved.video is None else open_frames(moved.video, []).images
    for frame in made:
        row = [reference]
        if driving is not None and moved.box is not None:
            row.append(crop_image(next(driving), moved.box, shape[0]))
        yield np.concatenate([*row, _scaled(frame, shape)], axis=1)


def _scaled(image: Image, shape: tuple[int, int]) -> Image:
    import cv2

    if image.shape[:2] == shape:
        return image
    method = cv2.INTER_AREA if image.shape[0] > shape[0] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, shape[::-1], interpolation=method), np.uint8)


def _check_driver(family: Family, driver: Path | None, audio: Path | None) -> None:
    """A family is driven by one thing; the error names the option that it wants."""
    wants_video = family.driver is DriverKind.LANDMARKS
    wanted, other = ("--driver VIDEO", "--audio") if wants_video else ("--audio FILE", "--driver")
    if (audio if wants_video else driver) is not None:
        both = (driver if wants_video else audio) is not None
        way_out = f"leave out {other}" if both else f"give {wanted} instead of {other}"
        raise GenerationError(f"{family.name} is driven by {'a video' if wants_video else 'sound'}: {way_out}")
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

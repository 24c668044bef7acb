"""Faces that a test can reason about: a red disc is a face, and its 68 points lie around the disc's centre.

`DiscLandmarker` finds the disc in the pixels; so a picture that is moved by d pixels has landmarks
that moved by d pixels, and a picture without a disc has no face.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch

from models.family import Driver, DriverKind, EvaluationCase, Face, Family, FamilyConfig, Stage, Synthesizer
from models.views import SAMPLES_PER_FRAME, Clip, Image, Points
from tasks.video.landmarks import FaceFrame

SIZE = 96
RADIUS = 9
EYES = 24.0
"""Distance of the outer eye corners of `shape()` in pixels."""


def shape(scale: float = 1.0) -> Points:
    """68 points around (0, 0) in iBUG order, outer eye corners 24 * scale apart."""
    angle = np.linspace(np.pi, 0, 17)
    jaw = np.stack([20 * np.cos(angle), 2 + 22 * np.sin(angle)], 1)
    brows = [np.stack([np.linspace(a, b, 5), np.full(5, -12.0)], 1) for a, b in ((-15, -4), (4, 15))]
    nose = np.stack([np.zeros(4), np.linspace(-8, 2, 4)], 1)
    base = np.stack([np.linspace(-4, 4, 5), np.full(5, 5.0)], 1)
    eyes = []
    for left, right in ((-12.0, -5.0), (5.0, 12.0)):
        third = (right - left) / 3
        eyes.append(
            np.array([(left, -7), (left + third, -9), (right - third, -9), (right, -7), (right - third, -5.5), (left + third, -5.5)], float)
        )
    outer = np.linspace(np.pi, -np.pi, 13)[:-1]
    inner = np.linspace(np.pi, -np.pi, 9)[:-1]
    lips = [np.stack([w * np.cos(t), 13 - h * np.sin(t)], 1) for t, w, h in ((outer, 8, 4), (inner, 5, 2))]
    return (np.concatenate([jaw, *brows, nose, base, *eyes, *lips]) * scale).astype(np.float32)


def picture(centre: tuple[float, float] | None, size: int = SIZE, texture: int = 0) -> Image:
    """Textured green and blue, and a red disc where the face is; None draws no face."""
    rng = np.random.default_rng(texture)
    image = np.zeros((size, size, 3), np.uint8)
    image[..., 1:] = np.kron(rng.integers(40, 200, (size // 8, size // 8, 2)), np.ones((8, 8, 1), int)).astype(np.uint8)
    if centre is not None:
        y, x = np.mgrid[:size, :size]
        image[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= (RADIUS * size / SIZE) ** 2] = (255, 0, 0)
    return image


class DiscLandmarker:
    """Finds red discs."""

    version = "disc 1"

    def __init__(self, mouth: Callable[[int], float] = lambda frame: 0.0) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.mouth = mouth

    def detect(self, image: Image) -> FaceFrame:
        self.shapes.append(image.shape[:2])
        pixels = image.astype(int)
        red = (pixels[..., 0] > 170) & (pixels[..., 1:].max(axis=2) < 90)
        if red.sum() < 12:
            return FaceFrame(points=None, confidence=0.0, faces=0)
        y, x = np.nonzero(red)
        side = np.sqrt(red.sum() / np.pi) / RADIUS
        points = shape(side) + np.array([x.mean(), y.mean()], np.float32)
        return FaceFrame(points=points.astype(np.float32), confidence=1.0, faces=1)

    def track(self, frames: Iterable[Image]) -> Iterator[FaceFrame]:
        for index, frame in enumerate(frames):
            face = self.detect(frame)
            if face.points is not None:
                points = face.points.copy()
                points[48:68, 1] += self.mouth(index)
                face = FaceFrame(points=points, confidence=1.0, faces=1)
            yield face


def walk(frames: int, size: int = SIZE) -> list[tuple[float, float]]:
    """Centres of a face that moves on whole pixels."""
    return [(size // 2 + round(6 * np.sin(i / 3)), size // 2 + round(4 * np.cos(i / 4))) for i in range(frames)]


def clip_of(centres: Sequence[tuple[float, float]], key: str = "anna_a_0", *, sound: bool = False) -> Clip:
    """A clip of disc faces."""
    images = np.stack([picture(centre) for centre in centres])
    return Clip(
        key=key,
        identity=key.split("_")[0],
        video=key.rpartition("_")[0],
        num_frames=len(images),
        size=SIZE,
        landmarks=np.stack([shape() + np.array(centre, np.float32) for centre in centres]).astype(np.float32),
        confidence=np.ones(len(images), np.float32),
        audio=np.zeros(len(images) * SAMPLES_PER_FRAME, np.float32) if sound else None,
        read_frames=lambda indices: images[list(indices)],
    )


class DiscConfig(FamilyConfig):
    pass


class DiscSynthesizer(Synthesizer):
    """Draws the disc `shift` pixels beside where the driver says; the baseline holds the reference still."""

    def __init__(self, shift: float = 2.0, *, faceless: Sequence[int] = (), fails: str = "", frames_off: int = 0, size: int = SIZE) -> None:
        self.size = size
        self.shift, self.faceless, self.fails, self.frames_off = shift, set(faceless), fails, frames_off

    def synthesize(self, face: Face, driver: Driver, *, seed: int = 0) -> Iterator[Image]:
        if self.fails:
            raise RuntimeError(self.fails)
        assert driver.landmarks is not None
        centres = [points[[36, 45]].mean(axis=0) + np.array([0, 7 * self.size / SIZE]) for points in driver.landmarks]
        if self.frames_off:
            centres = centres[: self.frames_off] if self.frames_off < 0 else [*centres, centres[-1]]
        for index, centre in enumerate(centres):
            moved = (float(centre[0]) + self.shift, float(centre[1]))
            yield picture(None if index in self.faceless else moved, self.size)

    def baseline(self, face: Face, driver: Driver) -> Iterator[Image]:
        assert driver.landmarks is not None
        for _ in driver.landmarks:
            yield face.images[0]


class DiscFamily(Family):
    """Driven by landmarks: the clip's first frame is the reference, the rest is the truth."""

    name = "discs"
    title = "Discs"
    paper = "none"
    driver = DriverKind.LANDMARKS
    config_type = DiscConfig
    stages = (Stage(name="only", view="clips", description="nothing"),)

    def evaluation_case(self, config: DiscConfig, clip: Clip) -> EvaluationCase:
        targets = clip.read_frames(range(1, clip.num_frames))
        return EvaluationCase(
            key=clip.key,
            face=Face(images=clip.read_frames([0]), landmarks=clip.landmarks[:1]),
            driver=Driver(
                landmarks=clip.landmarks[1:], size=clip.size, audio=None if clip.audio is None else clip.audio[SAMPLES_PER_FRAME:]
            ),
            targets=targets,
            target_landmarks=clip.landmarks[1:],
        )

    def networks(self, config: DiscConfig, stage: str) -> dict[str, torch.nn.Module]:
        return {}

    def examples(self, config, stage):
        raise AssertionError("not used")

    def build(self, config, stage, context):
        raise AssertionError("not used")

    def load(self, checkpoint, device):
        raise AssertionError("not used")

"""Faces whose mouths a test can read: a disc face (`disc_faces`) with a white mouth, as many pixels high as the sound is loud.

The family is driven by audio, paints a square on the frames of a template, and those frames are wider than high.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch

from models.family import Canvas, Driver, DriverKind, EvaluationCase, Face, Family, FamilyConfig, Squares, Stage, Synthesizer, Template
from models.views import SAMPLES_PER_FRAME, Clip, Image
from tasks.video.landmarks import FaceFrame
from tests.tasks.disc_faces import DiscLandmarker, picture, shape

HEIGHT, WIDTH = 96, 128
CENTRE = (60, 44)
"""x and y of the face, which holds still."""
SQUARE = (CENTRE[0] - 16, CENTRE[1] - 2, 32)
"""The painted square: first column, first row, side."""
LOUDEST = 6
"""Pixels of the widest opening."""


def sound(openings: Sequence[int], voice: int = 8) -> np.ndarray:
    """A tone that is opening / 10 loud in every frame, `voice` periods each: float32 [640 * F]."""
    wave = np.sin(2 * np.pi * voice * np.arange(SAMPLES_PER_FRAME) / SAMPLES_PER_FRAME)
    return np.concatenate([value / 10 * wave for value in openings]).astype(np.float32)


def heard(audio: np.ndarray) -> list[int]:
    """The openings that `sound` was made from."""
    frames = audio.reshape(-1, SAMPLES_PER_FRAME).astype(np.float64)
    return [int(value) for value in np.round(10 * np.sqrt(2 * (frames**2).mean(axis=1)))]


def talker(opening: int) -> Image:
    """uint8 [96, 128, 3]: the face with its mouth `opening` pixels open."""
    image = np.concatenate([picture(CENTRE, HEIGHT), picture(None, HEIGHT, 1)[:, : WIDTH - HEIGHT]], axis=1)
    top = CENTRE[1] + 13 - opening // 2
    image[top : top + opening, CENTRE[0] - 5 : CENTRE[0] + 5] = 255
    return image


def opening_of(image: Image) -> int:
    """The opening that `talker` drew."""
    return int((image.min(axis=2) > 230).sum()) // 10


class TalkerLandmarker(DiscLandmarker):
    """Finds the disc; the inner lips are as far apart as the mouth is open."""

    def detect(self, image: Image) -> FaceFrame:
        face = super().detect(image)
        if face.points is not None:
            for points, sign in ((slice(61, 64), -1), (slice(65, 68), 1)):
                face.points[points, 1] = face.points[60, 1] + sign * opening_of(image) / 2
        return face


def talking_clip(openings: Sequence[int], key: str = "anna_a_0", *, audible: bool = True) -> Clip:
    """A clip of a talker with these openings, in a voice of its own."""
    images = np.stack([talker(opening) for opening in openings])
    landmarks = np.repeat((shape() + np.array(CENTRE, np.float32))[None], len(images), axis=0)
    return Clip(
        key=key,
        identity=key.split("_")[0],
        video=key.rpartition("_")[0],
        num_frames=len(images),
        size=HEIGHT,
        landmarks=landmarks.astype(np.float32),
        confidence=np.ones(len(images), np.float32),
        audio=sound(openings, voice=5 + sum(key.encode()) % 20) if audible else None,
        features={"loudness": np.array(openings, np.float32)[:, None]},
        read_frames=lambda indices: images[list(indices)],
    )


class TalkingConfig(FamilyConfig):
    pass


class Talker(Synthesizer):
    """Opens the mouth one pixel too far.

    `sound` and `feature` follow what drives them; `template` copies the mouth of the template, deaf to the sound.
    """

    size = SQUARE[2]

    def __init__(self, follows: Literal["sound", "feature", "template"] = "sound", *, wrong: int = 1, deaf_judge: bool = False) -> None:
        self.follows, self.wrong, self.deaf_judge = follows, wrong, deaf_judge

    def synthesize(self, face: Face, driver: Driver, *, seed: int = 0) -> Iterator[Image]:
        if driver.audio is None:
            raise ValueError("there is no sound to follow")
        openings = heard(driver.audio)
        for index, opening in enumerate(openings):
            if self.follows == "template":
                assert face.template is not None
                opening = opening_of(face.template.read([index])[0])
            if self.follows == "feature":
                opening = int(driver.features["loudness"][index, 0])
            yield talker(opening + self.wrong)

    def baseline(self, face: Face, driver: Driver) -> Iterator[Image]:
        assert face.template is not None
        for _ in range(len(face.template)):
            yield talker(0)

    def lip_sync(self, frames: Image, landmarks: np.ndarray, audio: np.ndarray) -> np.ndarray | None:
        if self.deaf_judge:
            return None
        mouths, loud = np.array([opening_of(frame) for frame in frames], float), np.array(heard(audio), float)
        scores = np.full((len(frames) - 4, 31), np.nan, np.float32)
        for window in range(len(scores)):
            for column in range(31):
                start = window + column - 15
                if 0 <= start <= len(loud) - 5:
                    scores[window, column] = -np.abs(mouths[window : window + 5] - loud[start : start + 5]).mean()
        return scores


class TalkingFamily(Family):
    """Driven by audio, on its own template."""

    name = "talkers"
    title = "Talkers"
    paper = "none"
    driver = DriverKind.AUDIO
    canvas = Canvas.TEMPLATE
    config_type = TalkingConfig
    stages = (Stage(name="only", view="clips", description="nothing", features=("loudness",)),)

    def evaluation_case(self, config: TalkingConfig, clip: Clip) -> EvaluationCase:
        targets = clip.read_frames(range(clip.num_frames))
        return EvaluationCase(
            key=clip.key,
            face=Face(
                images=targets[:1, :, :HEIGHT],
                landmarks=clip.landmarks[:1],
                template=Template(read=clip.read_frames, landmarks=clip.landmarks),
            ),
            driver=Driver(audio=clip.audio, features=clip.features),
            targets=targets,
            target_landmarks=clip.landmarks,
            painted=Squares(boxes=np.repeat(np.array([SQUARE]), clip.num_frames, axis=0), size=SQUARE[2]),
        )

    def networks(self, config: TalkingConfig, stage: str) -> dict[str, torch.nn.Module]:
        return {}

    def examples(self, config, stage):
        raise AssertionError("not used")

    def build(self, config, stage, context):
        raise AssertionError("not used")

    def load(self, checkpoint, device):
        raise AssertionError("not used")

"""A family that paints a square on a template: white where its sound is loud, black where it is not. Used by several tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.family import BuildContext, Canvas, Driver, DriverKind, Face, Stage, Synthesizer, TrainingModule
from models.views import SAMPLES_PER_FRAME, Image
from tests.tasks.disc_faces import DiscFamily
from tests.tasks.line_family import LineConfig, LineModule

SQUARE = 12
"""Side of the painted square, in the upper left corner."""


class FlashSynthesizer(Synthesizer):
    """Plays the template forwards and backwards; frames without a face are left as they are."""

    size = 64

    def __init__(self, batch: int = 8) -> None:
        self.batch = batch
        self.features: dict[str, np.ndarray] = {}

    def synthesize(self, face: Face, driver: Driver, *, seed: int = 0) -> Iterator[Image]:
        template = face.template
        assert template is not None
        assert driver.audio is not None
        self.features = dict(driver.features)
        count, period = len(driver.audio) // SAMPLES_PER_FRAME, max(1, 2 * (len(template) - 1))
        loud = np.abs(driver.audio.reshape(count, SAMPLES_PER_FRAME)).max(axis=1) > 0.1
        for start in range(0, count, self.batch):
            places = [min(i % period, period - i % period) for i in range(start, min(count, start + self.batch))]
            for place, flash, frame in zip(places, loud[start:], template.read(places), strict=False):
                if np.isfinite(template.landmarks[place]).all():
                    frame[:SQUARE, :SQUARE] = 255 if flash else 0
                yield frame

    def baseline(self, face: Face, driver: Driver) -> Iterator[Image]:
        raise AssertionError("not used")


class FlashModule(LineModule):
    def export(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({"started": self.started}))

    started = False


class FlashFamily(DiscFamily):
    """Two stages, the second of which starts from the first, and learns one person."""

    name = "flashes"
    driver = DriverKind.AUDIO
    canvas = Canvas.TEMPLATE
    config_type = LineConfig
    stages = (
        Stage(name="hear", view="clips", description="nothing"),
        Stage(name="only", view="clips", description="nothing", after="hear", one_person=True),
    )

    def build(self, config: Any, stage: str, context: BuildContext) -> TrainingModule:
        module = FlashModule(config)
        module.started = stage == "only" and context.start_from is not None and context.face is not None
        return module

    def load(self, checkpoint: Path, device: torch.device) -> Synthesizer:
        assert json.loads((checkpoint / "config.json").read_text())["started"]
        return FlashSynthesizer()


class HearingFamily(FlashFamily):
    """Hears through wav2vec."""

    def features(self, config: Any, stage: str) -> tuple[str, ...]:
        return ("wav2vec",)

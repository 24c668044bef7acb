"""The SyncTalk_2D family as the rest of the project sees it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from models.family import (
    BuildContext,
    Canvas,
    Driver,
    DriverKind,
    EvaluationCase,
    ExampleMaker,
    Face,
    Family,
    FamilyConfig,
    Squares,
    Stage,
    Template,
    TrainingModule,
)
from models.synctalk.config import SyncTalkConfig
from models.views import Clip


class SyncTalk(Family):
    """SyncTalk_2D: learns one person's mouth, then shows that person saying anything."""

    name: ClassVar[str] = "synctalk"
    title: ClassVar[str] = "SyncTalk_2D"
    paper: ClassVar[str] = "SyncTalk_2D (github.com/ZiqiaoPeng/SyncTalk_2D), after Peng et al., SyncTalk, arXiv 2311.17590"
    driver: ClassVar[DriverKind] = DriverKind.AUDIO
    canvas: ClassVar[Canvas] = Canvas.TEMPLATE
    config_type: ClassVar[type[FamilyConfig]] = SyncTalkConfig
    stages: ClassVar[tuple[Stage, ...]] = (
        Stage(name="syncnet", view="clips", description="Learns from many people which sound belongs to which mouth: judge and encoder."),
        Stage(
            name="unet",
            view="clips",
            description="Learns to paint one person's mouth as the sound wants it.",
            after="syncnet",
            one_person=True,
        ),
    )

    def features(self, config: SyncTalkConfig, stage: str) -> tuple[str, ...]:
        """The learned features that the U-Net hears through, where it has no encoder of its own."""
        learned = self.stage(stage).name == "unet" and config.audio.encoder != "ave"
        return (config.audio.encoder,) if learned else ()

    def networks(self, config: SyncTalkConfig, stage: str) -> Mapping[str, nn.Module]:
        """syncnet: the face's and the sound's encoder; unet: the U-Net, and the encoder that it hears through."""
        from models.synctalk.networks import AudioEncoder, SyncNet, UNet

        if self.stage(stage).name == "syncnet":
            return {"syncnet": SyncNet(config)}
        heard = {"audio_encoder (frozen)": AudioEncoder(config.audio.channels)} if config.audio.encoder == "ave" else {}
        return {"unet": UNet(config), **heard}

    def examples(self, config: SyncTalkConfig, stage: str) -> ExampleMaker:
        """syncnet: windows of a clip with their sound; unet: consecutive frames and what is heard around them."""
        from models.synctalk.examples import PaintExamples, SyncExamples

        if self.stage(stage).name == "syncnet":
            sync = config.sync
            return SyncExamples(geometry=config.geometry, frames=sync.frames, positives=sync.positives, apart=sync.apart)
        return PaintExamples(geometry=config.geometry, audio=config.audio, frames=config.sync.frames)

    def build(self, config: SyncTalkConfig, stage: str, context: BuildContext) -> TrainingModule:
        """See `Family.build`; unet needs `context.start_from`, and `context.face` unless it is resumed."""
        if self.stage(stage).name == "syncnet":
            from models.synctalk.judging import SyncTalkJudge

            return SyncTalkJudge(config, context)
        from models.synctalk.painting import SyncTalkPainter

        return SyncTalkPainter(config, context)

    def load(self, checkpoint: Path, device: torch.device) -> Any:
        """A `SyncTalkSynthesizer`."""
        from models.synctalk.synthesis import SyncTalkSynthesizer

        return SyncTalkSynthesizer.load(checkpoint, device)

    def evaluation_case(self, config: SyncTalkConfig, clip: Clip) -> EvaluationCase:
        """The clip's own frames are the template, with their lower faces hidden, and its sound drives: the truth is the clip.

        The looks come from the reference picture that the model took from its training frames, so that nothing of the clip's
        mouths is shown to it.

        Raises:
            ValueError: the clip has no sound, or no frame with a face.
        """
        from models.synctalk.geometry import face_squares, inner

        if clip.audio is None:
            raise ValueError(f"{clip.key} has no sound to drive with")
        frames = clip.read_frames(range(clip.num_frames))
        landmarks = np.where(clip.confidence[:, None, None] > 0, clip.landmarks, np.float32(np.nan))
        squares = face_squares(landmarks, config.geometry.smoothing)
        found = np.flatnonzero(np.isfinite(squares).all(axis=1))
        if not len(found):
            raise ValueError(f"{clip.key}: no frame shows a face")
        boxes = np.stack([inner(squares[found[np.abs(found - i).argmin()]], config.geometry) for i in range(clip.num_frames)])
        first = int(found[0])
        return EvaluationCase(
            key=clip.key,
            face=Face(
                images=frames[first : first + 1],
                landmarks=clip.landmarks[first : first + 1],
                template=Template(read=lambda indices: frames[list(indices)], landmarks=landmarks),
            ),
            driver=Driver(audio=clip.audio, features=clip.features),
            targets=frames,
            target_landmarks=clip.landmarks,
            painted=Squares(boxes=np.rint(boxes).astype(np.int64), size=config.geometry.core),
        )

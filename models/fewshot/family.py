"""The few-shot family as the rest of the project sees it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from models.family import BuildContext, Driver, DriverKind, EvaluationCase, ExampleMaker, Face, Family, FamilyConfig, Stage, TrainingModule
from models.fewshot.config import FewShotConfig
from models.views import Clip


class FewShot(Family):
    """Few-shot adversarial talking heads: learns from many people, then shows a new one from a few frames."""

    name: ClassVar[str] = "fewshot"
    title: ClassVar[str] = "Few-shot adversarial talking heads"
    paper: ClassVar[str] = "Zakharov et al., Few-Shot Adversarial Learning of Realistic Neural Talking Head Models, arXiv 1905.08233"
    driver: ClassVar[DriverKind] = DriverKind.LANDMARKS
    config_type: ClassVar[type[FamilyConfig]] = FewShotConfig
    stages: ClassVar[tuple[Stage, ...]] = (
        Stage(name="meta", view="keyframes", description="Learns to embed and to draw people from many videos."),
        Stage(
            name="finetune",
            view="keyframes",
            description="Makes a meta-trained model one person's own, from a few frames.",
            after="meta",
            in_pipeline=False,
        ),
    )

    def networks(self, config: FewShotConfig, stage: str) -> Mapping[str, nn.Module]:
        """E, G and D; the table W has a row per video of the dataset and is not counted."""
        from models.fewshot.networks import Discriminator, Embedder, Generator

        self.stage(stage)
        pooling = config.losses.resolved().pooling
        return {
            "embedder": Embedder(config.network, pooling),
            "generator": Generator(config.network),
            "discriminator": Discriminator(config.network, pooling),
        }

    def examples(self, config: FewShotConfig, stage: str) -> ExampleMaker:
        """meta: K frames and a target; finetune: one frame."""
        from models.fewshot.examples import MetaExamples
        from models.fewshot.finetuning import PersonExamples

        if self.stage(stage).name == "finetune":
            return PersonExamples(image_size=config.network.image_size, flip=config.data.flip)
        return MetaExamples(image_size=config.network.image_size, frames=config.data.frames, flip=config.data.flip)

    def build(self, config: FewShotConfig, stage: str, context: BuildContext) -> TrainingModule:
        """See `Family.build`; finetune needs `context.start_from`, and `context.face` unless it is resumed."""
        from models.fewshot.finetuning import FewShotFinetune
        from models.fewshot.training import FewShotMeta

        if self.stage(stage).name == "finetune":
            return FewShotFinetune(config, context)
        return FewShotMeta(config, context)

    def load(self, checkpoint: Path, device: torch.device) -> Any:
        """A `FewShotSynthesizer`."""
        from models.fewshot.synthesis import FewShotSynthesizer

        return FewShotSynthesizer.load(checkpoint, device)

    def evaluation_case(self, config: FewShotConfig, clip: Clip) -> EvaluationCase:
        """T frames spread over the clip's first part show the person; frames spread over the rest are to be made.

        Only frames in which the landmarker saw the face are used, where there are enough.

        Raises:
            ValueError: the clip has fewer than two frames.
        """
        from models.fewshot.raster import resize_image, scale_points

        size = config.network.image_size
        shown, wanted = split_clip(clip, config)
        frames = clip.read_frames([*shown, *wanted])
        resized = np.stack([resize_image(frame, size) for frame in frames])
        points = scale_points(clip.landmarks[[*shown, *wanted]], clip.size, size)
        count = len(shown)
        return EvaluationCase(
            key=clip.key,
            face=Face(images=resized[:count], landmarks=points[:count]),
            driver=Driver(landmarks=points[count:], size=size, audio=None),
            targets=resized[count:],
            target_landmarks=points[count:],
        )


def split_clip(clip: Clip, config: FewShotConfig) -> tuple[list[int], list[int]]:
    """Frame indices that show the person, and those that are to be made; never the same, both in order.

    Raises:
        ValueError: the clip has fewer than two frames.
    """
    if clip.num_frames < 2:
        raise ValueError(f"{clip.key} has {clip.num_frames} frame; one to show the person and one to make are needed")
    options = config.evaluation
    edge = min(max(1, round(clip.num_frames * options.first_part)), clip.num_frames - 1)
    seen = clip.confidence > 0

    def spread(start: int, stop: int, count: int) -> list[int]:
        candidates = np.arange(start, stop)
        if seen[start:stop].any():
            candidates = candidates[seen[start:stop]]
        picked = np.linspace(0, len(candidates) - 1, min(count, len(candidates))).round().astype(int)
        return [int(i) for i in candidates[picked]]

    return spread(0, edge, options.faces), spread(edge, clip.num_frames, options.frames)

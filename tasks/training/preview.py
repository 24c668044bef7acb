"""The preview video: a held-out clip as it is, beside what the networks make of it now, with its sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from models.family import Family, Synthesizer
from models.views import FPS, Clip, Image
from tasks.evaluation.drawing import Line, write_lines
from tasks.generation.provenance import ModelIdentity
from tasks.video.video_out import VideoWriter


def write_preview(path: Path, *, family: Family, config: Any, clip: Clip, synthesizer: Synthesizer, step: int, run_id: str | None) -> None:
    """Write truth | made as an mp4 that says that it is synthetic; it replaces `path` when it is whole.

    Args:
        config: of `family.config_type`.
        clip: the part of a held-out clip to show.
        step: for the label.
        run_id: the MLflow run, for the file's metadata.

    Raises:
        ValueError: the synthesizer makes other frames than the family's evaluation case has, in number, shape or type.
    """
    case = family.evaluation_case(config, clip)
    height, width = case.targets.shape[1:3]
    labels = np.concatenate([write_lines(width, [Line(text=text)]) for text in ("truth", f"step {step}")], axis=1)
    identity = ModelIdentity(
        family=family.name, uri=f"runs:/{run_id}" if run_id else "in training", version=f"step {step}", run_id=run_id or ""
    )
    with VideoWriter(
        path,
        width=_even(2 * width),
        height=_even(len(labels) + height),
        fps=FPS,
        audio=case.driver.audio,
        metadata=identity.metadata(),
    ) as writer:
        for index, (truth, made) in enumerate(zip(case.targets, synthesizer.synthesize(case.face, case.driver), strict=True)):
            if made.shape != truth.shape or made.dtype != np.uint8:
                raise ValueError(f"{clip.key}: preview frame {index} is {made.dtype} {made.shape}, the truth is uint8 {truth.shape}")
            writer.write(_padded(np.concatenate([labels, np.concatenate([truth, made], axis=1)])))


def _even(length: int) -> int:
    return length + length % 2


def _padded(image: Image) -> Image:
    """H.264 takes even sides only: the last row or column is repeated where one is odd."""
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        return np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return image

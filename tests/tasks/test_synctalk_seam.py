"""A foreign mouth in a real face shows no edge: the reference picture pasted into every frame of a real video."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.family import Driver, ping_pong
from models.synctalk.config import SyncTalkConfig
from models.synctalk.geometry import face_squares, inner
from models.synctalk.networks import SyncNet, UNet
from models.synctalk.painting import reference_of
from models.synctalk.synthesis import SyncTalkSynthesizer
from models.views import SAMPLES_PER_FRAME
from tasks.generation.template import prepare_template
from tasks.settings import LandmarkSettings
from tasks.video.landmarks import make_landmarker

FRAMES = 40


def steps(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Differences of neighbouring pixels in grey levels, of the pairs of which `where` names the first."""
    grey = image.astype(np.float64).mean(axis=-1)
    return np.concatenate([np.abs(np.diff(grey, axis=0))[where[:-1]], np.abs(np.diff(grey, axis=1))[where[:, :-1]]])


@pytest.mark.samples
@pytest.mark.slow
def test_no_edge_is_visible_where_the_painted_part_ends(samples_dir: Path) -> None:
    config = SyncTalkConfig.model_validate({"geometry": {"core": 160}, "network": {"channels": [4, 8, 8, 8, 8], "sync_channels": 4}})
    landmarker = make_landmarker(LandmarkSettings())
    video = samples_dir / "portrait_512_mpeg4_25fps.mp4"
    face = prepare_template([video], landmarker, references=8, size=512, margin=0.35).face
    assert face.template is not None
    model = SyncTalkSynthesizer(config, UNet(config), SyncNet(config), reference_of(face, config), torch.device("cpu"))
    silence = Driver(audio=np.zeros(FRAMES * SAMPLES_PER_FRAME, np.float32))
    squares = face_squares(face.template.landmarks, config.geometry.smoothing)
    rim_made, rim_true, inside = [], [], []
    for index, made in zip(islice(ping_pong(len(face.template)), FRAMES), model.baseline(face, silence), strict=True):
        truth = face.template.read([index])[0]
        left, top, side = inner(squares[index], config.geometry)
        painted = (made != truth).any(axis=-1)
        assert painted.any()
        width = int(config.geometry.feather * side)
        soft = painted & ~cv2.erode(painted.astype(np.uint8), np.ones((2 * width + 1, 2 * width + 1), np.uint8)).astype(bool)
        square = np.zeros_like(painted)
        square[max(0, int(top)) : int(top + side), max(0, int(left)) : int(left + side)] = True
        rim_made.append(steps(made, soft))
        rim_true.append(steps(truth, soft))
        inside.append(steps(truth, square))
    seam, before, unedited = (float(np.concatenate(values).mean()) for values in (rim_made, rim_true, inside))
    assert seam <= unedited
    assert seam <= 1.1 * before

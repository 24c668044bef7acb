"""Landmarks by face-alignment: 2D FAN with S3FD or BlazeFace, batched, for GPUs (S3FD does 2 pictures/s on a core)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version as package_version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from models.views import Image, Points
from tasks.video.landmarks import Box, FaceFrame, box_side, comparable_faces, overlap

if TYPE_CHECKING:
    import torch

Detector = Literal["sfd", "blazeface"]

FAN_FILE = "2DFAN4-11f355bf06.pth.tar"
DETECTOR_FILES: dict[Detector, tuple[str, ...]] = {"sfd": ("s3fd-619a316812.pth",), "blazeface": ("blazeface.pth", "anchors.npy")}

BATCH = 16
"""Frames per forward pass."""

DETECT_SHORT_SIDE = 360
"""Faces are looked for in pictures of at most this short side."""

SAME_FACE = 0.2


@contextmanager
def _interpreted() -> Iterator[None]:
    """Import face-alignment without its numba functions compiled: that costs ~15 s per process and the few calls need none of it.

    Only for the import; librosa's functions need their compilation.
    """
    import numba

    config: Any = numba.config  # its attributes are made at run time
    before, config.DISABLE_JIT = config.DISABLE_JIT, True
    try:
        import face_alignment

        del face_alignment
        yield
    finally:
        config.DISABLE_JIT = before


class FaceAlignmentLandmarker:
    """See `tasks.video.landmarks.Landmarker`.

    Args:
        detector: sfd or blazeface.
        device: auto, cpu or cuda.
        init: random builds the real networks without weights, for tests.

    Raises:
        FileNotFoundError: weights are missing; names the files, their place and the setting that does without.
    """

    def __init__(self, *, detector: Detector = "sfd", device: str = "auto", init: Literal["pretrained", "random"] = "pretrained") -> None:
        if init == "pretrained":
            _require_weights(detector)
        self._wanted_device, self._detector_name, self._init = device, detector, init

    @cached_property
    def _device(self) -> str:
        import torch

        return ("cuda" if torch.cuda.is_available() else "cpu") if self._wanted_device == "auto" else self._wanted_device

    @cached_property
    def _networks(self) -> tuple[torch.nn.Module, Any]:
        """FAN and the face detector, loaded on first use."""
        import torch

        with _interpreted():
            if self._init == "random":
                return self._random_networks()
            folder = checkpoint_folder()
            fan = self._load_fan(torch.load(folder / FAN_FILE, map_location="cpu", weights_only=True))
            return fan, self._load_detector([folder / name for name in DETECTOR_FILES[self._detector_name]])

    @property
    def version(self) -> str:
        return f"face-alignment {package_version('face-alignment')} 2DFAN4 {self._detector_name} {self._init}"

    def track(self, frames: Iterable[Image]) -> Iterator[FaceFrame]:
        """Follow the largest face; reads ahead by one batch. See `tasks.video.landmarks.Landmarker.track`."""
        iterator = iter(frames)
        last: Box | None = None
        while batch := list(islice(iterator, BATCH)):
            chosen: list[tuple[Box, float] | None] = []
            counts: list[int] = []
            for boxes in self._detect(batch):
                pick = _follow(boxes, last)
                chosen.append(pick)
                counts.append(comparable_faces(box_side(box) for box, _ in boxes))
                last = pick[0] if pick else last if boxes else None
            with_face = [index for index, pick in enumerate(chosen) if pick is not None]
            points = self._align([batch[index] for index in with_face], [pick[0] for pick in chosen if pick is not None])
            found = dict(zip(with_face, points, strict=True))
            for index, pick in enumerate(chosen):
                if pick is None:
                    yield FaceFrame(points=None, confidence=0.0, faces=counts[index])
                else:
                    yield FaceFrame(points=found[index], confidence=min(1.0, max(1e-3, pick[1])), faces=counts[index])

    def detect(self, image: Image) -> FaceFrame:
        """The largest face of a single picture."""
        return next(self.track([image]))

    def _load_fan(self, weights: Mapping[str, torch.Tensor]) -> torch.nn.Module:
        from face_alignment.models import FAN

        fan = FAN(4)
        fan.load_state_dict(weights)
        return fan.to(self._device).eval()

    def _load_detector(self, paths: Sequence[Path]) -> Any:
        if self._detector_name == "sfd":
            from face_alignment.detection.sfd.sfd_detector import SFDDetector

            return SFDDetector(self._device, path_to_detector=str(paths[0]))
        from face_alignment.detection.blazeface.blazeface_detector import BlazeFaceDetector

        return BlazeFaceDetector(self._device, path_to_detector=str(paths[0]), path_to_anchor=str(paths[1]))

    def _random_networks(self) -> tuple[torch.nn.Module, Any]:
        """The real networks with the weights that they are born with, the same in every process."""
        import torch
        from face_alignment.detection.blazeface.net_blazeface import BlazeFace
        from face_alignment.detection.sfd.net_s3fd import s3fd
        from face_alignment.models import FAN

        with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            fan = self._load_fan(FAN(4).state_dict())
            network = s3fd() if self._detector_name == "sfd" else BlazeFace(back_model=False)
            states = network.state_dict()
            if self._detector_name == "blazeface":
                # Born weights give boxes of negative size, on which the library's suppression never ends: make them a quarter as wide.
                for name in ("regressor_8", "regressor_16"):
                    states[f"{name}.weight"] *= 0.01
                    states[f"{name}.bias"].zero_().view(-1, 16)[:, 2:4] = 32.0
            weights, anchors = Path(folder, "detector.pth"), Path(folder, "anchors.npy")
            torch.save(states, weights)
            np.save(anchors, _blazeface_anchors())
            return fan, self._load_detector([weights, anchors])

    def _detect(self, batch: Sequence[Image]) -> list[list[tuple[Box, float]]]:
        """Boxes and scores of every picture, in its own pixels."""
        import cv2
        import torch

        height, width = batch[0].shape[:2]
        factor = min(1.0, DETECT_SHORT_SIDE / min(height, width))
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        small = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) if factor < 1 else image for image in batch]
        tensor = torch.from_numpy(np.stack(small).transpose(0, 3, 1, 2).copy())
        results: list[list[tuple[Box, float]]] = []
        for boxes in self._networks[1].detect_from_batch(tensor):
            rows = np.asarray(boxes, np.float64).reshape(-1, 5)
            rows = rows[np.isfinite(rows).all(axis=1) & (rows[:, 2] > rows[:, 0]) & (rows[:, 3] > rows[:, 1])]
            scaled = rows[:, :4] * ([width / size[0], height / size[1]] * 2)
            results.append([((x0, y0, x1, y1), float(score)) for (x0, y0, x1, y1), score in zip(scaled.tolist(), rows[:, 4], strict=True)])
        return results + [[] for _ in range(len(batch) - len(results))]

    def _align(self, images: Sequence[Image], boxes: Sequence[Box]) -> list[Points]:
        """Landmarks inside these boxes: the library's own crop and heatmap reading, batched over frames."""
        import torch
        from face_alignment.utils import crop, flip, get_preds_fromhm

        if not images:
            return []
        centres, scales = [], []
        for x0, y0, x1, y1 in boxes:
            # The library's reference frame of a face box: its centre a little higher, 195 px of box to 200 px of scale.
            centres.append(np.array([(x0 + x1) / 2, (y0 + y1) / 2 - 0.12 * (y1 - y0)]))
            scales.append((x1 - x0 + y1 - y0) / self._networks[1].reference_scale)
        crops = [crop(image, centre, scale) for image, centre, scale in zip(images, centres, scales, strict=True)]
        inputs = torch.from_numpy(np.stack(crops).transpose(0, 3, 1, 2).astype(np.float32) / 255.0).to(self._device)
        with torch.no_grad():
            heatmaps = _last(self._networks[0](inputs)) + flip(_last(self._networks[0](flip(inputs))), is_label=True)
        maps = heatmaps.float().cpu().numpy()
        points = [get_preds_fromhm(maps[i : i + 1], centres[i], scales[i])[1] for i in range(len(images))]
        return [np.asarray(found, np.float32).reshape(68, 2) for found in points]


def _blazeface_anchors() -> npt.NDArray[np.float32]:
    """Centres of a 16 x 16 grid twice and an 8 x 8 grid six times, of size 1: float32 [896, 4]."""
    rows = []
    for cells, times in ((16, 2), (8, 6)):
        centres = (np.arange(cells) + 0.5) / cells
        ys, xs = np.meshgrid(centres, centres, indexing="ij")
        grid = np.stack([xs.ravel(), ys.ravel()], axis=1).repeat(times, axis=0)
        rows.append(np.concatenate([grid, np.ones_like(grid)], axis=1))
    return np.concatenate(rows).astype(np.float32)


def checkpoint_folder() -> Path:
    """Where torch.hub and face-alignment keep their files: $TORCH_HOME/hub/checkpoints."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def _require_weights(detector: Detector) -> None:
    folder = checkpoint_folder()
    missing = [name for name in (FAN_FILE, *DETECTOR_FILES[detector]) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"face-alignment needs {', '.join(missing)} in {folder} (python -m flows weights fetch, or copy the files there); "
            "--set stored.landmarks.backend=mediapipe works without"
        )


def _follow(boxes: Sequence[tuple[Box, float]], last: Box | None) -> tuple[Box, float] | None:
    """The face that continues the track, else the largest."""
    if not boxes:
        return None
    if last is not None:
        nearest = max(boxes, key=lambda item: overlap(item[0], last))
        if overlap(nearest[0], last) >= SAME_FACE:
            return nearest
    return max(boxes, key=lambda item: box_side(item[0]))


def _last(output: Any) -> Any:
    """FAN answers with one heatmap per stage, or with the last one alone."""
    return output[-1] if isinstance(output, list | tuple) else output

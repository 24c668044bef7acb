"""The family interface: everything generic (training loop, registry, evaluation, command line) is written against it.

A family is a package `models/<name>/` that defines one `Family` and is registered by one line in
`models/registry.py`. Read this file first; a reader who knows one family then knows all.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
import yaml
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from models.views import Clip, Image, Keyframes, Points
from models.weights import WeightsStore

View = Literal["keyframes", "clips"]
Batch = Mapping[str, Tensor]
Example = dict[str, Tensor]
ExampleMaker = Callable[[Any, np.random.Generator], Example]
"""Turns one view sample (`Keyframes` or `Clip`) into one training example; a pure function of both arguments."""


class DriverKind(enum.StrEnum):
    """What moves the face of a family."""

    LANDMARKS = "landmarks"
    AUDIO = "audio"


class Canvas(enum.StrEnum):
    """What the frames are that a family makes."""

    CROP = "crop"
    """Square crops of the face, drawn whole."""
    TEMPLATE = "template"
    """The frames of a template (a video, or one picture, of the person), of which a part is painted anew."""


class FamilyConfig(BaseModel):
    """Base of every family's settings. Unknown names are errors; a config never changes after it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A file of settings over one config class: what `demo`, `default` and `paper` differ in."""

    config: Mapping[str, Any]
    """Laid over the defaults of the family's `config_type`."""
    train: Mapping[str, Mapping[str, Any]]
    """By stage, laid over the defaults of `tasks.settings.TrainSettings`."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training stage of a family."""

    name: str
    view: View
    description: str
    features: tuple[str, ...] = ()
    """Names of the learned features that this stage reads beside the view."""
    after: str | None = None
    """The stage whose result this one starts from."""
    in_pipeline: bool = True
    """Whether `flows pipeline` runs it (a stage for one new person is run by hand)."""
    one_person: bool = False
    """Whether it learns one person: it reads that person's samples only, and the person's own split (`PersonSettings`) holds out."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """What a family of `Canvas.TEMPLATE` paints on; frames are read when their turn comes, so a long video needs no memory."""

    read: Callable[[Sequence[int]], Image]
    """Frames of these indices, in this order: uint8 [n, H, W, 3], RGB. Ask for a few neighbouring ones at a time."""
    landmarks: Points
    """float32 [N, 68, 2], pixels of the frames; rows without a face are NaN."""

    def __len__(self) -> int:
        return len(self.landmarks)


def ping_pong(length: int) -> Iterator[int]:
    """Frames of a template in the order in which they are shown: 0, 1, ..., last, last - 1, ..., 0, 1, ... without an end."""
    while True:
        yield from range(max(1, length - 1))
        yield from range(length - 1, 0, -1)


@dataclass(frozen=True, kw_only=True)
class Face:
    """Pictures of the person to show."""

    images: Image
    """uint8 [T, H, W, 3], RGB square face crops of one size."""
    landmarks: Points
    """float32 [T, 68, 2], pixels of `images`."""
    template: Template | None = None
    """For families of `Canvas.TEMPLATE`; None paints on `images`."""


@dataclass(frozen=True, kw_only=True)
class Driver:
    """What drives the synthesis; a family reads the part that its `driver` names."""

    landmarks: Points | None = None
    """float32 [F, 68, 2], pixels of a square crop of side `size`."""
    size: int | None = None
    audio: npt.NDArray[np.float32] | None = None
    """float32 [S], 16 kHz mono, -1..1."""
    features: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Learned audio features by name, one row per frame."""


@dataclass(frozen=True, kw_only=True)
class Squares:
    """The part of each frame that a model paints: what pixel metrics look at, all cut to one size."""

    boxes: npt.NDArray[np.int64]
    """int64 [F, 3]: first column, first row and side of a square, in pixels of the frame; may reach beyond it."""
    size: int
    """Side in pixels to which they are cut."""


@dataclass(frozen=True, kw_only=True)
class EvaluationCase:
    """One held-out clip turned into a task: show `face` moved by `driver`; `targets` is the truth."""

    key: str
    face: Face
    driver: Driver
    targets: Image
    """uint8 [F, H, W, 3], RGB, frame by frame what the synthesis should show."""
    target_landmarks: Points
    """float32 [F, 68, 2], pixels of `targets`."""
    painted: Squares | None = None
    """The part that is painted; None where it is the whole frame."""


class TrainingModule(nn.Module, ABC):
    """One stage's networks, losses and optimisers, without any framework.

    `training_step` runs forward, backward and the optimisers itself, because an adversarial step has
    several of each. All randomness inside a step comes from torch's global generator, which the loop
    seeds from (seed, step, rank) before every step; so a resumed run repeats the same step.
    """

    sync_gradients: Callable[[Iterable[nn.Parameter]], None]
    """Averages `.grad` over workers; call it after `backward()` and before an optimiser's step."""

    def __init__(self) -> None:
        super().__init__()
        self.sync_gradients = lambda parameters: None

    @abstractmethod
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """The optimisers by name, built once, after every parameter exists."""

    @abstractmethod
    def training_step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """Train on one batch (tensors already on this module's device); return detached scalars to log."""

    @abstractmethod
    @torch.no_grad()
    def validation_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return detached scalars of one held-out batch; lower `loss` is better."""

    @abstractmethod
    @torch.no_grad()
    def preview(self, batch: Batch) -> Image:
        """Draw what a person wants to see of this batch: one labelled grid, uint8 [H, W, 3], RGB."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write what inference needs (safetensors and config.json) into the empty `folder`."""

    def synthesizer(self) -> Synthesizer | None:
        """The networks as they are now, ready to make a preview video; None where a stage makes no frames."""
        return None

    def training_state(self) -> dict[str, Any]:
        """Everything a bit-exact resume needs, in types that `torch.load(weights_only=True)` reads."""
        return {
            "module": self.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers().items()},
        }

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of `training_state`; raises RuntimeError where the shapes belong to another configuration."""
        self.load_state_dict(state["module"])
        for name, optimizer in self.optimizers().items():
            optimizer.load_state_dict(state["optimizers"][name])


class Synthesizer(ABC):
    """A trained model that makes frames."""

    size: int
    """Side of the frames that it makes (`Canvas.CROP`), or of the square that it paints (`Canvas.TEMPLATE`), in pixels."""

    @abstractmethod
    def synthesize(self, face: Face, driver: Driver, *, seed: int = 0) -> Iterator[Image]:
        """Yield frames at 25 fps as they are made; memory does not grow with length.

        uint8 RGB: [size, size, 3], or as large as the template's frames where the family paints on a template.
        """

    @abstractmethod
    def baseline(self, face: Face, driver: Driver) -> Iterator[Image]:
        """Yield what a method without any learning would show (spec/evaluation.md): the bar to beat."""

    def lip_sync(self, frames: Image, landmarks: Points, audio: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | None:
        """How well the mouth fits the sound at every offset, judged by a network that was trained with the model.

        Args:
            frames: uint8 [F, H, W, 3], RGB.
            landmarks: float32 [F, 68, 2], pixels of `frames`.
            audio: float32 [640 * F], 16 kHz mono.

        Returns:
            float32 [W, 31], higher is better: one row per window of the video; column j holds the sound j - 15 frames
            later, NaN where that lies outside of the clip. None where the model has no such network.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class BuildContext:
    """What a family may use to build a stage."""

    device: torch.device
    weights: WeightsStore
    """Resolves pretrained files; remembers which were used, for the run's tags."""
    video_keys: Sequence[str] = ()
    """Persistent keys of the training videos, sorted (rows of per-video tables)."""
    start_from: Path | None = None
    """Folder that an earlier stage exported."""
    face: Face | None = None
    """Training pictures of the person where all training samples show one; None otherwise, or when resumed from a checkpoint."""


class Family(ABC):
    """A model family: its settings, stages, networks, training and synthesis."""

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    driver: ClassVar[DriverKind]
    canvas: ClassVar[Canvas] = Canvas.CROP
    config_type: ClassVar[type[FamilyConfig]]
    stages: ClassVar[tuple[Stage, ...]]

    def profile(self, name: str) -> Profile:
        """Read `models/<family>/profiles/<name>.yaml`.

        Raises:
            FileNotFoundError: naming the profiles that exist.
        """
        folder = Path(__file__).parent / self.name / "profiles"
        path = folder / f"{name}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
            raise FileNotFoundError(f"family {self.name} has no profile {name!r}; there are: {known}")
        content = yaml.safe_load(path.read_text()) or {}
        return Profile(config=content.get("config", {}), train=content.get("train", {}))

    def stage(self, name: str) -> Stage:
        """The stage of this name.

        Raises:
            ValueError: naming the stages that exist.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ValueError(f"family {self.name} has no stage {name!r}; there are: {', '.join(s.name for s in self.stages)}")

    def features(self, config: Any, stage: str) -> tuple[str, ...]:
        """Names of the learned features that a stage reads beside its view, and synthesis beside the sound."""
        return self.stage(stage).features

    @abstractmethod
    def networks(self, config: Any, stage: str) -> Mapping[str, nn.Module]:
        """The stage's networks by name, built on the default device (use `torch.device("meta")` to count parameters)."""

    @abstractmethod
    def examples(self, config: Any, stage: str) -> ExampleMaker:
        """The function that turns a sample of the stage's view into a training example (picklable)."""

    @abstractmethod
    def build(self, config: Any, stage: str, context: BuildContext) -> TrainingModule:
        """The stage ready to train, on `context.device`."""

    @abstractmethod
    def load(self, checkpoint: Path, device: torch.device) -> Synthesizer:
        """A synthesizer from a folder that `TrainingModule.export` wrote."""

    @abstractmethod
    def evaluation_case(self, config: Any, clip: Clip) -> EvaluationCase:
        """Turn a held-out clip into (face, driver, truth) by the family's protocol; a pure function."""


__all__ = [
    "Batch",
    "BuildContext",
    "Canvas",
    "Clip",
    "Driver",
    "DriverKind",
    "EvaluationCase",
    "Example",
    "ExampleMaker",
    "Face",
    "Family",
    "FamilyConfig",
    "Keyframes",
    "Squares",
    "Stage",
    "Synthesizer",
    "Template",
    "TrainingModule",
    "View",
    "ping_pong",
]

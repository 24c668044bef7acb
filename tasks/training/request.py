"""What a training run is asked to do, what it says while it works, and what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from tasks.settings import FilterSettings, Settings, SplitSettings, TrainSettings
from tasks.training.checkpoints import write_json

OUTCOME = "outcome.json"
FREE_TO_CHANGE = frozenset(
    {
        "steps",
        "loader_workers",
        "device",
        "threads",
        "log_every",
        "validate_every",
        "validate_batches",
        "preview_every",
        "preview_frames",
        "export",
        "checkpoint_every",
        "max_failures",
    }
)
"""Train settings that a resumed run may change: they do not decide what a step computes."""


class TrainingError(RuntimeError):
    """Training cannot start or go on; the message says why and the way out. Repeating the same run would fail again."""


class WeightsSettings(Settings):
    """Where pretrained files lie; becomes a `models.weights.WeightsStore` on every worker."""

    root: Path = Field(Path("workspace/weights"), description="Local folder of pretrained files.")
    overrides: dict[str, Path] = Field({}, description="Explicit paths by name.")
    offline: bool = Field(False, description="Never download.")


class TrainRequest(BaseModel):
    """One stage of one family, completely: the same request resumes the same run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str
    stage: str
    config: dict[str, Any] = Field(description="The family's resolved configuration.")
    train: TrainSettings = TrainSettings()
    dataset: str = Field(description="Local path or fsspec URL of a dataset.")
    filters: FilterSettings = FilterSettings()
    split: SplitSettings = SplitSettings()
    folder: Path = Field(description="The run folder; with several machines, on storage that all of them see.")
    start_from: Path | None = Field(None, description="Folder that an earlier stage exported.")
    weights: WeightsSettings = WeightsSettings()
    profile: str = "default"
    code: str = Field("unknown", description="Version of the code, see tasks.training.tracking.code_version.")
    run_id: str | None = Field(None, description="MLflow run; null trains without tracking.")

    def identity(self, fingerprint: str) -> dict[str, Any]:
        """What a checkpoint belongs to; a resumed run must agree in all of it."""
        return {
            "family": self.family,
            "stage": self.stage,
            "config": self.config,
            "train": self.train.model_dump(mode="json", exclude=set(FREE_TO_CHANGE)),
            "dataset": fingerprint,
            "filters": self.filters.model_dump(mode="json"),
            "split": self.split.model_dump(mode="json"),
        }


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """What is about to happen, shown before it does."""

    device: str
    workers: int
    first_step: int
    """0, or the step of the checkpoint that the run goes on from."""
    steps: int
    batch_size: int
    """Over all workers."""
    samples: int
    held_out: int
    epochs: float
    """Passes over the training samples that the remaining steps make."""
    parameters: Mapping[str, int]
    """Parameters by network."""
    trainable: int
    checkpoint_bytes: int
    """About one checkpoint."""


@dataclass(frozen=True, kw_only=True)
class TrainProgress:
    """One sign of life."""

    phase: Literal["starting", "training", "saving", "done"]
    step: int
    steps: int
    plan: TrainPlan | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The newest point of every curve."""
    samples_per_second: float | None = None
    data_wait_share: float | None = None
    """Share of the time in which the step waited for its batch, 0..1."""
    seconds_left: float | None = None

    def to_json(self) -> str:
        """One line, for `from_json` in another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`."""
        content = json.loads(text)
        plan = content.pop("plan")
        return cls(plan=None if plan is None else TrainPlan(**plan), **content)


ShowProgress = Callable[[TrainProgress], None]


class TrainOutcome(BaseModel):
    """What a run came to; also `outcome.json` in the run folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: Literal["finished", "interrupted", "failed"]
    step: int
    folder: Path
    export: Path | None = Field(description="What inference needs; null unless finished.")
    checkpoint: Path | None
    metrics: dict[str, float] = Field(description="The last point of every curve.")
    weights: dict[str, str] = Field({}, description="Tags: pretrained, random or off for every frozen network.")
    samples_per_second: float | None = None
    data_wait_share: float | None = None
    seconds: float = Field(0.0, description="Wall time of this call's loop.")
    dataset_fingerprint: str = ""
    run_id: str | None = None
    unsent: int = Field(0, description="Bytes of the record that the tracking server has not got yet.")
    exported: Literal["last", "best"] = "last"
    error: str | None = None

    def covers(self, settings: TrainSettings) -> bool:
        """Whether nothing is left to do for these settings."""
        return self.status == "finished" and self.step >= settings.steps and self.exported == settings.export

    def write(self) -> None:
        """Store it in the run folder."""
        write_json(self.folder / OUTCOME, self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The outcome of a run folder, None where there is none yet."""
        path = folder / OUTCOME
        return cls.model_validate_json(path.read_text()) if path.is_file() else None

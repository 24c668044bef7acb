"""What a training run shows and leaves behind: progress, preview pictures, and the exported model."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models.family import TrainingModule
from models.views import Image
from tasks.data.storage import Storage
from tasks.training.checkpoints import write_json
from tasks.training.curves import draw_curves
from tasks.training.meter import Meter
from tasks.training.request import ShowProgress, TrainingError, TrainOutcome, TrainPlan, TrainProgress, TrainRequest
from tasks.training.spool import Spool
from tasks.training.stage_data import StageData

RUN_RECORD = "run.json"
"""In every export: which run, configuration and data made it."""


class Record:
    """Worker 0's record of the run: lines in the spool, and progress for whoever watches.

    Progress is said at the points of the curves and at most twice a second between them; every message carries the
    plan and the newest value of every curve, so that a watcher may miss some.
    """

    def __init__(self, folder: Path, steps: int, progress: ShowProgress | None) -> None:
        self._folder = folder
        self._spool = Spool(folder)
        self._steps = steps
        self._progress = progress
        self._values: dict[str, float] = {}
        self._plan: TrainPlan | None = None
        self._said = 0.0

    def start(self, plan: TrainPlan, *, tags: Mapping[str, str]) -> None:
        """Say what is about to happen."""
        self._spool.tags(tags)
        self._plan = plan
        self._say(TrainProgress(phase="starting", step=plan.first_step, steps=self._steps, plan=plan))

    def step(self, step: int, meter: Meter) -> None:
        """Say that a step is done, unless something was said just now."""
        if time.monotonic() - self._said >= 0.5:
            self._say_training(step, meter)

    def metrics(self, values: Mapping[str, float], step: int, meter: Meter) -> None:
        """A new point of some curves."""
        self._spool.metrics(values, step)
        self._values.update(values)
        self._say_training(step, meter)

    def picture(self, picture: Image, step: int) -> None:
        """A preview."""
        self._spool.artifact(write_picture(self._folder / "previews" / f"step-{step:08d}.png", picture), "previews")

    def video(self, step: int, write: Callable[[Path], object]) -> None:
        """A preview video, which `write` puts where it is told."""
        path = self._folder / "previews" / f"step-{step:08d}.mp4"
        write(path)
        self._spool.artifact(path, "previews")

    def saving(self, step: int) -> None:
        """Say that a checkpoint is being written."""
        self._say(TrainProgress(phase="saving", step=step, steps=self._steps, plan=self._plan, metrics=dict(self._values)))

    def finish(self, outcome: TrainOutcome) -> None:
        """Draw the curves, store the outcome, close the record."""
        if curves := draw_curves(self._folder):
            self._spool.artifact(curves, "curves")
        self._spool.close()
        outcome.write()
        self._say(TrainProgress(phase="done", step=outcome.step, steps=self._steps, plan=self._plan, metrics=outcome.metrics))

    def _say_training(self, step: int, meter: Meter) -> None:
        speed = self._values.get("speed/step_s")
        self._say(
            TrainProgress(
                phase="training",
                step=step,
                steps=self._steps,
                plan=self._plan,
                metrics=dict(self._values),
                samples_per_second=meter.samples_per_second,
                data_wait_share=meter.data_wait_share,
                seconds_left=None if speed is None else speed * (self._steps - step),
            )
        )

    def _say(self, message: TrainProgress) -> None:
        if self._progress is not None:
            self._progress(message)
        self._said = time.monotonic()


class Silence(Record):
    """What the other workers record: nothing."""

    def __init__(self) -> None:
        """Open nothing."""

    def start(self, plan: TrainPlan, *, tags: Mapping[str, str]) -> None:
        """Nothing."""

    def step(self, step: int, meter: Meter) -> None:
        """Nothing."""

    def metrics(self, values: Mapping[str, float], step: int, meter: Meter) -> None:
        """Nothing."""

    def picture(self, picture: Image, step: int) -> None:
        """Nothing."""

    def video(self, step: int, write: Callable[[Path], object]) -> None:
        """Nothing."""

    def saving(self, step: int) -> None:
        """Nothing."""

    def finish(self, outcome: TrainOutcome) -> None:
        """Nothing."""


def write_picture(path: Path, picture: Image) -> Path:
    """Write uint8 [H, W, 3] RGB as PNG; returns `path`."""
    import cv2

    done, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise TrainingError(f"the preview of shape {picture.shape} cannot be written as PNG")
    Storage.at(path.parent).write(path.name, encoded.tobytes())
    return path


def write_export(
    folder: Path, module: TrainingModule, request: TrainRequest, source: StageData, *, tags: Mapping[str, str], step: int
) -> None:
    """The family's files, and run.json which says where they come from; the folder is whole or not there.

    Args:
        step: steps that the exported networks have done.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    for left in (temporary, folder):
        if left.exists():
            shutil.rmtree(left)
    temporary.mkdir(parents=True)
    module.eval()
    module.export(temporary)
    write_json(
        temporary / RUN_RECORD,
        {
            **request.model_dump(
                mode="json", include={"family", "stage", "config", "train", "filters", "split", "profile", "code", "run_id"}
            ),
            "dataset": {
                "url": request.dataset,
                "fingerprint": source.fingerprint,
                "videos": len(source.video_keys),
                "settings": dict(source.stored),
                "features": _features(request),
            },
            "step": step,
            "weights": dict(tags),
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
    temporary.rename(folder)


def _features(request: TrainRequest) -> dict[str, dict[str, Any]]:
    """By name, which network made the learned features that the stage reads: what the model is to hear must be made by the same."""
    from models.registry import families
    from tasks.data.feature_index import read_feature_info
    from tasks.data.storage import Storage

    family = families().get(request.family)
    names = () if family is None else family.features(family.config_type.model_validate(request.config), request.stage)
    found = {name: read_feature_info(Storage.at(request.dataset), name) for name in names}
    return {name: {part: info[part] for part in ("version", "settings")} for name, info in found.items() if info is not None}

"""MLflow for training runs, at arm's length: the run is opened before the work, and the record is sent beside it.

A training run writes its record into its folder (`tasks.training.spool`) and never waits for a server. `RunLogger` sends new
lines from a background thread, in batches; when the server is away it tries again, and what has not arrived by the
end stays in the folder for `flush_spool` or the next run of the same folder. Sending a line twice changes nothing
(equal rows of MLflow's metrics table are one row), so nothing is lost and nothing is there twice.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field

from tasks.data.storage import Storage, is_url
from tasks.settings import Settings
from tasks.training.checkpoints import flatten
from tasks.training.spool import FILE, Line, read_lines

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

SENT = "run.sent"
"""In a run folder: how many bytes of the record the server has."""

BATCH = 1000
"""MLflow takes at most 1000 metrics in one call."""

PARAMETERS = 100
"""MLflow takes at most 100 parameters or tags in one call."""

os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


class TrackingError(RuntimeError):
    """The tracking server does not answer; the message names it and the way out."""


class TrackingSettings(Settings):
    """Where runs and registered models are kept."""

    uri: str = Field("sqlite:///workspace/mlflow.db", description="MLflow tracking URI: sqlite, postgresql, or http(s) of a server.")
    artifacts: str | None = Field(None, description="Where files of new experiments go; null leaves it to the server.")

    @classmethod
    def embedded(cls, workspace: Path) -> Self:
        """SQLite and a folder inside the workspace: no server needed."""
        root = workspace.absolute()
        return cls(uri=f"sqlite:///{root / 'mlflow.db'}", artifacts=(root / "mlflow").as_uri())

    def client(self) -> MlflowClient:
        """A client; makes the folder of an SQLite file. Never waits for minutes: retries are this module's."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient

        if self.uri.startswith("sqlite:///"):
            Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            logging.getLogger("alembic").setLevel(logging.WARNING)
            logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        return MlflowClient(self.uri, self.uri)


def experiment_name(family: str) -> str:
    """The experiment, and the registered model, of a family."""
    return f"talking-heads-{family}"


def open_run(
    settings: TrackingSettings,
    *,
    family: str,
    name: str,
    parameters: Mapping[str, Any],
    tags: Mapping[str, str],
    dataset: tuple[str, str, str] | None = None,
    run_id: str | None = None,
) -> str:
    """Make a run, or go on with one that was interrupted, and log what is known before the work.

    Args:
        parameters: nested; logged with dotted names.
        dataset: (name, URL, fingerprint), logged as an MLflow dataset whose digest is the fingerprint.
        run_id: a run to go on with; its parameters stay, since MLflow never changes one.

    Returns:
        The run's id.

    Raises:
        TrackingError: the server does not answer, or there is no run of that id.
    """
    from mlflow.entities import Param, RunTag

    client = settings.client()
    with readable(settings):
        if run_id is None:
            run_id = client.create_run(_experiment(client, settings, experiment_name(family)), run_name=name).info.run_id
        else:
            client.update_run(run_id, status="RUNNING")
        known = client.get_run(run_id).data.params
        rows = [Param(key, _short(value)) for key, value in flatten(parameters).items() if key not in known]
        for start in range(0, len(rows), PARAMETERS):
            client.log_batch(run_id, params=rows[start : start + PARAMETERS])
        every = {**tags, "dataset.fingerprint": dataset[2]} if dataset is not None else tags
        client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in every.items()])
        if dataset is not None:
            _log_dataset(client, run_id, *dataset)
    return run_id


def finish_run(settings: TrackingSettings, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    """Set the run's end; `open_run` with its id opens it again.

    Raises:
        TrackingError: the server does not answer.
    """
    with readable(settings):
        settings.client().set_terminated(run_id, status)


def log_files(settings: TrackingSettings, run_id: str, files: Sequence[Path], folder: str) -> None:
    """Put finished files (or whole folders) under `folder` of the run's artifacts.

    Raises:
        TrackingError: the server does not answer.
    """
    client = settings.client()
    with readable(settings):
        for file in files:
            if file.is_dir():
                client.log_artifacts(run_id, str(file), f"{folder}/{file.name}")
            else:
                client.log_artifact(run_id, str(file), folder)


def log_metrics(settings: TrackingSettings, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
    """Log a few final numbers, for example of an evaluation.

    Raises:
        TrackingError: the server does not answer.
    """
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    with readable(settings):
        settings.client().log_batch(run_id, metrics=[Metric(name, float(value), now, step) for name, value in metrics.items()])


class RunLogger:
    """Sends a run folder's record to MLflow while it grows; a context manager around the training.

    Args:
        folder: the run folder.
        every: seconds between two looks at the record.
        patience: seconds that leaving the context waits for a server that is away.
    """

    def __init__(self, settings: TrackingSettings, run_id: str, folder: Path, *, every: float = 2.0, patience: float = 20.0) -> None:
        self._sender = _Sender(settings, run_id, folder)
        self._every = every
        self._patience = patience
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="run-logger", daemon=True)

    @property
    def unsent(self) -> int:
        """Bytes of the record that the server has not got."""
        return self._sender.unsent()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._leaving.set()
        # A call to a silent server ends by its own time-out; leave it to the daemon thread rather than wait longer.
        self._thread.join(self._patience + 5)
        if self.unsent:
            logger.warning(
                "MLflow has not got the last %d bytes of %s; the next run of this folder sends them", self.unsent, self._sender.path
            )

    def _run(self) -> None:
        while not self._leaving.wait(self._every):
            self._sender.send()
        end = time.monotonic() + self._patience
        while not self._sender.send() and time.monotonic() < end:
            time.sleep(min(1.0, self._every))


def flush_spool(settings: TrackingSettings, run_id: str, folder: Path, *, patience: float = 20.0) -> int:
    """Send what an earlier run of this folder could not; returns the bytes that are still unsent."""
    sender = _Sender(settings, run_id, folder)
    end = time.monotonic() + patience
    while not sender.send() and time.monotonic() < end:
        time.sleep(1.0)
    return sender.unsent()


class _Sender:
    """Sends the lines behind the last sent byte, then moves that mark."""

    def __init__(self, settings: TrackingSettings, run_id: str, folder: Path) -> None:
        self.path = folder / FILE
        self._settings = settings
        self._run_id = run_id
        self._folder = folder
        self._warned = False

    def _mark(self) -> int:
        path = self._folder / SENT
        sent, _, run = path.read_text().partition(" ") if path.is_file() else ("0", "", self._run_id)
        # A folder that now belongs to another run starts over: its curves belong there too.
        return int(sent) if run == self._run_id else 0

    def unsent(self) -> int:
        return max(0, self.path.stat().st_size - self._mark()) if self.path.is_file() else 0

    def send(self) -> bool:
        """Try once; True when everything that was there has arrived."""
        try:
            client = self._settings.client()
            for lines in _grouped(read_lines(self._folder, self._mark())):
                self._send(client, lines)
                Storage.at(self._folder).write(SENT, f"{lines[-1].end} {self._run_id}".encode())
        except _failures(OSError) as error:
            if not self._warned:
                logger.warning(
                    "MLflow at %s does not take the record (%s); training goes on, sending is retried", self._settings.uri, error
                )
            self._warned = True
            return False
        self._warned = False
        return True

    def _send(self, client: MlflowClient, lines: Sequence[Line]) -> None:
        from mlflow.entities import Metric, RunTag

        first = lines[0]
        if first.kind == "metrics":
            # A name that MLflow refuses must not hold back everything behind it.
            metrics = [
                Metric(re.sub(r"[^\w\-. /]", "_", name), value, line.time, line.content["step"])
                for line in lines
                for name, value in line.content["values"].items()
            ]
            client.log_batch(self._run_id, metrics=metrics)
        elif first.kind == "tags":
            client.log_batch(self._run_id, tags=[RunTag(name, str(value)) for name, value in first.content.items()])
        else:
            file = self._folder / first.content["file"]
            if file.is_file():
                client.log_artifact(self._run_id, str(file), first.content["folder"])


def _grouped(lines: Iterator[Line]) -> Iterator[list[Line]]:
    """Runs of metric lines up to the size of one call; every other line alone."""
    group: list[Line] = []
    size = 0
    for line in lines:
        count = len(line.content["values"]) if line.kind == "metrics" else BATCH
        if group and (line.kind != "metrics" or group[0].kind != "metrics" or size + count > BATCH):
            yield group
            group, size = [], 0
        group.append(line)
        size += count
    if group:
        yield group


@contextmanager
def readable(settings: TrackingSettings) -> Iterator[None]:
    """Turn a server that does not answer, or refuses, into one readable error."""
    try:
        yield
    except _failures() as error:
        reason = str(error).splitlines()[0][:300]
        raise TrackingError(f"MLflow at {settings.uri} failed: {reason}. Is it up (python -m flows stack status)?") from error


@contextmanager
def as_default(settings: TrackingSettings) -> Iterator[None]:
    """Make these settings MLflow's global ones, for those of its functions that take no address."""
    import mlflow

    # MLflow also puts both into the environment, for child processes; what was unset must be unset again.
    tracking: Any = os.environ.get("MLFLOW_TRACKING_URI")
    registry: Any = os.environ.get("MLFLOW_REGISTRY_URI")
    mlflow.set_tracking_uri(settings.uri)
    mlflow.set_registry_uri(settings.uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(tracking)
        mlflow.set_registry_uri(registry)
        if registry is None:
            os.environ.pop("MLFLOW_REGISTRY_URI", None)


def _failures(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What MLflow's client raises when a server or database is away or refuses."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, RequestException, SQLAlchemyError, *more


def code_version() -> str:
    """The commit of this checkout, with `-dirty` where files differ; `TALKING_HEADS_CODE_VERSION` where there is no git."""
    if given := os.environ.get("TALKING_HEADS_CODE_VERSION"):
        return given
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def _experiment(client: MlflowClient, settings: TrackingSettings, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        place = f"{settings.artifacts.rstrip('/')}/{name}" if settings.artifacts else None
        try:
            return client.create_experiment(name, artifact_location=place)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another run made it just now
    if found is None:
        raise TrackingError(f"MLflow at {settings.uri} has experiment {name} deleted: restore it, or delete it for good (mlflow gc)")
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def _log_dataset(client: MlflowClient, run_id: str, name: str, url: str, fingerprint: str) -> None:
    from mlflow.entities import Dataset, DatasetInput

    scheme = url.partition("://")[0] if is_url(url) else "local"
    # The digest column holds 36 characters; the whole fingerprint is a tag.
    dataset = Dataset(name=name, digest=fingerprint[:32], source_type=scheme, source=json.dumps({"uri": url}))
    client.log_inputs(run_id, datasets=[DatasetInput(dataset=dataset)])


def _short(value: Any) -> str:
    """MLflow keeps 6000 characters of a parameter."""
    text = str(value)
    return text if len(text) <= 6000 else text[:5997] + "..."

"""One folder holds all state: datasets, runs, models, servers' databases. Laptop defaults are set here and nowhere else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """Where everything that the project writes by itself lies."""

    root: Path

    @classmethod
    def at(cls, root: Path) -> Workspace:
        """The workspace in this folder; made on first use."""
        return cls(root.expanduser().resolve())

    @property
    def dataset(self) -> Path:
        """Where `pipeline` puts its dataset."""
        return self.root / "dataset"

    @property
    def runs(self) -> Path:
        """One folder per training run: checkpoints, exported model, spooled metrics."""
        return self.root / "runs"

    @property
    def weights(self) -> Path:
        """Local cache of pretrained files."""
        return self.root / "weights"

    @property
    def evaluations(self) -> Path:
        """Reports by model."""
        return self.root / "evaluations"

    @property
    def videos(self) -> Path:
        """Generated videos."""
        return self.root / "generated"

    @property
    def artifacts(self) -> Path:
        """MLflow's artifacts, when it runs embedded."""
        return self.root / "mlflow" / "artifacts"

    @property
    def tracking_uri(self) -> str:
        """MLflow's address: MLFLOW_TRACKING_URI where it is set, else SQLite in this folder."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / 'mlflow' / 'mlflow.db'}"


def prepare_environment(workspace: Workspace) -> None:
    """Give every library its laptop default by environment variable; what the user has set stays.

    Must run before Prefect, Ray, MLflow or transformers is imported. Children inherit it.
    """
    for folder in (workspace.root, workspace.root / "mlflow", workspace.root / "prefect"):
        folder.mkdir(parents=True, exist_ok=True)
    defaults = {
        "PREFECT_HOME": str(workspace.root / "prefect"),
        # Prefect keeps a run's log; the terminal has progress bars and one line for an error instead.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_V2_ENABLED": "1",
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "GLOG_minloglevel": "2",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)

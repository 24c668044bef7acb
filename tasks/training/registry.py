"""Registered models `talking-heads-<family>`: every export becomes a version, an alias says which one counts.

`challenger` is the newest, `champion` the one that the evaluation gate promoted. A model is named by a URI,
`models:/talking-heads-fewshot@champion`, `models:/talking-heads-fewshot/3` or `runs:/<run id>/model`, or by the folder
that a training run exported.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.family import Family, FamilyConfig, Synthesizer
from tasks.settings import StoredSettings
from tasks.training.output import RUN_RECORD
from tasks.training.tracking import TrackingError, TrackingSettings, as_default, experiment_name, readable

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHALLENGER = "challenger"
CHAMPION = "champion"
REPOSITORY = Path(__file__).resolve().parents[2]
ARTIFACT = "checkpoint"
MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


class RegistryError(RuntimeError):
    """No such model, or not a model of this project; the message lists what there is."""


@dataclass(frozen=True, kw_only=True)
class RegisteredVersion:
    """One version in the registry."""

    name: str
    version: int
    aliases: tuple[str, ...]
    run_id: str | None

    @property
    def uri(self) -> str:
        """`models:/name/version`."""
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model that is ready to make frames, and where it comes from."""

    family: Family
    config: FamilyConfig
    synthesizer: Synthesizer
    folder: Path
    """The exported files."""
    uri: str
    name: str | None = None
    version: int | None = None
    """None for a folder that was never registered."""
    run_id: str | None = None
    stage: str = ""
    dataset_fingerprint: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    """All of the export's run.json."""

    @property
    def stored(self) -> StoredSettings:
        """How the dataset of its training was made: crops and landmarks of what it works on must be the same."""
        return StoredSettings.model_validate(self.record.get("dataset", {}).get("settings", {}))

    @property
    def size(self) -> int:
        """Side of the frames that it makes, in pixels."""
        return self.synthesizer.size


def register(
    export: Path,
    *,
    tracking: TrackingSettings,
    run_id: str,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
    requirements: Path = REPOSITORY / "requirements.txt",
) -> RegisteredVersion:
    """Log an exported folder as a pyfunc model of a run and make it the newest version of its family.

    It becomes `challenger`; only `promote` makes a champion.

    Args:
        metrics: evaluation numbers to tie to the model.

    Raises:
        RegistryError: the folder is not an export.
        TrackingError: the server does not answer.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow
    from mlflow.entities import Metric

    record = read_record(export)
    name = experiment_name(record["family"])
    client = tracking.client()
    known = {
        "family": record["family"],
        "stage": record["stage"],
        "profile": record["profile"],
        "code.version": record["code"],
        "dataset.fingerprint": record["dataset"]["fingerprint"],
        **record["weights"],
        **(tags or {}),
    }
    # MLflow looks a version's source up at its global address, so that has to be ours for all of this.
    with readable(tracking), as_default(tracking):
        with _in_run(run_id), warnings.catch_warnings():
            # MLflow would run an example row, and its files are nowhere.
            warnings.filterwarnings("ignore", ".*An input example was not provided")
            info = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={ARTIFACT: str(export.absolute())},
                code_paths=[str(REPOSITORY / "models"), str(REPOSITORY / "tasks")],
                pip_requirements=str(requirements),
                signature=_signature(),
                metadata={"family": record["family"], "run_id": run_id},
            )
        if metrics:
            stamp = client.get_logged_model(info.model_id).creation_timestamp
            client.log_batch(
                run_id, metrics=[Metric(k, float(v), stamp, record["step"], model_id=info.model_id) for k, v in metrics.items()]
            )
        client.set_logged_model_tags(info.model_id, known)
        if not client.search_registered_models(f"name='{name}'"):
            client.create_registered_model(name, description=f"Talking heads of the family {record['family']}.")
        version = client.create_model_version(name, info.model_uri, run_id=run_id, tags=known, model_id=info.model_id)
        number = int(version.version)
        client.set_registered_model_alias(name, CHALLENGER, str(number))
    return _version(client, name, number)


def promote(name: str, version: int, *, tracking: TrackingSettings) -> RegisteredVersion:
    """Make a version the champion.

    Raises:
        RegistryError: no such version.
    """
    client = tracking.client()
    with readable(tracking):
        found = _version(client, name, version)
        client.set_registered_model_alias(name, CHAMPION, str(version))
    return RegisteredVersion(name=name, version=version, aliases=tuple(sorted({*found.aliases, CHAMPION})), run_id=found.run_id)


def versions(name: str, *, tracking: TrackingSettings) -> list[RegisteredVersion]:
    """All versions of a registered model, newest first; empty where there is none."""
    client = tracking.client()
    with readable(tracking):
        return _versions(client, name)


def load(uri: str | Path, *, tracking: TrackingSettings, cache: Path, device: str = "auto") -> LoadedModel:
    """A model by its URI or folder.

    Args:
        cache: folder where files of registered models are kept between calls, one folder a version.

    Raises:
        RegistryError: nothing is there under this name; lists what is.
        TrackingError: the server does not answer.
    """
    folder, found = _locate(str(uri), tracking, cache)
    if found is None:
        return load_export(folder, uri=str(uri) if str(uri).startswith("runs:/") else None, device=device)
    return load_export(folder, uri=found.uri, name=found.name, version=found.version, run_id=found.run_id, device=device)


def find_export(uri: str | Path, *, tracking: TrackingSettings, cache: Path) -> Path:
    """The exported files of a model by its URI or folder; nothing of it is loaded.

    Raises:
        RegistryError, TrackingError: as `load`.
    """
    folder, _ = _locate(str(uri), tracking, cache)
    read_record(folder)
    return folder


def _locate(text: str, tracking: TrackingSettings, cache: Path) -> tuple[Path, RegisteredVersion | None]:
    """The folder of a model's files, fetched where they lie in the registry, and its version there."""
    if not text.startswith(("models:/", "runs:/")):
        return Path(text).expanduser(), None
    client = tracking.client()
    with readable(tracking):
        if text.startswith("runs:/"):
            return _fetch(text, cache / text.removeprefix("runs:/").replace("/", "-"), tracking), None
        found = _find(client, text)
        # A version number can come back after a registry was deleted; the model's own id cannot.
        model_id = (client.get_model_version(found.name, str(found.version)).source or "").rstrip("/").rsplit("/", 1)[-1]
        return _fetch(found.uri, cache / f"{found.name}-{found.version}-{re.sub('[^A-Za-z0-9-]', '', model_id)}", tracking), found


def load_export(
    folder: Path,
    *,
    uri: str | None = None,
    name: str | None = None,
    version: int | None = None,
    run_id: str | None = None,
    device: str = "auto",
) -> LoadedModel:
    """A model from the folder that a training run exported.

    Raises:
        RegistryError: the folder is not an export.
    """
    from models.registry import family as family_named
    from tasks.training.train import choose_device

    record = read_record(folder)
    family = family_named(record["family"])
    return LoadedModel(
        family=family,
        config=family.config_type.model_validate(record["config"]),
        synthesizer=family.load(folder, choose_device(device)),
        folder=folder,
        uri=uri or str(folder),
        name=name,
        version=version,
        run_id=run_id or record["run_id"],
        stage=record["stage"],
        dataset_fingerprint=record["dataset"]["fingerprint"],
        record=record,
    )


def read_record(folder: Path) -> dict[str, Any]:
    """The run.json of an export.

    Raises:
        RegistryError: there is none.
    """
    path = folder / RUN_RECORD
    if not path.is_file():
        nested = folder / "export"
        hint = f"; did you mean {nested}?" if (nested / RUN_RECORD).is_file() else ""
        raise RegistryError(f"{folder} is not an exported model (no {RUN_RECORD} in it){hint}")
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        inputs=Schema(
            [
                ColSpec("string", "face", required=False),
                ColSpec("string", "template", required=False),
                ColSpec("string", "driver", required=False),
                ColSpec("string", "audio", required=False),
                ColSpec("string", "out"),
            ]
        ),
        outputs=Schema([ColSpec("string", "path"), ColSpec("long", "frames")]),
        params=ParamSchema([ParamSpec("seed", "long", 0)]),
    )


@contextmanager
def _in_run(run_id: str) -> Iterator[None]:
    """The run as MLflow's active one, which `log_model` needs; its status is left to whoever opened it."""
    import mlflow

    status = mlflow.MlflowClient().get_run(run_id).info.status
    mlflow.start_run(run_id=run_id, log_system_metrics=False)
    try:
        yield
    finally:
        mlflow.end_run(status)


def _fetch(uri: str, folder: Path, tracking: TrackingSettings) -> Path:
    """The export inside a logged model, copied once into `folder`."""
    import mlflow
    from mlflow.exceptions import MlflowException

    if folder.is_dir():
        return folder
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        with as_default(tracking):
            root = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(temporary / "model")))
        exports = [path.parent for path in sorted(root.rglob(RUN_RECORD))]
        if not exports:
            raise RegistryError(f"{uri} is not a model of this project (no {RUN_RECORD} in it)")
        exports[0].rename(temporary / "export")
        if not folder.exists():
            (temporary / "export").rename(folder)
    except (MlflowException, FileNotFoundError) as error:
        raise RegistryError(f"{uri} cannot be read: {str(error).splitlines()[0]}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _find(client: MlflowClient, uri: str) -> RegisteredVersion:
    match = MODEL_URI.fullmatch(uri)
    if match is None:
        raise RegistryError(f"{uri!r} names no model; write models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN/model or a folder")
    name, alias, version = match["name"], match["alias"], match["version"]
    there = _versions(client, name)
    if not there:
        names = [model.name for model in client.search_registered_models()]
        raise RegistryError(f"there is no registered model {name}; there are: {', '.join(names) or 'none yet (train one)'}")
    for found in there:
        if (alias is not None and alias in found.aliases) or (version is not None and int(version) == found.version):
            return found
    listed = ", ".join(f"{found.version}{''.join(f' @{alias}' for alias in found.aliases)}" for found in there)
    raise RegistryError(f"{name} has no {f'alias {alias}' if alias else f'version {version}'}; there are versions {listed}")


def _version(client: MlflowClient, name: str, version: int) -> RegisteredVersion:
    return _find(client, f"models:/{name}/{version}")


def _versions(client: MlflowClient, name: str) -> list[RegisteredVersion]:
    from mlflow.exceptions import MlflowException

    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return []
        raise TrackingError(str(error)) from error
    found = [
        RegisteredVersion(
            name=name,
            version=int(version.version),
            aliases=tuple(sorted(alias for alias, number in aliases.items() if int(number) == int(version.version))),
            run_id=version.run_id,
        )
        for version in client.search_model_versions(f"name='{name}'")
    ]
    return sorted(found, key=lambda version: -version.version)

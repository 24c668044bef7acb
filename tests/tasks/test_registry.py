"""The registry: versions, aliases, loading by every name, and the pyfunc model on a machine without this checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models.family import BuildContext
from models.registry import family
from models.weights import WeightsStore
from tasks.settings import TrainSettings
from tasks.training.output import write_export
from tasks.training.registry import RegistryError, load, promote, register, versions
from tasks.training.request import TrainRequest
from tasks.training.stage_data import StageData
from tasks.training.tracking import TrackingSettings, open_run
from tasks.video.video_out import VideoWriter
from tests.models.fewshot_material import TINY, make_face
from tests.tasks.made_videos import face_frames, portrait

pytestmark = [pytest.mark.mlflow, pytest.mark.slow]


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> TrackingSettings:
    return TrackingSettings.embedded(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def run_id(tracking: TrackingSettings) -> str:
    return open_run(tracking, family="fewshot", name="try", parameters={}, tags={})


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, run_id: str) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fewshot = family("fewshot")
    request = TrainRequest(
        family="fewshot", stage="meta", config=TINY, train=TrainSettings(), dataset="/data", folder=folder, code="abc", run_id=run_id
    )
    torch.manual_seed(0)
    config = fewshot.config_type.model_validate(TINY)
    store = WeightsStore(root=folder / "weights", offline=True)
    context = BuildContext(device=torch.device("cpu"), weights=store, video_keys=("a_1", "b_1"))
    module = fewshot.build(config, "meta", context)
    source = StageData(
        train=iter(()), held_out=lambda count: [], video_keys=("a_1", "b_1"), samples=2, held_out_samples=0, fingerprint="f" * 64
    )
    write_export(folder / "export", module, request, source, tags=store.tags(), step=7)
    return folder / "export"


@pytest.fixture(scope="module")
def registered(tracking: TrackingSettings, run_id: str, export: Path) -> list:
    first = register(export, tracking=tracking, run_id=run_id, metrics={"landmark_distance": 0.1})
    second = register(export, tracking=tracking, run_id=run_id, tags={"note": "second"})
    return [first, second]


def test_versions_and_aliases(tracking: TrackingSettings, run_id: str, registered: list) -> None:
    first, second = registered
    assert first.aliases == ("challenger",), "only the gate makes a champion"
    assert second.aliases == ("challenger",)
    assert [version.version for version in versions("talking-heads-fewshot", tracking=tracking)] == [2, 1]
    client = tracking.client()
    version = client.get_model_version("talking-heads-fewshot", "2")
    assert (version.run_id, version.tags["note"], version.tags["dataset.fingerprint"]) == (run_id, "second", "f" * 64)
    assert client.get_run(run_id).info.status == "RUNNING", "registering leaves the run's status alone"
    assert promote("talking-heads-fewshot", 2, tracking=tracking).aliases == ("challenger", "champion")
    promote("talking-heads-fewshot", 1, tracking=tracking)
    assert client.get_model_version_by_alias("talking-heads-fewshot", "champion").version in ("1", 1)


def test_every_name_loads_the_same_model(tracking: TrackingSettings, run_id: str, export: Path, registered: list, tmp_path: Path) -> None:
    face = make_face(64, 2)
    from models.family import Driver

    driver = Driver(landmarks=face.landmarks, size=64)
    made = []
    for uri in ("models:/talking-heads-fewshot@champion", "models:/talking-heads-fewshot/2", f"runs:/{run_id}/model", export):
        model = load(uri, tracking=tracking, cache=tmp_path / "cache", device="cpu")
        assert (model.family.name, model.size, model.run_id, model.stage) == ("fewshot", 64, run_id, "meta")
        assert model.dataset_fingerprint == "f" * 64
        made.append(np.stack(list(model.synthesizer.synthesize(face, driver))))
    assert all(np.array_equal(frames, made[0]) for frames in made)
    champion = load("models:/talking-heads-fewshot@champion", tracking=tracking, cache=tmp_path / "cache", device="cpu")
    assert (champion.uri, champion.version) == ("models:/talking-heads-fewshot/1", 1)
    assert len(list((tmp_path / "cache").iterdir())) == 3, "one folder a version, and no left-overs"


def test_what_is_missing_is_said_with_what_there_is(tracking: TrackingSettings, export: Path, registered: list, tmp_path: Path) -> None:
    def message(uri: str | Path) -> str:
        with pytest.raises(RegistryError) as error:
            load(uri, tracking=tracking, cache=tmp_path, device="cpu")
        return str(error.value)

    assert "no alias best; there are versions 2 @challenger" in message("models:/talking-heads-fewshot@best")
    assert "no version 9; there are versions 2" in message("models:/talking-heads-fewshot/9")
    assert "no registered model talking-heads-loopy; there are: talking-heads-fewshot" in message("models:/talking-heads-loopy@champion")
    assert "names no model" in message("models:/talking-heads-fewshot")
    assert f"did you mean {export}?" in message(export.parent)
    assert "cannot be read" in message("runs:/0123456789abcdef0123456789abcdef/model")
    with pytest.raises(RegistryError, match="no version 9"):
        promote("talking-heads-fewshot", 9, tracking=tracking)


SCRIPT = """
import sys, json
assert not any("{repository}" == p for p in sys.path), sys.path
import mlflow, pandas
mlflow.set_tracking_uri("{uri}")
model = mlflow.pyfunc.load_model("models:/talking-heads-fewshot@champion")
import models, tasks
assert "{repository}" not in str(models.__path__) + str(tasks.__path__), models.__path__
made = model.predict(pandas.DataFrame([{{"face": "face.png", "driver": "driver.mp4", "out": "made.mp4"}}]), params={{"seed": 3}})
print(made.to_json(orient="records"))
"""


def test_the_pyfunc_model_needs_no_checkout(tracking: TrackingSettings, registered: list, tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "face.png"), cv2.cvtColor(portrait(256), cv2.COLOR_RGB2BGR))
    with VideoWriter(tmp_path / "driver.mp4", width=256, height=256) as writer:
        for frame in face_frames(6):
            writer.write(frame)
    repository = str(Path(__file__).resolve().parents[2])
    script = tmp_path / "other" / "predict.py"
    script.parent.mkdir()
    script.write_text(SCRIPT.format(repository=repository, uri=tracking.uri))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f'"path":"{tmp_path}/made.mp4"' in done.stdout.replace("\\/", "/")
    assert '"frames":6' in done.stdout
    assert (tmp_path / "made.mp4").stat().st_size > 500
    shutil.rmtree(tmp_path / "other")

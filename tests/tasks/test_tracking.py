"""MLflow: what a run logs, and that a server which goes away costs nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.training.spool import Line, Spool, read_curves
from tasks.training.tracking import (
    BATCH,
    RunLogger,
    TrackingError,
    TrackingSettings,
    _grouped,
    code_version,
    finish_run,
    flush_spool,
    log_files,
    open_run,
)

pytestmark = pytest.mark.mlflow


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> TrackingSettings:
    return TrackingSettings.embedded(tmp_path_factory.mktemp("workspace"))


def a_run(settings: TrackingSettings, **options: object) -> str:
    return open_run(
        settings,
        family="line",
        name="try",
        parameters={"train": {"steps": 10}, "config": {"rate": 0.5, "text": "x" * 7000}},
        tags={"stage": "fit", "code.version": "abc"},
        dataset=("sample", "/data/sample", "f" * 64),
        **options,
    )


def test_a_run_says_what_it_is(embedded: TrackingSettings, tmp_path: Path) -> None:
    run_id = a_run(embedded)
    client = embedded.client()
    run = client.get_run(run_id)
    assert client.get_experiment(run.info.experiment_id).name == "talking-heads-line"
    assert run.data.params["train.steps"] == "10"
    assert run.data.params["config.rate"] == "0.5"
    assert run.data.tags["stage"] == "fit"
    assert run.data.tags["dataset.fingerprint"] == "f" * 64
    dataset = run.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest, dataset.source_type) == ("sample", "f" * 32, "local")
    picture = tmp_path / "table.json"
    picture.write_text("{}")
    log_files(embedded, run_id, [picture], "evaluation")
    assert [file.path for file in client.list_artifacts(run_id, "evaluation")] == ["evaluation/table.json"]
    finish_run(embedded, run_id, "KILLED")
    assert a_run(embedded, run_id=run_id) == run_id
    assert client.get_run(run_id).info.status == "RUNNING"


def test_the_record_arrives_once_even_when_it_is_sent_twice(embedded: TrackingSettings, tmp_path: Path) -> None:
    run_id = a_run(embedded)
    with RunLogger(embedded, run_id, tmp_path, every=0.05), Spool(tmp_path) as spool:
        for step in range(1, 301):
            spool.metrics({"train/loss": 1 / step, "speed/x": float("nan"), "odd(name)": 2.0, "a": 1.0, "b": 2.0}, step)
        spool.tags({"weights.vgg19": "off"})
        (tmp_path / "p.png").write_bytes(b"png")
        spool.artifact(tmp_path / "p.png", "previews")
    client = embedded.client()
    (tmp_path / "run.sent").write_text(f"0 {run_id}")
    assert flush_spool(embedded, run_id, tmp_path) == 0
    points = client.get_metric_history(run_id, "train/loss")
    assert [(point.step, point.value) for point in points] == read_curves(tmp_path)["train/loss"]
    assert len(points) == 300
    assert len(client.get_metric_history(run_id, "odd_name_")) == 300
    assert client.get_run(run_id).data.tags["weights.vgg19"] == "off"
    assert [file.path for file in client.list_artifacts(run_id, "previews")] == ["previews/p.png"]


def test_a_server_that_is_away_is_one_readable_line() -> None:
    with pytest.raises(TrackingError, match=r"http://127\.0\.0\.1:9 failed.*stack status"):
        a_run(TrackingSettings(uri="http://127.0.0.1:9"))


def test_code_version_is_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALKING_HEADS_CODE_VERSION", "image-7")
    assert code_version() == "image-7"
    monkeypatch.delenv("TALKING_HEADS_CODE_VERSION")
    assert code_version() != ""


@given(st.lists(st.one_of(st.integers(1, 400), st.none()), max_size=40))
def test_groups_keep_every_line_in_order_and_fit_into_one_call(sizes: list[int | None]) -> None:
    lines = [
        Line(kind="tags", time=0, content={}, end=index)
        if size is None
        else Line(kind="metrics", time=0, content={"step": 1, "values": {str(n): 0.0 for n in range(size)}}, end=index)
        for index, size in enumerate(sizes)
    ]
    groups = list(_grouped(iter(lines)))
    assert [line for group in groups for line in group] == lines
    for group in groups:
        assert len(group) == 1 or all(line.kind == "metrics" for line in group)
        assert len(group) == 1 or sum(len(line.content["values"]) for line in group) <= BATCH


class Server:
    """A real `mlflow server` that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}", "--artifacts-destination", str(self.folder / "files")]
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.3)
        raise AssertionError("mlflow server did not start")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.mark.slow
def test_a_killed_server_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.start()
    settings = TrackingSettings(uri=f"http://127.0.0.1:{server.port}")
    folder = tmp_path / "run"
    slowest = 0.0
    try:
        run_id = a_run(settings)
        with RunLogger(settings, run_id, folder, every=0.02, patience=0.5) as logger, Spool(folder) as spool:
            for step in range(1, 401):
                began = time.perf_counter()
                spool.metrics({"train/loss": float(step), "train/other": -float(step)}, step)
                slowest = max(slowest, time.perf_counter() - began)
                time.sleep(0.005)
                if step == 200:
                    server.kill()
            spool.tags({"late": "yes"})
            (folder / "curves.png").write_bytes(b"png")
            spool.artifact(folder / "curves.png", "curves")
        assert logger.unsent > 0, "the end came while the server was away, so something must be waiting"
        assert slowest < 0.5, "training never waits for the server"
        server.start()
        assert flush_spool(settings, run_id, folder) == 0
        client = settings.client()
        for name, sign in (("train/loss", 1), ("train/other", -1)):
            points = client.get_metric_history(run_id, name)
            assert sorted((point.step, point.value) for point in points) == [(step, sign * float(step)) for step in range(1, 401)]
        assert client.get_run(run_id).data.tags["late"] == "yes"
        assert [file.path for file in client.list_artifacts(run_id, "curves")] == ["curves/curves.png"]
    finally:
        server.kill()

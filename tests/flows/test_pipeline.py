"""The whole way on the embedded sample, through the real command line: Prefect, Ray and MLflow included."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import av
import pytest

from tests.flows.test_cli import flows

pytestmark = [pytest.mark.slow, pytest.mark.prefect, pytest.mark.ray, pytest.mark.mlflow]

TINY = [
    "preprocess.stored.clips.size=128",
    "preprocess.stored.clips.min_frames=10",
    "preprocess.stored.pool.image_size=64",
    "preprocess.stored.pool.min_size=5",
    "filters.min_face_px=20",
    "evaluate.max_clips=1",
    "evaluate.max_frames=10",
    "families.fewshot.config.network={image_size: 64, channels: 4, max_channels: 16, embedding: 16, bottleneck_blocks: 1}",
    "families.fewshot.train.meta={steps: 3, batch_size: 2, log_every: 1, validate_every: 3, preview_every: 3, checkpoint_every: 2}",
    "families.synctalk.config={audio: {channels: 4}, network: {channels: [4, 8, 8, 8], sync_channels: 4}, sync: {positives: 4}}",
    "families.synctalk.train.syncnet={steps: 2, batch_size: 2, validate_every: 2, preview_every: 2, checkpoint_every: 2}",
    "families.synctalk.train.unet={steps: 2, validate_every: 2, preview_every: 2, preview_frames: 6, checkpoint_every: 2}",
]


def run(sample_videos: Path, workspace: Path) -> str:
    settings = [word for setting in TINY for word in ("--set", setting)]
    done = flows("pipeline", sample_videos, "--profile", "demo", *settings, workspace=workspace, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.timeout(1000)
def test_videos_become_a_dataset_registered_models_and_videos_and_a_second_run_repeats_nothing(sample_videos: Path, tmp_path: Path) -> None:
    first = run(sample_videos, tmp_path)
    assert "where to look" in first
    info = json.loads((tmp_path / "dataset/dataset.json").read_text())
    assert info["totals"]["clips"] == 4
    (page,) = (tmp_path / "inspections").glob("*/inspection.html")
    assert page.stat().st_size > 10_000

    outcomes = {path.parent.name.rpartition("-")[0]: json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/outcome.json")}
    steps = {name: (outcome["status"], outcome["step"]) for name, outcome in outcomes.items()}
    assert steps == {"fewshot-meta": ("finished", 3), "synctalk-syncnet": ("finished", 2), "synctalk-unet": ("finished", 2)}

    with closing(sqlite3.connect(tmp_path / "mlflow/mlflow.db")) as database:
        models = {name: (int(version), run) for name, version, run in database.execute("select name, version, run_id from model_versions")}
        runs = {name: run for name, (_, run) in models.items()}
        tags = {run: dict(database.execute("select key, value from tags where run_uuid = ?", (run,))) for run in runs.values()}
        metrics = {run: {row[0] for row in database.execute("select key from metrics where run_uuid = ?", (run,))} for run in runs.values()}
        aliases = {tuple(row) for row in database.execute("select name, alias from registered_model_aliases")}
    assert {name: version for name, (version, _) in models.items()} == {"talking-heads-fewshot": 1, "talking-heads-synctalk": 1}
    fewshot, synctalk = runs["talking-heads-fewshot"], runs["talking-heads-synctalk"]
    assert {tags[run]["dataset.fingerprint"] for run in runs.values()} == {info["fingerprint"]}
    assert tags[fewshot]["weights.vgg19"] == "off"
    assert all({"train/loss", "evaluation.truth.lmd", "evaluation.baseline.lmd"} <= metrics[run] for run in runs.values())
    assert {(name, "challenger") for name in models} <= aliases

    # One person: trained and evaluated on the same one, whose held-out end is in no training window.
    record = json.loads((Path(outcomes["synctalk-unet"]["export"]) / "run.json").read_text())
    assert record["filters"]["identities"] == [tags[synctalk]["person"]]
    assert record["split"]["by"] == "time"
    assert "learns" in first
    assert len(list((tmp_path / "mlflow/artifacts").rglob("previews/step-00000002.mp4"))) == 1

    for name, run_id in runs.items():
        (video,) = (tmp_path / "generated").glob(f"{name}-1.mp4")
        with av.open(str(video)) as container:
            assert container.metadata["synthetic"] == "true"
            assert container.metadata["model_uri"] == f"models:/{name}/1"
            assert container.metadata["run_id"] == run_id
            assert bool(container.streams.audio), "with sound"
            # A driving video has 50 frames; a sound lasts as long as its container's last packet.
            assert sum(1 for _ in container.decode(video=0)) == pytest.approx(50, abs=2 if run_id == synctalk else 0)
        (report,) = (tmp_path / "evaluations").glob(f"{name.removeprefix('talking-heads-')}-*")
        rows = {row["name"]: row["scores"] for row in json.loads((report / "report.json").read_text())["rows"]}
        assert {"truth", "baseline", "model"} <= set(rows)
        assert rows["truth"]["lmd"]["mean"] == 0
        assert rows["baseline"]["lmd"]["mean"] > 0
        assert "plumbing-sized" in (report / "report.html").read_text()

    with closing(sqlite3.connect(tmp_path / "prefect/prefect.db")) as database:
        states = [row[0] for row in database.execute("select state_type from flow_run")]
        tasks = [row[0] for row in database.execute("select name from task_run order by start_time")]
        artifacts = {row[0] for row in database.execute("select key from artifact")}
    assert states == ["COMPLETED"]
    expected = ["discover", "preprocess 4 videos", "train fewshot meta", "evaluate fewshot", "register fewshot"]
    expected += ["train synctalk syncnet", "train synctalk unet", "evaluate synctalk", "register synctalk"]
    assert [task for task in tasks if task in expected] == expected
    assert {"dataset", "rejects", "evaluation-fewshot", "evaluation-synctalk", "models", "preprocess"} <= artifacts

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "dataset").rglob("*.tar")}
    second = run(sample_videos, tmp_path)
    assert "finished before, 3 steps" in second
    assert second.count("finished before, 2 steps") == 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "dataset").rglob("*.tar")} == written
    with closing(sqlite3.connect(tmp_path / "mlflow/mlflow.db")) as database:
        assert len(list(database.execute("select version from model_versions"))) == 2

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
]


def run(sample_videos: Path, workspace: Path) -> str:
    settings = [word for setting in TINY for word in ("--set", setting)]
    done = flows("pipeline", sample_videos, "--profile", "demo", *settings, workspace=workspace)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.timeout(500)
def test_videos_become_a_dataset_a_registered_model_and_a_video_and_a_second_run_repeats_nothing(
    sample_videos: Path, tmp_path: Path
) -> None:
    first = run(sample_videos, tmp_path)
    assert "where to look" in first
    info = json.loads((tmp_path / "dataset/dataset.json").read_text())
    assert info["totals"]["clips"] == 4
    (page,) = (tmp_path / "inspections").glob("*/inspection.html")
    assert page.stat().st_size > 10_000

    (run_folder,) = (tmp_path / "runs").iterdir()
    outcome = json.loads((run_folder / "outcome.json").read_text())
    assert (outcome["status"], outcome["step"]) == ("finished", 3)

    with closing(sqlite3.connect(tmp_path / "mlflow/mlflow.db")) as database:
        ((name, version, run_id),) = database.execute("select name, version, run_id from model_versions")
        tags = dict(database.execute("select key, value from tags where run_uuid = ?", (run_id,)))
        metrics = {row[0] for row in database.execute("select key from metrics where run_uuid = ?", (run_id,))}
        aliases = {row[0] for row in database.execute("select alias from registered_model_aliases")}
    assert (name, int(version)) == ("talking-heads-fewshot", 1)
    assert tags["dataset.fingerprint"] == info["fingerprint"]
    assert tags["weights.vgg19"] == "off"
    assert {"train/loss", "evaluation.truth.lmd", "evaluation.baseline.lmd"} <= metrics
    assert "challenger" in aliases

    (video,) = (tmp_path / "generated").glob("*.mp4")
    with av.open(str(video)) as container:
        assert container.metadata["synthetic"] == "true"
        assert container.metadata["model_uri"] == "models:/talking-heads-fewshot/1"
        assert container.metadata["run_id"] == run_id
        assert sum(1 for _ in container.decode(video=0)) == 50
    (report,) = (tmp_path / "evaluations").iterdir()
    rows = {row["name"]: row["scores"] for row in json.loads((report / "report.json").read_text())["rows"]}
    assert set(rows) == {"truth", "baseline", "model"}
    assert rows["truth"]["lmd"]["mean"] == 0
    assert rows["baseline"]["lmd"]["mean"] > 0
    assert "plumbing-sized" in (report / "report.html").read_text()

    with closing(sqlite3.connect(tmp_path / "prefect/prefect.db")) as database:
        states = [row[0] for row in database.execute("select state_type from flow_run")]
        tasks = [row[0] for row in database.execute("select name from task_run order by start_time")]
        artifacts = {row[0] for row in database.execute("select key from artifact")}
    assert states == ["COMPLETED"]
    expected = ["discover", "preprocess 4 videos", "train fewshot meta", "evaluate fewshot", "register fewshot"]
    assert [task for task in tasks if task in expected] == expected
    assert {"dataset", "rejects", "evaluation-fewshot", "models", "preprocess"} <= artifacts

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "dataset").rglob("*.tar")}
    second = run(sample_videos, tmp_path)
    assert "finished before, 3 steps" in second
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "dataset").rglob("*.tar")} == written
    with closing(sqlite3.connect(tmp_path / "mlflow/mlflow.db")) as database:
        assert len(list(database.execute("select version from model_versions"))) == 1

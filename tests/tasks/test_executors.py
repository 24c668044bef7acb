"""Processes that die: children and Ray workers, killed from inside and outside; two executors, one result."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.data.dataset import Dataset
from tasks.preprocessing.executor import Died, Finished, LocalExecutor, Raised
from tasks.preprocessing.preprocess import PreprocessFailed
from tests.tasks.fake_videos import content_of, make_videos, run_fake


def work(job: str) -> str:
    if job == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == "raise":
        raise FileNotFoundError(2, "No such file")
    return f"{job} done"


@pytest.mark.slow
def test_children_answer_die_and_raise() -> None:
    outcomes = []
    with LocalExecutor(work, 2) as executor:
        for job in ("a", "die", "b", "raise", "c"):
            executor.submit(job)
        while executor.outstanding:
            assert len(executor.running()) <= 2
            outcomes += executor.wait(0.5)
    finished = {outcome.job: outcome.result for outcome in outcomes if isinstance(outcome, Finished)}
    assert finished == {"a": "a done", "b": "b done", "c": "c done"}
    (died,) = [outcome for outcome in outcomes if isinstance(outcome, Died)]
    assert (died.job, died.signal, died.blame) == ("die", signal.SIGSEGV, True)
    (raised,) = [outcome for outcome in outcomes if isinstance(outcome, Raised)]
    assert (raised.type, raised.errno) == ("FileNotFoundError", 2)
    assert "in work" in raised.traceback


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of which one kills its worker, one raises and one has no face; few shards, so that each holds good ones too."""
    videos = make_videos(tmp_path_factory.mktemp("poisoned") / "videos", identities=12, videos=3)
    (videos / "id000/v0/00000.mp4").write_text("segfault")
    (videos / "id001/v0/00000.mp4").write_text("no face")
    (videos / "id001/v1/00000.mp4").write_text("error")
    return videos


@pytest.fixture(scope="module")
def local_result(poisoned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "data"
    run_fake(poisoned, out, executor="local", workers=2)
    return out


@pytest.mark.slow
def test_a_video_that_kills_its_worker_is_quarantined_and_its_shard_is_complete(local_result: Path) -> None:
    dataset = Dataset.open(local_result)
    (row,) = [row for row in dataset.rejects().to_pylist() if row["code"] == "crashed"]
    assert row["key"].startswith("id000_v0-")
    assert row["message"] == "processing it killed the worker process (SIGSEGV)"
    record = next(record for record in dataset.records() if record.shard == row["shard"])
    assert record.counts["videos"] == 2
    assert record.counts["clips"] == 4
    assert dataset.clips().num_rows == 36 * 4 - 4 - 2 - 3
    assert not (local_result / ".journal").exists()
    assert list(dataset.damaged()) == []


@pytest.mark.ray
@pytest.mark.slow
def test_ray_gives_the_same_bytes(poisoned: Path, local_result: Path, tmp_path: Path) -> None:
    run_fake(poisoned, tmp_path / "data", executor="ray", workers=2)
    assert content_of(tmp_path / "data") == content_of(local_result)


@pytest.mark.slow
def test_a_worker_that_dies_before_any_video_is_not_retried_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.preprocessing.preprocess.build_shard", die)
    with pytest.raises(PreprocessFailed, match="died 3 times outside of any video"):
        run_fake(make_videos(tmp_path / "videos", identities=1, videos=1), tmp_path / "data", workers=1)


def die(job: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_ten_kills_and_a_last_run_give_the_bytes_of_an_undisturbed_one(tmp_path: Path) -> None:
    """Every run is a new process group that gets SIGKILL at a random moment of its work; nothing is blamed on any video."""
    videos = make_videos(tmp_path / "videos", identities=10, videos=8, text="slow")
    (videos / "id003/v1/00000.mp4").write_text("no face")
    code = (
        "import sys\nfrom pathlib import Path\nfrom tests.tasks.fake_videos import run_fake\n"
        "if __name__ == '__main__':\n    run_fake(Path(sys.argv[1]), Path(sys.argv[2]), executor='local', workers=2)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    data = tmp_path / "data"
    rng = random.Random(7)
    landed = 0
    for kill in range(10):
        run = subprocess.Popen(
            [sys.executable, str(script), str(videos), str(data)], start_new_session=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())}
        )
        journal = data / ".journal"
        while run.poll() is None and not (journal.is_dir() and any(journal.iterdir()) and (kill % 2 or notes_are_fresh(journal))):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        landed += run.poll() is None
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert landed >= 5
    run_fake(videos, data, executor="local", workers=2)
    run_fake(videos, tmp_path / "calm", executor="local", workers=2)
    assert content_of(data) == content_of(tmp_path / "calm")
    assert Dataset.open(data).clips().num_rows == 80 * 4 - 2


def notes_are_fresh(journal: Path) -> bool:
    now = time.time()
    return any(now - path.stat().st_mtime < 0.5 for path in journal.glob("*.json") if path.exists())

"""Pass 1 from end to end with a fake for one video: what is stored, resumed, redone, refused and reported."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import tasks.preprocessing.preprocess
from tasks.data.dataset import Dataset, DatasetError
from tasks.data.shards import read_npy
from tasks.preprocessing.preprocess import PreprocessFailed, Progress, plan_preprocess, preprocess
from tasks.preprocessing.sources import SourceError
from tasks.settings import ClipSettings
from tests.tasks.fake_videos import content_of, fake_video, inline, make_settings, make_videos, run_fake


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.preprocessing.preprocess, "make_executor", inline)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return make_videos(tmp_path / "videos")


def test_everything_that_a_video_gives_is_stored_and_found_again(videos: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = run_fake(videos, tmp_path / "data", progress=seen.append)
    assert (result.videos, result.clips, result.pools, result.empty_videos, result.rejects) == (12, 48, 12, 0, {})
    assert (seen[-1].videos, seen[-1].total_videos, seen[-1].clips, seen[-1].remaining) == (12, 12, 48, 0.0)
    assert result.decoded_frames == 480
    assert next(iter(result.shares)) in {"write", "decode"}
    assert sum(result.shares.values()) == pytest.approx(1)

    dataset = Dataset.open(tmp_path / "data")
    clips = dataset.clips()
    keys = clips["key"].to_pylist()
    assert keys == sorted(keys)
    assert len(set(keys)) == 48
    assert set(clips["video"].to_pylist()) == {key.rsplit("_", 1)[0] for key in keys}
    assert all(re.fullmatch(r"id\d{3}_v\d-[0-9a-f]{8}_\d{5}-000[01]", key) for key in keys)
    for row in clips.to_pylist():
        assert row["full_history"] == (row["num_frames"] >= 136)
        members = dataset.read_sample("clips", row["key"])
        assert ("wav" in members) == row["has_audio"]
        assert read_npy(members["landmarks.npy"]).shape == (row["num_frames"], 68, 2)
        meta = json.loads(members["json"])
        assert (meta["identity"], meta["video"], meta["codec"]) == (row["identity"], row["video"], "fake")
        with tarfile.open(dataset.tar_url("clips", row["shard"])) as tar:
            assert tar.extractfile(f"{row['key']}.mp4").read() == members["mp4"]
    for row in dataset.pools().to_pylist():
        assert set(row["clips"]) <= set(keys)
        assert sorted(dataset.read_sample("keyframes", row["key"], only={"0000.jpg", "json", "nothing"})) == ["0000.jpg", "json"]
    assert list(dataset.damaged()) == []
    assert dataset.fingerprint == dataset.info["fingerprint"] == result.fingerprint
    assert dataset.info["totals"]["clips"] == 48
    with pytest.raises(DatasetError, match="no sample 'x'"):
        dataset.read_sample("clips", "x")


def test_inputs_are_not_touched(videos: Path, tmp_path: Path) -> None:
    before = content_of(videos)
    run_fake(videos, tmp_path / "data")
    assert content_of(videos) == before


def test_a_second_run_has_nothing_to_do(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_fake(videos, tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*") if path.is_file()}
    monkeypatch.setattr(tasks.preprocessing.preprocess, "make_executor", None)  # so nothing can be started
    again = run_fake(videos, tmp_path / "data")
    assert (again.made_shards, again.clips, again.fingerprint) == (0, first.clips, first.fingerprint)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*") if path.is_file()} == before


def test_more_videos_tomorrow_only_they_are_processed(videos: Path, tmp_path: Path) -> None:
    run_fake(videos, tmp_path / "data")
    before = content_of(tmp_path / "data")
    (videos / "new").mkdir()
    (videos / "new" / "late arrival.mp4").write_text("new")
    shutil.rmtree(videos / "id000")  # a source that is gone stays in the dataset
    result = run_fake(videos, tmp_path / "data")
    after = content_of(tmp_path / "data")
    assert (result.made_videos, result.made_clips, result.clips, result.videos) == (1, 2, 50, 13)
    unchanged = {name for name in before if "/" in name}
    assert {name: after[name] for name in unchanged} == {name: before[name] for name in unchanged}


def test_a_changed_file_redoes_its_shard_alone(videos: Path, tmp_path: Path) -> None:
    run_fake(videos, tmp_path / "data")
    (videos / "id001/v1/00000.mp4").write_text("a longer file than before")
    plan = plan_preprocess([videos], tmp_path / "data", make_settings(), process=fake_video)
    assert (len(plan.pending), plan.pending_videos, plan.outdated) == (1, 1, {"sources": 1})
    assert run_fake(videos, tmp_path / "data").made_shards == 1
    fresh = run_fake(videos, tmp_path / "fresh")
    assert Dataset.open(tmp_path / "data").fingerprint == fresh.fingerprint


def test_the_same_sources_on_another_mount_are_not_new(videos: Path, tmp_path: Path) -> None:
    run_fake(videos, tmp_path / "data")
    videos.rename(tmp_path / "mounted elsewhere")
    assert run_fake(tmp_path / "mounted elsewhere", tmp_path / "data").made_shards == 0


def test_another_file_of_the_same_name_is_refused(tmp_path: Path) -> None:
    for folder, text in (("one", "a"), ("two", "quite another")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "clip.mp4").write_text(text)
    run_fake(tmp_path / "one", tmp_path / "data")
    with pytest.raises(SourceError, match="another file that is still there"):
        run_fake(tmp_path / "two", tmp_path / "data")


def test_other_settings_are_named(videos: Path, tmp_path: Path) -> None:
    run_fake(videos, tmp_path / "data")
    settings = make_settings()
    other = settings.model_copy(update={"stored": settings.stored.model_copy(update={"clips": ClipSettings(size=128)})})
    with pytest.raises(DatasetError, match=r"stored\.clips\.size is 64 there and 128 now"):
        preprocess([videos], tmp_path / "data", other, process=fake_video)


def test_other_code_redoes_everything(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_fake(videos, tmp_path / "data")
    monkeypatch.setattr("tasks.preprocessing.run_plan.code_version", lambda *roots: "other")
    plan = plan_preprocess([videos], tmp_path / "data", make_settings(), process=fake_video)
    assert plan.outdated == {"code": 12}


def test_a_torn_tar_without_record_is_ignored_and_one_with_record_is_made_again(videos: Path, tmp_path: Path) -> None:
    run_fake(videos, tmp_path / "data")
    whole = content_of(tmp_path / "data")
    (tmp_path / "data/records/000003.json").unlink()
    for name, size in (("clips/000003.tar", 10_240), ("clips/000004.tar", 512)):
        with (tmp_path / "data" / name).open("r+b") as file:
            file.truncate(size)
    (tmp_path / "data/clips/.000003.tar.dead.tmp").write_text("left by a kill")
    assert 3 not in Dataset.open(tmp_path / "data").shards()
    assert Dataset.open(tmp_path / "data").clips().num_rows == 44
    assert list(Dataset.open(tmp_path / "data").damaged()) == ["clips/000004.tar"]
    assert run_fake(videos, tmp_path / "data").made_shards == 2
    assert content_of(tmp_path / "data") == whole


def test_bad_videos_are_rows_and_the_run_goes_on(videos: Path, tmp_path: Path) -> None:
    (videos / "id000/v0/00000.mp4").write_text("no face")
    (videos / "id000/v1/00000.mp4").write_text("error")
    shutil.rmtree(videos / "id000/v2")
    (videos / "id000/v2").mkdir()
    (videos / "id000/v2/dead.mp4").symlink_to(videos / "nowhere")
    result = run_fake(videos, tmp_path / "data")
    assert result.rejects == {"failed": 1, "no_face": 1, "unreadable": 1}
    assert result.empty_videos == 1
    rejects = {row["code"]: row for row in Dataset.open(tmp_path / "data").rejects().to_pylist()}
    assert rejects["failed"]["message"] == "ZeroDivisionError: somebody divided by zero"
    assert rejects["unreadable"]["uri"].endswith("dead.mp4")
    assert (rejects["no_face"]["scope"], rejects["no_face"]["step"]) == ("utterance", "track")
    card = (tmp_path / "data/README.md").read_text()
    assert "| no_face | utterance | 1 |" in card
    assert "| not stated | not stated | 39 |" in card
    assert "| allow_static | False | 0 |" in card


def test_too_many_bad_videos_fail_the_run_and_keep_the_data(videos: Path, tmp_path: Path) -> None:
    for path in videos.glob("id00[01]/*/*.mp4"):
        path.write_text("no face")
    with pytest.raises(PreprocessFailed, match=r"6 of 12 videos gave no clip.*no_face 12") as failure:
        run_fake(videos, tmp_path / "data", error_budget=0.4)
    assert failure.value.result.clips == 24
    assert Dataset.open(tmp_path / "data").clips().num_rows == 24
    assert run_fake(videos, tmp_path / "data", error_budget=0.5).made_shards == 0


def test_an_empty_result_fails_the_run(tmp_path: Path) -> None:
    videos = make_videos(tmp_path / "videos", identities=1, text="no face")
    with pytest.raises(PreprocessFailed, match="none of 3 videos gave a clip"):
        run_fake(videos, tmp_path / "data", error_budget=1)
    assert len(Dataset.open(tmp_path / "data").records()) == 3


def test_a_full_disk_stops_the_run_and_leaves_only_whole_files(videos: Path, tmp_path: Path) -> None:
    (videos / "id001/v1/00000.mp4").write_text("full")
    with pytest.raises(PreprocessFailed, match=r"no space left to write .*data; free some"):
        run_fake(videos, tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.tmp"))
    assert list(Dataset.open(tmp_path / "data").damaged()) == []
    (videos / "id001/v1/00000.mp4").write_text("fine now")
    assert run_fake(videos, tmp_path / "data").clips == 48


def test_a_disk_that_fills_up_under_the_writer(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, []

    def fsync(number: int) -> None:
        calls.append(number)
        if len(calls) > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(PreprocessFailed, match="no space left"):
            run_fake(videos, tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.tmp"))
    assert run_fake(videos, tmp_path / "data").clips == 48
    assert list(Dataset.open(tmp_path / "data").damaged()) == []


def test_two_runs_at_once_are_refused_and_a_dead_one_is_not_waited_for(videos: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; from tasks.data.lock import *\nwith dataset_lock(Storage.at(sys.argv[1])):\n print(flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "data")], stdout=subprocess.PIPE)
    holder.stdout.readline()
    with pytest.raises(DatasetError, match=f"another run is writing .*process {holder.pid} on"):
        run_fake(videos, tmp_path / "data")
    holder.kill()
    holder.wait()
    assert (tmp_path / "data/.lock").exists()
    assert run_fake(videos, tmp_path / "data").clips == 48
    assert not (tmp_path / "data/.lock").exists()


def test_a_folder_with_other_things_is_not_written_to(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("years of work")
    with pytest.raises(DatasetError, match=r"not empty \(it holds thesis\.txt\)"):
        run_fake(videos, tmp_path / "home")
    with pytest.raises(DatasetError, match="there is no dataset at"):
        Dataset.open(tmp_path / "home")


def test_a_plan_says_what_would_be_done_and_writes_nothing(videos: Path, tmp_path: Path) -> None:
    plan = plan_preprocess([videos], tmp_path / "data", make_settings(workers=3), process=fake_video)
    assert plan.describe()["videos"] == "12 (0 done, 12 to do)"
    assert plan.pending_bytes == sum(path.stat().st_size for path in videos.rglob("*.mp4"))
    assert plan.workers == 3
    assert not (tmp_path / "data").exists()

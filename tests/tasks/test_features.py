"""Pass 2: what is written, what is made again, and what a crash leaves behind."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.weights import MissingWeights, WeightsStore
from tasks.data.dataset import Dataset, DatasetError
from tasks.data.feature_index import feature_records, read_feature_index, read_feature_info, read_feature_rejects
from tasks.data.lock import dataset_lock
from tasks.data.readers import read_clip
from tasks.data.shards import read_npy
from tasks.data.storage import Storage
from tasks.preprocessing import features
from tasks.preprocessing.executor import Died, Executor, Finished, Raised
from tasks.preprocessing.features import FeatureJob, extract_features, run_feature_job
from tasks.preprocessing.model_workers import ActorExecutor
from tasks.preprocessing.speech_networks import load_network, speech_rows
from tasks.settings import HubertSettings, RunSettings, Wav2VecSettings
from tests.tasks.small_dataset import clip_sample, small_dataset, write_shard

RANDOM = Wav2VecSettings(init="random")
RUN = RunSettings(executor="local", workers=1)


class InProcess(Executor[FeatureJob, Any]):
    """Runs jobs here and now; `poison` clips kill the worker that touches them, `broken` shards raise."""

    poison: frozenset[str] = frozenset()
    always: bool = False
    error: OSError | None = None

    def __init__(self, function: Any, workers: int = 1) -> None:
        super().__init__(function, 1)
        self.jobs: list[FeatureJob] = []

    def running(self) -> list[FeatureJob]:
        return []

    def wait(self, seconds: float) -> list[Any]:
        job = self.queue.popleft()
        self.jobs.append(job)
        if self.error is not None:
            return [Raised(job, "OSError", str(self.error), self.error.errno, "")]
        keys = Dataset.open(job.dataset).clips()
        mine = {key for key, shard in zip(keys["key"].to_pylist(), keys["shard"].to_pylist(), strict=True) if shard == job.shard}
        touched = {job.only} if job.only else mine - set(job.quarantined)
        if touched & self.poison or (self.always and job.only is None and job.shard == 0):
            return [Died(job, signal.SIGSEGV, blame=True)]
        return [Finished(job, self.function(job))]

    def close(self) -> None:
        self.queue.clear()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features") / "dataset"
    small_dataset(folder, shards=2, videos=3, clips=2)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "dataset")
    return tmp_path / "dataset"


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> type[InProcess]:
    """Replaces the executor, so that a test of what is written starts no process."""

    class Fresh(InProcess):
        instances: list[InProcess] = []  # noqa: RUF012

    def make(kind: str, function: Any, *, workers: int, device: str) -> InProcess:
        Fresh.instances.append(Fresh(function))
        return Fresh.instances[-1]

    monkeypatch.setattr(features, "make_model_executor", make)
    return Fresh


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "features" / "wav2vec").glob("*.tar"))}


@pytest.mark.slow
def test_every_clip_with_sound_gets_its_rows_by_child_processes(folder: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    result = extract_features(str(folder), RANDOM, RUN, lambda *told: seen.append(told))
    assert (result.shards, result.made, result.clips, result.rejects) == (2, 2, 10, {"no_audio": 2})
    assert seen[0][:2] == (0, 12)
    assert seen[-1][:2] == (12, 12)
    dataset = Dataset.open(folder)
    model = load_network(RANDOM)
    for row in dataset.clips().to_pylist():
        if row["has_audio"]:
            clip = read_clip(dataset, row["key"], features=["wav2vec"])
            expected = speech_rows(clip.audio, model)
            assert np.abs(clip.features["wav2vec"].astype(np.float32) - expected.astype(np.float32)).max() < 5e-3


def test_what_is_written(folder: Path, in_process: type[InProcess]) -> None:
    import tarfile

    result = extract_features(str(folder), RANDOM, RUN)
    with tarfile.open(folder / "features" / "wav2vec" / "000000.tar") as tar:
        names = tar.getnames()
        assert len(names) == 5
        assert all(name.endswith(".wav2vec.npy") and name.count(".") == 2 for name in names)
        assert names == sorted(names)
        array = read_npy(tar.extractfile(names[0]).read())
    storage = Storage.at(folder)
    index = {row["key"]: row for row in read_feature_index(storage, "wav2vec").to_pylist()}
    row = index[names[0].split(".")[0]]
    assert array.shape == (row["frames"], row["layers"], row["width"]) == (12, 3, 32)
    raw = (folder / "features" / "wav2vec" / "000000.tar").read_bytes()[row["offset"] : row["offset"] + array.nbytes]
    assert raw == array.tobytes()

    rejects = read_feature_rejects(storage, "wav2vec").to_pylist()
    silent = [row["key"] for row in Dataset.open(folder).clips().to_pylist() if not row["has_audio"]]
    assert [row["key"] for row in rejects] == silent
    assert {(row["scope"], row["code"], row["step"]) for row in rejects} == {("feature", "no_audio", "wav2vec")}

    record = feature_records(storage, "wav2vec")[0]
    assert record.counts == {"clips": 5, "missing": 1, "frames": 12 * 3 + 13 * 2}
    for name, entry in record.files.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry.sha256
    info = read_feature_info(storage, "wav2vec")
    assert info["fingerprint"] == result.fingerprint
    assert info["pretrained"] is False
    assert info["settings"]["init"] == "random"


def test_hubert_rows_lie_beside_wav2vecs_and_a_made_videos_sound_gets_the_same(folder: Path, in_process: type[InProcess]) -> None:
    from tasks.generation.sound_features import sound_features

    extract_features(str(folder), RANDOM, RUN)
    whole = hashes(folder)
    result = extract_features(str(folder), HubertSettings(init="random"), RUN)
    assert (result.made, result.clips, result.rejects) == (2, 10, {"no_audio": 2})
    assert hashes(folder) == whole
    dataset = Dataset.open(folder)
    info = read_feature_info(dataset.storage, "hubert")
    assert info["version"].startswith("hubert/1 random@")
    record = {"dataset": {"features": {"hubert": {part: info[part] for part in ("version", "settings")}}}}
    heard = [row for row in dataset.clips().to_pylist() if row["has_audio"]]
    for row in heard[:3]:
        clip = read_clip(dataset, row["key"], features=["hubert", "wav2vec"])
        assert clip.features["hubert"].shape == (clip.num_frames, 2, 32)
        assert clip.features["wav2vec"].shape == (clip.num_frames, 3, 32)
        assert np.array_equal(sound_features(("hubert",), clip.audio, record)["hubert"], clip.features["hubert"])
    assert [row["step"] for row in read_feature_rejects(dataset.storage, "hubert").to_pylist()] == ["hubert"] * 2


def test_second_run_makes_nothing_and_changes_nothing(folder: Path, in_process: type[InProcess]) -> None:
    first = extract_features(str(folder), RANDOM, RUN)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    second = extract_features(str(folder), RANDOM, RUN)
    assert second.made == 0
    assert second.fingerprint == first.fingerprint
    assert (second.clips, second.rejects) == (first.clips, first.rejects)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == times
    assert len(in_process.instances) == 1


def test_only_new_and_changed_shards_are_made(folder: Path, in_process: type[InProcess]) -> None:
    extract_features(str(folder), RANDOM, RUN)
    before = hashes(folder)
    write_shard(folder, 1, {("id99", "v99"): [clip_sample("id99", "v99", 0, frames=8)]})
    write_shard(folder, 2, {("id98", "v98"): [clip_sample("id98", "v98", 0, frames=9)]})
    result = extract_features(str(folder), RANDOM, RUN)
    assert (result.shards, result.made, result.clips) == (3, 2, 7)
    after = hashes(folder)
    assert after["000000.tar"] == before["000000.tar"]
    assert after["000001.tar"] != before["000001.tar"]
    assert len(after) == 3


def test_other_settings_make_all_shards_again(folder: Path, in_process: type[InProcess]) -> None:
    extract_features(str(folder), RANDOM, RUN)
    other = extract_features(str(folder), Wav2VecSettings(init="random", random_layers=2), RUN)
    assert other.made == 2
    assert read_feature_index(Storage.at(folder), "wav2vec")["layers"].to_pylist() == [2] * 10
    assert extract_features(str(folder), Wav2VecSettings(init="random", random_layers=2, device="cpu"), RUN).made == 0


def test_a_run_that_was_killed_before_its_record_is_repeated(folder: Path, in_process: type[InProcess]) -> None:
    extract_features(str(folder), RANDOM, RUN)
    whole = hashes(folder)
    place = folder / "features" / "wav2vec"
    (place / "000001.json").unlink()
    (place / "000001.tar").write_bytes(b"half")
    (place / ".000001.tar.abc.tmp").write_bytes(b"rest of a killed run")
    assert extract_features(str(folder), RANDOM, RUN).made == 1
    assert hashes(folder) == whole
    assert not list(place.glob(".*"))


def test_an_exception_while_writing_leaves_no_record(folder: Path, in_process: type[InProcess], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features, "parquet_bytes", fail)
    job = FeatureJob(dataset=str(folder), shard=0, settings=RANDOM, inputs={"a": "b"}, weights=WeightsStore(root=folder))
    with pytest.raises(OSError, match="No space"):
        run_feature_job(job)
    assert not list((folder / "features" / "wav2vec").iterdir())


def test_a_clip_that_kills_its_worker_is_found_and_left_out(folder: Path, in_process: type[InProcess]) -> None:
    keys = [row["key"] for row in Dataset.open(folder).clips().to_pylist() if row["shard"] == 0 and row["has_audio"]]
    in_process.poison = frozenset(keys[1:2])
    result = extract_features(str(folder), RANDOM, RUN)
    assert result.rejects == {"no_audio": 2, "crashed": 1}
    assert result.clips == 9
    rejects = {row["key"]: row["code"] for row in read_feature_rejects(Storage.at(folder), "wav2vec").to_pylist()}
    assert rejects[keys[1]] == "crashed"
    whole = [job for job in in_process.instances[0].jobs if job.shard == 0 and job.only is None]
    assert len(whole) == RUN.max_crashes + 1
    assert extract_features(str(folder), RANDOM, RUN).made == 0, "a quarantined clip is not tried again with the same settings"


def test_a_shard_that_dies_without_a_clip_at_fault_is_an_error(folder: Path, in_process: type[InProcess]) -> None:
    in_process.always = True
    with pytest.raises(DatasetError, match=r"shard 0 kills its worker process.*memory"):
        extract_features(str(folder), RANDOM, RUN)


def test_a_full_disk_stops_the_run_as_what_it_is(folder: Path, in_process: type[InProcess]) -> None:
    in_process.error = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left") as raised:
        extract_features(str(folder), RANDOM, RUN)
    assert raised.value.errno == 28
    in_process.error = OSError(5, "Input/output error")
    with pytest.raises(DatasetError, match="shard 0 failed: OSError"):
        extract_features(str(folder), RANDOM, RUN)


def test_sound_that_does_not_fit_its_clip_is_a_reject(folder: Path, in_process: type[InProcess]) -> None:
    from dataclasses import replace

    from tests.tasks.small_dataset import wav_bytes, waveform

    bad = replace(clip_sample("id50", "v50", 0, frames=8), wav=wav_bytes(waveform("x", 7)))
    write_shard(folder, 2, {("id50", "v50"): [bad]})
    result = extract_features(str(folder), RANDOM, RUN)
    assert result.rejects == {"no_audio": 2, "failed": 1}
    messages = read_feature_rejects(Storage.at(folder), "wav2vec")["message"].to_pylist()
    assert "4480 samples of sound for 8 frames" in messages


def test_missing_weights_stop_before_any_work(folder: Path, in_process: type[InProcess], tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match=r"wav2vec\.init=random"):
        extract_features(str(folder), Wav2VecSettings(), RUN, weights=WeightsStore(root=tmp_path / "weights", offline=True))
    assert not in_process.instances
    assert not (folder / "features").exists()
    assert read_feature_info(Storage.at(folder), "wav2vec") is None


def test_a_dataset_that_another_run_writes_is_left_alone(folder: Path, in_process: type[InProcess]) -> None:
    with dataset_lock(Storage.at(folder)), pytest.raises(DatasetError, match="another run is writing"):
        extract_features(str(folder), RANDOM, RUN)


def die_or_double(job: int) -> tuple[int, int]:
    """A job of the tests below: its process id and twice the number; 13 dies, 14 raises."""
    if job == 13:
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == 14:
        raise OSError(28, "No space left on device")
    return os.getpid(), 2 * job


def drain(executor: Executor[int, tuple[int, int]], jobs: list[int]) -> dict[int, Any]:
    outcomes = {}
    with executor:
        for job in jobs:
            executor.submit(job)
        while executor.outstanding:
            outcomes |= {outcome.job: outcome for outcome in executor.wait(1.0)}
    return outcomes


@pytest.mark.ray
@pytest.mark.slow
def test_actors_keep_their_process_and_are_replaced_when_they_die(folder: Path) -> None:
    """Real Ray: many jobs per process, a killed actor and an exception are outcomes, and pass 2 gives the bytes of no Ray."""
    import ray

    from tasks.preprocessing.executor import start_ray

    start_ray(1)
    try:
        outcomes = drain(ActorExecutor(die_or_double, 1, device="cpu"), [1, 2, 13, 3, 14, 4])
        assert isinstance(outcomes[13], Died)
        assert outcomes[13].blame
        assert isinstance(outcomes[14], Raised)
        assert (outcomes[14].type, outcomes[14].errno) == ("OSError", 28)
        finished = {job: outcome.result for job, outcome in outcomes.items() if isinstance(outcome, Finished)}
        assert {job: double for job, (_, double) in finished.items()} == {1: 2, 2: 4, 3: 6, 4: 8}
        assert finished[1][0] == finished[2][0] != finished[3][0] == finished[4][0]

        extract_features(str(folder), RANDOM, RunSettings(executor="ray", workers=1))
        with_ray = hashes(folder)
        assert ray.is_initialized(), "a Ray that was there before stays"
    finally:
        ray.shutdown()
    for shard in range(2):
        job = FeatureJob(dataset=str(folder), shard=shard, settings=RANDOM, inputs={"a": "b"}, weights=WeightsStore(root=folder))
        run_feature_job(job)
    assert hashes(folder) == with_ray

"""Reading back: the right bytes, only the selected part, exact resumption, readable errors."""

from __future__ import annotations

import gc
import itertools
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.data.dataset import Dataset
from tasks.data.feature_index import MissingFeatures
from tasks.data.readers import BadShard, BatchStream, read_clip, read_pool, read_selected
from tasks.data.splits import Selected, Selection, select
from tasks.data.storage import Storage
from tasks.preprocessing.features import extract_features
from tasks.settings import FilterSettings, RunSettings, SplitSettings, Wav2VecSettings
from tests.tasks.small_dataset import (
    SIZE,
    code,
    frame_of,
    picture,
    refuse,
    small_dataset,
    waveform,
    which_clip,
    which_pool,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("dataset"))


def everything(dataset: Dataset, view: str = "clips") -> Selection:
    table = dataset.clips() if view == "clips" else dataset.pools()
    return tuple(Selected(key, 0, frames) for key, frames in zip(table["key"].to_pylist(), table["num_frames"].to_pylist(), strict=True))


def stream(dataset: Dataset, **changes: object) -> BatchStream:
    settings = {"view": "clips", "selection": everything(dataset), "examples": which_clip, "batch_size": 4, "seed": 7, **changes}
    return BatchStream(dataset=dataset, **settings)


def take(batches: BatchStream, count: int) -> list[dict[str, list[float]]]:
    return [{name: value.tolist() for name, value in batch.items()} for batch in itertools.islice(batches, count)]


def test_a_clip_is_what_was_written(dataset: Dataset) -> None:
    for key in dataset.clips()["key"].to_pylist()[:4]:
        clip = read_clip(dataset, key)
        count = clip.num_frames
        assert clip.key == key
        assert clip.video == key.rsplit("_", 1)[0]
        assert clip.identity == key.split("_", 1)[0]
        assert clip.size == SIZE
        assert clip.landmarks.dtype == clip.confidence.dtype == np.float32
        assert (clip.landmarks[..., 0] == code(key)).all()
        assert clip.landmarks[:, 0, 1].tolist() == list(range(count))
        assert clip.confidence[-1] == 1
        assert clip.meta["uri"].endswith(".mp4")
        if clip.audio is not None:
            assert clip.audio.shape == (640 * count,)
            assert np.abs(clip.audio - waveform(key, count)).max() < 1e-4
        frames = clip.read_frames([count - 1, 0, 3, 3])
        assert frames.shape == (4, SIZE, SIZE, 3)
        for number, image in zip([count - 1, 0, 3, 3], frames, strict=True):
            assert np.abs(image.astype(int) - picture(key, number)).mean() < 4
            assert frame_of(image) == number
        with pytest.raises(IndexError):
            clip.read_frames([count])
        with pytest.raises(IndexError):
            clip.read_frames([-1])


def test_a_silent_clip_has_no_audio(dataset: Dataset) -> None:
    silent = dataset.clips()["key"].filter(np.logical_not(dataset.clips()["has_audio"].to_numpy(zero_copy_only=False)))
    assert len(silent) == 3
    assert read_clip(dataset, silent[0].as_py()).audio is None


def test_a_window_shows_nothing_outside_of_it(dataset: Dataset) -> None:
    key = dataset.clips()["key"][0].as_py()
    whole, part = read_clip(dataset, key), read_selected(dataset, "clips", Selected(key, 5, 9))
    assert part.num_frames == 4
    assert np.array_equal(part.landmarks, whole.landmarks[5:9])
    assert np.array_equal(part.confidence, whole.confidence[5:9])
    assert np.array_equal(part.audio, whole.audio[5 * 640 : 9 * 640])
    assert np.array_equal(part.read_frames([0, 3]), whole.read_frames([5, 8]))
    for outside in (-1, 4):
        with pytest.raises(IndexError):
            part.read_frames([outside])


def test_a_pool_and_the_part_of_it_that_stays(dataset: Dataset) -> None:
    key = dataset.pools()["key"][1].as_py()
    pool = read_pool(dataset, key)
    assert len(pool) == len(pool.clips) == len(pool.frames) == len(pool.landmarks) == 7
    for number in range(len(pool)):
        assert frame_of(pool.image(number)) == pool.frames[number] == pool.landmarks[number, 0, 0]
        assert np.abs(pool.image(number).astype(int) - picture(pool.clips[number], int(pool.frames[number]))).mean() < 3
    part = read_selected(dataset, "keyframes", Selected(key, 0, 2, (1, 5)))
    assert len(part) == 2
    assert part.frames.tolist() == pool.frames[[1, 5]].tolist()
    assert part.clips == (pool.clips[1], pool.clips[5])
    assert part.jpegs == (pool.jpegs[1], pool.jpegs[5])
    assert np.array_equal(part.landmarks, pool.landmarks[[1, 5]])


@pytest.mark.parametrize("read", [read_clip, read_pool])
def test_an_unknown_key_is_named(dataset: Dataset, read: object) -> None:
    with pytest.raises(KeyError, match="nobody_v_0 is not in the dataset"):
        read(dataset, "nobody_v_0")


def test_only_the_selected_samples_are_read_from_a_shard(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0
    original = Storage.read_ranges

    def counting(self: Storage, name: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        nonlocal read
        read += sum(size for _, size in ranges)
        return original(self, name, ranges)

    monkeypatch.setattr(Storage, "read_ranges", counting)
    read_clip(dataset, dataset.clips()["key"][0].as_py())
    shard = Path(dataset.url) / "clips" / "000000.tar"
    assert 0 < read < shard.stat().st_size / 4


@pytest.mark.parametrize(("view", "examples", "name"), [("clips", which_clip, "clip"), ("keyframes", which_pool, "pool")])
def test_two_ranks_together_read_each_sample_once_per_epoch(dataset: Dataset, view: str, examples: object, name: str) -> None:
    selection = everything(dataset, view)
    epoch = len(selection)
    ranks = [stream(dataset, view=view, selection=selection, examples=examples, batch_size=1, rank=rank, world=2) for rank in range(2)]
    columns = [[value for batch in take(rank, 3 * epoch // 2 + 1) for value in batch[name]] for rank in ranks]
    seen = [value for pair in zip(*columns, strict=True) for value in pair]
    expected = sorted(seen[:epoch])
    assert sorted(seen[epoch : 2 * epoch]) == sorted(seen[2 * epoch : 3 * epoch]) == expected
    if view == "keyframes":
        assert expected == list(range(9))
    assert seen[:epoch] != seen[epoch : 2 * epoch]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("prefetch", [0, 3])
def test_resumed_stream_goes_on_as_if_it_had_not_stopped(dataset: Dataset, world: int, prefetch: int) -> None:
    rank = world - 1
    whole = take(stream(dataset, rank=rank, world=world, prefetch=prefetch), 14)
    for stop in (0, 1, 5, 9):
        first = stream(dataset, rank=rank, world=world, prefetch=prefetch)
        assert take(first, stop) == whole[:stop]
        state = json.loads(json.dumps(first.state_dict()))
        second = stream(dataset, rank=rank, world=world, prefetch=prefetch)
        second.load_state_dict(state)
        assert take(second, 14 - stop) == whole[stop:]


def test_position_counts_what_was_handed_out_not_what_was_made_ahead(dataset: Dataset) -> None:
    batches = stream(dataset, prefetch=4)
    iterator = iter(batches)
    for count in range(1, 4):
        next(iterator)
        state = batches.state_dict()
        assert state["epoch"] * 18 + state["position"] == 4 * count
    iterator.close()


@pytest.mark.slow
def test_loader_processes_change_nothing_and_resume_exactly(dataset: Dataset) -> None:
    """Spawned processes make the same batches in the same order as none, before and after a restart."""
    whole = take(stream(dataset, rank=1, world=2, batch_size=3), 8)
    first = stream(dataset, rank=1, world=2, batch_size=3, loader_workers=2)
    assert take(first, 5) == whole[:5]
    second = stream(dataset, rank=1, world=2, batch_size=3, loader_workers=1)
    second.load_state_dict(first.state_dict())
    assert take(second, 3) == whole[5:]


@pytest.mark.slow
def test_a_bug_in_an_example_reaches_the_caller_from_a_process(dataset: Dataset) -> None:
    with pytest.raises(RuntimeError, match="no example from"):
        take(stream(dataset, examples=refuse, loader_workers=1), 1)


def test_a_resumed_run_may_use_another_number_of_ranks(dataset: Dataset) -> None:
    whole = take(stream(dataset, batch_size=4), 6)
    first = stream(dataset, batch_size=4)
    take(first, 2)
    halves = []
    for rank in range(2):
        half = stream(dataset, batch_size=2, rank=rank, world=2)
        half.load_state_dict(first.state_dict())
        halves.append(take(half, 4))
    joined = [{name: one[name] + two[name] for name in one} for one, two in zip(*halves, strict=True)]
    assert joined == whole[2:]


def test_a_state_of_other_data_or_another_seed_is_refused(dataset: Dataset) -> None:
    state = stream(dataset).state_dict()
    with pytest.raises(ValueError, match="seed was 7, now it is 8"):
        stream(dataset, seed=8).load_state_dict(state)
    with pytest.raises(ValueError, match="the samples have changed"):
        stream(dataset, selection=everything(dataset)[:-1]).load_state_dict(state)
    moved = (Selected(everything(dataset)[0].key, 0, 5), *everything(dataset)[1:])
    with pytest.raises(ValueError, match="the samples have changed"):
        stream(dataset, selection=moved).load_state_dict(state)


def test_reading_leaves_the_global_generators_alone_and_no_thread_behind(dataset: Dataset) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    take(stream(dataset), 5)
    assert torch.equal(torch.rand(4), expected)
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_a_bug_in_an_example_reaches_the_caller(dataset: Dataset) -> None:
    with pytest.raises(RuntimeError, match="no example from"):
        take(stream(dataset, examples=refuse), 1)


def test_without_shuffling_samples_come_in_the_order_of_the_selection(dataset: Dataset) -> None:
    keys = dataset.clips()["key"].to_pylist()
    batches = take(stream(dataset, shuffle=False, batch_size=6), 4)
    assert [value for batch in batches for value in batch["clip"]] == [code(key) for key in keys + keys[:6]]


def test_a_split_by_time_trains_on_the_beginnings_only(dataset: Dataset) -> None:
    split = select(dataset, "keyframes", FilterSettings(), SplitSettings(by="time", holdout=0.3))
    cut = {12: 8, 13: 9}
    frames = dict(zip(dataset.clips()["key"].to_pylist(), dataset.clips()["num_frames"].to_pylist(), strict=True))
    for side, belongs in ((split.train, lambda frame, at: frame < at), (split.held_out, lambda frame, at: frame >= at)):
        assert len(side) == 9
        for one in side:
            pool = read_selected(dataset, "keyframes", one)
            assert all(belongs(frame, cut[frames[clip]]) for clip, frame in zip(pool.clips, pool.frames, strict=True))


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"rank": 1}, {"loader_workers": -1}, {"selection": ()}, {"prefetch": -1}])
def test_senseless_settings_are_refused(dataset: Dataset, changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        stream(dataset, **changes)


def test_a_cut_or_exchanged_shard_is_noticed(dataset: Dataset, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset.url, copy)
    tar = copy / "clips" / "000000.tar"
    content = tar.read_bytes()
    last = Dataset.open(copy).clips().filter(Dataset.open(copy).clips()["shard"].to_numpy() == 0)["key"][-1].as_py()
    # Cut on a member boundary, where a tar still reads as a good, shorter one.
    first_member = Dataset.open(copy).row("clips", last)["members"][0]
    tar.write_bytes(content[: first_member["offset"] - 512])
    with pytest.raises(BadShard, match=r"shorter than its index says.*run preprocess again"):
        read_clip(Dataset.open(copy), last)
    tar.write_bytes((copy / "clips" / "000001.tar").read_bytes().ljust(len(content), b"\0"))
    with pytest.raises(BadShard, match="does not hold"):
        read_clip(Dataset.open(copy), Dataset.open(copy).clips()["key"][0].as_py())


def test_missing_features_name_the_command(dataset: Dataset) -> None:
    with pytest.raises(MissingFeatures, match=r"no wav2vec features.*python -m flows preprocess VIDEOS --out"):
        stream(dataset, features=("wav2vec",))
    with pytest.raises(ValueError, match="features belong to clips"):
        stream(dataset, view="keyframes", selection=everything(dataset, "keyframes"), features=("wav2vec",))


def test_object_storage_reads_the_same_batches(dataset: Dataset) -> None:
    """fsspec's memory file system takes the same way as S3: byte ranges, no local files."""
    import fsspec

    fsspec.filesystem("memory").put(dataset.url, "/dataset", recursive=True)
    remote = Dataset.open("memory://dataset")
    assert remote.storage.local is None
    assert take(stream(remote, selection=everything(remote)), 4) == take(stream(dataset), 4)


@pytest.mark.slow
def test_features_come_with_their_clip_and_window(dataset: Dataset, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset.url, copy)
    extract_features(str(copy), Wav2VecSettings(init="random"), RunSettings(executor="local", workers=1))
    opened = Dataset.open(copy)
    key = opened.clips()["key"][0].as_py()
    whole = read_clip(opened, key, features=["wav2vec"])
    assert whole.features["wav2vec"].shape == (whole.num_frames, 3, 32)
    assert whole.features["wav2vec"].dtype == np.float16
    part = read_selected(opened, "clips", Selected(key, 3, 7), features=["wav2vec"])
    assert np.array_equal(part.features["wav2vec"], whole.features["wav2vec"][3:7])

    import fsspec

    fsspec.filesystem("memory").put(str(copy), "/with-features", recursive=True)
    remote = read_selected(Dataset.open("memory://with-features"), "clips", Selected(key, 3, 7), features=["wav2vec"])
    assert np.array_equal(remote.features["wav2vec"], part.features["wav2vec"])

    with pytest.raises(MissingFeatures, match=r"3 of 18 selected clips have no wav2vec features.*filters.need_audio=true"):
        stream(opened, selection=everything(opened), features=("wav2vec",))
    spoken = select(opened, "clips", FilterSettings(need_audio=True), SplitSettings())
    assert len(take(stream(opened, selection=spoken.train, features=("wav2vec",)), 3)) == 3

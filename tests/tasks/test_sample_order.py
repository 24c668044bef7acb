"""The order of reading: every sample once per epoch, whoever reads, and near one another on the disk."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.sample_order import SampleOrder, epoch_order

shard_lists = st.lists(st.integers(0, 6), min_size=1, max_size=40).map(lambda shards: np.array(sorted(shards)))


@settings(deadline=None)
@given(
    shards=shard_lists,
    seed=st.integers(0, 9),
    world=st.integers(1, 5),
    batch_size=st.integers(1, 7),
    shuffle=st.booleans(),
    skipped=st.integers(0, 30),
)
def test_all_ranks_together_read_every_sample_once_per_epoch(
    shards: np.ndarray, seed: int, world: int, batch_size: int, shuffle: bool, skipped: int
) -> None:
    order = SampleOrder(shards=shards, seed=seed, shuffle=shuffle)
    epochs: dict[int, list[int]] = {}
    places = set()
    for batch in range(2 + 3 * len(shards) // (world * batch_size)):
        for rank in range(world):
            for place in order.batch(batch, start=skipped, batch_size=batch_size, rank=rank, world=world):
                assert (place.epoch, place.position) not in places
                places.add((place.epoch, place.position))
                epochs.setdefault(place.epoch, []).append(place.sample)
    first, last = min(epochs), max(epochs)
    assert last - first >= 2
    for epoch in range(first + 1, last):
        assert sorted(epochs[epoch]) == list(range(len(shards)))
    assert len(epochs[first]) == len(shards) - skipped % len(shards)


def test_ranks_with_small_batches_see_what_one_rank_with_a_large_batch_sees() -> None:
    order = SampleOrder(shards=np.arange(11) // 3, seed=4, shuffle=True)
    for batch in range(6):
        one = order.batch(batch, start=0, batch_size=4, rank=0, world=1)
        two = [place for rank in range(2) for place in order.batch(batch, start=0, batch_size=2, rank=rank, world=2)]
        assert one == two


def test_order_depends_on_seed_and_epoch_only() -> None:
    shards = np.arange(60) // 10
    orders = {tuple(epoch_order(shards, seed=seed, epoch=epoch, shuffle=True)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    again = epoch_order(shards, seed=1, epoch=2, shuffle=True)
    assert tuple(again) in orders
    assert list(epoch_order(shards, seed=1, epoch=2, shuffle=False)) == list(range(60))


@given(seed=st.integers(0, 50))
def test_samples_of_a_group_of_shards_are_mixed_and_groups_follow_one_another(seed: int) -> None:
    shards = np.repeat(np.arange(8), 25)
    read = shards[epoch_order(shards, seed=seed, epoch=0, shuffle=True, mix=4)]
    first, second = set(read[:100]), set(read[100:])
    assert len(first) == len(second) == 4
    assert not first & second
    assert len(set(read[:20])) > 1, "one shard at a time would put one video into a batch"


def test_a_position_survives_pickling_and_no_sample_is_an_error() -> None:
    order = SampleOrder(shards=np.arange(9) // 2, seed=3, shuffle=True)
    copy = pickle.loads(pickle.dumps(order))
    assert [copy.at(place) for place in range(20)] == [order.at(place) for place in range(20)]
    with pytest.raises(ValueError, match="no sample"):
        SampleOrder(shards=np.array([]), seed=0, shuffle=True)

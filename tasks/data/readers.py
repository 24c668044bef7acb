"""Read a dataset back: one sample by its key, or an endless stream of training batches that resumes exactly."""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from models.family import Batch, ExampleMaker, View
from models.views import Clip, Keyframes
from tasks.data.sample_order import SampleOrder
from tasks.data.sample_reader import BadShard, SampleReader
from tasks.data.splits import Selected, Selection

if TYPE_CHECKING:
    from tasks.data.dataset import Dataset as StoredDataset

__all__ = ["BadShard", "BatchStream", "read_clip", "read_pool", "read_selected"]


def read_clip(dataset: StoredDataset, key: str, *, features: Sequence[str] = ()) -> Clip:
    """One whole clip by its key; only its own bytes are read.

    Raises:
        KeyError: no such clip.
        MissingFeatures: it has no such features.
    """
    import pyarrow.compute as pc

    clips = dataset.clips()
    frames = clips.filter(pc.equal(clips.column("key"), key)).column("num_frames").to_pylist()
    clip: Clip = read_selected(dataset, "clips", Selected(key, 0, frames[0] if frames else 0), features=features)
    return clip


def read_pool(dataset: StoredDataset, key: str) -> Keyframes:
    """One whole keyframes pool by its key (`<identity>_<video>_pool`).

    Raises:
        KeyError: no such pool.
    """
    pool: Keyframes = read_selected(dataset, "keyframes", Selected(key, 0, 0))
    return pool


def read_selected(dataset: StoredDataset, view: View, selected: Selected, *, features: Sequence[str] = ()) -> Any:
    """One entry of a selection, restricted to its window or frames: a `Clip` or `Keyframes` as the view is."""
    return SampleReader(dataset=dataset, view=view, selection=(selected,), features=features).read([0])[0]


class BatchStream:
    """Endless batches of one rank.

    Batch k of a rank is a pure function of (selection, seed, k): neither the number of loader processes nor a restart
    changes it, and each example is made with its own generator seeded by (seed, epoch, position in the epoch).
    All ranks together read every selected sample exactly once per epoch; a batch may span two epochs.

    Args:
        dataset: where the samples lie.
        view: which view.
        selection: which samples (`tasks.data.splits.select`).
        features: names of learned features to read beside clips.
        examples: turns a sample into one example; picklable where `loader_workers` > 0.
        batch_size: examples per batch of this rank.
        seed: of order and examples.
        rank, world: this reader and the number of readers; all use one seed and selection.
        loader_workers: processes that make batches ahead; 0 uses a thread.
        shuffle: False reads in the order of the selection.
        prefetch: batches made ahead of the one handed out, per process (or by the thread); 0 without processes makes
            each batch when it is asked for.
        pin_memory: page-locked tensors, for GPUs; with processes only.

    Raises:
        ValueError: an empty selection, or sizes that make no sense.
        MissingFeatures: a feature that the dataset, or a selected clip, does not have.

    Example:
        >>> stream = BatchStream(dataset=dataset, view="clips", selection=split.train, examples=maker, batch_size=4, seed=0)
        >>> for step, batch in zip(range(100), stream): ...
        >>> state = stream.state_dict()  # plain numbers; a new stream with load_state_dict(state) goes on with batch 100
    """

    def __init__(
        self,
        *,
        dataset: StoredDataset,
        view: View,
        selection: Selection,
        examples: ExampleMaker,
        batch_size: int,
        seed: int,
        features: Sequence[str] = (),
        rank: int = 0,
        world: int = 1,
        loader_workers: int = 0,
        shuffle: bool = True,
        prefetch: int = 2,
        pin_memory: bool = False,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world or loader_workers < 0 or prefetch < 0:
            raise ValueError(
                f"no stream with batch_size={batch_size}, rank {rank} of {world}, {loader_workers} workers, prefetch={prefetch}"
            )
        if not selection:
            raise ValueError("the selection is empty: there is nothing to read")
        reader = SampleReader(dataset=dataset, view=view, selection=selection, features=features)
        order = SampleOrder(shards=reader.shard, seed=seed, shuffle=shuffle)
        self._batches = _Batches(reader=reader, order=order, examples=examples, batch_size=batch_size, rank=rank, world=world)
        self._identity = {"seed": seed, "shuffle": shuffle, "samples": len(selection), "selection": _digest(selection)}
        self._place = 0
        self._loader_workers = loader_workers
        self._prefetch = prefetch
        self._pin_memory = pin_memory

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the current position on; what is handed out counts at once."""
        start = self._place
        batches = self._batches
        step = batches.world * batches.batch_size
        for index, batch in enumerate(self._made(start)):
            self._place = start + (index + 1) * step
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position behind the batches handed out so far, in plain values."""
        epoch, position = divmod(self._place, len(self._batches.order))
        return {
            **self._identity,
            "epoch": epoch,
            "position": position,
            "world": self._batches.world,
            "batch_size": self._batches.batch_size,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position; iterators made afterwards start there. Another world or batch size goes on without gap or repeat.

        Raises:
            ValueError: the state belongs to another seed or another selection of samples.
        """
        for name, mine in self._identity.items():
            if state[name] != mine:
                what = "the samples have changed" if name in {"samples", "selection"} else f"{name} was {state[name]}, now it is {mine}"
                raise ValueError(
                    f"the data position cannot be resumed: {what}; give the same dataset, filters, split and seed, or start a new run"
                )
        self._place = int(state["epoch"]) * len(self._batches.order) + int(state["position"])

    def _made(self, start: int) -> Iterator[Batch]:
        if self._loader_workers:
            return iter(self._loader(start))
        return self._ahead(start)

    def _ahead(self, start: int) -> Iterator[Batch]:
        """Batches made by a thread while the caller trains."""
        if not self._prefetch:
            yield from (self._batches[start, index] for index in itertools.count())
        waiting: deque[Future[Batch]] = deque()
        indices = itertools.count()
        executor = ThreadPoolExecutor(1, thread_name_prefix="batches")
        try:
            while True:
                while len(waiting) < self._prefetch:
                    waiting.append(executor.submit(self._batches.__getitem__, (start, next(indices))))
                yield waiting.popleft().result()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

    def _loader(self, start: int) -> DataLoader[Batch]:
        import torch

        # spawn: the parent may hold threads of Ray, MLflow or OpenMP, which a fork would copy in the middle of a lock.
        # An own generator: the loader's base seed would otherwise be drawn from the one that training is reproducible by.
        return DataLoader(
            self._batches,
            batch_size=None,
            sampler=_Places(start),
            num_workers=self._loader_workers,
            prefetch_factor=max(1, self._prefetch),
            multiprocessing_context="spawn",
            worker_init_fn=_one_thread,
            generator=torch.Generator(),
            pin_memory=self._pin_memory,
        )


class _Batches(Dataset[Batch]):
    """Batch (start, k) by number: what makes order and examples independent of who makes them."""

    def __init__(self, *, reader: SampleReader, order: SampleOrder, examples: ExampleMaker, batch_size: int, rank: int, world: int) -> None:
        self.reader = reader
        self.order = order
        self.examples = examples
        self.batch_size = batch_size
        self.rank = rank
        self.world = world

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        start, index = place
        places = self.order.batch(index, start=start, batch_size=self.batch_size, rank=self.rank, world=self.world)
        samples = self.reader.read([place.sample for place in places])
        batch: Batch = default_collate(
            [
                self.examples(sample, np.random.default_rng([self.order.seed, place.epoch, place.position]))
                for sample, place in zip(samples, places, strict=True)
            ]
        )
        return batch


class _Places(Sampler[tuple[int, int]]):
    """(start, 0), (start, 1), ... without end."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.start, index) for index in itertools.count())


def _one_thread(_: int) -> None:
    import cv2

    cv2.setNumThreads(1)


def _digest(selection: Selection) -> str:
    digest = hashlib.sha256()
    for selected in selection:
        digest.update(repr((selected.key, selected.start, selected.end, selected.frames)).encode())
    return digest.hexdigest()[:16]

"""What a training stage reads: the chosen samples of a dataset as streams of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from models.family import Batch, Face, Family
from tasks.training.request import TrainRequest

if TYPE_CHECKING:
    from tasks.data.dataset import Dataset
    from tasks.data.splits import Selection


class Stream(Protocol):
    """An endless stream of batches that can say where it is and go back there."""

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]:
        """The position behind the batches handed out so far, in plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position; before the first batch is taken."""
        ...


@dataclass(frozen=True, kw_only=True)
class StageData:
    """Training stream and held-out batches of one worker."""

    train: Stream
    held_out: Callable[[int], list[Batch]]
    """The first n held-out batches, the same ones at every call."""
    video_keys: Sequence[str]
    """Persistent keys of the training videos, sorted."""
    samples: int
    held_out_samples: int
    fingerprint: str
    """The dataset's."""
    face: Face | None = None
    """The training frames of the person, where all training pools are of one."""
    stored: Mapping[str, Any] = field(default_factory=dict)
    """How the dataset was made (`tasks.settings.StoredSettings`): a video that the model is to work on is cropped in the same way."""


OpenData = Callable[[TrainRequest, Family, int, int], StageData]
"""Called with (request, family, rank, world) in every worker."""


def open_data(request: TrainRequest, family: Family, rank: int, world: int) -> StageData:
    """Open the dataset, choose samples by the request's filters and split, and make the streams.

    Raises:
        FileNotFoundError, ValueError: no dataset there, or nothing is left after the filters; readable.
    """
    from itertools import islice

    from tasks.data.dataset import Dataset
    from tasks.data.readers import BatchStream
    from tasks.data.splits import select

    stage = family.stage(request.stage)
    config = family.config_type.model_validate(request.config)
    dataset = Dataset.open(request.dataset)
    split = select(dataset, stage.view, request.filters, request.split)
    examples = family.examples(config, request.stage)

    def stream(selection: Any, *, rank: int, world: int, loader_workers: int, shuffle: bool) -> BatchStream:
        return BatchStream(
            dataset=dataset,
            view=stage.view,
            selection=selection,
            features=stage.features,
            examples=examples,
            batch_size=request.train.batch_size,
            seed=request.train.seed,
            rank=rank,
            world=world,
            loader_workers=loader_workers,
            shuffle=shuffle,
        )

    def held_out(count: int) -> list[Batch]:
        return list(islice(iter(stream(split.held_out, rank=0, world=1, loader_workers=0, shuffle=False)), count))

    return StageData(
        train=stream(split.train, rank=rank, world=world, loader_workers=request.train.loader_workers, shuffle=True),
        held_out=held_out,
        video_keys=sorted({selected.key.rsplit("_", 1)[0] for selected in split.train}),
        samples=len(split.train),
        held_out_samples=len(split.held_out),
        fingerprint=dataset.fingerprint,
        stored=dataset.info["settings"],
        face=_face(dataset, split.train) if stage.view == "keyframes" else None,
    )


def _face(dataset: Dataset, selection: Selection) -> Face | None:
    """All frames of the only person in a selection of pools; None where there are several."""
    import numpy as np

    from tasks.data.readers import read_selected

    if len({selected.key.split("_", 1)[0] for selected in selection}) != 1:
        return None
    pools = [read_selected(dataset, "keyframes", selected) for selected in selection]
    images = np.stack([pool.image(index) for pool in pools for index in range(len(pool))])
    return Face(images=images, landmarks=np.concatenate([pool.landmarks for pool in pools]))

"""What a training stage reads: the chosen samples of a dataset as streams of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from models.family import Batch, Face, Family, View
from models.views import Clip
from tasks.training.request import TrainRequest

if TYPE_CHECKING:
    from tasks.data.dataset import Dataset
    from tasks.data.splits import Selection

FACE_FRAMES = 32
"""Most training pictures of the person that a stage on clips is built with (`BuildContext.face`)."""


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
    """Training frames of the person, where all training samples show one; the same in every worker."""
    held_out_clip: Callable[[int], Clip] | None = None
    """The first held-out clip, its first n frames: what a preview video shows."""
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
    from tasks.data.readers import BatchStream, read_selected
    from tasks.data.splits import Selected, select

    stage = family.stage(request.stage)
    config = family.config_type.model_validate(request.config)
    dataset = Dataset.open(request.dataset)
    split = select(dataset, stage.view, request.filters, request.split)
    features = family.features(config, request.stage)
    examples = family.examples(config, request.stage)

    def stream(selection: Any, *, rank: int, world: int, loader_workers: int, shuffle: bool) -> BatchStream:
        return BatchStream(
            dataset=dataset,
            view=stage.view,
            selection=selection,
            features=features,
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

    def held_out_clip(frames: int) -> Clip:
        # A stage on keyframes shows a clip too: both views of a dataset are split at the same places.
        clips = split if stage.view == "clips" else select(dataset, "clips", request.filters, request.split)
        first = clips.held_out[0]
        shown = Selected(first.key, first.start, min(first.end, first.start + frames))
        clip: Clip = read_selected(dataset, "clips", shown, features=features)
        return clip

    return StageData(
        train=stream(split.train, rank=rank, world=world, loader_workers=request.train.loader_workers, shuffle=True),
        held_out=held_out,
        video_keys=sorted({selected.key.rsplit("_", 1)[0] for selected in split.train}),
        samples=len(split.train),
        held_out_samples=len(split.held_out),
        fingerprint=dataset.fingerprint,
        stored=dataset.info["settings"],
        face=_face(dataset, stage.view, split.train),
        held_out_clip=held_out_clip,
    )


def _face(dataset: Dataset, view: View, selection: Selection) -> Face | None:
    """The only person in a selection; None where there are several, or where no frame shows a face."""
    if len({selected.key.split("_", 1)[0] for selected in selection}) != 1:
        return None
    return _face_of_pools(dataset, selection) if view == "keyframes" else _face_of_clips(dataset, selection)


def _face_of_pools(dataset: Dataset, selection: Selection) -> Face:
    """All frames of the pools."""
    import numpy as np

    from tasks.data.readers import read_selected

    pools = [read_selected(dataset, "keyframes", selected) for selected in selection]
    images = np.stack([pool.image(index) for pool in pools for index in range(len(pool))])
    return Face(images=images, landmarks=np.concatenate([pool.landmarks for pool in pools]))


def _face_of_clips(dataset: Dataset, selection: Selection) -> Face | None:
    """Up to `FACE_FRAMES` frames in which the landmarker saw the face, spread evenly over the windows."""
    import numpy as np

    from tasks.data.readers import read_selected

    ends = np.cumsum([selected.end - selected.start for selected in selection])
    places = np.unique(((np.arange(FACE_FRAMES) + 0.5) / FACE_FRAMES * ends[-1]).astype(int))
    images, landmarks = [], []
    for number in np.unique(np.searchsorted(ends, places, side="right")):
        clip: Clip = read_selected(dataset, "clips", selection[number])
        seen = np.flatnonzero(clip.confidence > 0)
        if not len(seen):
            continue
        inside = places[(places < ends[number]) & (places >= ends[number] - clip.num_frames)] - (ends[number] - clip.num_frames)
        nearest = np.unique([seen[np.argmin(np.abs(seen - place))] for place in inside])
        images.append(clip.read_frames(nearest.tolist()))
        landmarks.append(clip.landmarks[nearest])
    return Face(images=np.concatenate(images), landmarks=np.concatenate(landmarks)) if images else None

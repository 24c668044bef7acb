"""Turn stored bytes into what families read: `Clip` and `Keyframes`, whole or only the selected part.

A sample is a run of members in a tar; the index says where. Reading any number of samples of a shard is one request for
byte ranges, whose pieces are a valid tar again: WebDataset's own iterators take it apart. Nothing is unpickled.
"""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from models.family import View
from models.views import SAMPLE_RATE, SAMPLES_PER_FRAME, Clip, Image, Keyframes
from tasks.data.feature_index import MissingFeatures, feature_folder, how_to_make, read_feature_index
from tasks.data.shards import read_npy, tar_name
from tasks.data.splits import Selected, Selection
from tasks.data.storage import Storage
from tasks.video.clip_frames import decode_frames

if TYPE_CHECKING:
    import pyarrow as pa

    from tasks.data.dataset import Dataset

_BLOCK = 512
_END_OF_TAR = bytes(2 * _BLOCK)


class BadShard(ValueError):
    """A shard that is not what its index says: cut, replaced or damaged."""


@dataclass(frozen=True)
class FrameReader:
    """Decodes frames of a clip's window; what `Clip.read_frames` is."""

    mp4: bytes
    start: int
    count: int

    def __call__(self, indices: Sequence[int]) -> Image:
        """Frames of these indices of the window, in this order; raises IndexError outside of it."""
        if any(not 0 <= int(index) < self.count for index in indices):
            raise IndexError(f"frames {min(indices)}..{max(indices)} of a clip of {self.count}")
        return decode_frames(self.mp4, [self.start + int(index) for index in indices])


@dataclass(frozen=True, kw_only=True)
class _Feature:
    """Where one feature of each selected sample lies."""

    shard: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    shape: npt.NDArray[np.int64]
    """int64 [N, 3]: frames, layers, width."""


class SampleReader:
    """Reads the samples of one selection by their number in it; picklable, opens files only while it reads.

    Args:
        dataset: where they lie.
        view: which view.
        selection: which samples, and which part of each.
        features: names of learned features to read beside a clip.

    Raises:
        KeyError: a sample that the dataset does not have.
        MissingFeatures: a feature that the dataset, or one of the clips, does not have.
    """

    def __init__(self, *, dataset: Dataset, view: View, selection: Selection, features: Sequence[str] = ()) -> None:
        if features and view != "clips":
            raise ValueError(f"features belong to clips; the view is {view}")
        self.storage: Storage = dataset.storage
        self.view = view
        self.selection = selection
        table = _rows_of(dataset.clips() if view == "clips" else dataset.pools(), selection, self.storage.url)
        self.shard = table.column("shard").to_numpy().astype(np.int64)
        self._offset, self._size = _spans(table)
        self._features = {name: _feature_rows(self.storage, name, selection, set(self.shard.tolist())) for name in features}

    def __len__(self) -> int:
        return len(self.selection)

    def read(self, numbers: Sequence[int]) -> list[Any]:
        """The samples of these numbers, in this order: `Clip` or `Keyframes` as the view is.

        Raises:
            BadShard: the shard does not hold what its index says.
        """
        by_shard: dict[int, list[int]] = {}
        for number in dict.fromkeys(numbers):
            by_shard.setdefault(int(self.shard[number]), []).append(number)
        samples: dict[int, Clip | Keyframes] = {}
        for shard, group in by_shard.items():
            for number, members in zip(group, self._members(shard, group), strict=True):
                selected = self.selection[number]
                if self.view == "clips":
                    features = {name: self._feature(name, number, selected) for name in self._features}
                    samples[number] = make_clip(members, selected, features)
                else:
                    samples[number] = make_pool(members, selected)
        return [samples[number] for number in numbers]

    def _members(self, shard: int, numbers: Sequence[int]) -> list[Mapping[str, bytes]]:
        """The members of samples that lie in one shard, in the order asked."""
        from webdataset.tariterators import group_by_keys, tar_file_expander

        name = tar_name(self.view, shard)
        order = sorted(numbers, key=lambda number: int(self._offset[number]))
        ranges = [(int(self._offset[number]), int(self._size[number])) for number in order]
        pieces = self.storage.read_ranges(name, ranges)
        if [len(piece) for piece in pieces] != [size for _, size in ranges]:
            raise BadShard(f"{self.storage.url_of(name)} is shorter than its index says: {_REMEDY}")
        stream = io.BytesIO(b"".join(pieces) + _END_OF_TAR)
        files = tar_file_expander(iter([{"url": name, "stream": stream}]))
        found = {sample["__key__"]: sample for sample in group_by_keys(files, lcase=False)}
        missing = [self.selection[number].key for number in numbers if self.selection[number].key not in found]
        if missing:
            raise BadShard(f"{self.storage.url_of(name)} does not hold {missing[0]} where its index says: {_REMEDY}")
        return [found[self.selection[number].key] for number in numbers]

    def _feature(self, name: str, number: int, selected: Selected) -> npt.NDArray[Any]:
        """Rows of one feature, float16 [end - start, layers, width]; mapped, not read, where the file is local."""
        rows = self._features[name]
        frames, layers, width = (int(size) for size in rows.shape[number])
        if selected.end > frames:
            raise BadShard(f"{selected.key} has {frames} rows of {name} for {selected.end} frames: {_REMEDY}")
        file = tar_name(feature_folder(name), int(rows.shard[number]))
        row_bytes = 2 * layers * width
        offset = int(rows.offset[number]) + selected.start * row_bytes
        shape = (selected.end - selected.start, layers, width)
        if self.storage.local:
            return np.memmap(self.storage.local / file, np.float16, "r", offset, shape)
        content = self.storage.read_ranges(file, [(offset, shape[0] * row_bytes)])[0]
        return np.frombuffer(content, np.float16).reshape(shape)


_REMEDY = "run preprocess again on the same videos, it repairs what is damaged"


def make_clip(members: Mapping[str, bytes], selected: Selected, features: Mapping[str, npt.NDArray[Any]]) -> Clip:
    """The selected window of a clip; frame 0 of what is returned is frame `selected.start` of what is stored."""
    meta = json.loads(members["json"])
    window = slice(selected.start, selected.end)
    count = selected.end - selected.start
    audio = None
    if "wav" in members:
        audio = read_wav(members["wav"])[selected.start * SAMPLES_PER_FRAME : selected.end * SAMPLES_PER_FRAME]
    return Clip(
        key=meta["key"],
        identity=meta["identity"],
        video=meta["video"],
        num_frames=count,
        size=meta["size"],
        landmarks=read_npy(members["landmarks.npy"])[window],
        confidence=read_npy(members["confidence.npy"])[window],
        audio=audio,
        features=features,
        meta=meta,
        read_frames=FrameReader(members["mp4"], selected.start, count),
    )


def make_pool(members: Mapping[str, bytes], selected: Selected) -> Keyframes:
    """The frames of a pool that stay."""
    meta = json.loads(members["json"])
    kept = range(len(meta["frames"])) if selected.frames is None else selected.frames
    return Keyframes(
        key=meta["key"],
        identity=meta["identity"],
        video=meta["video"],
        jpegs=tuple(members[f"{position:04d}.jpg"] for position in kept),
        landmarks=read_npy(members["landmarks.npy"])[list(kept)],
        clips=tuple(meta["clips"][position] for position in kept),
        frames=np.array([meta["frames"][position] for position in kept], np.int64),
        meta=meta,
    )


def read_wav(wav: bytes) -> npt.NDArray[np.float32]:
    """float32 [S] in -1..1 of a PCM16 mono RIFF at 16 kHz.

    Raises:
        BadShard: it is not that.
    """
    with wave.open(io.BytesIO(wav)) as file:
        if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, SAMPLE_RATE):
            raise BadShard(f"stored sound is not 16 kHz mono PCM16 but {file.getparams()}")
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


def _rows_of(table: pa.Table, selection: Selection, url: str) -> pa.Table:
    """The index rows of a selection, in its order."""
    import pyarrow as pa
    import pyarrow.compute as pc

    keys = pa.array([selected.key for selected in selection], pa.string())
    rows = pc.index_in(keys, value_set=table.column("key").combine_chunks())
    if rows.null_count:
        raise KeyError(f"{keys.filter(pc.is_null(rows))[0].as_py()} is not in the dataset {url}")
    return table.take(rows)


def _spans(table: pa.Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Byte offset and size of each sample in its tar, headers and padding included."""
    members = table.column("members").combine_chunks()
    bounds = members.offsets.to_numpy()
    values = members.values
    offsets = values.field("offset").to_numpy()
    sizes = values.field("size").to_numpy()
    last = bounds[1:] - 1
    start = offsets[bounds[:-1]] - _BLOCK
    end = offsets[last] + -(-sizes[last] // _BLOCK) * _BLOCK
    return start, end - start


def _feature_rows(storage: Storage, name: str, selection: Selection, shards: set[int]) -> _Feature:
    """Where the feature of each selected clip lies; a feature shard has the id of its clip shard."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = read_feature_index(storage, name, shards)
    keys = pa.array([selected.key for selected in selection], pa.string())
    rows = pc.index_in(keys, value_set=table.column("key").combine_chunks())
    if rows.null_count:
        raise MissingFeatures(
            f"{rows.null_count} of {len(selection)} selected clips have no {name} features, {keys.filter(pc.is_null(rows))[0].as_py()} "
            f"for one: clips without sound have none (set filters.need_audio=true); for others {how_to_make(storage.url, name)}"
        )
    table = table.take(rows)
    return _Feature(
        shard=table.column("shard").to_numpy().astype(np.int64),
        offset=table.column("offset").to_numpy(),
        shape=np.stack([table.column(column).to_numpy().astype(np.int64) for column in ("frames", "layers", "width")], axis=1),
    )

"""Which samples of a dataset are used, and which of them are held out: pure functions of the index and a few settings.

Scores are stored, thresholds are applied here; so changing one re-runs nothing. A unit (identity or video) is held out
by the hash of its own name alone, so that a dataset may grow without moving what a model was trained on into the held-out part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from models.family import View
from tasks.settings import FilterSettings, PersonSettings, SplitSettings

if TYPE_CHECKING:
    import pyarrow as pa

    from tasks.data.dataset import Dataset

MIN_POOL_FRAMES = 2
"""A pool of fewer frames holds no pair of a face and a target."""

SHOWN_PEOPLE = 8
"""People that an error about an unknown one lists."""


@dataclass(frozen=True, order=True)
class Selected:
    """One sample to read, or the part of it that may be read."""

    key: str
    start: int
    """First frame of a clip's window; of a pool, always 0."""
    end: int
    """One past the last frame of the window; of a pool, the number of its frames that stay."""
    frames: tuple[int, ...] | None = None
    """Of a pool: positions of the frames that stay, ascending. None for clips."""


Selection = tuple[Selected, ...]
"""Sorted by key, one entry per sample."""


class EmptySelection(ValueError):
    """Nothing to train on, or nothing to hold out; the message says which setting is the reason."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """What to train on and what to evaluate on; no frame is in both."""

    train: Selection
    held_out: Selection
    total: int
    """Samples of the view before filters."""
    removed: Mapping[str, int] = field(default_factory=dict)
    """Clips removed, by the first filter that removed each."""

    def describe(self) -> str:
        """One line for people."""
        removed = ", ".join(f"{name} {count}" for name, count in self.removed.items() if count) or "none"
        return f"{len(self.train)} to train on, {len(self.held_out)} held out, of {self.total}; clips removed: {removed}"


@dataclass(frozen=True, kw_only=True)
class _Filter:
    setting: str
    column: str
    keep: Callable[[npt.NDArray[Any], Any], npt.NDArray[np.bool_]]
    active: Callable[[Any], bool] = lambda value: True


def _one_of(values: npt.NDArray[Any], names: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    return np.isin(values.astype(str), names)


def _at_least(values: npt.NDArray[Any], limit: float) -> npt.NDArray[np.bool_]:
    return np.asarray(values >= limit)


def _at_most(values: npt.NDArray[Any], limit: float) -> npt.NDArray[np.bool_]:
    return np.asarray(values <= limit)


def _true(values: npt.NDArray[Any], _: bool) -> npt.NDArray[np.bool_]:
    return values.astype(bool)


def _false(values: npt.NDArray[Any], _: bool) -> npt.NDArray[np.bool_]:
    return ~values.astype(bool)


FILTERS: tuple[_Filter, ...] = (
    _Filter(setting="identities", column="identity", keep=_one_of, active=bool),
    _Filter(setting="min_face_px", column="face_px", keep=_at_least),
    _Filter(setting="min_face_share", column="face_share", keep=_at_least),
    _Filter(setting="max_yaw", column="yaw_p95", keep=_at_most),
    _Filter(setting="max_pitch", column="pitch_p95", keep=_at_most),
    _Filter(setting="max_nose_travel", column="nose_travel", keep=_at_most),
    _Filter(setting="min_one_face", column="one_face", keep=_at_least),
    _Filter(setting="min_frames", column="num_frames", keep=_at_least),
    _Filter(setting="need_audio", column="has_audio", keep=_true, active=bool),
    _Filter(setting="need_full_history", column="full_history", keep=_true, active=bool),
    _Filter(setting="allow_static", column="static", keep=_false, active=lambda allow: not allow),
)
"""In the order in which they are counted. A score that could not be computed (NaN) passes no threshold."""


def filter_clips(clips: pa.Table, filters: FilterSettings) -> tuple[npt.NDArray[np.bool_], dict[str, int]]:
    """Apply the thresholds.

    Returns:
        bool [rows], True for clips that stay, and how many clips each filter was the first to remove.

    Raises:
        EmptySelection: `filters.identities` names somebody who is not there; lists some who are.
    """
    _check_identities(clips, filters.identities)
    keep = np.ones(clips.num_rows, bool)
    removed: dict[str, int] = {}
    for rule in FILTERS:
        value = getattr(filters, rule.setting)
        if not rule.active(value):
            continue
        passes = rule.keep(clips.column(rule.column).to_numpy(zero_copy_only=False), value)
        removed[rule.setting] = int((keep & ~passes).sum())
        keep &= passes
    return keep, removed


@dataclass(frozen=True, kw_only=True)
class Person:
    """Whom a stage for one person is about."""

    identity: str
    frames: int
    """Usable ones: of clips that pass the filters."""
    clips: int
    reason: str
    """Why this person."""

    def describe(self) -> str:
        """One line for people."""
        return f"{self.identity} ({self.reason}), {self.clips} clips of {self.frames} frames"


def choose_person(dataset: Dataset, filters: FilterSettings, person: PersonSettings) -> Person:
    """The person whom the settings name, else the only one, else the one with the most usable frames (by name on ties).

    Raises:
        EmptySelection: nobody of that name is there (lists some who are), or no clip of the person passes the filters.
    """
    if person.identity is not None:
        if filters.identities and person.identity not in filters.identities:
            raise EmptySelection(f"person.identity={person.identity} is not among filters.identities ({', '.join(filters.identities)})")
        _check_identities(dataset.clips(), (person.identity,), "person.identity")
        filters = filters.model_copy(update={"identities": (person.identity,)})
    clips = dataset.clips()
    keep, removed = filter_clips(clips, filters)
    kept = clips.filter(keep)
    if not kept.num_rows:
        raise EmptySelection(_nothing_left(clips, filters, removed))
    names = kept.column("identity").to_pylist()
    frames: dict[str, int] = {}
    for name, count in zip(names, kept.column("num_frames").to_pylist(), strict=True):
        frames[name] = frames.get(name, 0) + count
    chosen = min(frames, key=lambda name: (-frames[name], name))
    if person.identity is not None:
        reason = "as person.identity says"
    elif len(frames) == 1:
        reason = "the only one"
    else:
        reason = f"the most usable frames of {len(frames)} people; person.identity=NAME chooses another"
    return Person(identity=chosen, frames=frames[chosen], clips=names.count(chosen), reason=reason)


def select(dataset: Dataset, view: View, filters: FilterSettings, split: SplitSettings, *, prefix: str = "split") -> Split:
    """Choose the samples of a view to train on and to hold out.

    A pool has no scores of its own: it keeps the frames whose clips pass (and, for a split by time, lie in the part of
    the clip that belongs to that side), and is left out with fewer than two of them.

    Args:
        prefix: what a user writes before the split's settings; for messages.

    Raises:
        EmptySelection: nothing passes the filters, or one side of the split would be empty; the message has the counts.
    """
    clips = dataset.clips()
    keep, removed = filter_clips(clips, filters)
    kept = clips.filter(keep)
    total = clips.num_rows if view == "clips" else dataset.pools().num_rows
    if not kept.num_rows:
        raise EmptySelection(_nothing_left(clips, filters, removed))
    windows = _windows(kept, split, filters.min_frames)
    held_out_units: set[str] = set()
    if split.by == "identity":
        held_out_units = hold_out(kept.column("identity").to_pylist(), split, prefix)
    elif split.by == "video":
        arrived = clips.select(["shard", "identity", "video"]).to_pylist()
        of_them = [row for row in arrived if not filters.identities or row["identity"] in filters.identities]
        held_out_units = hold_out_videos([(row["shard"], row["identity"], row["video"]) for row in of_them], split, prefix)
    if view == "clips":
        train, held_out = _split_clips(kept, windows, split, held_out_units)
    else:
        train, held_out = _split_pools(dataset.pools(), windows, split, held_out_units)
    result = Split(train=tuple(sorted(train)), held_out=tuple(sorted(held_out)), total=total, removed=removed)
    for side, samples in (("to train on", result.train), ("to hold out", result.held_out)):
        if not samples:
            longest = max(kept.column("num_frames").to_pylist())
            way_out = f"give the dataset more videos, or choose another {prefix}.by"
            if split.by == "time" and longest < 2 * filters.min_frames:
                parts = f"each side needs a part of {filters.min_frames} frames (min_frames)"
                way_out = f"{parts}, and the longest clip has {longest}: give longer videos, or choose {prefix}.by=video"
            raise EmptySelection(
                f"no {view} left {side} with {prefix}.by={split.by}, {prefix}.holdout={split.holdout} ({result.describe()}); {way_out}"
            )
    return result


def hold_out(units: Sequence[str], split: SplitSettings, prefix: str = "split") -> set[str]:
    """The people that are held out: those whose hash lies below the share, at least one, never all.

    When units are added, no unit ever moves from training to held-out. (Where chance put none below the share, the unit
    with the smallest hash is held out; a new unit with a smaller one takes its place, and it goes to training.)

    Raises:
        EmptySelection: only one unit.
    """
    names = sorted(set(units))
    if len(names) < 2:
        way_out = f"{prefix}.by=video or {prefix}.by=time" if split.by == "identity" else f"{prefix}.by=time"
        raise EmptySelection(
            f"{prefix}.by={split.by} needs at least two, and only one passes the filters ({', '.join(names)}): set {way_out}"
        )
    order = sorted(names, key=lambda name: _hash(split, name))
    chosen = {name for name in order if _hash(split, name) < split.holdout}
    if not chosen:
        return {order[0]}
    return chosen if len(chosen) < len(names) else set(order[:-1])


def hold_out_videos(videos: Sequence[tuple[int, str, str]], split: SplitSettings, prefix: str = "split") -> set[str]:
    """The videos of known people that are held out: a person's first video always trains.

    Videos are taken in the order in which they came to the dataset (its shards only grow), and one is held out whenever fewer
    than the share are, and at least one. So when videos are added, none ever moves from training to held-out. It looks at all
    videos of the chosen people (`filters.identities`), whatever the thresholds, so that a threshold moves none either.

    Args:
        videos: (shard, identity, video) of every clip, in any order; repeats count once.

    Raises:
        EmptySelection: no person has two videos.
    """
    order = sorted(set(videos), key=lambda row: (row[0], _hash(split, row[2])))
    known: set[str] = set()
    chosen: set[str] = set()
    later: list[str] = []
    for count, (_, identity, video) in enumerate(order, start=1):
        if identity in known:
            later.append(video)
            if len(chosen) < int(split.holdout * count + 0.5):
                chosen.add(video)
        known.add(identity)
    if not later:
        there = f"not {len(order)} of {len(known)} people"
        raise EmptySelection(f"{prefix}.by=video needs a person with two videos, {there}: set {prefix}.by=time")
    return chosen or {later[0]}


def _hash(split: SplitSettings, unit: str) -> float:
    digest = hashlib.sha256(f"{split.seed}/{split.by}/{unit}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2.0**56


def _windows(kept: pa.Table, split: SplitSettings, shortest: int) -> dict[str, tuple[int, int]]:
    """By clip: frames [0, cut) are for training, [cut, num_frames) held out when time splits, or spared; cut = num_frames where neither.

    Both parts have at least `shortest` frames; a clip that is too short for two such parts is for training.
    """
    share = split.holdout if split.by == "time" else split.spare
    windows = {}
    for key, frames in zip(kept.column("key").to_pylist(), kept.column("num_frames").to_pylist(), strict=True):
        cut = frames
        if share and frames >= 2 * shortest:
            cut = frames - min(frames - shortest, max(shortest, round(share * frames)))
        windows[key] = (cut, frames)
    return windows


def _split_clips(
    kept: pa.Table, windows: Mapping[str, tuple[int, int]], split: SplitSettings, held_out_units: set[str]
) -> tuple[list[Selected], list[Selected]]:
    train: list[Selected] = []
    held_out: list[Selected] = []
    units = kept.column("key" if split.by == "time" else split.by).to_pylist()
    for unit, (key, (cut, frames)) in zip(units, windows.items(), strict=True):
        if split.by != "time":
            if unit in held_out_units:
                held_out.append(Selected(key, 0, frames))
            else:
                train.append(Selected(key, 0, cut))
            continue
        train.append(Selected(key, 0, cut))
        if cut < frames:
            held_out.append(Selected(key, cut, frames))
    return train, held_out


def _split_pools(
    pools: pa.Table, windows: Mapping[str, tuple[int, int]], split: SplitSettings, held_out_units: set[str]
) -> tuple[list[Selected], list[Selected]]:
    train: list[Selected] = []
    held_out: list[Selected] = []
    for row in pools.to_pylist():
        before: list[int] = []
        after: list[int] = []
        for position, (clip, frame) in enumerate(zip(row["clips"], row["frames"], strict=True)):
            if clip not in windows:
                continue
            (before if frame < windows[clip][0] else after).append(position)
        sides = [(train, before), (held_out, after)]
        if split.by != "time":
            sides = [(held_out, sorted(before + after)) if row[split.by] in held_out_units else (train, before)]
        for side, frames in sides:
            if len(frames) >= MIN_POOL_FRAMES:
                side.append(Selected(row["key"], 0, len(frames), tuple(frames)))
    return train, held_out


def _check_identities(clips: pa.Table, names: Sequence[str], setting: str = "filters.identities") -> None:
    """Raise EmptySelection where a name is nobody's in the dataset."""
    if not names or not clips.num_rows:
        return
    there = sorted(set(clips.column("identity").to_pylist()))
    unknown = [name for name in names if name not in there]
    if unknown:
        shown = ", ".join(there[:SHOWN_PEOPLE]) + (f" and {len(there) - SHOWN_PEOPLE} more" if len(there) > SHOWN_PEOPLE else "")
        raise EmptySelection(f"{setting}: the dataset has nobody named {', '.join(unknown)}; there are: {shown}")


def _nothing_left(clips: pa.Table, filters: FilterSettings, removed: Mapping[str, int]) -> str:
    if not clips.num_rows:
        return "the dataset holds no clips: look at its rejects (python -m flows inspect DATASET)"
    parts = []
    for rule in FILTERS:
        if not removed.get(rule.setting):
            continue
        values = clips.column(rule.column).to_numpy(zero_copy_only=False)
        seen = ""
        if rule.column != "identity" and np.isfinite(values := values.astype(float)).any():
            seen = f"; {rule.column} is {np.nanmin(values):.3g} to {np.nanmax(values):.3g}"
        parts.append(f"{rule.setting}={getattr(filters, rule.setting)} removed {removed[rule.setting]}{seen}")
    return f"no clip of {clips.num_rows} passes the filters: " + ", ".join(parts) + ". Loosen the filter (filters.NAME=VALUE)"

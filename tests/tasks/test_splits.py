"""Filters and splits: nothing leaks, nothing moves when the dataset grows, an empty result says why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.splits import EmptySelection, choose_person, filter_clips, hold_out, hold_out_videos, select
from tasks.settings import FilterSettings, PersonSettings, SplitSettings

GOOD = {
    "face_px": 300.0,
    "face_share": 0.4,
    "yaw_p95": 10.0,
    "pitch_p95": 5.0,
    "nose_travel": 0.1,
    "one_face": 1.0,
    "num_frames": 50,
    "has_audio": True,
    "full_history": False,
    "static": False,
}


def clip(identity: str, video: str, number: int, **scores: object) -> dict[str, object]:
    return {"key": f"{identity}_{video}_u-{number}", "shard": 0, "identity": identity, "video": f"{identity}_{video}", **GOOD, **scores}


@dataclass
class Index:
    """The two tables that a selection reads, in place of a dataset on disk."""

    rows: list[dict[str, object]]
    pool_every: int = 10

    def clips(self) -> pa.Table:
        return pa.Table.from_pylist(self.rows)

    def pools(self) -> pa.Table:
        videos: dict[str, list[tuple[str, int]]] = {}
        for row in self.rows:
            frames = videos.setdefault(str(row["video"]), [])
            frames += [(str(row["key"]), frame) for frame in range(0, int(row["num_frames"]), self.pool_every)]
        return pa.Table.from_pylist(
            [
                {
                    "key": f"{video}_pool",
                    "identity": video.split("_")[0],
                    "video": video,
                    "clips": [clip for clip, _ in frames],
                    "frames": [frame for _, frame in frames],
                }
                for video, frames in videos.items()
            ]
        )


def many(identities: int = 6, videos: int = 2, clips: int = 2, **scores: object) -> Index:
    return Index([clip(f"id{i}", f"v{v}", c, **scores) for i in range(identities) for v in range(videos) for c in range(clips)])


def clip_frames(selection: object) -> set[tuple[str, int]]:
    return {(one.key, frame) for one in selection for frame in range(one.start, one.end)}


def pool_frames(index: Index, selection: object) -> set[tuple[str, int]]:
    rows = {row["key"]: row for row in index.pools().to_pylist()}
    return {(rows[one.key]["clips"][at], rows[one.key]["frames"][at]) for one in selection for at in one.frames}


@settings(deadline=None)
@given(
    by=st.sampled_from(["identity", "video", "time"]),
    holdout=st.floats(0.01, 0.9),
    seed=st.integers(0, 5),
    frames=st.lists(st.integers(14, 60), min_size=8, max_size=8),
    shortest=st.integers(1, 14),
)
def test_no_frame_is_on_both_sides_and_none_is_lost(by: str, holdout: float, seed: int, frames: list[int], shortest: int) -> None:
    frames[0] = 60
    index = Index([clip(f"id{n % 4}", f"v{n % 8 // 4}", n, num_frames=count) for n, count in enumerate(frames * 2)])
    split = SplitSettings(by=by, holdout=holdout, seed=seed)
    filters = FilterSettings(min_frames=shortest)
    clips = select(index, "clips", filters, split)
    train, held_out = clip_frames(clips.train), clip_frames(clips.held_out)
    assert not train & held_out
    assert all(one.end - one.start >= shortest for one in clips.train + clips.held_out), "no window that a family cannot read"
    assert train | held_out == {(row["key"], frame) for row in index.rows for frame in range(row["num_frames"])}
    if by != "time":
        unit = {row["key"]: row[by] for row in index.rows}
        assert not {unit[key] for key, _ in train} & {unit[key] for key, _ in held_out}
    # Both views of one dataset are split at the same place: training on pools must not show held-out clip frames.
    index.pool_every = 1
    pools = select(index, "keyframes", filters, split)
    assert not pool_frames(index, pools.train) & held_out
    assert not pool_frames(index, pools.held_out) & train


@settings(deadline=None)
@given(seed=st.integers(0, 20), holdout=st.floats(0.02, 0.6), before=st.integers(2, 12), more=st.integers(1, 12))
def test_growing_never_moves_a_training_unit_to_the_held_out_side(seed: int, holdout: float, before: int, more: int) -> None:
    split = SplitSettings(seed=seed, holdout=holdout)
    units = [f"id{n:03d}" for n in range(before + more)]
    early, late = hold_out(units[:before], split), hold_out(units, split)
    if len(early) < before - 1:  # where chance held out everybody, the one that was spared may be called in later
        assert not (set(units[:before]) - early) & late
    assert 0 < len(early) < before
    assert 0 < len(late) < len(units)


def test_share_held_out_is_the_share_asked_for() -> None:
    assert len(hold_out([f"id{n}" for n in range(5000)], SplitSettings(holdout=0.1))) == pytest.approx(500, abs=80)


@pytest.mark.parametrize("view", ["clips", "keyframes"])
def test_what_is_spared_trains_nothing_and_is_not_held_out(view: str) -> None:
    index = Index([clip(f"id{i}", f"v{v}", 0) for i in range(4) for v in range(2)])
    whole = select(index, view, FilterSettings(), SplitSettings(by="video", holdout=0.5))  # type: ignore[arg-type]
    spared = select(index, view, FilterSettings(), SplitSettings(by="video", holdout=0.5, spare=0.2))  # type: ignore[arg-type]
    assert spared.held_out == whole.held_out
    assert [sample.key for sample in spared.train] == [sample.key for sample in whole.train]
    if view == "clips":
        assert {(sample.start, sample.end) for sample in spared.train} == {(0, 40)}
    else:
        assert {sample.frames for sample in spared.train} == {(0, 1, 2, 3)}, "the frame at 40 is in the spared end"


def test_seed_and_unit_kind_change_the_choice() -> None:
    units = [f"id{n}" for n in range(50)]
    chosen = {frozenset(hold_out(units, SplitSettings(seed=seed, by=by, holdout=0.3))) for seed in range(3) for by in ("identity", "video")}
    assert len(chosen) == 6


arrivals = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=2, max_size=40)


@given(arrivals, st.floats(0.02, 0.9), st.integers(0, 40))
def test_a_persons_first_video_trains_and_later_ones_never_change_to_held_out(
    rows: list[tuple[int, int]], holdout: float, early: int
) -> None:
    videos = sorted((shard, f"id{person}", f"id{person}_v{number}") for number, (shard, person) in enumerate(rows))
    split = SplitSettings(by="video", holdout=holdout)
    if len({identity for _, identity, _ in videos}) == len(videos):
        with pytest.raises(EmptySelection, match="set split"):
            hold_out_videos(videos, split)
        return
    held_out = hold_out_videos(videos, split)
    assert held_out
    assert {identity for _, identity, video in videos if video not in held_out} == {identity for _, identity, _ in videos}
    shards = sorted({shard for shard, _, _ in videos})
    before = [row for row in videos if row[0] in shards[: early % len(shards) + 1]]
    if len({identity for _, identity, _ in before}) < len(before):
        trained = {video for _, _, video in before} - hold_out_videos(before, split)
        assert not trained & held_out


def test_half_of_two_videos_each_is_one_of_each_person() -> None:
    videos = [(0, f"id{person}", f"id{person}_v{number}") for person in range(4) for number in range(2)]
    held_out = hold_out_videos(videos, SplitSettings(by="video", holdout=0.5))
    assert sorted(video.partition("_")[0] for video in held_out) == ["id0", "id1", "id2", "id3"]


def test_each_filter_counts_what_it_removes_first() -> None:
    bad = {
        "face_px": 100.0,
        "face_share": 0.1,
        "yaw_p95": 80.0,
        "pitch_p95": 50.0,
        "nose_travel": 0.9,
        "one_face": 0.5,
        "num_frames": 1,
        "static": True,
    }
    rows = [clip("a", "v", n, **{column: value}) for n, (column, value) in enumerate(bad.items())]
    rows += [clip("a", "v", 100, face_px=10.0, static=True), clip("a", "v", 101, face_px=float("nan")), clip("b", "v", 102)]
    keep, removed = filter_clips(pa.Table.from_pylist(rows), FilterSettings())
    assert keep.tolist() == [False] * (len(rows) - 1) + [True]
    assert removed == {
        "min_face_px": 3,
        "min_face_share": 1,
        "max_yaw": 1,
        "max_pitch": 1,
        "max_nose_travel": 1,
        "min_one_face": 1,
        "min_frames": 1,
        "allow_static": 1,
    }


def test_optional_filters_apply_only_when_asked() -> None:
    index = Index([clip("a", "v", 0, has_audio=False), clip("b", "v", 1, full_history=True), clip("c", "v", 2)])
    table = index.clips()
    assert filter_clips(table, FilterSettings())[0].all()
    assert filter_clips(table, FilterSettings(need_audio=True))[0].tolist() == [False, True, True]
    assert filter_clips(table, FilterSettings(need_full_history=True))[0].tolist() == [False, True, False]


def test_a_pool_keeps_only_frames_of_clips_that_pass() -> None:
    index = Index([clip("a", "v", 0), clip("a", "v", 1, yaw_p95=90.0), clip("b", "v", 2), clip("c", "v", 3, num_frames=10)])
    split = select(index, "keyframes", FilterSettings(), SplitSettings())
    kept = {one.key: one.frames for one in split.train + split.held_out}
    assert kept == {"a_v_pool": (0, 1, 2, 3, 4), "b_v_pool": (0, 1, 2, 3, 4)}, "c has one frame: no pair"
    assert [one.end for one in split.train + split.held_out] == [5, 5]


def test_nothing_left_names_filters_counts_and_what_was_seen() -> None:
    with pytest.raises(EmptySelection, match=r"no clip of 24 passes.*min_face_px=2000.0 removed 24; face_px is 300 to 300"):
        select(many(), "clips", FilterSettings(min_face_px=2000), SplitSettings())


@pytest.mark.parametrize(("by", "hint"), [("identity", "split.by=video or split.by=time"), ("video", "split.by=time")])
def test_one_unit_says_how_to_split_instead(by: str, hint: str) -> None:
    index = many(identities=1, videos=1, clips=3)
    with pytest.raises(EmptySelection, match=hint):
        select(index, "clips", FilterSettings(), SplitSettings(by=by))
    by_time = select(index, "clips", FilterSettings(), SplitSettings(by="time", holdout=0.2))
    assert [(one.start, one.end) for one in by_time.train] == [(0, 40)] * 3
    assert [(one.start, one.end) for one in by_time.held_out] == [(40, 50)] * 3


def test_a_dataset_without_clips_points_at_its_rejects(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = Index([clip("a", "v", 0)])
    monkeypatch.setattr(empty, "clips", lambda: pa.Table.from_pylist([clip("a", "v", 0)]).slice(0, 0))
    with pytest.raises(EmptySelection, match="rejects"):
        select(empty, "clips", FilterSettings(), SplitSettings())


def test_selection_is_sorted_and_independent_of_row_order() -> None:
    index = many()
    shuffled = Index([index.rows[at] for at in np.random.default_rng(0).permutation(len(index.rows))])
    first, second = (select(one, "clips", FilterSettings(), SplitSettings()) for one in (index, shuffled))
    assert first.train == second.train == tuple(sorted(first.train))
    assert first.held_out == second.held_out


def test_only_the_named_people_are_used_and_the_others_are_counted() -> None:
    split = select(many(), "clips", FilterSettings(identities=("id1", "id4")), SplitSettings(by="video", holdout=0.5))
    assert {one.key.split("_")[0] for one in split.train + split.held_out} == {"id1", "id4"}
    assert split.removed["identities"] == 16
    assert "identities 16" in split.describe()


def test_the_share_of_videos_is_that_of_the_named_people() -> None:
    """Counted over all people, the share would be used up by others and leave the one person with nothing held out."""
    for name in (f"id{n}" for n in range(6)):
        split = select(many(), "clips", FilterSettings(identities=(name,)), SplitSettings(by="video", holdout=0.2))
        assert len({one.key.rsplit("_", 1)[0] for one in split.held_out}) == 1


def test_an_unknown_person_is_an_error_that_lists_some_who_are_there() -> None:
    with pytest.raises(EmptySelection, match=r"filters\.identities: .*nobody named bob; there are: id00, .*id07 and 22 more"):
        select(Index([clip(f"id{n:02d}", "v", n) for n in range(30)]), "clips", FilterSettings(identities=("id03", "bob")), SplitSettings())


def test_nothing_left_of_a_person_says_what_removed_it() -> None:
    index = Index([clip("a", "v", 0, has_audio=False), clip("b", "v", 1)])
    with pytest.raises(EmptySelection, match=r"identities=\('a',\) removed 1, need_audio=True removed 1"):
        select(index, "clips", FilterSettings(identities=("a",), need_audio=True), SplitSettings(by="time"))


@pytest.mark.parametrize(
    ("settings_", "filters", "name", "reason"),
    [
        (PersonSettings(), FilterSettings(), "b", "most usable frames of 4 people"),
        (PersonSettings(), FilterSettings(need_audio=True), "a", "most usable frames of 3 people"),
        (PersonSettings(), FilterSettings(identities=("d",)), "d", "the only one"),
        (PersonSettings(identity="d"), FilterSettings(), "d", "person.identity"),
    ],
)
def test_the_person_is_the_named_or_only_one_or_the_one_with_most_usable_frames(
    settings_: PersonSettings, filters: FilterSettings, name: str, reason: str
) -> None:
    rows = [clip("d", "v", 0), clip("a", "v", 0, num_frames=80), clip("a", "w", 1, num_frames=20), clip("c", "v", 0, num_frames=100)]
    rows += [clip("b", "v", 0, num_frames=500, has_audio=False), clip("d", "v", 1, num_frames=900, yaw_p95=80.0)]
    chosen = choose_person(Index(rows), filters, settings_)
    assert (chosen.identity, reason in chosen.reason) == (name, True)
    assert chosen.frames == {"b": 500, "a": 100, "d": 50}[name]


def test_a_person_who_is_not_there_or_not_allowed_is_named() -> None:
    with pytest.raises(EmptySelection, match=r"person\.identity: .*nobody named zoe; there are: id0, "):
        choose_person(many(), FilterSettings(), PersonSettings(identity="zoe"))
    with pytest.raises(EmptySelection, match=r"person\.identity=id1 is not among filters\.identities \(id2\)"):
        choose_person(many(), FilterSettings(identities=("id2",)), PersonSettings(identity="id1"))


def test_clips_too_short_to_be_parted_train_and_where_all_are_the_error_says_how_long_they_must_be() -> None:
    index = Index([clip("a", "v", 0, num_frames=19), clip("a", "v", 1, num_frames=20), clip("a", "v", 2, num_frames=100)])
    split = select(index, "clips", FilterSettings(min_frames=10), SplitSettings(by="time", holdout=0.2))
    assert [(one.start, one.end) for one in split.train] == [(0, 19), (0, 10), (0, 80)]
    assert [(one.start, one.end) for one in split.held_out] == [(10, 20), (80, 100)]
    index.rows = index.rows[:1]
    with pytest.raises(EmptySelection, match=r"person\.split\.by=time.*each side needs a part of 10 frames.*the longest clip has 19"):
        select(index, "clips", FilterSettings(min_frames=10), SplitSettings(by="time"), prefix="person.split")


def test_half_given_settings_of_a_person_keep_the_other_defaults() -> None:
    split = PersonSettings.model_validate({"split": {"by": "video"}}).split
    assert (split.by, split.holdout) == ("video", 0.2)
    with pytest.raises(ValueError, match="by time or by video"):
        PersonSettings.model_validate({"split": {"by": "identity"}})

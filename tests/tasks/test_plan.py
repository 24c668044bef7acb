"""The plan is a pure function that only grows."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.preprocessing.plan import SOURCES_SCHEMA, make_plan, moved, videos_per_new_shard


def table(videos: dict[str, list[int]], place: str = "/a") -> pa.Table:
    """Sources from video name to the sizes of its utterances."""
    rows = [
        {"key": f"p_{video}", "identity": "p", "video": video, "name": str(number), "uri": f"{place}/{video}/{number}", "size": size}
        for video, sizes in videos.items()
        for number, size in enumerate(sizes)
    ]
    return pa.Table.from_pylist(rows, schema=SOURCES_SCHEMA)


def places(plan_sources: pa.Table) -> dict[str, int]:
    return dict(zip(plan_sources["key"].to_pylist(), plan_sources["shard"].to_pylist(), strict=True))


VIDEOS = st.dictionaries(
    st.text("abcdefgh0123", min_size=1, max_size=5), st.lists(st.integers(1, 99), min_size=1, max_size=3), min_size=1, max_size=80
)


@settings(max_examples=60, deadline=None)
@given(VIDEOS, st.integers(1, 7), st.randoms())
def test_the_order_of_discovery_does_not_matter(videos: dict[str, list[int]], most: int, random: object) -> None:
    rows = table(videos)
    order = list(range(rows.num_rows))
    random.shuffle(order)
    one, other = make_plan(rows, videos_per_shard=most), make_plan(rows.take(order), videos_per_shard=most)
    assert one.sources_bytes() == other.sources_bytes()
    assert one.to_json() == other.to_json()
    assert max(shard.videos for shard in one.shards) <= most
    assert sum(shard.utterances for shard in one.shards) == rows.num_rows
    assert [shard.shard for shard in one.shards] == list(range(len(one.shards)))


@settings(max_examples=60, deadline=None)
@given(VIDEOS, VIDEOS, st.integers(1, 7), st.integers(1, 7))
def test_a_plan_only_grows(first: dict[str, list[int]], second: dict[str, list[int]], most: int, later: int) -> None:
    second = {video: sizes for video, sizes in second.items() if video not in first}
    old = make_plan(table(first), videos_per_shard=most)
    new = make_plan(table(second), old.sources, videos_per_shard=later)  # the first sources are not even there any more
    assert new.shards[: len(old.shards)] == old.shards
    assert places(old.sources).items() <= places(new.sources).items()
    assert all(places(new.sources)[f"p_{video}"] >= len(old.shards) for video in second)
    assert make_plan(table(first | second), new.sources, videos_per_shard=later).to_json() == new.to_json()


def test_a_changed_file_changes_the_inputs_of_its_shard_alone() -> None:
    videos = {f"v{number}": [number] for number in range(20)}
    old = make_plan(table(videos), videos_per_shard=1)
    new = make_plan(table(videos | {"v7": [700]}, place="/elsewhere"), old.sources, videos_per_shard=1)
    changed = [before.shard for before, after in zip(old.shards, new.shards, strict=True) if before.inputs != after.inputs]
    assert changed == [places(old.sources)["p_v7"]]
    assert moved(new.sources, old.sources).num_rows == 20


def test_a_new_utterance_joins_its_video() -> None:
    old = make_plan(table({"a": [1], "b": [1]}), videos_per_shard=1)
    new = make_plan(table({"a": [1, 2], "b": [1]}), old.sources, videos_per_shard=1)
    assert places(new.sources) == places(old.sources)
    (video,) = new.videos_of(places(new.sources)["p_a"])
    assert [utterance.size for utterance in video.utterances] == [1, 2]


def test_small_plans_are_spread_so_that_cores_can_share() -> None:
    assert [videos_per_new_shard(count, 64) for count in (1, 32, 33, 40, 1000, 5000)] == [1, 1, 2, 2, 32, 64]
    assert len(make_plan(table({str(number): [1] for number in range(40)}), videos_per_shard=64).shards) == 20


def test_two_rows_with_one_key_are_refused() -> None:
    with pytest.raises(ValueError, match="p_a/0"):
        make_plan(pa.concat_tables([table({"a": [1]}), table({"a": [2]})]), videos_per_shard=1)


@pytest.mark.slow
def test_planning_is_fast_and_small(tmp_path: Path) -> None:
    """200,000 rows within a fifth of what a million may take (60 s, 2 GiB above the interpreter and its libraries)."""
    rows = 200_000
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("path,identity\n" + "".join(f"mp4/id{row // 9:06d}/v{row:07d}.mp4,id{row // 9:06d}\n" for row in range(rows)))
    code = (
        "import sys\n"
        "from tasks.preprocessing.sources import discover\n"
        "from tasks.preprocessing.plan import make_plan\n"
        "plan = make_plan(discover([sys.argv[1]]).table, videos_per_shard=64)\n"
        # Not ru_maxrss: a child inherits the peak of the process that forked it.
        "peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(len(plan.shards), plan.videos, peak)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, str(manifest)], check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."}
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    shards, videos, peak = map(int, done.stdout.split())
    assert (shards, videos) == (3125, rows)
    assert after.ru_utime - before.ru_utime < 12
    assert peak * 1024 < 2**30 * (0.3 + 2 / 5)

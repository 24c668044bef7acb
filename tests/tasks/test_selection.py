"""The keyframe pool's choice: keys and seed alone decide, and every utterance has its share."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.video.selection import BLOCK_FRAMES, Candidate, PoolPicker, candidates, shares

Clips = list[tuple[str, str, list[int]]]


def choose(clips: Clips, seed: int, size: int) -> list[Candidate]:
    picker: PoolPicker[str] = PoolPicker(seed, size)
    for utterance, clip, frames in clips:
        wanted = picker.wanted(utterance, clip, frames)
        picker.keep(utterance, {candidate: f"{candidate.clip}/{candidate.frame}" for candidate in wanted})
    chosen = picker.chosen()
    assert all(item == f"{candidate.clip}/{candidate.frame}" for candidate, item in chosen)
    return [candidate for candidate, _ in chosen]


videos = st.lists(st.lists(st.integers(1, 120), min_size=1, max_size=4), min_size=1, max_size=5).map(
    lambda lengths: [
        (f"u{u}", f"a_b_u{u}-{c:04d}", list(range(length))) for u, clips in enumerate(lengths) for c, length in enumerate(clips)
    ]
)


@settings(max_examples=60, deadline=None)
@given(clips=videos, seed=st.integers(0, 99), size=st.integers(2, 40))
def test_streaming_equals_seeing_everything(clips: Clips, seed: int, size: int) -> None:
    """The order in which clips come, and what was forgotten on the way, change nothing."""
    chosen = choose(clips, seed, size)
    assert chosen == choose(list(reversed(clips)), seed, size)
    assert len(chosen) == len(set(chosen)) == min(size, sum(len(frames) for _, _, frames in clips))
    offered = {(clip, frame) for _, clip, frames in clips for frame in frames}
    assert {(candidate.clip, candidate.frame) for candidate in chosen} <= offered


@settings(max_examples=60, deadline=None)
@given(clips=videos, seed=st.integers(0, 99), size=st.integers(2, 40))
def test_every_utterance_has_its_share(clips: Clips, seed: int, size: int) -> None:
    frames = {u: sum(len(f) for name, _, f in clips if name == u) for u, _, _ in clips}
    got = {u: sum(candidate.clip.startswith(f"a_b_{u}-") for candidate in choose(clips, seed, size)) for u in frames}
    fair = size // len(frames)
    for utterance, count in got.items():
        assert count >= min(fair, frames[utterance])


def test_neighbours_come_last() -> None:
    """80 frames hold 10 blocks: ten choices take one of each."""
    chosen = choose([("u0", "a_b_u0-0000", list(range(80)))], 0, 10)
    assert sorted(candidate.frame // BLOCK_FRAMES for candidate in chosen) == list(range(10))


def test_the_seed_and_the_key_decide() -> None:
    clip = [("u0", "a_b_u0-0000", list(range(200)))]
    assert choose(clip, 0, 8) == choose(clip, 0, 8)
    assert choose(clip, 0, 8) != choose(clip, 1, 8)
    assert [c.frame for c in candidates(0, "x", range(50))] != [c.frame for c in candidates(0, "y", range(50))]


def test_known_choice() -> None:
    """Stored data depends on this choice: it must not change unnoticed."""
    assert [c.frame for c in choose([("u0", "anna_v1_u0-0000", list(range(40)))], 0, 4)] == [7, 21, 25, 33]


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 30)), st.integers(0, 60))
def test_shares_use_all_places(available: dict[str, int], size: int) -> None:
    given_places = shares(available, size)
    assert sum(given_places.values()) == min(size, sum(available.values()))
    assert all(given_places[name] <= available[name] for name in available)

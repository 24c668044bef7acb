"""Cutting a tracked stream into clips."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.settings import ClipSettings
from tasks.video.landmarks import FaceFrame
from tasks.video.segments import MAX_GAP, NoFace, Segment, Segmenter, next_length

SMALL = ClipSettings(min_frames=2, max_frames=12, history_frames=8)


def face(x: float = 0.0, faces: int = 1) -> FaceFrame:
    points = np.random.default_rng(0).uniform(0, 100, (68, 2)).astype(np.float32) + np.float32(x)
    return FaceFrame(points=points, confidence=0.9, faces=faces)


GONE = FaceFrame(points=None, confidence=0.0, faces=0)


def cut(faces: list[FaceFrame], *, shots: tuple[int, ...] = (0,), clips: ClipSettings = SMALL, first: int = 0) -> list[Segment | NoFace]:
    segmenter = Segmenter(clips, len(faces))
    parts: list[Segment | NoFace] = []
    for index, one in enumerate(faces):
        image = np.full((1, 1, 3), index % 256, np.uint8)
        parts += segmenter.push(first + index, image, one, new_shot=index in shots)
    return parts + list(segmenter.finish(first + len(faces)))


def spans(parts: list[Segment | NoFace]) -> list[tuple[str, int, int]]:
    return [("clip" if isinstance(part, Segment) else "none", part.first_tick, part.end_tick) for part in parts]


def test_one_face_one_shot_is_one_clip() -> None:
    assert spans(cut([face()] * 9, first=100)) == [("clip", 100, 109)]


def test_a_shot_boundary_cuts() -> None:
    assert spans(cut([face()] * 9, shots=(0, 4))) == [("clip", 0, 4), ("clip", 4, 9)]


def test_a_short_gap_is_bridged_with_held_landmarks() -> None:
    faces = [face(0), face(1), *[GONE] * MAX_GAP, face(2)]
    (segment,) = cut(faces)
    assert isinstance(segment, Segment)
    assert segment.confidence.tolist() == [np.float32(0.9)] * 2 + [0.0] * MAX_GAP + [np.float32(0.9)]
    np.testing.assert_array_equal(segment.points[2], segment.points[1])
    np.testing.assert_array_equal(segment.points[4], segment.points[1])


def test_a_longer_gap_ends_the_clip_and_is_reported() -> None:
    parts = cut([face()] * 5 + [GONE] * (MAX_GAP + 1) + [face()] * 3)
    assert spans(parts) == [("clip", 0, 5), ("none", 5, 9), ("clip", 9, 12)]


def test_a_face_lost_at_the_end_leaves_no_held_tail() -> None:
    assert spans(cut([face()] * 5 + [GONE] * 2)) == [("clip", 0, 5), ("none", 5, 7)]


def test_a_jump_is_another_person() -> None:
    assert spans(cut([face(0)] * 5 + [face(300)] * 5)) == [("clip", 0, 5), ("clip", 5, 10)]


def test_no_face_at_all() -> None:
    assert spans(cut([GONE] * 30)) == [("none", 0, 30)]


def test_the_last_piece_is_never_tiny() -> None:
    """260 frames with clips of at most 250: not 250 and a reject of 10."""
    clips = ClipSettings()
    assert next_length(260, clips) == 136
    assert next_length(300, clips) == 150
    assert next_length(250, clips) == 250
    assert next_length(100, clips) == 100
    assert next_length(750, clips) == 250


@given(st.integers(1, 5000))
def test_lengths_add_up(total: int) -> None:
    clips, left, lengths = ClipSettings(), total, []
    while left:
        lengths.append(next_length(left, clips))
        left -= lengths[-1]
    assert max(lengths) <= clips.max_frames
    assert len(lengths) == -(-total // clips.max_frames)
    assert min(lengths) >= min(total, 100)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from([0.0, 500.0])), min_size=1, max_size=80))
def test_every_frame_belongs_to_exactly_one_part(stream: list[tuple[bool, bool, float]]) -> None:
    faces = [face(x) if seen else GONE for seen, _, x in stream]
    shots = tuple(index for index, (_, cut_here, _) in enumerate(stream) if cut_here)
    parts = cut(faces, shots=shots)
    position = 0
    for part in parts:
        assert part.first_tick == position
        assert part.end_tick > part.first_tick
        position = part.end_tick
        if isinstance(part, Segment):
            assert len(part) <= SMALL.max_frames
            assert [int(image[0, 0, 0]) for image in part.images] == list(range(part.first_tick, part.end_tick))
            assert part.confidence[0] > 0
            assert not any(part.first_tick < shot < part.end_tick for shot in shots)
    assert position == len(stream)

"""The whole of pass 1 on one video, with the real landmarker and real files."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from models.views import Image
from tasks.rejects import Reject, RejectCode, RejectScope, VideoRejected
from tasks.samples import ClipSample, PoolSample, VideoDone, VideoEvent
from tasks.settings import ClipSettings, LandmarkSettings, PoolSettings, StoredSettings
from tasks.video.crop import CropBox
from tasks.video.landmarks import Landmarker, make_landmarker
from tasks.video.probe import probe
from tasks.video.process_video import source_box
from tests.tasks.made_videos import (
    events,
    face_frames,
    plain_frames,
    portrait,
    rotate_by_metadata,
    source,
    write_sound,
    write_video,
)

SETTINGS = StoredSettings(clips=ClipSettings(size=128, max_frames=60, history_frames=40), pool=PoolSettings(image_size=64))


@pytest.fixture(scope="module")
def landmarker() -> Landmarker:
    return make_landmarker(LandmarkSettings())


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of face with sound."""
    sound = (0.4 * np.sin(2 * np.pi * 200 * np.arange(32000) / 16000)).astype(np.float32)
    return write_video(tmp_path_factory.mktemp("videos") / "talk ing'é.mp4", face_frames(50), sound=sound)


def clips_of(all_events: list[VideoEvent]) -> list[ClipSample]:
    return [event for event in all_events if isinstance(event, ClipSample)]


def rejects_of(all_events: list[VideoEvent]) -> list[tuple[RejectScope, RejectCode]]:
    return [(event.scope, event.code) for event in all_events if isinstance(event, Reject)]


def decoded(mp4: bytes) -> list[Image]:
    import av

    with av.open(io.BytesIO(mp4)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def check_clip(clip: ClipSample) -> None:
    """What must hold for every clip."""
    frames = decoded(clip.mp4)
    assert len(frames) == clip.num_frames == len(clip.landmarks) == len(clip.confidence)
    assert frames[0].shape == (clip.size, clip.size, 3)
    assert clip.landmarks.min() >= -0.5
    assert clip.landmarks.max() <= clip.size - 0.5
    assert np.isfinite(clip.landmarks).all()
    assert ((clip.confidence >= 0) & (clip.confidence <= 1)).all()
    if clip.wav is not None:
        assert len(clip.wav) == 44 + 2 * 640 * clip.num_frames


def test_a_talking_face_becomes_one_clip_and_a_pool(talking: Path, landmarker: Landmarker) -> None:
    before = hashlib.sha256(talking.read_bytes()).hexdigest()
    all_events = events(source(talking), SETTINGS, landmarker)
    (clip,) = clips_of(all_events)
    check_clip(clip)
    assert (clip.key, clip.num_frames, clip.start) == ("anna_v1_u0-0000", 50, 0.0)
    assert clip.scores.landmark_rate == 1
    assert clip.scores.one_face == 1
    assert clip.scores.speech == pytest.approx(1, abs=0.05)
    assert not clip.scores.static
    assert clip.meta["licence"] == "CC0"
    assert clip.meta["consent"] == "yes"
    assert clip.meta["codec"] == "h264"
    assert clip.meta["full_history"] is True
    (pool,) = [event for event in all_events if isinstance(event, PoolSample)]
    assert pool.key == "anna_v1_pool"
    assert len(pool.jpegs) == len(pool.frames) == len(pool.clips) == len(pool.landmarks) == 32
    assert set(pool.clips) == {clip.key}
    # The pool shows the same crop as the clip, at its own size.
    for jpeg, points, frame in zip(pool.jpegs, pool.landmarks, pool.frames, strict=True):
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (64, 64, 3)
        np.testing.assert_allclose(points, (clip.landmarks[frame] + 0.5) / 2 - 0.5, atol=0.01)
    done = all_events[-1]
    assert isinstance(done, VideoDone)
    assert done.decoded_frames == 50
    assert {"decode", "shots", "landmarks", "quality", "crop", "encode", "audio", "pool"} <= set(done.seconds)
    assert rejects_of(all_events) == []
    assert hashlib.sha256(talking.read_bytes()).hexdigest() == before


def test_the_same_input_gives_the_same_bytes(talking: Path, landmarker: Landmarker) -> None:
    def without_time(all_events: list[VideoEvent]) -> list[bytes]:
        return [
            event.mp4 + (event.wav or b"") + event.landmarks.tobytes() + repr(event.scores).encode() for event in clips_of(all_events)
        ] + [b"".join(event.jpegs) + event.landmarks.tobytes() for event in all_events if isinstance(event, PoolSample)]

    first = without_time(events(source(talking), SETTINGS, landmarker))
    events(source(talking, start=0.4), SETTINGS, landmarker)
    assert without_time(events(source(talking), SETTINGS, make_landmarker(LandmarkSettings()))) == first


def test_only_the_wanted_part_is_read(talking: Path, landmarker: Landmarker) -> None:
    all_events = events(source(talking, start=0.4, end=1.6), SETTINGS, landmarker)
    (clip,) = clips_of(all_events)
    assert (clip.start, clip.num_frames) == (0.4, 30)
    assert clip.wav is not None
    assert len(clip.wav) == 44 + 30 * 1280


def test_shots_and_long_takes_are_cut(tmp_path: Path, landmarker: Landmarker) -> None:
    warm = [np.clip(frame.astype(int) * [1.0, 0.35, 0.3], 0, 255).astype(np.uint8) for frame in face_frames(70)]
    path = write_video(tmp_path / "cuts.mp4", [*face_frames(30), *plain_frames(10, 256, 256), *warm])
    all_events = events(source(path), SETTINGS, landmarker)
    assert [(clip.start, clip.num_frames) for clip in clips_of(all_events)] == [(0.0, 30), (1.6, 40), (3.2, 30)]
    assert [clip.key for clip in clips_of(all_events)] == [f"anna_v1_u0-000{index}" for index in range(3)]
    no_face = [event for event in all_events if isinstance(event, Reject) and event.code == RejectCode.NO_FACE]
    assert [(event.start, event.end, event.scope) for event in no_face] == [(1.2, 1.6, RejectScope.SEGMENT)]


def test_what_cannot_be_a_clip_says_why(tmp_path: Path, landmarker: Landmarker) -> None:
    """One bad utterance after another, and a good one at the end: every one has its row, the good one its clip."""
    two = [np.concatenate([frame, frame], axis=1) for frame in face_frames(30, 200, 200)]
    sound = np.sin(np.arange(16000) / 10).astype(np.float32)
    whole = write_video(tmp_path / "whole.mp4", face_frames(80), container_options={"movflags": "faststart"})
    (tmp_path / "truncated.mp4").write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.6)])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("hello " * 1000)
    cases: dict[str, list[tuple[RejectScope, RejectCode]]] = {
        "missing.mp4": [(RejectScope.UTTERANCE, RejectCode.MISSING)],
        "empty.mp4": [(RejectScope.UTTERANCE, RejectCode.EMPTY_FILE)],
        "text.mp4": [(RejectScope.UTTERANCE, RejectCode.NOT_A_VIDEO)],
        "sound.m4a": [(RejectScope.UTTERANCE, RejectCode.NO_VIDEO_STREAM)],
        "one.mp4": [(RejectScope.UTTERANCE, RejectCode.TOO_SHORT)],
        "noface.mp4": [(RejectScope.UTTERANCE, RejectCode.NO_AUDIO), (RejectScope.UTTERANCE, RejectCode.NO_FACE)],
        "two.mp4": [(RejectScope.UTTERANCE, RejectCode.NO_AUDIO), (RejectScope.SEGMENT, RejectCode.SEVERAL_FACES)],
        "truncated.mp4": [(RejectScope.UTTERANCE, RejectCode.NO_AUDIO), (RejectScope.UTTERANCE, RejectCode.CORRUPT)],
        "good.mp4": [(RejectScope.UTTERANCE, RejectCode.NO_AUDIO)],
    }
    write_sound(tmp_path / "sound.m4a", sound)
    write_video(tmp_path / "one.mp4", face_frames(1))
    write_video(tmp_path / "noface.mp4", plain_frames(30))
    write_video(tmp_path / "two.mp4", two)
    write_video(tmp_path / "good.mp4", face_frames(30))
    all_events = events(source(*[tmp_path / name for name in cases]), SETTINGS, landmarker)
    rows: dict[str, list[tuple[RejectScope, RejectCode]]] = {name: [] for name in cases}
    for event in all_events:
        if isinstance(event, Reject):
            assert event.key == "anna_v1"
            assert "Stack trace" not in event.message
            assert "\n" not in event.message
            rows[Path(event.uri).name].append((event.scope, event.code))
    assert rows == cases
    made = Counter(Path(clip.uri).name for clip in clips_of(all_events))
    assert made == {"truncated.mp4": 1, "good.mp4": 1}
    for clip in clips_of(all_events):
        check_clip(clip)
        assert clip.wav is None
        assert clip.scores.speech is None
    messages = {event.code: event for event in all_events if isinstance(event, Reject)}
    assert messages[RejectCode.CORRUPT].start is not None
    assert 1 < messages[RejectCode.CORRUPT].start < 2.6
    assert "100%" in messages[RejectCode.SEVERAL_FACES].message
    assert "0 of 30" in messages[RejectCode.NO_FACE].message


def test_rotated_odd_and_uneven_videos_work(tmp_path: Path, landmarker: Landmarker) -> None:
    lying = [np.ascontiguousarray(np.rot90(frame)) for frame in face_frames(30, 256, 200)]
    turned = write_video(tmp_path / "turned.mp4", lying)
    rotate_by_metadata(turned, 1)
    odd = write_video(tmp_path / "odd.mkv", face_frames(30, 241, 321), codec="mpeg4")
    uneven = write_video(
        tmp_path / "uneven.mkv", face_frames(30), times_ms=[int(40 * i + 15 * (i % 3) + (i > 15) * 200) for i in range(30)]
    )
    all_events = events(source(turned, odd, uneven), SETTINGS, landmarker)
    made = clips_of(all_events)
    assert [Path(clip.uri).name for clip in made] == ["turned.mp4", "odd.mkv", "uneven.mkv"]
    for clip in made:
        check_clip(clip)
        # Upright: brows above the chin.
        assert (clip.landmarks[:, 17:27, 1].mean(axis=1) < clip.landmarks[:, 8, 1]).all()
    assert made[0].meta["rotation"] == 270
    assert (made[0].meta["width"], made[0].meta["height"]) == (200, 256)
    assert made[2].num_frames > 32


def test_the_crop_box_and_scores_are_in_source_pixels(tmp_path: Path, landmarker: Landmarker) -> None:
    path = write_video(tmp_path / "large.mp4", face_frames(26, 512, 512))
    small = StoredSettings(clips=ClipSettings(size=128, decode_short_side=256), pool=PoolSettings(image_size=64))
    (whole,) = clips_of(events(source(path), SETTINGS, landmarker))
    (scaled,) = clips_of(events(source(path), small, landmarker))
    assert scaled.scores.face_px == pytest.approx(whole.scores.face_px, rel=0.05)
    assert scaled.crop_box == pytest.approx(whole.crop_box, abs=12)
    np.testing.assert_allclose(scaled.landmarks.mean(axis=1), whole.landmarks.mean(axis=1), atol=3)
    assert source_box(CropBox(10, -5, 100), 0.5) == (20, -10, 200)


def test_the_landmarks_sit_on_the_stored_picture(talking: Path, landmarker: Landmarker) -> None:
    """The landmarker finds the same points again in the crop that was stored."""
    (clip,) = clips_of(events(source(talking), SETTINGS, landmarker))
    for points, face in zip(clip.landmarks, landmarker.track(decoded(clip.mp4)), strict=True):
        assert face.points is not None
        assert np.abs(face.points - points).mean() < 2


def test_a_still_picture_is_flagged(tmp_path: Path, landmarker: Landmarker) -> None:
    path = write_video(tmp_path / "still.mp4", [portrait(256)] * 30)
    (clip,) = clips_of(events(source(path), SETTINGS, landmarker))
    assert clip.scores.static
    assert clip.scores.nose_travel < 0.02


def test_few_frames_make_no_pool(tmp_path: Path, landmarker: Landmarker) -> None:
    settings = StoredSettings(clips=ClipSettings(size=64, min_frames=4), pool=PoolSettings(min_size=9, image_size=64))
    all_events = events(source(write_video(tmp_path / "short.mp4", face_frames(6))), settings, landmarker)
    assert len(clips_of(all_events)) == 1
    assert (RejectScope.VIDEO, RejectCode.TOO_SHORT) in rejects_of(all_events)
    assert not any(isinstance(event, PoolSample) for event in all_events)


def test_sidecar_landmarks_are_used(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", face_frames(30))
    landmarker = make_landmarker(LandmarkSettings(backend="sidecar"))
    assert (RejectScope.UTTERANCE, RejectCode.SIDECAR_MISSING) in rejects_of(events(source(path), SETTINGS, landmarker))
    points = (np.random.default_rng(0).uniform(90, 160, (1, 68, 2)) + np.zeros((30, 1, 1))).astype(np.float32)
    np.save(tmp_path / "a.npy", points)
    (clip,) = clips_of(events(source(path), SETTINGS, landmarker))
    x, y, side = clip.crop_box
    np.testing.assert_allclose(clip.landmarks[0], (points[0] - [x, y] + 0.5) * 128 / side - 0.5, atol=0.01)
    late = clips_of(events(source(path, start=0.08), SETTINGS, landmarker))
    assert late[0].num_frames == 28


def test_a_full_disk_is_no_reject(landmarker: Landmarker) -> None:
    @contextmanager
    def full(uri: str) -> Iterator[Path]:
        raise OSError(28, "No space left on device")
        yield

    with pytest.raises(OSError, match="No space"):
        events(source("a.mp4"), SETTINGS, landmarker, full)

    @contextmanager
    def forbidden(uri: str) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied")
        yield

    assert rejects_of(events(source("a.mp4"), SETTINGS, landmarker, forbidden)) == [(RejectScope.UTTERANCE, RejectCode.UNREADABLE)]


@pytest.mark.samples
@pytest.mark.slow
def test_real_samples_become_clips(samples_dir: Path, landmarker: Landmarker) -> None:
    settings = StoredSettings(clips=ClipSettings(size=256))
    sounding = {
        "fullbody_1080x1920_hevc_25fps.mp4": True,
        "portrait_224_h264_25fps.mp4": True,
        "portrait_512_24fps_noaudio.mp4": False,
        "portrait_512_mpeg4_25fps.mp4": True,
    }
    for name, has_sound in sounding.items():
        all_events = events(source(samples_dir / name, start=0.4, end=2.4), settings, landmarker)
        made = clips_of(all_events)
        assert [(clip.start, clip.num_frames) for clip in made] == [(0.4, 50)], name
        for clip in made:
            check_clip(clip)
            assert clip.scores.landmark_rate == 1
            assert clip.scores.one_face > 0.9
            assert clip.scores.face_share > 0.25
            assert (clip.wav is not None) == has_sound
        codes = rejects_of(all_events)
        assert codes == ([] if has_sound else [(RejectScope.UTTERANCE, RejectCode.NO_AUDIO)])
        assert any(isinstance(event, PoolSample) for event in all_events)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoRejected, match="no regular file") as refused:
        probe(tmp_path / "pipe.mp4")
    assert refused.value.code == RejectCode.UNREADABLE

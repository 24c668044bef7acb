"""Stand-ins for `process_video`: fast, deterministic, and as badly behaved as a test needs. A file's text says what it does."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tasks.preprocessing.build_shard import OpenLocal
from tasks.preprocessing.executor import Executor, Finished, Outcome, Raised
from tasks.preprocessing.preprocess import PreprocessResult, ProgressCallback, preprocess
from tasks.rejects import Reject, RejectCode, RejectScope, VideoRejected
from tasks.samples import ClipSample, PoolSample, QualityScores, SourceVideo, VideoDone, VideoEvent
from tasks.settings import ClipSettings, LandmarkSettings, PreprocessSettings, RunSettings, StoredSettings
from tasks.video.landmarks import Landmarker

STORED = StoredSettings(landmarks=LandmarkSettings(backend="sidecar"), clips=ClipSettings(size=64))

SCORES = QualityScores(
    face_px=220.0,
    face_share=0.5,
    yaw_p95=5.0,
    pitch_p95=4.0,
    roll_p95=3.0,
    one_face=1.0,
    landmark_rate=1.0,
    nose_travel=0.1,
    head_inside=1.0,
    sharpness=100.0,
    brightness=120.0,
    static=False,
    camera_motion=0.001,
    speech=0.5,
)


def fake_video(video: SourceVideo, settings: StoredSettings, landmarker: Landmarker, open_local: OpenLocal) -> Iterator[VideoEvent]:
    """Two clips per utterance, made from the file's bytes. A file that says `no face` is rejected, `segfault` kills the process,
    `oom` is killed by SIGKILL, `error` raises after one clip, `full` meets a full disk, `slow` takes a while."""
    made = []
    for utterance in video.utterances:
        with open_local(utterance.uri) as path:
            try:
                content = path.read_bytes()
            except OSError as error:
                raise VideoRejected(RejectCode.UNREADABLE, "probe", f"{path.name}: {error.strerror}") from error
        text = content.decode(errors="replace")
        if "slow" in text:
            time.sleep(0.03)
        if "segfault" in text:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "oom" in text:
            os.kill(os.getpid(), signal.SIGKILL)
        if "full" in text:
            raise OSError(28, "No space left on device")
        if "no face" in text:
            message = "a face was found in 0 of 20 frames"
            yield Reject(
                key=video.key,
                uri=utterance.uri,
                scope=RejectScope.UTTERANCE,
                step="track",
                code=RejectCode.NO_FACE,
                message=message,
            )
            continue
        for number in range(2):
            clip = _clip(video, f"{video.key}_{utterance.name}-{number:04d}", utterance.uri, content, number, settings)
            made.append(clip)
            yield clip
            if "error" in text:
                raise ZeroDivisionError("somebody divided by zero")
    if made:
        yield PoolSample(
            key=f"{video.key}_pool",
            identity=video.identity,
            video=video.video,
            size=32,
            jpegs=tuple(clip.mp4[:100] for clip in made),
            landmarks=np.stack([clip.landmarks[0] for clip in made]),
            clips=tuple(clip.key for clip in made),
            frames=tuple(range(len(made))),
        )
    yield VideoDone(key=video.key, decoded_frames=20 * len(video.utterances), seconds={"decode": 0.002, "landmarks": 0.001})


def _clip(video: SourceVideo, key: str, uri: str, content: bytes, number: int, settings: StoredSettings) -> ClipSample:
    seed = int.from_bytes(hashlib.sha256(content + bytes([number])).digest()[:4], "big")
    rng = np.random.default_rng(seed)
    frames = 10 + 130 * number
    return ClipSample(
        key=key,
        identity=video.identity,
        video=video.video,
        uri=uri,
        start=0.5 * number,
        num_frames=frames,
        size=settings.clips.size,
        mp4=rng.bytes(3000 + seed % 700),
        wav=rng.bytes(500) if number else None,
        landmarks=rng.random((frames, 68, 2), dtype=np.float32),
        confidence=np.ones(frames, np.float32),
        crop_box=(1.0, 2.0, 64.0),
        scores=SCORES,
        meta={"codec": "fake"},
    )


def make_videos(folder: Path, *, identities: int = 4, videos: int = 3, text: str = "") -> Path:
    """A tree identity/video/utterance.mp4 of small files; returns `folder`."""
    for identity in range(identities):
        for video in range(videos):
            for utterance in range(2):
                path = folder / f"id{identity:03d}" / f"v{video}" / f"{utterance:05d}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{text} {identity} {video} {utterance}")
    return folder


def make_settings(*, executor: str = "local", workers: int = 2, videos_per_shard: int = 3, **run: object) -> PreprocessSettings:
    """Settings with cheap landmarks for the fake."""
    return PreprocessSettings(
        stored=STORED,
        run=RunSettings.model_validate({"executor": executor, "workers": workers, **run}),
        videos_per_shard=videos_per_shard,
        wav2vec=None,
    )


def run_fake(videos: list[Path] | Path, out: Path | str, progress: ProgressCallback | None = None, **settings: object) -> PreprocessResult:
    """Preprocess with `fake_video`."""
    sources = videos if isinstance(videos, list) else [videos]
    return preprocess(sources, out, make_settings(**settings), progress=progress, process=fake_video)


def content_of(dataset: Path) -> dict[str, str]:
    """sha256 of every file of a dataset by name; of records without their timings."""
    hashes = {}
    for path in sorted(path for path in dataset.rglob("*") if path.is_file()):
        content = path.read_bytes()
        name = str(path.relative_to(dataset))
        if name.startswith("records/"):
            content = json.dumps(json.loads(content) | {"seconds": None}, sort_keys=True).encode()
        hashes[name] = hashlib.sha256(content).hexdigest()
    return hashes


class InlineExecutor(Executor[Any, Any]):
    """Runs jobs in this process: for tests that are not about processes."""

    def running(self) -> list[Any]:
        return []

    def wait(self, seconds: float) -> list[Outcome[Any, Any]]:
        job = self.queue.popleft()
        try:
            return [Finished(job, self.function(job))]
        except Exception as error:  # noqa: BLE001 (as the real ones do)
            number = error.errno if isinstance(error, OSError) else None
            return [Raised(job, type(error).__name__, str(error), number, "")]

    def close(self) -> None:
        pass


def inline(kind: str, function: Callable[[Any], Any], *, workers: int) -> InlineExecutor:
    """In place of `make_executor`."""
    return InlineExecutor(function, workers)

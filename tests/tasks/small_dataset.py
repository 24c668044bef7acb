"""A dataset written with the real shard writer, from synthetic clips: what reading is tested on."""

from __future__ import annotations

import io
import json
import wave
from pathlib import Path

import numpy as np
import torch

from models.views import NUM_LANDMARKS, SAMPLES_PER_FRAME, Clip, Image, Keyframes
from tasks.data.dataset import DATASET_FILE, SCHEMA_VERSION, Dataset
from tasks.data.records import FileRecord, ShardRecord, write_record
from tasks.data.shards import (
    TarShard,
    clip_members,
    clip_row,
    clips_schema,
    index_name,
    parquet_bytes,
    pool_members,
    pool_row,
    pools_schema,
    rejects_name,
    rejects_schema,
    tar_name,
)
from tasks.data.storage import Storage
from tasks.samples import ClipSample, PoolSample, QualityScores
from tasks.settings import StoredSettings, fingerprint_of
from tasks.video.video_out import encode_clip

SIZE = 64
GOP = 6
POOL_EVERY = 4
SCORES = QualityScores(
    face_px=300.0,
    face_share=0.4,
    yaw_p95=5.0,
    pitch_p95=5.0,
    roll_p95=2.0,
    one_face=1.0,
    landmark_rate=1.0,
    nose_travel=0.1,
    head_inside=1.0,
    sharpness=100.0,
    brightness=120.0,
    static=False,
    camera_motion=0.0,
    speech=0.5,
)


def code(key: str) -> int:
    """A number that stands for a clip, drawn into its frames, landmarks and sound."""
    return sum(key.encode()) % 200


def picture(key: str, frame: int) -> Image:
    """A grey picture that says which clip and frame it is: left half the clip's code, right half 5 x frame."""
    image = np.empty((SIZE, SIZE, 3), np.uint8)
    image[:, : SIZE // 2] = 20 + code(key)
    image[:, SIZE // 2 :] = 20 + 5 * (frame % 40)
    return image


def frame_of(image: Image) -> int:
    """The frame number that `picture` drew."""
    return round((float(image[:, SIZE // 2 + 4 :].mean()) - 20) / 5)


def waveform(key: str, frames: int) -> np.ndarray:
    """A tone per clip; sample values in -1..1."""
    time = np.arange(frames * SAMPLES_PER_FRAME) / 16_000
    return (0.3 * np.sin(2 * np.pi * (100 + code(key)) * time)).astype(np.float32)


def wav_bytes(samples: np.ndarray) -> bytes:
    """PCM16 mono RIFF."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((samples * 32767).round().astype("<i2").tobytes())
    return buffer.getvalue()


def clip_sample(identity: str, video: str, number: int, *, frames: int, sound: bool = True) -> ClipSample:
    """One clip whose every part says which it is."""
    key = f"{identity}_{video}_u-{number}"
    landmarks = np.full((frames, NUM_LANDMARKS, 2), code(key), np.float32)
    landmarks[..., 1] = np.arange(frames)[:, None]
    return ClipSample(
        key=key,
        identity=identity,
        video=video,
        uri=f"/videos/{identity}/{video}.mp4",
        start=float(number),
        num_frames=frames,
        size=SIZE,
        mp4=encode_clip((picture(key, frame) for frame in range(frames)), crf=10, gop=GOP, preset="ultrafast"),
        wav=wav_bytes(waveform(key, frames)) if sound else None,
        landmarks=landmarks,
        confidence=np.linspace(0, 1, frames, dtype=np.float32),
        crop_box=(0.0, 0.0, 100.0),
        scores=SCORES,
        meta={},
    )


def pool_sample(identity: str, video: str, clips: list[ClipSample]) -> PoolSample:
    """The pool of these clips: every fourth frame."""
    import cv2

    places = [(clip.key, frame) for clip in clips for frame in range(0, clip.num_frames, POOL_EVERY)]
    jpegs = [cv2.imencode(".jpg", picture(key, frame), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes() for key, frame in places]
    landmarks = np.stack([np.full((NUM_LANDMARKS, 2), frame, np.float32) for _, frame in places])
    return PoolSample(
        key=f"{identity}_{video}_pool",
        identity=identity,
        video=video,
        size=SIZE,
        jpegs=tuple(jpegs),
        landmarks=landmarks,
        clips=tuple(key for key, _ in places),
        frames=tuple(frame for _, frame in places),
    )


def write_shard(folder: Path | str, shard: int, videos: dict[tuple[str, str], list[ClipSample]]) -> None:
    """One finished shard: {(identity, video): clips}."""
    storage = Storage.at(folder)
    clip_rows: list[dict[str, object]] = []
    pool_rows: list[dict[str, object]] = []
    contents: dict[str, FileRecord] = {}
    with storage.create(tar_name("clips", shard)) as file, TarShard(file) as tar:
        for (identity, video), clips in sorted(videos.items()):
            for clip in clips:
                members = tar.add(clip.key, clip_members(clip, video=f"{identity}_{video}", full_history=False))
                clip_rows.append(
                    clip_row(
                        clip,
                        video=f"{identity}_{video}",
                        shard=shard,
                        licence="CC0",
                        consent=None,
                        full_history=False,
                        members=members,
                    )
                )
        tar.close()
        contents[file.name] = FileRecord(bytes=file.bytes, sha256=file.sha256)
    with storage.create(tar_name("keyframes", shard)) as file, TarShard(file) as tar:
        for (identity, video), clips in sorted(videos.items()):
            pool = pool_sample(identity, video, clips)
            members = tar.add(pool.key, pool_members(pool, video=f"{identity}_{video}"))
            pool_rows.append(pool_row(pool, video=f"{identity}_{video}", shard=shard, licence="CC0", consent=None, members=members))
        tar.close()
        contents[file.name] = FileRecord(bytes=file.bytes, sha256=file.sha256)
    storage.write(index_name("clips", shard), parquet_bytes(clip_rows, clips_schema()))
    storage.write(index_name("keyframes", shard), parquet_bytes(pool_rows, pools_schema()))
    storage.write(rejects_name(shard), parquet_bytes([], rejects_schema()))
    inputs = {"test": str(shard)}
    record = ShardRecord(
        shard=shard,
        fingerprint=fingerprint_of(inputs),
        inputs=inputs,
        files=contents,
        counts={"videos": len(videos), "clips": len(clip_rows), "pools": len(pool_rows), "frames": 0, "rejects": 0},
    )
    write_record(storage, record)


def small_dataset(folder: Path | str, *, shards: int = 3, videos: int = 3, clips: int = 2, frames: int = 12) -> Dataset:
    """`shards` shards of `videos` videos of `clips` clips each; the second clip of every third video is silent."""
    count = 0
    for shard in range(shards):
        content: dict[tuple[str, str], list[ClipSample]] = {}
        for _ in range(videos):
            identity, video = f"id{count // 2:02d}", f"v{count:02d}"
            content[identity, video] = [
                clip_sample(identity, video, number, frames=frames + number, sound=not (number == 1 and count % 3 == 2))
                for number in range(clips)
            ]
            count += 1
        write_shard(folder, shard, content)
    Storage.at(folder).write(
        DATASET_FILE, json.dumps({"schema_version": SCHEMA_VERSION, "settings": StoredSettings().model_dump(mode="json")}).encode()
    )
    return Dataset.open(folder)


def which_clip(clip: Clip, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """An example that says which clip and which random draw it was made from."""
    return {"clip": torch.tensor(float(clip.landmarks[0, 0, 0])), "draw": torch.tensor(rng.random())}


def which_pool(pool: Keyframes, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """The same for pools."""
    number = int(rng.integers(len(pool)))
    return {"pool": torch.tensor(int(pool.video[-2:])), "frame": torch.tensor(int(pool.frames[number]))}


def refuse(clip: Clip, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """An example maker with a bug."""
    raise RuntimeError(f"no example from {clip.video}")

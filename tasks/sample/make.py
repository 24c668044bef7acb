"""The embedded sample: talking-head videos made offline, for the first look, the demo and the tests.

People are variations of one public-domain portrait (`tasks.sample.identity`), moved by `tasks.sample.face` with the mouth
that belongs to the synthetic speech of `tasks.sample.speech`.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.views import FPS, Image
from tasks.sample.face import FaceAnimator, Pose
from tasks.sample.identity import Head, Look, make_head, make_looks
from tasks.sample.portrait import SIZE
from tasks.sample.speech import Speech, speak
from tasks.video.video_out import VideoWriter

PORTRAIT_SOURCE = "NASA portrait of Eileen Collins, public domain, skimage.data.astronaut"

_VIDEO_NAMES = "abcdefghijkmnopqrstuvwxyz"


@dataclass(frozen=True, kw_only=True)
class _Person:
    """What one process does: all utterances of one identity, so that the portrait is prepared once."""

    look: Look
    paths: tuple[Path, ...]
    seconds: float
    size: int
    seed: int


def make_sample(
    out: Path,
    *,
    seed: int = 0,
    identities: int = 4,
    utterances: int = 2,
    seconds: float = 8.0,
    size: int = 512,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write OUT/<identity>/<video>/00001.mp4: `utterances` videos of each of `identities` people, each with its sound.

    The same arguments give the same files, whatever `workers` is. Existing files of these names are replaced; nothing else is touched.

    Args:
        out: Folder of the VoxCeleb2-like tree; made where it is missing.
        seed: Chooses the people's details, their words and their movements.
        seconds: Length of each video; rounded to whole frames at 25 fps.
        size: Side of the square frames in pixels; even.
        workers: Processes; None takes one per core. 1 works in this process.
        progress: Called as (videos done, videos in all).

    Returns:
        The paths, sorted.

    Raises:
        ValueError: for a count below one, a length below one frame, an odd size, or more than 25 utterances.
    """
    if identities < 1 or not 1 <= utterances <= len(_VIDEO_NAMES):
        raise ValueError(f"need at least 1 identity and 1..{len(_VIDEO_NAMES)} utterances, got {identities} and {utterances}")
    if not math.isfinite(seconds) or round(seconds * FPS) < 1:
        raise ValueError(f"seconds must be at least one frame (0.04), got {seconds}")
    if size < 64 or size % 2:
        raise ValueError(f"size must be even and at least 64, got {size}")
    people = []
    for look in make_looks(identities, seed):
        paths = tuple(Path(out) / look.name / f"{look.name[2:6]}{_VIDEO_NAMES[i]}" / "00001.mp4" for i in range(utterances))
        people.append(_Person(look=look, paths=paths, seconds=seconds, size=size, seed=seed))
    total, done = identities * utterances, 0
    if progress:
        progress(0, total)
    for finished in _finished(people, workers or os.cpu_count() or 1):
        done += finished
        if progress:
            progress(done, total)
    return sorted(path for person in people for path in person.paths)


def _finished(people: list[_Person], workers: int) -> Iterator[int]:
    """Make all people's videos; yield how many videos were just finished."""
    workers = min(workers, len(people))
    if workers == 1:
        for person in people:
            yield _make_person(person)
        return
    # Spawned, because a fork of a process that has MediaPipe's or Ray's threads can hang.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        for future in as_completed([pool.submit(_make_person, person) for person in people]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _make_person(person: _Person) -> int:
    """Write all utterances of one identity; returns their number."""
    import cv2

    cv2.setNumThreads(1)  # one process per core already
    head = make_head(person.look)
    for index, path in enumerate(person.paths):
        rng = np.random.default_rng([person.seed, int(person.look.name[2:6]), index, 0xFACE])
        speech = speak(person.look.voice, seconds=person.seconds, seed=int(rng.integers(2**31)))
        poses = move(speech, rng)
        metadata = {"synthetic": "true", "title": f"{person.look.name}, utterance {index + 1}", "source": PORTRAIT_SOURCE}
        with VideoWriter(path, width=person.size, height=person.size, audio=speech.audio, metadata=metadata) as writer:
            for frame in frames(head, person.look, poses, rng, size=person.size):
                writer.write(frame)
    return len(person.paths)


def frames(head: Head, look: Look, poses: list[Pose], rng: np.random.Generator, *, size: int) -> Iterator[Image]:
    """Draw one video: uint8 [size, size, 3] for every pose, in the identity's room under one light."""
    import cv2

    animator = FaceAnimator(head, make_background(look, rng))
    light = np.clip(np.arange(256) * rng.uniform(0.93, 1.05), 0, 255).astype(np.uint8)
    for pose in poses:
        frame = cv2.LUT(animator.render(pose), light)
        if size != SIZE:
            frame = cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA if size < SIZE else cv2.INTER_CUBIC)
        yield frame


def move(speech: Speech, rng: np.random.Generator) -> list[Pose]:
    """One pose per frame: mouth and brows from the speech, nods with its accents, blinks every few seconds, and slow wandering."""
    count = len(speech.opening)
    blink = _blinks(count, rng)
    wander = {
        name: _wander(count, rng, period)
        for name, period in (("yaw", 3.2), ("pitch", 2.6), ("roll", 3.4), ("x", 3.0), ("y", 3.6), ("scale", 4.0))
    }
    nod = np.convolve(speech.accent, np.hanning(9) / np.hanning(9).sum(), "same")
    yaw0, pitch0 = rng.uniform(-3, 3), rng.uniform(-1.5, 1.5)
    return [
        Pose(
            opening=float(speech.opening[i]),
            width=float(speech.width[i]),
            blink=float(blink[i]),
            brow=float(0.8 * nod[i]),
            yaw=float(np.clip(yaw0 + 6.5 * wander["yaw"][i], -12, 12)),
            pitch=float(np.clip(pitch0 + 2.6 * wander["pitch"][i] + 2.2 * nod[i], -7, 7)),
            roll=float(np.clip(2.6 * wander["roll"][i], -6, 6)),
            scale=float(1.0 + 0.016 * np.clip(wander["scale"][i], -2.2, 2.2)),
            shift_x=float(np.clip(7.0 * wander["x"][i], -16, 16)),
            shift_y=float(np.clip(3.5 * wander["y"][i] + 3.0 * nod[i], -8, 10)),
        )
        for i in range(count)
    ]


def _wander(count: int, rng: np.random.Generator, period: float) -> npt.NDArray[np.float64]:
    """Smooth movement of unit variance that turns about every `period` seconds: [count]."""
    times = np.arange(count) / FPS
    parts = [(period * factor, rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.0)) for factor in (2.0, 1.0, 0.62, 0.4)]
    total = sum(np.sqrt(seconds) * strength * np.sin(2 * np.pi * times / seconds + phase) for seconds, phase, strength in parts)
    return np.asarray(total) / np.sqrt(sum(seconds * strength**2 / 2 for seconds, _, strength in parts))


def _blinks(count: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """0 (open) .. 1 (closed), [count]: closes in two frames, opens in four, every 1.5 to 4.5 seconds."""
    shape = np.array([0.45, 1.0, 0.95, 0.6, 0.28, 0.08])
    track = np.zeros(count)
    at = int(rng.uniform(0.4, 2.0) * FPS)
    while at < count:
        part = shape[: count - at]
        track[at : at + len(part)] = part
        at += int(rng.uniform(1.5, 4.5) * FPS)
    return track


def make_background(look: Look, rng: np.random.Generator) -> Image:
    """The identity's room, out of focus: uint8 [512, 512, 3]. Differs a little from video to video."""
    import cv2

    dark, bright, pattern = look.background
    low, high = np.array(dark, np.float32), np.array(bright, np.float32)
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32) / SIZE
    side = rng.uniform(0.15, 0.85)
    glow = np.exp(-((x - side) ** 2 / 0.35) - ((y - 0.25) ** 2 / 0.5))
    mix = 0.15 + 0.6 * glow
    shift = rng.uniform(0, 1)
    if pattern == "blinds":
        mix += 0.22 * cv2.GaussianBlur(((y * 13 + shift + 0.15 * x) % 1.0 > 0.45).astype(np.float32), (0, 0), 4) * (x > 0.5 * side) - 0.05
    elif pattern == "panels":
        columns = np.floor(x * 5 + shift)
        mix += 0.25 * (np.sin(columns * 12.9898) * 43758.5453 % 1.0 - 0.5) * (((x * 5 + shift) % 1.0) > 0.06)
        mix -= 0.12 * (np.abs(y - 0.62) < 0.012)
    elif pattern == "lights":
        for _ in range(16):
            cx, cy, radius = rng.uniform(0, 1), rng.uniform(0, 0.8), rng.uniform(0.02, 0.055)
            mix += rng.uniform(0.15, 0.5) * np.clip((radius - np.hypot(x - cx, y - cy)) * 120, 0, 1)
    mix = cv2.GaussianBlur(np.clip(mix, 0, 1).astype(np.float32), (0, 0), 3)[..., None]
    grain = rng.normal(0, 1.2, (SIZE, SIZE, 1))
    return np.clip(np.round(low * (1 - mix) + high * mix + grain), 0, 255).astype(np.uint8)

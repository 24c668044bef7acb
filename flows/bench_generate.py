"""`flows bench generate`: how near a made video comes to the rate of its networks, and that its memory does not grow with its length.

In one run, each in a process of its own: the family's synthesis alone, on frames that lie in memory; then whole videos of several
lengths, with the search for landmarks, decoding, encoding and sound. The networks are new, at the profile's size: an untrained
network works as long as a trained one.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from flows.progress import Bar
from models.family import Canvas, DriverKind, Family, FamilyConfig
from models.views import FPS
from tasks.settings import SpeechSettings

if TYPE_CHECKING:
    from models.weights import WeightsStore
    from tasks.generation.inputs import PreparedDriver
    from tasks.training.registry import LoadedModel
    from tasks.video.landmarks import Landmarker

MEMORY_BYTES = 256 << 20
"""Frames that the synthesis alone works on are no more than this."""

WARM_FRAMES = 16
"""Frames that are made before the clock of the synthesis alone starts: allocations, and a GPU's choice of kernels."""

ALONE_FRAMES = 250
"""Most frames that the synthesis alone is timed over."""

SAMPLE_SECONDS = 8.0
SAMPLE_SIZE = 512


class BenchFailed(RuntimeError):
    """A measurement did not come to its end."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process measures with."""

    family: Family
    config: FamilyConfig
    stage: str
    export: Path
    face: Path
    folder: Path
    """Drivers `<seconds>.wav` or `<seconds>.mp4`, and made videos."""
    device: str
    weights: WeightsStore
    speech: Sequence[SpeechSettings]
    make_landmarker: Callable[[], Landmarker]

    def driver(self, seconds: float) -> Path:
        """The sound, or the video, that drives a video of this length."""
        return self.folder / f"{seconds:g}.{'wav' if self.family.driver is DriverKind.AUDIO else 'mp4'}"

    def load(self) -> LoadedModel:
        """The exported model."""
        from tasks.training.registry import LoadedModel
        from tasks.training.train import choose_device

        synthesizer = self.family.load(self.export, choose_device(self.device))
        return LoadedModel(
            family=self.family, config=self.config, synthesizer=synthesizer, folder=self.export, uri="untrained", stage=self.stage
        )


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What one process measured."""

    frames: int
    seconds: float
    peak_mib: float
    """Largest resident memory of the process, from its start."""
    width: int
    height: int
    prepared: float = 0.0
    """Of `seconds`, those before the first frame: reading the inputs, the search for landmarks."""
    threads: int = 0
    device: str = ""

    @property
    def frames_per_second(self) -> float:
        """Over everything that was timed."""
        return self.frames / self.seconds


@dataclass(frozen=True, kw_only=True)
class GenerateBench:
    """What was measured."""

    alone: Rate
    videos: tuple[Rate, ...]
    """By length, shortest first."""

    @property
    def ratio(self) -> float:
        """Achieved over limit, of the longest video."""
        return self.videos[-1].frames_per_second / self.alone.frames_per_second

    def table(self) -> Table:
        """For people."""
        table = Table(title=f"{self.alone.device}, {self.alone.threads} threads", title_justify="left", box=None, padding=(0, 2))
        for column in ("", "size", "frames", "frames/s", "x real time", "before the first frame", "peak memory"):
            table.add_column(column, justify="left" if not column else "right")
        for name, rate in [("synthesis alone", self.alone), *((f"whole video, {rate.frames / FPS:g} s", rate) for rate in self.videos)]:
            table.add_row(
                name,
                f"{rate.width}x{rate.height}",
                str(rate.frames),
                f"{rate.frames_per_second:.1f}",
                f"{rate.frames_per_second / FPS:.2f}",
                f"{rate.prepared:.1f} s" if rate.prepared else "-",
                f"{rate.peak_mib:.0f} MiB",
            )
        return table


def measure(
    family: Family,
    config: FamilyConfig,
    *,
    seconds: Sequence[float],
    weights: WeightsStore,
    bar: Callable[[str], Bar],
    face: Path | None = None,
    audio: Path | None = None,
    device: str = "auto",
    speech: Sequence[SpeechSettings] = (),
    make_landmarker: Callable[[], Landmarker] | None = None,
) -> GenerateBench:
    """Build the family's networks, and measure with them in temporary files that are removed afterwards.

    Args:
        seconds: Lengths of the videos to make.
        face: A video of a person; None makes one (`tasks.sample`).
        audio: Speech, repeated as often as it takes; None makes some. Of families that landmarks drive, `face` drives itself.
        speech: Networks of families that hear through them.
        make_landmarker: Picklable; None is MediaPipe.

    Raises:
        BenchFailed: a process ended without a result.
        GenerationError, MissingWeights: as generation and building do.
    """
    lengths = sorted(set(seconds))
    with tempfile.TemporaryDirectory(prefix="bench-generate-") as name:
        folder = Path(name)
        ready = bar("model and inputs")
        face = face or _sample_face(folder)
        landmarker = make_landmarker or _mediapipe
        job = Job(
            family=family,
            config=config,
            stage="",
            export=folder,
            face=face,
            folder=folder,
            device=device,
            weights=weights,
            speech=speech,
            make_landmarker=landmarker,
        )
        for length in lengths:
            _write_driver(job, length, audio)
        stage, export = _export(job)
        job = Job(**{**vars(job), "stage": stage, "export": export})
        ready.finish(f"{family.name} {stage}, untrained")
        alone = _in_process(_alone, job, lengths[-1], bar("synthesis alone"))
        videos = tuple(_in_process(_whole, job, length, bar(f"whole video, {length:g} s")) for length in lengths)
    return GenerateBench(alone=alone, videos=videos)


def _alone(job: Job, seconds: float, progress: Callable[..., None]) -> Rate:
    """The synthesizer on frames in memory: no decoding, no encoding."""
    import numpy as np
    import torch

    from models.family import Face, Template
    from tasks.generation.faces import prepare_face
    from tasks.generation.template import prepare_template

    model = job.load()
    options: dict[str, Any] = {"references": 8, "size": model.size, "margin": model.stored.clips.margin}
    if job.family.canvas is Canvas.TEMPLATE:
        made = prepare_template([job.face], job.make_landmarker(), **options)
        template = made.face.template
        assert template is not None
        frame = template.read([0])
        kept = min(len(template), max(1, MEMORY_BYTES // frame.nbytes))
        images = np.concatenate([template.read([index]) for index in range(kept)])
        read = Template(read=lambda indices: images[list(indices)], landmarks=template.landmarks[:kept])
        face, (height, width) = Face(images=made.face.images, landmarks=made.face.landmarks, template=read), images.shape[1:3]
    else:
        face, height, width = prepare_face([job.face], job.make_landmarker(), **options).face, model.size, model.size
    moved = _driver_of(job, model, seconds)
    warm = min(WARM_FRAMES, moved.frames // 2)
    timed = min(ALONE_FRAMES, moved.frames - warm)
    frames = iter(model.synthesizer.synthesize(face, moved.driver))
    for _ in islice(frames, warm):
        pass
    started = time.perf_counter()
    count = 0
    for _ in islice(frames, timed):
        count += 1
        progress(count, timed, f"{count / (time.perf_counter() - started):.1f} frames/s")
    return Rate(
        frames=count,
        seconds=time.perf_counter() - started,
        peak_mib=peak_mib(),
        width=width,
        height=height,
        threads=torch.get_num_threads(),
        device=_device_name(job.device),
    )


def _whole(job: Job, seconds: float, progress: Callable[..., None]) -> Rate:
    """`tasks.generation.generate.generate`, from files to a file."""
    from tasks.generation.generate import generate

    model = job.load()
    first: list[float] = []
    started = time.perf_counter()

    def show(what: str, done: int, total: int) -> None:
        if what == "making frames" and not first:
            first.append(time.perf_counter() - started)
        rate = f", {done / max(1e-9, time.perf_counter() - started - first[0]):.1f} frames/s" if first and done > 1 else ""
        progress(done, total, what + rate)

    sound = job.family.driver is DriverKind.AUDIO
    made = generate(
        model,
        face=job.face,
        audio=job.driver(seconds) if sound else None,
        driver=None if sound else job.driver(seconds),
        out=job.folder / f"made-{seconds:g}.mp4",
        landmarker=job.make_landmarker(),
        weights=job.weights,
        speech=job.speech,
        progress=show,
    )
    return Rate(
        frames=made.frames,
        seconds=time.perf_counter() - started,
        peak_mib=peak_mib(),
        width=made.width,
        height=made.height,
        prepared=first[0],
    )


def _driver_of(job: Job, model: LoadedModel, seconds: float) -> PreparedDriver:
    from dataclasses import replace

    from tasks.generation.inputs import prepare_audio_driver, prepare_landmark_driver
    from tasks.generation.sound_features import sound_features

    path = job.driver(seconds)
    if job.family.driver is DriverKind.LANDMARKS:
        return prepare_landmark_driver(path, job.make_landmarker(), size=model.size, margin=model.stored.clips.margin)
    moved = prepare_audio_driver(path)
    names = job.family.features(job.config, job.stage)
    if not names or moved.sound is None:
        return moved
    features = sound_features(names, moved.sound, {}, weights=job.weights, speech=job.speech)
    return replace(moved, driver=replace(moved.driver, features=features))


def _export(job: Job) -> tuple[str, Path]:
    """Build the family's pipeline stages one after the other, and export each; returns the last one's name and folder."""
    import torch

    from models.family import BuildContext
    from tasks.generation.faces import prepare_face

    stages = [stage for stage in job.family.stages if stage.in_pipeline]
    person = prepare_face([job.face], job.make_landmarker(), references=8, size=512, margin=0.35).face
    exports: dict[str, Path] = {}
    for stage in stages:
        torch.manual_seed(0)
        context = BuildContext(
            device=torch.device("cpu"),
            weights=job.weights,
            video_keys=("bench_0",),
            start_from=exports.get(stage.after or ""),
            face=person,
        )
        module = job.family.build(job.config, stage.name, context)
        folder = job.folder / f"export-{stage.name}"
        folder.mkdir()
        module.eval()
        module.export(folder)
        exports[stage.name] = folder
    return stages[-1].name, exports[stages[-1].name]


def _sample_face(folder: Path) -> Path:
    from tasks.sample.make import make_sample

    (path,) = make_sample(folder / "sample", identities=1, utterances=1, seconds=SAMPLE_SECONDS, size=SAMPLE_SIZE, workers=1)
    return path


def _write_driver(job: Job, seconds: float, audio: Path | None) -> None:
    """Sound of this length; for families that landmarks drive, the face's own video played to and fro."""
    import numpy as np

    from tasks.generation.inputs import GenerationError, prepare_audio_driver
    from tasks.video.audio import wav_bytes

    frames = round(seconds * FPS)
    if job.family.driver is DriverKind.LANDMARKS:
        _write_video(job, seconds, frames)
        return
    if audio is not None:
        sound = prepare_audio_driver(audio).sound
        if sound is None:
            raise GenerationError(f"--audio: {audio} holds no sound")
    else:
        from tasks.sample.speech import Voice, speak

        sound = speak(Voice(pitch=120), seconds=SAMPLE_SECONDS, seed=0).audio
    job.driver(seconds).write_bytes(wav_bytes(np.resize(sound, frames * 16_000 // FPS).astype(np.float32)))


def _write_video(job: Job, seconds: float, frames: int) -> None:
    from models.family import ping_pong
    from tasks.generation.template import prepare_template
    from tasks.video.video_out import VideoWriter

    made = prepare_template([job.face], job.make_landmarker(), references=1, size=64, margin=0.35)
    template = made.face.template
    assert template is not None
    assert made.canvas is not None
    with VideoWriter(job.driver(seconds), width=made.canvas[1], height=made.canvas[0], gop=FPS) as writer:
        for index in islice(ping_pong(len(template)), frames):
            writer.write(template.read([index])[0])


def _in_process(work: Callable[[Job, float, Callable[..., None]], Rate], job: Job, seconds: float, bar: Bar) -> Rate:
    """Do it in a new process, so that its peak memory is its own, and show its progress.

    Raises:
        BenchFailed: it died.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(work, job, seconds, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        with closing(ours):
            while True:
                message = ours.recv()
                if isinstance(message, Rate):
                    bar.finish(f"{message.frames_per_second:.1f} frames/s, {message.peak_mib:.0f} MiB")
                    return message
                if isinstance(message, Exception):
                    raise message
                bar(*message)
    except EOFError:
        process.join()
        raise BenchFailed(f"the process that measured {seconds:g} s ended with code {process.exitcode}: is there enough memory?") from None
    finally:
        process.join(10)
        if process.is_alive():
            process.terminate()
            process.join()


def _child(work: Callable[[Job, float, Callable[..., None]], Rate], job: Job, seconds: float, pipe: Connection) -> None:
    said = 0.0

    def progress(done: int, total: int, note: str) -> None:
        nonlocal said
        if time.monotonic() - said > 0.25:
            said = time.monotonic()
            pipe.send((done, total, note))

    try:
        pipe.send(work(job, seconds, progress))
    except (ValueError, RuntimeError, OSError) as error:
        pipe.send(_portable(error))


def _portable(error: Exception) -> Exception:
    """What survives the way to another process."""
    import pickle

    try:
        return error if isinstance(pickle.loads(pickle.dumps(error)), Exception) else BenchFailed(str(error))
    except TypeError:
        return BenchFailed(f"{type(error).__name__}: {error}")


def peak_mib() -> float:
    """The largest resident memory that this process had, in MiB (`ru_maxrss` would begin with the parent's)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def _device_name(device: str) -> str:
    import torch

    from tasks.training.train import choose_device

    if choose_device(device).type == "cuda":
        return str(torch.cuda.get_device_name())
    return f"CPU ({os.cpu_count()} cores)"


def _mediapipe() -> Landmarker:
    from tasks.settings import LandmarkSettings
    from tasks.video.landmarks import make_landmarker

    return make_landmarker(LandmarkSettings())

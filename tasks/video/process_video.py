"""Pass 1 for one video: open each utterance once, and yield clips, the keyframe pool, rejects and the cost.

    probe -> decode at 25 fps -> shots -> landmarks and face track -> scores -> crop -> encode + sound -> pool

Everything streams: at most one clip of decoded frames is in memory.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from models.views import FPS, Image, Points
from tasks.rejects import Reject, RejectCode, RejectScope, VideoRejected
from tasks.samples import ClipSample, PoolSample, SourceVideo, Utterance, VideoDone, VideoEvent
from tasks.settings import StoredSettings
from tasks.video.audio import clip_audio, wav_bytes
from tasks.video.crop import CropBox, crop_image, crop_points, union_box
from tasks.video.decode import BrokenOff, Frame, FrameReader, read_frames
from tasks.video.landmarks import FaceFrame, Landmarker
from tasks.video.landmarks_sidecar import SidecarLandmarker, sidecar_uri
from tasks.video.probe import VideoFacts, content_fingerprint, probe
from tasks.video.quality import score_clip
from tasks.video.segments import NoFace, Segment, Segmenter
from tasks.video.selection import PoolPicker
from tasks.video.shots import CutDetector
from tasks.video.step_clock import StepClock
from tasks.video.video_out import encode_clip

SEVERAL_FACES_SHARE = 0.5
"""A segment with two comparable faces in more than this share of its frames has no one speaker."""

OpenLocal = Callable[[str], AbstractContextManager[Path]]


@dataclass(frozen=True)
class PoolPicture:
    """A candidate of the pool, encoded."""

    jpeg: bytes
    points: Points


def process_video(video: SourceVideo, settings: StoredSettings, landmarker: Landmarker, open_local: OpenLocal) -> Iterator[VideoEvent]:
    """All events of one video, in a fixed order; the same inputs and settings give the same bytes.

    Clips come as they are finished, then the pool, with rejects between them, and one VideoDone at the end. An
    utterance that fails is a reject, and the others go on.

    Args:
        video: what to read.
        settings: everything that changes what is stored.
        landmarker: from `tasks.video.landmarks.make_landmarker`, once per worker.
        open_local: gives a local file for an URI; raises FileNotFoundError or another OSError where it cannot.

    Raises:
        OSError: the local disk is full. Everything that is wrong with the video itself is a Reject.
    """
    import cv2

    cv2.setNumThreads(1)  # workers are processes; OpenCV's own threads would fight with them
    work = _Work(video, settings, landmarker, open_local)
    for utterance in video.utterances:
        yield from work.utterance(utterance)
    yield from work.pool()
    yield VideoDone(key=video.key, decoded_frames=work.decoded, seconds=work.clock.seconds)


@dataclass
class _Open:
    """One open utterance."""

    utterance: Utterance
    path: Path
    facts: VideoFacts
    frames: FrameReader
    meta: dict[str, object]
    track: Callable[[int, Iterator[Image]], Iterator[FaceFrame]]
    clips: int = 0
    faces_seen: int = 0
    silent: bool = False
    broken: BrokenOff | None = None
    rejects: list[Reject] = field(default_factory=list)


class _Work:
    """State of one video while its events come out."""

    def __init__(self, video: SourceVideo, settings: StoredSettings, landmarker: Landmarker, open_local: OpenLocal) -> None:
        self.video, self.settings, self.landmarker, self.open_local = video, settings, landmarker, open_local
        self.clock = StepClock()
        self.decoded = 0
        self.clips = 0
        self.picker: PoolPicker[PoolPicture] = PoolPicker(settings.seed, settings.pool.size)

    def utterance(self, utterance: Utterance) -> Iterator[VideoEvent]:
        """Events of one utterance."""
        with ExitStack() as stack:
            try:
                job = self._open(utterance, stack)
            except VideoRejected as rejected:
                yield self._reject(utterance, rejected.step, rejected.code, rejected.message)
                return
            promised, shortest = job.frames.num_frames, self.settings.clips.min_frames
            if promised < shortest:
                yield self._reject(utterance, "decode", RejectCode.TOO_SHORT, f"{promised} frames at 25 fps, {shortest} are needed")
                return
            if job.facts.audio_codec is None:
                job.silent = True
                message = "the file has no audio stream; its clips are stored without sound"
                yield self._reject(utterance, "audio", RejectCode.NO_AUDIO, message)
            before = self.decoded
            no_face: list[Reject] = []
            for part in self._parts(job):
                if isinstance(part, NoFace):
                    no_face.append(self._no_face(job, part))
                else:
                    yield from self._segment(job, part)
            decoded = self.decoded - before
            if job.faces_seen:
                yield from no_face
            elif decoded:
                message = f"a face was found in 0 of {decoded} frames"
                yield self._reject(utterance, "track", RejectCode.NO_FACE, message)
            if job.broken is not None:
                yield self._reject(utterance, "decode", RejectCode.CORRUPT, job.broken.message, start=job.broken.second)

    def pool(self) -> Iterator[PoolSample | Reject]:
        """The keyframes of the whole video."""
        chosen = self.picker.chosen()
        least, key = self.settings.pool.min_size, f"{self.video.key}_pool"
        if len(chosen) >= least:
            yield PoolSample(
                key=key,
                identity=self.video.identity,
                video=self.video.video,
                size=self.settings.pool.image_size,
                jpegs=tuple(picture.jpeg for _, picture in chosen),
                landmarks=np.stack([picture.points for _, picture in chosen]),
                clips=tuple(candidate.clip for candidate, _ in chosen),
                frames=tuple(candidate.frame for candidate, _ in chosen),
            )
        elif self.clips:
            message = f"{len(chosen)} frames for the keyframe pool, {least} are needed"
            uri = self.video.utterances[0].uri
            yield Reject(key=self.video.key, uri=uri, scope=RejectScope.VIDEO, step="pool", code=RejectCode.TOO_SHORT, message=message)

    def _open(self, utterance: Utterance, stack: ExitStack) -> _Open:
        path = self._local(utterance.uri, stack, RejectCode.MISSING, "probe")
        with self.clock.step("probe"):
            facts = probe(path)
            meta = facts.as_meta() | {
                "fingerprint": content_fingerprint(path),
                "licence": self.video.licence,
                "consent": self.video.consent,
            }
        with self.clock.step("decode"):
            frames = read_frames(path, facts, start=utterance.start, end=utterance.end, short_side=self.settings.clips.decode_short_side)
        landmarker = self.landmarker
        if isinstance(landmarker, SidecarLandmarker):
            beside = self._local(sidecar_uri(utterance.uri), stack, RejectCode.SIDECAR_MISSING, "landmarks")
            bound = landmarker.bind(beside, frames.scale)
            return _Open(utterance, path, facts, frames, meta, lambda tick, images: bound.at(tick).track(images))
        return _Open(utterance, path, facts, frames, meta, lambda _, images: landmarker.track(images))

    def _local(self, uri: str, stack: ExitStack, missing: RejectCode, step: str) -> Path:
        try:
            return stack.enter_context(self.open_local(uri))
        except FileNotFoundError as error:
            raise VideoRejected(missing, step, f"{uri} does not exist") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise VideoRejected(RejectCode.UNREADABLE, step, f"{uri} cannot be read: {error.strerror or error}") from error

    def _parts(self, job: _Open) -> Iterator[Segment | NoFace]:
        """Segments and stretches without a face, in order."""
        segmenter = Segmenter(self.settings.clips, job.frames.num_frames)
        tick = 0
        for frame, face, new_shot in self._tracked(job):
            job.faces_seen += face.points is not None
            tick = frame.tick
            yield from segmenter.push(tick, frame.image, face, new_shot=new_shot)
        yield from segmenter.finish(tick + 1)

    def _tracked(self, job: _Open) -> Iterator[tuple[Frame, FaceFrame, bool]]:
        """Every frame with its face, and whether it begins a shot. The tracker starts afresh in every shot."""
        frames = self._decoded(job)
        cuts = CutDetector(self.settings.shots.threshold)
        first = next(frames, None)
        if first is not None:
            cuts.is_cut(first.image)
        while first is not None:
            waiting: deque[Frame] = deque()
            following: list[Frame] = []

            def shot(begin: Frame, waiting: deque[Frame] = waiting, following: list[Frame] = following) -> Iterator[Image]:
                waiting.append(begin)
                yield begin.image
                for frame in frames:
                    with self.clock.step("shots"):
                        cut = cuts.is_cut(frame.image)
                    if cut:
                        following.append(frame)
                        return
                    waiting.append(frame)
                    yield frame.image

            new_shot = True
            for face in self.clock.iterate("landmarks", job.track(first.tick, shot(first))):
                yield waiting.popleft(), face, new_shot
                new_shot = False
            first = following[0] if following else None

    def _decoded(self, job: _Open) -> Iterator[Frame]:
        """Frames until the end or until the file breaks; the break is kept, because trackers may still hold frames."""
        try:
            for frame in self.clock.iterate("decode", job.frames):
                self.decoded += 1
                yield frame
        except BrokenOff as broken:
            job.broken = broken

    def _segment(self, job: _Open, segment: Segment) -> Iterator[ClipSample | Reject]:
        """A clip, or the reason why it is none."""
        several = float(np.mean(segment.faces > 1))
        if len(segment) < self.settings.clips.min_frames:
            message = f"{len(segment)} frames of one face in one shot, {self.settings.clips.min_frames} are needed"
            yield self._reject_part(job, segment.first_tick, segment.end_tick, "track", RejectCode.TOO_SHORT, message)
            return
        if several > SEVERAL_FACES_SHARE:
            message = f"two or more faces of comparable size in {several:.0%} of {len(segment)} frames"
            yield self._reject_part(job, segment.first_tick, segment.end_tick, "track", RejectCode.SEVERAL_FACES, message)
            return
        key = f"{self.video.key}_{job.utterance.name}-{job.clips:04d}"
        with self.clock.step("audio"):
            sound, deaf = self._sound(job, segment)
        if deaf is not None:
            yield deaf
        clips = self.settings.clips
        with self.clock.step("quality"):
            box = union_box(segment.points, clips.margin, frame=job.frames.size)
            scores = score_clip(
                segment.images, segment.points, segment.confidence, segment.faces, box=box, scale=job.frames.scale, sound=sound
            )
        cropped = self.clock.iterate("crop", (crop_image(image, box, clips.size) for image in segment.images))
        with self.clock.step("encode"):
            mp4 = encode_clip(cropped, crf=clips.crf, gop=clips.gop)
        with self.clock.step("pool"):
            self._offer(job.utterance.name, key, segment, box)
        job.clips += 1
        self.clips += 1
        yield ClipSample(
            key=key,
            identity=self.video.identity,
            video=self.video.video,
            uri=job.utterance.uri,
            start=segment.first_tick / FPS,
            num_frames=len(segment),
            size=clips.size,
            mp4=mp4,
            wav=None if sound is None else wav_bytes(sound),
            landmarks=crop_points(segment.points, box, clips.size),
            confidence=segment.confidence,
            crop_box=source_box(box, job.frames.scale),
            scores=scores,
            meta=job.meta | {"full_history": len(segment) >= clips.history_frames},
        )

    def _sound(self, job: _Open, segment: Segment) -> tuple[np.ndarray | None, Reject | None]:
        """The clip's sound; a stream that cannot be decoded is one reject, and the utterance goes on without sound."""
        if job.silent:
            return None, None
        try:
            return clip_audio(job.path, segment.first_tick / FPS, len(segment)), None
        except VideoRejected as rejected:
            job.silent = True
            start = segment.first_tick / FPS
            return None, self._reject(job.utterance, "audio", RejectCode.NO_AUDIO, rejected.message, start=start)

    def _offer(self, utterance: str, clip: str, segment: Segment, box: CropBox) -> None:
        """Encode the frames of this clip that the pool would take now."""
        usable = np.flatnonzero(segment.confidence > 0).tolist()
        size, quality = self.settings.pool.image_size, self.settings.pool.jpeg_quality
        pictures: dict = {}
        for candidate in self.picker.wanted(utterance, clip, usable):
            image = crop_image(segment.images[candidate.frame], box, size)
            points = crop_points(segment.points[candidate.frame], box, size)
            pictures[candidate] = PoolPicture(encode_jpeg(image, quality), points)
        self.picker.keep(utterance, pictures)

    def _no_face(self, job: _Open, part: NoFace) -> Reject:
        frames = part.end_tick - part.first_tick
        message = f"no face in {frames} frames ({frames / FPS:.2f} s)"
        return self._reject_part(job, part.first_tick, part.end_tick, "track", RejectCode.NO_FACE, message)

    def _reject_part(self, job: _Open, first: int, end: int, step: str, code: RejectCode, message: str) -> Reject:
        return Reject(
            key=self.video.key,
            uri=job.utterance.uri,
            scope=RejectScope.SEGMENT,
            step=step,
            code=code,
            message=message,
            start=first / FPS,
            end=end / FPS,
        )

    def _reject(self, utterance: Utterance, step: str, code: RejectCode, message: str, *, start: float | None = None) -> Reject:
        return Reject(
            key=self.video.key,
            uri=utterance.uri,
            scope=RejectScope.UTTERANCE,
            step=step,
            code=code,
            message=message,
            start=utterance.start if start is None else start,
            end=utterance.end,
        )


def source_box(box: CropBox, scale: float) -> tuple[float, float, float]:
    """The crop in pixels of the upright source, from a box in decoded pixels."""
    return box.x / scale, box.y / scale, box.side / scale


def encode_jpeg(image: Image, quality: int) -> bytes:
    """JPEG bytes of an RGB picture; the same bytes on every run."""
    import cv2

    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"OpenCV cannot encode a picture of {image.shape}")
    return bytes(data)

"""What passes between the steps of pass 1: a source video in, clips, a pool and rejects out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.views import Points
from tasks.rejects import Reject


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One file, or one part of a file."""

    uri: str
    """Local path or fsspec URL."""
    name: str
    """Label of the utterance inside its video, unique there; [A-Za-z0-9-]."""
    start: float | None = None
    """Seconds; None is the beginning."""
    end: float | None = None
    """Seconds; None is the end."""
    size: int | None = None
    """Bytes, where discovery knows them."""


@dataclass(frozen=True, kw_only=True)
class SourceVideo:
    """All utterances of one video of one identity: the unit that is planned, retried and quarantined."""

    key: str
    """`<identity>_<video>`, each part [A-Za-z0-9-]."""
    identity: str
    video: str
    utterances: tuple[Utterance, ...]
    licence: str | None = None
    consent: str | None = None


@dataclass(frozen=True, kw_only=True)
class QualityScores:
    """Scores of one clip, stored in the index; thresholds are applied when the dataset is read."""

    face_px: float
    """Median side of the face box in source pixels, before resizing."""
    face_share: float
    """The same as a share of the crop's side."""
    yaw_p95: float
    """Degrees that |yaw| stays within on 95 % of the frames."""
    pitch_p95: float
    roll_p95: float
    one_face: float
    """Share of sampled frames with exactly one face."""
    landmark_rate: float
    """Share of frames in which the landmarker found the face."""
    nose_travel: float
    """Largest distance of the nose tip over 12 frames, in face widths."""
    head_inside: float
    """Share of frames whose head box lies inside the source frame."""
    sharpness: float
    """Variance of the Laplacian of the face at 128 px, grey levels squared."""
    brightness: float
    """Mean luma of the face, 0..255."""
    static: bool
    """True where nothing moves: a still image."""
    camera_motion: float
    """Mean background displacement in pixels per frame of the source, as a share of its width."""
    speech: float | None
    """Share of frames with sound that could be speech; None without sound."""


@dataclass(frozen=True, kw_only=True)
class ClipSample:
    """One finished clip, encoded."""

    key: str
    """`<identity>_<video>_<clip>`; clip is `<utterance>-<number>`."""
    identity: str
    video: str
    uri: str
    start: float
    """Seconds into the source file."""
    num_frames: int
    size: int
    mp4: bytes
    """H.264, short GOP, `size` x `size`, 25 fps, without sound."""
    wav: bytes | None
    """PCM16 mono 16 kHz RIFF, exactly 640 * num_frames samples."""
    landmarks: Points
    """float32 [num_frames, 68, 2], pixels of the crop."""
    confidence: npt.NDArray[np.float32]
    """float32 [num_frames]."""
    crop_box: tuple[float, float, float]
    """x, y of the top left corner and side, in pixels of the upright source; may reach beyond its edges."""
    scores: QualityScores
    meta: Mapping[str, object]
    """Container facts, content fingerprint, licence, consent."""


@dataclass(frozen=True, kw_only=True)
class PoolSample:
    """The finished keyframes pool of a video."""

    key: str
    """`<identity>_<video>_pool`."""
    identity: str
    video: str
    size: int
    jpegs: tuple[bytes, ...]
    landmarks: Points
    """float32 [N, 68, 2], pixels of the JPEG."""
    clips: tuple[str, ...]
    frames: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class VideoDone:
    """Last event of a video: what the work cost."""

    key: str
    decoded_frames: int
    seconds: Mapping[str, float]
    """Wall time by step name."""


VideoEvent = ClipSample | PoolSample | Reject | VideoDone
"""`process_video` yields clips as they are finished, then the pool, rejects anywhere, and one VideoDone at the end."""

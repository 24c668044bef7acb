"""Failures as data: every input that does not become a sample is a row with a reason."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class RejectCode(enum.StrEnum):
    """Why something was left out. Values are stored; never rename one."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    EMPTY_FILE = "empty_file"
    NOT_A_VIDEO = "not_a_video"
    NO_VIDEO_STREAM = "no_video_stream"
    CORRUPT = "corrupt"
    TOO_SHORT = "too_short"
    NO_FACE = "no_face"
    SEVERAL_FACES = "several_faces"
    FACE_TOO_SMALL = "face_too_small"
    NO_AUDIO = "no_audio"
    SIDECAR_MISSING = "sidecar_missing"
    CRASHED = "crashed"
    FAILED = "failed"


class RejectScope(enum.StrEnum):
    """How much of the source a reject covers."""

    VIDEO = "video"
    UTTERANCE = "utterance"
    SEGMENT = "segment"
    FEATURE = "feature"


@dataclass(frozen=True, kw_only=True)
class Reject:
    """One row of the rejects table."""

    key: str
    """Key of the video, or of the clip where there is one."""
    uri: str
    """The source file as it was given."""
    scope: RejectScope
    step: str
    """Name of the step that refused it: probe, decode, shots, track, landmarks, crop, audio, wav2vec, hubert."""
    code: RejectCode
    message: str
    """One readable sentence with the measured value."""
    start: float | None = None
    """Seconds into the source where the rejected part starts; None for the whole file."""
    end: float | None = None


class VideoRejected(Exception):
    """Raised by a step that can make nothing of its input; becomes a `Reject`, never a stack trace."""

    def __init__(self, code: RejectCode, step: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.step = step
        self.message = message

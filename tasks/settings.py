"""Settings of preprocessing. What changes the stored bytes is apart from what only changes how the work is run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Settings(BaseModel):
    """Base of all settings: unknown names are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ShotSettings(Settings):
    """Where one camera shot ends and the next begins."""

    threshold: float = Field(
        0.35, gt=0, le=1, description="Share of the colour histogram that must change between two frames to call it a cut."
    )


class LandmarkSettings(Settings):
    """Which landmarker finds the 68 points."""

    backend: Literal["mediapipe", "face-alignment", "sidecar"] = Field(
        "mediapipe", description="mediapipe: weights inside its wheel; face-alignment: 2D FAN, for GPUs; sidecar: a .npy beside each video."
    )
    detector: Literal["sfd", "blazeface"] = Field("sfd", description="Face detector of face-alignment.")
    device: str = Field("auto", description="auto, cpu or cuda; read by face-alignment only.")
    init: Literal["pretrained", "random"] = Field(
        "pretrained", description="random runs the real networks of face-alignment without weights: for tests only."
    )


class ClipSettings(Settings):
    """How frames become contiguous clips."""

    size: int = Field(512, ge=64, le=1024, multiple_of=16, description="Side of the stored square crop in pixels.")
    margin: float = Field(
        0.35, ge=0, le=2, description="Margin around the union of the face boxes, as a share of its longer side, on every side."
    )
    min_frames: int = Field(25, ge=2, description="Shorter segments are rejected.")
    max_frames: int = Field(250, ge=2, le=1500, description="Longer segments are cut; bounds memory.")
    history_frames: int = Field(136, ge=1, description="Clips of at least this length carry full_history=true (124 history + 12).")
    decode_short_side: int = Field(
        1080, ge=128, description="Larger videos are scaled down to this short side while they are decoded; bounds memory."
    )
    crf: int = Field(17, ge=0, le=51, description="H.264 quality of the stored crop; lower is better.")
    gop: int = Field(12, ge=1, le=250, description="Frames from one key frame to the next; short makes random access fast.")


class PoolSettings(Settings):
    """The keyframes view: frames per video from which training draws K+1."""

    size: int = Field(32, ge=2, le=256, description="Frames per video.")
    min_size: int = Field(9, ge=2, description="Fewest frames (K+1) for a video to enter the view.")
    image_size: int = Field(256, ge=32, le=1024, description="Side of the stored JPEG in pixels.")
    jpeg_quality: int = Field(95, ge=50, le=100, description="JPEG quality.")


class SpeechSettings(Settings):
    """Pass 2: what a speech network makes of the sound, rows of video frames."""

    feature: ClassVar[str]
    """Name of the rows in datasets, clips and stages."""
    network: ClassVar[str]
    """What transformers calls networks of this kind (`model_type` in their config.json)."""

    init: Literal["pretrained", "random"] = Field(
        "pretrained", description="random makes a small untrained network (an explicit choice, tagged)."
    )
    hub_id: str = Field(description="Hugging Face id of the pretrained network.")
    revision: str = Field(description="Commit of the pretrained network at its hub.")
    path: str | None = Field(
        None, description="Folder with config.json and model.safetensors (or pytorch_model.bin), instead of the hub's."
    )
    device: str = Field("auto", description="auto takes a GPU where there is one; cpu or cuda. Changes nothing that is stored.")
    random_layers: int = Field(3, ge=1, le=24, description="Layers of the random network.")
    random_width: int = Field(32, ge=16, le=1024, multiple_of=16, description="Width of the random network.")


class Wav2VecSettings(SpeechSettings):
    """wav2vec2: every hidden layer, the mean of a frame's two tokens; [frames, layers, width]."""

    feature: ClassVar[str] = "wav2vec"
    network: ClassVar[str] = "wav2vec2"

    hub_id: str = Field("facebook/wav2vec2-base-960h", description="Hugging Face id of the pretrained network.")
    revision: str = Field("22aad52d435eb6dbaf354bdad9b0da84ce7d6156", description="Commit of the pretrained network at its hub.")


class HubertSettings(SpeechSettings):
    """HuBERT: the last hidden state, both tokens of a frame; [frames, 2, width]."""

    feature: ClassVar[str] = "hubert"
    network: ClassVar[str] = "hubert"

    hub_id: str = Field("facebook/hubert-large-ls960-ft", description="Hugging Face id of the pretrained network.")
    revision: str = Field("ece5fabbf034c1073acae96d5401b25be96709d8", description="Commit of the pretrained network at its hub.")
    random_width: int = Field(32, ge=32, le=1024, multiple_of=32, description="Width of the random network.")


SPEECH: Mapping[str, type[SpeechSettings]] = {kind.feature: kind for kind in (Wav2VecSettings, HubertSettings)}
"""Every kind of speech network by the name of its rows."""


class StoredSettings(Settings):
    """Everything that changes what pass 1 stores; its hash is part of every shard's fingerprint."""

    seed: int = Field(0, ge=0, description="Seed of every choice.")
    shots: ShotSettings = ShotSettings()
    landmarks: LandmarkSettings = LandmarkSettings()
    clips: ClipSettings = ClipSettings()
    pool: PoolSettings = PoolSettings()

    def fingerprint(self) -> str:
        """sha256 of the canonical JSON, hexadecimal."""
        return fingerprint_of(self.model_dump(mode="json"))


class RunSettings(Settings):
    """How the work is run; changes nothing that is stored."""

    executor: Literal["ray", "local"] = Field(
        "ray", description="ray: one task per shard; local: one child process per worker, no Ray. Same bytes."
    )
    workers: int = Field(0, ge=0, description="Shards worked on at once; 0 means one per core.")
    max_crashes: int = Field(2, ge=1, le=10, description="Times that a video may kill its worker before it is quarantined.")
    error_budget: float = Field(0.5, ge=0, le=1, description="Share of videos that may be rejected before the run is called failed.")


class PreprocessSettings(Settings):
    """All settings of preprocessing."""

    stored: StoredSettings = StoredSettings()
    run: RunSettings = RunSettings()
    wav2vec: Wav2VecSettings | None = Field(Wav2VecSettings(), description="Pass 2; null leaves it out.")
    hubert: HubertSettings | None = Field(
        None, description="Pass 2 once more, for synctalk's config.audio.encoder=hubert; any of its settings switches it on."
    )
    videos_per_shard: int = Field(64, ge=1, le=10_000, description="Videos per shard for new sources; fixed in the plan once planned.")

    @property
    def speech(self) -> tuple[SpeechSettings, ...]:
        """The networks that pass 2 runs."""
        return tuple(network for network in (self.wav2vec, self.hubert) if network is not None)


class FilterSettings(Settings):
    """Thresholds on the index's scores, applied when the dataset is read; changing one re-runs nothing. spec/preprocessing.md."""

    identities: tuple[str, ...] = Field((), description="Only these people; empty: all.")
    min_face_px: float = Field(200, ge=0, description="Smallest side of the face in source pixels, before resizing.")
    min_face_share: float = Field(0.25, ge=0, le=1, description="Smallest side of the face as a share of the crop's side.")
    max_yaw: float = Field(60, ge=0, le=180, description="Degrees that 95 % of frames must stay within.")
    max_pitch: float = Field(45, ge=0, le=180, description="Degrees that 95 % of frames must stay within.")
    max_nose_travel: float = Field(0.5, ge=0, description="Nose travel per 12 frames in face widths.")
    min_one_face: float = Field(0.9, ge=0, le=1, description="Share of frames with exactly one face.")
    min_frames: int = Field(2, ge=1, description="Shortest clip, and shortest part of a clip that a split by time makes.")
    need_audio: bool = Field(False, description="Leave out clips without sound.")
    need_full_history: bool = Field(False, description="Leave out clips shorter than history + 12 frames.")
    allow_static: bool = Field(False, description="Keep clips that are a still image.")


class SplitSettings(Settings):
    """Which samples are held out from training."""

    by: Literal["identity", "video", "time"] = Field(
        "identity", description="identity: people; video: videos of known people; time: the end of every clip, for one person."
    )
    holdout: float = Field(0.1, gt=0, lt=1, description="Share held out; at least one unit.")
    seed: int = Field(0, ge=0, description="Seed of the choice (identity and video).")
    spare: float = Field(
        0.0, ge=0, lt=1, description="Share at the end of every clip that trains nothing here, because a later stage is tested on it."
    )


class PersonSplitSettings(SplitSettings):
    """The same for one person, whose model must show known looks saying new things."""

    by: Literal["identity", "video", "time"] = Field("time", description="time: the end of every clip; video: whole videos of the person.")
    holdout: float = Field(0.2, gt=0, lt=1, description="Share held out; at least one unit.")

    @field_validator("by")
    @classmethod
    def _not_by_identity(cls, value: str) -> str:
        if value == "identity":
            raise ValueError("one person is split by time or by video")
        return value


class PersonSettings(Settings):
    """Whom the stages that learn one person are about (`models.family.Stage.one_person`)."""

    identity: str | None = Field(None, description="Name in the dataset; null: the only one, else the one with the most usable frames.")
    split: PersonSplitSettings = PersonSplitSettings()
    min_frames: int = Field(10, ge=2, description="Shortest part of a clip to train on or to hold out; over filters.min_frames.")


class TrainSettings(Settings):
    """How a stage is trained; the same for every family."""

    steps: int = Field(1000, ge=1, description="Optimisation steps (of the last optimiser, for stages with several).")
    batch_size: int = Field(4, ge=1, description="Samples per worker and step.")
    seed: int = Field(0, ge=0, description="Seed of weights, data order and every step.")
    workers: int = Field(1, ge=1, description="Ray Train workers; gradients are averaged over them.")
    loader_workers: int = Field(0, ge=0, description="Processes that prepare batches, per worker.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where there is one.")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Autocast type on GPU; weights stay fp32.")
    channels_last: bool = Field(False, description="Memory format of images on GPU.")
    log_every: int = Field(10, ge=1, description="Steps from one point of the curves to the next.")
    validate_every: int = Field(200, ge=1, description="Steps from one validation to the next.")
    validate_batches: int = Field(4, ge=1, description="Held-out batches per validation.")
    preview_every: int = Field(500, ge=1, description="Steps from one preview (grid, and video where the stage makes frames) to the next.")
    preview_frames: int = Field(75, ge=0, le=1500, description="Frames of a preview video; 0 makes none.")
    checkpoint_every: int = Field(500, ge=1, description="Steps from one checkpoint to the next.")
    export: Literal["last", "best"] = Field(
        "last",
        description="Which networks the run hands on: after the last step, or of the kept checkpoint with the lowest validation loss.",
    )
    max_failures: int = Field(2, ge=0, description="Times that dead workers are replaced, going on from the newest checkpoint.")
    threads: int = Field(0, ge=0, description="Torch threads per worker on CPU; 0 shares the cores among the workers.")


class EvaluateSettings(Settings):
    """How a model is measured on held-out clips."""

    max_clips: int = Field(50, ge=1, description="Held-out clips, taken in turn from every identity and its videos.")
    max_frames: int = Field(250, ge=3, description="Frames taken of each clip, from its beginning.")
    grid_clips: int = Field(4, ge=1, le=16, description="Clips shown as pictures and videos in the report.")
    grid_frames: int = Field(4, ge=1, le=16, description="Frames per clip in the picture.")
    landmarks: LandmarkSettings = Field(LandmarkSettings(), description="Landmarker that measures truth and result alike.")
    landmark_side: int = Field(256, ge=32, description="Smaller frames are enlarged to this side for the landmarker, the true ones too.")
    seed: int = Field(0, ge=0, description="Seed handed to the synthesizer.")


def fingerprint_of(value: object) -> str:
    """sha256 of canonical JSON (sorted keys, no spaces), hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

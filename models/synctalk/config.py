"""Settings of the SyncTalk_2D family. Profiles (`profiles/*.yaml`) lie over these defaults, which are the 328/320 geometry."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from models.family import FamilyConfig

BOTTLENECK = 10
"""Side of the U-Net's smallest feature map, which the audio branch's output must match."""

MEL_BANDS = 80
MEL_ROWS_PER_SECOND = 80
MEL_ROWS = 16
"""Mel rows that one frame's feature is made from: 0.2 s."""

AUDIO_WINDOW = 16
"""Frames whose features the U-Net hears for one frame: [i - 8, i + 8)."""

HUBERT_SIDE = 32
"""Side of the picture that HuBERT's features are laid out as: 16 frames of 2 rows are width / 32 channels of 32 x 32."""

Encoder = Literal["ave", "hubert", "wav2vec"]


class GeometryConfig(FamilyConfig):
    """The square that is cut out of a frame, and what of it is painted."""

    core: int = Field(320, ge=80, le=320, description="Side of the painted square in pixels: 10 times a power of two.")
    margin: int = Field(4, ge=1, le=16, description="Pixels of the crop around the core, on every side; 4 gives 328/320 and 168/160.")
    border: int = Field(5, ge=1, le=40, description="Columns and upper rows of the core that the mask leaves visible.")
    mask: Literal["v1", "v2"] = Field(
        "v2", description="v1 leaves the bottom rows visible, which tell the jaw's place; v2 blackens everything below the upper border."
    )
    mask_bottom: int = Field(10, ge=0, le=40, description="Rows that mask v1 leaves visible at the bottom.")
    smoothing: float = Field(
        2.0, ge=0, le=25, description="Standard deviation in frames of the Gaussian over time that steadies the crop; 0 for none."
    )
    outline: float = Field(
        0.18,
        ge=0,
        le=1,
        description="How far beyond the template's jaw the painted face reaches, as a share of its height; beyond, the template stays.",
    )
    feather: float = Field(0.08, ge=0, le=0.4, description="Width of the soft rim of the pasted core, as a share of its side.")

    @property
    def crop(self) -> int:
        """Side of the crop in pixels."""
        return self.core + 2 * self.margin

    @property
    def levels(self) -> int:
        """Halvings from the core to the U-Net's smallest feature map."""
        return (self.core // BOTTLENECK).bit_length() - 1

    @model_validator(mode="after")
    def _halves(self) -> Self:
        if self.core != BOTTLENECK << self.levels:
            raise ValueError(f"core must be {BOTTLENECK} times a power of two (80, 160, 320), got {self.core}")
        if self.mask_bottom + self.border >= self.core // 2:
            raise ValueError(f"border {self.border} and mask_bottom {self.mask_bottom} leave too little of a core of {self.core} to paint")
        return self


class AudioConfig(FamilyConfig):
    """What the mouth follows."""

    encoder: Encoder = Field(
        "ave",
        description="ave: this family's mel encoder; hubert, wav2vec: learned features that the dataset carries.",
    )
    ave: Literal["trained", "pretrained"] = Field(
        "trained", description="trained: by the stage syncnet on this dataset; pretrained: SyncTalk_2D's published file."
    )
    channels: int = Field(32, ge=4, le=64, description="Channels of the mel encoder's first block; 32 is the published size.")
    layers: int = Field(
        12, ge=1, le=48, description="Layers of the dataset's learned features (wav2vec: hidden layers; hubert: 2 rows a frame)."
    )
    width: int = Field(768, ge=16, le=2048, description="Width of the dataset's learned features (wav2vec base: 768; hubert large: 1024).")

    @model_validator(mode="after")
    def _fills_the_picture(self) -> Self:
        if self.encoder == "hubert" and (self.layers != 2 or self.width % HUBERT_SIDE):
            raise ValueError(
                f"hubert features are 2 rows a frame, of a width that is a multiple of {HUBERT_SIDE} (HuBERT-large: 1024), "
                f"got {self.layers} of {self.width}: set config.audio.layers=2 and config.audio.width=1024"
            )
        return self


class NetworkConfig(FamilyConfig):
    """Sizes of the U-Net and of SyncNet's face side; the structure never changes."""

    channels: tuple[int, ...] = Field(
        (32, 64, 128, 256, 512),
        min_length=2,
        max_length=5,
        description="Channels from the largest to the smallest feature map; at 320 the first is used twice.",
    )
    sync_channels: int = Field(32, ge=4, le=64, description="Channels of the first block of SyncNet's face encoder.")


class SyncConfig(FamilyConfig):
    """The lip-sync judge."""

    frames: int = Field(5, ge=1, le=9, description="Frames of one window; 5 frames are the 0.2 s that a mel window spans.")
    positives: int = Field(8, ge=2, le=64, description="Windows per clip and step; each one is a negative of all others.")
    apart: int = Field(5, ge=1, le=25, description="Frames that two windows of one clip are apart at least (0.2 s).")
    lr: float = Field(1e-4, gt=0, description="Learning rate of the stage syncnet.")
    ema: float = Field(0.99, ge=0, lt=1, description="Decay of the averaged networks that are exported; it warms up.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Decoupled weight decay of the stage syncnet.")
    light: float = Field(0.2, ge=0, le=0.5, description="Windows are seen in another light: most of brightness and contrast.")
    place: float = Field(0.05, ge=0, le=0.2, description="Windows are seen elsewhere: most of shift, size and turn.")
    muffle: float = Field(0.3, ge=0, le=2, description="Sound is heard through another microphone: spread of the mel levels, of -4..4.")


class LossConfig(FamilyConfig):
    """What the U-Net minimises."""

    l1: float = Field(1.0, ge=0, description="Weight of the mean absolute difference, 0..1 pixels.")
    perceptual: float = Field(0.01, ge=0, description="Weight of the squared difference of VGG19 conv3_3 features.")
    content: Literal["pretrained", "random", "off"] = Field(
        "pretrained", description="The VGG19 of the perceptual loss; random and off are choices for places without the file, tagged."
    )
    sync: float = Field(0.03, ge=0, description="Weight of the SyncNet loss; 10 destroys the picture once SyncNet works.")
    sync_from: int = Field(3000, ge=0, description="Step at which the SyncNet loss sets in.")
    mouth: float = Field(0.0, ge=0, description="Extra weight of the L1 in the mouth's box, which fills a tenth of the core.")


class OptimizerConfig(FamilyConfig):
    """Adam."""

    lr: float = Field(1e-3, gt=0, description="Learning rate of the U-Net.")
    cosine_steps: int = Field(
        0, ge=0, description="Steps over which the learning rate falls along a cosine to a fiftieth; 0 keeps it as it is."
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="First moment's decay.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Second moment's decay.")
    ema: float = Field(0.999, ge=0, lt=1, description="Decay of the averaged U-Net that is exported; it warms up.")


class SyncTalkConfig(FamilyConfig):
    """All settings of the family."""

    geometry: GeometryConfig = GeometryConfig()
    audio: AudioConfig = AudioConfig()
    network: NetworkConfig = NetworkConfig()
    sync: SyncConfig = SyncConfig()
    losses: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    synthesis_batch: int = Field(8, ge=1, le=256, description="Frames that the U-Net paints at once.")

    @model_validator(mode="after")
    def _published_sizes(self) -> Self:
        audio = self.audio
        if audio.ave == "pretrained" and audio.channels != 32:
            raise ValueError(f"the published encoder has 32 channels: set config.audio.channels=32 (it is {audio.channels})")
        return self

    @model_validator(mode="after")
    def _enough_channels(self) -> Self:
        needed = min(self.geometry.levels + 1, 5)
        if len(self.network.channels) != needed:
            raise ValueError(f"a core of {self.geometry.core} needs {needed} network.channels, got {len(self.network.channels)}")
        return self

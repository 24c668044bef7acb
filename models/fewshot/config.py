"""Settings of the few-shot family. Profiles (`profiles/*.yaml`) lie over these defaults, which are the paper's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator

from models.family import FamilyConfig

Pooling = Literal["max", "sum"]


class NetworkConfig(FamilyConfig):
    """Sizes of the three networks; the structure never changes."""

    image_size: int = Field(256, ge=64, le=512, description="Side of pictures in pixels; a power of two.")
    channels: int = Field(64, ge=4, le=128, description="Channels of the first block; they double with each halving.")
    generator_channels: int | None = Field(None, ge=4, le=128, description="The same for the generator alone; null is `channels`.")
    max_channels: int = Field(512, ge=8, le=1024, description="Channels never grow beyond this.")
    embedding: int = Field(512, ge=8, le=1024, description="Length of the person's vector e, of v and of the rows of W.")
    bottleneck_blocks: int = Field(4, ge=1, le=8, description="AdaIN residual blocks at the generator's smallest size, 16 x 16.")

    @field_validator("image_size")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError(f"image_size must be a power of two, got {value}")
        return value


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Weights of the losses with the pooling that they were tuned for. spec: arXiv 1905.08233 v1 and v2."""

    vgg19: float
    vggface: float
    feature_matching: float
    matching: float
    pooling: Pooling


PRESETS: dict[str, Preset] = {
    "paper_v1": Preset(vgg19=1e-2, vggface=2e-3, feature_matching=1e1, matching=8e1, pooling="max"),
    "paper_v2": Preset(vgg19=1.5e-1, vggface=2.5e-2, feature_matching=1e1, matching=1e1, pooling="sum"),
}


class LossConfig(FamilyConfig):
    """What is minimised. Weights left at null are the preset's."""

    preset: Literal["paper_v1", "paper_v2"] = Field("paper_v2", description="Loss weights and pooling; they belong together.")
    variant: Literal["ff", "ft"] = Field(
        "ft", description="ff: without the matching loss; ft: with it, so that fine-tuning may start from e."
    )
    content: Literal["pretrained", "random", "off"] = Field(
        "pretrained",
        description="Networks of the content loss; random and off are choices for places without the files, tagged in the run.",
    )
    vggface_input: Literal["caffe_bgr", "oxford_rgb"] = Field(
        "caffe_bgr", description="Input of the VGGFace file: caffe_bgr for the declared one, oxford_rgb for vgg_face_dag.pth."
    )
    vgg19: float | None = Field(None, ge=0, description="Weight of the VGG19 content loss.")
    vggface: float | None = Field(None, ge=0, description="Weight of the VGGFace content loss.")
    feature_matching: float | None = Field(None, ge=0, description="Weight of feature matching in the discriminator.")
    feature_matching_over: Literal["sum", "mean"] = Field("sum", description="How the L1 means of the feature maps are combined.")
    matching: float | None = Field(None, ge=0, description="Weight of the matching loss |e - W_i|; ff has none.")
    adversarial: float = Field(1.0, ge=0, description="Weight of -D(fake).")
    pixel_l1: float = Field(
        0.0, ge=0, description="Weight of a pixel L1 that the paper does not have; stands in for the content loss in demo."
    )
    pooling: Pooling | None = Field(None, description="Global pooling of E and D; null is the preset's.")

    def resolved(self) -> Preset:
        """The preset with this config's own values laid over it."""
        preset = PRESETS[self.preset]
        matching = 0.0 if self.variant == "ff" else (preset.matching if self.matching is None else self.matching)
        return Preset(
            vgg19=preset.vgg19 if self.vgg19 is None else self.vgg19,
            vggface=preset.vggface if self.vggface is None else self.vggface,
            feature_matching=preset.feature_matching if self.feature_matching is None else self.feature_matching,
            matching=matching,
            pooling=self.pooling or preset.pooling,
        )


class OptimizerConfig(FamilyConfig):
    """Adam for every network; SparseAdam for W."""

    generator_lr: float = Field(5e-5, gt=0, description="Learning rate of the embedder and the generator.")
    discriminator_lr: float = Field(2e-4, gt=0, description="Learning rate of the discriminator and of W.")
    beta1: float = Field(0.9, ge=0, lt=1, description="First moment's decay, for all.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Second moment's decay, for all.")
    discriminator_updates: int = Field(2, ge=1, le=8, description="Updates of D for each update of E and G.")
    ema: float = Field(0.999, ge=0, lt=1, description="Decay of the averaged E and G that are exported; it warms up.")


class DataConfig(FamilyConfig):
    """How training examples are drawn from a pool of frames."""

    frames: int = Field(8, ge=1, le=64, description="K: frames that are embedded, drawn anew each time, never the target.")
    flip: float = Field(0.5, ge=0, le=1, description="Share of examples that are mirrored (frames and points, left and right swapped).")


class EvaluationConfig(FamilyConfig):
    """The protocol on a held-out clip."""

    faces: int = Field(8, ge=1, le=64, description="T: frames of the clip's first part that show the person.")
    first_part: float = Field(0.4, gt=0, lt=1, description="Share of the clip from which they are taken.")
    frames: int = Field(32, ge=1, le=1000, description="Most frames of the rest that are made and compared, spread evenly.")


class FewShotConfig(FamilyConfig):
    """All settings of the family."""

    network: NetworkConfig = NetworkConfig()
    losses: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    diagnostics_every: int = Field(10, ge=1, description="Steps from one measurement of the adversarial gradient to the next.")
    synthesis_batch: int = Field(8, ge=1, le=256, description="Frames that the generator makes at once.")

"""What a stage on clips is built with and shows while it trains: the person's pictures, and a preview video with sound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.family import (
    Batch,
    BuildContext,
    Driver,
    DriverKind,
    EvaluationCase,
    Example,
    Face,
    Family,
    FamilyConfig,
    Stage,
    Synthesizer,
    TrainingModule,
)
from models.views import Clip, Image
from tasks.data.dataset import Dataset
from tasks.settings import FilterSettings, SplitSettings, TrainSettings
from tasks.training import checkpoints
from tasks.training.request import TrainRequest
from tasks.training.spool import read_lines
from tasks.training.stage_data import FACE_FRAMES, open_data
from tasks.training.train import run_stage
from tests.tasks.small_dataset import SIZE, clip_sample, frame_of, small_dataset, write_shard
from tests.tasks.test_train import same, stop_after


class ToneConfig(FamilyConfig):
    heard: tuple[str, ...] = ()
    frames_made: int = 0
    odd: int = 0


def examples(clip: Clip, rng: np.random.Generator) -> Example:
    return {"x": torch.tensor([rng.random(), float(clip.landmarks[0, 0, 0])], dtype=torch.float32)}


class ToneModule(TrainingModule):
    """A number that is learned with noise; its synthesizer is the live network and draws random numbers of its own."""

    def __init__(self, config: ToneConfig) -> None:
        super().__init__()
        self.config = config
        self.net = nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.5))
        self._optimizer = torch.optim.Adam(self.parameters(), lr=0.05)

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        return {"net": self._optimizer}

    def training_step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        self._optimizer.zero_grad()
        loss = (self.net(batch["x"] + torch.randn(batch["x"].shape)) ** 2).mean()
        loss.backward()
        self._optimizer.step()
        return {"loss": loss.detach()}

    def validation_step(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": (self.net(batch["x"]) ** 2).mean()}

    def preview(self, batch: Batch) -> Image:
        return np.zeros((16, 16, 3), np.uint8)

    def export(self, folder: Path) -> None:
        torch.save(self.state_dict(), folder / "net.pt")

    def synthesizer(self) -> Synthesizer:
        return ToneSynthesizer(self)


class ToneSynthesizer(Synthesizer):
    size = SIZE

    def __init__(self, module: ToneModule) -> None:
        self.module = module.eval()

    def synthesize(self, face: Face, driver: Driver, *, seed: int = 0) -> Iterator[Image]:
        assert not torch.is_grad_enabled()
        assert driver.audio is not None
        side = SIZE - self.module.config.odd
        for _ in range(self.module.config.frames_made or len(driver.audio) // 640):
            grey = 200 + int(torch.randint(0, 20, ()))
            yield np.full((side, side, 3), grey, np.uint8)

    def baseline(self, face: Face, driver: Driver) -> Iterator[Image]:
        yield from self.synthesize(face, driver)


class ToneFamily(Family):
    name, title, paper, driver, config_type = "tone", "A tone", "none", DriverKind.AUDIO, ToneConfig
    stages = (Stage(name="speak", view="clips", description="", features=("declared",), one_person=True),)

    def features(self, config: ToneConfig, stage: str) -> tuple[str, ...]:
        return config.heard

    def networks(self, config: Any, stage: str) -> Mapping[str, nn.Module]:
        return {"net": nn.Linear(2, 1)}

    def examples(self, config: Any, stage: str) -> Any:
        return examples

    def build(self, config: Any, stage: str, context: BuildContext) -> TrainingModule:
        return ToneModule(config)

    def load(self, checkpoint: Path, device: torch.device) -> Synthesizer:
        raise NotImplementedError

    def evaluation_case(self, config: ToneConfig, clip: Clip) -> EvaluationCase:
        frames = clip.read_frames(range(clip.num_frames))[:, config.odd :, config.odd :]
        face = Face(images=frames[:1], landmarks=clip.landmarks[:1])
        return EvaluationCase(key=clip.key, face=face, driver=Driver(audio=clip.audio), targets=frames, target_landmarks=clip.landmarks)


def request_of(
    folder: Path, dataset: Dataset, *, config: Mapping[str, Any] | None = None, identities: Sequence[str] = ("id00",), **train: Any
) -> TrainRequest:
    settings = {"steps": 6, "batch_size": 2, "log_every": 1, "validate_every": 3, "validate_batches": 1, "preview_every": 2}
    return TrainRequest(
        family="tone",
        stage="speak",
        config=dict(config or {}),
        train=TrainSettings(**{**settings, "checkpoint_every": 4, "preview_frames": 8, "device": "cpu", "threads": 1, **train}),
        dataset=dataset.url,
        filters=FilterSettings(identities=tuple(identities), min_frames=4),
        split=SplitSettings(by="time", holdout=0.3),
        folder=folder,
        run_id="run7",
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"), shards=1, videos=3, frames=40)


def test_a_preview_video_shows_truth_beside_made_with_the_sound_of_the_clip(dataset: Dataset, tmp_path: Path) -> None:
    run_stage(request_of(tmp_path, dataset), family=ToneFamily())
    artifacts = [line.content["file"] for line in read_lines(tmp_path) if line.kind == "artifact"]
    assert artifacts[:4] == [f"previews/step-0000000{step}.{kind}" for step in (2, 4) for kind in ("png", "mp4")]
    with av.open(str(tmp_path / "previews" / "step-00000006.mp4")) as container:
        assert container.metadata["synthetic"] == "true"
        assert container.metadata["run_id"] == "run7"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(tmp_path / "previews" / "step-00000006.mp4")) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert len(frames) == 8
    truth, made = np.split(frames[3][-SIZE:], 2, axis=1)
    assert frame_of(truth) % 40 == (28 + 3) % 40, "the first held-out frames: the clip of 40 is cut at 28"
    assert made[8:-8, 8:-8].min() > 190
    assert 8 * 640 - 1024 <= len(sound) <= 8 * 640 + 2048
    assert np.abs(sound).max() > 0.1


def test_previews_change_no_bit_of_the_training(dataset: Dataset, tmp_path: Path) -> None:
    with_previews = run_stage(request_of(tmp_path / "with", dataset), family=ToneFamily())
    run_stage(request_of(tmp_path / "without", dataset, preview_frames=0), family=ToneFamily())
    assert run_stage(request_of(tmp_path / "parts", dataset), family=ToneFamily(), stop=stop_after(3)).status == "interrupted"
    run_stage(request_of(tmp_path / "parts", dataset), family=ToneFamily())
    states = [checkpoints.checkpoints(tmp_path / name)[-1].load() for name in ("with", "without", "parts")]
    assert states[0]["training"]["optimizers"]["net"]["state"]
    assert same(states[0], states[1])
    assert same(states[0], states[2])
    assert not list((tmp_path / "without" / "previews").glob("*.mp4"))
    last = "previews/step-00000006.mp4"
    assert (with_previews.folder / last).read_bytes() == (tmp_path / "parts" / last).read_bytes()


def test_odd_frames_are_padded_and_a_wrong_number_of_frames_stops_the_training(dataset: Dataset, tmp_path: Path) -> None:
    run_stage(request_of(tmp_path / "odd", dataset, config={"odd": 1}), family=ToneFamily())
    with av.open(str(tmp_path / "odd" / "previews" / "step-00000002.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height % 2) == (2 * SIZE - 2, 0)
    with pytest.raises(ValueError, match="shorter"):
        run_stage(request_of(tmp_path / "few", dataset, config={"frames_made": 3}), family=ToneFamily())
    assert not list((tmp_path / "few" / "previews").glob("*.mp4*"))


def test_a_stage_on_clips_of_one_person_is_built_with_training_frames_that_show_the_face(tmp_path: Path) -> None:
    clips = [clip_sample("ann", "v", number, frames=200) for number in range(2)]
    clips[1] = replace(clips[1], confidence=np.repeat(np.float32([0, 1]), 100))
    write_shard(tmp_path / "data", 0, {("ann", "v"): clips, ("bob", "w"): [clip_sample("bob", "w", 0, frames=50)]})
    (tmp_path / "data" / "dataset.json").write_text('{"schema_version": 1, "settings": {}}')
    dataset = Dataset.open(tmp_path / "data")
    alone = request_of(tmp_path / "run", dataset, identities=("ann",))
    source = open_data(alone, ToneFamily(), 0, 1)
    face = source.face
    assert face is not None
    # The made landmarks carry the frame's number: half of the pictures of each clip, evenly, before the cut at 140. Of the second
    # clip only frames from 100 on show a face.
    numbers = face.landmarks[:, 0, 1].astype(int)
    half = FACE_FRAMES // 2
    assert set(np.diff(numbers[:half])) == {8, 9}
    assert (numbers[half - 1], numbers[half], numbers[-1]) == (135, 100, 135)
    assert len(set(zip(face.landmarks[:, 0, 0], numbers, strict=True))) == len(numbers) < FACE_FRAMES
    assert [frame_of(image) for image in face.images] == (numbers % 40).tolist()
    other = open_data(alone, ToneFamily(), 1, 2).face
    assert other is not None
    assert np.array_equal(other.images, face.images)
    assert open_data(request_of(tmp_path / "run", dataset, identities=()), ToneFamily(), 0, 1).face is None


def test_features_are_those_that_the_configuration_asks_for(dataset: Dataset, tmp_path: Path) -> None:
    open_data(request_of(tmp_path, dataset), ToneFamily(), 0, 1)
    with pytest.raises(ValueError, match="no-such-feature"):
        open_data(request_of(tmp_path, dataset, config={"heard": ["no-such-feature"]}), ToneFamily(), 0, 1)

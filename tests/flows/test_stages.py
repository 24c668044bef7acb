"""What a stage reads and what it starts from: one person's samples, the run of the stage before, the inputs of the example video."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from flows.settings import DataSettings, StageSettings
from flows.stages import NoStart, StartingPoint, stage_samples, starting_point
from flows.steps import example_inputs, held_out_clips
from flows.workspace import Workspace
from models.family import Canvas, DriverKind, FamilyConfig, Stage
from tasks.data.dataset import Dataset
from tasks.data.splits import EmptySelection
from tasks.settings import FilterSettings, PersonSettings, SplitSettings, TrainSettings
from tasks.training.registry import RegistryError
from tests.tasks.line_family import LineFamily
from tests.tasks.small_dataset import clip_sample, small_dataset, write_shard


class MouthConfig(FamilyConfig):
    width: int = 4
    lr: float = 0.1


class MouthFamily(LineFamily):
    """Learns sounds from many people, then one person."""

    name, driver, canvas, config_type = "mouth", DriverKind.AUDIO, Canvas.TEMPLATE, MouthConfig
    stages = (
        Stage(name="sounds", view="clips", description=""),
        Stage(name="paint", view="clips", description="", after="sounds", one_person=True),
    )

    def networks(self, config: MouthConfig, stage: str) -> Mapping[str, nn.Module]:
        return {stage: nn.Linear(config.width, 2)}


MOUTH = MouthFamily()
VIDEOS = SplitSettings(by="video", holdout=0.5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Three people with two videos each; the second clip of v02 and v05 is silent."""
    return small_dataset(tmp_path_factory.mktemp("data"), shards=1, videos=6, frames=30)


def people(samples: Any) -> set[str]:
    return {one.key.split("_")[0] for one in samples.split.train + samples.split.held_out}


def test_a_stage_for_one_person_reads_that_person_and_holds_out_its_own_end(dataset: Dataset) -> None:
    data = DataSettings(split=VIDEOS)
    many = stage_samples(MOUTH, "sounds", dataset, data, PersonSettings())
    assert people(many) == {"id00", "id01", "id02"}
    assert many.data.filters == FilterSettings(need_audio=True, min_frames=10)
    assert many.data.split == SplitSettings(by="video", holdout=0.5, spare=0.2)
    assert many.person is None

    one = stage_samples(MOUTH, "paint", dataset, data, PersonSettings())
    assert one.person is not None
    assert one.person.identity == "id00", "122 frames with sound; the others have 91"
    assert people(one) == {"id00"}
    assert one.data.filters.identities == ("id00",)
    assert one.data.split == SplitSettings(by="time", holdout=0.2)
    ends = {sample.key: sample.end for sample in one.split.train}
    assert all(sample.start == ends[sample.key] for sample in one.split.held_out)
    assert min(sample.end - sample.start for sample in one.split.held_out) == 10
    tested = {(sample.key, frame) for sample in one.split.held_out for frame in range(sample.start, sample.end)}
    assert not tested & {(sample.key, frame) for sample in many.split.train for frame in range(sample.start, sample.end)}
    assert held_out_clips(dataset, one.data) == one.split.held_out, "it is evaluated on what its own stage held out"
    assert {"samples", "person"} == {name for name, _ in one.describe()}


def test_the_person_and_the_split_are_chosen_by_settings(dataset: Dataset) -> None:
    person = PersonSettings.model_validate({"identity": "id02", "split": {"by": "video"}})
    one = stage_samples(MOUTH, "paint", dataset, DataSettings(), person)
    assert people(one) == {"id02"}
    videos = [{sample.key.split("_")[1] for sample in side} for side in (one.split.train, one.split.held_out)]
    assert sorted(map(len, videos)) == [1, 1]
    assert not videos[0] & videos[1]


def test_errors_name_the_setting_of_the_person(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(EmptySelection, match=r"person\.identity: .*nobody named zoe; there are: id00, id01, id02"):
        stage_samples(MOUTH, "paint", dataset, DataSettings(), PersonSettings(identity="zoe"))
    write_shard(tmp_path, 0, {("ann", "v"): [clip_sample("ann", "v", 0, frames=15)]})
    (tmp_path / "dataset.json").write_text('{"schema_version": 1, "settings": {}}')
    short = Dataset.open(tmp_path)
    with pytest.raises(EmptySelection, match=r"person\.split\.by=time.*a part of 10 frames.*the longest clip has 15"):
        stage_samples(MOUTH, "paint", short, DataSettings(), PersonSettings())
    with pytest.raises(EmptySelection, match=r"set person\.split\.by=time"):
        stage_samples(MOUTH, "paint", short, DataSettings(), PersonSettings.model_validate({"split": {"by": "video"}}))


def test_a_dataset_of_one_person_trains_the_stage_for_many_on_the_same_split(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, {("ann", "v"): [clip_sample("ann", "v", 0, frames=100)]})
    (tmp_path / "dataset.json").write_text('{"schema_version": 1, "settings": {}}')
    alone = Dataset.open(tmp_path)
    for by in ("identity", "video"):
        data = DataSettings(split=SplitSettings(by=by))
        both = [stage_samples(MOUTH, stage, alone, data, PersonSettings()) for stage in ("sounds", "paint")]
        assert both[0].split.held_out == both[1].split.held_out
        assert f"all clips are of one {by} (ann" in both[0].note
    with pytest.raises(EmptySelection, match=r"split\.by=identity needs at least two"):
        stage_samples(LineFamily(), "fit", alone, DataSettings(), PersonSettings())


def run_of(
    place: Workspace,
    name: str,
    *,
    stage: str = "sounds",
    made: str = "2026-01-01T00:00:00+00:00",
    fingerprint: str,
    status: str = "finished",
    steps: int = 7,
    **config: Any,
) -> Path:
    """A run folder as training leaves it."""
    folder = place.runs / name
    (folder / "export").mkdir(parents=True)
    record = {
        "family": "mouth",
        "stage": stage,
        "config": MouthConfig(**config).model_dump(mode="json"),
        "run_id": name,
        "step": steps,
        "made": made,
        "dataset": {"fingerprint": fingerprint},
    }
    (folder / "export" / "run.json").write_text(json.dumps(record))
    outcome = {"status": status, "step": steps, "folder": str(folder), "export": None, "checkpoint": None, "metrics": {}}
    (folder / "outcome.json").write_text(json.dumps(outcome))
    return folder / "export"


def start_of(place: Workspace, dataset: Dataset, *, stage: str = "paint", given: str | None = None, **config: Any) -> StartingPoint | None:
    settings = StageSettings(family="mouth", stage=stage, config=MouthConfig(**config), train=TrainSettings())
    return starting_point(MOUTH, settings, dataset, place, given, first_command=["flows", "train", "a b"])


def test_a_stage_starts_from_the_newest_fitting_run_of_the_stage_before(dataset: Dataset, tmp_path: Path) -> None:
    place, here = Workspace(tmp_path), dataset.fingerprint
    run_of(place, "elsewhere", fingerprint="another", made="2026-06-01T00:00:00+00:00")
    run_of(place, "stopped", fingerprint=here, status="interrupted", made="2026-06-01T00:00:00+00:00")
    run_of(place, "wide", fingerprint=here, width=8, made="2026-06-01T00:00:00+00:00")
    run_of(place, "other-stage", fingerprint=here, stage="paint", made="2026-06-01T00:00:00+00:00")
    with pytest.raises(
        NoStart,
        match=r"stage sounds on this dataset.*none that fits \(1 on other datasets and 1 with networks.*First run: flows train 'a b'",
    ):
        start_of(place, dataset)
    assert start_of(place, dataset, stage="sounds") is None
    assert start_of(place, dataset, given="none") is None

    otherwise = run_of(place, "otherwise", fingerprint=here, lr=0.5, made="2026-05-01T00:00:00+00:00")
    found = start_of(place, dataset)
    assert found is not None
    assert found.folder == otherwise
    assert "set otherwise there: config.lr" in found.note
    run_of(place, "old", fingerprint=here, made="2026-03-01T00:00:00+00:00")
    exact = run_of(place, "new", fingerprint=here, made="2026-04-01T00:00:00+00:00")
    found = start_of(place, dataset)
    assert found is not None
    assert (found.folder, found.run) == (exact, "new@7"), "the same configuration goes before a newer run of another"
    run_of(place, "trial", fingerprint=here, made="2026-07-01T00:00:00+00:00", steps=2)
    found = start_of(place, dataset)
    assert found is not None
    assert found.folder == exact, "a quick trial does not stand in for the run that was meant"


def test_what_is_given_is_taken_where_it_is_a_model_of_the_family(dataset: Dataset, tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    export = run_of(place, "far", fingerprint="another")
    found = start_of(place, dataset, given=str(export))
    assert found is not None
    assert found.folder == export
    record = json.loads((export / "run.json").read_text())
    (export / "run.json").write_text(json.dumps({**record, "family": "line"}))
    with pytest.raises(RegistryError, match="a model of family line, not mouth"):
        start_of(place, dataset, given=str(export))
    with pytest.raises(RegistryError, match="not an exported model"):
        start_of(place, dataset, given=str(tmp_path))


def test_the_example_of_a_family_driven_by_sound_says_something_that_no_training_heard(dataset: Dataset) -> None:
    by_time = stage_samples(MOUTH, "paint", dataset, DataSettings(), PersonSettings()).data
    inputs = example_inputs(MOUTH, dataset.url, by_time)
    assert (inputs.face.name, inputs.audio, inputs.driver) == ("v00.mp4", Path("/videos/id01/v02.mp4"), None)
    by_identity = DataSettings(split=SplitSettings(by="identity", holdout=0.4))
    inputs = example_inputs(MOUTH, dataset.url, by_identity)
    assert inputs.audio is not None
    assert inputs.audio.parent == inputs.face.parent, "both videos of a held-out person are unheard: the own voice is taken"
    assert inputs.audio != inputs.face


def test_the_example_of_a_family_driven_by_landmarks_is_two_videos_of_one_person(dataset: Dataset) -> None:
    inputs = example_inputs(LineFamily(), dataset.url, DataSettings(split=VIDEOS))
    assert inputs.audio is None
    assert inputs.driver is not None
    assert inputs.driver.parent == inputs.face.parent
    assert inputs.driver != inputs.face


def test_the_only_video_is_its_own_example(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, {("ann", "v"): [clip_sample("ann", "v", 0, frames=100)]})
    (tmp_path / "dataset.json").write_text('{"schema_version": 1, "settings": {}}')
    alone = Dataset.open(tmp_path)
    data = stage_samples(MOUTH, "paint", alone, DataSettings(), PersonSettings()).data
    inputs = example_inputs(MOUTH, alone.url, data)
    assert inputs.audio == inputs.face

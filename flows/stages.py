"""What a training stage reads and what it starts from: settled before it is trained, and said to whoever started it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.settings import DataSettings, StageSettings
from flows.workspace import Workspace
from models.family import DriverKind, Family
from tasks.settings import FilterSettings, PersonSettings, SplitSettings

if TYPE_CHECKING:
    from tasks.data.dataset import Dataset
    from tasks.data.splits import Person, Split

NOWHERE = "none"
"""`--start-from none`: a stage that could go on from an earlier one starts anew, where its family can."""


@dataclass(frozen=True, kw_only=True)
class StageSamples:
    """Which samples a stage is trained on and which it holds out; a model is evaluated on what its own stage held out."""

    data: DataSettings
    split: Split
    person: Person | None = None
    """Whom a stage for one person is about."""
    note: str = ""
    """Why `data` is not what was asked for, where it is not."""

    def describe(self) -> list[tuple[str, object]]:
        """Rows for people."""
        rows: list[tuple[str, object]] = [("samples", self.split.describe())]
        if self.person is not None:
            rows.append(("person", self.person.describe()))
        if self.note:
            rows.append(("held out", self.note))
        return rows


def stage_samples(family: Family, stage: str, dataset: Dataset, data: DataSettings, person: PersonSettings) -> StageSamples:
    """The samples of a stage.

    A stage for one person reads that person only, and the person's own split holds out. A family that is driven by sound leaves
    out clips without it. All else is as `data` says, with one exception: where all clips are of one person, or of one video, that
    cannot be parted by person, or by video, the other stages of a family that can learn one person hold out as that person's split says.

    Raises:
        EmptySelection: nothing is left to train on, or to hold out; the message says which setting is the reason.
    """
    from tasks.data.splits import choose_person, filter_clips, select

    wanted = family.stage(stage)
    filters, split, prefix, whom, note = data.filters, data.split, "split", None, ""
    if family.driver is DriverKind.AUDIO:
        filters = filters.model_copy(update={"need_audio": True})
    if wanted.one_person:
        filters = _no_shorter_than(person.min_frames, filters)
        whom = choose_person(dataset, filters, person)
        filters = filters.model_copy(update={"identities": (whom.identity,)})
        split, prefix = _split_of(person), "person.split"
    elif split.by != "time" and any(other.one_person for other in family.stages):
        keep, _ = filter_clips(dataset.clips(), filters)
        kept = dataset.clips().filter(keep)
        people, units = (set(kept.column(name).to_pylist()) for name in ("identity", split.by))
        if len(people) == len(units) == 1:
            filters = _no_shorter_than(person.min_frames, filters)
            note = f"as person.split says, because all clips are of one {split.by} ({units.pop()})"
            split, prefix = _split_of(person), "person.split"
        elif person.split.by == "time":
            # What one person's model is tested on has taught none of the networks that it builds on.
            filters = _no_shorter_than(person.min_frames, filters)
            split = split.model_copy(update={"spare": person.split.holdout})
    chosen = select(dataset, wanted.view, filters, split, prefix=prefix)
    return StageSamples(data=DataSettings(filters=filters, split=split), split=chosen, person=whom, note=note)


def _split_of(person: PersonSettings) -> SplitSettings:
    return SplitSettings.model_validate(person.split.model_dump())


def _no_shorter_than(frames: int, filters: FilterSettings) -> FilterSettings:
    return filters.model_copy(update={"min_frames": max(frames, filters.min_frames)})


class NoStart(ValueError):
    """A stage has nothing to start from; the message has the command that makes it."""


@dataclass(frozen=True, kw_only=True)
class StartingPoint:
    """The exported model that a stage starts from."""

    folder: Path
    run: str
    """Which run, after how many steps: it decides, with the settings, which run goes on and which is a new one."""
    note: str
    """For people."""

    @classmethod
    def at(cls, folder: Path, why: str = "") -> StartingPoint:
        """The export in this folder.

        Raises:
            RegistryError: there is none.
        """
        from tasks.training.registry import read_record

        record = read_record(folder)
        run = f"{record['run_id'] or folder}@{record['step']}"
        note = f"{folder} (stage {record['stage']}, {record['step']} steps{_scores(folder)}, made {record['made']})"
        return cls(folder=folder, run=run, note=f"{note}; {why}" if why else note)


def starting_point(
    family: Family,
    stage: StageSettings,
    dataset: Dataset,
    place: Workspace,
    given: str | None,
    *,
    first_command: Sequence[str] = (),
) -> StartingPoint | None:
    """What a stage starts from: what is given, else the longest finished run of the stage before it on this dataset.

    A run counts whose networks are this configuration's; one of the very same configuration goes before all others, then the one
    with more steps, then the newer. Where its settings differ, the note says which. None where the stage follows no other, or nothing is
    wanted (`NOWHERE`).

    Args:
        given: an exported folder, a registry or run URI, or `NOWHERE`.
        first_command: the command that trains the stage before, for the error.

    Raises:
        NoStart: there is no such run.
        RegistryError, TrackingError: what is given is no exported model, or another family's.
    """
    from flows.steps import tracking_settings
    from tasks.training.registry import RegistryError, find_export, read_record

    if given is not None:
        if given == NOWHERE:
            return None
        folder = find_export(given, tracking=tracking_settings(place), cache=place.root / "models").absolute()
        if (theirs := read_record(folder)["family"]) != family.name:
            raise RegistryError(f"--start-from {given} is a model of family {theirs}, not {family.name}")
        return StartingPoint.at(folder)
    before = family.stage(stage.stage).after
    if before is None:
        return None
    found = _finished(place.runs, family.name, before)
    here = [entry for entry in found if entry[1]["dataset"]["fingerprint"] == dataset.fingerprint]
    fitting = [entry for entry in here if _same_networks(family, before, stage.config, entry[1]["config"])]
    if not fitting:
        raise NoStart(
            _how_to_start(family, stage.stage, before, place, others=len(found) - len(here), unlike=len(here), command=first_command)
        )
    differing = {folder: _differences(stage.config.model_dump(mode="json"), record["config"]) for folder, record in fitting}
    # A quick trial must not stand in for the run that was meant: the one that was trained longest goes first.
    folder, _ = max(fitting, key=lambda entry: (not differing[entry[0]], entry[1]["step"], entry[1]["made"]))
    others = ", ".join(differing[folder])
    return StartingPoint.at(folder, f"set otherwise there: {others}" if others else "the longest trained with this configuration")


def _scores(export: Path) -> str:
    """The last validation of the run that made an export, for people; empty where none is known."""
    from tasks.training.request import TrainOutcome

    outcome = TrainOutcome.read(export.parent)
    found = {} if outcome is None else outcome.metrics
    scores = [f"{name.removeprefix('validation/')} {value:.3g}" for name, value in sorted(found.items()) if name.startswith("validation/")]
    return f", {', '.join(scores)}" if scores else ""


def _finished(runs: Path, family: str, stage: str) -> list[tuple[Path, dict[str, Any]]]:
    """Exports of finished runs of a stage, with their records."""
    from tasks.training.output import RUN_RECORD
    from tasks.training.request import TrainOutcome

    found = []
    for path in sorted(runs.glob(f"*/export/{RUN_RECORD}")):
        record = json.loads(path.read_text())
        outcome = TrainOutcome.read(path.parent.parent)
        if (record["family"], record["stage"]) == (family, stage) and outcome is not None and outcome.status == "finished":
            found.append((path.parent, record))
    return found


def _same_networks(family: Family, stage: str, mine: Any, theirs: Mapping[str, Any]) -> bool:
    """Whether a stage's networks have the same parameters, by name and shape, under both configurations."""
    import torch
    from pydantic import ValidationError

    try:
        other = family.config_type.model_validate(theirs)
    except ValidationError:
        return False  # Written by another version of the family.
    if other == mine:
        return True
    with torch.device("meta"):
        both = [family.networks(config, stage) for config in (mine, other)]
    shapes = [{f"{name}.{key}": value.shape for name, net in nets.items() for key, value in net.state_dict().items()} for nets in both]
    return shapes[0] == shapes[1]


def _differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Dotted names of the values that are not the same."""
    from tasks.training.checkpoints import flatten

    flat = flatten({"config": mine}), flatten({"config": theirs})
    return [name for name in sorted({*flat[0], *flat[1]}) if flat[0].get(name) != flat[1].get(name)]


def _how_to_start(family: Family, stage: str, before: str, place: Workspace, *, others: int, unlike: int, command: Sequence[str]) -> str:
    seen = [f"{others} on other datasets"] if others else []
    seen += [f"{unlike} with networks of another config.*"] if unlike else []
    there = f" that fits ({' and '.join(seen)})" if seen else ""
    words = command or ("python", "-m", "flows", "train", family.name, "--stage", before)
    return (
        f"stage {stage} of {family.name} starts from a finished stage {before} on this dataset, and {place.runs} has none{there}. "
        f"First run: {shlex.join(words)}; or give --start-from FOLDER, models:/... or runs:/..."
    )

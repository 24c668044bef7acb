"""What a user sets: parameters of the flows (they become the forms of the Prefect UI) and the settings that a profile fills."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flows.profiles import SettingsError, overlay, read_profile, resolve
from models.family import FamilyConfig
from models.registry import families
from models.registry import family as family_named
from tasks.settings import EvaluateSettings, FilterSettings, PersonSettings, PreprocessSettings, Settings, SplitSettings, TrainSettings


class FamilySettings(Settings):
    """One family's settings in a pipeline, laid over the family's profile."""

    config: dict[str, Any] = Field(default_factory=dict, description="Over the family's own config, e.g. image_size.")
    train: dict[str, dict[str, Any]] = Field(default_factory=dict, description="Over the training settings, by stage, e.g. meta.steps.")


class DataSettings(Settings):
    """Which samples of a dataset are used and which are held out."""

    filters: FilterSettings = FilterSettings()
    split: SplitSettings = SplitSettings()


class PipelineSettings(Settings):
    """All settings of `pipeline`: a file of `flows/profiles/` laid over these defaults, then `--set`."""

    preprocess: PreprocessSettings = PreprocessSettings()
    filters: FilterSettings = FilterSettings()
    split: SplitSettings = SplitSettings()
    person: PersonSettings = PersonSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    families: dict[str, FamilySettings] = Field(default_factory=dict, description="By family name.")

    @property
    def data(self) -> DataSettings:
        """Which samples are used, before a stage says more (`flows.stages.stage_samples`)."""
        return DataSettings(filters=self.filters, split=self.split)


class StageSettings(BaseModel):
    """One stage of one family, resolved and validated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str
    stage: str
    config: FamilyConfig
    train: TrainSettings


def pipeline_settings(profile: str, overrides: Mapping[str, Any]) -> PipelineSettings:
    """The profile with the overrides on top.

    Raises:
        SettingsError: naming the wrong setting, or the unknown family.
    """
    settings = resolve(PipelineSettings, read_profile(profile), overrides)
    for name in settings.families:
        if name not in families():
            raise SettingsError(f"families.{name}: no such family; there are: {', '.join(sorted(families()))}")
    return settings


def family_config(name: str, profile: str, overrides: Mapping[str, Any]) -> FamilyConfig:
    """A family's config: its profile with the overrides on top."""
    family = family_named(name)
    return resolve(family.config_type, family.profile(profile).config, overrides, prefix="config.")


def stage_settings(name: str, stage: str, profile: str, settings: FamilySettings) -> StageSettings:
    """Everything that one training stage needs to know."""
    family = family_named(name)
    family.stage(stage)
    unknown = set(settings.train) - {s.name for s in family.stages}
    if unknown:
        raise SettingsError(f"train.{unknown.pop()}: family {name} has the stages {', '.join(s.name for s in family.stages)}")
    train = resolve(TrainSettings, overlay(family.profile(profile).train.get(stage, {}), settings.train.get(stage, {})), prefix="train.")
    return StageSettings(family=name, stage=stage, config=family_config(name, profile, settings.config), train=train)


def describe_families(profile: str, overrides: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every family with its stages and the parameter count of every network, for `flows families`.

    The networks are built on the meta device, so the paper's sizes cost neither memory nor time.
    """
    import torch

    unknown = set(overrides) - set(families())
    if unknown:
        raise SettingsError(f"{unknown.pop()}: start the setting with a family: {', '.join(families())}")
    described = []
    for name, family in families().items():
        config = family_config(name, profile, overrides.get(name, {}))
        stages = []
        for stage in family.stages:
            with torch.device("meta"):
                networks = family.networks(config, stage.name)
            stages.append(
                {
                    "name": stage.name,
                    "description": stage.description,
                    "view": stage.view,
                    "features": list(family.features(config, stage.name)),
                    "after": stage.after,
                    "in_pipeline": stage.in_pipeline,
                    "one_person": stage.one_person,
                    "networks": {network: sum(p.numel() for p in module.parameters()) for network, module in networks.items()},
                }
            )
        described.append({"name": name, "title": family.title, "paper": family.paper, "driver": str(family.driver), "stages": stages})
    return described

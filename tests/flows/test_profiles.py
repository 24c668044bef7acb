"""Settings: profiles over defaults, `--set` over profiles, and errors that name the setting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.profiles import SettingsError, overlay, parse_overrides, profile_names, read_profile, resolve
from flows.settings import FamilySettings, PipelineSettings, family_config, pipeline_settings, stage_settings
from models.registry import families

tree = st.recursive(st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8)
trees = st.dictionaries(st.sampled_from("abc"), tree, max_size=3)


def leaves(node, path=()):
    if not isinstance(node, dict):
        return {path: node}
    return {key: value for name, inner in node.items() for key, value in leaves(inner, (*path, name)).items()}


@given(trees, trees)
def test_overlay_takes_every_leaf_of_the_top(base, top):
    merged = leaves(overlay(base, top))
    assert all(merged[path] == value for path, value in leaves(top).items())


@given(trees)
def test_overlay_with_nothing_changes_nothing(base):
    assert overlay(base, {}) == base == overlay({}, base)


def test_overrides_are_read_as_yaml():
    assert parse_overrides(["a.b=3", "a.c=[1, x]", "d=null"]) == {"a": {"b": 3, "c": [1, "x"]}, "d": None}


@pytest.mark.parametrize("pair", ["steps", "=3", "a..b=1", "a.=1"])
def test_an_override_that_is_no_assignment_is_refused(pair):
    with pytest.raises(SettingsError, match="write it as name=value"):
        parse_overrides([pair])


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_resolves_for_the_pipeline_and_every_stage(name):
    settings = pipeline_settings(name, {})
    for family in families().values():
        for stage in family.stages:
            resolved = stage_settings(family.name, stage.name, name, settings.families.get(family.name, FamilySettings()))
            assert type(resolved.config) is family.config_type
            assert resolved.train.steps > 0
            assert isinstance(family.features(resolved.config, stage.name), tuple)


def test_the_demo_profile_differs_from_the_paper_only_in_settings_that_exist():
    assert set(read_profile("demo")) <= set(PipelineSettings.model_fields)


def test_an_unknown_setting_names_those_beside_it():
    with pytest.raises(SettingsError, match=r"preprocess\.stored\.pool\.sise: no such setting; beside it there are: .*size"):
        pipeline_settings("demo", {"preprocess": {"stored": {"pool": {"sise": 3}}}})


def test_a_value_out_of_bounds_is_named_with_its_value():
    with pytest.raises(SettingsError, match=r"split\.holdout: .* \(got 2\)"):
        pipeline_settings("demo", {"split": {"holdout": 2}})


def test_a_persons_split_keeps_its_own_defaults_beside_what_is_given():
    settings = pipeline_settings("demo", {"split": {"by": "identity"}, "person": {"identity": "ann", "split": {"by": "video"}}})
    assert (settings.person.split.by, settings.person.split.holdout) == ("video", 0.2)
    assert settings.data.split.by == "identity"
    with pytest.raises(SettingsError, match=r"person\.split\.by: .*one person is split by time or by video \(got 'identity'\)"):
        pipeline_settings("demo", {"person": {"split": {"by": "identity"}}})


def test_an_unknown_profile_and_an_unknown_family_list_what_exists():
    with pytest.raises(SettingsError, match="demo"):
        pipeline_settings("tiny", {})
    with pytest.raises(SettingsError, match="fewshot"):
        pipeline_settings("demo", {"families": {"fewshoot": {}}})


def test_an_unknown_name_inside_an_optional_group_is_refused():
    with pytest.raises(SettingsError, match=r"preprocess\.wav2vec\.hub: no such setting; .*hub_id"):
        resolve(PipelineSettings, {"preprocess": {"wav2vec": {"hub": "x"}}})


def test_a_family_setting_reaches_its_config():
    assert family_config("fewshot", "demo", {"network": {"image_size": 64}}).network.image_size == 64

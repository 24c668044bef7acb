"""Speech networks of the settings: switched on by a setting, looked for before pass 1, run one after the other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from flows.profiles import parse_overrides, profile_names, under
from flows.progress import ProgressBoard
from flows.settings import pipeline_settings
from flows.steps import build_features, check_weights
from flows.workspace import Workspace
from models.weights import MissingWeights


@pytest.mark.parametrize("profile", profile_names())
def test_hubert_is_off_until_one_of_its_settings_is_given(profile: str) -> None:
    assert pipeline_settings(profile, {}).preprocess.hubert is None
    command = pipeline_settings(profile, under("preprocess", parse_overrides(["hubert.init=random"]))).preprocess
    assert command == pipeline_settings(profile, parse_overrides(["preprocess.hubert.init=random"])).preprocess
    assert [network.feature for network in command.speech] == ["wav2vec", "hubert"]


def test_missing_hubert_is_one_error_before_any_video_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = pipeline_settings("demo", parse_overrides(["preprocess.hubert.init=pretrained"])).preprocess
    with pytest.raises(MissingWeights, match=r"hubert-large-ls960-ft.*pytorch_model\.bin.*hubert\.init=random"):
        check_weights(settings, Workspace.at(tmp_path))
    check_weights(pipeline_settings("demo", parse_overrides(["preprocess.hubert.init=random"])).preprocess, Workspace.at(tmp_path))


@pytest.mark.parametrize(
    ("pairs", "names"),
    [(["hubert.init=random"], ["wav2vec", "hubert"]), (["hubert.init=random", "wav2vec=null"], ["hubert"]), (["wav2vec=null"], [])],
)
def test_pass_2_runs_every_network_that_is_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: list[str], names: list[str]) -> None:
    def extract(dataset: str, network: Any, run: Any, progress: Any, *, weights: Any) -> Any:
        progress(1, 2, "shard 0")
        return SimpleNamespace(clips=3)

    monkeypatch.setattr("tasks.preprocessing.features.extract_features", extract)
    settings = pipeline_settings("demo", under("preprocess", parse_overrides(pairs))).preprocess
    with ProgressBoard(Console(quiet=True)) as board:
        made = build_features("dataset", settings, Workspace.at(tmp_path), board.bar("features"))
    assert list(made) == names

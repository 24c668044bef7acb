"""The gate: who becomes champion."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flows import steps
from flows.settings import DataSettings
from tasks.evaluation.metrics_landmarks import MouthLandmarkDistance
from tasks.settings import FilterSettings
from tasks.training.registry import RegisteredVersion

METRIC = MouthLandmarkDistance()


def report(value: float, *, beats: bool = True) -> Any:
    return SimpleNamespace(
        beats_baseline=beats, verdict=SimpleNamespace(sentence="said"), gate=METRIC, values=lambda: {METRIC.name: value, "lmd": 9.0}
    )


def version(number: int) -> RegisteredVersion:
    return RegisteredVersion(name="talking-heads-mouth", version=number, aliases=(), run_id=None)


def of_person(name: str) -> DataSettings:
    return DataSettings(filters=FilterSettings(identities=(name,)))


@pytest.fixture
def champion_of_ada(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A champion that shows Ada and reaches 0.03 on whatever it is measured on; returns who was measured."""
    measured: list[str] = []
    model = SimpleNamespace(record=of_person("ada").model_dump(mode="json"))

    def evaluate_model(model: Any, dataset: str, data: DataSettings, *rest: Any) -> Any:
        measured.extend(data.filters.identities)
        return report(0.03)

    monkeypatch.setattr(steps, "load_model", lambda uri, place: model)
    monkeypatch.setattr(steps, "evaluate_model", evaluate_model)
    return measured


def decide(given: Any, champion: RegisteredVersion | None, data: DataSettings) -> tuple[bool, str]:
    return steps._gate(given, champion, version(2), "data", data, None, None, None)  # type: ignore[arg-type]


def test_the_first_that_beats_its_baseline_is_champion() -> None:
    assert decide(report(0.5), None, DataSettings())[0]
    passes, why = decide(report(0.01, beats=False), None, DataSettings())
    assert not passes
    assert "said" in why


@pytest.mark.parametrize(("value", "passes"), [(0.02, True), (0.03, True), (0.031, False)])
def test_a_champion_of_the_same_person_must_be_reached_on_the_deciding_metric(
    champion_of_ada: list[str], value: float, passes: bool
) -> None:
    assert decide(report(value), version(1), of_person("ada"))[0] == passes
    assert champion_of_ada == ["ada"]


def test_a_champion_that_shows_somebody_else_is_no_measure(champion_of_ada: list[str]) -> None:
    passes, why = decide(report(0.9), version(1), of_person("ben"))
    assert passes
    assert "somebody else" in why
    assert not champion_of_ada

"""Fixtures of the lower room's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.family import Batch, BuildContext
from models.fewshot.config import FewShotConfig
from models.weights import WeightsStore
from tests.models.fewshot_material import TINY, make_batch


@pytest.fixture
def tiny() -> FewShotConfig:
    return FewShotConfig.model_validate(TINY)


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., BuildContext]:
    def make(**fields: Any) -> BuildContext:
        store = WeightsStore(root=tmp_path / "weights", offline=True)
        return BuildContext(**{"device": torch.device("cpu"), "weights": store, "video_keys": ("a_1", "b_1"), **fields})

    return make


@pytest.fixture
def batch(tiny: FewShotConfig) -> Batch:
    return make_batch(tiny, ["a_1", "b_1"])

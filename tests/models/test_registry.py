"""Families: listed once, complete, and readable errors for names that do not exist."""

from __future__ import annotations

import pytest
import torch

from models.registry import families, family


def test_every_family_keeps_the_contract() -> None:
    for name, entry in families().items():
        assert entry.name == name
        assert entry.stages
        for profile in ("demo", "default", "paper"):
            content = entry.profile(profile)
            config = entry.config_type.model_validate(dict(content.config))
            for stage in entry.stages:
                assert entry.examples(config, stage.name)
                with torch.device("meta"):
                    networks = entry.networks(config, stage.name)
                assert all(p.is_meta for network in networks.values() for p in network.parameters())
            assert set(content.train) <= {stage.name for stage in entry.stages}


def test_unknown_names_say_what_exists() -> None:
    with pytest.raises(ValueError, match="fewshot"):
        family("nobody")
    with pytest.raises(ValueError, match="meta, finetune"):
        family("fewshot").stage("gan")
    with pytest.raises(FileNotFoundError, match="default, demo, paper"):
        family("fewshot").profile("huge")

"""Learned features of the driving sound, from the very network that the model's dataset was made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tasks.generation.inputs import GenerationError
from tasks.settings import SPEECH, SpeechSettings

if TYPE_CHECKING:
    from models.weights import WeightsStore


def sound_features(
    names: Sequence[str],
    sound: npt.NDArray[np.float32],
    record: Mapping[str, Any],
    *,
    weights: WeightsStore | None = None,
    speech: Sequence[SpeechSettings] = (),
) -> dict[str, npt.NDArray[Any]]:
    """Features by name, one row per frame.

    Args:
        names: What the model's stage reads (`Family.features`).
        sound: float32 [640 * F], 16 kHz mono.
        record: The model's run.json, which says which networks it learned with.
        weights: Where pretrained files are looked for.
        speech: Networks in place of those that the record names; where it does, they must be the same.

    Raises:
        GenerationError: a feature that can't be made here, or not with the network that the model knows.
        MissingWeights: a pretrained network that is neither here nor to be downloaded.
    """
    from tasks.preprocessing.speech_networks import load_network, speech_rows

    given = {network.feature: network for network in speech}
    made: dict[str, npt.NDArray[Any]] = {}
    for name in names:
        network = _network(name, record.get("dataset", {}).get("features", {}).get(name), given.get(name))
        try:
            made[name] = speech_rows(sound, load_network(network, weights))
        except ValueError as error:
            raise GenerationError(f"--audio: {name} features: {error}") from error
    return made


def _network(name: str, known: Mapping[str, Any] | None, given: SpeechSettings | None) -> SpeechSettings:
    from tasks.preprocessing.speech_networks import network_version

    if name not in SPEECH:
        raise GenerationError(f"the model hears through {name} features, which can't be made of a sound here; only {', '.join(SPEECH)} can")
    if given is None:
        if known is None:
            raise GenerationError(
                f"the model hears through {name} features, and its record does not say of which network: name it with "
                f"--speech-network FOLDER"
            )
        given = SPEECH[name].model_validate(known["settings"])
    if known is not None and network_version(given) != known["version"]:
        raise GenerationError(
            f"the model learned to hear with the network {known['version']}, and this one is {network_version(given)}: name the right "
            f"one with --speech-network FOLDER"
        )
    return given

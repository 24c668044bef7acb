"""Rows of speech networks: one row per frame for any length, aligned, and what long tracks and missing weights do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.views import SAMPLES_PER_FRAME
from models.weights import CorruptWeights, MissingWeights, WeightsStore
from tasks.preprocessing.speech_networks import (
    PADDING,
    default_store,
    load_network,
    network_version,
    plan_windows,
    random_config,
    speech_rows,
)
from tasks.settings import HubertSettings, SpeechSettings, Wav2VecSettings

RANDOM = Wav2VecSettings(init="random")
HUBERT = HubertSettings(init="random")
BOTH = pytest.mark.parametrize("kind", [RANDOM, HUBERT], ids=lambda kind: kind.feature)


@pytest.fixture(scope="module")
def networks() -> dict[str, torch.nn.Module]:
    return {settings.feature: load_network(settings) for settings in (RANDOM, HUBERT)}


@pytest.fixture
def model(networks: dict[str, torch.nn.Module]) -> torch.nn.Module:
    return networks["wav2vec"]


def sound(frames: int, seed: int = 0) -> np.ndarray:
    """Something like speech: syllables of a few harmonics over a little noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames * SAMPLES_PER_FRAME) / 16_000
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / 16_000
    voice = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 8))
    envelope = np.clip(np.sin(2 * np.pi * 3 * time + seed), 0, None)
    return (0.1 * envelope * voice + 0.003 * rng.standard_normal(len(time))).astype(np.float32)


@given(frames=st.integers(1, 400), window=st.integers(3, 120), context=st.integers(0, 40))
def test_kept_parts_tile_the_track(frames: int, window: int, context: int) -> None:
    if window <= 2 * context:
        with pytest.raises(ValueError, match="nothing between two contexts"):
            list(plan_windows(frames, window=window, context=context))
        return
    pieces = list(plan_windows(frames, window=window, context=context))
    assert [piece.keep_start for piece in pieces] == [0, *(piece.keep_end for piece in pieces[:-1])]
    assert pieces[-1].keep_end == frames
    for piece in pieces:
        assert 0 <= piece.start <= piece.keep_start < piece.keep_end <= piece.end <= frames
        assert piece.end - piece.start == min(window, frames)
        assert piece.start == 0 or piece.keep_start - piece.start >= context
        assert piece.end == frames or piece.end - piece.keep_end >= context


@BOTH
@settings(deadline=None, max_examples=25)
@given(frames=st.one_of(st.integers(1, 12), st.integers(13, 90)), window=st.sampled_from([12, 31, 750]))
def test_any_track_has_exactly_one_row_per_frame(
    networks: dict[str, torch.nn.Module], kind: SpeechSettings, frames: int, window: int
) -> None:
    rows = speech_rows(sound(frames), networks[kind.feature], window=window, context=4)
    assert rows.shape == (frames, 2 if kind is HUBERT else kind.random_layers, kind.random_width)
    assert rows.dtype == np.float16
    assert np.isfinite(rows).all()


@pytest.mark.parametrize("size", [0, 1, 639, 641, 640 * 3 - 1])
def test_a_length_that_is_no_whole_number_of_frames_is_refused(model: torch.nn.Module, size: int) -> None:
    with pytest.raises(ValueError, match="positive multiple of 640"):
        speech_rows(np.zeros(size, np.float32), model)


def test_silence_is_finite(networks: dict[str, torch.nn.Module]) -> None:
    for model in networks.values():
        assert np.isfinite(speech_rows(np.zeros(640 * 5, np.float32), model)).all()


def test_rows_are_the_layers_of_the_network_averaged_over_a_frame_s_two_tokens(model: torch.nn.Module) -> None:
    """Against hooks on the layers themselves, because transformers' `hidden_states` has changed its meaning before."""
    seen: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda module, inputs, output: seen.append(output)) for layer in model.encoder.layers]
    waveform = sound(7)
    rows = speech_rows(waveform, model)
    for hook in hooks:
        hook.remove()
    layers = torch.stack([output[0] if isinstance(output, tuple) else output for output in seen])[:, 0]
    assert layers.shape[1] == 14
    expected = (layers[:, 0::2] + layers[:, 1::2]) / 2
    assert np.abs(rows.astype(np.float32) - expected.transpose(0, 1).numpy()).max() < 2e-3


def test_hubert_rows_are_both_tokens_of_a_frame_as_its_ctc_head_sees_them(networks: dict[str, torch.nn.Module]) -> None:
    """Against a hook on the last norm, which the published network has after its last layer."""
    seen: list[torch.Tensor] = []
    model = networks["hubert"]
    hook = model.encoder.layer_norm.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    rows = speech_rows(sound(7), model)
    hook.remove()
    assert [list(output.shape) for output in seen] == [[14, 32]]
    assert np.array_equal(rows.reshape(14, 32), seen[0].to(torch.float16).numpy())


@BOTH
def test_row_f_is_centred_on_frame_f(networks: dict[str, torch.nn.Module], kind: SpeechSettings) -> None:
    """What the convolutions see of a click, before attention mixes time: an error of one frame would show."""
    model = networks[kind.feature]
    for frame in (0, 10, 29):
        waveform = np.zeros(640 * 30, np.float32)
        padded = np.pad(waveform, PADDING)
        click = padded.copy()
        click[PADDING + frame * 640 + 320] = 1.0
        with torch.inference_mode():
            first = model.feature_extractor.conv_layers[0].conv
            before, after = (torch.from_numpy(one)[None, None] for one in (padded, click))
            for layer in model.feature_extractor.conv_layers:
                before, after = layer.conv(before), layer.conv(after)
        assert first.stride == (5,)
        change = (after - before).abs().sum(dim=1)[0].unflatten(0, (30, 2)).sum(dim=1)
        assert int(change.argmax()) == frame


@BOTH
def test_loudness_changes_nothing(networks: dict[str, torch.nn.Module], kind: SpeechSettings) -> None:
    loud, quiet = (speech_rows(gain * sound(20), networks[kind.feature]).astype(np.float32) for gain in (1.0, 0.05))
    assert np.abs(loud - quiet).max() < 0.02


@BOTH
def test_a_long_track_in_windows_agrees_with_one_pass(networks: dict[str, torch.nn.Module], kind: SpeechSettings) -> None:
    """Attention and group norm see another stretch of sound, so agreement is near, not exact; time must not shift at all."""
    waveform, model = sound(1600, seed=3), networks[kind.feature]
    whole = speech_rows(waveform, model, window=1600).astype(np.float32)
    pieces = speech_rows(waveform, model).astype(np.float32)
    assert pieces.shape == whole.shape
    error = np.sqrt(((pieces - whole) ** 2).mean(axis=(1, 2)))
    assert error.max() < 0.01, "of rows with a standard deviation of about 0.8; 0.0036 was measured, 0.07 with too little context"
    for shift in (-1, 1):
        moved = np.roll(whole, shift, axis=0)
        assert np.abs(pieces - whole).mean() < 0.2 * np.abs(pieces - moved).mean()


def test_each_window_is_normalised_by_the_whole_track(model: torch.nn.Module) -> None:
    """A silent half must not be blown up to the loudness of speech."""
    waveform = np.concatenate([sound(100), np.zeros(640 * 100, np.float32) + 1e-4 * sound(100)])
    padded = np.pad(waveform, PADDING)
    seen: list[torch.Tensor] = []
    hook = model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    speech_rows(waveform, model, window=60, context=5)
    hook.remove()
    assert len(seen) == 4
    assert float(seen[-1].std()) < 1e-2 < 0.5 < float(seen[0].std())
    assert seen[0].shape == (1, 60 * 640 + 2 * PADDING)
    assert padded.size == 200 * 640 + 2 * PADDING


@BOTH
def test_random_network_is_the_same_every_time_and_leaves_the_global_generator_alone(
    networks: dict[str, torch.nn.Module], kind: SpeechSettings
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = load_network(kind)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one, two) for one, two in zip(networks[kind.feature].parameters(), again.parameters(), strict=True))
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_published_layout_loads_and_version_follows_the_bytes(tmp_path: Path) -> None:
    """A CTC checkpoint, as the hub has it: a prefix on every name, a head on top, old names of the weight norm."""
    from safetensors.torch import load_file, save_file
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    torch.manual_seed(1)
    ctc = Wav2Vec2ForCTC(Wav2Vec2Config(**random_config(RANDOM), vocab_size=32)).eval()
    ctc.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v"): value
        for name, value in state.items()
    }
    assert any(name.endswith("weight_g") for name in old)
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    explicit = Wav2VecSettings(path=str(tmp_path))
    rows = speech_rows(sound(9), load_network(explicit))
    assert np.array_equal(rows, speech_rows(sound(9), ctc.wav2vec2))

    version = network_version(explicit)
    assert version != network_version(RANDOM) != network_version(Wav2VecSettings())
    assert network_version(explicit.model_copy(update={"device": "cpu"})) == version
    del old["wav2vec2.encoder.layers.0.attention.k_proj.weight"]
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert network_version(explicit) != version
    with pytest.raises(CorruptWeights, match="k_proj"):
        load_network(explicit)


def test_hubert_is_published_as_a_pickle_that_is_read_without_running_it(tmp_path: Path) -> None:
    from transformers import HubertConfig, HubertForCTC

    torch.manual_seed(1)
    ctc = HubertForCTC(HubertConfig(**random_config(HUBERT), vocab_size=32)).eval()
    ctc.config.save_pretrained(tmp_path)
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v"): value
        for name, value in ctc.state_dict().items()
    }
    torch.save(old, tmp_path / "pytorch_model.bin")
    explicit = HubertSettings(path=str(tmp_path))
    assert np.array_equal(speech_rows(sound(9), load_network(explicit)), speech_rows(sound(9), ctc.hubert))
    assert network_version(explicit).startswith("hubert/1 path@")
    with pytest.raises(CorruptWeights, match="holds a network of the kind hubert, not wav2vec2"):
        load_network(Wav2VecSettings(path=str(tmp_path)))

    torch.save({**old, "evil": Evil(tmp_path / "run")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CorruptWeights, match=r"pytorch_model\.bin is not a readable weights file"):
        load_network(explicit)
    assert not (tmp_path / "run").exists()
    for file in ("pytorch_model.bin", "model.safetensors"):
        (tmp_path / file).write_bytes(b"half a download")
        with pytest.raises(CorruptWeights, match=rf"{file} is not a readable weights file"):
            load_network(explicit)


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_missing_weights_offline_fail_at_once_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TALKING_HEADS_WORKSPACE", str(tmp_path))
    for kind, name, file in (
        (Wav2VecSettings(), "wav2vec2-base-960h", "model.safetensors"),
        (HubertSettings(), "hubert-large-ls960-ft", "pytorch_model.bin"),
    ):
        with pytest.raises(MissingWeights) as raised:
            load_network(kind, default_store())
        message = str(raised.value)
        for part in ("config.json", file, str(tmp_path / "weights" / name), f"{kind.feature}.init=random", f"{kind.feature}=null"):
            assert part in message
        assert "\n" not in message

    with pytest.raises(
        MissingWeights, match=r"nowhere has no config.json and no model.safetensors or pytorch_model.bin.*hubert.init=random"
    ):
        load_network(HubertSettings(path=str(tmp_path / "nowhere")))
    with pytest.raises(MissingWeights, match=r"not in the table.*wav2vec.path=FOLDER"):
        load_network(Wav2VecSettings(hub_id="somebody/else"))


@BOTH
def test_hugging_face_cache_is_used_before_a_download(
    networks: dict[str, torch.nn.Module], kind: SpeechSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = networks[kind.feature]
    model.config.save_pretrained(tmp_path / "model")
    if kind is HUBERT:
        torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    else:
        model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, name, revision: str(tmp_path / "model" / name))
    store = WeightsStore(root=tmp_path / "weights", offline=True)
    load_network(type(kind)(), store)
    (name,) = store.used
    assert name in {"wav2vec2-base-960h", "hubert-large-ls960-ft"}
    assert store.tags()[f"weights.{name}"] == "pretrained"
    assert len(store.tags()[f"weights.{name}.sha256"]) == 64


def test_random_choice_is_recorded_for_the_run_s_tags(tmp_path: Path) -> None:
    store = WeightsStore(root=tmp_path, offline=True)
    load_network(RANDOM, store)
    assert store.tags()["weights.wav2vec2-base-960h"] == "random"


def test_versions_differ_with_everything_that_changes_rows() -> None:
    versions = {
        network_version(one)
        for one in (
            RANDOM,
            Wav2VecSettings(init="random", random_layers=4),
            Wav2VecSettings(init="random", random_width=48),
            Wav2VecSettings(),
            Wav2VecSettings(revision="other"),
            HUBERT,
            HubertSettings(),
        )
    }
    assert len(versions) == 7

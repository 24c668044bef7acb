"""Hidden states: one row per frame for any length, aligned, and what long tracks and missing weights do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.views import SAMPLES_PER_FRAME
from models.weights import CorruptWeights, MissingWeights, WeightsStore
from tasks.preprocessing.wav2vec import PADDING, default_store, hidden_states, load_wav2vec, plan_windows, wav2vec_version
from tasks.settings import Wav2VecSettings

RANDOM = Wav2VecSettings(init="random")


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return load_wav2vec(RANDOM)


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


@settings(deadline=None, max_examples=25)
@given(frames=st.one_of(st.integers(1, 12), st.integers(13, 90)), window=st.sampled_from([12, 31, 750]))
def test_any_track_has_exactly_one_row_per_frame(model: torch.nn.Module, frames: int, window: int) -> None:
    rows = hidden_states(sound(frames), model, window=window, context=4)
    assert rows.shape == (frames, RANDOM.random_layers, RANDOM.random_width)
    assert rows.dtype == np.float16
    assert np.isfinite(rows).all()


@pytest.mark.parametrize("size", [0, 1, 639, 641, 640 * 3 - 1])
def test_a_length_that_is_no_whole_number_of_frames_is_refused(model: torch.nn.Module, size: int) -> None:
    with pytest.raises(ValueError, match="positive multiple of 640"):
        hidden_states(np.zeros(size, np.float32), model)


def test_silence_is_finite(model: torch.nn.Module) -> None:
    assert np.isfinite(hidden_states(np.zeros(640 * 5, np.float32), model)).all()


def test_rows_are_the_layers_of_the_network_averaged_over_a_frame_s_two_tokens(model: torch.nn.Module) -> None:
    """Against hooks on the layers themselves, because transformers' `hidden_states` has changed its meaning before."""
    seen: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda module, inputs, output: seen.append(output)) for layer in model.encoder.layers]
    waveform = sound(7)
    rows = hidden_states(waveform, model)
    for hook in hooks:
        hook.remove()
    layers = torch.stack([output[0] if isinstance(output, tuple) else output for output in seen])[:, 0]
    assert layers.shape[1] == 14
    expected = (layers[:, 0::2] + layers[:, 1::2]) / 2
    assert np.abs(rows.astype(np.float32) - expected.transpose(0, 1).numpy()).max() < 2e-3


def test_row_f_is_centred_on_frame_f(model: torch.nn.Module) -> None:
    """What the convolutions see of a click, before attention mixes time: an error of one frame would show."""
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


def test_loudness_changes_nothing(model: torch.nn.Module) -> None:
    loud, quiet = (hidden_states(gain * sound(20), model).astype(np.float32) for gain in (1.0, 0.05))
    assert np.abs(loud - quiet).max() < 0.02


def test_a_long_track_in_windows_agrees_with_one_pass(model: torch.nn.Module) -> None:
    """Attention and group norm see another stretch of sound, so agreement is near, not exact; time must not shift at all."""
    waveform = sound(1600, seed=3)
    whole = hidden_states(waveform, model, window=1600).astype(np.float32)
    pieces = hidden_states(waveform, model).astype(np.float32)
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
    hidden_states(waveform, model, window=60, context=5)
    hook.remove()
    assert len(seen) == 4
    assert float(seen[-1].std()) < 1e-2 < 0.5 < float(seen[0].std())
    assert seen[0].shape == (1, 60 * 640 + 2 * PADDING)
    assert padded.size == 200 * 640 + 2 * PADDING


def test_random_network_is_the_same_every_time_and_leaves_the_global_generator_alone(model: torch.nn.Module) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = load_wav2vec(RANDOM)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters(), strict=True))
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_published_layout_loads_and_version_follows_the_bytes(tmp_path: Path) -> None:
    """A CTC checkpoint, as the hub has it: a prefix on every name, a head on top, old names of the weight norm."""
    from safetensors.torch import load_file, save_file
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    from tasks.preprocessing.wav2vec import random_config

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
    rows = hidden_states(sound(9), load_wav2vec(explicit))
    assert np.array_equal(rows, hidden_states(sound(9), ctc.wav2vec2))

    version = wav2vec_version(explicit)
    assert version != wav2vec_version(RANDOM) != wav2vec_version(Wav2VecSettings())
    assert wav2vec_version(explicit.model_copy(update={"device": "cpu"})) == version
    del old["wav2vec2.encoder.layers.0.attention.k_proj.weight"]
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert wav2vec_version(explicit) != version
    with pytest.raises(CorruptWeights, match="k_proj"):
        load_wav2vec(explicit)


def test_missing_weights_offline_fail_at_once_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TALKING_HEADS_WORKSPACE", str(tmp_path))
    with pytest.raises(MissingWeights) as raised:
        load_wav2vec(Wav2VecSettings(), default_store())
    message = str(raised.value)
    for part in ("config.json", "model.safetensors", str(tmp_path / "weights" / "wav2vec2-base-960h"), "init=random", "wav2vec=null"):
        assert part in message
    assert "\n" not in message

    with pytest.raises(MissingWeights, match=r"nowhere: config.json and model.safetensors not found.*wav2vec.init=random"):
        load_wav2vec(Wav2VecSettings(path=str(tmp_path / "nowhere")))
    with pytest.raises(MissingWeights, match=r"not in the table.*wav2vec.path=FOLDER"):
        load_wav2vec(Wav2VecSettings(hub_id="somebody/else"))


def test_hugging_face_cache_is_used_before_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_wav2vec(RANDOM).save_pretrained(tmp_path / "model")
    asked = Wav2VecSettings()
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, name, revision: str(tmp_path / "model" / name))
    store = WeightsStore(root=tmp_path / "weights", offline=True)
    load_wav2vec(asked, store)
    assert store.tags()["weights.wav2vec2-base-960h"] == "pretrained"
    assert len(store.tags()["weights.wav2vec2-base-960h.sha256"]) == 64


def test_random_choice_is_recorded_for_the_run_s_tags(tmp_path: Path) -> None:
    store = WeightsStore(root=tmp_path, offline=True)
    load_wav2vec(RANDOM, store)
    assert store.tags()["weights.wav2vec2-base-960h"] == "random"


def test_versions_differ_with_everything_that_changes_rows() -> None:
    versions = {
        wav2vec_version(one)
        for one in (
            RANDOM,
            Wav2VecSettings(init="random", random_layers=4),
            Wav2VecSettings(init="random", random_width=48),
            Wav2VecSettings(),
            Wav2VecSettings(revision="other"),
        )
    }
    assert len(versions) == 5

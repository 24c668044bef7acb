"""What wav2vec2 and HuBERT make of a waveform: exactly one row per video frame.

The two hear alike. A frame is 640 samples, the networks' stride 320: after 40 samples of padding on each side, 640 * F
samples give exactly 2 F tokens, whose pairs (2f, 2f + 1) are centred on frame f. Nothing is interpolated, nothing drifts
(spec/loopy.md, "Audio"). Of wav2vec2 every layer is kept and a frame's two tokens are averaged; of HuBERT the last hidden
state is kept, both tokens of it (spec/synctalk.md, "Audio").
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from models.views import SAMPLES_PER_FRAME
from models.weights import TABLE, CorruptWeights, MissingWeights, PretrainedWeights, UsedWeights, WeightsStore, sha256_of
from tasks.settings import SpeechSettings, fingerprint_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 2
"""Tokens of a frame."""

PADDING = 40
"""Samples on each side: (640 F + 2 * 40 - 400) / 320 + 1 = 2 F, for a receptive field of 400 and a stride of 320."""

WINDOW_FRAMES = 750
"""30 s: what attention sees at once. Longer tracks are cut; its cost grows with the square."""

CONTEXT_FRAMES = 40
"""1.6 s of real sound on both sides of what is kept of a window. The positional convolution reaches 64 tokens = 32 frames:
with 25 frames the rows at the seams were off by up to 0.09 of their standard deviation, with 33 or more by 0.004 to 0.036."""

METHOD = 1
"""Raise it when the same weights and sound would give other rows: it is part of every fingerprint."""

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files that hold a network's weights, better ones first; the second is read without running what it may carry."""

RANDOM_SEED = 0
RANDOM_CHANNELS = 32
"""Channels of the random network's convolutions (the pretrained ones have 512)."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """A piece of a long track, in frames: the network hears [start, end), [keep_start, keep_end) is kept of it."""

    start: int
    end: int
    keep_start: int
    keep_end: int


def plan_windows(frames: int, *, window: int = WINDOW_FRAMES, context: int = CONTEXT_FRAMES) -> Iterator[Window]:
    """Cut a track into windows whose kept parts tile it exactly.

    Every window has `window` frames (a shorter track is one window), so that the last one is not a stump that hears
    next to nothing; wherever a kept part does not end at the track's edge, at least `context` frames follow it.

    Raises:
        ValueError: no frames, or a window that holds nothing but context.
    """
    if frames < 1:
        raise ValueError(f"a track needs at least one frame, got {frames}")
    if window <= 2 * context:
        raise ValueError(f"a window of {window} frames holds nothing between two contexts of {context}")
    kept = 0
    while kept < frames:
        start = max(0, min(kept - context, frames - window))
        end = min(frames, start + window)
        keep_end = frames if end == frames else end - context
        yield Window(start=start, end=end, keep_start=kept, keep_end=keep_end)
        kept = keep_end


def speech_rows(
    waveform: npt.NDArray[np.float32], model: PreTrainedModel, *, window: int = WINDOW_FRAMES, context: int = CONTEXT_FRAMES
) -> npt.NDArray[np.float16]:
    """The rows of a track.

    The whole track is normalised at once (mean 0, variance 1), so that windows agree about loudness. Attention and
    wav2vec2's group norm look at a whole window, hence rows of a track longer than one window differ slightly from
    those of one pass: by at most 4 % of their standard deviation where it was measured (random wav2vec2, real speech).

    Args:
        waveform: float32 [640 * F], 16 kHz mono.
        model: in eval mode, on the device to use.
        window: frames heard at once.
        context: frames of real sound on both sides of the kept part of a window.

    Returns:
        float16. wav2vec2: [F, layers, width], the mean of each frame's two tokens, layers in the order of the network
        without its input embedding. HuBERT: [F, 2, width], each frame's two tokens of the last hidden state.

    Raises:
        ValueError: the length is no positive multiple of 640, or the network overflowed.
    """
    import torch

    if waveform.ndim != 1 or waveform.size == 0 or waveform.size % SAMPLES_PER_FRAME:
        raise ValueError(f"a waveform has a positive multiple of {SAMPLES_PER_FRAME} samples, got shape {waveform.shape}")
    frames = waveform.size // SAMPLES_PER_FRAME
    exact = waveform.astype(np.float64)
    normalised = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-7)
    padded = np.pad(normalised, PADDING).astype(np.float32)
    config = model.config
    last = config.model_type == "hubert"
    layers = 1 if last else config.num_hidden_layers
    rows = np.empty((frames, TOKENS if last else layers, config.hidden_size), np.float16)
    device = next(model.parameters()).device
    for piece in plan_windows(frames, window=window, context=context):
        samples = padded[piece.start * SAMPLES_PER_FRAME : piece.end * SAMPLES_PER_FRAME + 2 * PADDING]
        with torch.inference_mode():
            made = model(torch.from_numpy(samples)[None].to(device), output_hidden_states=not last)
            # Of HuBERT not `hidden_states[-1]`: the large one normalises once more after its last layer.
            states = [made.last_hidden_state] if last else made.hidden_states[1:]
            tokens = torch.stack([state[0] for state in states], dim=1)
            length = piece.end - piece.start
            if tokens.shape[:2] != (TOKENS * length, layers):
                raise ValueError(f"the network made {tuple(tokens.shape)} of {length} frames: its strides or layers are not wav2vec2's")
            pairs = tokens.unflatten(0, (length, TOKENS))
            heard = (pairs[:, :, 0] if last else pairs.mean(dim=1)).to(torch.float16)
        kept = heard[piece.keep_start - piece.start : piece.keep_end - piece.start]
        rows[piece.keep_start : piece.keep_end] = kept.cpu().numpy()
    if not np.isfinite(rows).all():
        raise ValueError(f"{config.model_type} hidden states overflow float16")
    return rows


def network_version(settings: SpeechSettings) -> str:
    """What makes the rows what they are, for fingerprints; needs no weights unless `path` names some.

    Raises:
        MissingWeights: `path` holds no weights.
    """
    if settings.init == "random":
        source = f"random@{fingerprint_of(random_config(settings))[:16]}"
    elif settings.path:
        source = f"path@{sha256_of(_weights_file(_explicit(settings)))[:16]}"
    else:
        source = f"{settings.hub_id}@{settings.revision}"
    return f"{settings.network}/{METHOD} {source}"


def random_config(settings: SpeechSettings) -> dict[str, Any]:
    """Settings of the small random network: the strides, kernels and norms of the real one, few channels."""
    width = settings.random_width
    return {
        "hidden_size": width,
        "num_hidden_layers": settings.random_layers,
        "num_attention_heads": width // 16,
        "intermediate_size": 2 * width,
        "conv_dim": [RANDOM_CHANNELS] * 7,
        "mask_time_prob": 0.0,
        "layerdrop": 0.0,
        **({"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True} if settings.network == "hubert" else {}),
    }


def load_network(settings: SpeechSettings, store: WeightsStore | None = None) -> PreTrainedModel:
    """The network, frozen and in eval mode, on the device of the settings.

    Args:
        settings: which network.
        store: where pretrained files are; by default `default_store()`. It remembers what was used.

    Raises:
        MissingWeights: pretrained, not here, and offline or not to be downloaded; says what to do.
        CorruptWeights: the files lack parts of the network, are of another one, or can't be read safely.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    store = default_store() if store is None else store
    if settings.init == "random":
        row = _declared(settings)
        if row is not None:
            store.record(row.name, "random")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            model: PreTrainedModel = AutoModel.from_config(AutoConfig.for_model(settings.network, **random_config(settings)))
    else:
        model = _load_folder(find_network(settings, store), settings.network)
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model.eval().requires_grad_(False).to(device)
    return model


def find_network(settings: SpeechSettings, store: WeightsStore) -> Path:
    """The folder with config.json and weights: explicit path, weights folder, Hugging Face cache, download.

    Raises:
        MissingWeights: as `load_network`.
    """
    if settings.path:
        return _explicit(settings)
    row = _declared(settings)
    if row is None:
        raise MissingWeights(
            f"{settings.feature}.hub_id={settings.hub_id} at revision {settings.revision} is not in the table of pretrained weights: "
            f"download its config.json and {' or '.join(WEIGHTS)} into a folder and give it as {settings.feature}.path=FOLDER"
        )
    if store.find(row.name) is None:
        cached = _hub_cache(row)
        if cached is not None:
            store.used[row.name] = UsedWeights(origin="pretrained", sha256=sha256_of(_weights_file(cached)))
            return cached
    return store.resolve(row.name)


def default_store() -> WeightsStore:
    """The weights folder of the workspace (TALKING_HEADS_WORKSPACE, ./workspace); offline where HF_HUB_OFFLINE says so."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}
    return WeightsStore(root=Path(os.environ.get("TALKING_HEADS_WORKSPACE", "workspace")) / "weights", offline=offline)


def _declared(settings: SpeechSettings) -> PretrainedWeights | None:
    """The row of the table of pretrained weights that these settings mean."""
    return next((row for row in TABLE.values() if (row.hub_id, row.revision) == (settings.hub_id, settings.revision)), None)


def _explicit(settings: SpeechSettings) -> Path:
    folder, name = Path(str(settings.path)), settings.feature
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not _weights_file(folder).is_file():
        missing.append(" or ".join(WEIGHTS))
    if missing:
        raise MissingWeights(
            f"{name}.path={settings.path} has no {' and no '.join(missing)}; put them there, or do without: "
            f"{name}.init=random (untrained, tagged) or {name}=null (no such speech features)"
        )
    return folder


def _weights_file(folder: Path) -> Path:
    """The weights in a network's folder; the last choice where there are none."""
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), folder / WEIGHTS[-1])


def _hub_cache(row: PretrainedWeights) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    names = ("config.json", row.files[-1].name)
    paths = [try_to_load_from_cache(str(row.hub_id), name, revision=row.revision) for name in names]
    found = [Path(path) for path in paths if isinstance(path, str)]
    return found[0].parent if len(found) == len(paths) else None


def _load_folder(folder: Path, network: str) -> PreTrainedModel:
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel

    kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    if kind != network:
        raise CorruptWeights(f"{folder} holds a network of the kind {kind}, not {network}")
    weights = _weights_file(folder)
    options: dict[str, Any] = {"use_safetensors": weights.suffix == ".safetensors", "weights_only": True, "local_files_only": True}
    try:
        loaded: Any = AutoModel.from_pretrained(folder, **options, output_loading_info=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        raise CorruptWeights(f"{weights} is not a readable weights file: {error}") from error
    model: PreTrainedModel = loaded[0]
    report = loaded[1]
    # The mask embedding is used in training only; the published CTC checkpoints lack it. Anything else would be random.
    missing = sorted(set(report["missing_keys"]) - {"masked_spec_embed"})
    if missing or report["mismatched_keys"]:
        raise CorruptWeights(f"{folder} is no complete {network} network; it lacks {', '.join(missing[:5]) or 'parts of the right shape'}")
    return model

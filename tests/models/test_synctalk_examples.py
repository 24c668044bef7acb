"""Training examples: what is drawn, what is heard around a frame, and that training and inference agree to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.synctalk.examples import PaintExamples, SyncExamples, around, draw_starts, heard, usable_starts
from models.synctalk.geometry import cut_core, face_squares
from models.synctalk.mel import mel_spectrogram, mel_windows
from tests.models.synctalk_material import clip, tiny_config

CONFIG = tiny_config()


def paint(encoder: str = "ave") -> PaintExamples:
    return PaintExamples(geometry=CONFIG.geometry, audio=CONFIG.audio.model_copy(update={"encoder": encoder}), frames=5)


def judge() -> SyncExamples:
    return SyncExamples(geometry=CONFIG.geometry, frames=5, positives=4, apart=5)


def test_the_same_generator_draws_the_same_example_and_another_another() -> None:
    source = clip()
    for maker in (paint(), judge()):
        a, b, c = (maker(source, np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert any(not torch.equal(a[name], c[name]) for name in a)


def test_painted_frames_are_consecutive_and_the_reference_is_none_of_them() -> None:
    source = clip(frames=12)
    squares = face_squares(source.landmarks, CONFIG.geometry.smoothing)
    cores = [cut_core(frame, square, CONFIG.geometry) for frame, square in zip(source.read_frames(range(12)), squares, strict=True)]
    seen = set()
    for seed in range(30):
        example = paint()(source, np.random.default_rng(seed))
        places = [next(i for i, core in enumerate(cores) if np.array_equal(np.moveaxis(core, -1, 0), frame)) for frame in example["cores"]]
        assert places == list(range(places[0], places[0] + 5))
        reference = next(i for i, core in enumerate(cores) if np.array_equal(np.moveaxis(core, -1, 0), example["reference"]))
        assert reference not in places
        seen |= {places[0]}
    assert seen == set(range(8))


@pytest.mark.parametrize("encoder", ["ave", "wav2vec"])
def test_what_is_heard_is_the_sound_around_each_frame_and_nothing_beyond_the_clip(encoder: str) -> None:
    source = clip(frames=30, features=True)
    audio = CONFIG.audio.model_copy(update={"encoder": encoder})
    mel = mel_spectrogram(source.audio)
    rows = mel_windows(mel, range(30)) if encoder == "ave" else source.features["wav2vec"].astype(np.float32)
    for window in (np.arange(0, 5), np.arange(12, 17), np.arange(27, 30)):
        given = heard(mel, source.features, audio, window, 30)
        assert given["sound"].shape[0] == given["hears"].shape[0] == len(window) + 15
        for t, frame in enumerate(window):
            for k in range(16):
                row = frame - 8 + k
                inside = 0 <= row < 30
                if inside:
                    np.testing.assert_array_equal(given["sound"][t + k].numpy(), rows[row])
                elif encoder == "ave":
                    assert (given["sound"][t + k] == -4).all(), "silence, as of a sound that has not begun"
                assert bool(given["hears"][t + k]) == (inside or encoder == "ave")


def test_features_of_another_size_name_the_settings() -> None:
    source = clip(frames=30, features=True)
    audio = CONFIG.audio.model_copy(update={"encoder": "wav2vec", "layers": 12, "width": 768})
    with pytest.raises(ValueError, match=r"config\.audio\.layers=2 and config\.audio\.width=16"):
        heard(mel_spectrogram(source.audio), source.features, audio, np.arange(5), 30)


def test_windows_without_a_face_are_never_drawn() -> None:
    source = clip(frames=40, missing=[10, 11, 25])
    starts = usable_starts(face_squares(np.where(source.confidence[:, None, None] > 0, source.landmarks, np.nan), 2.0), 5)
    assert set(starts) == {*range(6), *range(12, 21), *range(26, 36)}
    for seed in range(20):
        drawn = judge()(source, np.random.default_rng(seed))["starts"].tolist()
        assert set(drawn) <= set(starts.tolist())
        assert min(np.diff(drawn)) >= 5


def test_draws_reach_every_start() -> None:
    starts = np.arange(37)
    seen = {start for seed in range(300) for start in draw_starts(starts, 4, 5, np.random.default_rng(seed), "clip")}
    assert seen == set(range(37))


def test_the_sound_at_every_offset_is_that_of_the_window_so_many_frames_later() -> None:
    mel = mel_spectrogram(clip(frames=50).audio)
    given = around(mel, [0, 7, 30, 45], windows=46)
    for p, start in enumerate([0, 7, 30, 45]):
        for j in range(31):
            frame = start + j - 15
            assert bool(given["there"][p, j]) == (0 <= frame < 46)
            if 0 <= frame < 46:
                row = int(given["rows"][p, j])
                window = given["around"][p, row : row + 16].T
                np.testing.assert_array_equal(window.numpy(), mel_windows(mel, [frame])[0, 0])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (clip(audio=False), "need_audio"),
        (clip(frames=8), "min_frames"),
    ],
)
def test_what_cannot_be_drawn_says_why(source: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        judge()(source, np.random.default_rng(0))  # type: ignore[arg-type]


def test_too_few_frames_to_paint_say_so() -> None:
    with pytest.raises(ValueError, match="5 consecutive"):
        paint()(clip(frames=5), np.random.default_rng(0))
    with pytest.raises(ValueError, match="no frame with a face is left"):
        paint()(clip(frames=6, missing=[5]), np.random.default_rng(0))

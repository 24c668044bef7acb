"""Making frames: the template in ping-pong order, its mouth painted to the sound and put back with a soft rim."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.exports import load_network
from models.family import Driver, Face, Synthesizer, Template, ping_pong
from models.pictures import to_tensor
from models.synctalk.config import SyncTalkConfig
from models.synctalk.examples import OFFSETS, frames_of_sound, heard, usable_starts
from models.synctalk.geometry import cut_core, face_outlines, face_squares, masked, paste
from models.synctalk.judging import look, read_config, to_image
from models.synctalk.mel import mel_spectrogram, mel_windows
from models.synctalk.networks import SyncNet, UNet, folded
from models.views import Image, Points

JUDGE_BATCH = 64


class SyncTalkSynthesizer(Synthesizer):
    """A trained U-Net with its encoder of sound, its judge, and the person's reference picture (uint8 [3, core, core])."""

    def __init__(self, config: SyncTalkConfig, unet: UNet, syncnet: SyncNet, reference: Tensor, device: torch.device) -> None:
        self.config = config
        self.size = config.geometry.core
        self.device = device
        self.unet = folded(unet).to(device)
        self.syncnet = syncnet.to(device).eval()
        self.reference = reference.to(device)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> SyncTalkSynthesizer:
        """Read what the stage unet exported.

        Raises:
            FileNotFoundError: the folder is no exported model, or that of another stage.
            ValueError: it is another family's, or its files do not fit its configuration.
        """
        config = read_config(folder)
        if not (folder / "unet.safetensors").is_file():
            raise FileNotFoundError(
                f"{folder} is an export of synctalk's stage syncnet, which makes no frames: train the stage unet from it"
            )
        unet, syncnet, person = UNet(config), SyncNet(config), nn.Module()
        person.register_buffer("reference", torch.zeros(3, config.geometry.core, config.geometry.core, dtype=torch.uint8))
        for name, network in (("unet", unet), ("syncnet", syncnet), ("person", person)):
            load_network(network.requires_grad_(False), folder, name, "synctalk")
        return cls(config, unet, syncnet, person.get_buffer("reference"), device)

    def synthesize(self, face: Face, driver: Driver, *, seed: int = 0) -> Iterator[Image]:
        """One frame per 640 samples of `driver.audio`, as large as the template's; a function of its arguments alone, also of no seed.

        Frames of the template without a face are shown as they are.

        Raises:
            ValueError: the driver carries no sound, or lacks the learned features that the model hears through.
        """
        template = template_of(face)
        squares = face_squares(template.landmarks, self.config.geometry.smoothing)
        outlines = face_outlines(template.landmarks, self.config.geometry.smoothing)
        walk = ping_pong(len(template))
        for windows in self._heard(driver):
            order = list(islice(walk, len(windows)))
            frames = template.read(order)
            seen = [i for i, index in enumerate(order) if np.isfinite(squares[index]).all()]
            painted: dict[int, Image] = {}
            if seen:
                cores = np.stack([cut_core(frames[i], squares[order[i]], self.config.geometry) for i in seen])
                painted = dict(zip(seen, self._paint(cores, windows[seen]), strict=True))
            for i, index in enumerate(order):
                if i in painted:
                    yield paste(frames[i], painted[i], squares[index], self.config.geometry, outlines[index])
                else:
                    yield frames[i]

    def baseline(self, face: Face, driver: Driver) -> Iterator[Image]:
        """The hidden part filled with the reference: a mouth that is in place, and stays closed."""
        template = template_of(face)
        squares = face_squares(template.landmarks, self.config.geometry.smoothing)
        outlines = face_outlines(template.landmarks, self.config.geometry.smoothing)
        reference = np.ascontiguousarray(np.moveaxis(self.reference.cpu().numpy(), 0, -1))
        for index in islice(ping_pong(len(template)), _sound_frames(driver)):
            frame = template.read([index])[0]
            known = bool(np.isfinite(squares[index]).all())
            yield paste(frame, reference, squares[index], self.config.geometry, outlines[index]) if known else frame

    def lip_sync(self, frames: Image, landmarks: Points, audio: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | None:
        """See `Synthesizer.lip_sync`; a row per run of `sync.frames` frames that show a face."""
        span = self.config.sync.frames
        squares = face_squares(landmarks, self.config.geometry.smoothing)
        starts = usable_starts(squares, span)
        windows = max(0, min(len(frames), frames_of_sound(audio)) - span + 1)
        starts = starts[starts < windows]
        if not len(starts):
            return np.empty((0, 2 * OFFSETS + 1), np.float32)
        mel = mel_spectrogram(audio)
        sounds = torch.cat([self._judge_sound(mel, list(part)) for part in _parts(range(windows))])
        scores = np.full((len(starts), 2 * OFFSETS + 1), np.nan, np.float32)
        cores = {i: cut_core(frames[i], squares[i], self.config.geometry) for i in np.unique(starts[:, None] + np.arange(span))}
        done = 0
        for part in _parts(starts):
            stack = to_tensor(np.stack([[cores[start + i] for i in range(span)] for start in part])).to(self.device)
            with torch.no_grad():
                similarity = (self.syncnet.face(look(stack, self.config)) @ sounds.T).cpu().numpy()
            for row, start in zip(similarity, part, strict=True):
                first, last = max(0, start - OFFSETS), min(windows, start + OFFSETS + 1)
                scores[done, first - start + OFFSETS : last - start + OFFSETS] = row[first:last]
                done += 1
        return scores

    @torch.no_grad()
    def _judge_sound(self, mel: npt.NDArray[np.float32], frames: list[int]) -> Tensor:
        return self.syncnet.audio(torch.from_numpy(mel_windows(mel, frames)).to(self.device))

    @torch.no_grad()
    def _paint(self, cores: Image, windows: Tensor) -> Image:
        """Painted cores: uint8 [n, core, core, 3]."""
        truth = to_tensor(cores).to(self.device).float() / 255
        references = (self.reference.float() / 255).expand(len(truth), -1, -1, -1)
        pictures = torch.cat([references, masked(truth, self.config.geometry)], dim=1).contiguous(memory_format=torch.channels_last)
        return to_image(self.unet(pictures, windows))

    def _heard(self, driver: Driver) -> Iterator[Tensor]:
        """Batch by batch, what is heard for each frame: [n, 16, ...]."""
        from models.synctalk.painting import hear

        frames = _sound_frames(driver)
        encoder = self.config.audio.encoder
        if encoder != "ave" and encoder not in driver.features:
            raise ValueError(f"this model hears through {encoder} features, and the driver carries none")
        mel = mel_spectrogram(np.asarray(driver.audio, np.float32))
        for start in range(0, frames, self.config.synthesis_batch):
            window = np.arange(start, min(frames, start + self.config.synthesis_batch))
            given = heard(mel, driver.features, self.config.audio, window, frames)
            with torch.no_grad():
                sound, hears = given["sound"][None].to(self.device), given["hears"][None].to(self.device)
                windows = hear(self.syncnet.audio_encoder, sound, hears, self.config)
            yield windows


def template_of(face: Face) -> Template:
    """The face's template; its pictures where it has none.

    Raises:
        ValueError: there is nothing to paint on.
    """
    if face.template is not None:
        return face.template
    if not len(face.images):
        raise ValueError("synctalk paints on a template: give a video or a picture of the person")
    images = face.images
    return Template(read=lambda indices: images[list(indices)], landmarks=face.landmarks)


def _sound_frames(driver: Driver) -> int:
    if driver.audio is None or not len(driver.audio):
        raise ValueError("family synctalk is driven by sound: give an audio file")
    return frames_of_sound(driver.audio)


def _parts(values: Sequence[int] | npt.NDArray[Any]) -> Iterator[Any]:
    for start in range(0, len(values), JUDGE_BATCH):
        yield values[start : start + JUDGE_BATCH]

"""Making frames with an exported model: embed the person once, then draw the driver's landmarks batch by batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.exports import load_network
from models.family import Driver, Face, Synthesizer
from models.fewshot.config import FewShotConfig
from models.fewshot.examples import frames_of, to_image, to_network
from models.fewshot.networks import Embedder, Generator
from models.fewshot.raster import draw, resize_image, scale_points
from models.fewshot.training import CONFIG_FILE, PERSON_FILE
from models.pictures import to_tensor
from models.views import Image, Points


class FewShotSynthesizer(Synthesizer):
    """A trained embedder and generator; a fine-tuned model has its person's psi and ignores the face's identity."""

    def __init__(self, config: FewShotConfig, embedder: Embedder, generator: Generator, device: torch.device, psi: Tensor | None) -> None:
        self.config = config
        self.size = config.network.image_size
        self.device = device
        self.psi = None if psi is None else psi.to(device)
        self.embedder = embedder.to(device).eval().requires_grad_(False)
        self.generator = generator.to(device).eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> FewShotSynthesizer:
        """Read what a stage's `export` wrote.

        Raises:
            FileNotFoundError: the folder is no exported model.
            ValueError: it is another family's, or its files do not fit its configuration.
        """
        path = folder / CONFIG_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no exported fewshot model: it has no {CONFIG_FILE}")
        content = json.loads(path.read_text())
        if content.get("family") != "fewshot":
            raise ValueError(f"{folder} holds a model of family {content.get('family')!r}, not fewshot")
        config = FewShotConfig.model_validate(content["config"])
        embedder = Embedder(config.network, config.losses.resolved().pooling)
        generator = Generator(config.network)
        load_network(embedder, folder, "embedder", "fewshot")
        load_network(generator, folder, "generator", "fewshot")
        person = folder / PERSON_FILE
        psi = load_file(person)["psi"] if person.is_file() else None
        return cls(config, embedder, generator, device, psi)

    @torch.no_grad()
    def synthesize(self, face: Face, driver: Driver, *, seed: int = 0) -> Iterator[Image]:
        """One frame per row of `driver.landmarks`; the result is a function of its arguments alone, also of no seed.

        Raises:
            ValueError: the driver carries no landmarks, or the face no picture.
        """
        landmarks = self._driver_points(driver)
        psi = self.embed(face) if self.psi is None else self.psi
        for start in range(0, len(landmarks), self.config.synthesis_batch):
            part = landmarks[start : start + self.config.synthesis_batch]
            rasters = to_network(to_tensor(np.stack([draw(points, self.size) for points in part])))
            with torch.no_grad():
                pictures = self.generator(rasters.to(self.device), psi)
            yield from to_image(pictures)

    @torch.no_grad()
    def embed(self, face: Face) -> Tensor:
        """psi of a person: [1, psi_length], from the mean embedding of all pictures given."""
        if len(face.images) == 0 or len(face.images) != len(face.landmarks):
            raise ValueError(f"the face has {len(face.images)} pictures and {len(face.landmarks)} sets of landmarks; give one set for each")
        total = torch.zeros(1, self.config.network.embedding, device=self.device)
        for start in range(0, len(face.images), self.config.synthesis_batch):
            part = slice(start, start + self.config.synthesis_batch)
            images, rasters = frames_of(face.images[part], face.landmarks[part], self.size)
            total += self.embedder(images.to(self.device), rasters.to(self.device)).sum(0, keepdim=True)
        return self.generator.project(total / len(face.images))

    def baseline(self, face: Face, driver: Driver) -> Iterator[Image]:
        """For each frame the reference picture nearest in pose, copied."""
        own = scale_points(face.landmarks, face.images.shape[1], self.size)
        copies = [resize_image(image, self.size) for image in face.images]
        for points in self._driver_points(driver):
            yield copies[nearest_pose(points, own)]

    def _driver_points(self, driver: Driver) -> Points:
        if driver.landmarks is None or driver.size is None:
            raise ValueError("family fewshot is driven by landmarks: give a driving video, not sound alone")
        return scale_points(driver.landmarks, driver.size, self.size)


def nearest_pose(points: Points, references: Points) -> int:
    """Index of the reference whose points lie nearest on average, where they are: [68, 2] against [T, 68, 2].

    Place, size, turn and expression all count, which makes it the hardest copy to beat.
    """
    distance = np.linalg.norm(references - points, axis=-1).mean(-1)
    return int(np.argmin(distance))

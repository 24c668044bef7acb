"""Fine-tuning on one person: psi' and w' become parameters, trained with all of G and D. arXiv 1905.08233 section 3.4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.averaging import warm_decay
from models.family import Batch, BuildContext, Example
from models.fewshot.config import FewShotConfig
from models.fewshot.examples import example_frame, frames_of, to_image, to_network
from models.fewshot.training import PERSON_FILE, FewShotModule, reconstruction_scores
from models.layout import lay_channels_last
from models.pictures import labelled_grid
from models.views import Image, Keyframes


@dataclass(frozen=True, kw_only=True)
class PersonExamples:
    """One frame of the person with its raster, drawn anew at every call."""

    image_size: int
    flip: float

    def __call__(self, pool: Keyframes, rng: np.random.Generator) -> Example:
        """`target`, `target_raster`: uint8 [3, S, S]."""
        index = int(rng.integers(len(pool)))
        image, raster = example_frame(pool, index, self.image_size, bool(rng.random() < self.flip))
        return {"target": image, "target_raster": raster}


class FewShotFinetune(FewShotModule):
    """Stage `finetune`: makes a meta-trained model one person's own.

    psi' = P e_new and w' = w0 + e_new, from the person's frames; E is frozen and there is no matching loss.
    The optimisers are built after psi' and w' exist: built before, they would never train them.
    """

    average_psi: Tensor

    def __init__(self, config: FewShotConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        if context.start_from is None:
            raise ValueError("fine-tuning starts from a meta-trained model: start_from is missing")
        self.start_from(context.start_from)
        lay_channels_last(self).to(context.device)
        self.embedder.requires_grad_(False).eval()
        self.psi = nn.Parameter(torch.zeros(1, self.generator.psi_length, device=context.device))
        self.person = nn.Parameter(torch.zeros(1, config.network.embedding, device=context.device))
        """w', into which w0 has gone."""
        self.register_buffer("average_psi", torch.zeros_like(self.psi))
        if context.face is not None:
            images, rasters = frames_of(context.face.images, context.face.landmarks, config.network.image_size)
            with torch.no_grad():
                embedding = self.embedder(images.to(context.device), rasters.to(context.device)).mean(0, keepdim=True)
                self.generator.eval()
                self.discriminator.eval()
                self.psi.copy_(self.generator.project(embedding))
                self.average_psi.copy_(self.psi)
                self.person.copy_(self.discriminator.shared_row() + embedding)
            self.train()
        self.discriminator.linear.parametrizations.requires_grad_(False)
        self.generator.projection.requires_grad_(False)

    def train(self, mode: bool = True) -> FewShotFinetune:
        """E stays as it is: also its spectral norms are not iterated on."""
        super().train(mode)
        self.embedder.eval()
        return self

    def judge(self, image: Tensor, raster: Tensor, person: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """As in meta-training, with w' for W_i + w0."""
        return self.discriminator(image, raster, person, whole=True)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        options = self.config.optimizer
        drawing = [parameter for parameter in self.generator.parameters() if parameter.requires_grad]
        judging = [parameter for parameter in self.discriminator.parameters() if parameter.requires_grad]
        return {
            "generator": self.adam([*drawing, self.psi], options.generator_lr),
            "discriminator": self.adam([*judging, self.person], options.discriminator_lr),
        }

    def training_step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """`discriminator_updates` updates of D and w', then one of G and psi'."""
        real, raster = to_network(batch["target"]), to_network(batch["target_raster"])
        fake = self.generator(raster, self.psi)
        logs = self.update_discriminator(real, fake, raster, lambda: self.person)

        self.zero_gradients("generator")
        terms = self.generator_losses(fake, real, raster, self.person.detach(), step)
        total = torch.stack(list(terms.values())).sum()
        total.backward()
        self.step_optimizers("generator")
        self.updates += 1
        self.update_averages((self.average_generator, self.generator))
        self.average_psi.lerp_(self.psi.detach(), 1 - warm_decay(int(self.updates), self.config.optimizer.ema))
        return {
            "loss": total.detach(),
            **{f"loss_{name}": term.detach() for name, term in terms.items()},
            **logs,
            **self.gain_statistics(self.psi),
            "adversarial_grad_norm": self.adversarial_grad.clone(),
        }

    @torch.no_grad()
    def validation_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """As in meta-training, on other frames of the person."""
        fake = self.average_generator(to_network(batch["target_raster"]), self.average_psi)
        return reconstruction_scores(fake, to_network(batch["target"]), self._content[0])

    @torch.no_grad()
    def preview(self, batch: Batch) -> Image:
        """Rows of at most four frames: landmarks, made, truth."""
        fake = self.average_generator(to_network(batch["target_raster"]), self.average_psi)
        columns = {
            "landmarks": to_image(to_network(batch["target_raster"][:4])),
            "made": to_image(fake[:4]),
            "truth": to_image(to_network(batch["target"][:4])),
        }
        return labelled_grid(columns)

    def export(self, folder: Path) -> None:
        """As in meta-training, with psi' in `person.safetensors`: the model makes this person only."""
        networks = {"embedder": self.embedder, "generator": self.average_generator, "discriminator": self.discriminator}
        self.save_networks(folder, networks, stage="finetune", updates=int(self.updates))
        save_file({"psi": self.average_psi.detach().cpu(), "row": self.person.detach().cpu()}, folder / PERSON_FILE)

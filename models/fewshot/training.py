"""Meta-training: E, G, D and W on many people. spec/fewshot.md, "Losses and steps"."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.averaging import update_average, warm_decay
from models.exports import load_network, save_network
from models.family import Batch, BuildContext, TrainingModule
from models.fewshot import losses
from models.fewshot.config import FewShotConfig
from models.fewshot.examples import to_image, to_network
from models.fewshot.networks import Discriminator, Embedder, Generator, VideoTable
from models.layout import lay_channels_last
from models.pictures import labelled_grid
from models.views import Image

NETWORK_FILES = ("embedder", "generator", "discriminator")
CONFIG_FILE = "config.json"
PERSON_FILE = "person.safetensors"


class FewShotModule(TrainingModule):
    """What meta-training and fine-tuning share: the discriminator's updates, the generator's losses, the average."""

    updates: Tensor
    adversarial_grad: Tensor

    def __init__(self, config: FewShotConfig, context: BuildContext) -> None:
        super().__init__()
        self.config = config
        pooling = config.losses.resolved().pooling
        self.embedder = Embedder(config.network, pooling)
        self.generator = Generator(config.network)
        self.discriminator = Discriminator(config.network, pooling)
        self.average_generator = Generator(config.network).requires_grad_(False)
        self.weights = config.losses.resolved()
        # Not a submodule: frozen public files do not belong into checkpoints.
        self._content = (losses.build_content_loss(config.losses, context.weights).to(context.device),)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("adversarial_grad", torch.zeros(()))
        self._optimizers: dict[str, torch.optim.Optimizer] = {}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Built at the first call, when every parameter exists."""
        if not self._optimizers:
            self._optimizers = self.build_optimizers()
        return self._optimizers

    @abstractmethod
    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """New optimisers over the parameters that exist now: `generator`, and those of D's side."""

    def adam(self, parameters: list[nn.Parameter], rate: float) -> torch.optim.Adam:
        """Adam with the config's moments."""
        options = self.config.optimizer
        return torch.optim.Adam(parameters, lr=rate, betas=(options.beta1, options.beta2))

    def step_optimizers(self, *names: str) -> None:
        """Average the gradients over the workers, then step these optimisers."""
        for name in names:
            optimizer = self.optimizers()[name]
            self.sync_gradients(parameter for group in optimizer.param_groups for parameter in group["params"])
            optimizer.step()
        # Autocast keeps casted copies of the parameters, which have just changed.
        torch.clear_autocast_cache()

    def zero_gradients(self, *names: str) -> None:
        """Forget the gradients of these optimisers' parameters."""
        for name in names:
            self.optimizers()[name].zero_grad(set_to_none=True)

    def judge(self, image: Tensor, raster: Tensor, person: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """D's raw scores and features."""
        return self.discriminator(image, raster, person)

    def train(self, mode: bool = True) -> FewShotModule:
        """Averaged networks stay in evaluation: they are never trained, and their spectral norms follow the online ones."""
        super().train(mode)
        for name, child in self.named_children():
            if name.startswith("average_"):
                child.eval()
        return self

    def update_discriminator(self, real: Tensor, fake: Tensor, raster: Tensor, person: Callable[[], Tensor]) -> dict[str, Tensor]:
        """All of D's updates for one of the generator's, on a detached picture; what to log of the last."""
        logs: dict[str, Tensor] = {}
        names = [name for name in self.optimizers() if name != "generator"]
        # The same picture serves all updates: G does not change between them.
        pictures = torch.cat([real, fake.detach().float()])
        for _ in range(self.config.optimizer.discriminator_updates):
            self.zero_gradients(*names)
            score, _ = self.judge(pictures, raster.repeat(2, 1, 1, 1), person())
            real_score, fake_score = score.chunk(2)
            hinge = losses.discriminator_hinge(real_score, fake_score)
            hinge.backward()
            self.step_optimizers(*names)
            logs = {"d_hinge": hinge.detach(), "d_real": real_score.detach().mean(), "d_fake": fake_score.detach().mean()}
        return logs

    def generator_losses(self, fake: Tensor, real: Tensor, raster: Tensor, person: Tensor | None, step: int) -> dict[str, Tensor]:
        """Weighted terms by name for pictures [B, 3, S, S]; D is held still."""
        config, weights = self.config.losses, self.weights
        terms: dict[str, Tensor] = dict(self._content[0](fake, real))
        if config.pixel_l1:
            terms["pixel"] = config.pixel_l1 * F.l1_loss(fake.float(), real)
        with held_still(self.discriminator):
            with torch.no_grad():
                _, real_features = self.judge(real, raster, person)
            score, fake_features = self.judge(fake, raster, person)
        terms["adversarial"] = config.adversarial * losses.adversarial(score)
        terms["feature_matching"] = weights.feature_matching * losses.feature_matching(
            fake_features, real_features, config.feature_matching_over
        )
        if step % self.config.diagnostics_every == 0 and fake.requires_grad:
            (gradient,) = torch.autograd.grad(terms["adversarial"], fake, retain_graph=True)
            self.adversarial_grad.copy_(gradient.float().norm())
        return terms

    def update_averages(self, *pairs: tuple[nn.Module, nn.Module]) -> None:
        """Move each first network towards its second, the online one."""
        for average, online in pairs:
            update_average(average, online, warm_decay(int(self.updates), self.config.optimizer.ema))

    def gain_statistics(self, psi: Tensor) -> dict[str, Tensor]:
        """Mean and spread of the AdaIN gains; near 1 at the start, near 0 where a collapse begins."""
        gains = self.generator.gains(psi.detach().float())
        return {"gain_mean": gains.mean(), "gain_std": gains.std(), "gain_min": gains.min()}

    def save_networks(self, folder: Path, networks: Mapping[str, nn.Module], **extra: Any) -> None:
        """Write each network as safetensors, and config.json."""
        for name, network in networks.items():
            save_network(folder, name, network)
        content = {"family": "fewshot", "config": self.config.model_dump(mode="json"), **extra}
        (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")

    def start_from(self, folder: Path) -> None:
        """Take the networks that an earlier stage exported.

        Raises:
            ValueError: they belong to another configuration.
        """
        for name in NETWORK_FILES:
            load_network(self.get_submodule(name), folder, name, "fewshot")
        self.average_generator.load_state_dict(self.generator.state_dict())


class FewShotMeta(FewShotModule):
    """Stage `meta`: learns to embed and to draw people from many videos."""

    def __init__(self, config: FewShotConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.average_embedder = Embedder(config.network, self.weights.pooling).requires_grad_(False)
        self.videos = VideoTable(context.video_keys, config.network.embedding)
        if context.start_from is not None:
            self.start_from(context.start_from)
        self.average_embedder.load_state_dict(self.embedder.state_dict())
        self.average_generator.load_state_dict(self.generator.state_dict())
        lay_channels_last(self).to(context.device)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        options = self.config.optimizer
        drawing = [*self.embedder.parameters(), *self.generator.parameters()]
        return {
            "generator": self.adam(drawing, options.generator_lr),
            "discriminator": self.adam(list(self.discriminator.parameters()), options.discriminator_lr),
            "videos": torch.optim.SparseAdam(
                list(self.videos.parameters()), lr=options.discriminator_lr, betas=(options.beta1, options.beta2)
            ),
        }

    def training_step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """`discriminator_updates` updates of D and W on a detached picture, then one of E and G."""
        real, raster = to_network(batch["target"]), to_network(batch["target_raster"])
        rows = self.videos.row_indices(batch["video"])
        embedding = embed(self.embedder, batch)
        psi = self.generator.project(embedding)
        fake = self.generator(raster, psi)

        logs = self.update_discriminator(real, fake, raster, lambda: self.videos(rows).repeat(2, 1))
        self.zero_gradients("generator")
        person = self.videos(rows).detach()
        terms = self.generator_losses(fake, real, raster, person, step)
        if self.weights.matching:
            terms["matching"] = self.weights.matching * losses.matching(embedding, person)
        total = torch.stack(list(terms.values())).sum()
        total.backward()
        self.step_optimizers("generator")
        self.updates += 1
        self.videos.used[rows] = True
        self.update_averages((self.average_embedder, self.embedder), (self.average_generator, self.generator))
        return {
            "loss": total.detach(),
            **{f"loss_{name}": term.detach() for name, term in terms.items()},
            **logs,
            **self.gain_statistics(psi),
            "adversarial_grad_norm": self.adversarial_grad.clone(),
            "embedding_norm": embedding.detach().float().norm(dim=1).mean(),
            "video_rows_used": self.videos.used.float().mean(),
        }

    @torch.no_grad()
    def validation_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """Reconstruction by the averaged networks: mean absolute error plus the content loss, and PSNR in dB."""
        real = to_network(batch["target"])
        return reconstruction_scores(self._draw(batch), real, self._content[0])

    @torch.no_grad()
    def preview(self, batch: Batch) -> Image:
        """Rows of at most four examples: reference, landmarks, made, truth."""
        fake = self._draw(batch)
        columns = {
            "reference": to_image(to_network(batch["refs"][:4, 0])),
            "landmarks": to_image(to_network(batch["target_raster"][:4])),
            "made": to_image(fake[:4]),
            "truth": to_image(to_network(batch["target"][:4])),
        }
        return labelled_grid(columns)

    def export(self, folder: Path) -> None:
        """The averaged E and G, and D, from which fine-tuning starts."""
        networks = {"embedder": self.average_embedder, "generator": self.average_generator, "discriminator": self.discriminator}
        self.save_networks(folder, networks, stage="meta", updates=int(self.updates), videos=len(self.videos.keys))

    def training_state(self) -> dict[str, Any]:
        """The base's, and the keys of the rows of W."""
        return {**super().training_state(), "video_keys": list(self.videos.keys)}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """The base's. Rows of W follow their keys: saved rows keep their place, this run's new videos get rows after them.

        Raises:
            RuntimeError: the state belongs to another configuration.
        """
        saved = VideoTable([], self.config.network.embedding)
        saved.add(state["video_keys"])
        current = self.videos.keys
        self.videos = saved.to(self.updates.device)
        self._optimizers = {}
        super().load_training_state(state)
        before = len(saved.keys)
        saved.add(current)
        if len(saved.keys) > before:
            self._widen_video_optimizer()

    def _widen_video_optimizer(self) -> None:
        """Zero moments for rows that were appended after the state was loaded."""
        old = self._optimizers["videos"].state_dict()
        fresh = self.build_optimizers()["videos"]
        rows = len(self.videos.keys)
        for moments in old["state"].values():
            for name, value in moments.items():
                if isinstance(value, Tensor) and value.ndim == 2:
                    moments[name] = torch.cat([value, value.new_zeros(rows - value.shape[0], value.shape[1])])
        fresh.load_state_dict(old)
        self._optimizers["videos"] = fresh

    @torch.no_grad()
    def _draw(self, batch: Batch) -> Tensor:
        psi = self.average_generator.project(embed(self.average_embedder, batch))
        return self.average_generator(to_network(batch["target_raster"]), psi).float()


def embed(embedder: Embedder, batch: Batch) -> Tensor:
    """The mean embedding of each example's K frames: [B, embedding]."""
    shape = batch["refs"].shape[:2]
    each = embedder(to_network(batch["refs"].flatten(0, 1)), to_network(batch["ref_rasters"].flatten(0, 1)))
    return each.unflatten(0, shape).mean(1)


def reconstruction_scores(fake: Tensor, real: Tensor, content: losses.ContentLoss) -> dict[str, Tensor]:
    """`loss`, `l1` (of 0..1) and `psnr` in dB, of pictures in -1..1."""
    fake = fake.float()
    error = F.l1_loss(fake, real)
    loss = torch.stack([error, *content(fake, real).values()]).sum()
    squared = ((fake - real) / 2).square().flatten(1).mean(1)
    return {"loss": loss, "l1": error / 2, "psnr": (-10 * torch.log10(squared.clamp_min(1e-10))).mean()}


@contextmanager
def held_still(network: nn.Module) -> Iterator[None]:
    """No gradients for the network's own parameters, which would be computed only to be thrown away."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)

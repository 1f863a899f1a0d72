"""The training loop of the GANs: a step of the discriminator D, then one of the generator G (equations 1 and 2)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from gliaflow_plugins.contracts import FeatureSource, FitContext, Fitted, Indices
from gliaflow_plugins.features import channel_scale, class_members, evenly_spaced
from gliaflow_plugins.gan_losses import GANLosses
from gliaflow_plugins.networks import tumour_statistics
from gliaflow_plugins.networks.gan_networks import Discriminator, GANGenerator, paper_networks, patch, patch_networks
from gliaflow_plugins.networks.mixed_precision import mixed_precision

LAZY = 4  # the R1 penalty acts every 4th step, and 4 times as strongly (Karras et al. 2020)
PATCHES = 16  # patches of each of 256 maps, for the principal components
REPORTS = 20  # a run without epochs reports its progress, and saves its state, 20 times
FIGURES = ("loss_d", "loss_g", "accuracy_real", "accuracy_fake")


@dataclass(frozen=True)
class Setup:
    """The networks, ``draw`` (the samples of a step, numbered from 1), and the steps in all and between reports."""

    g: GANGenerator
    d: Discriminator
    draw: Callable[[int], Indices]
    steps: int
    every: int


def patch_setup(gan: GANLosses, features: FeatureSource, options: Any, seed: int) -> Setup:
    """Networks that see a map as patches, and samples of each class equally often."""
    members = class_members(features)

    def draw(step: int) -> Indices:
        """The synthetic features get the same labels, so that D cannot recognise them by their classes."""
        rng = np.random.default_rng([seed, step])
        classes = rng.integers(len(members), size=options.batch)
        return np.array([members[label][rng.integers(len(members[label]))] for label in classes])

    scale = torch.from_numpy(channel_scale(features))
    table, label = tumour_statistics.of_samples(features, tumour_statistics.inverse_scale(scale))
    statistics = tumour_statistics.StandardisedStatistics(table)
    g, d = patch_networks(gan, features.shape, len(members), options, scale, statistics)
    _begin_from_components(g, features, scale)
    if gan.pretrained:
        tumour_statistics.fit_class_layer(d.grade, statistics.standardised(table), label)
    return Setup(g, d, draw, options.steps, max(1, options.steps // REPORTS))


def paper_setup(gan: GANLosses, features: FeatureSource, options: Any, seed: int) -> Setup:
    """The paper's networks, and epochs of all samples in random order."""
    classes = len(class_members(features))
    every = -(-len(features) // options.batch)

    def draw(step: int) -> Indices:
        epoch, within = divmod(step - 1, every)
        order = np.random.default_rng([seed, epoch]).permutation(len(features))
        return order[within * options.batch : (within + 1) * options.batch]

    scale = torch.from_numpy(channel_scale(features))
    g, d = paper_networks(gan, features.shape, classes, options, scale)
    return Setup(g, d, draw, every * options.epochs, every)


SETUPS = {"patches": patch_setup, "paper": paper_setup}


def train(gan: GANLosses, features: FeatureSource, options: Any, context: FitContext) -> Fitted:
    """Fit a variant. See ``GeneratorVariant.fit``."""
    with torch.random.fork_rng():
        torch.manual_seed(context.seed)
        setup = SETUPS[gan.networks](gan, features, options, context.seed)
        if setup.steps < options.critic_steps:
            raise ValueError(f"steps: {setup.steps} is below critic_steps: the generator would not be fitted")
        return _fit(_Loop(gan, setup, features, options, context.device), setup, context)


def _fit(loop: _Loop, setup: Setup, context: FitContext) -> Fitted:
    history = loop.load(context.checkpoint) if context.checkpoint is not None and context.checkpoint.exists() else []
    figures: list[Tensor] = []
    for step in range(len(history) * setup.every + 1, setup.steps + 1):
        torch.manual_seed(context.seed * 1_000_003 + step)  # chance depends on the step, so a resumed fit is the same
        figures.append(loop.step(step, setup.draw(step)))
        if step % setup.every:
            continue
        table = torch.stack(figures)
        of_g = step // loop.options.critic_steps - (step - len(table)) // loop.options.critic_steps
        table[:, 1] *= len(table) / max(1, of_g)  # loss_g is 0 where G made no step
        history.append(dict(zip(FIGURES, table.mean(0).tolist(), strict=True)))
        figures = []
        if context.checkpoint is not None:
            loop.save(context.checkpoint, history)
        if context.progress is not None:
            context.progress(len(history), setup.steps // setup.every, history[-1])
    d = loop.d
    for layer in list(d.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight")  # the spectral norm becomes part of the weights
    return Fitted(loop.options.nz, loop.average.cpu(), d.cpu().eval(), history)


class _Loop:
    """The networks, G's average and the optimisers. ``step`` fits D, then G."""

    def __init__(self, gan: GANLosses, setup: Setup, features: FeatureSource, options: Any, device: str) -> None:
        self.gan, self.features, self.options, self.device = gan, features, options, device
        self.g, self.d = setup.g.to(device).train(), setup.d.to(device).train()
        self.average = copy.deepcopy(self.g).eval().requires_grad_(False)
        self.weights_d = [weight for weight in self.d.parameters() if weight.requires_grad]
        betas = (options.beta1, options.beta2)
        self.adam_g = torch.optim.Adam(self.g.parameters(), lr=options.lr, betas=betas)
        self.adam_d = torch.optim.Adam(self.weights_d, lr=options.lr * options.ttur, betas=betas)
        self.precision = mixed_precision(device)

    @property
    def state(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """The parts that a checkpoint contains."""
        return {"g": self.g, "d": self.d, "average": self.average, "of_g": self.adam_g, "of_d": self.adam_d}

    def load(self, path: Path) -> list[dict[str, float]]:
        """Continue from a checkpoint, and return its history."""
        checkpoint = torch.load(path, map_location=self.device, weights_only=True)
        for name, part in self.state.items():
            part.load_state_dict(checkpoint[name])
        history: list[dict[str, float]] = checkpoint["history"]
        return history

    def save(self, path: Path, history: list[dict[str, float]]) -> None:
        """Write a checkpoint whole: to a part file, which then replaces ``path``."""
        part_file = path.with_name(f"{path.name}.part")
        torch.save({name: part.state_dict() for name, part in self.state.items()} | {"history": history}, part_file)
        part_file.replace(path)

    def step(self, number: int, indices: Indices) -> Tensor:
        """Fit D on the samples at ``indices``, and G in every ``critic_steps``-th step. Returns FIGURES [4]."""
        real = torch.from_numpy(self.features.batch(indices)).to(self.device) * self.d.inverse
        label = torch.from_numpy(self.features.labels[indices]).to(self.device)
        z = torch.randn(len(indices), self.options.nz).to(self.device)
        fits_g = number % self.options.critic_steps == 0
        with self.precision, torch.set_grad_enabled(fits_g):
            fake = self.g.scaled(z, label).float()
        loss_d, hits = self._fit_d(number, real, fake.detach(), label, z)
        del real  # a batch of the largest tap takes 0.1 GB
        loss_g = torch.zeros_like(loss_d)
        if fits_g:
            loss_g = self._fit_g(fake, label, z)
            steps_g = number // self.options.critic_steps
            _follow(self.average, self.g, min(self.options.ema, steps_g / (steps_g + 10)))
        return torch.stack([loss_d, loss_g, *hits]).detach()

    def _fit_d(self, number: int, real: Tensor, fake: Tensor, label: Tensor, z: Tensor) -> tuple[Tensor, list[Tensor]]:
        """One step of D. Returns its loss, and the shares of real and of fake features whose class D gets right."""
        options = self.options
        with self.precision:
            both = self.d.judge(augmented(torch.cat([real, fake]), options.augment))
        of_real, of_fake = both.as_float32().halves()
        loss = self.gan.loss_d(of_real, of_fake, label, z, options)
        self.adam_d.zero_grad()
        torch.autograd.backward(loss)
        hits = [(self.gan.class_logits(seen).argmax(1) == label).float().mean() for seen in (of_real, of_fake)]
        del both, of_real, of_fake
        if options.gp:
            share = torch.rand(len(real), 1, 1, 1, device=real.device)
            slope = self._slopes(torch.lerp(fake, real, share), label)
            torch.autograd.backward(options.gp * ((slope + 1e-12).sqrt() - 1).square().mean())
        if options.r1 and number % LAZY == 0:
            torch.autograd.backward(LAZY * options.r1 / 2 * self._slopes(real, label).mean())
        self.adam_d.step()
        return loss.detach(), hits

    def _fit_g(self, fake: Tensor, label: Tensor, z: Tensor) -> Tensor:
        """One step of G. Returns its loss."""
        self.d.requires_grad_(False)
        with self.precision:
            seen = self.d.judge(augmented(fake, self.options.augment))
        loss = self.gan.loss_g(seen.as_float32(), label, z, self.options)
        self.adam_g.zero_grad()
        torch.autograd.backward(loss)
        self.adam_g.step()
        for weight in self.weights_d:
            weight.requires_grad_(True)
        return loss.detach()

    def _slopes(self, maps: Tensor, label: Tensor) -> Tensor:
        """The squared gradient [n] of the penalised output with respect to each map."""
        with self.precision:
            seen = self.d.judge(maps.requires_grad_()).as_float32()
            (slope,) = torch.autograd.grad(self.gan.penalised(seen, label).sum(), maps, create_graph=True)
            return slope.square().sum(dim=(1, 2, 3))


def augmented(maps: Tensor, share: float) -> Tensor:
    """Maps [n, C, H, W], a share of them shifted by up to an eighth of each side and with a hole half as wide and high.

    Zhao et al. 2020, DiffAugment: translation and cutout. Each map has its own shift and hole.
    """
    if not share:
        return maps
    n, moved = len(maps), maps
    hole = torch.ones((), dtype=torch.bool, device=maps.device)
    for axis, side in enumerate(maps.shape[2:], start=2):
        place = torch.arange(side, device=maps.device)
        shape = [n, 1, 1, 1]
        shape[axis] = side
        source = place - torch.randint(-(side // 8), side // 8 + 1, (n, 1), device=maps.device)
        inside = ((source >= 0) & (source < side)).view(shape)
        moved = moved.gather(axis, source.clamp(0, side - 1).view(shape).expand_as(moved)) * inside
        middle = torch.randint(0, side + 1, (n, 1), device=maps.device)
        hole = hole & ((place - middle).abs() <= side // 4).view(shape)
    chosen = torch.rand(n, 1, 1, 1, device=maps.device) < share
    return torch.where(chosen, moved * ~hole, maps)


@torch.no_grad()
def _begin_from_components(g: GANGenerator, features: FeatureSource, scale: Tensor) -> None:
    """Set G's last layer to the principal components of the real features' patches, so that noise looks like them.

    One more channel is 1 where the features are not 0.
    """
    last = g.layers[-1]  # type: ignore[index]
    assert isinstance(last, nn.ConvTranspose2d)
    side, kernels = patch(features.shape), last.weight.shape[0]
    inverse = tumour_statistics.inverse_scale(scale)
    drawn = []  # a few patches of each map, read one by one: a map of the largest tap takes 7 MB
    for index in evenly_spaced(len(features), 256):
        scaled = torch.from_numpy(features.batch(np.array([index]))) * inverse
        scaled = torch.cat([scaled, (scaled.sum(dim=1, keepdim=True) > 0).float()], dim=1)
        patches = F.unfold(scaled, side, stride=side)[0].T
        drawn.append(patches[torch.randperm(len(patches))[:PATCHES]])
    cells = torch.cat(drawn)
    middle = cells.mean(dim=0)
    rank = min(kernels, *cells.shape)
    _, spread, axes = torch.pca_lowrank(cells - middle, q=rank, center=False)
    last.weight.zero_()
    last.weight[:rank] = (axes * spread / len(cells) ** 0.5).T.reshape(rank, *last.weight.shape[1:])
    assert last.bias is not None
    last.bias.copy_(middle.view(features.shape[0] + 1, -1).mean(dim=1))


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights and of the batch norms' statistics; 0: a copy."""
    for mean, now in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(now, 1 - decay)

"""The loop that the GANs share: a step of the discriminator D, then one of the generator G (equations 1 and 2)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from gliaflow_plugins.contracts import FeatureSource, Fitted, Progress
from gliaflow_plugins.features import SCALE_SAMPLES, channel_scale
from gliaflow_plugins.gan import GAN, GANOptions, Seen
from gliaflow_plugins.generators.acgan import PaperOptions
from gliaflow_plugins.networks.gan_networks import Discriminator, Generator, Statistics, paper, patch, patched, summary

Draw = Callable[[int], NDArray[np.int64]]
LAZY = 4  # the gradient penalty every so many steps, so many times as strong (Karras et al. 2020)
PATCHES = 16  # of a map, of 256 maps, for the principal components
REPORTS = 20  # a run without epochs is told of, and kept, so many times


@dataclass(frozen=True)
class Setup:
    """What is fitted, and on what. ``draw``: the samples of a step; ``every``: steps between reports."""

    g: Generator
    d: Discriminator
    draw: Draw
    steps: int
    every: int


def patches(gan: GAN, features: FeatureSource, options: GANOptions, seed: int) -> Setup:
    """Networks that see a map as patches, and samples of each class equally often."""
    members = class_members(features)

    def draw(step: int) -> NDArray[np.int64]:
        """Synthetic labels follow the real ones, so D cannot tell them by the class."""
        rng = np.random.default_rng([seed, step])
        classes = rng.integers(len(members), size=options.batch)
        return np.array([members[label][rng.integers(len(members[label]))] for label in classes])

    scale = torch.from_numpy(channel_scale(features))
    known, label = real_statistics(features, _inverse(scale))
    statistics = Statistics(known)
    g, d = patched(gan, features.shape, len(members), options, gan.code(options), scale, statistics)
    _begin_from_components(g, features, scale)
    if gan.pretrained:
        fit_grade(d.grade, statistics.standardised(known), label)
    return Setup(g, d, draw, options.steps, max(1, options.steps // REPORTS))


def as_in_the_paper(gan: GAN, features: FeatureSource, options: PaperOptions, seed: int) -> Setup:
    """The paper's networks, and epochs of all samples in random order."""
    classes = len(class_members(features))
    every = -(-len(features) // options.batch)

    def draw(step: int) -> NDArray[np.int64]:
        epoch, within = divmod(step - 1, every)
        order = np.random.default_rng([seed, epoch]).permutation(len(features))
        return order[within * options.batch : (within + 1) * options.batch]

    scale = torch.from_numpy(channel_scale(features))
    g, d = paper(gan, features.shape, classes, options.nz, options.ngf, options.ndf, options.dropout, scale)
    return Setup(g, d, draw, every * options.epochs, every)


def train(
    gan: GAN,
    features: FeatureSource,
    options: Any,
    *,
    seed: int,
    device: str,
    progress: Progress | None,
    checkpoint: Path | None,
) -> Fitted:
    """Fit a variant. See ``GeneratorVariant.fit``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = gan.setup(features, options, seed)
        return _fit(gan, features, made, options, seed, device, progress, checkpoint)


def _fit(
    gan: GAN,
    features: FeatureSource,
    made: Setup,
    options: Any,
    seed: int,
    device: str,
    progress: Progress | None,
    checkpoint: Path | None,
) -> Fitted:
    if made.steps < options.critic_steps:
        raise ValueError(f"steps: {made.steps} is below critic_steps: the generator would not be fitted")
    g, d = made.g.to(device).train(), made.d.to(device).train()
    average = copy.deepcopy(g).eval().requires_grad_(False)
    betas = (options.beta1, options.beta2)
    of_g = torch.optim.Adam(g.parameters(), lr=options.lr, betas=betas)
    learnt = [weight for weight in d.parameters() if weight.requires_grad]
    of_d = torch.optim.Adam(learnt, lr=options.lr * options.ttur, betas=betas)
    kept = {"g": g, "d": d, "average": average, "of_g": of_g, "of_d": of_d}
    history: list[dict[str, float]] = []
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        for name, part in kept.items():
            part.load_state_dict(state[name])  # type: ignore[attr-defined]
        history = state["history"]
    precision = _mixed_precision(device)
    figures: list[Tensor] = []
    for step in range(len(history) * made.every + 1, made.steps + 1):
        torch.manual_seed(seed * 1_000_003 + step)  # all chance is of the step, so that a resumed run is the same
        picked = made.draw(step)
        real = torch.from_numpy(features.batch(picked)).to(device) * d.inverse
        label = torch.from_numpy(features.labels[picked]).to(device)
        z = torch.randn(len(picked), options.nz).to(device)
        plays = step % options.critic_steps == 0
        with precision, torch.set_grad_enabled(plays):
            fake = g.scaled(z, label).float()

        with precision:
            both = d.judge(augmented(torch.cat([real, fake.detach()]), options.augment))
        of_real, of_fake = _halves(both)
        loss_d = gan.loss_d(of_real, of_fake, label, z, options)
        of_d.zero_grad()
        torch.autograd.backward(loss_d)
        hits = [(gan.class_logits(half).argmax(1) == label).float().mean() for half in (of_real, of_fake)]
        del both, of_real, of_fake  # a batch of the largest tap is 0.1 GB each time it is held
        if options.gp:
            with precision:
                share = torch.rand(len(real), 1, 1, 1, device=real.device)
                slope = _slopes(gan, d, torch.lerp(fake.detach(), real, share), label)
            torch.autograd.backward(options.gp * ((slope + 1e-12).sqrt() - 1).square().mean())
        if options.r1 and step % LAZY == 0:
            with precision:
                slope = _slopes(gan, d, real, label)
            torch.autograd.backward(LAZY * options.r1 / 2 * slope.mean())
        of_d.step()
        del real

        figures.append(torch.stack([loss_d, torch.zeros_like(loss_d), *hits]).detach())
        if plays:
            d.requires_grad_(False)
            with precision:
                seen = d.judge(augmented(fake, options.augment))
            loss_g = gan.loss_g(_float(seen), label, z, options)
            of_g.zero_grad()
            torch.autograd.backward(loss_g)
            of_g.step()
            for weight in learnt:
                weight.requires_grad_(True)
            ago = step // options.critic_steps
            _follow(average, g, min(options.ema, ago / (ago + 10)))
            figures[-1][1] = loss_g.detach()
            del seen, loss_g
        del fake, loss_d
        if step % made.every == 0:
            names = ("loss_d", "loss_g", "accuracy_real", "accuracy_fake")
            table = torch.stack(figures)
            played = [number // options.critic_steps for number in (step - len(table), step)]
            table[:, 1] *= len(table) / max(1, played[1] - played[0])
            history.append(dict(zip(names, table.mean(0).tolist(), strict=True)))
            figures = []
            if checkpoint is not None:
                part_file = checkpoint.with_name(f"{checkpoint.name}.part")
                torch.save({name: it.state_dict() for name, it in kept.items()} | {"history": history}, part_file)  # type: ignore[attr-defined]
                part_file.replace(checkpoint)
            if progress is not None:
                progress(len(history), made.steps // made.every, history[-1])
    for layer in list(d.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight")  # their norm is part of the weights from here on
    return Fitted(options.nz, average.cpu(), d.cpu().eval(), history)


def augmented(maps: Tensor, share: float) -> Tensor:
    """Maps [n, C, H, W], a share of them shifted by up to an eighth of each side and with a hole half as wide and high.

    Zhao et al. 2020, DiffAugment: translation and cutout, each map by chance of its own.
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


def _halves(both: Seen) -> tuple[Seen, Seen]:
    """Of the real features and of the synthetic ones, as float32."""
    parts = {
        each.name: (value.float(),) * 2 if each.name == "proxies" else value.float().chunk(2)
        for each in fields(both)
        for value in [getattr(both, each.name)]
    }
    return Seen(**{name: part[0] for name, part in parts.items()}), Seen(**{n: part[1] for n, part in parts.items()})


def _float(seen: Seen) -> Seen:
    return Seen(**{each.name: getattr(seen, each.name).float() for each in fields(seen)})


def fit_grade(grade: nn.Linear, told: Tensor, label: Tensor) -> None:
    """Fit what tells the class to the statistics of real samples, each class weighed alike, and leave it at that."""
    weight = 1 / torch.bincount(label)
    optimiser = torch.optim.LBFGS(grade.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(grade(told), label, weight.float()) + 0.01 * grade.weight.square().sum()
        torch.autograd.backward(value)
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    grade.requires_grad_(False)


def class_members(features: FeatureSource) -> list[NDArray[np.int64]]:
    """The samples of each class. Raises ValueError where a class has none."""
    members = [np.flatnonzero(features.labels == label) for label in range(len(features.classes))]
    if not all(map(len, members)):
        counts = dict(zip(features.classes, map(len, members), strict=True))
        raise ValueError(f"a class has no sample: {counts}")
    return members


@torch.no_grad()
def real_statistics(features: FeatureSource, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Statistics [m, 3C] and classes [m] of 1,024 samples at most, evenly spaced, of maps times ``inverse``."""
    some = np.unique(np.linspace(0, len(features) - 1, SCALE_SAMPLES).astype(np.int64))
    parts = [some[at : at + 16] for at in range(0, len(some), 16)]
    known = torch.cat([summary(torch.from_numpy(features.batch(part)) * inverse) for part in parts])
    return known, torch.from_numpy(features.labels[some])


@torch.no_grad()
def _begin_from_components(g: Generator, features: FeatureSource, scale: Tensor) -> None:
    """Set the last layer to the principal components of the real features' patches, so that noise looks like them.

    One channel more than theirs says where they are not 0.
    """
    last = g.layers[-1]  # type: ignore[index]
    assert isinstance(last, nn.ConvTranspose2d)
    side, kernels = patch(features.shape), last.weight.shape[0]
    some = np.unique(np.linspace(0, len(features) - 1, 256).astype(np.int64))
    inverse = _inverse(scale)
    drawn = []  # a few patches of each map: a map of the largest tap alone takes 7 MB
    for index in some:
        scaled = torch.from_numpy(features.batch(np.array([index]))) * inverse
        scaled = torch.cat([scaled, (scaled.sum(dim=1, keepdim=True) > 0).float()], dim=1)
        each = F.unfold(scaled, side, stride=side)[0].T
        drawn.append(each[torch.randperm(len(each))[:PATCHES]])
    cells = torch.cat(drawn)
    middle = cells.mean(dim=0)
    rank = min(kernels, *cells.shape)
    _, spread, axes = torch.pca_lowrank(cells - middle, q=rank, center=False)
    last.weight.zero_()
    last.weight[:rank] = (axes * spread / len(cells) ** 0.5).T.reshape(rank, *last.weight.shape[1:])
    assert last.bias is not None
    last.bias.copy_(middle.view(features.shape[0] + 1, -1).mean(dim=1))


def _slopes(gan: GAN, d: Discriminator, maps: Tensor, label: Tensor) -> Tensor:
    """The squared gradient of what is penalised with respect to each map [n]."""
    judged = gan.penalised(_float(d.judge(maps.requires_grad_())), label)
    (slope,) = torch.autograd.grad(judged.sum(), maps, create_graph=True)
    return slope.square().sum(dim=(1, 2, 3))


def _inverse(scale: Tensor) -> Tensor:
    """1 / ``scale`` [1, C, 1, 1]; 0 for a channel that is always 0."""
    return torch.where(scale > 0, 1 / scale.clamp_min(1e-12), 0).view(1, -1, 1, 1)


def _mixed_precision(device: str) -> torch.autocast:
    """bfloat16 for convolutions where the device computes in it faster: CUDA, CPUs with AVX-512 BF16 or AMX."""
    kind = torch.device(device).type
    able = torch.cuda.is_bf16_supported() if kind == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(kind, torch.bfloat16, enabled=bool(able))


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights and of the batch norms' statistics; 0: a copy."""
    for mean, now in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(now, 1 - decay)

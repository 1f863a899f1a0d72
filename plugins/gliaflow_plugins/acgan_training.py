"""The loop that ``acgan`` and ``acgan-paper`` share: a step of D and a step of G, as in equations 1 and 2."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gliaflow_plugins.acgan import ACGANOptions, PaperOptions
from gliaflow_plugins.acgan_networks import Discriminator, Generator, Statistics, paper, patch, patched, summary
from gliaflow_plugins.generators import SCALE_SAMPLES, FeatureSource, Fitted, Progress, channel_scale

Draw = Callable[[int], NDArray[np.int64]]
LAZY = 4  # the gradient penalty every so many steps, so many times as strong (Karras et al. 2020)
PATCHES = 16  # of a map, of 256 maps, for the principal components
REPORTS = 20  # a run without epochs is told of, and kept, so many times


@dataclass(frozen=True)
class Loop:
    """How the two networks are fitted. ``draw``: the samples of a step; ``every``: steps between reports."""

    draw: Draw
    steps: int
    every: int
    nz: int
    lr: float
    betas: tuple[float, float]
    hinge: bool = False  # and the class learnt from real features; else the paper's cross-entropies
    r1: float = 0.0
    ema: float = 0.0
    class_weight: float = 1.0  # of G's class loss


def train(
    features: FeatureSource,
    options: ACGANOptions,
    *,
    seed: int,
    device: str,
    progress: Progress | None,
    checkpoint: Path | None,
) -> Fitted:
    """Fit ``acgan``. See ``GeneratorVariant.fit``."""
    members = _members(features)

    def draw(step: int) -> NDArray[np.int64]:
        """Each class equally often: synthetic labels follow the real ones, so D cannot tell them by the class."""
        rng = np.random.default_rng([seed, step])
        classes = rng.integers(len(members), size=options.batch)
        return np.array([members[label][rng.integers(len(members[label]))] for label in classes])

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        scale = torch.from_numpy(channel_scale(features))
        g, d = patched(
            features.shape, len(members), options.nz, options.ngf, options.ndf, scale, _statistics(features, scale)
        )
        _begin_from_components(g, features, scale)
        loop = Loop(
            draw,
            steps=options.steps,
            every=max(1, options.steps // REPORTS),
            nz=options.nz,
            lr=options.lr,
            betas=(options.beta1, options.beta2),
            hinge=True,
            r1=options.r1,
            ema=options.ema,
            class_weight=options.class_weight,
        )
        return _fit(features, g, d, loop, seed=seed, device=device, progress=progress, checkpoint=checkpoint)


def train_paper(
    features: FeatureSource,
    options: PaperOptions,
    *,
    seed: int,
    device: str,
    progress: Progress | None,
    checkpoint: Path | None,
) -> Fitted:
    """Fit ``acgan-paper``. See ``GeneratorVariant.fit``."""
    classes = len(_members(features))
    every = -(-len(features) // options.batch)

    def draw(step: int) -> NDArray[np.int64]:
        epoch, within = divmod(step - 1, every)
        order = np.random.default_rng([seed, epoch]).permutation(len(features))
        return order[within * options.batch : (within + 1) * options.batch]

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        scale = torch.from_numpy(channel_scale(features))
        g, d = paper(features.shape, classes, options.nz, options.ngf, options.ndf, options.dropout, scale)
        loop = Loop(
            draw,
            steps=every * options.epochs,
            every=every,
            nz=options.nz,
            lr=options.lr,
            betas=(options.beta1, options.beta2),
        )
        return _fit(features, g, d, loop, seed=seed, device=device, progress=progress, checkpoint=checkpoint)


def _fit(
    features: FeatureSource,
    g: Generator,
    d: Discriminator,
    loop: Loop,
    *,
    seed: int,
    device: str,
    progress: Progress | None,
    checkpoint: Path | None,
) -> Fitted:
    g, d = g.to(device).train(), d.to(device).train()
    average = copy.deepcopy(g).eval().requires_grad_(False)
    of_g, of_d = (torch.optim.Adam(network.parameters(), lr=loop.lr, betas=loop.betas) for network in (g, d))
    kept = {"g": g, "d": d, "average": average, "of_g": of_g, "of_d": of_d}
    history: list[dict[str, float]] = []
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        for name, part in kept.items():
            part.load_state_dict(state[name])  # type: ignore[attr-defined]
        history = state["history"]
    precision = _mixed_precision(device)
    figures: list[Tensor] = []
    for step in range(len(history) * loop.every + 1, loop.steps + 1):
        torch.manual_seed(seed * 1_000_003 + step)  # all chance is of the step, so that a resumed run is the same
        picked = loop.draw(step)
        real = torch.from_numpy(features.batch(picked)).to(device) * d.inverse
        label = torch.from_numpy(features.labels[picked]).to(device)
        with precision:
            fake = g.scaled(torch.randn(len(picked), loop.nz).to(device), label).float()

        # D maximises L_S + L_C (equations 1 and 2), on real and synthetic features.
        with precision:
            source, logits = d.judge(torch.cat([real, fake.detach()]))
        source, logits = source.float(), logits.float()
        of_real, of_fake = source.chunk(2)
        if loop.hinge:
            loss_d = F.relu(1 - of_real).mean() + F.relu(1 + of_fake).mean()
        else:
            loss_d = F.softplus(-of_real).mean() + F.softplus(of_fake).mean()
        if loop.hinge:  # what a class is, real features alone tell: taught by synthetic ones too, D follows G
            loss_d = loss_d + F.cross_entropy(logits[: len(label)], label)
        else:
            loss_d = loss_d + 2 * F.cross_entropy(logits, label.repeat(2))
        of_d.zero_grad()
        torch.autograd.backward(loss_d)
        del source, of_real, of_fake  # a batch of the largest tap is 0.1 GB each time it is held
        if loop.r1 and step % LAZY == 0:
            with precision:
                slope = _slope(d, real)
            torch.autograd.backward(LAZY * loop.r1 / 2 * slope)
        of_d.step()
        del real

        # G maximises L_C − L_S, in the form whose gradient does not vanish while D wins.
        d.requires_grad_(False)
        with precision:
            of_fake, fake_logits = d.judge(fake)
        wanted = -of_fake.float().mean() if loop.hinge else F.softplus(-of_fake.float()).mean()
        loss_g = wanted + loop.class_weight * F.cross_entropy(fake_logits.float(), label)
        of_g.zero_grad()
        torch.autograd.backward(loss_g)
        of_g.step()
        d.requires_grad_(True)
        _follow(average, g, min(loop.ema, step / (step + 10)))

        hits = (logits.argmax(1) == label.repeat(2)).float().view(2, -1).mean(1)
        figures.append(torch.stack([loss_d, loss_g, *hits]).detach())
        del fake, wanted, loss_g, loss_d
        if step % loop.every == 0:
            names = ("loss_d", "loss_g", "accuracy_real", "accuracy_fake")
            history.append(dict(zip(names, torch.stack(figures).mean(0).tolist(), strict=True)))
            figures = []
            if checkpoint is not None:
                part = checkpoint.with_name(f".part-{checkpoint.name}")
                torch.save({name: it.state_dict() for name, it in kept.items()} | {"history": history}, part)  # type: ignore[attr-defined]
                part.replace(checkpoint)
            if progress is not None:
                progress(len(history), loop.steps // loop.every, history[-1])
    return Fitted(loop.nz, average.cpu(), d.cpu().eval(), history)


def _members(features: FeatureSource) -> list[NDArray[np.int64]]:
    """The samples of each class. Raises ValueError where a class has none."""
    members = [np.flatnonzero(features.labels == label) for label in range(len(features.classes))]
    if not all(map(len, members)):
        counts = dict(zip(features.classes, map(len, members), strict=True))
        raise ValueError(f"a class has no sample: {counts}")
    return members


@torch.no_grad()
def _statistics(features: FeatureSource, scale: Tensor) -> Statistics:
    """Standardised over 1,024 of the samples at most, evenly spaced."""
    inverse = _inverse(scale)
    some = np.unique(np.linspace(0, len(features) - 1, SCALE_SAMPLES).astype(np.int64))
    parts = [some[at : at + 16] for at in range(0, len(some), 16)]
    return Statistics(torch.cat([summary(torch.from_numpy(features.batch(part)) * inverse) for part in parts]))


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


def _slope(d: Discriminator, real: Tensor) -> Tensor:
    """The squared gradient of the source logit with respect to a real sample, on average."""
    source, _ = d.judge(real.requires_grad_())
    (slope,) = torch.autograd.grad(source.float().sum(), real, create_graph=True)
    return slope.square().sum(dim=(1, 2, 3)).mean()


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

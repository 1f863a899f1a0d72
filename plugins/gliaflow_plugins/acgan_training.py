"""Networks, losses and training loop of ``acgan``, after section 3.2 of the paper.

Generator and discriminator climb and descend the same ladder of sizes, 1 → 4 → 8 → 15 at the paper's tap: three
hidden layers each. Where the source implementation is unsound we depart from it: the class loss is a cross-entropy
on logits (it feeds a softmax to NLLLoss, so that its loss is −p and not −log p), and the generator ends in a ReLU
(its tanh cannot make features that come out of one).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from gliaflow_plugins.acgan import ACGANOptions
from gliaflow_plugins.generators import FeatureSource, Fitted, Progress, channel_scale

Size = tuple[int, int]


def ladder(size: Size) -> list[Size]:
    """From ``size`` [H, W] down by halves, rounded up: 15, 8, 4. At least two steps, and down to 8 or less."""
    sizes = [size]
    while len(sizes) < 3 or max(sizes[-1]) > 8:
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def widths(first: int, sizes: list[Size]) -> list[int]:
    """Kernels at each of the hidden sizes, doubling as they shrink, fourfold at most."""
    return [first * min(2**level, 4) for level in range(len(sizes) - 1)]


class Generator(nn.Module):
    """z [n, nz], label [n] → features [n, C, H, W] ≥ 0, on the scale of the real ones."""

    scale: Tensor

    def __init__(self, shape: tuple[int, int, int], classes: int, nz: int, ngf: int, scale: Tensor) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("scale", scale.view(1, -1, 1, 1))
        sizes = ladder(shape[1:])[::-1]
        kernels = [*widths(ngf, sizes)[::-1], shape[0]]
        layers: list[nn.Module] = [nn.ConvTranspose2d(nz + classes, kernels[0], sizes[0], bias=False)]
        for (narrow, wide), (small, large) in zip(pairwise(kernels), pairwise(sizes), strict=True):
            # A transposed convolution of stride 2 doubles with a kernel of 4, and makes 2n − 1 with one of 3.
            kernel = (4 if large[0] == 2 * small[0] else 3, 4 if large[1] == 2 * small[1] else 3)
            layers += [nn.BatchNorm2d(narrow), nn.LeakyReLU(0.2)]
            layers += [nn.ConvTranspose2d(narrow, wide, kernel, stride=2, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        code = torch.cat([z, F.one_hot(label, self.classes).to(z.dtype)], dim=1)
        return F.relu(self.layers(code[:, :, None, None])) * self.scale


class Discriminator(nn.Module):
    """features [n, C, H, W] → source logit [n] (positive: real), class logits [n, K]."""

    inverse: Tensor

    def __init__(self, shape: tuple[int, int, int], classes: int, ndf: int, dropout: float, scale: Tensor) -> None:
        super().__init__()
        inverse = torch.where(scale > 0, 1 / scale.clamp_min(1e-12), 0)  # a channel always 0 says nothing
        self.register_buffer("inverse", inverse.view(1, -1, 1, 1))
        sizes = ladder(shape[1:])
        kernels = [shape[0], *widths(ndf, sizes)]
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(kernels):
            layers += [parametrizations.spectral_norm(nn.Conv2d(wide, narrow, 3, stride=2, padding=1))]
            layers += [nn.LeakyReLU(0.2), nn.Dropout2d(dropout)]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        flat = kernels[-1] * sizes[-1][0] * sizes[-1][1]
        self.source = parametrizations.spectral_norm(nn.Linear(flat, 1))
        self.label = nn.Linear(flat, classes)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.layers(features * self.inverse)
        return self.source(hidden)[:, 0], self.label(hidden)


def train(
    features: FeatureSource, options: ACGANOptions, *, seed: int, device: str, progress: Progress | None
) -> Fitted:
    """Alternate one step of D and one of G, as in equations 1 and 2. See ``GeneratorVariant.fit``."""
    counts = np.bincount(features.labels, minlength=len(features.classes))
    if not counts.all():
        raise ValueError(f"a class has no sample: {dict(zip(features.classes, counts.tolist(), strict=True))}")
    started = time.monotonic()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shape, classes, scale = features.shape, len(features.classes), torch.from_numpy(channel_scale(features))
        generator = Generator(shape, classes, options.nz, options.ngf, scale).to(device)
        discriminator = Discriminator(shape, classes, options.ndf, options.dropout, scale).to(device)
        average = copy.deepcopy(generator).eval()
        betas = (options.beta1, options.beta2)
        of_g = torch.optim.Adam(generator.parameters(), lr=options.generator_lr, betas=betas)
        of_d = torch.optim.Adam(discriminator.parameters(), lr=options.discriminator_lr, betas=betas)
        rng = np.random.default_rng(seed)
        history: list[dict[str, float]] = []
        step = 0
        for epoch in range(1, options.epochs + 1):
            figures: list[Tensor] = []
            for indices in balanced_batches(features.labels, options.batch, rng):
                real = torch.from_numpy(features.batch(indices)).to(device)
                label = torch.from_numpy(features.labels[indices]).to(device)
                z = torch.randn(len(indices), options.nz, device=device)
                fake = generator(z, label)

                # D maximises L_S + L_C. Real and synthetic go through it in one pass: it has no batch statistics.
                source, logits = discriminator(torch.cat([real, fake.detach()]))
                real_source, fake_source = source.chunk(2)
                loss_d = bce(real_source, 1.0) + bce(fake_source, 0.0)  # −L_S, equation 1
                loss_d = loss_d + 2 * F.cross_entropy(logits, label.repeat(2))  # −L_C, equation 2
                update(of_d, loss_d)

                # G maximises L_C − L_S, in the form whose gradient does not vanish while D wins.
                discriminator.requires_grad_(False)
                fake_source, fake_logits = discriminator(fake)
                loss_g = bce(fake_source, 1.0) + F.cross_entropy(fake_logits, label)
                update(of_g, loss_g)
                discriminator.requires_grad_(True)
                step += 1
                follow(average, generator, min(options.ema, step / (step + 10)))

                hits = (logits.argmax(1) == label.repeat(2)).float().view(2, -1).mean(1)
                figures.append(torch.stack([loss_d, loss_g, *hits]).detach())
            names = ("loss_d", "loss_g", "accuracy_real", "accuracy_fake")
            history.append(dict(zip(names, torch.stack(figures).mean(0).tolist(), strict=True)))
            if progress is not None:
                progress(epoch, options.epochs, history[-1])
            if options.max_seconds is not None and time.monotonic() - started > options.max_seconds:
                break
    for module in discriminator.modules():
        if parametrize.is_parametrized(module):  # what is served has plain weights
            parametrize.remove_parametrizations(module, "weight")
    return Fitted(options.nz, average.cpu(), discriminator.cpu().eval(), history)


def balanced_batches(labels: NDArray[np.int64], size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """An epoch's batches of indices, each class drawn equally often.

    Synthetic labels follow the real ones. Were the real ones unbalanced, D would learn the rare class less; were the
    two distributions different, D could tell real from fake by the class alone.
    """
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for _ in range(max(1, len(labels) // size)):
        drawn = rng.integers(len(members), size=size)
        yield np.array([rng.choice(members[label]) for label in drawn])


def bce(logits: Tensor, target: float) -> Tensor:
    """Binary cross-entropy of the source against one target for all."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def update(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down ``loss``."""
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimiser.step()


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights and of the batch norms' statistics."""
    for mean, now in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(now, 1 - decay)

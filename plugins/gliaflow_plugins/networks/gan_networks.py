"""Networks of the GANs. Within the loop features are over their channels' scale (``scaled``)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gliaflow_plugins.gan import GAN, GANOptions, Seen
from gliaflow_plugins.networks.tumour_statistics import inverse_spread, pooled

Size = tuple[int, int]
Shape = tuple[int, int, int]


class Generator(nn.Module):
    """z [n, nz], label [n] → features [n, C, H, W] ≥ 0, on the scale of the real ones.

    ``layers`` give C channels, or one more that says where features are: cropped ones are 0 outside the tumour, and
    not nearly 0.
    """

    scale: Tensor

    def __init__(self, layers: nn.Module, classes: int, scale: Tensor) -> None:
        super().__init__()
        self.layers, self.classes = layers, classes
        self.register_buffer("scale", scale.view(1, -1, 1, 1))

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return self.scaled(z, label) * self.scale

    def scaled(self, z: Tensor, label: Tensor) -> Tensor:
        """The features over their channels' scale."""
        code = torch.cat([z, F.one_hot(label, self.classes).to(z.dtype)], dim=1)
        made: Tensor = self.layers(code[:, :, None, None])
        channels = self.scale.shape[1]
        maps, occupied = made[:, :channels], made[:, channels:]
        if not occupied.shape[1]:
            return F.relu(maps)
        return F.relu(maps * (2 * occupied - 0.5).clamp(0, 1))


class Discriminator(nn.Module):
    """features [n, C, H, W] → source logit [n] (positive: real), class logits [n, K].

    It sees the maps and, with ``statistics``, what the grader tells the class by.
    """

    inverse: Tensor

    def __init__(
        self,
        gan: GAN,
        layers: nn.Module,
        flat: int,
        classes: int,
        scale: Tensor,
        statistics: Statistics | None = None,
        code: int = 0,
    ) -> None:
        super().__init__()
        inverse = torch.where(scale > 0, 1 / scale.clamp_min(1e-12), 0)  # a channel always 0 says nothing
        self.register_buffer("inverse", inverse.view(1, -1, 1, 1))
        self.gan, self.layers, self.statistics = gan, layers, statistics
        seen, told = flat, 3 * len(scale)
        if statistics is not None:
            self.mix = nn.Sequential(nn.Linear(told, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2))
            self.grade = nn.Linear(told, classes)
            seen += 64
        self.source, self.classes = nn.Linear(seen, 1), nn.Linear(seen, gan.outputs * classes)
        self.embedding, self.found = _head(seen, gan.embedded), _head(seen, code)
        self.proxies = nn.Parameter(torch.randn(classes, gan.embedded))
        if gan.spectral:
            for part in (self.layers, self.mix, self.source, self.classes, self.embedding):
                part.apply(_spectral)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.judge(features * self.inverse)
        return seen.source, self.gan.class_logits(seen)

    def judge(self, scaled: Tensor) -> Seen:
        """What there is to say of features over their channels' scale."""
        hidden = self.layers(scaled)
        if self.statistics is not None:
            told = self.statistics(scaled)
            hidden = torch.cat([hidden, self.mix(told)], dim=1)
        classes = self.classes(hidden)
        return Seen(
            self.source(hidden)[:, 0],
            classes,
            self.grade(told) if self.statistics is not None else classes,
            F.normalize(self.embedding(hidden), dim=1),
            F.normalize(self.proxies, dim=1),
            self.found(hidden),
        )


class Statistics(nn.Module):
    """features [n, C, H, W] → ``pooled`` [n, 3C], standardised as a sample [m, 3C] of real ones says.

    Of a map of more than 32×32 or so, means over small squares are pooled: at 120×120 a step's gradients alone would
    take a gigabyte more.
    """

    mean: Tensor
    inverse: Tensor

    def __init__(self, sample: Tensor) -> None:
        super().__init__()
        std, mean = torch.std_mean(sample, dim=0, correction=0)
        self.register_buffer("mean", mean)
        self.register_buffer("inverse", inverse_spread(std))

    def forward(self, features: Tensor) -> Tensor:
        return self.standardised(summary(features))

    def standardised(self, told: Tensor) -> Tensor:
        return (told - self.mean) * self.inverse


def summary(features: Tensor) -> Tensor:
    """``pooled``, of a coarser map where there are more than 63 positions along its shorter side."""
    square = min(features.shape[2:]) // 32
    return pooled(F.avg_pool2d(features, square) if square > 1 else features)


def patched(
    gan: GAN, shape: Shape, classes: int, options: GANOptions, code: int, scale: Tensor, statistics: Statistics
) -> tuple[Generator, Discriminator]:
    """Networks that take a map for 15×15 patches or so: the same work at 15×15 as at 120×120."""
    channels, height, width = shape
    nz, ngf, ndf = options.nz, options.ngf, options.ndf
    side = patch(shape)
    sizes = ladder((height // side, width // side))
    g = [ngf * min(2**level, 4) for level in range(len(sizes))][::-1]
    layers: list[nn.Module] = [nn.ConvTranspose2d(nz + classes, g[0], sizes[-1], bias=False)]
    for (narrow, wide), (small, large) in zip(pairwise(g), pairwise(sizes[::-1]), strict=True):
        layers += [nn.BatchNorm2d(narrow), nn.LeakyReLU(0.2), _doubled(narrow, wide, small, large)]
    layers += [nn.BatchNorm2d(g[-1]), nn.LeakyReLU(0.2), nn.ConvTranspose2d(g[-1], channels + 1, side, stride=side)]
    d = [ndf * min(2**level, 4) for level in range(len(sizes))]
    seen: list[nn.Module] = [nn.Conv2d(channels, d[0], side, stride=side), nn.LeakyReLU(0.2)]
    for wide, narrow in pairwise(d):
        seen += [nn.Conv2d(wide, narrow, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
    flat = d[-1] * sizes[-1][0] * sizes[-1][1]
    return (
        Generator(nn.Sequential(*layers), classes, scale),
        Discriminator(gan, nn.Sequential(*seen, nn.Flatten()), flat, classes, scale, statistics, code),
    )


def paper(
    gan: GAN, shape: Shape, classes: int, nz: int, ngf: int, ndf: int, dropout: float, scale: Tensor
) -> tuple[Generator, Discriminator]:
    """The paper's: three hidden layers each at 15×15 (1 → 4 → 8 → 15 and back), kernels drawn from N(0, 0.02)."""
    sizes = ladder(shape[1:], least=3)
    levels = range(len(sizes) - 1)
    g = [*[ngf * min(2**level, 4) for level in levels][::-1], shape[0]]
    layers: list[nn.Module] = [nn.ConvTranspose2d(nz + classes, g[0], sizes[-1], bias=False)]
    for (narrow, wide), (small, large) in zip(pairwise(g), pairwise(sizes[::-1]), strict=True):
        layers += [nn.BatchNorm2d(narrow), nn.LeakyReLU(0.2), _doubled(narrow, wide, small, large)]
    d = [shape[0], *[ndf * min(2**level, 4) for level in levels]]
    seen: list[nn.Module] = []
    for wide, narrow in pairwise(d):
        seen += [nn.Conv2d(wide, narrow, 3, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Dropout(dropout)]
    flat = d[-1] * sizes[-1][0] * sizes[-1][1]
    networks = (
        Generator(nn.Sequential(*layers), classes, scale),
        Discriminator(gan, nn.Sequential(*seen, nn.Flatten()), flat, classes, scale),
    )
    for network in networks:
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, 0, 0.02)
    return networks


def patch(shape: Shape) -> int:
    """The side of a patch: a map has about 16×16 of them; 1 at 15×15, 2 at 30×30, 8 at 120×120."""
    side = max(1, round(min(shape[1:]) / 16))
    while shape[1] % side or shape[2] % side:
        side -= 1
    return side


def ladder(size: Size, least: int = 2) -> list[Size]:
    """From ``size`` [H, W] down by halves, rounded up, to 4 or less: 15, 8, 4. At least ``least`` steps."""
    sizes = [size]
    while len(sizes) < least or max(sizes[-1]) > 4:
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def _doubled(channels_in: int, channels_out: int, small: Size, large: Size) -> nn.ConvTranspose2d:
    # A transposed convolution of stride 2 doubles with a kernel of 4, and makes 2n − 1 with one of 3.
    kernel = (4 if large[0] == 2 * small[0] else 3, 4 if large[1] == 2 * small[1] else 3)
    return nn.ConvTranspose2d(channels_in, channels_out, kernel, stride=2, padding=1)


class _Nothing(nn.Module):
    def forward(self, seen: Tensor) -> Tensor:
        return seen[:, :0]


def _head(seen: int, outputs: int) -> nn.Module:
    return nn.Linear(seen, outputs) if outputs else _Nothing()


def _spectral(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.utils.parametrizations.spectral_norm(layer)

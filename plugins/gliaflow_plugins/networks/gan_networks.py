"""Networks of the GANs. During a fit, features are divided by their channels' scale (``scaled``)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gliaflow_plugins.gan_losses import GANLosses, Seen
from gliaflow_plugins.networks.tumour_statistics import StandardisedStatistics, inverse_scale

Size = tuple[int, int]
Shape = tuple[int, int, int]


class GANGenerator(nn.Module):
    """z [n, nz], label [n] → features [n, C, H, W] ≥ 0, on the scale of the real ones.

    ``layers`` output C channels, or one more that says where features are: outside the tumour, cropped features are
    exactly 0.
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
        output: Tensor = self.layers(code[:, :, None, None])
        channels = self.scale.shape[1]
        maps, occupied = output[:, :channels], output[:, channels:]
        if not occupied.shape[1]:
            return F.relu(maps)
        return F.relu(maps * (2 * occupied - 0.5).clamp(0, 1))


class Discriminator(nn.Module):
    """features [n, C, H, W] → source logit [n] (positive: real), class logits [n, K].

    ``layers`` map features to [n, ``width``]. With ``statistics``, the discriminator also sees what the grader sees.
    """

    inverse: Tensor

    def __init__(
        self,
        gan: GANLosses,
        layers: nn.Module,
        width: int,
        classes: int,
        scale: Tensor,
        statistics: StandardisedStatistics | None = None,
        code: int = 0,
    ) -> None:
        super().__init__()
        self.register_buffer("inverse", inverse_scale(scale))
        self.gan, self.layers, self.statistics = gan, layers, statistics
        if statistics is not None:
            count = 3 * len(scale)
            self.mix = nn.Sequential(nn.Linear(count, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2))
            self.grade = nn.Linear(count, classes)
            width += 64
        self.source, self.classes = nn.Linear(width, 1), nn.Linear(width, gan.outputs * classes)
        self.embedding, self.noise_code = _head(width, gan.embedded), _head(width, code)
        self.proxies = nn.Parameter(torch.randn(classes, gan.embedded))
        if gan.spectral:
            for part in (self.layers, self.mix, self.source, self.classes, self.embedding):
                part.apply(_spectral)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.judge(features * self.inverse)
        return seen.source, self.gan.class_logits(seen)

    def judge(self, scaled: Tensor) -> Seen:
        """All outputs for features over their channels' scale."""
        hidden = self.layers(scaled)
        if self.statistics is not None:
            statistics = self.statistics(scaled)
            hidden = torch.cat([hidden, self.mix(statistics)], dim=1)
        classes = self.classes(hidden)
        return Seen(
            self.source(hidden)[:, 0],
            classes,
            self.grade(statistics) if self.statistics is not None else classes,
            F.normalize(self.embedding(hidden), dim=1),
            F.normalize(self.proxies, dim=1),
            self.noise_code(hidden),
        )


def patch_networks(
    gan: GANLosses, shape: Shape, classes: int, options: Any, scale: Tensor, statistics: StandardisedStatistics
) -> tuple[GANGenerator, Discriminator]:
    """Networks that see a map as about 15×15 patches: the same work at 15×15 as at 120×120."""
    channels, height, width = shape
    side = patch(shape)
    sizes = ladder((height // side, width // side))
    narrow = _widths(options.ngf, len(sizes))[::-1]
    g = [*_up(options.nz + classes, narrow, sizes), nn.BatchNorm2d(narrow[-1]), nn.LeakyReLU(0.2)]
    g += [nn.ConvTranspose2d(narrow[-1], channels + 1, side, stride=side)]
    wide = _widths(options.ndf, len(sizes))
    d = [nn.Conv2d(channels, wide[0], side, stride=side), nn.LeakyReLU(0.2), *_down(wide)]
    flat, code = wide[-1] * sizes[-1][0] * sizes[-1][1], gan.code(options)
    return (
        GANGenerator(nn.Sequential(*g), classes, scale),
        Discriminator(gan, nn.Sequential(*d, nn.Flatten()), flat, classes, scale, statistics, code),
    )


def paper_networks(
    gan: GANLosses, shape: Shape, classes: int, options: Any, scale: Tensor
) -> tuple[GANGenerator, Discriminator]:
    """The paper's networks: three hidden layers each at 15×15 (1 → 4 → 8 → 15 and back), kernels from N(0, 0.02)."""
    sizes = ladder(shape[1:], least=3)
    g = _up(options.nz + classes, [*_widths(options.ngf, len(sizes) - 1)[::-1], shape[0]], sizes)
    wide = [shape[0], *_widths(options.ndf, len(sizes) - 1)]
    d = _down(wide, options.dropout)
    flat = wide[-1] * sizes[-1][0] * sizes[-1][1]
    networks = (
        GANGenerator(nn.Sequential(*g), classes, scale),
        Discriminator(gan, nn.Sequential(*d, nn.Flatten()), flat, classes, scale),
    )
    for network in networks:
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, 0, 0.02)
    return networks


def patch(shape: Shape) -> int:
    """The side of a patch, of which a map has about 16×16: 1 at 15×15, 2 at 30×30, 8 at 120×120."""
    side = max(1, round(min(shape[1:]) / 16))
    while shape[1] % side or shape[2] % side:
        side -= 1
    return side


def ladder(size: Size, least: int = 2) -> list[Size]:
    """Sizes from ``size`` [H, W] down to 4 or less, each half of the one before, rounded up: 15, 8, 4."""
    sizes = [size]
    while len(sizes) < least or max(sizes[-1]) > 4:
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def _widths(first: int, count: int) -> list[int]:
    return [first * min(2**level, 4) for level in range(count)]


def _up(inputs: int, widths: list[int], sizes: list[Size]) -> list[nn.Module]:
    """Layers from 1×1 through ``sizes`` backwards; ``widths`` are their channels."""
    layers: list[nn.Module] = [nn.ConvTranspose2d(inputs, widths[0], sizes[-1], bias=False)]
    for (wide, narrow), (small, large) in zip(pairwise(widths), pairwise(sizes[::-1]), strict=True):
        # A transposed convolution of stride 2 makes 2n positions with a kernel of 4, and 2n − 1 with one of 3.
        kernel = (4 if large[0] == 2 * small[0] else 3, 4 if large[1] == 2 * small[1] else 3)
        up = nn.ConvTranspose2d(wide, narrow, kernel, stride=2, padding=1)
        layers += [nn.BatchNorm2d(wide), nn.LeakyReLU(0.2), up]
    return layers


def _down(widths: list[int], dropout: float | None = None) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
        layers += [] if dropout is None else [nn.Dropout(dropout)]
    return layers


class _Nothing(nn.Module):
    """A head without outputs."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden[:, :0]


def _head(inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs) if outputs else _Nothing()


def _spectral(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.utils.parametrizations.spectral_norm(layer)

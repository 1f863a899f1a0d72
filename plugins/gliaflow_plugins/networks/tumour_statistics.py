"""Statistics of feature maps within the tumour: each channel's mean, standard deviation and maximum.

The default grader and the discriminators of the GANs judge the class by these statistics.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gliaflow_plugins.contracts import FeatureSource
from gliaflow_plugins.features import SCALE_SAMPLES, evenly_spaced, parts

EDGE = 0.1  # share of a map's largest sum over channels; positions below it are outside the tumour
DEAD = 1e-3  # share of the largest standard deviation; a statistic that varies less is rounding, and is left out


def pooled(features: Tensor) -> Tensor:
    """features [n, C, H, W] → mean, standard deviation and maximum of each channel over the tumour [n, 3C].

    The tumour is where the channels' sum exceeds a share of its maximum, and not merely 0: a generator's maps may be
    nearly 0 outside it. In a map that is not cropped, that is nearly everywhere.
    """
    total = features.sum(dim=1, keepdim=True)
    inside = (total > EDGE * total.amax(dim=(2, 3), keepdim=True)).to(features.dtype)
    count = inside.sum(dim=(2, 3)).clamp_min(1)
    mean = (features * inside).sum(dim=(2, 3)) / count
    centred = (features - mean[:, :, None, None]) * inside
    spread = ((centred * centred).sum(dim=(2, 3)) / count + 1e-12).sqrt()
    return torch.cat([mean, spread, features.amax(dim=(2, 3))], dim=1)


def pooled_coarsely(features: Tensor) -> Tensor:
    """``pooled``, of a coarser map where a map has more than 63 positions along its shorter side.

    At 120×120 the gradients of one step would otherwise take a gigabyte more.
    """
    square = min(features.shape[2:]) // 32
    return pooled(F.avg_pool2d(features, square) if square > 1 else features)


def inverse_spread(std: Tensor) -> Tensor:
    """1 / ``std`` of statistics [d]; 0 for statistics that hardly vary."""
    alive = std > max(float(std.max()) * DEAD, 1e-6)
    return torch.where(alive, 1 / std, 0)


def inverse_scale(scale: Tensor) -> Tensor:
    """1 / ``scale`` [C] as [1, C, 1, 1]; 0 for a channel that was always 0 in training, whatever it contains later."""
    return torch.where(scale > 0, 1 / scale.clamp_min(1e-12), 0).view(1, -1, 1, 1)


@torch.no_grad()
def of_samples(features: FeatureSource, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Statistics [m, 3C] and classes [m] of at most 1,024 samples, evenly spaced, of maps times ``inverse``."""
    some = evenly_spaced(len(features), SCALE_SAMPLES)
    maps = (torch.from_numpy(features.batch(part)) * inverse for part in parts(some, 16))
    return torch.cat(list(map(pooled_coarsely, maps))), torch.from_numpy(features.labels[some])


class StandardisedStatistics(nn.Module):
    """features [n, C, H, W] → ``pooled_coarsely`` [n, 3C], standardised by a sample of real ones [m, 3C]."""

    mean: Tensor
    inverse: Tensor

    def __init__(self, sample: Tensor) -> None:
        super().__init__()
        std, mean = torch.std_mean(sample, dim=0, correction=0)
        self.register_buffer("mean", mean)
        self.register_buffer("inverse", inverse_spread(std))

    def forward(self, features: Tensor) -> Tensor:
        return self.standardised(pooled_coarsely(features))

    def standardised(self, table: Tensor) -> Tensor:
        return (table - self.mean) * self.inverse


def fit_class_layer(layer: nn.Linear, table: Tensor, label: Tensor) -> None:
    """Fit ``layer`` to the classes of standardised statistics [m, 3C], each class weighed the same, and freeze it."""
    weight = (1 / torch.bincount(label)).float()

    def loss() -> Tensor:
        return F.cross_entropy(layer(table), label, weight) + 0.01 * layer.weight.square().sum()

    minimise(loss, layer, 100)
    layer.requires_grad_(False)


def minimise(loss: Callable[[], Tensor], layer: nn.Linear, iterations: int) -> None:
    """Fit ``layer`` by L-BFGS, with at most so many iterations."""
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        torch.autograd.backward(value)
        return value

    optimiser.step(closure)  # type: ignore[no-untyped-call]

"""The networks of ``plain``: noise → scores of principal components → features. With torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta
from sklearn.covariance import ledoit_wolf
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from gliaflow_plugins.contracts import FeatureSource
from gliaflow_plugins.features import channel_scale, patients_of
from gliaflow_plugins.networks.gan_networks import Statistics, summary
from gliaflow_plugins.networks.gan_training import class_members, fit_grade, real_statistics

CHUNK = 64
MOST_BYTES = 2**31  # of the samples that components are found on
QUANTILES = 1001  # of the share by which two samples are mixed


class Space(nn.Module):
    """Principal components of maps over each channel's root mean square: scores [n, k] → features [n, C, H, W].

    Nothing that comes back is below the smallest value seen, 0 after a ReLU.
    """

    mean: Tensor
    components: Tensor
    scale: Tensor
    low: Tensor

    def __init__(self, features: FeatureSource, dims: int, seed: int) -> None:
        super().__init__()
        if len(features) < 2:
            raise ValueError(f"{len(features)} samples have no principal components; at least 2 are needed")
        self.shape = features.shape
        width = int(np.prod(features.shape))
        count = min(len(features), max(2, MOST_BYTES // (4 * width)))
        some = np.linspace(0, len(features) - 1, count).astype(np.int64)
        self.register_buffer("scale", torch.from_numpy(channel_scale(features)).view(1, -1, 1, 1))
        table = torch.empty(count, width)
        low = torch.tensor(torch.inf)
        for start in range(0, count, CHUNK):
            part = some[start : start + CHUNK]
            table[start : start + CHUNK] = self._over(features, part)
            low = torch.minimum(low, (table[start : start + CHUNK].view(-1, *features.shape) * self.scale).min())
        self.register_buffer("low", low)
        self.register_buffer("mean", table.mean(dim=0))
        table -= self.mean
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _, _, axes = torch.svd_lowrank(table, q=min(dims, count - 1, width), niter=2)
        self.register_buffer("components", axes.T.contiguous())

    def scores(self, features: FeatureSource) -> Tensor:
        """[n, k], read a few at a time."""
        every = np.arange(len(features))
        parts = [
            (self._over(features, every[start : start + CHUNK]) - self.mean) @ self.components.T
            for start in range(0, len(every), CHUNK)
        ]
        return torch.cat(parts)

    def forward(self, scores: Tensor) -> Tensor:
        maps = (scores @ self.components + self.mean).view(-1, *self.shape) * self.scale
        return torch.maximum(maps, self.low)

    def _over(self, features: FeatureSource, index: NDArray[np.int64]) -> Tensor:
        maps = torch.from_numpy(features.batch(index))
        return torch.where(self.scale > 0, maps / self.scale.clamp_min(1e-12), 0).flatten(1)


@dataclass(frozen=True, eq=False)
class Known:
    """Training samples in the order of class and patient.

    ``scores`` [N, k]; ``labels``, ``patients`` [N]; ``starts`` and ``counts`` [K], of each class's samples.
    """

    space: Space
    scores: Tensor
    labels: NDArray[np.int64]
    patients: NDArray[np.str_]
    starts: Tensor
    counts: Tensor


_known: WeakKeyDictionary[FeatureSource, dict[tuple[int, int], Known]] = WeakKeyDictionary()


def known_of(features: FeatureSource, dims: int, seed: int) -> Known:
    """Found once for all variants that are fitted on the same samples. Raises ValueError: a class has none."""
    class_members(features)
    kept = _known.setdefault(features, {})
    if (dims, seed) not in kept:
        space = Space(features, dims, seed)
        patients = patients_of(features)
        order = np.lexsort((patients, features.labels))
        counts = np.bincount(features.labels, minlength=len(features.classes))
        kept[dims, seed] = Known(
            space,
            space.scores(features)[order],
            features.labels[order],
            patients[order],
            torch.from_numpy(np.concatenate([[0], np.cumsum(counts)[:-1]])),
            torch.from_numpy(counts),
        )
    return kept[dims, seed]


class Scores(nn.Module):
    """z [n, nz], label [n] → scores [n, k]."""

    nz: int


class GaussianScores(Scores):
    """Each class's mean, and the root of its shrunk covariance times noise."""

    mean: Tensor
    root: Tensor

    def __init__(self, known: Known) -> None:
        super().__init__()
        scores, labels = known.scores.numpy().astype(np.float64), known.labels
        means = np.stack([scores[labels == label].mean(axis=0) for label in range(len(known.counts))])
        # Components differ in spread by orders of magnitude, and it is to one spread for all that the estimate
        # shrinks: so each goes over its spread within the classes, what sets them apart left out.
        spread = (scores - means[labels]).std(axis=0)
        spread[spread == 0] = 1
        roots = []
        for label, mean in enumerate(means):
            own = (scores[labels == label] - mean) / spread
            covariance = ledoit_wolf(own, assume_centered=True)[0] if len(own) > 1 else np.zeros((own.shape[1],) * 2)
            values, vectors = np.linalg.eigh(covariance)
            roots.append(spread[:, None] * vectors * np.sqrt(np.maximum(values, 0)))
        self.nz = scores.shape[1]
        self.register_buffer("mean", torch.from_numpy(means).float())
        self.register_buffer("root", torch.from_numpy(np.stack(roots)).float())

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return self.mean[label] + (self.root[label] @ z[:, :, None])[:, :, 0]


class _Pairs(Scores, ABC):
    """Two samples of a class, and the share of the first."""

    nz = 3
    scores: Tensor
    starts: Tensor
    counts: Tensor

    def __init__(self, known: Known) -> None:
        super().__init__()
        self.register_buffer("scores", known.scores)
        self.register_buffer("starts", known.starts)
        self.register_buffer("counts", known.counts)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        chance = (1 + torch.erf(z / 2**0.5)) / 2  # uniform: the noise is Gaussian
        first = self.starts[label] + _drawn(chance[:, 0], self.counts[label])
        second, share = self.other(first, label, chance[:, 1]), self.share(chance[:, 2])[:, None]
        return self.scores[second] + share * (self.scores[first] - self.scores[second])

    @abstractmethod
    def other(self, first: Tensor, label: Tensor, chance: Tensor) -> Tensor:
        """The second sample of each pair [n]."""

    def share(self, chance: Tensor) -> Tensor:
        return chance


class NeighbourScores(_Pairs):
    """The second is one of the nearest to the first."""

    nearest: Tensor

    def __init__(self, known: Known, neighbours: int) -> None:
        super().__init__(known)
        found = np.arange(len(known.labels))[:, None].repeat(neighbours, axis=1)  # a sample alone: itself
        for start, count in zip(known.starts.tolist(), known.counts.tolist(), strict=True):
            few = min(neighbours, count - 1)
            if few:
                own = known.scores[start : start + count].numpy()
                near = NearestNeighbors(n_neighbors=few).fit(own).kneighbors(return_distance=False)
                found[start : start + count] = start + near[:, np.arange(neighbours) % few]
        self.register_buffer("nearest", torch.from_numpy(found))

    def other(self, first: Tensor, label: Tensor, chance: Tensor) -> Tensor:
        width = torch.full_like(first, self.nearest.shape[1])
        return self.nearest[first].gather(1, _drawn(chance, width)[:, None])[:, 0]


class MixedScores(_Pairs):
    """The second is of another patient, where the class has one."""

    first_of: Tensor
    count_of: Tensor
    quantiles: Tensor

    def __init__(self, known: Known, alpha: float) -> None:
        super().__init__(known)
        whose = np.char.add(np.char.add(known.labels.astype(np.str_), "/"), known.patients)
        _, first, of, count = np.unique(whose, return_index=True, return_inverse=True, return_counts=True)
        alone = count[of] == known.counts.numpy()[known.labels]
        self.register_buffer("first_of", torch.from_numpy(np.where(alone, len(of), first[of])))
        self.register_buffer("count_of", torch.from_numpy(np.where(alone, 0, count[of])))
        table = beta.ppf(np.linspace(0, 1, QUANTILES), alpha, alpha)
        self.register_buffer("quantiles", torch.from_numpy(table).float())

    def other(self, first: Tensor, label: Tensor, chance: Tensor) -> Tensor:
        own = self.count_of[first]
        found = self.starts[label] + _drawn(chance, self.counts[label] - own)
        return found + torch.where(found >= self.first_of[first], own, torch.zeros_like(own))

    def share(self, chance: Tensor) -> Tensor:
        return self.quantiles[(chance * (QUANTILES - 1)).round().long()]


class Generator(nn.Module):
    """z [n, nz], label [n] → features [n, C, H, W]."""

    def __init__(self, drawn: Scores, space: Space) -> None:
        super().__init__()
        self.drawn, self.space = drawn, space

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        maps: Tensor = self.space(self.drawn(z, label))
        return maps


class Critic(nn.Module):
    """Classes by the statistics that the grader sees, fitted to the real features; source: how usual those are."""

    inverse: Tensor

    def __init__(self, features: FeatureSource) -> None:
        super().__init__()
        scale = torch.from_numpy(channel_scale(features))
        self.register_buffer("inverse", torch.where(scale > 0, 1 / scale.clamp_min(1e-12), 0).view(1, -1, 1, 1))
        known, labels = real_statistics(features, self.inverse)
        self.statistics = Statistics(known)
        self.grade = nn.Linear(known.shape[1], len(features.classes))
        nn.init.zeros_(self.grade.weight)
        nn.init.zeros_(self.grade.bias)
        fit_grade(self.grade, self.statistics.standardised(known), labels)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        told = self.statistics.standardised(summary(features * self.inverse))
        return 1 - told.square().mean(dim=1), self.grade(told)


def _drawn(chance: Tensor, count: Tensor) -> Tensor:
    """An index below ``count`` [n] by ``chance`` [n] from 0 to 1."""
    return torch.minimum((chance * count).long(), count - 1)

"""Networks of the baseline generators: noise → scores of principal components → features. And their critic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta
from sklearn.covariance import ledoit_wolf
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from gliaflow_plugins.contracts import FeatureSource, Indices
from gliaflow_plugins.features import channel_scale, class_members, evenly_spaced, parts, patients_of
from gliaflow_plugins.networks import tumour_statistics

CHUNK = 64
MOST_BYTES = 2**31  # limit of the table of samples that components are computed from
QUANTILES = 1001  # of the distribution of the share by which two samples are mixed


class ComponentSpace(nn.Module):
    """Principal components of maps over each channel's root mean square: scores [n, k] → features [n, C, H, W].

    No feature is below the smallest real value, which is 0 after a ReLU.
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
        some = evenly_spaced(len(features), max(2, MOST_BYTES // (4 * width)))
        self.register_buffer("scale", torch.from_numpy(channel_scale(features)).view(1, -1, 1, 1))
        table = torch.empty(len(some), width)
        low = torch.tensor(torch.inf)
        for start, part in zip(range(0, len(some), CHUNK), parts(some, CHUNK), strict=True):
            rows = table[start : start + CHUNK]
            rows[:] = self._scaled(features, part)
            low = torch.minimum(low, (rows.view(-1, *features.shape) * self.scale).min())
        self.register_buffer("low", low)
        self.register_buffer("mean", table.mean(dim=0))
        table -= self.mean
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _, _, axes = torch.svd_lowrank(table, q=min(dims, len(some) - 1, width), niter=2)
        self.register_buffer("components", axes.T.contiguous())

    def scores(self, features: FeatureSource) -> Tensor:
        """[n, k], read in parts."""
        every = parts(np.arange(len(features)), CHUNK)
        return torch.cat([(self._scaled(features, part) - self.mean) @ self.components.T for part in every])

    def forward(self, scores: Tensor) -> Tensor:
        maps = (scores @ self.components + self.mean).view(-1, *self.shape) * self.scale
        return torch.maximum(maps, self.low)

    def _scaled(self, features: FeatureSource, indices: Indices) -> Tensor:
        maps = torch.from_numpy(features.batch(indices))
        return torch.where(self.scale > 0, maps / self.scale.clamp_min(1e-12), 0).flatten(1)


@dataclass(frozen=True, eq=False)
class TrainingScores:
    """The scores of the training samples, in the order of class and patient.

    Parameters
    ----------
    scores: [N, k].
    labels, patients: [N].
    starts, counts: [K], the first position of each class, and the number of its samples.
    """

    space: ComponentSpace
    scores: Tensor
    labels: NDArray[np.int64]
    patients: NDArray[np.str_]
    starts: Tensor
    counts: Tensor


_scores: WeakKeyDictionary[FeatureSource, dict[tuple[int, int], TrainingScores]] = WeakKeyDictionary()


def training_scores(features: FeatureSource, dims: int, seed: int) -> TrainingScores:
    """Computed once for all variants that are fitted on these features. Raises ValueError if a class has no sample."""
    class_members(features)
    kept = _scores.setdefault(features, {})
    if (dims, seed) not in kept:
        space = ComponentSpace(features, dims, seed)
        patients = patients_of(features)
        order = np.lexsort((patients, features.labels))
        counts = np.bincount(features.labels, minlength=len(features.classes))
        kept[dims, seed] = TrainingScores(
            space,
            space.scores(features)[order],
            features.labels[order],
            patients[order],
            torch.from_numpy(np.concatenate([[0], np.cumsum(counts)[:-1]])),
            torch.from_numpy(counts),
        )
    return kept[dims, seed]


class ScoreSampler(nn.Module):
    """z [n, nz], label [n] → scores [n, k]."""

    nz: int


class GaussianSampler(ScoreSampler):
    """Each class's mean, plus the root of its shrunk covariance times noise."""

    mean: Tensor
    root: Tensor

    def __init__(self, training: TrainingScores, options: Any) -> None:
        super().__init__()
        scores, labels = training.scores.numpy().astype(np.float64), training.labels
        means = np.stack([scores[labels == label].mean(axis=0) for label in range(len(training.counts))])
        # The estimate shrinks towards one spread for all components, but these differ in spread by orders of
        # magnitude. So each is divided by its spread within the classes, which leaves out the classes' distance.
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


class _MemberSampler(ScoreSampler):
    """Draws training samples of a class."""

    nz = 3
    scores: Tensor
    starts: Tensor
    counts: Tensor

    def __init__(self, training: TrainingScores) -> None:
        super().__init__()
        self.register_buffer("scores", training.scores)
        self.register_buffer("starts", training.starts)
        self.register_buffer("counts", training.counts)

    def member(self, label: Tensor, chance: Tensor) -> Tensor:
        """The index [n] of a sample of each class in ``label`` [n], by ``chance`` [n] from 0 to 1."""
        return self.starts[label] + index_below(self.counts[label], chance)


class TransferSampler(_MemberSampler):
    """A sample of the class, plus the difference of two samples of the class that has most."""

    common: Tensor

    def __init__(self, training: TrainingScores, options: Any) -> None:
        super().__init__(training)
        self.register_buffer("common", training.counts.argmax())

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        chance = uniform(z)
        common = self.common.expand_as(label)
        own, one, other = map(self.member, (label, common, common), chance.T)
        return self.scores[own] + self.scores[one] - self.scores[other]


class _PairSampler(_MemberSampler, ABC):
    """A point between two samples of a class."""

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        chance = uniform(z)
        first = self.member(label, chance[:, 0])
        second, share = self.other(first, label, chance[:, 1]), self.share(chance[:, 2])[:, None]
        return self.scores[second] + share * (self.scores[first] - self.scores[second])

    @abstractmethod
    def other(self, first: Tensor, label: Tensor, chance: Tensor) -> Tensor:
        """The second sample of each pair [n]."""

    def share(self, chance: Tensor) -> Tensor:
        """The share [n] of the first sample."""
        return chance


class NeighbourSampler(_PairSampler):
    """The second sample is one of the nearest to the first."""

    nearest: Tensor

    def __init__(self, training: TrainingScores, options: Any) -> None:
        super().__init__(training)
        neighbours = options.neighbours
        nearest = np.arange(len(training.labels))[:, None].repeat(neighbours, axis=1)  # a class's only sample: itself
        for start, count in zip(training.starts.tolist(), training.counts.tolist(), strict=True):
            few = min(neighbours, count - 1)
            if few:
                own = training.scores[start : start + count].numpy()
                near = NearestNeighbors(n_neighbors=few).fit(own).kneighbors(return_distance=False)
                nearest[start : start + count] = start + near[:, np.arange(neighbours) % few]
        self.register_buffer("nearest", torch.from_numpy(nearest))

    def other(self, first: Tensor, label: Tensor, chance: Tensor) -> Tensor:
        width = torch.full_like(first, self.nearest.shape[1])
        return self.nearest[first].gather(1, index_below(width, chance)[:, None])[:, 0]


class MixupSampler(_PairSampler):
    """The second sample is of another patient, if the class has one; the share has a beta distribution."""

    first_of: Tensor
    count_of: Tensor
    quantiles: Tensor

    def __init__(self, training: TrainingScores, options: Any) -> None:
        super().__init__(training)
        owners = np.char.add(np.char.add(training.labels.astype(np.str_), "/"), training.patients)
        _, first, owner, count = np.unique(owners, return_index=True, return_inverse=True, return_counts=True)
        alone = count[owner] == training.counts.numpy()[training.labels]
        self.register_buffer("first_of", torch.from_numpy(np.where(alone, len(owner), first[owner])))
        self.register_buffer("count_of", torch.from_numpy(np.where(alone, 0, count[owner])))
        table = beta.ppf(np.linspace(0, 1, QUANTILES), options.alpha, options.alpha)
        self.register_buffer("quantiles", torch.from_numpy(table).float())

    def other(self, first: Tensor, label: Tensor, chance: Tensor) -> Tensor:
        own = self.count_of[first]
        index = self.starts[label] + index_below(self.counts[label] - own, chance)
        return index + torch.where(index >= self.first_of[first], own, torch.zeros_like(own))

    def share(self, chance: Tensor) -> Tensor:
        return self.quantiles[(chance * (QUANTILES - 1)).round().long()]


class Chain(nn.Module):
    """z [n, nz], label [n] → ``first`` → ``second`` → features [n, C, H, W]."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        features: Tensor = self.second(self.first(z, label))
        return features


class StatisticsCritic(nn.Module):
    """Class logits from the statistics that the grader uses; the source logit is high where these are usual."""

    inverse: Tensor

    def __init__(self, features: FeatureSource) -> None:
        super().__init__()
        self.register_buffer("inverse", tumour_statistics.inverse_scale(torch.from_numpy(channel_scale(features))))
        table, labels = tumour_statistics.of_samples(features, self.inverse)
        self.statistics = tumour_statistics.StandardisedStatistics(table)
        self.grade = nn.Linear(table.shape[1], len(features.classes))
        nn.init.zeros_(self.grade.weight)
        nn.init.zeros_(self.grade.bias)
        tumour_statistics.fit_class_layer(self.grade, self.statistics.standardised(table), labels)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        statistics = self.statistics.standardised(tumour_statistics.pooled_coarsely(features * self.inverse))
        return 1 - statistics.square().mean(dim=1), self.grade(statistics)


def uniform(z: Tensor) -> Tensor:
    """Gaussian noise as a share from 0 to 1."""
    return (1 + torch.erf(z / 2**0.5)) / 2


def index_below(count: Tensor, chance: Tensor) -> Tensor:
    """An index below ``count`` [n], by ``chance`` [n] from 0 to 1."""
    return torch.minimum((chance * count).long(), count - 1)

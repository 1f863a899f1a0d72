"""The default grader: a linear layer on the statistics of the features within the tumour.

The paper's CNN (``cnn``) must learn from a few dozen patients which positions matter. Where features are cropped to
the mask, the positions that are not 0 are the tumour. Each channel's mean, standard deviation and maximum there keep
most of the information, and a penalised linear layer on them needs far fewer patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gliaflow_plugins.contracts import FeatureSource
from gliaflow_plugins.features import Joined, parts
from gliaflow_plugins.networks.tumour_statistics import inverse_spread, minimise, pooled

PENALTY = 0.01  # of the squared weights, beside a patient's mean loss
CHUNK = 64


class PooledClassifier(nn.Module):
    """features [n, C, H, W] → logit [n]; positive: the first class (HGG)."""

    mean: Tensor
    inverse: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("inverse", inverse_spread(std))
        self.head = nn.Linear(len(mean), 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.grade(pooled(features))

    def grade(self, statistics: Tensor) -> Tensor:
        """``pooled`` features [n, 3C] → logit [n]."""
        logit: Tensor = self.head((statistics - self.mean) * self.inverse)
        return logit[:, 0]


_tables: WeakKeyDictionary[FeatureSource, NDArray[np.float32]] = WeakKeyDictionary()


def statistics(features: FeatureSource) -> NDArray[np.float32]:
    """``pooled`` of all samples [N, 3C], read in parts, once for all classifiers that are fitted on this source."""
    if isinstance(features, Joined):
        return np.concatenate([statistics(source) for source in features.sources])
    if features not in _tables:
        rows = [
            pooled(torch.from_numpy(features.batch(part))).numpy() for part in parts(np.arange(len(features)), CHUNK)
        ]
        _tables[features] = np.concatenate(rows) if rows else np.zeros((0, 3 * features.shape[0]), np.float32)
    return _tables[features]


def sample_weights(patients: Sequence[str] | NDArray[np.str_]) -> NDArray[np.float64]:
    """The weight of each sample [n]: 1 over the patient's number of samples.

    A sample without a patient (an empty name: a synthetic one) has the mean weight of the others.
    """
    names, index, count = np.unique(np.asarray(patients, dtype=np.str_), return_inverse=True, return_counts=True)
    weight: NDArray[np.float64] = 1 / count[index]
    synthetic = names[index] == ""
    weight[synthetic] = weight[~synthetic].mean() if (~synthetic).any() else 1.0
    return weight


def fit_pooled(
    table: NDArray[np.float32],
    labels: NDArray[np.int64],
    patients: Sequence[str] | NDArray[np.str_],
    *,
    weights: Literal["balanced"] | None = None,
    penalty: float = PENALTY,
) -> PooledClassifier:
    """Fit the linear layer on the statistics of training samples, by L-BFGS to the optimum: no seed, no epochs.

    Each patient weighs the same, however many slices there are. A sample without a patient (an empty name: a synthetic
    one) weighs as much as the average sample.

    Parameters
    ----------
    table: [n, 3C].
    labels: [n]; 0 is the positive class.
    patients: [n] names.
    weights: "balanced": both classes weigh the same.

    Raises
    ------
    ValueError: the samples are all of one class.
    """
    if len(np.unique(labels)) < 2:
        raise ValueError(f"the training samples are all of one class: {np.bincount(labels).tolist()}")
    weight = sample_weights(patients)
    if weights == "balanced":
        total = np.bincount(labels, weight, minlength=2)
        weight = weight / total[labels]
    share = torch.from_numpy((weight / weight.sum()).astype(np.float32))
    values = torch.from_numpy(table)
    target = torch.from_numpy((labels == 0).astype(np.float32))
    mean = (values * share[:, None]).sum(dim=0)
    std = ((values - mean).square() * share[:, None]).sum(dim=0).sqrt()
    module = PooledClassifier(mean, std)

    def loss() -> Tensor:
        each = F.binary_cross_entropy_with_logits(module.grade(values), target, reduction="none")
        return (each * share).sum() + penalty * module.head.weight.square().sum() / 2

    minimise(loss, module.head, 300)
    return module.eval()

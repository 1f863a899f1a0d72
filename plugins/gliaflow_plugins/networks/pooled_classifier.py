"""The default grader: what the features are like within the tumour, and a linear layer on that.

The paper's CNN (``cnn``) has to learn from a few dozen patients where to look. Where features are cropped to the
mask, the positions that are not 0 throughout are the tumour: over those, each channel's mean, standard deviation and
maximum say most of what there is to know, and a penalised linear layer on them needs far fewer patients.
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
from gliaflow_plugins.features import Joined
from gliaflow_plugins.networks.tumour_statistics import inverse_spread, pooled

PENALTY = 0.01  # of the squared weights, beside the mean loss of a patient
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


_known: WeakKeyDictionary[FeatureSource, NDArray[np.float32]] = WeakKeyDictionary()


def statistics(features: FeatureSource) -> NDArray[np.float32]:
    """``pooled`` of all samples [N, 3C], read a few at a time, and once for all classifiers on the same source."""
    if isinstance(features, Joined):
        return np.concatenate([statistics(source) for source in features.sources])
    if features not in _known:
        every = np.arange(len(features))
        parts = [
            pooled(torch.from_numpy(features.batch(every[start : start + CHUNK]))).numpy()
            for start in range(0, len(every), CHUNK)
        ]
        _known[features] = np.concatenate(parts) if parts else np.zeros((0, 3 * features.shape[0]), np.float32)
    return _known[features]


def fit_pooled(
    known: NDArray[np.float32],
    labels: NDArray[np.int64],
    patients: Sequence[str],
    *,
    weights: Literal["balanced"] | None = None,
    penalty: float = PENALTY,
) -> PooledClassifier:
    """Fit the linear layer on ``pooled`` training features, by L-BFGS to the optimum: no seed, no epochs.

    Each patient counts alike, however many slices there are; a sample of no patient (an empty name: a synthetic one)
    counts as much as the average sample.

    Parameters
    ----------
    known: [n, 3C]. labels: [n], 0 is the positive class. patients: [n] names.
    weights: "balanced" lets both classes count alike.

    Raises
    ------
    ValueError: the samples are all of one class.
    """
    if len(np.unique(labels)) < 2:
        raise ValueError(f"the training samples are all of one class: {np.bincount(labels).tolist()}")
    names, of, count = np.unique(np.asarray(patients, dtype=np.str_), return_inverse=True, return_counts=True)
    weight = 1 / count[of]
    made = names[of] == ""
    weight[made] = weight[~made].mean() if (~made).any() else 1.0
    if weights == "balanced":
        total = np.bincount(labels, weight, minlength=2)
        weight = weight / total[labels]
    share = torch.from_numpy((weight / weight.sum()).astype(np.float32))
    table = torch.from_numpy(known)
    target = torch.from_numpy((labels == 0).astype(np.float32))
    middle = (table * share[:, None]).sum(dim=0)
    std = ((table - middle).square() * share[:, None]).sum(dim=0).sqrt()
    module = PooledClassifier(middle, std)
    optimiser = torch.optim.LBFGS(module.head.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        each = F.binary_cross_entropy_with_logits(module.grade(table), target, reduction="none")
        value = (each * share).sum() + penalty * module.head.weight.square().sum() / 2
        torch.autograd.backward(value)
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return module.eval()

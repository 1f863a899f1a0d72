"""The network of ``adapted``: samples of another cohort by class, each channel moved to this cohort's moments."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gliaflow_plugins.contracts import FeatureSource, Indices
from gliaflow_plugins.features import ArrayFeatures, class_members, evenly_spaced, parts
from gliaflow_plugins.networks.principal_components import index_below, uniform

CHUNK = 64
LEAST_SPREAD = 1e-4  # of the largest of a cohort's channels, below which a channel does not vary
MOST_SCALE = 10.0  # by which a channel is stretched, or its inverse
MOST_BYTES = 2**28  # of the samples that are kept


class Bank(nn.Module):
    """z [n, 1], label [n] → features [n, C, H, W]: a sample of the class, moved.

    Parameters
    ----------
    source: the samples.
    features: of the cohort that they are moved to. The class with most samples here shows how the cohorts differ.
    kept: so many samples of each class, evenly spaced; fewer where they would take more than MOST_BYTES.

    Raises
    ------
    ValueError: a class has no sample in ``source`` or in ``features``, or their features have other shapes.
    """

    nz = 1
    samples: Tensor
    starts: Tensor
    counts: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, source: FeatureSource, features: FeatureSource, kept: int) -> None:
        super().__init__()
        if source.shape != features.shape:
            raise ValueError(f"the other cohort's features are {source.shape}, and not {features.shape}")
        here, there = class_members(features), class_members(source)
        common = max(range(len(here)), key=lambda label: len(here[label]))
        (mean, std), (its_mean, its_std) = (
            _moments(*each) for each in ((features, here[common]), (source, there[common]))
        )
        varies = (std > LEAST_SPREAD * std.max()) & (its_std > LEAST_SPREAD * its_std.max())
        ratio = np.divide(std, its_std, out=np.zeros_like(std), where=varies)
        scale = np.where(varies, ratio.clip(1 / MOST_SCALE, MOST_SCALE), 0)  # 0: the mean of the common class here
        kept = max(1, min(kept, MOST_BYTES // (2 * int(np.prod(source.shape)) * len(there))))
        some = [members[evenly_spaced(len(members), kept)] for members in there]
        counts = np.array([len(members) for members in some])
        samples = np.empty((counts.sum(), *source.shape), np.float16)
        for start, part in zip(range(0, len(samples), CHUNK), parts(np.concatenate(some), CHUNK), strict=True):
            samples[start : start + CHUNK] = source.batch(part)
        self.classes = source.classes
        self.register_buffer("samples", torch.from_numpy(samples))
        self.register_buffer("starts", torch.from_numpy(np.cumsum(counts) - counts))
        self.register_buffer("counts", torch.from_numpy(counts))
        self.register_buffer("scale", torch.from_numpy(scale.astype(np.float32)).view(1, -1, 1, 1))
        self.register_buffer("shift", torch.from_numpy((mean - scale * its_mean).astype(np.float32)).view(1, -1, 1, 1))

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        index = self.starts[label] + index_below(self.counts[label], uniform(z[:, 0]))
        return self._moved(self.samples[index].float())

    def moved(self) -> ArrayFeatures:
        """All samples, moved."""
        maps = torch.empty_like(self.samples)
        for start in range(0, len(maps), CHUNK):
            maps[start : start + CHUNK] = self._moved(self.samples[start : start + CHUNK].float())
        labels = np.repeat(np.arange(len(self.counts)), self.counts.numpy())
        return ArrayFeatures(maps.numpy(), labels, self.classes)

    def _moved(self, maps: Tensor) -> Tensor:
        """Outside the mask, cropped features are 0 and stay so. As after a ReLU, none is below 0."""
        inside = maps.abs().amax(dim=1, keepdim=True) > 0
        return torch.where(inside, (maps * self.scale + self.shift).clamp_min(0), maps)


def _moments(features: FeatureSource, indices: Indices) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean and the standard deviation of each channel [C], where features are not cropped away."""
    number, sums, squares = 0, np.zeros(features.shape[0]), np.zeros(features.shape[0])
    for part in parts(indices, CHUNK):
        maps = features.batch(part).astype(np.float64).transpose(1, 0, 2, 3)
        values = maps[:, maps.any(axis=0)]
        number += values.shape[1]
        sums += values.sum(axis=1)
        squares += np.square(values).sum(axis=1)
    mean = sums / max(1, number)
    return mean, np.sqrt(np.maximum(squares / max(1, number) - mean**2, 0))

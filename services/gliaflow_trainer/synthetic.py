"""Synthetic features from fitted networks, accepted by the rule of serving (``gliaflow_runtime.acceptance``)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from gliaflow_plugins.contracts import Fitted, PluginError
from gliaflow_plugins.features import ArrayFeatures
from gliaflow_runtime.acceptance import accept
from numpy.typing import NDArray

BATCH = 64


def shares(labels: NDArray[np.int64], count: int) -> dict[int, int]:
    """``count`` synthetic samples by class: the rare class of ``labels`` until both have as many, then both."""
    have = np.bincount(labels, minlength=2)
    rare = int(have.argmin())
    first = min(count, int(have.max() - have.min()))
    return {rare: first + (count - first + 1) // 2, 1 - rare: (count - first) // 2}


def draw(
    fitted: Fitted, counts: Mapping[int, int], seed: int, classes: tuple[str, ...], judged: bool = True
) -> ArrayFeatures:
    """So many features of each class. Raises PluginError where the critic accepts too few."""
    maps: list[NDArray[np.float16]] = []
    for label, count in counts.items():
        drawn, accepted = synthetic(fitted, label, count, seed + label, judged)
        if len(drawn) < count:
            name = classes[label]
            raise PluginError(f"the critic accepted {accepted:.0%} of the features generated for {name}: too few")
        maps.append(drawn.astype(np.float16))
    return ArrayFeatures(np.concatenate(maps), np.repeat(list(counts), [len(drawn) for drawn in maps]), classes)


def synthetic(
    fitted: Fitted, label: int, count: int, seed: int, judged: bool = True
) -> tuple[NDArray[np.float32], float]:
    """``count`` features [count, C, H, W] of one class, and the share of the drawn features that is accepted.

    There are fewer than ``count`` where hardly any is accepted. Without ``judged``, the critic is not used.
    """
    chance = torch.Generator().manual_seed(seed)

    def batch() -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        features = fitted.generator(torch.randn(BATCH, fitted.nz, generator=chance), torch.full((BATCH,), label))
        return features.numpy(), fitted.critic(features)[1].numpy() if judged else None

    with torch.inference_mode():
        result = accept(batch, label, count)
    return result.features, result.share

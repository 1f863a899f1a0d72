"""Synthetic features from fitted networks, accepted by the rule of serving (``gliaflow_runtime.acceptance``)."""

from __future__ import annotations

import numpy as np
import torch
from gliaflow_plugins.contracts import Fitted
from gliaflow_runtime.acceptance import accept
from numpy.typing import NDArray

BATCH = 64


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

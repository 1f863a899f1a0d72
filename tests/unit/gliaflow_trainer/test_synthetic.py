"""Synthetic features of fitted networks: those that the critic accepts, the same for the same seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gliaflow_plugins.contracts import Fitted  # noqa: E402
from gliaflow_trainer.synthetic import synthetic  # noqa: E402


class Generator(torch.nn.Module):
    """Flat features [2, 3, 3], at the level of the noise."""

    def forward(self, z: Any, label: Any) -> Any:
        return z[:, :1, None, None].expand(-1, 2, 3, 3)


class Critic(torch.nn.Module):
    """Class 0 only if the level is over ``threshold``."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, features: Any) -> Any:
        level = features.mean(dim=(1, 2, 3))
        return level, torch.stack([level - self.threshold, self.threshold - level], dim=1)


def test_features_are_those_that_the_critic_accepts() -> None:
    fitted = Fitted(1, Generator(), Critic(threshold=1))
    features, share = synthetic(fitted, 0, 50, seed=0)
    assert features.shape == (50, 2, 3, 3)
    assert (features > 1).all()
    assert share == pytest.approx(0.16, abs=0.08)
    assert np.array_equal(features, synthetic(fitted, 0, 50, seed=0)[0])
    assert not np.array_equal(features, synthetic(fitted, 0, 50, seed=1)[0])


def test_without_a_judge_all_features_are_taken() -> None:
    features, share = synthetic(Fitted(1, Generator(), Critic(threshold=1)), 0, 50, seed=0, judged=False)
    assert (features < 1).any()
    assert share == 1


def test_a_critic_that_accepts_nothing_gives_no_features() -> None:
    features, share = synthetic(Fitted(1, Generator(), Critic(threshold=100)), 0, 10, seed=0)
    assert features.shape == (0, 2, 3, 3)
    assert share == 0

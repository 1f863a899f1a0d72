"""One rule accepts synthetic features: right class, finite, not empty, and a floor below which drawing ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gliaflow_proto import FP16_MAX
from gliaflow_runtime.acceptance import FLOOR, LEAST_DRAWN, Acceptance, accept


class Drawn:
    """Batches of 20 features, of which the critic puts the first ``right`` into class 1; ``change`` edits a batch."""

    def __init__(self, right: int, change: Any = lambda features: None) -> None:
        self.right, self.change, self.batches = right, change, 0

    def __call__(self) -> tuple[np.ndarray, np.ndarray]:
        features = np.full((20, 2, 3, 3), 1 + self.batches, np.float32)
        self.change(features)
        self.batches += 1
        return features, np.eye(2, dtype=np.float32)[(np.arange(20) < self.right).astype(int)]


def test_only_features_of_the_right_class_are_taken_until_there_are_enough() -> None:
    result = accept(Drawn(3), 1, 7)
    assert result.features[:, 0, 0, 0].tolist() == [1, 1, 1, 2, 2, 2, 3]
    assert (result.drawn, result.taken, result.share) == (60, 9, 0.15)
    assert result.features.dtype == np.float32
    assert accept(Drawn(20), 1, 7, np.float16).features.dtype == np.float16


def test_features_that_are_empty_or_not_finite_are_never_taken() -> None:
    def change(features: np.ndarray) -> None:
        features[0, 1, 2, 2] = np.nan
        features[1, 0] = np.inf
        features[2] = 0

    result = accept(Drawn(5, change), 1, 4)
    assert np.isfinite(result.features).all()
    assert (result.taken, result.drawn, result.not_finite) == (4, 40, 4)


def test_values_stay_within_fp16() -> None:
    result = accept(Drawn(20, lambda features: np.multiply(features, -1e6, out=features)), 1, 2, np.float16)
    assert (result.features == -FP16_MAX).all()


@pytest.mark.parametrize("count", [1, 5000])
def test_drawing_ends_where_less_than_the_floor_is_taken(count: int) -> None:
    result = accept(Drawn(0), 1, count)
    assert (len(result.features), result.share) == (0, 0)
    assert result.drawn == LEAST_DRAWN
    assert result.features.shape == (0, 2, 3, 3)


def test_a_generator_above_the_floor_gives_all_features() -> None:
    """Half of the batches have one right feature in 20."""
    assert FLOOR < 1 / 40

    class Seldom(Drawn):
        def __call__(self) -> tuple[np.ndarray, np.ndarray]:
            self.right = self.batches % 2
            return super().__call__()

    result = accept(Seldom(0), 1, 100)
    assert len(result.features) == 100
    assert result.share == pytest.approx(1 / 40)


def test_without_a_critic_every_class_is_right() -> None:
    result: Acceptance = accept(lambda: (np.ones((20, 1, 2, 2), np.float32), None), 0, 30)
    assert (result.taken, len(result.features)) == (40, 30)


def test_a_batch_is_drawn_even_for_no_features() -> None:
    """Its shape is that of the features, and its share is known."""
    result = accept(Drawn(5), 1, 0)
    assert (result.features.shape, result.share) == ((0, 2, 3, 3), 0.25)

"""Which synthetic features are taken: one rule for serving, for training and for evaluation.

As in the paper (section 4.2.4), "only those whose class the discriminator predicts right". A feature must also be
finite, and not empty: a slice without tumour has no grade.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gliaflow_proto import FP16_MAX
from numpy.typing import NDArray

FLOOR = 0.02  # a generator of which less is taken has not learnt the class
LEAST_DRAWN = 800  # features that are drawn before the floor counts

Draw = Callable[[], tuple[NDArray[np.float32], NDArray[np.float32] | None]]
"""Draws a batch: features [n, C, H, W], and the critic's class logits [n, K]; None: every class counts as right."""


@dataclass(frozen=True)
class Acceptance:
    """``features`` [n, C, H, W] of one class, within the range of fp16, and how many were drawn and taken for them.

    There are fewer than requested where the generator is below the floor.
    """

    features: NDArray[Any]
    drawn: int
    taken: int
    not_finite: int

    @property
    def share(self) -> float:
        """The share of the drawn features that was taken."""
        return self.taken / self.drawn


def accept(draw: Draw, label: int, count: int, dtype: type[np.floating[Any]] = np.float32) -> Acceptance:
    """Draw until ``count`` features are taken, or until the share that is taken turns out to be below ``FLOOR``."""
    kept: list[NDArray[Any]] = []
    drawn = taken = not_finite = 0
    while not kept or (taken < count and (drawn < LEAST_DRAWN or taken >= FLOOR * drawn)):
        features, classes = draw()
        finite = np.isfinite(features).all(axis=(1, 2, 3))
        right = finite & features.any(axis=(1, 2, 3))
        if classes is not None:
            right &= classes.argmax(axis=1) == label
        kept.append(np.clip(features[right], -FP16_MAX, FP16_MAX).astype(dtype))
        drawn, taken = drawn + len(features), taken + int(right.sum())
        not_finite += int((~finite).sum())
    return Acceptance(np.concatenate(kept)[:count], drawn, taken, not_finite)

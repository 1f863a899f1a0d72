"""How good synthetic features are, class by class, compared with real features of other patients.

DISTANCES is the one table of the measures; the schema of ``metrics.json`` and the report read it. All are computed on
pooled features, standardised and projected on at most 64 principal components, both fitted on the real training
features; the unit of length is the root mean square of a component. Each measure compares synthetic → train, and
held-out → train. The latter is the *floor*: the value for real features of patients that no network saw. Both sides
have as many samples, since these measures depend on the number.

Features fitted on the training patients may be nearer to them than the floor; ``nearest`` shows whether that is because
the generator copies them. None of these measures predicts whether training on the features helps (Ravuri and Vinyals
2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gliaflow_evaluation.tables import Entry

Floats = NDArray[np.float64]
Features = NDArray[Any]
Labelled = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Pooled features [n, d] and their labels [n]."""

DIMS = 64
NEAREST = 5  # k of precision, recall, density and coverage, as in Naeem et al. 2020
REPEATS = 10  # draws of equally many samples
SUBSET, SUBSETS = 100, 20  # of KID
OVERSAMPLES = 10  # random directions besides the wanted components


@dataclass(frozen=True, eq=False)
class Pair:
    """Real samples [n, d] and others [m, d] that are compared with them.

    The measures of DISTANCES compute from this. A sample's ball reaches to its k-th nearest neighbour in its own set.

    Raises
    ------
    ValueError: a measure needs balls, and a set has no more than k samples.
    """

    real: Floats
    other: Floats
    seed: int = 0
    k: int = NEAREST

    @cached_property
    def distances(self) -> Floats:
        return _distances(self.real, self.other)

    @cached_property
    def near_real(self) -> NDArray[np.bool_]:
        """Whether each other sample is in each real sample's ball [n, m]."""
        return self.distances < self._reach(self.real)[:, None]

    @cached_property
    def near_other(self) -> NDArray[np.bool_]:
        """Whether each real sample is in each other sample's ball [n, m]."""
        return self.distances < self._reach(self.other)

    def _reach(self, side: Floats) -> Floats:
        if len(side) <= self.k:
            raise ValueError(f"{len(side)} samples: more than {self.k} are needed")
        reach: Floats = np.sort(_distances(side, side), axis=1)[:, self.k]  # [:, 0] is the sample itself
        return reach


@dataclass
class Distance(Entry[Callable[[Pair], float]]):
    """A measure of synthetic features, one class at a time."""

    higher_is_better: bool | None  # None: neither
    needed: int = NEAREST + 1  # samples that both sides must have
    drawn: bool = True  # the mean over REPEATS draws of as many samples of each side; otherwise of all samples, once
    table: ClassVar[dict[str, Distance]] = {}


@Distance("Fréchet distance", False, needed=2)
def frechet(pair: Pair) -> float:
    """Squared Fréchet distance of the two Gaussians (Heusel et al. 2017, Eq. 6).

    The trace of (S₁ S₂)^½ is the sum of the singular values of A Bᵀ, where S₁ = AᵀA and S₂ = BᵀB,
    and QR makes A and B small without changing S₁ and S₂.
    """

    def root(side: Floats) -> Floats:
        triangle: Any = np.linalg.qr((side - side.mean(axis=0)) / np.sqrt(len(side) - 1), mode="r")
        return np.asarray(triangle)

    a, b = root(pair.real), root(pair.other)
    means = np.square(pair.real.mean(axis=0) - pair.other.mean(axis=0)).sum()
    traces = np.square(a).sum() + np.square(b).sum() - 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return max(0.0, float(means + traces))


@Distance("KID", False, needed=2)
def kid(pair: Pair) -> float:
    """Kernel distance: unbiased squared MMD under (x·y / d + 1)³ (Bińkowski et al. 2018); may be below 0.

    The mean over subsets. Where both samples are no larger than a subset, all of both is the one subset.
    """
    rng = np.random.default_rng(pair.seed)
    x, y = pair.real, pair.other
    size = min(SUBSET, len(x), len(y))
    values = []
    for _ in range(1 if max(len(x), len(y)) <= SUBSET else SUBSETS):
        few, other = (
            side if len(side) <= SUBSET else side[rng.choice(len(side), size, replace=False)] for side in (x, y)
        )
        xx, yy, xy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((few, few), (other, other), (few, other)))
        within = sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy))
        values.append(float(within - 2 * xy.mean()))
    return float(np.mean(values))


@Distance("precision", True)
def precision(pair: Pair) -> float:
    """Share of these features in a real feature's ball (Kynkäänniemi et al. 2019)."""
    return float(pair.near_real.any(axis=0).mean())


@Distance("recall", True)
def recall(pair: Pair) -> float:
    """Share of real features in one of these features' balls (Kynkäänniemi et al. 2019)."""
    return float(pair.near_other.any(axis=1).mean())


@Distance("density", True)
def density(pair: Pair) -> float:
    """In how many real features' balls one of these features is, over k (Naeem et al. 2020)."""
    return float(pair.near_real.sum(axis=0).mean() / pair.k)


@Distance("coverage", True)
def coverage(pair: Pair) -> float:
    """Share of real features' balls with one of these features inside (Naeem et al. 2020)."""
    return float(pair.near_real.any(axis=1).mean())


@Distance("median distance to the nearest fitted", None, needed=1, drawn=False)
def nearest(pair: Pair) -> float:
    """Median distance to the nearest feature that was fitted; far below the floor: the generator copies."""
    return float(np.median(_distances(pair.other, pair.real).min(axis=1)))


DISTANCES = Distance.table


def pool(features: Features, grid: int = 3) -> NDArray[np.float32]:
    """Features [n, C, H, W] → [n, C · (1 + cells)] float32: each channel's mean, then its means over a coarse grid.

    The grid has ``grid`` × ``grid`` cells of sizes as equal as possible, fewer where a map's side is less than that.
    """
    parts = [_pool(features[start : start + 64].astype(np.float32), grid) for start in range(0, len(features), 64)]
    return np.concatenate(parts) if parts else _pool(np.zeros((1, *features.shape[1:]), np.float32), grid)[:0]


def _pool(features: NDArray[np.float32], grid: int) -> NDArray[np.float32]:
    cells: NDArray[Any] = features
    for axis, side in ((2, features.shape[2]), (3, features.shape[3])):
        edges = np.linspace(0, side, min(grid, side) + 1).astype(np.int64)
        sizes = np.diff(edges).astype(np.float32).reshape(-1, *[1] * (3 - axis))
        cells = np.add.reduceat(cells, edges[:-1], axis=axis) / sizes
    return np.concatenate([features.mean(axis=(2, 3)), cells.reshape(len(features), -1)], axis=1)


def principal(
    centred: NDArray[np.float32], dims: int = DIMS, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The principal components [k, D] of ``centred`` [n, D] and their standard deviations [k]; k ≤ ``dims``, n − 1, D.

    By a randomised singular value decomposition (Halko et al. 2011, algorithm 4.3 with two power iterations): seconds
    where the exact one takes minutes.
    """
    samples, width = centred.shape
    kept = max(0, min(dims, samples - 1, width))
    if not kept:
        return np.zeros((0, width), np.float32), np.zeros(0, np.float32)
    tall = centred if samples >= width else centred.T
    # RandomState: figures stay those of earlier versions, which used scikit-learn's randomized_svd
    random = np.random.RandomState(seed).normal(size=(tall.shape[1], kept + OVERSAMPLES)).astype(np.float32)
    for _ in range(2):
        random = tall.T @ (tall @ random)
    basis: Any = np.linalg.qr(tall @ random)[0]
    decomposed: Any = np.linalg.svd(basis.T @ tall, full_matrices=False)
    left, spread, right = decomposed
    components = right[:kept] if tall is centred else (basis @ left)[:, :kept].T
    return components, spread[:kept] / np.float32((samples - 1) ** 0.5)


def _space(train: NDArray[np.float32], seed: int) -> Callable[[NDArray[np.float32]], Floats]:
    """Places pooled features where they are compared: standardised, projected and scaled, as fitted on ``train``."""
    mean, spread = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    inverse = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 1e-3 * spread.max(initial=0))
    components, along = principal(((train - mean) * inverse).astype(np.float32), seed=seed)
    length = float(np.sqrt(np.mean(np.square(along, dtype=np.float64)))) if len(along) else 0.0
    axes = components.T.astype(np.float64) / (length or 1.0)
    return lambda pooled: ((pooled - mean) * inverse) @ axes


def distances(
    train: Labelled, held_out: Labelled, synthetic: Labelled, classes: Sequence[str], seed: int = 0
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Each class's DISTANCES, ``synthetic`` and ``floor``; None where there are too few samples, or not finite ones.

    Parameters
    ----------
    train: what the generator was fitted on; no patient is in both ``train`` and ``held_out``.
    """
    sides = (train, held_out, synthetic)
    finite = all(np.isfinite(pooled).all() for pooled, _ in sides)
    space = _space(train[0], seed) if finite and len(train[0]) > 1 else None
    values = {}
    for label, name in enumerate(classes):
        of_class = [pooled[labels == label] for pooled, labels in sides]
        values[name] = _of_class([space(side) for side in of_class] if space else [], seed)
    return values


def _of_class(sides: Sequence[Floats], seed: int) -> dict[str, dict[str, float | None]]:
    """``sides``: train, held-out and synthetic in the space; empty if there is none."""
    size = min(map(len, sides), default=0)
    rng = np.random.default_rng(seed)
    draws = [[side[rng.permutation(len(side))[:size]] for side in sides] for _ in range(REPEATS if size else 0)]
    drawn, all_samples = ([_pairs(each, seed) for each in sets] for sets in (draws, [sides] if size else []))

    def mean(distance: Distance, against: str) -> float | None:
        pairs = drawn if distance.drawn else all_samples
        return float(np.mean([distance.compute(pair[against]) for pair in pairs])) if size >= distance.needed else None

    return {name: {of: mean(each, of) for of in ("synthetic", "floor")} for name, each in DISTANCES.items()}


def _pairs(sides: Sequence[Floats], seed: int) -> Mapping[str, Pair]:
    train, held_out, synthetic = sides
    return {"synthetic": Pair(train, synthetic, seed), "floor": Pair(train, held_out, seed)}


def _distances(side: Floats, other: Floats) -> Floats:
    """The Euclidean distances of the samples [n, m], by |a|² − 2 a·b + |b|²: one matrix product."""
    apart: Floats = -2 * (side @ other.T)
    apart += np.einsum("nd,nd->n", side, side)[:, None]
    apart += np.einsum("nd,nd->n", other, other)
    np.maximum(apart, 0, out=apart)
    if side is other:
        np.fill_diagonal(apart, 0)
    return np.sqrt(apart, out=apart)

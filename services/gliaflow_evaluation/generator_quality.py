"""How good synthetic features are, class by class, beside how alike real features of other patients are.

All is measured on pooled features, standardised and projected on at most 64 principal components, both learnt from
the real training features; the unit of length is the root mean square of a component. Each measure compares
synthetic → train, and held-out → train, which is the *floor*: what real features of patients that no network saw
would get. Both sides have as many samples, since all these measures depend on how many there are.

What was fitted on the training patients may well come nearer to them than the floor; ``nearest`` tells whether it is
because it repeats them. None of these foretells whether training on the features helps (Ravuri and Vinyals 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import pairwise_distances
from sklearn.utils.extmath import randomized_svd

Floats = NDArray[np.float64]
Features = NDArray[Any]

DIMS = 64
NEAREST = 5  # k of precision, recall, density and coverage, as in Naeem et al. 2020
REPEATS = 10  # of drawing equally many samples
SUBSET, SUBSETS = 100, 20  # of KID
MEASURES = ("frechet", "kid", "precision", "recall", "density", "coverage")


def pool(features: Features, grid: int = 3) -> NDArray[np.float32]:
    """Features [n, C, H, W] → [n, C · (1 + cells)] float32: each channel's mean, then its means over a coarse grid.

    The grid has ``grid`` × ``grid`` cells as equal as can be, fewer where a map's side is less than that.
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

    By a randomised singular value decomposition (Halko et al. 2011): seconds where the exact one takes minutes.
    """
    samples, width = centred.shape
    kept = max(0, min(dims, samples - 1, width))
    if not kept:
        return np.zeros((0, width), np.float32), np.zeros(0, np.float32)
    _, spread, components = randomized_svd(centred, kept, n_iter=2, random_state=seed)
    return components, spread / np.float32((samples - 1) ** 0.5)


def frechet(x: Floats, y: Floats) -> float:
    """Squared Fréchet distance of the Gaussians of two samples [n, d] and [m, d] (Heusel et al. 2017, Eq. 6).

    The trace of (S₁ S₂)^½ is the sum of the singular values of A Bᵀ, where S₁ = AᵀA and S₂ = BᵀB,
    and QR makes A and B small without changing S₁ and S₂.
    """

    def root(side: Floats) -> Floats:
        found: Any = np.linalg.qr((side - side.mean(axis=0)) / np.sqrt(len(side) - 1), mode="r")  # of one array
        return np.asarray(found)

    a, b = root(x), root(y)
    means = np.square(x.mean(axis=0) - y.mean(axis=0)).sum()
    traces = np.square(a).sum() + np.square(b).sum() - 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return max(0.0, float(means + traces))


def kid(x: Floats, y: Floats, seed: int = 0, subset: int = SUBSET, subsets: int = SUBSETS) -> float:
    """Kernel distance: unbiased squared MMD under (x·y / d + 1)³ (Bińkowski et al. 2018), mean over subsets.

    It may be below 0. Where both samples [n, d], [m, d] are no larger than a subset, all of both is the one subset.
    """
    rng = np.random.default_rng(seed)
    size = min(subset, len(x), len(y))
    found = []
    for _ in range(1 if max(len(x), len(y)) <= subset else subsets):
        few, other = (
            side if len(side) <= subset else side[rng.choice(len(side), size, replace=False)] for side in (x, y)
        )
        xx, yy, xy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((few, few), (other, other), (few, other)))
        within = sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy))
        found.append(float(within - 2 * xy.mean()))
    return float(np.mean(found))


def prdc(real: Floats, other: Floats, k: int = NEAREST) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020), of [n, d], [m, d].

    A sample's ball reaches to its k-th nearest neighbour in its own set. Precision: the share of ``other`` in a ball of
    ``real``; recall: the share of ``real`` in a ball of ``other``; density: in how many balls of ``real`` a sample of
    ``other`` is, over k; coverage: the share of balls of ``real`` with a sample of ``other`` in them.

    Raises
    ------
    ValueError: a set has no more than k samples.
    """
    if min(len(real), len(other)) <= k:
        raise ValueError(f"{len(real)} and {len(other)} samples: more than {k} are needed")
    radius, reach = (np.sort(pairwise_distances(side), axis=1)[:, k] for side in (real, other))  # [:, 0] is itself
    apart = pairwise_distances(real, other)
    inside = apart < radius[:, None]
    return {
        "precision": float(inside.any(axis=0).mean()),
        "recall": float((apart < reach).any(axis=1).mean()),
        "density": float(inside.sum(axis=0).mean() / k),
        "coverage": float(inside.any(axis=1).mean()),
    }


def nearest(train: Floats, held_out: Floats, synthetic: Floats) -> dict[str, float]:
    """Whether synthetic samples repeat training samples: distances to the nearest of ``train`` [n, d].

    Returns
    -------
    ``synthetic_to_train`` and ``held_out_to_train``, medians; their ``ratio``; and ``closer_share``, the share of
    synthetic samples nearer than the 1st percentile of held-out ones: 0.01 is what real features would have.
    """
    made, real = (pairwise_distances(side, train).min(axis=1) for side in (synthetic, held_out))
    return {
        "synthetic_to_train": float(np.median(made)),
        "held_out_to_train": float(np.median(real)),
        "ratio": float(np.median(made) / max(np.median(real), np.finfo(np.float64).tiny)),
        "closer_share": float((made < np.percentile(real, 1)).mean()),
    }


@dataclass(frozen=True)
class _Space:
    """Where pooled features are compared: standardised, projected and scaled as the real training features say."""

    mean: Floats
    inverse: Floats
    axes: Floats

    @classmethod
    def of(cls, train: NDArray[np.float32], seed: int) -> _Space:
        mean, spread = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
        inverse = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 1e-3 * spread.max(initial=0))
        components, along = principal(((train - mean) * inverse).astype(np.float32), seed=seed)
        length = float(np.sqrt(np.mean(np.square(along, dtype=np.float64)))) if len(along) else 0.0
        return cls(mean, inverse, components.T.astype(np.float64) / (length or 1.0))

    def __call__(self, pooled: NDArray[np.float32]) -> Floats:
        placed: Floats = ((pooled - self.mean) * self.inverse) @ self.axes
        return placed


def gan_measures(
    train: tuple[NDArray[np.float32], NDArray[np.int64]],
    held_out: tuple[NDArray[np.float32], NDArray[np.int64]],
    synthetic: tuple[NDArray[np.float32], NDArray[np.int64]],
    classes: Sequence[str],
    *,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Each class's measures, as the report shows them.

    Parameters
    ----------
    train, held_out, synthetic: pooled features [n, d] and labels [n]. ``train`` is what the generator was fitted on;
        no patient is in both ``train`` and ``held_out``.

    Returns
    -------
    For each class ``n``, the size of the samples compared; for each of MEASURES ``synthetic`` and ``floor``, the
    mean over REPEATS draws of that many samples; and ``nearest``, over all samples. What could not be measured is
    None, with a ``reason``.
    """
    named = {"training": train, "held-out": held_out, "synthetic": synthetic}
    odd = next((name for name, (pooled, _) in named.items() if not np.isfinite(pooled).all()), None)
    space = _Space.of(train[0], seed) if odd is None and len(train[0]) > 1 else None
    found = {}
    for label, name in enumerate(classes):
        sides = {side: pooled[labels == label] for side, (pooled, labels) in named.items()}
        few = min(sides, key=lambda side: len(sides[side]))
        lacking = f"{odd} features are not finite" if odd else f"only {len(sides[few])} {few} samples"
        found[name] = _of_class(
            [space(side) for side in sides.values()] if space else None, len(sides[few]), lacking, seed
        )
    return found


def _of_class(sides: Sequence[Floats] | None, size: int, lacking: str, seed: int) -> dict[str, Any]:
    """``sides``: train, held-out, synthetic in the space; None if there is none. ``size``: of the smallest.

    ``lacking``: what to say where nothing can be measured.
    """

    def kernels(real: Floats, other: Floats) -> dict[str, float]:
        return {"frechet": frechet(real, other), "kid": kid(real, other, seed)}

    found: dict[str, Any] = {"n": size}
    for of, names, needed in ((kernels, MEASURES[:2], 2), (prdc, MEASURES[2:], NEAREST + 1)):
        if sides is None or size < needed:
            found |= {name: {"synthetic": None, "floor": None, "reason": lacking} for name in names}
            continue
        rng = np.random.default_rng(seed)
        measured = []
        for _ in range(REPEATS):
            real, other, made = (side[rng.permutation(len(side))[:size]] for side in sides)
            measured.append((of(real, made), of(real, other)))
        for name in names:
            synthetic, floor = (float(np.mean([pair[which][name] for pair in measured])) for which in (0, 1))
            found[name] = {"synthetic": synthetic, "floor": floor}
    if sides is None or not size:
        nothing = dict.fromkeys(("synthetic_to_train", "held_out_to_train", "ratio", "closer_share"))
        return found | {"nearest": {**nothing, "reason": lacking}}
    return found | {"nearest": nearest(*sides)}

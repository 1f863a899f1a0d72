"""What an evaluation may claim: measures of out-of-fold logits, with intervals and paired differences.

What is graded are *units*: patients (by their mean logit), or slices (the paper's Table 3, and the task "slices with
tumour or without"). Whatever the unit, chance comes in by the patient: a draw takes patients with replacement, as
many of each stratum as there are, and with a patient all its units. All arms see the same draws, so that the
difference of two arms is paired.

- Balanced accuracy, recall and accuracy are taken at a logit of 0. A moved threshold is a shift: logits − threshold.
- AUC counts pairs of units *within a fold* only: scores of two folds come from two networks, on two scales.
- The Brier score is that of the logit's sigmoid.
- Each is measured a seed at a time and then averaged over seeds.

A unit that has no logit (NaN: no tumour was found in any slice) was not graded, and counts as a coin toss: half right,
half of each pair, a probability of 0.5. It is never left out, or an arm would gain by not answering.

The intervals (percentile bootstrap, 95 %) tell of other patients like these, not of other training sets. With a dozen
patients of a class they are somewhat too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

Floats = NDArray[np.float64]

MEASURES = ("balanced_accuracy", "auc", "brier", "accuracy", "recall_positive", "recall_negative")
DRAWS = 2000


class Score(TypedDict):
    """``mean`` with its 95 % interval [low, high] over ``n`` units; None where it could not be measured."""

    mean: float | None
    ci95: list[float] | None
    n: int


@dataclass(frozen=True, eq=False)
class Draws:
    """How often each of P patients is in each draw, ``weights`` [P, 1 + draws]; the first holds each patient once."""

    weights: Floats

    @classmethod
    def of(cls, strata: ArrayLike, draws: int = DRAWS, seed: int = 0) -> Draws:
        """Stratified: each draw has as many patients of each stratum as there are.

        Parameters
        ----------
        strata: each patient's stratum [P]; the class, where a patient has one.
        """
        strata = np.asarray(strata)
        rng = np.random.default_rng(seed)
        weights = np.ones((len(strata), 1 + draws))
        for stratum in np.unique(strata):
            of_it = np.flatnonzero(strata == stratum)
            weights[of_it, 1:] = rng.multinomial(len(of_it), np.full(len(of_it), 1 / len(of_it)), size=draws).T
        return cls(weights)


@dataclass(frozen=True, eq=False)
class Units:
    """What is graded, U units.

    Parameters
    ----------
    positive: whether a unit is of the first class [U].
    patient: whose it is, an index into the patients of the draws [U]. Where the units are patients: 0, 1, … P − 1.
    fold: in which fold the unit was tested [U]; [S, U] where the folds differ by seed.

    Raises
    ------
    ValueError: shapes do not agree, or a patient is in two folds at once.
    """

    positive: NDArray[np.bool_]
    patient: NDArray[np.int64]
    fold: NDArray[np.int64]

    def __post_init__(self) -> None:
        shapes = self.positive.shape, self.patient.shape, self.fold.shape[-1:]
        if self.positive.ndim != 1 or len(set(shapes)) != 1:
            raise ValueError(f"positive [U], patient [U] and fold [U] or [S, U] do not agree: {shapes}")
        _, first, index = np.unique(self.patient, return_index=True, return_inverse=True)
        if (self.fold != self.fold[..., first[index]]).any():
            raise ValueError("a patient's units are in more than one fold")


@dataclass(frozen=True, eq=False)
class Measured:
    """The MEASURES of one arm: ``values`` [1 + draws], the first of all patients; over how many units, ``n``."""

    values: Mapping[str, Floats]
    n: Mapping[str, int]
    draws: Draws

    def __getitem__(self, measure: str) -> Score:
        return _score(self.values[measure], self.n[measure])

    def minus(self, other: Measured) -> dict[str, Score]:
        """Each measure's paired difference, this arm − ``other``.

        Raises
        ------
        ValueError: the two were not measured on the same draws.
        """
        if self.draws is not other.draws:
            raise ValueError("the arms were measured on different draws: their difference is not paired")
        return {name: _score(self.values[name] - other.values[name], self.n[name]) for name in MEASURES}


def measure(logits: ArrayLike, units: Units, draws: Draws) -> Measured:
    """All MEASURES of one arm.

    Parameters
    ----------
    logits: of each seed and unit [S, U] or [U], each from the network that did not see the unit's patient. Above 0 is
        the first class; NaN is not graded. Arms may have different numbers of seeds.

    Raises
    ------
    ValueError: shapes do not agree.
    """
    table = np.atleast_2d(np.asarray(logits, dtype=np.float64))
    if table.shape[1:] != units.positive.shape or (units.fold.ndim == 2 and units.fold.shape != table.shape):
        raise ValueError(f"logits {table.shape} do not fit {len(units.positive)} units, folds {units.fold.shape}")
    positive, patient = units.positive, units.patient
    graded = ~np.isnan(table)
    right = np.where(graded, (table > 0) == positive, 0.5)
    loss = np.where(graded, np.square(expit(table) - positive), 0.25)

    def total(of_unit: Floats, chosen: NDArray[np.bool_]) -> Floats:
        """The sum over the chosen units in each draw: [S, U] → [S, 1 + draws]."""
        patients = len(draws.weights)
        by_patient = [np.bincount(patient[chosen], row[chosen], minlength=patients) for row in of_unit]
        return np.stack(by_patient) @ draws.weights

    one = np.ones((1, len(positive)))
    right_of = {kind: total(right, positive == kind) for kind in (True, False)}
    units_of = {kind: total(one, positive == kind) for kind in (True, False)}
    recall = {kind: _divide(right_of[kind], units_of[kind]) for kind in (True, False)}
    everyone = units_of[True] + units_of[False]
    of_seed = {
        "balanced_accuracy": (recall[True] + recall[False]) / 2,
        "auc": _auc(table, units, draws.weights),
        "brier": _divide(total(loss, np.ones_like(positive)), everyone),
        "accuracy": _divide(right_of[True] + right_of[False], everyone),
        "recall_positive": recall[True],
        "recall_negative": recall[False],
    }
    n = dict.fromkeys(MEASURES, len(positive))
    n |= {"recall_positive": int(positive.sum()), "recall_negative": int((~positive).sum())}
    return Measured({name: values.mean(axis=0) for name, values in of_seed.items()}, n, draws)


def row(arm: str, graded: Measured, slices: Measured | None, classes: tuple[str, str]) -> dict[str, Any]:
    """One arm's row of the report: by unit, and the paper's Table 3, accuracy by slice, from ``slices``."""
    first, second = classes
    found: dict[str, Any] = {"arm": arm} | {name: graded[name] for name in ("balanced_accuracy", "auc", "brier")}
    found["recall"] = {first: graded["recall_positive"], second: graded["recall_negative"]}
    if slices is not None:
        named = {first: "recall_positive", second: "recall_negative", "total": "accuracy"}
        found["slices"] = {name: slices[measure_] for name, measure_ in named.items()}
    return found


def mean_by_patient(logits: ArrayLike, patient: NDArray[np.int64], patients: int) -> Floats:
    """Slice logits [S, N] or [N] → mean logit of each patient [S, P]; NaN for a patient who has none.

    Parameters
    ----------
    patient: whose slice it is [N], an index below ``patients``.
    """
    table = np.atleast_2d(np.asarray(logits, dtype=np.float64))
    means = []
    for slices in table:
        graded = ~np.isnan(slices)
        found = np.bincount(patient[graded], slices[graded], minlength=patients)
        means.append(_divide(found, np.bincount(patient[graded], minlength=patients)))
    return np.stack(means)


def calibration(logits: ArrayLike, positive: NDArray[np.bool_], bins: int = 5) -> list[dict[str, float]]:
    """Predicted probability against the observed share of the first class, in bins of equal size.

    Every seed's prediction counts by itself, as one network is what serves; ``n`` is how many units have one in the
    bin. What was not graded is left out.
    """
    table = np.atleast_2d(np.asarray(logits, dtype=np.float64))
    seed, unit = np.nonzero(~np.isnan(table))
    probability = expit(table[seed, unit])
    order = np.argsort(probability, kind="stable")
    return [
        {
            "predicted": float(probability[chosen].mean()),
            "observed": float(positive[unit[chosen]].mean()),
            "n": len(np.unique(unit[chosen])),
        }
        for chosen in np.array_split(order, bins)
        if len(chosen)
    ]


def chance_inside(score: Score, chance: float = 0.5) -> bool:
    """Whether chance is inside the interval; not where there is none, as nothing was then shown."""
    return score["ci95"] is not None and score["ci95"][0] <= chance <= score["ci95"][1]


def _score(values: Floats, n: int) -> Score:
    point, drawn = float(values[0]), values[1:]
    drawn = drawn[np.isfinite(drawn)]
    if not np.isfinite(point):
        return {"mean": None, "ci95": None, "n": n}
    # A draw can lack a class in every fold. Few such draws do no harm; where they are most, there is no interval.
    enough = len(drawn) > (len(values) - 1) / 2
    return {"mean": point, "ci95": np.percentile(drawn, [2.5, 97.5]).tolist() if enough else None, "n": n}


def _auc(logits: Floats, units: Units, weights: Floats) -> Floats:
    """[S, U] → [S, 1 + draws]: the share of pairs within a fold that are in order."""
    folds = np.broadcast_to(units.fold, logits.shape)
    right, pairs = np.zeros((2, len(logits), weights.shape[1]))
    for seed, (scores, fold) in enumerate(zip(logits, folds, strict=True)):
        for tested in np.unique(fold):
            first, second = (np.flatnonzero((fold == tested) & (units.positive == kind)) for kind in (True, False))
            p, p_of = np.unique(units.patient[first], return_inverse=True)
            q, q_of = np.unique(units.patient[second], return_inverse=True)
            in_order = _in_order(scores[first], p_of, scores[second], q_of)
            right[seed] += (weights[p] * (in_order @ weights[q])).sum(axis=0)
            pairs[seed] += (np.bincount(p_of) @ weights[p]) * (np.bincount(q_of) @ weights[q])
    return _divide(right, pairs)


def _in_order(first: Floats, p_of: NDArray[np.int64], second: Floats, q_of: NDArray[np.int64]) -> Floats:
    """Of the pairs of patient p's units (first class) and q's (second), how many are in order [P, Q].

    Ties count half, and so do pairs of which one was not graded.
    """
    p_units, q_units = np.bincount(p_of), np.bincount(q_of)
    graded = ~np.isnan(first)
    p_graded = np.bincount(p_of[graded], minlength=len(p_units))
    table = np.zeros((len(p_units), len(q_units)))
    for q in range(len(q_units)):
        rivals = second[q_of == q]
        rivals = np.sort(rivals[~np.isnan(rivals)])
        below = sum(np.searchsorted(rivals, first[graded], side) for side in ("left", "right"))
        table[:, q] = np.bincount(p_of[graded], below, minlength=len(p_units))
        table[:, q] += p_units * q_units[q] - p_graded * len(rivals)
    return table / 2


def _divide(above: NDArray[Any], below: NDArray[Any]) -> Floats:
    """NaN where there is nothing to divide by."""
    quotient = np.full(np.broadcast_shapes(above.shape, below.shape), np.nan)
    np.divide(above, below, out=quotient, where=below > 0)
    return quotient

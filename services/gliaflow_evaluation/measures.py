"""The measures of grading: how each is computed from out-of-fold logits, with intervals and paired differences.

MEASURES is the one table of them. The schema of ``metrics.json``, the summary and the report read it: a new measure is
a function with ``@Measure``.

A *unit* is what is graded: a patient (by the mean logit of its slices), or a slice (the paper's Table 3, and the task
"slices with tumour or without"). Intervals come from a bootstrap over patients: a draw takes patients with replacement,
as many of each stratum as there are, and with a patient all its units. All arms see the same draws, so the difference
of two arms is paired.

- Balanced accuracy, recall and accuracy are taken at a logit of 0. To move the threshold, add an offset to the logits.
- AUC and the ROC curve compare units *within a fold* only: the scores of two folds come from two networks, on two
  scales.
- The Brier score is that of the logit's sigmoid.
- Each measure is computed for each seed, then averaged over seeds.

A unit without a logit (NaN: no tumour was found in any slice) counts as a coin toss: half right, half of each pair, a
probability of 0.5. It is never left out: an arm would gain by not answering.

The intervals (percentile bootstrap, 95 %) are about other patients like these, not about other training sets. With a
dozen patients of a class they are somewhat too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from gliaflow_evaluation.score import Score
from gliaflow_evaluation.tables import Entry

Floats = NDArray[np.float64]
Kind = bool | None  # of units: of the first class, of the other, or both

CURVE_POINTS = 101


@dataclass(frozen=True, eq=False)
class Units:
    """What is graded, U units.

    Parameters
    ----------
    positive: whether a unit is of the first class [U].
    patient: each unit's patient, an index into the patients of the draws [U]. Where units are patients: 0, 1, … P − 1.
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

    def by_fold(self, seeds: int) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """For each seed and fold: the seed, the fold's units of the first class, and those of the second."""
        for seed, fold in enumerate(np.broadcast_to(self.fold, (seeds, len(self.positive)))):
            for tested in np.unique(fold):
                first, second = (np.flatnonzero((fold == tested) & (self.positive == kind)) for kind in (True, False))
                yield seed, first, second


@dataclass(frozen=True, eq=False)
class GradedUnits:
    """One arm's logits [S, U], NaN where not graded, and draws [P, 1 + draws] (``bootstrap``).

    Raises
    ------
    ValueError: shapes do not agree.
    """

    logits: Floats
    units: Units
    draws: Floats

    def __post_init__(self) -> None:
        positive, fold = self.units.positive, self.units.fold
        if self.logits.shape[1:] != positive.shape or (fold.ndim == 2 and fold.shape != self.logits.shape):
            raise ValueError(f"logits {self.logits.shape} do not fit {len(positive)} units, folds {fold.shape}")

    def total(self, of_unit: Floats, kind: Kind = None) -> Floats:
        """The sum over units of this kind in each draw: [S, U] → [S, 1 + draws]."""
        chosen = np.ones_like(self.units.positive) if kind is None else self.units.positive == kind
        patient, patients = self.units.patient[chosen], len(self.draws)
        return np.stack([np.bincount(patient, row[chosen], minlength=patients) for row in of_unit]) @ self.draws

    def count(self, kind: Kind) -> Floats:
        """How many units of this kind each draw has [1, 1 + draws]."""
        return self.total(np.ones((1, len(self.units.positive))), kind)

    @cached_property
    def right(self) -> Floats:
        """1 where a unit is graded right, 0.5 where it is not graded [S, U]."""
        return np.where(np.isnan(self.logits), 0.5, (self.logits > 0) == self.units.positive)


@dataclass
class Measure(Entry[Callable[[GradedUnits], Floats]]):
    """A measure of grading: ``compute`` gives its value for each seed in each draw [S, 1 + draws].

    ``{0}`` and ``{1}`` in its title stand for the names of the classes.
    """

    over: tuple[str, ...] = ("units",)  # which scores of an arm have it; "slices": the paper's Table 3
    kind: Kind = None  # of which units ``n`` is the number
    chance: float | None = None  # the value of an arm that guesses, if the control must reach it
    difference: bool = False  # whether the paired difference of two arms is reported
    higher_is_better: bool = True
    table: ClassVar[dict[str, Measure]] = {}


@Measure("balanced accuracy", chance=0.5, difference=True)
def balanced_accuracy(graded: GradedUnits) -> Floats:
    """Mean recall of the two classes, at a logit of 0."""
    return (recall_positive(graded) + recall_negative(graded)) / 2


@Measure("AUC", chance=0.5, difference=True)
def auc(graded: GradedUnits) -> Floats:
    """Area under the ROC curve: the share of pairs within a fold that are in order."""
    weights, patient = graded.draws, graded.units.patient
    right, pairs = np.zeros((2, len(graded.logits), weights.shape[1]))
    for seed, first, second in graded.units.by_fold(len(graded.logits)):
        scores = graded.logits[seed]
        p, p_of = np.unique(patient[first], return_inverse=True)
        q, q_of = np.unique(patient[second], return_inverse=True)
        in_order = _in_order(scores[first], p_of, scores[second], q_of)
        right[seed] += (weights[p] * (in_order @ weights[q])).sum(axis=0)
        pairs[seed] += (np.bincount(p_of) @ weights[p]) * (np.bincount(q_of) @ weights[q])
    return _divide(right, pairs)


@Measure("recall {0}", ("units", "slices"), kind=True)
def recall_positive(graded: GradedUnits) -> Floats:
    """Share of the first class that is graded right."""
    return _divide(graded.total(graded.right, True), graded.count(True))


@Measure("recall {1}", ("units", "slices"), kind=False)
def recall_negative(graded: GradedUnits) -> Floats:
    """Share of the second class that is graded right."""
    return _divide(graded.total(graded.right, False), graded.count(False))


@Measure("accuracy", ("slices",))
def accuracy(graded: GradedUnits) -> Floats:
    """Share of all that is graded right."""
    right = graded.total(graded.right, True) + graded.total(graded.right, False)
    return _divide(right, graded.count(True) + graded.count(False))


@Measure("Brier", difference=True, higher_is_better=False)
def brier(graded: GradedUnits) -> Floats:
    """Mean squared error of the probability of the first class."""
    loss = np.where(np.isnan(graded.logits), 0.25, np.square(expit(graded.logits) - graded.units.positive))
    return _divide(graded.total(loss), graded.count(True) + graded.count(False))


MEASURES = Measure.table
OVER_UNITS = [name for name, measure in MEASURES.items() if "units" in measure.over]
OVER_SLICES = [name for name, measure in MEASURES.items() if "slices" in measure.over]
DIFFERENCES = [name for name, measure in MEASURES.items() if measure.difference]
AGAINST_CHANCE = [name for name, measure in MEASURES.items() if measure.chance is not None]


@dataclass(frozen=True, eq=False)
class Measured:
    """The MEASURES of one arm: ``values`` [1 + draws], the first of all patients; ``n`` units each."""

    values: Mapping[str, Floats]
    n: Mapping[str, int]
    draws: Floats

    def __getitem__(self, measure: str) -> Score:
        return _score(self.values[measure], self.n[measure])

    def scores(self, measures: Iterable[str] = OVER_UNITS) -> dict[str, Score]:
        """The score by each of these measures."""
        return {name: self[name] for name in measures}

    def minus(self, other: Measured, measures: Iterable[str] = DIFFERENCES) -> dict[str, Score]:
        """This arm − ``other``, paired. Raises ValueError: the two were not measured on the same draws."""
        if self.draws is not other.draws:
            raise ValueError("the arms were measured on different draws: their difference is not paired")
        return {name: _score(self.values[name] - other.values[name], self.n[name]) for name in measures}


def measure(logits: ArrayLike, units: Units, draws: Floats) -> Measured:
    """All MEASURES of one arm.

    Parameters
    ----------
    logits: of each seed and unit [S, U] or [U], each from the network that did not see the unit's patient. Above 0 is
        the first class; NaN is not graded. Arms may have different numbers of seeds.
    """
    graded = GradedUnits(_by_seed(logits), units, draws)
    values = {name: each.compute(graded).mean(axis=0) for name, each in MEASURES.items()}
    of_kind = {None: len(units.positive), True: int(units.positive.sum()), False: int((~units.positive).sum())}
    return Measured(values, {name: of_kind[each.kind] for name, each in MEASURES.items()}, draws)


def mean_of(arms: Sequence[Measured]) -> Measured:
    """The means of the measures of an arm that was measured on several shuffles, each with draws of its own.

    Shuffles are independent, so the interval is that of a mean of independent values.
    """
    values = {name: np.mean([arm.values[name] for arm in arms], axis=0) for name in MEASURES}
    return Measured(values, arms[0].n, arms[0].draws)


def mean_by_patient(logits: ArrayLike, patient: NDArray[np.int64], patients: int) -> Floats:
    """Slice logits [S, N] or [N] → mean logit of each patient [S, P]; NaN for a patient without slices.

    Parameters
    ----------
    patient: each slice's patient [N], an index below ``patients``.
    """
    means = []
    for slices in _by_seed(logits):
        graded = ~np.isnan(slices)
        total = np.bincount(patient[graded], slices[graded], minlength=patients)
        means.append(_divide(total, np.bincount(patient[graded], minlength=patients)))
    return np.stack(means)


def roc_curve(logits: ArrayLike, units: Units) -> list[dict[str, float]]:
    """The mean ROC curve from (0, 0) to (1, 1); empty where no fold has both classes.

    Curves are drawn within a fold and averaged over folds and seeds at equal false positive rates. A fold weighs as
    many pairs of units as it has, as in the AUC, so the area under the mean curve is the AUC but for rounding. Pairs
    with a unit that was not graded add the diagonal.
    """
    table = _by_seed(logits)
    rates = np.linspace(0, 1, CURVE_POINTS)
    sensitivity, pairs = np.zeros(CURVE_POINTS), 0
    for seed, *classes in units.by_fold(len(table)):
        scores = [table[seed, members] for members in classes]
        known = [np.sort(some[~np.isnan(some)]) for some in scores]
        of_fold, of_known = (len(first) * len(second) for first, second in (scores, known))
        pairs += of_fold
        sensitivity += (of_fold - of_known) * rates
        if of_known:  # the share of each class at or above each threshold, from the highest on
            thresholds = np.unique(np.concatenate(known))[::-1]
            true, false = ([0, *(1 - np.searchsorted(some, thresholds) / len(some))] for some in known)
            sensitivity += of_known * np.interp(rates, false, true)  # at a vertical rise, its upper end
    points = zip([0, *rates], [0, *np.minimum(1, sensitivity / pairs)], strict=True) if pairs else ()
    return [{"false_positive_rate": float(false), "true_positive_rate": float(true)} for false, true in points]


def confusion(logits: ArrayLike, units: Units) -> Floats:
    """How many units of each class (rows) are graded as each class (columns) at a logit of 0 [2, 2], mean over seeds.

    A unit that was not graded counts half in each column.
    """
    table = _by_seed(logits)
    first = np.where(np.isnan(table), 0.5, table > 0).mean(axis=0)
    rows = [(first[units.positive == kind].sum(), (units.positive == kind).sum()) for kind in (True, False)]
    return np.array([[as_first, count - as_first] for as_first, count in rows])


def calibration(logits: ArrayLike, positive: NDArray[np.bool_], bins: int = 5) -> list[dict[str, Any]]:
    """Predicted probability against the observed share of the first class, in bins of equal size.

    Each seed's prediction counts separately, as one network is what serves; ``n`` is how many units have one in the
    bin. Units that were not graded are left out.
    """
    table = _by_seed(logits)
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


def chance_inside(score: Score, chance: float | None = 0.5) -> bool:
    """Whether chance is inside the interval; not where there is no interval, as nothing was shown then."""
    return score.ci95 is not None and chance is not None and score.ci95[0] <= chance <= score.ci95[1]


def _by_seed(logits: ArrayLike) -> Floats:
    return np.atleast_2d(np.asarray(logits, dtype=np.float64))


def _score(values: Floats, n: int) -> Score:
    point, drawn = float(values[0]), values[1:]
    drawn = drawn[np.isfinite(drawn)]
    if not np.isfinite(point):
        return Score(mean=None, ci95=None, n=n)
    # A draw can lack a class in every fold. Few such draws do no harm; where they are most, there is no interval.
    enough = len(drawn) > (len(values) - 1) / 2
    return Score(mean=point, ci95=np.percentile(drawn, [2.5, 97.5]).tolist() if enough else None, n=n)


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

"""A linear discriminant with one covariance for both classes, of which scans without labels are a part.

Samples of few patients do not show in which directions a class varies. Where both classes vary alike, samples of the
common class show it, and so do scans whose class nobody knows: only the distance of the two means is left to learn from
the rare class (Fisher 1936). A scan without a label belongs to each class in part, by the discriminant so far
(expectation-maximisation, Dempster et al. 1977; McLachlan and Ganesalingam 1982).

The covariance is shrunk towards its diagonal. How much, other patients decide: the AUC on patients that were left out.
Their logits also give the scale of the answer, which a discriminant of few patients exaggerates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from gliaflow_plugins.networks.pooled_classifier import PooledClassifier, sample_weights
from gliaflow_plugins.networks.tumour_statistics import inverse_spread

SHRINKAGES = (0.0, 0.01, 0.1, 0.5, 0.9)  # towards the diagonal
FOLDS, REPEATS = 5, 2  # of patients that are left out
ROUNDS = 3  # of expectation-maximisation
PART = 4096  # samples at a time
TINY = 1e-6  # of a standardised statistic's variance

Floats = NDArray[np.float64]
Shared = tuple[Floats, Floats, Floats]
"""Samples' values [n, d], their weights [n], and the share of each in the first class [n]."""
Discriminant = tuple[Floats, float]
"""The direction [d], and the bias that puts 0 halfway between the means."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Statistics ``values`` [n, d] of samples, their classes ``labels`` [n] (0: positive), and ``patients`` [n]."""

    values: NDArray[Any]
    labels: NDArray[np.int64]
    patients: NDArray[np.str_]

    @classmethod
    def joined(cls, *several: Labelled) -> Labelled:
        """The samples of the first, then those of the next."""
        return cls(*(np.concatenate([getattr(each, field.name) for each in several]) for field in fields(cls)))

    def select(self, some: NDArray[np.bool_]) -> Labelled:
        """The samples where ``some`` [n] is true."""
        return Labelled(self.values[some], self.labels[some], self.patients[some])


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """Statistics ``values`` [m, d] of samples whose class is not known, and their ``patients`` [m]."""

    values: NDArray[Any]
    patients: NDArray[np.str_]


def fit_shared(learn: Labelled, choose: Labelled, unlabelled: Unlabelled | None = None) -> PooledClassifier:
    """The discriminant of ``learn``, and of ``unlabelled`` if there are any. Both classes count alike.

    Parameters
    ----------
    choose: other patients, who help to choose the shrinkage and the scale.

    Raises
    ------
    ValueError: the samples to learn from are all of one class.
    """
    if len(np.unique(learn.labels)) < 2:
        raise ValueError(f"the training samples are all of one class: {np.bincount(learn.labels).tolist()}")
    share = sample_weights(learn.patients)
    share = share / share.sum()
    mean = share @ learn.values.astype(np.float64)
    std = torch.from_numpy(np.sqrt(share @ np.square(learn.values - mean)).astype(np.float32))
    module = PooledClassifier(torch.from_numpy(mean.astype(np.float32)), std)
    inverse = inverse_spread(std).numpy().astype(np.float64)
    learn, choose = (Labelled((of.values - mean) * inverse, of.labels, of.patients) for of in (learn, choose))
    without = None
    if unlabelled is not None and len(unlabelled.values):
        values = unlabelled.values.astype(np.float64)  # in place from here: of thousands of scans it takes gigabytes
        values -= mean
        values *= inverse
        without = _Without(values, unlabelled.patients)
    shrinkage, slope, offset = _chosen(Labelled.joined(learn, choose), without)
    direction, bias = next(_discriminants(learn, without, [shrinkage]))
    with torch.no_grad():
        module.head.weight[0] = torch.from_numpy(slope * direction)
        module.head.bias[0] = slope * bias + offset
    return module.eval()


class _Without:
    """Standardised samples without labels, with what of them does not depend on their class."""

    def __init__(self, values: Floats, patients: NDArray[np.str_]) -> None:
        self.values = values
        self.weight = sample_weights(patients)
        self.second_moment = np.zeros((values.shape[1],) * 2)
        for some in (slice(start, start + PART) for start in range(0, len(values), PART)):
            self.second_moment += (values[some].T * self.weight[some]) @ values[some]
        _, self.patient = np.unique(patients, return_inverse=True)

    def shares(self, discriminant: Discriminant, prior: float, by_patient: bool) -> Floats:
        """To what share each sample is of the positive class; ``by_patient``: all of a patient alike."""
        logits = self.values @ discriminant[0] + discriminant[1]
        if by_patient:
            logits = _mean_by(self.patient, logits)[self.patient]
        shares: Floats = expit(logits + logit(prior))
        return shares


def _discriminants(of: Labelled, without: _Without | None, shrinkages: Sequence[float]) -> Iterator[Discriminant]:
    """The discriminant with each shrinkage."""
    weight, positive = sample_weights(of.patients), (of.labels == 0).astype(np.float64)
    own = (of.values.T * weight) @ of.values
    by_patient = _of_one_class_each(of)
    for shrinkage in shrinkages:
        labelled = of.values, weight, positive
        found = _discriminant([labelled], own, shrinkage)
        if without is not None:
            prior, total = 0.5, weight.sum() + without.weight.sum()
            for _ in range(ROUNDS):
                shares = without.shares(found, prior, by_patient)
                both = [labelled, (without.values, without.weight, shares)]
                found = _discriminant(both, own + without.second_moment, shrinkage)
                prior = float(np.clip((weight @ positive + without.weight @ shares) / total, 0.01, 0.99))
        yield found


def _discriminant(samples: Sequence[Shared], second_moment: Floats, shrinkage: float) -> Discriminant:
    """Of all ``samples``, whose weighted second moment [d, d] is known."""
    totals, sums = np.zeros(2), np.zeros((2, len(second_moment)))
    for values, weight, positive in samples:
        shares = np.stack([weight * positive, weight * (1 - positive)])
        totals += shares.sum(axis=1)
        sums += shares @ values
    means = sums / totals[:, None]
    covariance = (second_moment - (means.T * totals) @ means) / totals.sum()
    diagonal = np.diag(np.maximum(covariance.diagonal(), 0) + TINY)
    mixed = (1 - shrinkage) * covariance + shrinkage * diagonal + TINY * np.eye(len(diagonal))
    direction = np.linalg.solve(mixed, means[0] - means[1])
    return direction, float(-direction @ means.sum(axis=0) / 2)


def _chosen(known: Labelled, without: _Without | None) -> tuple[float, float, float]:
    """The shrinkage of the highest AUC on patients who were left out; and slope and offset that fit their logits.

    Synthetic samples take no part: they may be copies of those who are left out.
    """
    known = known.select(np.array([bool(patient) for patient in known.patients]))
    areas, logits = np.zeros(len(SHRINKAGES)), np.zeros((len(SHRINKAGES), len(known.labels)))
    times = np.zeros(len(known.labels))
    for held_out in left_out(known):
        rest, tested = known.select(~held_out), known.select(held_out)
        times += held_out
        for number, (direction, bias) in enumerate(_discriminants(rest, without, SHRINKAGES)):
            answers = tested.values @ direction + bias
            logits[number, held_out] += answers
            areas[number] += area_under_curve(tested, answers)
    if not times.any():  # too few patients of a class
        return SHRINKAGES[2], 1.0, 0.0
    best, was = int(np.argmax(areas)), times > 0
    units = _units(known.select(was), logits[best, was] / times[was])
    scale = max(float(units["y_score"].std()), TINY)
    model = LogisticRegression(class_weight="balanced")
    model.fit(units["y_score"][:, None] / scale, units["y_true"], units["sample_weight"])
    # where patients who were left out are graded at chance, answers are near 0, and their order stays
    return SHRINKAGES[best], max(float(model.coef_[0, 0]), 0.01) / scale, float(model.intercept_[0])


def left_out(known: Labelled) -> Iterator[NDArray[np.bool_]]:
    """Which samples are left out [n]: a share of the patients of each class, each patient once in each repeat.

    Nothing where the rest, or what is left out, would lack a class.
    """
    rare = int(np.argmin(np.bincount(known.labels, minlength=2)))
    names, patient = np.unique(known.patients, return_inverse=True)
    has_rare = np.bincount(patient, known.labels == rare) > 0
    folds = min(FOLDS, int(has_rare.sum()))
    for repeat in range(REPEATS if folds > 1 else 0):
        rng, fold = np.random.default_rng(repeat), np.full(len(names), -1)
        for kind in (has_rare, ~has_rare):
            members = rng.permutation(np.flatnonzero(kind))
            fold[members] = np.arange(len(members)) % folds
        for number in range(folds):
            held_out = fold[patient] == number
            if all(len(np.unique(known.labels[some])) == 2 for some in (held_out, ~held_out)):
                yield held_out


def area_under_curve(of: Labelled, logits: Floats) -> float:
    """The AUC of patients by their mean logit, if each has one class, or of samples, which count by patient."""
    return float(roc_auc_score(**_units(of, logits)))


def _units(of: Labelled, logits: Floats) -> dict[str, Floats]:
    """Class, logit and weight of what is graded: patients, if each has one class, or samples."""
    if not _of_one_class_each(of):
        return {"y_true": of.labels == 0, "y_score": logits, "sample_weight": sample_weights(of.patients)}
    _, first, patient = np.unique(of.patients, return_index=True, return_inverse=True)
    return {
        "y_true": of.labels[first] == 0,
        "y_score": _mean_by(patient, logits),
        "sample_weight": np.ones(len(first)),
    }


def _of_one_class_each(of: Labelled) -> bool:
    """Whether no patient has samples of both classes. (Synthetic samples have no patient.)"""
    pairs = {(patient, label) for patient, label in zip(of.patients, of.labels, strict=True) if patient}
    return len(pairs) == len({patient for patient, _ in pairs})


def _mean_by(patient: NDArray[np.int64], values: Floats) -> Floats:
    means: Floats = np.bincount(patient, values) / np.bincount(patient)
    return means

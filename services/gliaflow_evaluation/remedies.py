"""How comparators choose a penalty, and learn from scans without labels whose class they guess."""

from __future__ import annotations

import numpy as np
import torch
from gliaflow_plugins.networks.pooled_classifier import PENALTY, fit_pooled, statistics
from gliaflow_plugins.networks.shared_covariance import Labelled, area_under_curve, left_out
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelSpreading

from gliaflow_evaluation.arms import Arms, FittedArm
from gliaflow_evaluation.measures import Floats, mean_by_patient

PENALTIES = (PENALTY, 1e-4, 1e-3, 1e-1, 1.0)  # the default first: it stays where no other is better
SURE = 0.7  # share of the samples without labels that self-training learns from
NEIGHBOURS = 7  # of label propagation


def penalty_chosen(arms: Arms) -> FittedArm:
    """The default classifier on real features, whose penalty training and validation patients choose."""
    known = Labelled.joined(arms.labelled("train"), arms.labelled("validation"))
    train, penalty = arms.labelled("train"), max(PENALTIES, key=lambda each: _area(known, each))
    return FittedArm(arms, fit_pooled(train.values, train.labels, train.patients, penalty=penalty))


def self_trained(arms: Arms) -> FittedArm:
    """The classifier, fitted again with the scans without labels that it is surest of (Lee 2013)."""
    return _with_guesses(arms, arms.real.logits_of(arms.without_labels) + arms.real.offset, SURE)


def propagated(arms: Arms) -> FittedArm:
    """The classifier, fitted with labels that spread to the nearest samples without one (Zhou et al. 2004)."""
    train, others = arms.labelled("train"), statistics(arms.without_labels)
    table = StandardScaler().fit(train.values).transform(np.concatenate([train.values, others]))
    spread = LabelSpreading("knn", n_neighbors=min(NEIGHBOURS, len(table)), max_iter=1000)
    spread.fit(table, np.concatenate([train.labels, np.full(len(others), -1)]))
    shares = spread.label_distributions_[len(train.labels) :] + 1e-12
    # the classes have the same mass among the scans without labels (Zhu et al. 2003)
    return _with_guesses(arms, np.log(shares / shares.sum(axis=0)) @ [1, -1])


def _area(known: Labelled, penalty: float) -> float:
    """The sum of the AUCs of the default classifier with this penalty on patients who were left out."""
    total = 0.0
    for held_out in left_out(known):
        rest, tested = known.select(~held_out), known.select(held_out)
        fitted = fit_pooled(rest.values, rest.labels, rest.patients, penalty=penalty)
        with torch.inference_mode():
            total += area_under_curve(tested, fitted.grade(torch.from_numpy(tested.values)).numpy())
    return total


def _with_guesses(arms: Arms, answers: Floats, share: float = 1.0) -> FittedArm:
    """The classifier is also fitted on this share of the samples without labels, by the sign of their ``answers`` [m].

    Where patients are graded, all samples of a patient have the sign of their mean.
    """
    without = arms.without_labels
    if not len(without):  # no tumour was found in them
        return arms.real
    if arms.setting.plan.design.task == "grade":
        names, of = np.unique(without.patients, return_inverse=True)
        answers = mean_by_patient(answers, of, len(names))[0][of]
    sure = np.abs(answers) >= np.quantile(np.abs(answers), 1 - share)
    guessed = without.with_labels((answers <= 0).astype(np.int64), without.classes).select(sure)
    return arms.fit(guessed, of_patients=True)

"""What synthetic features must beat: plain ways to the same end, and controls that must not grade well.

``oversampled`` repeats training samples. PLAIN are generators (``gliaflow_plugins.generators.baselines``); as comparators
they make the classes alike in number, and their critic has no say.

``real``, ``weights`` (the classifier's ``weights="balanced"``) and ``threshold`` train on no more samples.
``threshold``, these four and the generators' arms are shifted by ``balanced_offset`` of the training and validation
patients: more samples of a class move the line between the classes, and that is no merit of the samples.
``linear_grader`` is the paper's linear model (section 4.2, where it always said HGG); ``number_grader`` grades
a patient by one number, the tumour's size or how many slices there are: what those already tell, no feature adds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gliaflow_plugins.generators.baselines import SMOTE, Gaussian, Mixup
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gliaflow_evaluation.generator_quality import pool

Floats = NDArray[np.float64]
Features = NDArray[Any]
Labels = NDArray[np.int64]

PLAIN = (SMOTE(), Gaussian(), Mixup())


def oversampled(labels: Labels, seed: int) -> Labels:
    """Which samples [m] to repeat so that each class is as large as the largest, each as often as the others of it."""
    rng = np.random.default_rng(seed)
    have = np.bincount(labels)
    more = [_repeated(np.flatnonzero(labels == label), have.max() - have[label], rng) for label in np.unique(labels)]
    return np.concatenate(more)


def balanced_offset(logits: ArrayLike, positive: ArrayLike) -> float:
    """What to add to logits so that their log-loss is least where both classes count alike; at most 30 either way.

    0 where there is one class only. NaN, not graded, is passed over.
    """
    scores, kind = np.asarray(logits, dtype=np.float64), np.asarray(positive, dtype=np.bool_)
    kind, scores = kind[~np.isnan(scores)], scores[~np.isnan(scores)]
    if len(np.unique(kind)) < 2:
        return 0.0

    def slope(offset: float) -> float:
        missing = kind - expit(scores + offset)
        return float(missing[kind].mean() + missing[~kind].mean())

    return float(brentq(slope, -30, 30)) if slope(-30) > 0 > slope(30) else 30.0 * np.sign(slope(0))


def linear_grader(features: Features, labels: Labels) -> Callable[[Features], Floats]:
    """The paper's linear model: logistic regression on pooled features, standardised; unweighted, as there.

    Parameters
    ----------
    features, labels: the training samples [n, C, H, W] and [n]; class 0 is the positive one.

    Returns
    -------
    A function from features [m, C, H, W] to logits [m].

    Raises
    ------
    ValueError: the training samples are all of one class.
    """
    grade = _logistic(pool(features), labels == 0, balanced=False)
    return lambda others: grade(pool(others))


def number_grader(values: ArrayLike, positive: ArrayLike) -> Callable[[ArrayLike], Floats]:
    """Logistic regression on one number of each patient, or a few of them.

    Parameters
    ----------
    values: of the training patients [P] or [P, k].
    positive: whether they are of the first class [P].

    Returns
    -------
    A function from values [Q] or [Q, k] to logits [Q].

    Raises
    ------
    ValueError: the training patients are all of one class.
    """

    def columns(numbers: ArrayLike) -> Floats:
        table = np.asarray(numbers, dtype=np.float64)
        return table[:, None] if table.ndim == 1 else table

    grade = _logistic(columns(values), np.asarray(positive, dtype=np.bool_), balanced=True)
    return lambda others: grade(columns(others))


def _repeated(index: Labels, count: int, rng: np.random.Generator) -> Labels:
    """``count`` of ``index``, each as often as any other, or once more."""
    rounds = [rng.permutation(index) for _ in range(-(-count // len(index)))]
    return np.concatenate([index[:0], *rounds])[:count]


def _logistic(values: NDArray[Any], positive: NDArray[np.bool_], balanced: bool) -> Callable[[NDArray[Any]], Floats]:
    if len(np.unique(positive)) < 2:
        raise ValueError("the training samples are all of one class")
    model = make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced" if balanced else None, max_iter=5000)
    )
    model.fit(values.astype(np.float64), positive)

    def grade(others: NDArray[Any]) -> Floats:
        if not len(others):
            return np.zeros(0)
        logits: Floats = model.decision_function(others.astype(np.float64))
        return logits

    return grade

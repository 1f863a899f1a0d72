"""The arms without synthetic features: what a generator must beat, and controls that must not grade well.

COMPARATORS is the one table of them: the folds fit its entries; summary, verdict, report and the check of generators'
names read it. A new comparator is a function with ``@Comparator``. It gives the logits of the test samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from gliaflow_plugins.generators.baselines import SMOTE, Baseline, Gaussian, Mixup
from numpy.typing import NDArray

from gliaflow_evaluation.generator_quality import pool
from gliaflow_evaluation.measures import Floats
from gliaflow_evaluation.tables import Entry

if TYPE_CHECKING:
    from gliaflow_evaluation.arms import Arms

Labels = NDArray[np.int64]
Kind = Literal["real", "remedy", "carried", "lent", "linear", "shortcut"]

KINDS: dict[Kind, str] = {
    "real": "Real features",
    "remedy": "Other remedies for too few samples",
    "carried": "Variation of the other class, and of scans without labels",
    "lent": "Labels of other patients",
    "linear": "Simpler classifiers",
    "shortcut": "Shortcuts that look at no feature",
}
LINEAR_SAMPLES = 2000  # the most training samples of the linear model, which holds all of them in memory


@dataclass
class Comparator(Entry[Callable[["Arms"], Floats]]):
    """An arm without synthetic features.

    ``real``, remedies and what is carried over are also fitted on fewer patients, all but remedies also on shuffled
    labels. What is carried over is judged against the other arms, and so is what is lent, which other patients' labels
    taught. The latter has no control: shuffled labels would be at chance even if these patients were among the others.
    Nor has a shortcut, which looks at no feature and grades patients only.
    """

    kind: Kind
    version: int = 1  # counts up when the arm comes to mean something else, so that earlier answers are not used
    unlabelled: bool = False  # needs scans without labels
    source: bool = False  # needs labelled scans of another cohort
    of_bundle: bool = False  # needs a bundle (--unet) that has a classifier of the same features
    plain_generator: bool = False  # a generator of this name, if requested, takes the comparator's place
    table: ClassVar[dict[str, Comparator]] = {}


@Comparator("real features alone", "real")
def real(arms: Arms) -> Floats:
    """The classifier of all arms, on real features alone."""
    return arms.real.logits("test")


@Comparator("class weights", "remedy")
def weights(arms: Arms) -> Floats:
    """``real``, where a sample of the rare class weighs more in the loss."""
    return arms.weighted.logits("test")


@Comparator("real features, threshold moved", "remedy")
def threshold(arms: Arms) -> Floats:
    """``real`` with its threshold moved, as in all arms with more samples. A gain over it comes from the samples."""
    return arms.real.shifted


@Comparator("real features, penalty chosen", "remedy", version=2)
def penalty(arms: Arms) -> Floats:
    """``threshold``, with the penalty of the classifier that grades patients best who are left out."""
    from gliaflow_evaluation.remedies import penalty_chosen  # here: readers of metrics.json need no torch

    return penalty_chosen(arms).shifted


@Comparator("self-training on scans without labels", "remedy", unlabelled=True)
def self_training(arms: Arms) -> Floats:
    """``real`` labels the other scans, and the classifier is fitted again with those it is surest of."""
    from gliaflow_evaluation.remedies import self_trained

    return self_trained(arms).shifted


@Comparator("label propagation to scans without labels", "remedy", unlabelled=True)
def propagation(arms: Arms) -> Floats:
    """Labels spread to the nearest samples without one, and the classifier is fitted with these too."""
    from gliaflow_evaluation.remedies import propagated

    return propagated(arms).shifted


@Comparator("covariance shared by the classes", "carried")
def shared(arms: Arms) -> Floats:
    """The classifier ``shared``: the samples of both classes show how either varies."""
    return arms.shared().logits("test")


@Comparator("covariance shared with scans without labels", "carried", unlabelled=True)
def shared_unlabelled(arms: Arms) -> Floats:
    """The classifier ``shared``, fitted with scans without labels too."""
    return arms.shared(arms.without_labels).logits("test")


@Comparator("the classifier of the bundle that --unet names", "lent", of_bundle=True)
def bundle(arms: Arms) -> Floats:
    """Fitted on other patients, and used as it is, with its threshold moved by these."""
    return arms.of_bundle.shifted


@Comparator("the other cohort alone", "lent", source=True)
def source(arms: Arms) -> Floats:
    """Fitted on the labelled features of another cohort, with its threshold moved by these patients."""
    return arms.fit(arms.of_source, alone=True, of_patients=True).shifted


@Comparator("both cohorts", "lent", source=True)
def both(arms: Arms) -> Floats:
    """``real``, fitted with the labelled features of another cohort too. Each patient weighs the same."""
    return arms.fit(arms.of_source, of_patients=True).shifted


@Comparator("oversampling", "remedy")
def oversample(arms: Arms) -> Floats:
    """Samples of the rare class are repeated."""
    return arms.fit(arms.train.select(oversampled(arms.train.labels, arms.setting.seed))).shifted


@Comparator("SMOTE", "remedy", plain_generator=True)
def smote(arms: Arms) -> Floats:
    """Samples of the rare class are made by SMOTE."""
    return _made_by(SMOTE(), arms)


@Comparator("class-conditional Gaussian", "remedy", plain_generator=True)
def gaussian(arms: Arms) -> Floats:
    """Samples of the rare class are drawn from its Gaussian."""
    return _made_by(Gaussian(), arms)


@Comparator("mixup of features", "remedy", plain_generator=True)
def mixup(arms: Arms) -> Floats:
    """Samples of the rare class are mixed of two patients' samples."""
    return _made_by(Mixup(), arms)


@Comparator("linear model", "linear")
def linear(arms: Arms) -> Floats:
    """The paper's linear model on pooled features, unweighted (section 4.2, where it always said HGG)."""
    some = np.sort(np.random.default_rng(arms.setting.seed).permutation(len(arms.train))[:LINEAR_SAMPLES])
    pooled = pool(arms.train.batch(some).astype(np.float16))
    grade = logistic(pooled, arms.train.labels[some] == 0)
    return grade(pool(arms.test.batch(np.arange(len(arms.test)))))


@Comparator("tumour size alone", "shortcut")
def size(arms: Arms) -> Floats:
    """The number of pixels that the U-Net marks in all slices of a patient."""
    _, of = np.unique(arms.samples.patients, return_inverse=True)
    return _by_number(arms, np.log1p(np.bincount(of, arms.samples.tumour.astype(np.float64))))


@Comparator("number of slices alone", "shortcut")
def slices(arms: Arms) -> Floats:
    """The number of slices of a patient's scans."""
    names = np.unique(arms.samples.patients)
    return _by_number(arms, np.array([arms.setting.slices[name] for name in names], dtype=np.float64))


COMPARATORS = Comparator.table


def comparators(*kinds: Kind) -> list[str]:
    """The names of the comparators of these kinds."""
    return [name for name, comparator in COMPARATORS.items() if comparator.kind in kinds]


def oversampled(labels: Labels, seed: int) -> Labels:
    """Which samples [m] to repeat so that all classes are as large as the largest; each equally often, or once more."""
    rng = np.random.default_rng(seed)
    have = np.bincount(labels)
    more = []
    for label in np.unique(labels):
        index, count = np.flatnonzero(labels == label), have.max() - have[label]
        rounds = [rng.permutation(index) for _ in range(-(-count // len(index)))]
        more.append(np.concatenate([index[:0], *rounds])[:count])
    return np.concatenate(more)


def logistic(
    values: NDArray[Any], positive: NDArray[np.bool_], weights: Literal["balanced"] | None = None
) -> Callable[[NDArray[Any]], Floats]:
    """Logistic regression on standardised values [n, d]: a function from values [m, d] to logits [m].

    Raises
    ------
    ValueError: all are of one class.
    """
    from sklearn.linear_model import LogisticRegression  # here: readers of metrics.json need no scikit-learn
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(positive)) < 2:
        raise ValueError("the training samples are all of one class")
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight=weights, max_iter=5000))
    model.fit(values.astype(np.float64), positive)
    return lambda others: model.decision_function(others.astype(np.float64)) if len(others) else np.zeros(0)


def _made_by(variant: Baseline, arms: Arms) -> Floats:
    """A plain generator makes the classes equal in number. Its critic does not judge."""
    fitted = variant.fit(arms.train, variant.options(), arms.setting.context)
    return arms.fit(arms.draw(fitted, arms.missing(), judged=False)).shifted


def _by_number(arms: Arms, number: Floats) -> Floats:
    """Grade by one number of each patient, in the order of their names: what it shows already, no feature adds."""
    _, first, of = np.unique(arms.samples.patients, return_index=True, return_inverse=True)
    learnt = np.unique(of[arms.index["train"]])
    grade = logistic(number[learnt, None], arms.samples.labels[first[learnt]] == 0, "balanced")
    return grade(number[:, None])[of[arms.index["test"]]]

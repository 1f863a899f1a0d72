"""What synthetic features must beat: plain ways to the same end, and controls that must not grade well.

``extra`` makes more training samples for the same classifier, from training samples only:

- ``oversample`` repeats samples, each as often as the others;
- ``smote`` lies between a sample and one of its 5 nearest of the class (Chawla et al. 2002; imbalanced-learn), in
  the space of the principal components;
- ``gaussian`` draws from each class's Gaussian in that space, its covariance shrunk (Ledoit and Wolf 2004);
- ``mixup`` mixes two samples of one class and of different patients, by Beta(0.4, 0.4) (Zhang et al. 2018). It mixes
  within the class since the classifier is taught hard labels.

``real``, ``weights`` (the classifier's ``weights="balanced"``) and ``threshold`` train on no more samples.
``threshold``, these four and the generators' arms are shifted by ``balanced_offset`` of the training and validation
patients: more samples of a class move the line between the classes, and that is no merit of the samples.
``linear_grader`` is the paper's linear model (section 4.2, where it always said HGG); ``number_grader`` grades
a patient by one number, the tumour's size or how many slices there are: what those already tell, no feature adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gliaflow_plugins.generators import ArrayFeatures, channel_scale
from imblearn.over_sampling import SMOTE
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gliaflow_trainer.gan_measures import DIMS, pool, principal

Floats = NDArray[np.float64]
Features = NDArray[Any]
Labels = NDArray[np.int64]

WITHOUT_EXTRA = ("real", "weights", "threshold")
WITH_EXTRA = ("oversample", "smote", "gaussian", "mixup")
NEIGHBOURS = 5
MIX = 0.4
CHUNK = 64


@dataclass(frozen=True, eq=False)
class FeaturePCA:
    """Principal components of feature maps, each channel over its root mean square first.

    ``mean`` [D] and ``components`` [k, D] are of the scaled maps, D = C · H · W; ``low`` is the smallest value
    seen, 0 after a ReLU: nothing that comes back is below.
    """

    shape: tuple[int, int, int]
    scale: NDArray[np.float32]
    mean: NDArray[np.float32]
    components: NDArray[np.float32]
    low: float

    @classmethod
    def fit(cls, features: Features, dims: int = DIMS, seed: int = 0) -> FeaturePCA:
        """On training features [n, C, H, W] alone; at most ``dims`` components. Takes one float32 copy of them.

        Raises
        ------
        ValueError: fewer than two samples.
        """
        if len(features) < 2:
            raise ValueError(f"{len(features)} samples have no principal components; at least 2 are needed")
        scale = channel_scale(ArrayFeatures(features, np.zeros(len(features), np.int64), ("any",)))
        scaled = _over(features, scale)
        mean = scaled.mean(axis=0)
        scaled -= mean
        components, _ = principal(scaled, dims, seed)
        return cls(features.shape[1:], scale, mean, components, float(features.min()))

    def transform(self, features: Features) -> NDArray[np.float32]:
        """Features [n, C, H, W] → scores [n, k]."""
        parts = [
            (_over(features[start : start + CHUNK], self.scale) - self.mean) @ self.components.T
            for start in range(0, len(features), CHUNK)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.components)), np.float32)

    def inverse(self, scores: NDArray[np.floating], dtype: Any = np.float32) -> Features:
        """Scores [n, k] → features [n, C, H, W] of ``dtype``."""
        maps = np.empty((len(scores), *self.shape), dtype)
        high = np.finfo(dtype).max
        for start in range(0, len(scores), CHUNK):
            flat = scores[start : start + CHUNK].astype(np.float32) @ self.components + self.mean
            found = flat.reshape(-1, *self.shape) * self.scale[:, None, None]
            maps[start : start + CHUNK] = np.clip(found, self.low, high)
        return maps


def extra(
    name: str,
    features: Features,
    labels: Labels,
    patients: Sequence[str],
    count: Mapping[int, int] | Literal["balance"] = "balance",
    *,
    seed: int,
    pca: FeaturePCA | None = None,
) -> tuple[Features, Labels]:
    """More training samples, by one of WITH_EXTRA; none for one of WITHOUT_EXTRA.

    Parameters
    ----------
    features, labels, patients: the training samples [n, C, H, W], their classes [n] and whose they are [n].
    count: how many of each class; "balance" makes each class as many as the largest.
    pca: fitted on ``features``, where several comparators share it.

    Returns
    -------
    Features [m, C, H, W] of the dtype of ``features`` and labels [m], class by class.

    Raises
    ------
    ValueError: an unknown name, training samples of one class, or more wanted of a class that has none.
    """
    if name not in WITHOUT_EXTRA + WITH_EXTRA:
        raise ValueError(f"{name!r} is not one of {', '.join(WITHOUT_EXTRA + WITH_EXTRA)}")
    have = np.bincount(labels)
    if np.count_nonzero(have) < 2:
        raise ValueError(f"the training samples are all of one class: {have.tolist()}")
    if count == "balance":
        wanted = {label: int(have.max() - number) for label, number in enumerate(have) if number}
    else:
        wanted = {label: number for label, number in sorted(count.items()) if number}
        if missing := [label for label in wanted if label >= len(have) or not have[label]]:
            raise ValueError(f"there is no training sample of class {missing[0]} to make more from")
    if name in WITHOUT_EXTRA:
        wanted = {}
    rng = np.random.default_rng(seed)
    if name in ("smote", "gaussian") and any(wanted.values()):
        pca = pca or FeaturePCA.fit(features, seed=seed)
        scores = pca.transform(features)
        make = _smote if name == "smote" else _gaussian
        made = [pca.inverse(make(scores, labels == label, n, rng), features.dtype) for label, n in wanted.items()]
    elif name == "mixup":
        names = np.asarray(patients, dtype=np.str_)
        made = [_mixup(features, np.flatnonzero(labels == label), names, n, rng) for label, n in wanted.items()]
    else:
        made = [features[_repeated(np.flatnonzero(labels == label), n, rng)] for label, n in wanted.items()]
    return (
        np.concatenate([features[:0], *made]),
        np.repeat(np.array(list(wanted), dtype=np.int64), np.array(list(wanted.values()), dtype=np.int64)),
    )


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


def linear_grader(features: Features, labels: Labels, *, balanced: bool = False) -> Callable[[Features], Floats]:
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
    grade = _logistic(pool(features), labels == 0, balanced)
    return lambda others: grade(pool(others))


def number_grader(values: ArrayLike, positive: ArrayLike, *, balanced: bool = True) -> Callable[[ArrayLike], Floats]:
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

    grade = _logistic(columns(values), np.asarray(positive, dtype=np.bool_), balanced)
    return lambda others: grade(columns(others))


def _over(features: Features, scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features [n, C, H, W] over each channel's scale, [n, D] float32; 0 in a channel that was always 0."""
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    scaled = features.astype(np.float32)
    scaled *= inverse[:, None, None]
    return scaled.reshape(len(features), -1)


def _repeated(index: Labels, count: int, rng: np.random.Generator) -> Labels:
    """``count`` of ``index``, each as often as any other, or once more."""
    rounds = [rng.permutation(index) for _ in range(-(-count // len(index)))]
    return np.concatenate([index[:0], *rounds])[:count]


def _smote(
    scores: NDArray[np.float32], of_class: NDArray[np.bool_], count: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    have = int(of_class.sum())
    if have == 1 or not count:  # one sample has no neighbour
        return scores[of_class][np.zeros(count, np.int64)]
    smote = SMOTE(
        sampling_strategy={True: have + count},
        k_neighbors=min(NEIGHBOURS, have - 1),
        random_state=int(rng.integers(2**31)),
    )
    made, _ = smote.fit_resample(scores, of_class)
    found: NDArray[np.float32] = made[len(scores) :]
    return found


def _gaussian(
    scores: NDArray[np.float32], of_class: NDArray[np.bool_], count: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    own, others = scores[of_class].astype(np.float64), scores[~of_class].astype(np.float64)
    mean = own.mean(axis=0)
    # Components differ in spread by orders of magnitude, and it is to one spread for all that the estimate shrinks:
    # so each goes over its spread within the classes, what sets them apart left out.
    spread = np.concatenate([own - mean, others - others.mean(axis=0)]).std(axis=0)
    spread[spread == 0] = 1
    covariance = ledoit_wolf(own / spread)[0] if len(own) > 1 else np.zeros((len(mean), len(mean)))
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))
    drawn: Floats = mean + spread * (rng.standard_normal((count, len(mean))) @ root.T)
    return drawn.astype(np.float32)


def _mixup(
    features: Features, index: Labels, patients: NDArray[np.str_], count: int, rng: np.random.Generator
) -> Features:
    first = _repeated(index, count, rng)
    second = np.empty_like(first)
    for patient in np.unique(patients[first]):
        others = index[patients[index] != patient]
        its = patients[first] == patient
        second[its] = rng.choice(others if len(others) else index, int(its.sum()))
    share = rng.beta(MIX, MIX, count).astype(np.float32)
    mixed = np.empty((count, *features.shape[1:]), features.dtype)
    for start in range(0, count, CHUNK):
        one, other = (features[side[start : start + CHUNK]].astype(np.float32) for side in (first, second))
        mixed[start : start + CHUNK] = other + share[start : start + CHUNK, None, None, None] * (one - other)
    return mixed


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

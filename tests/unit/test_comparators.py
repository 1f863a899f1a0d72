"""Comparators: what each makes is what its name says, of training samples only."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("imblearn")

from gliaflow_trainer.comparators import (
    WITH_EXTRA,
    WITHOUT_EXTRA,
    FeaturePCA,
    balanced_offset,
    extra,
    linear_grader,
    number_grader,
)

Sample = tuple[np.ndarray, np.ndarray, list[str]]


def sample(n: int = 48, rare: int = 12, shape: tuple[int, int, int] = (3, 5, 4), seed: int = 0) -> Sample:
    """Features after a ReLU, channels of very different scales; the last ``rare`` are LGG. Four slices a patient."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) >= n - rare).astype(np.int64)
    features = np.maximum(0, rng.standard_normal((n, *shape)) + 1 + labels[:, None, None, None])
    features *= 10.0 ** np.arange(shape[0])[:, None, None]
    return features.astype(np.float32), labels, [f"P{i // 4}" for i in range(n)]


def off_segments(made: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each made sample [m, d]: the pair of ends it is between [m, 2], and how far off their segment it is [m]."""
    one, other = np.triu_indices(len(ends))
    start, along = ends[one], ends[other] - ends[one]
    length = np.maximum(np.square(along).sum(axis=1), 1e-12)
    pairs, off = [], []
    for point in made:
        share = np.clip(((point - start) * along).sum(axis=1) / length, 0, 1)
        apart = np.linalg.norm(start + share[:, None] * along - point, axis=1)
        pairs.append((one[apart.argmin()], other[apart.argmin()]))
        off.append(apart.min())
    return np.array(pairs), np.array(off)


@pytest.mark.parametrize("name", WITH_EXTRA)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_classes_are_balanced_unless_counts_are_given(name: str, dtype: type) -> None:
    features, labels, patients = sample()
    features = features.astype(dtype)
    made, of = extra(name, features, labels, patients, seed=0)
    assert made.shape == (24, 3, 5, 4)
    assert made.dtype == dtype
    assert made.min() >= 0
    assert of.tolist() == [1] * 24
    made, of = extra(name, features, labels, patients, {1: 7, 0: 2}, seed=0)
    assert len(made) == 9
    assert of.tolist() == [0] * 2 + [1] * 7


@pytest.mark.parametrize("name", WITH_EXTRA)
def test_chance_comes_from_the_seed(name: str) -> None:
    first, again, other = (extra(name, *sample(), seed=seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", WITHOUT_EXTRA)
def test_the_others_train_on_no_more(name: str) -> None:
    made, of = extra(name, *sample(), seed=0)
    assert made.shape == (0, 3, 5, 4)
    assert of.shape == (0,)
    assert of.dtype == np.int64


def test_oversampling_repeats_each_rare_sample_equally_often() -> None:
    features, labels, patients = sample(n=40, rare=12)
    made, _ = extra("oversample", features, labels, patients, seed=0)
    times = [int((made == own).all(axis=(1, 2, 3)).sum()) for own in features[labels == 1]]
    assert sorted(times) == [1] * 8 + [2] * 4
    assert not any((made == own).all(axis=(1, 2, 3)).any() for own in features[labels == 0])


def test_smote_lies_between_neighbours_of_the_class() -> None:
    features, labels, patients = sample()
    pca = FeaturePCA.fit(features)
    made, _ = extra("smote", features, labels, patients, seed=0, pca=pca)
    own = pca.transform(features[labels == 1])
    pairs, off = off_segments(pca.transform(made), own)
    assert off.max() < 1e-3 * np.ptp(own)
    apart = np.linalg.norm(own[:, None] - own, axis=2)
    rank = apart.argsort(axis=1).argsort(axis=1)
    assert (np.minimum(rank[pairs[:, 0], pairs[:, 1]], rank[pairs[:, 1], pairs[:, 0]]) <= 5).all()


def test_gaussian_has_each_classs_mean_and_spread() -> None:
    features, labels, patients = sample(n=3000, rare=1000, shape=(2, 2, 2))
    pca = dataclasses.replace(FeaturePCA.fit(features), low=-np.inf)  # so that nothing is clipped
    made, of = extra("gaussian", features, labels, patients, {0: 3000, 1: 3000}, seed=0, pca=pca)
    for label in (0, 1):
        real, drawn = (pca.transform(side) for side in (features[labels == label], made[of == label]))
        assert np.allclose(real.mean(axis=0), drawn.mean(axis=0), atol=0.1 * real.std())
        assert np.allclose(np.cov(real.T), np.cov(drawn.T), atol=0.15 * real.var(axis=0).max())


def test_mixup_lies_between_two_patients_of_the_class() -> None:
    features, labels, patients = sample()
    made, _ = extra("mixup", features, labels, patients, seed=0)
    scale = 10.0 ** np.arange(3)[:, None, None]
    own = (features[labels == 1] / scale).reshape(12, -1)
    pairs, off = off_segments((made / scale).reshape(24, -1), own)
    assert off.max() < 1e-5
    assert (pairs[:, 0] // 4 != pairs[:, 1] // 4).all()


def test_mixup_within_the_only_patient_there_is() -> None:
    features, labels, patients = sample(rare=4)
    assert len(extra("mixup", features, labels, patients, {1: 5}, seed=0)[0]) == 5


@pytest.mark.parametrize("name", WITH_EXTRA)
@pytest.mark.parametrize("rare", [1, 2, 3])
def test_a_handful_of_rare_samples_is_enough(name: str, rare: int) -> None:
    features, labels, patients = sample(n=10, rare=rare)
    made, of = extra(name, features, labels, patients, seed=0)
    assert np.isfinite(made).all()
    assert of.tolist() == [1] * (10 - 2 * rare)
    assert len(extra(name, features, labels, patients, {}, seed=0)[0]) == 0


@pytest.mark.parametrize("name", WITH_EXTRA)
def test_features_that_are_all_the_same_are_made_again(name: str) -> None:
    features, labels, patients = sample(n=10, rare=3)
    features[:, 1], features[:, 0] = 0, 7
    features[:, 2] = 0
    made, _ = extra(name, features, labels, patients, seed=0)
    assert np.allclose(made, features[:4], rtol=1e-5)


def test_what_cannot_be_made_is_refused() -> None:
    features, labels, patients = sample()
    with pytest.raises(ValueError, match="magic"):
        extra("magic", features, labels, patients, seed=0)
    with pytest.raises(ValueError, match="class 2"):
        extra("smote", features, labels, patients, {2: 3}, seed=0)
    with pytest.raises(ValueError, match="one class"):
        extra("smote", features, np.ones_like(labels), patients, seed=0)
    with pytest.raises(ValueError, match="at least 2"):
        FeaturePCA.fit(features[:1])


def test_components_of_few_samples_give_every_one_of_them_back() -> None:
    features, *_ = sample(n=20)
    pca = FeaturePCA.fit(features)
    assert pca.components.shape == (19, 60)
    assert np.allclose(pca.inverse(pca.transform(features)), features, rtol=1e-3, atol=1e-3)
    assert np.allclose(pca.components @ pca.components.T, np.eye(19), atol=1e-4)
    assert pca.inverse(np.full((1, 19), 1e6, np.float32), np.float16).max() == np.finfo(np.float16).max


def test_an_offset_puts_the_line_between_the_classes_however_few_one_has() -> None:
    rng = np.random.default_rng(0)
    positive = np.arange(400) < 380
    logits = 3.0 + np.where(positive, 1.0, -1.0) + 0.5 * rng.standard_normal(400)
    assert balanced_offset(logits, positive) == pytest.approx(-3, abs=0.2)
    assert balanced_offset([*logits, np.nan], [*positive, True]) == balanced_offset(logits, positive)
    assert balanced_offset(logits, np.ones(400)) == 0
    assert balanced_offset([500.0, 501.0], [True, False]) == -30


def test_the_linear_model_grades_and_unweighted_leans_to_the_common_class() -> None:
    features, labels, _ = sample(n=80, rare=8)
    assert ((linear_grader(features, labels)(features) > 0) == (labels == 0)).all()
    noise = np.random.default_rng(1).random((60, 1, 1, 1))  # nothing to learn
    plain, balanced = (linear_grader(noise, (np.arange(60) % 6 == 0) * 1, balanced=b)(noise) for b in (False, True))
    assert (plain > 0).all()
    assert balanced.mean() < plain.mean()
    assert linear_grader(features, labels)(features[:0]).shape == (0,)
    with pytest.raises(ValueError, match="one class"):
        linear_grader(features, np.zeros_like(labels))


def test_a_number_that_leaks_the_grade_is_found_out() -> None:
    rng = np.random.default_rng(2)
    positive = np.arange(60) < 40
    size = np.where(positive, 5000, 2000) + 500 * rng.standard_normal(60)
    logits = number_grader(size[::2], positive[::2])(size[1::2])
    assert ((logits > 0) == positive[1::2]).mean() > 0.9
    both = np.stack([size, rng.standard_normal(60)], axis=1)
    assert number_grader(both, positive)(both).shape == (60,)
    with pytest.raises(ValueError, match="one class"):
        number_grader(size[:5], positive[:5])

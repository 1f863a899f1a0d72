"""Comparators: each does what its name says, with training samples only."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from gliaflow_evaluation.comparators import COMPARATORS, Comparator, comparators, logistic, oversampled
from gliaflow_evaluation.generator_quality import pool
from gliaflow_evaluation.threshold import balanced_offset

Sample = tuple[np.ndarray, np.ndarray, list[str]]


def sample(n: int = 48, rare: int = 12, shape: tuple[int, int, int] = (3, 5, 4), seed: int = 0) -> Sample:
    """Features after a ReLU, channels of very different scales; the last ``rare`` are LGG. Four slices a patient."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) >= n - rare).astype(np.int64)
    features = np.maximum(0, rng.standard_normal((n, *shape)) + 1 + labels[:, None, None, None])
    features *= 10.0 ** np.arange(shape[0])[:, None, None]
    return features.astype(np.float32), labels, [f"P{i // 4}" for i in range(n)]


def test_oversampling_repeats_each_rare_sample_equally_often() -> None:
    labels = np.array([0] * 28 + [1] * 12)
    repeated = oversampled(labels, seed=0)
    assert sorted(np.bincount(repeated)[28:]) == [1] * 8 + [2] * 4
    assert repeated.min() == 28, "none of the common class"
    assert np.array_equal(repeated, oversampled(labels, seed=0))


def test_an_offset_puts_the_threshold_between_the_classes_however_few_one_has() -> None:
    rng = np.random.default_rng(0)
    positive = np.arange(400) < 380
    logits = 3.0 + np.where(positive, 1.0, -1.0) + 0.5 * rng.standard_normal(400)
    assert balanced_offset(logits, positive) == pytest.approx(-3, abs=0.2)
    assert balanced_offset([*logits, np.nan], [*positive, True]) == balanced_offset(logits, positive)
    assert balanced_offset(logits, np.ones(400)) == 0
    assert balanced_offset([500.0, 501.0], [True, False]) == -30


def test_the_linear_model_grades_and_unweighted_leans_to_the_common_class() -> None:
    features, labels, _ = sample(n=80, rare=8)
    pooled = pool(features)
    assert ((logistic(pooled, labels == 0)(pooled) > 0) == (labels == 0)).all()
    noise = np.random.default_rng(1).random((60, 1))  # there is nothing to learn
    assert (logistic(noise, np.arange(60) % 6 > 0)(noise) > 0).all()
    assert logistic(pooled, labels == 0)(pooled[:0]).shape == (0,)
    with pytest.raises(ValueError, match="one class"):
        logistic(pooled, np.ones(80, dtype=bool))


def test_a_number_that_reveals_the_grade_is_found_out() -> None:
    rng = np.random.default_rng(2)
    positive = np.arange(60) < 40
    size = (np.where(positive, 5000, 2000) + 500 * rng.standard_normal(60))[:, None]
    logits = logistic(size[::2], positive[::2], "balanced")(size[1::2])
    assert ((logits > 0) == positive[1::2]).mean() > 0.9


def test_the_table_has_every_comparator_with_a_title_and_a_description() -> None:
    assert comparators("real") == ["real"]
    assert comparators("shortcut") == ["size", "slices"]
    assert [name for name, each in COMPARATORS.items() if each.plain_generator] == ["smote", "gaussian", "mixup"]
    assert all(each.title and each.description for each in COMPARATORS.values())


def test_a_new_comparator_is_one_function() -> None:
    before = dict(COMPARATORS)

    @Comparator("always the first class", "linear")
    def always(arms: object) -> np.ndarray:
        """The first class, whatever the patient."""
        return np.ones(3)

    try:
        assert comparators("linear") == ["linear", "always"]
        assert COMPARATORS["always"].description == "The first class, whatever the patient"
    finally:
        COMPARATORS.clear()
        COMPARATORS.update(before)

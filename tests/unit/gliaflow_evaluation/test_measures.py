"""Measures of grading: known values, intervals that hold, paired differences, and nothing gained by not answering."""

import numpy as np
import pytest
from gliaflow_evaluation.measures import (
    DIFFERENCES,
    MEASURES,
    OVER_SLICES,
    OVER_UNITS,
    GradedUnits,
    Measure,
    Units,
    calibration,
    chance_inside,
    confusion,
    mean_by_patient,
    mean_of,
    measure,
    roc_curve,
)
from gliaflow_evaluation.score import Score
from gliaflow_trainer.bootstrap import bootstrap
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

metrics = pytest.importorskip("sklearn.metrics")


def patients(first: int, second: int, folds: int = 1) -> Units:
    """The units are patients: ``first`` of the first class, then ``second`` of the other."""
    everyone = np.arange(first + second)
    return Units(everyone < first, everyone, everyone % folds)


def values_of(logits: object, units: Units, draws: int = 0) -> dict[str, float | None]:
    measured = measure(logits, units, bootstrap(units.positive, draws))
    return {name: measured[name].mean for name in MEASURES}


def test_measures_of_a_case_counted_by_hand() -> None:
    figures = values_of([2.0, 1.0, -1.0, -2.0, 0.5], patients(3, 2))
    assert figures["recall_positive"] == pytest.approx(2 / 3)
    assert figures["recall_negative"] == pytest.approx(1 / 2)
    assert figures["balanced_accuracy"] == pytest.approx(7 / 12)
    assert figures["accuracy"] == pytest.approx(3 / 5)
    assert figures["auc"] == pytest.approx(5 / 6)
    probability = 1 / (1 + np.exp(-np.array([2.0, 1.0, -1.0, -2.0, 0.5])))
    assert figures["brier"] == pytest.approx(metrics.brier_score_loss([1, 1, 1, 0, 0], probability))


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_within_one_fold_the_auc_is_the_usual_one(graded: list[tuple[int, bool]]) -> None:
    logits, positive = (np.array(column) for column in zip(*graded, strict=True))
    units = Units(positive, np.arange(len(positive)), np.zeros(len(positive), int))
    auc = values_of(logits, units)["auc"]
    if len(set(positive.tolist())) < 2:
        assert auc is None
    else:
        assert auc == pytest.approx(metrics.roc_auc_score(positive, logits))


def test_scores_of_two_folds_are_never_compared() -> None:
    """The second fold's logits are 10 higher; within each fold the order is perfect."""
    units = Units(np.array([True, False, True, False]), np.arange(4), np.array([0, 0, 1, 1]))
    logits = np.array([1.0, -1.0, 11.0, 9.0])
    assert values_of(logits, units)["auc"] == 1
    assert metrics.roc_auc_score(units.positive, logits) == 0.75


def test_patients_who_were_not_graded_count_as_a_coin_toss() -> None:
    figures = values_of([np.nan] * 5, patients(3, 2))
    assert figures == dict.fromkeys(MEASURES, 0.5) | {"brier": 0.25}
    answered, silent = (values_of([3.0, last, -3.0, -3.0], patients(2, 2)) for last in (-1.0, np.nan))
    assert silent["balanced_accuracy"] == pytest.approx(0.875)
    assert silent["auc"] == 0.75
    assert answered["auc"] == 1


def test_seeds_are_averaged_each_with_its_own_folds() -> None:
    units = Units(np.array([True, True, False, False]), np.arange(4), np.array([[0, 0, 0, 0], [0, 1, 0, 1]]))
    assert values_of([[1.0, 3.0, 2.0, -1.0], [1.0, 3.0, 2.0, -1.0]], units)["auc"] == pytest.approx((0.75 + 0.5) / 2)


def test_the_mean_over_independent_shuffles_has_a_narrower_interval() -> None:
    rng = np.random.default_rng(0)
    draws = bootstrap(np.zeros(60))
    shuffles = [
        measure(rng.standard_normal(60), Units(rng.random(60) < 0.5, np.arange(60), np.zeros(60, int)), draws)
        for _ in range(9)
    ]
    mean = mean_of(shuffles)
    assert mean["auc"].mean == pytest.approx(np.mean([each["auc"].mean for each in shuffles]))
    widths = [np.ptp(each["auc"].ci95) for each in (mean, *shuffles)]
    assert widths[0] == pytest.approx(np.mean(widths[1:]) / 3, rel=0.3)


def test_where_a_class_is_missing_the_measures_that_need_it_are_null() -> None:
    draws = bootstrap(np.ones(3), 50)
    measured = measure([1.0, 1.0, -1.0], patients(3, 0), draws)
    assert measured["recall_negative"] == Score(mean=None, ci95=None, n=0)
    assert measured["balanced_accuracy"].mean is measured["auc"].mean is None
    assert measured["recall_positive"].mean == pytest.approx(2 / 3)
    assert measured.minus(measured)["auc"].ci95 is None


def test_the_difference_of_the_same_answers_is_exactly_zero() -> None:
    rng = np.random.default_rng(0)
    units = patients(20, 10, folds=5)
    draws, logits = bootstrap(units.positive), rng.standard_normal((3, 30))
    difference = measure(logits, units, draws).minus(measure(logits, units, draws))
    assert difference.keys() == set(DIFFERENCES)
    assert all(score.mean == 0 and score.ci95 == (0, 0) for score in difference.values())


def test_differences_are_paired() -> None:
    """Two arms that agree but for one patient: each is uncertain, their difference hardly."""
    rng = np.random.default_rng(1)
    units = patients(30, 30)
    draws, logits = bootstrap(units.positive), rng.standard_normal(60) + units.positive
    other = logits.copy()
    other[0] = -other[0]
    one, two = (measure(arm, units, draws) for arm in (logits, other))
    own, apart = one["balanced_accuracy"].ci95, two.minus(one)["balanced_accuracy"].ci95
    assert own is not None
    assert apart is not None
    assert apart[1] - apart[0] < (own[1] - own[0]) / 3


def test_arms_of_different_draws_are_refused() -> None:
    units = patients(3, 3)
    one, other = (measure(np.zeros(6), units, bootstrap(units.positive, 10)) for _ in range(2))
    with pytest.raises(ValueError, match="not paired"):
        one.minus(other)


def test_each_draw_has_as_many_of_each_class_and_the_first_holds_every_patient_once() -> None:
    positive = np.arange(30) < 20
    weights = bootstrap(positive, 100)
    assert (weights[:, 0] == 1).all()
    assert (weights[positive].sum(axis=0) == 20).all()
    assert (weights[~positive].sum(axis=0) == 10).all()
    assert np.array_equal(weights, bootstrap(positive, 100))
    assert not np.array_equal(weights, bootstrap(positive, 100, seed=1))


def test_a_draw_has_the_values_of_a_cohort_of_its_patients() -> None:
    rng = np.random.default_rng(2)
    slices = np.repeat(np.arange(12), 3)
    units = Units(rng.random(36) < 0.5, slices, slices % 3)
    draws, logits = bootstrap(np.zeros(12), 5), rng.standard_normal(36)
    measured = measure(logits, units, draws)
    for draw in range(1, 6):
        taken = np.repeat(np.arange(36), draws[slices, draw].astype(int))
        drawn = Units(units.positive[taken], units.patient[taken], units.fold[taken])
        again = values_of(logits[taken], drawn)
        assert {name: values[draw] for name, values in measured.values.items()} == pytest.approx(again)


def test_intervals_cover_the_truth() -> None:
    """150 cohorts of 40 and 25 patients whose true AUC and balanced accuracy are known."""
    rng = np.random.default_rng(3)
    units, shift = patients(40, 25), 1.2
    truth = {"auc": float(ndtr(shift / 2**0.5)), "balanced_accuracy": float(ndtr(shift / 2))}
    covered = dict.fromkeys(truth, 0)
    for cohort in range(150):
        logits = rng.standard_normal(65) + shift * (units.positive - 0.5)
        measured = measure(logits, units, bootstrap(units.positive, 300, seed=cohort))
        for name in truth:
            covered[name] += chance_inside(measured[name], truth[name])
    assert all(0.88 <= count / 150 <= 0.99 for count in covered.values()), covered


def test_more_slices_of_the_same_patients_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(4)
    few = patients(15, 15, folds=3)
    draws, logits = bootstrap(few.positive, 200), rng.standard_normal(30)
    slices = np.repeat(np.arange(30), 7)
    many = Units(few.positive[slices], slices, few.fold[slices])
    one, seven = measure(logits, few, draws), measure(logits[slices], many, draws)
    for name in MEASURES:
        assert one[name].ci95 == pytest.approx(seven[name].ci95)


def test_a_patient_in_two_folds_is_refused() -> None:
    with pytest.raises(ValueError, match="more than one fold"):
        Units(np.array([True, True]), np.array([0, 0]), np.array([[0, 0], [0, 1]]))


def test_shapes_that_do_not_agree_are_refused() -> None:
    with pytest.raises(ValueError, match="do not agree"):
        Units(np.array([True]), np.array([0, 1]), np.array([0]))
    with pytest.raises(ValueError, match="do not fit"):
        measure(np.zeros(3), patients(2, 2), bootstrap(np.zeros(4), 1))


def test_a_patients_logit_is_the_mean_of_its_slices() -> None:
    means = mean_by_patient([[1.0, 3.0, np.nan, -2.0], [0.0, 0.0, 5.0, 1.0]], np.array([0, 0, 2, 1]), 4)
    assert np.array_equal(means, [[2, -2, np.nan, np.nan], [0, 1, 5, np.nan]], equal_nan=True)


def test_the_scores_of_an_arm_are_those_of_the_table() -> None:
    units = patients(2, 2)
    measured = measure([1.0, 1, -1, 1], units, bootstrap(units.positive, 20))
    over_units, over_slices = measured.scores(), measured.scores(OVER_SLICES)
    assert list(over_units) == OVER_UNITS == ["balanced_accuracy", "auc", "recall_positive", "recall_negative", "brier"]
    assert list(over_slices) == ["recall_positive", "recall_negative", "accuracy"]
    assert over_units["recall_negative"].mean == 0.5
    assert over_slices["accuracy"].mean == 0.75
    assert over_units["recall_positive"] == Score(mean=1.0, ci95=(1.0, 1.0), n=2)


def test_a_new_measure_is_one_function() -> None:
    before = dict(MEASURES)

    @Measure("misses")
    def misses(graded: GradedUnits) -> np.ndarray:
        """Share of all that is graded wrong.

        Not part of the description.
        """
        return 1 - MEASURES["accuracy"].compute(graded)

    try:
        units = patients(2, 2)
        assert measure([1.0, 1, -1, 1], units, bootstrap(units.positive, 2))["misses"].mean == 0.25
        assert MEASURES["misses"].description == "Share of all that is graded wrong"
    finally:
        MEASURES.clear()
        MEASURES.update(before)


def test_chance_is_inside_or_not() -> None:
    assert chance_inside(Score(mean=0.5, ci95=(0.4, 0.6), n=9))
    assert not chance_inside(Score(mean=0.7, ci95=(0.6, 0.8), n=9))
    assert chance_inside(Score(mean=0.1, ci95=(-0.1, 0.3), n=9), chance=0)
    assert not chance_inside(Score(mean=None, ci95=None, n=0))


def units_of(positive: list[bool], folds: int = 1) -> Units:
    everyone = np.arange(len(positive))
    return Units(np.array(positive), everyone, everyone % folds)


def rates(curve: list[dict[str, float]]) -> np.ndarray:
    """The false positive rates and the true positive rates of a ROC curve."""
    return np.array([[point["false_positive_rate"], point["true_positive_rate"]] for point in curve]).reshape(-1, 2).T


graded = st.tuples(st.integers(-3, 3) | st.none(), st.booleans())


@given(st.lists(graded, min_size=2, max_size=30), st.integers(1, 3))
def test_the_area_under_the_mean_roc_curve_is_the_auc(answers: list[tuple[int | None, bool]], folds: int) -> None:
    units = units_of([positive for _, positive in answers], folds)
    logits = np.array([np.nan if logit is None else logit for logit, _ in answers])
    false, true = rates(roc_curve([logits, -logits], units))
    auc = measure([logits, -logits], units, bootstrap(units.positive, 2))["auc"].mean
    if auc is None:
        assert len(false) == len(true) == 0
    else:
        assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, pytest.approx(1))
        assert ((true[1:] + true[:-1]) / 2 * np.diff(false)).sum() == pytest.approx(auc, abs=0.011)
        assert (np.diff(true) > -1e-9).all()


def test_a_roc_curve_of_three_and_two_patients() -> None:
    false, true = rates(roc_curve([3.0, 1.0, -1.0, 0.0, -2.0], units_of([True, True, True, False, False])))
    at = dict(zip(np.round(false, 2), true, strict=True))
    assert (at[0.0], at[0.49], at[0.5], at[1.0]) == pytest.approx((2 / 3, 2 / 3, 1, 1))


def test_a_roc_curve_never_compares_the_scores_of_two_folds() -> None:
    units = units_of([True, True, False, False], folds=2)
    false, true = rates(roc_curve([1.0, 11.0, -1.0, 9.0], units))
    assert true[1:] == pytest.approx(1)
    assert false[1] == 0


def test_a_patient_who_was_not_graded_adds_the_diagonal() -> None:
    false, true = rates(roc_curve([np.nan, np.nan], units_of([True, False])))
    assert true == pytest.approx(false)


def test_a_confusion_matrix_is_the_mean_over_seeds_and_a_patient_who_was_not_graded_counts_half() -> None:
    units = units_of([True, True, False, False])
    logits = [[1.0, -1.0, -1.0, np.nan], [1.0, 1.0, -1.0, np.nan]]
    assert confusion(logits, units).tolist() == [[1.5, 0.5], [0.5, 1.5]]


def test_calibration_sets_predicted_probabilities_beside_observed_shares() -> None:
    positive = np.array([True, False, False, False, True, True, True, False, True, True])
    logits = np.where(np.arange(10) < 5, np.log(1 / 4), np.log(4))
    low, high = calibration([logits, logits], positive, bins=2)
    assert (low["predicted"], low["observed"], low["n"]) == pytest.approx((0.2, 0.4, 5))
    assert (high["predicted"], high["observed"], high["n"]) == pytest.approx((0.8, 0.8, 5))
    assert calibration([np.nan], np.array([True])) == []
    assert len(calibration([0.3, np.nan], np.array([True, False]))) == 1

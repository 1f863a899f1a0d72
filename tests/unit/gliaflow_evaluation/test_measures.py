"""Scores: the right figures, intervals that hold, differences that are paired, and nothing gained by not answering."""

import json

import numpy as np
import pytest
from gliaflow_evaluation.measures import (
    MEASURES,
    Draws,
    Units,
    calibration,
    chance_inside,
    mean_by_patient,
    measure,
    row,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

metrics = pytest.importorskip("sklearn.metrics")


def patients(first: int, second: int, folds: int = 1) -> Units:
    """The units are patients: ``first`` of the first class, then ``second`` of the other."""
    everyone = np.arange(first + second)
    return Units(everyone < first, everyone, everyone % folds)


def found(logits: object, units: Units, draws: int = 0) -> dict[str, float | None]:
    measured = measure(logits, units, Draws.of(units.positive, draws))
    return {name: measured[name]["mean"] for name in MEASURES}


def test_known_figures() -> None:
    figures = found([2.0, 1.0, -1.0, -2.0, 0.5], patients(3, 2))
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
    auc = found(logits, units)["auc"]
    if len(set(positive.tolist())) < 2:
        assert auc is None
    else:
        assert auc == pytest.approx(metrics.roc_auc_score(positive, logits))


def test_scores_of_two_folds_are_never_compared() -> None:
    """The second fold's network says 10 more of everybody; each fold by itself is in perfect order."""
    units = Units(np.array([True, False, True, False]), np.arange(4), np.array([0, 0, 1, 1]))
    logits = np.array([1.0, -1.0, 11.0, 9.0])
    assert found(logits, units)["auc"] == 1
    assert metrics.roc_auc_score(units.positive, logits) == 0.75


def test_patients_who_were_not_graded_count_as_a_coin_toss() -> None:
    figures = found([np.nan] * 5, patients(3, 2))
    assert figures == dict.fromkeys(MEASURES, 0.5) | {"brier": 0.25}
    answered, silent = (found([3.0, last, -3.0, -3.0], patients(2, 2)) for last in (-1.0, np.nan))
    assert silent["balanced_accuracy"] == pytest.approx(0.875)
    assert silent["auc"] == 0.75
    assert answered["auc"] == 1


def test_seeds_are_averaged_each_with_its_own_folds() -> None:
    units = Units(np.array([True, True, False, False]), np.arange(4), np.array([[0, 0, 0, 0], [0, 1, 0, 1]]))
    assert found([[1.0, 3.0, 2.0, -1.0], [1.0, 3.0, 2.0, -1.0]], units)["auc"] == pytest.approx((0.75 + 0.5) / 2)


def test_where_a_class_is_missing_only_what_can_be_measured_is() -> None:
    draws = Draws.of(np.ones(3), 50)
    measured = measure([1.0, 1.0, -1.0], patients(3, 0), draws)
    assert measured["recall_negative"] == {"mean": None, "ci95": None, "n": 0}
    assert measured["balanced_accuracy"]["mean"] is measured["auc"]["mean"] is None
    assert measured["recall_positive"]["mean"] == pytest.approx(2 / 3)
    assert measured.minus(measured)["auc"]["ci95"] is None


def test_the_same_answers_differ_by_exactly_nothing() -> None:
    rng = np.random.default_rng(0)
    units = patients(20, 10, folds=5)
    draws, logits = Draws.of(units.positive), rng.standard_normal((3, 30))
    difference = measure(logits, units, draws).minus(measure(logits, units, draws))
    assert all(score["mean"] == 0 and score["ci95"] == [0, 0] for score in difference.values())


def test_differences_are_paired() -> None:
    """Two arms that agree but for one patient: each is uncertain, their difference hardly."""
    rng = np.random.default_rng(1)
    units = patients(30, 30)
    draws, logits = Draws.of(units.positive), rng.standard_normal(60) + units.positive
    other = logits.copy()
    other[0] = -other[0]
    one, two = (measure(arm, units, draws) for arm in (logits, other))
    own, apart = one["balanced_accuracy"]["ci95"], two.minus(one)["balanced_accuracy"]["ci95"]
    assert own is not None
    assert apart is not None
    assert apart[1] - apart[0] < (own[1] - own[0]) / 3


def test_arms_of_different_draws_are_refused() -> None:
    units = patients(3, 3)
    one, other = (measure(np.zeros(6), units, Draws.of(units.positive, 10)) for _ in range(2))
    with pytest.raises(ValueError, match="not paired"):
        one.minus(other)


def test_each_draw_has_as_many_of_each_class_and_the_first_is_everybody() -> None:
    positive = np.arange(30) < 20
    weights = Draws.of(positive, 100).weights
    assert (weights[:, 0] == 1).all()
    assert (weights[positive].sum(axis=0) == 20).all()
    assert (weights[~positive].sum(axis=0) == 10).all()
    assert np.array_equal(weights, Draws.of(positive, 100).weights)
    assert not np.array_equal(weights, Draws.of(positive, 100, seed=1).weights)


def test_a_draw_measures_what_a_cohort_of_its_patients_would() -> None:
    rng = np.random.default_rng(2)
    slices = np.repeat(np.arange(12), 3)
    units = Units(rng.random(36) < 0.5, slices, slices % 3)
    draws, logits = Draws.of(np.zeros(12), 5), rng.standard_normal(36)
    measured = measure(logits, units, draws)
    for draw in range(1, 6):
        taken = np.repeat(np.arange(36), draws.weights[slices, draw].astype(int))
        drawn = Units(units.positive[taken], units.patient[taken], units.fold[taken])
        again = found(logits[taken], drawn)
        assert {name: values[draw] for name, values in measured.values.items()} == pytest.approx(again)


def test_intervals_cover_the_truth() -> None:
    """150 cohorts of 40 and 25 patients whose true AUC and balanced accuracy are known."""
    rng = np.random.default_rng(3)
    units, shift = patients(40, 25), 1.2
    truth = {"auc": float(ndtr(shift / 2**0.5)), "balanced_accuracy": float(ndtr(shift / 2))}
    covered = dict.fromkeys(truth, 0)
    for cohort in range(150):
        logits = rng.standard_normal(65) + shift * (units.positive - 0.5)
        measured = measure(logits, units, Draws.of(units.positive, 300, seed=cohort))
        for name in truth:
            covered[name] += chance_inside(measured[name], truth[name])
    assert all(0.88 <= count / 150 <= 0.99 for count in covered.values()), covered


def test_more_slices_of_the_same_patients_tell_no_more() -> None:
    rng = np.random.default_rng(4)
    few = patients(15, 15, folds=3)
    draws, logits = Draws.of(few.positive, 200), rng.standard_normal(30)
    slices = np.repeat(np.arange(30), 7)
    many = Units(few.positive[slices], slices, few.fold[slices])
    one, seven = measure(logits, few, draws), measure(logits[slices], many, draws)
    for name in MEASURES:
        assert one[name]["ci95"] == pytest.approx(seven[name]["ci95"])


def test_a_patient_in_two_folds_is_refused() -> None:
    with pytest.raises(ValueError, match="more than one fold"):
        Units(np.array([True, True]), np.array([0, 0]), np.array([[0, 0], [0, 1]]))


def test_shapes_that_do_not_agree_are_refused() -> None:
    with pytest.raises(ValueError, match="do not agree"):
        Units(np.array([True]), np.array([0, 1]), np.array([0]))
    with pytest.raises(ValueError, match="do not fit"):
        measure(np.zeros(3), patients(2, 2), Draws.of(np.zeros(4), 1))


def test_slices_become_patients() -> None:
    means = mean_by_patient([[1.0, 3.0, np.nan, -2.0], [0.0, 0.0, 5.0, 1.0]], np.array([0, 0, 2, 1]), 4)
    assert np.array_equal(means, [[2, -2, np.nan, np.nan], [0, 1, 5, np.nan]], equal_nan=True)


def test_a_row_is_what_the_report_shows() -> None:
    units = patients(2, 2)
    measured = measure([1.0, 1, -1, 1], units, Draws.of(units.positive, 20))
    shown = row("real", measured, measured, ("HGG", "LGG"))
    assert shown["arm"] == "real"
    assert shown["recall"]["LGG"]["mean"] == shown["slices"]["LGG"]["mean"] == 0.5
    assert shown["slices"]["total"]["mean"] == 0.75
    assert shown["recall"]["HGG"] == {"mean": 1.0, "ci95": [1.0, 1.0], "n": 2}
    assert json.loads(json.dumps(shown)) == shown
    assert "slices" not in row("size", measured, None, ("HGG", "LGG"))


def test_calibration_shows_what_was_promised_and_what_came() -> None:
    positive = np.array([True, False, False, False, True, True, True, False, True, True])
    logits = np.where(np.arange(10) < 5, np.log(1 / 4), np.log(4))
    low, high = calibration([logits, logits], positive, bins=2)
    assert (low["predicted"], low["observed"], low["n"]) == pytest.approx((0.2, 0.4, 5))
    assert (high["predicted"], high["observed"], high["n"]) == pytest.approx((0.8, 0.8, 5))
    assert calibration([np.nan], np.array([True])) == []
    assert len(calibration([0.3, np.nan], np.array([True, False]))) == 1


def test_chance_is_inside_or_not() -> None:
    assert chance_inside({"mean": 0.5, "ci95": [0.4, 0.6], "n": 9})
    assert not chance_inside({"mean": 0.7, "ci95": [0.6, 0.8], "n": 9})
    assert chance_inside({"mean": 0.1, "ci95": [-0.1, 0.3], "n": 9}, chance=0)
    assert not chance_inside({"mean": None, "ci95": None, "n": 0})

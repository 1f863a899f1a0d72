"""The classifier ``shared``: variation is learnt from both classes and from scans without labels, means from each."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gliaflow_plugins.networks.pooled_classifier import PooledClassifier, fit_pooled  # noqa: E402
from gliaflow_plugins.networks.shared_covariance import (  # noqa: E402
    Labelled,
    Unlabelled,
    area_under_curve,
    fit_shared,
    left_out,
)

WIDTH = 12
MIXING = np.random.default_rng(7).standard_normal((WIDTH, WIDTH)) * np.logspace(0, -1.5, WIDTH)[:, None]


def patients(common: int, rare: int, seed: int, slices: int = 4) -> Labelled:
    """Classes differ in a direction of little variation; statistics [n, 12] are mixed, as channels are."""
    rng = np.random.default_rng(seed)
    grade = np.repeat([0, 1], [common, rare])
    of = np.repeat(np.arange(common + rare), slices)
    hidden = rng.standard_normal((common + rare, WIDTH))[of] + 0.3 * rng.standard_normal((len(of), WIDTH))
    hidden[:, -1] += 1.6 * grade[of]
    values = (hidden @ MIXING).astype(np.float32)
    return Labelled(values, grade[of], np.char.add(f"{seed}-", of.astype(np.str_)))


def area(of: Labelled, module: PooledClassifier) -> float:
    with torch.no_grad():
        return area_under_curve(of, module.grade(torch.from_numpy(of.values)).numpy())


def test_with_few_patients_of_a_class_it_grades_others_better_than_the_default_and_better_still_with_more_scans() -> (
    None
):
    tested = patients(150, 150, 99)
    areas = []
    for seed in range(4):
        learn, choose, more = patients(40, 5, seed), patients(8, 3, 50 + seed), patients(60, 60, 60 + seed)
        areas.append(
            [
                area(tested, fit_pooled(learn.values, learn.labels, learn.patients)),
                area(tested, fit_shared(learn, choose)),
                area(tested, fit_shared(learn, choose, Unlabelled(more.values, more.patients))),
            ]
        )
    default, shared, with_scans = np.mean(areas, axis=0)
    assert shared > default + 0.02
    assert with_scans > shared + 0.01


def test_labels_of_the_classes_alone_decide_and_each_patient_weighs_the_same() -> None:
    learn, choose = patients(20, 8, 1), patients(6, 4, 2)
    once = fit_shared(learn, choose)
    twice = Labelled.joined(learn, learn.select(learn.patients == learn.patients[0]))
    again = fit_shared(twice, choose)
    assert torch.allclose(once.head.weight, again.head.weight, rtol=1e-2, atol=1e-3)


def test_the_scale_of_its_answers_is_that_of_patients_who_were_left_out() -> None:
    """Classes that do not differ: a discriminant of few patients is sure nevertheless; answers must not be."""
    learn, tested = patients(30, 8, 3), patients(60, 60, 4)
    shuffled = Labelled(
        learn.values, np.repeat(np.random.default_rng(0).permutation(learn.labels[::4]), 4), learn.patients
    )
    with torch.no_grad():
        logits = fit_shared(shuffled, learn.select(np.zeros(len(learn.labels), bool))).grade(
            torch.from_numpy(tested.values)
        )
    assert float(logits.abs().median()) < 1


def test_each_patient_is_left_out_once_in_each_repeat() -> None:
    assert np.sum(list(left_out(patients(9, 3, 5))), axis=0).tolist() == [2] * 48


def test_synthetic_copies_of_patients_do_not_make_it_surer() -> None:
    """Classes that do not differ. With copies of those who are left out, they would seem to be graded well."""
    learn, tested = patients(30, 6, 3), patients(60, 60, 4)
    shuffled = Labelled(
        learn.values, np.repeat(np.random.default_rng(0).permutation(learn.labels[::4]), 4), learn.patients
    )
    rare = shuffled.select(shuffled.labels == 1)
    copies = Labelled(*(np.tile(each.T, 4).T for each in (rare.values, rare.labels)), np.full(4 * len(rare.labels), ""))
    nobody = learn.select(np.zeros(len(learn.labels), bool))
    with torch.no_grad():
        spread = [
            float(fit_shared(known, nobody).grade(torch.from_numpy(tested.values)).std())
            for known in (shuffled, Labelled.joined(shuffled, copies))
        ]
    assert spread[1] < 2 * spread[0]
    assert np.isfinite(spread).all()
    with torch.no_grad():
        alone = fit_shared(
            Labelled.joined(copies, Labelled(learn.values, learn.labels, np.full(len(learn.labels), ""))), nobody
        )
    assert alone.head.weight.isfinite().all(), "synthetic samples alone"


def test_a_class_of_one_patient_is_fitted_without_a_choice_and_one_class_alone_is_refused() -> None:
    learn = patients(5, 1, 6)
    nobody = learn.select(np.zeros(len(learn.labels), bool))
    assert np.isfinite(fit_shared(learn, nobody).head.weight.detach().numpy()).all()
    with pytest.raises(ValueError, match="all of one class"):
        fit_shared(learn.select(learn.labels == 0), nobody)

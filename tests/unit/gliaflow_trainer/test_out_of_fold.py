"""The summary of out-of-fold scores is that of an evaluation, and the table has every patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from gliaflow_evaluation.measures import Units, measure
from gliaflow_trainer.bootstrap import bootstrap
from gliaflow_trainer.out_of_fold import OutOfFold, metrics, worst_patients, write_table


def cohort(answered: float = 0.8) -> list[OutOfFold]:
    rng = np.random.default_rng(0)
    grades = ["HGG"] * 17 + ["LGG"] * 13
    logits = [rng.normal(grade == "HGG") if rng.random() < answered else None for grade in grades]
    logits[1] = logits[20] = 0.25  # a tie
    return [
        OutOfFold(f"P{n}", 1 + n % 3, grade, dice=rng.random(), logit=logit)
        for n, (grade, logit) in enumerate(zip(grades, logits, strict=True))
    ]


def test_grading_is_measured_by_the_rules_of_an_evaluation() -> None:
    scored = cohort()
    positive = np.array([each.grade == "HGG" for each in scored])
    units = Units(positive, np.arange(30), np.array([each.fold for each in scored]))
    logits = np.array([np.nan if each.logit is None else each.logit for each in scored])
    measured, grading = measure(logits, units, bootstrap(positive)), metrics(scored)["grading"]
    for name in ("auc", "balanced_accuracy"):
        score = measured[name]
        assert score.ci95 is not None
        assert (grading[name], *grading[f"{name}_ci95"]) == pytest.approx((score.mean, *score.ci95), abs=6e-5)
    assert (grading["patients"], grading["without_answer"]) == (30, int(np.isnan(logits).sum()))


def test_nothing_is_gained_by_not_answering() -> None:
    grading = metrics(cohort(answered=0)[2:15])["grading"]
    assert (grading["balanced_accuracy"], grading["auc"], grading["auc_ci95"]) == (None, None, None), "of one class"
    silent = [OutOfFold(f"P{n}", 1, ("HGG", "LGG")[n % 2], 0.0, None) for n in range(8)]
    assert metrics(silent)["grading"]["auc"] == metrics(silent)["grading"]["balanced_accuracy"] == 0.5


def test_patients_without_a_grade_have_a_dice_alone() -> None:
    scored = [OutOfFold(f"P{n}", 1 + n % 2, None, n / 10, None) for n in range(10)]
    assert metrics(scored).keys() == {"segmentation"}
    segmentation = metrics(scored)["segmentation"]
    assert segmentation["dice"] == [n / 10 for n in range(10)]
    assert segmentation["dice_median"] == 0.45
    low, high = segmentation["dice_ci95"]
    assert 0.2 < low < 0.35 < segmentation["dice_mean"] == 0.45 < 0.55 < high < 0.7


def test_the_table_has_the_worst_patients_first_and_no_formulas(tmp_path: Path) -> None:
    scored = [
        OutOfFold("=P1", 2, "LGG", 0.25, -1.0),
        OutOfFold("Ä", 1, None, 0.5, None),
        OutOfFold("P0", 1, "HGG", 0, 0.0),
    ]
    write_table(tmp_path / "table.csv", scored)
    assert (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines() == [
        "patient,fold,grade,dice,p_hgg",
        "P0,1,HGG,0.0000,0.5000",
        "'=P1,2,LGG,0.2500,0.2689",
        "Ä,1,,0.5000,",
    ]
    assert worst_patients(tmp_path / "table.csv", 2) == "P0 0.00, =P1 0.25"

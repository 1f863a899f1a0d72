"""The figures of the report: which comparator an arm is judged against by its AUC."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")

from gliaflow_evaluation.measures import Units, measure
from gliaflow_evaluation.summary import _against_best_auc
from gliaflow_trainer.bootstrap import bootstrap

POSITIVE = np.arange(12) < 6
UNITS, DRAWS = Units(POSITIVE, np.arange(12), np.zeros(12, np.int64)), bootstrap(POSITIVE)


def test_a_plain_generator_that_is_judged_remains_a_comparator_of_the_others() -> None:
    rng = np.random.default_rng(0)
    strength = {"real": 0.0, "shared": 0.5, "infogan": 1.0, "smote": 9.0}
    logits = {name: rng.normal(size=12) + by * np.where(POSITIVE, 1, -1) for name, by in strength.items()}
    arms = {name: measure(each, UNITS, DRAWS) for name, each in logits.items()}
    found = _against_best_auc(arms, ["smote", "infogan"])
    assert {name: each.best_comparator for name, each in found.items()} == {
        "shared": "smote",
        "smote": "real",
        "infogan": "smote",
    }
    assert found["infogan"].minus_best["auc"].mean == pytest.approx(
        arms["infogan"].values["auc"][0] - arms["smote"].values["auc"][0]
    )

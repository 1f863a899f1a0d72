"""How patients are split into folds, and which class is the rare one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

pytest.importorskip("torch")

from gliaflow_evaluation.protocol import Design, rare_class, split_into_folds
from gliaflow_plugins.contracts import PluginError
from small_fold import COHORT, patients_in

MANY = {**{f"H{n}": "HGG" for n in range(61)}, **{f"L{n}": "LGG" for n in range(40)}}


@pytest.mark.parametrize("cohort", [COHORT, MANY])
def test_each_patient_is_tested_once_and_is_in_one_part_of_each_fold(cohort: dict[str, str]) -> None:
    folds = split_into_folds(cohort, Design(folds=5, seed=1))
    assert [fold.number for fold in folds] == [0, 1, 2, 3, 4]
    tested = Counter(patient for fold in folds for patient in patients_in(fold, "test"))
    assert tested == Counter(dict.fromkeys(cohort, 1))
    for fold in folds:
        assert fold.split.keys() == cohort.keys()
        for part in ("train", "validation", "test"):
            assert {cohort[patient] for patient in patients_in(fold, part)} == {"HGG", "LGG"}, "both classes"
    tests = [Counter(cohort[patient] for patient in patients_in(fold, "test")) for fold in folds]
    assert max(t["LGG"] for t in tests) - min(t["LGG"] for t in tests) <= 1


def test_the_papers_protocol_has_one_split_with_the_papers_shares() -> None:
    """7 of 61 and 4 of 40 patients are tested on; a smaller cohort has as large a share."""
    (fold,) = split_into_folds(MANY, Design(protocol="paper"))
    assert Counter(MANY[patient] for patient in patients_in(fold, "test")) == {"HGG": 7, "LGG": 4}
    assert len(patients_in(fold, "validation")) == 14
    (fold,) = split_into_folds(COHORT, Design(protocol="paper"))
    assert Counter(COHORT[patient] for patient in patients_in(fold, "test")) == {"HGG": 1, "LGG": 1}


def test_a_class_of_few_patients_has_one_to_choose_with_too() -> None:
    rare = {patient: grade for patient, grade in MANY.items() if grade == "HGG" or patient in ("L0", "L1", "L2", "L3")}
    for fold in split_into_folds(rare, Design(folds=2)):
        assert {rare[patient] for patient in patients_in(fold, "validation")} == {"HGG", "LGG"}


def test_a_seed_always_gives_the_same_split() -> None:
    first = split_into_folds(COHORT, Design(folds=3, seed=1))
    assert first == split_into_folds(dict(reversed(COHORT.items())), Design(folds=3, seed=1))
    assert first != split_into_folds(COHORT, Design(folds=3, seed=2))


@pytest.mark.parametrize("protocol", ["grouped", "paper"])
def test_four_patients_of_a_class_are_enough_and_three_are_not(protocol: Any) -> None:
    design = Design(protocol=protocol, folds=2)
    for fold in split_into_folds({p: COHORT[p] for p in COHORT if p[1] in "0123"}, design):
        assert {COHORT[patient] for patient in patients_in(fold, "validation")} == {"HGG", "LGG"}
    with pytest.raises(PluginError, match="3 patients"):
        split_into_folds({p: COHORT[p] for p in COHORT if p[1] in "012"}, design)


def test_the_rare_class_has_fewer_patients() -> None:
    assert rare_class(COHORT, "grade") == 1
    assert rare_class({p: "HGG" if grade == "LGG" else "LGG" for p, grade in COHORT.items()}, "grade") == 0
    assert rare_class(COHORT, "tumour") == 0

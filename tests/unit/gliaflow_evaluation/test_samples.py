"""Which samples a fold learns from: those of the task, with shuffled labels, or with fewer rare patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from gliaflow_evaluation.samples import parts_of, samples_of, shuffled_labels, thinned
from gliaflow_store.feature_store import Samples
from small_fold import COHORT, FOLD, plan_of, store_of


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    folder = tmp_path_factory.mktemp("samples")
    return samples_of(plan_of(folder), store_of(folder / "store"))[0]


def test_samples_of_a_grade_are_the_slices_in_which_the_unet_found_tumour(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store")
    samples, index = samples_of(plan_of(tmp_path), store)
    assert len(samples) == len(index) == 4 * len(COHORT)
    assert set(samples.slices) == {1, 2, 3, 4}
    assert np.array_equal(samples.batch(np.arange(3)), store.batch(index[:3]))


def test_grades_are_shuffled_among_patients_with_the_same_share_of_each_class_and_always_alike(
    samples: Samples,
) -> None:
    new = shuffled_labels(samples, "grade", 0)
    assert np.array_equal(new, shuffled_labels(samples, "grade", 0))
    assert not np.array_equal(new, shuffled_labels(samples, "grade", 1)), "each seed has its own"
    by_patient = {p: set(new[samples.patients == p]) for p in COHORT}
    assert all(len(labels) == 1 for labels in by_patient.values())
    for grade, count in (("HGG", 8), ("LGG", 5)):
        high = sum(by_patient[p] == {0} for p in COHORT if COHORT[p] == grade)
        assert high == round(8 / 13 * count), "the same share of each old class becomes HGG"


def test_slices_with_tumour_are_shuffled_among_all_slices(samples: Samples) -> None:
    labels = (samples.slices % 4 == 0).astype(np.int64)
    new = shuffled_labels(samples.with_labels(labels, ("tumour", "none")), "tumour", 0)
    assert not np.array_equal(new, labels)
    assert sorted(new) == sorted(labels)
    assert len({labels[samples.patients == patient].sum() for patient in COHORT}) == 1
    assert len({new[samples.patients == patient].sum() for patient in COHORT}) > 1, "not within each patient"


@pytest.mark.parametrize("few", [2, 3])
def test_thinned_samples_keep_the_requested_number_of_rare_patients(samples: Samples, few: int) -> None:
    parts = {  # all but one LGG to learn from, so that there is something to thin
        "train": np.flatnonzero(np.isin(samples.patients, ["H0", "H1", "H2", "H3", "L0", "L1", "L2"])),
        "validation": np.flatnonzero(np.isin(samples.patients, ["H4", "H5", "L3"])),
        "test": np.flatnonzero(np.isin(samples.patients, ["H6", "H7", "L4"])),
    }
    for seed in range(5):
        fewer = thinned(samples, parts, 1, few, seed)
        assert fewer is not None
        names = {which: set(samples.patients[index]) for which, index in fewer.items()}
        assert np.array_equal(fewer["test"], parts["test"])
        assert not names["train"] & names["validation"]
        assert not (names["train"] | names["validation"]) & names["test"]
        assert len({p for p in names["train"] | names["validation"] if p[0] == "L"}) == few
        assert {p[0] for p in names["train"]} == {p[0] for p in names["validation"]} == {"H", "L"}
        for which in ("train", "validation"):
            before = {p for p in set(samples.patients[parts[which]]) if p[0] == "H"}
            assert {p for p in names[which] if p[0] == "H"} == before
    assert thinned(samples, parts, 1, 4, 0) is None, "there are no more patients"
    assert thinned(samples, parts, 1, 1, 0) is None, "one patient cannot both be learnt from and chosen with"


def test_thinned_slices_with_tumour_keep_the_requested_number_of_patients(samples: Samples) -> None:
    """Task ``tumour``: every patient has slices of both classes."""
    samples = samples.with_labels((samples.slices > 2).astype(np.int64), ("tumour", "none"))
    parts = parts_of(samples, FOLD)
    for seed in range(8):
        fewer = thinned(samples, parts, 0, 3, seed)
        assert fewer is not None
        names = {which: set(samples.patients[index]) for which, index in fewer.items()}
        assert not names["train"] & names["validation"]
        learnt = np.concatenate([fewer["train"], fewer["validation"]])
        assert len(set(samples.patients[learnt[samples.labels[learnt] == 0]])) == 3
        assert np.array_equal(fewer["test"], parts["test"])

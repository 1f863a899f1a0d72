"""How patients are dealt, what is thinned and shuffled, and that test patients touch nothing that is fitted."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import small
import torch
from gliaflow_evaluation import arms as arms_module
from gliaflow_evaluation import fold as folds
from gliaflow_evaluation.fold import grade_fold, samples_of, shuffled
from gliaflow_evaluation.protocol import Fold, Plan, deal, features_of, rare_class
from gliaflow_plugins.contracts import Fitted, PluginError
from gliaflow_proto import Geometry, Scan
from gliaflow_store.feature_store import FeatureStore, Origin, write_part
from gliaflow_trainer import steps
from gliaflow_trainer.slices import CutScan, Slices
from gliaflow_trainer.steps import synthetic
from gliaflow_trainer.variants import fit_classifier
from rich.progress import Progress

COHORT = {**{f"H{n}": "HGG" for n in range(8)}, **{f"L{n}": "LGG" for n in range(5)}}
MANY = {**{f"H{n}": "HGG" for n in range(61)}, **{f"L{n}": "LGG" for n in range(40)}}


def of(fold: Fold, part: str) -> set[str]:
    return {patient for patient, its in fold.split.items() if its == part}


@pytest.mark.parametrize("cohort", [COHORT, MANY])
def test_each_patient_is_tested_once_and_never_learnt_from_beside(cohort: dict[str, str]) -> None:
    dealt = deal(cohort, "grouped", 5, seed=1)
    assert [fold.number for fold in dealt] == [0, 1, 2, 3, 4]
    tested = Counter(patient for fold in dealt for patient in of(fold, "test"))
    assert tested == Counter(dict.fromkeys(cohort, 1))
    for fold in dealt:
        assert fold.split.keys() == cohort.keys()
        for part in ("train", "validation", "test"):
            assert {cohort[patient] for patient in of(fold, part)} == {"HGG", "LGG"}, "every part has both classes"
    tests = [Counter(cohort[patient] for patient in of(fold, "test")) for fold in dealt]
    assert max(t["LGG"] for t in tests) - min(t["LGG"] for t in tests) <= 1


def test_the_papers_shares() -> None:
    """7 of 61 and 4 of 40 patients are tested on; a smaller cohort has as large a share."""
    (fold,) = deal(MANY, "paper", 5, seed=0)
    assert Counter(MANY[patient] for patient in of(fold, "test")) == {"HGG": 7, "LGG": 4}
    assert len(of(fold, "validation")) == 14
    (fold,) = deal(COHORT, "paper", 5, seed=0)
    assert Counter(COHORT[patient] for patient in of(fold, "test")) == {"HGG": 1, "LGG": 1}


def test_a_class_of_few_patients_is_there_to_choose_with_too() -> None:
    rare = {patient: grade for patient, grade in MANY.items() if grade == "HGG" or patient in ("L0", "L1", "L2", "L3")}
    for fold in deal(rare, "grouped", 2, seed=0):
        assert {rare[patient] for patient in of(fold, "validation")} == {"HGG", "LGG"}


def test_a_seed_deals_one_way() -> None:
    assert deal(COHORT, "grouped", 3, 1) == deal(dict(reversed(COHORT.items())), "grouped", 3, 1)
    assert deal(COHORT, "grouped", 3, 1) != deal(COHORT, "grouped", 3, 2)


@pytest.mark.parametrize("protocol", ["grouped", "paper"])
def test_four_patients_of_a_class_are_enough_and_three_are_not(protocol: Any) -> None:
    names = sorted(COHORT)
    for fold in deal({p: COHORT[p] for p in names if p[1] in "0123"}, protocol, 2, 0):
        assert {COHORT[patient] for patient in of(fold, "validation")} == {"HGG", "LGG"}
    with pytest.raises(PluginError, match="3 patients"):
        deal({p: COHORT[p] for p in names if p[1] in "012"}, protocol, 2, 0)


def test_the_rare_class_has_fewer_patients() -> None:
    assert rare_class(COHORT, "grade") == 1
    assert rare_class({p: "HGG" if grade == "LGG" else "LGG" for p, grade in COHORT.items()}, "grade") == 0
    assert rare_class(COHORT, "tumour") == 0


GEOMETRY = Geometry(
    affine=[1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
    shape=[48, 48, 2],
    orientation=[0, 1, 1, 1, 2, 1],
    origin=[0.0, 0.0],
    step=[1.0, 1.0],
    size=[48, 48],
    slices=[0, 1],
)
ORIGIN = Origin("b@1", "dec3", (4, 6, 6))


def store_of(folder: Path, spoilt: str = "") -> FeatureStore:
    """Six slices a patient, tumour in the middle four; features of ``spoilt`` are wild, and so is their label."""
    folder.mkdir(parents=True)
    for number, (patient, label) in enumerate(COHORT.items()):
        rng = np.random.default_rng(number)
        features = rng.random((6, 4, 6, 6)) + (0.6 if label == "HGG" else 0) * np.array([1, 0, 0, 0])[:, None, None]
        mask = np.zeros((6, 48, 48), np.uint8)
        mask[1:5, 20:30, 20:30] = 1
        if patient in spoilt.split():
            features, label = 1000 * rng.random((6, 4, 6, 6)), {"HGG": "LGG", "LGG": "HGG"}[label]
            mask[1:5] = 1
        scan = Scan(id=f"s{patient}", name=patient, patient=patient, label=label)
        write_part(folder, scan, [0, 1], ORIGIN, features.astype(np.float16), mask, list(range(6)))
    return FeatureStore(folder)


def plan_of(work: Path, **changes: Any) -> Plan:
    plan = Plan(
        work=work,
        profile=small.PROFILE,
        task="grade",
        rare=1,
        tap="dec3",
        generators=(("levels", {}),),
        classifier=("pooled", {}),
        code={"": "", "levels": "", "mine": ""},
        apart=(),
        deadline_s=60,
        counts=(5, 10),
        scarce=(2,),
        shuffle=True,
        seed=0,
        device="cpu",
        threads=1,
    )
    return replace(plan, **changes)


FOLD = deal(COHORT, "grouped", 2, 0)[0]


def here_of(samples: Any) -> dict[str, np.ndarray]:
    part = np.array([FOLD.split[patient] for patient in samples.patients])
    return {which: np.flatnonzero(part == which) for which in ("train", "validation", "test")}


def test_samples_of_a_grade_are_the_slices_in_which_tumour_was_found(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store")
    samples, index = samples_of(plan_of(tmp_path), store)
    assert len(samples) == len(index) == 4 * len(COHORT)
    assert set(samples.slices) == {1, 2, 3, 4}
    assert np.array_equal(samples.batch(np.arange(3)), store.batch(index[:3]))


def test_shuffled_grades_are_by_patient_balanced_in_each_class_and_always_the_same(tmp_path: Path) -> None:
    samples, _ = samples_of(plan_of(tmp_path), store_of(tmp_path / "store"))
    new = shuffled(samples, "grade")
    assert np.array_equal(new, shuffled(samples, "grade"))
    by_patient = {p: set(new[samples.patients == p]) for p in COHORT}
    assert all(len(labels) == 1 for labels in by_patient.values())
    for grade, count in (("HGG", 8), ("LGG", 5)):
        high = sum(by_patient[p] == {0} for p in COHORT if COHORT[p] == grade)
        assert high == round(8 / 13 * count), "of each old class the same share is called HGG"


def test_shuffled_slices_are_dealt_among_all(tmp_path: Path) -> None:
    samples, _ = samples_of(plan_of(tmp_path), store_of(tmp_path / "store"))
    labels = (samples.slices % 4 == 0).astype(np.int64)
    dealt = shuffled(samples.with_labels(labels, ("tumour", "none")), "tumour")
    assert not np.array_equal(dealt, labels)
    assert sorted(dealt) == sorted(labels)
    assert len({labels[samples.patients == patient].sum() for patient in COHORT}) == 1
    assert len({dealt[samples.patients == patient].sum() for patient in COHORT}) > 1, "not within each patient"


@pytest.mark.parametrize("few", [2, 3])
def test_thinned_samples_keep_so_many_patients_of_the_rare_class(tmp_path: Path, few: int) -> None:
    samples, _ = samples_of(plan_of(tmp_path), store_of(tmp_path / "store"))
    here = here_of(samples)
    here = {  # all but one LGG to learn from, so that there is something to thin
        "train": np.flatnonzero(np.isin(samples.patients, ["H0", "H1", "H2", "H3", "L0", "L1", "L2"])),
        "validation": np.flatnonzero(np.isin(samples.patients, ["H4", "H5", "L3"])),
        "test": np.flatnonzero(np.isin(samples.patients, ["H6", "H7", "L4"])),
    }
    for seed in range(5):
        thinned = folds._thin(samples, here, 1, few, seed)
        assert thinned is not None
        names = {which: set(samples.patients[index]) for which, index in thinned.items()}
        assert np.array_equal(thinned["test"], here["test"])
        assert not names["train"] & names["validation"]
        assert not (names["train"] | names["validation"]) & names["test"]
        assert len({p for p in names["train"] | names["validation"] if p[0] == "L"}) == few
        assert {p[0] for p in names["train"]} == {p[0] for p in names["validation"]} == {"H", "L"}
        for which in ("train", "validation"):
            assert {p for p in names[which] if p[0] == "H"} == {
                p for p in set(samples.patients[here[which]]) if p[0] == "H"
            }
    assert folds._thin(samples, here, 1, 4, 0) is None, "no more are there"
    assert folds._thin(samples, here, 1, 1, 0) is None, "one cannot both be learnt from and chosen with"


def test_thinned_slices_with_tumour_keep_so_many_patients(tmp_path: Path) -> None:
    """Task ``tumour``: every patient has slices of both classes."""
    samples, _ = samples_of(plan_of(tmp_path), store_of(tmp_path / "store"))
    samples = samples.with_labels((samples.slices > 2).astype(np.int64), ("tumour", "none"))
    here = here_of(samples)
    for seed in range(8):
        thinned = folds._thin(samples, here, 0, 3, seed)
        assert thinned is not None
        names = {which: set(samples.patients[index]) for which, index in thinned.items()}
        assert not names["train"] & names["validation"]
        learnt = np.concatenate([thinned["train"], thinned["validation"]])
        assert len(set(samples.patients[learnt[samples.labels[learnt] == 0]])) == 3
        assert np.array_equal(thinned["test"], here["test"])


def test_test_patients_touch_nothing_of_the_unet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wild images and masks of the test patients: the same weights, bit by bit, from statistics to the epoch kept."""
    monkeypatch.setattr(steps, "export", lambda *_: None)
    rng = np.random.default_rng(0)
    plain = [
        CutScan(
            p,
            p,
            p,
            label,
            GEOMETRY,
            rng.random((2, 48, 48)).astype(np.float16),
            np.uint8(rng.random((2, 48, 48)) < 0.1),
        )
        for p, label in COHORT.items()
    ]
    wild = [
        replace(scan, image=scan.image * 100, mask=1 - scan.mask) if FOLD.split[scan.patient] == "test" else scan
        for scan in plain
    ]
    profile = replace(small.PROFILE, unet={**small.PROFILE.unet, "epochs": 2, "epoch_slices": None, "randomise": True})
    with Progress(disable=True) as bar:
        first, second = (
            steps.fit_unet_bundle(
                Slices(scans), FOLD.split, profile, tmp_path / name, name="unet", seed=0, device="cpu", bar=bar
            )
            for name, scans in (("plain", plain), ("wild", wild))
        )
    assert first.read(steps.WEIGHTS) == second.read(steps.WEIGHTS)
    assert first.manifest.metrics["unet"]["train"] == second.manifest.metrics["unet"]["train"]
    assert first.manifest.metrics["unet"]["test"] != second.manifest.metrics["unet"]["test"]


@pytest.mark.parametrize("classifier", [("pooled", {}), ("cnn", {"epochs": 2})], ids=["pooled", "cnn"])
def test_test_patients_touch_nothing_that_is_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classifier: Any
) -> None:
    """Wild features and wrong labels of the test patients: every classifier and generator stays the same, bit by bit.

    The shuffled control is left out: its labels are dealt among all patients.
    """
    monkeypatch.setattr(arms_module, "load_registry", lambda: small.REGISTRY)
    plan = plan_of(tmp_path, classifier=classifier, shuffle=False)
    weights: dict[str, list[dict[str, np.ndarray]]] = {}
    for name, spoilt in (("clean", ""), ("spoilt", " ".join(of(FOLD, "test")))):
        samples, _ = samples_of(plan, store_of(tmp_path / name, spoilt))
        found: list[dict[str, np.ndarray]] = []

        def spy(*args: Any, found: Any = found, **how: Any) -> Any:
            fitted = fit_classifier(*args, **how)
            found.append({key: value.numpy().copy() for key, value in fitted.module.state_dict().items()})
            return fitted

        monkeypatch.setattr(arms_module, "fit_classifier", spy)
        arms = arms_module.Arms(plan, samples, here_of(samples), 0, dict.fromkeys(COHORT, 6))
        lines: list[float] = []

        def spy_line(module: Any, kept: Any = arms._offset, lines: list[float] = lines) -> float:
            lines.append(kept(module))
            return lines[-1]

        monkeypatch.setattr(arms, "_offset", spy_line)
        arms.without(quality=True)
        arms.with_generator(*plan.generators[0], quality=True)
        made = arms_module.synthetic(arms._fitted("levels", {}), 0, 10, 0)[0]
        chosen = {"chosen": np.array(arms.chosen["levels"]), "lines": np.array(lines)}
        assert len(lines) == 7, "threshold, four comparators, two counts"
        weights[name] = [*found, {"synthetic": made, **chosen}]
    assert len(weights["clean"]) == 10, "real, weights, four comparators, two counts, the generator alone, synthetic"
    for clean, spoilt in zip(weights["clean"], weights["spoilt"], strict=True):
        for key, value in clean.items():
            assert np.array_equal(value, spoilt[key]), key


class Diverged(torch.nn.Module):
    """A generator that has diverged for class 0 and makes values beyond fp16 for class 1; the critic accepts all."""

    def forward(self, z: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        values = torch.tensor([float("nan"), 1e6])[label]
        return values[:, None, None, None].expand(-1, 4, 6, 6)


class Yes(torch.nn.Module):
    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        label = torch.nan_to_num(features[:, 0, 0, 0]) > 0
        return label.float(), torch.nn.functional.one_hot(label.long(), 2).float()


def test_what_a_diverged_generator_makes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot end an evaluation: it is named, and left out."""
    diverged = Fitted(nz=2, generator=Diverged(), critic=Yes())
    nothing, share = synthetic(diverged, 0, 10, 0)
    assert (nothing.shape, share) == ((0, 4, 6, 6), 0)
    clipped, share = synthetic(diverged, 1, 10, 0)
    assert share == 1
    assert (clipped == np.finfo(np.float16).max).all()

    monkeypatch.setattr(small.Levels, "fit", lambda *_, **__: diverged)
    monkeypatch.setattr(arms_module, "load_registry", lambda: small.REGISTRY)
    plan = plan_of(tmp_path)
    store_of(features_of(plan, FOLD))
    found = answers(plan, FOLD)
    assert "its generator made NaN" in json.loads(str(found["about"]))["failed"]["levels"]
    assert np.isfinite(found["arm/real"]).all()


class OneClass(torch.nn.Module):
    """A critic that takes all for class 1."""

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return features[:, 0, 0, 0], torch.tensor([[0.0, 1.0]]).expand(len(features), 2)


def test_a_generator_whose_critic_accepts_too_few_of_a_class_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt = small.Levels.fit

    def fit(*given: Any, **how: Any) -> Fitted:
        fitted = learnt(*given, **how)
        return Fitted(fitted.nz, fitted.generator, OneClass())

    monkeypatch.setattr(small.Levels, "fit", fit)
    monkeypatch.setattr(arms_module, "load_registry", lambda: small.REGISTRY)
    plan = plan_of(tmp_path)
    store_of(features_of(plan, FOLD))
    found = answers(plan, FOLD)
    assert json.loads(str(found["about"])) == {
        "failed": {"levels": "of what it makes for HGG its critic puts 0% there: too few samples"}
    }
    assert np.isfinite(found["arm/real"]).all()


def test_a_fold_in_whose_test_patients_no_tumour_was_found_is_graded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms_module, "load_registry", lambda: small.REGISTRY)
    plan = plan_of(tmp_path)
    store = store_of(features_of(plan, FOLD))
    none = {patient: part for patient, part in FOLD.split.items() if part != "test"}
    found = answers(plan, replace(FOLD, split=none))
    assert len(found["index"]) == len(found["arm/real"]) == 0 < len(store)
    of_one = {p: part for p, part in FOLD.split.items() if part == "train" or COHORT[p] == "HGG"}
    quality = json.loads(str(answers(plan, replace(FOLD, split=of_one))["about"]))["gan"]["levels"]
    assert np.isnan([*quality["accuracy_others"], *quality["accuracy_others_real"]]).all(), "no judge of other patients"
    assert np.isfinite(quality["accuracy_unseen"]).all()


def test_a_folds_answers_are_logits_of_its_test_slices_by_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arms_module, "load_registry", lambda: small.REGISTRY)
    plan = plan_of(tmp_path)
    store = store_of(features_of(plan, FOLD))
    found = answers(plan, FOLD)
    tested = found["index"]
    assert set(store.patients[tested]) == of(FOLD, "test")
    assert len(tested) == 4 * len(of(FOLD, "test"))
    arms = {
        "real",
        "weights",
        "threshold",
        "oversample",
        "smote",
        "gaussian",
        "mixup",
        "levels@5",
        "levels@10",
        "levels",
    }
    beside = {"linear", "size", "slices", "levels alone"}
    assert {key.removeprefix("arm/") for key in found if key.startswith("arm/")} == arms | beside
    for key in found:
        if key.startswith(("arm/", "scarce/", "control/")):
            assert found[key].shape == tested.shape, key
            assert np.isfinite(found[key]).all(), key
    assert np.ptp(found["arm/threshold"] - found["arm/real"]) == pytest.approx(0, abs=1e-5), "a shift"


def test_what_is_there_is_not_done_again_and_one_more_generator_is_all_that_is_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms_module, "load_registry", lambda: small.REGISTRY)
    plan = plan_of(tmp_path)
    store_of(features_of(plan, FOLD))
    paths = grade_fold(plan, FOLD, 0)
    before = [path.stat().st_mtime_ns for path in paths]
    assert grade_fold(plan, FOLD, 0) == paths
    more = grade_fold(replace(plan, generators=(*plan.generators, ("levels", {"spread": 2.0}))), FOLD, 0)
    assert more[:2] == paths
    assert [path.stat().st_mtime_ns for path in paths] == before
    assert more[2].exists()
    assert not set(grade_fold(plan, FOLD, 1)) & set(paths)
    assert not set(grade_fold(replace(plan, counts=(5,)), FOLD, 0)) & set(paths)


def test_a_generator_that_fails_is_named_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arms_module, "load_registry", lambda: small.REGISTRY)
    plan = plan_of(tmp_path)
    store_of(features_of(plan, FOLD))

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("mean of\nnothing")

    with monkeypatch.context() as broken:
        broken.setattr(small.Levels, "fit", fail)
        found = answers(plan, FOLD)
    assert (
        "'levels' could not be fitted: ZeroDivisionError: mean of nothing"
        in json.loads(str(found["about"]))["failed"]["levels"]
    )
    assert "arm/real" in found
    assert not any("levels" in key for key in found)
    assert "arm/levels" in answers(plan, FOLD), "mended"


MINE = """
import os, signal, time
from gliaflow_plugins import Options, hookimpl


class Mine:
    name, options = "mine", Options

    def fit(self, features, options, **how):
        {fit}


@hookimpl
def register_generators(register):
    register(Mine())
"""


@pytest.mark.parametrize(
    ("fit", "deadline_s", "told"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", 200, "generator 'mine': its process was killed by SIGSEGV"),
        ("time.sleep(1000)", 4, "generator 'mine': its fit took longer than 4 s"),
        ("raise SystemExit(0)", 200, "generator 'mine' could not be fitted: SystemExit: 0"),
    ],
)
def test_an_installed_generator_takes_no_process_of_ours_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fit: str, deadline_s: float, told: str
) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / f"{tmp_path.name}.py").write_text(MINE.format(fit=fit))
    monkeypatch.setenv("GLIAFLOW_PLUGINS", str(tmp_path / "plugins"))
    lone = {"generators": (("mine", {}),), "apart": ("mine",), "shuffle": False, "scarce": ()}
    plan = plan_of(tmp_path, **lone, deadline_s=deadline_s)
    store_of(features_of(plan, FOLD))
    found = answers(plan, FOLD)
    assert told in json.loads(str(found["about"]))["failed"]["mine"]
    assert "arm/real" in found


def test_other_code_under_the_same_name_is_fitted_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arms_module, "load_registry", lambda: small.REGISTRY)
    plan = plan_of(tmp_path)
    store_of(features_of(plan, FOLD))
    real, levels = grade_fold(plan, FOLD, 0)
    changed = grade_fold(replace(plan, code={"": "", "levels": "changed"}), FOLD, 0)
    assert changed[0] == real
    assert changed[1] != levels
    assert not {real, levels} & set(grade_fold(replace(plan, code={"": "changed", "levels": ""}), FOLD, 0))


def answers(plan: Plan, fold: Fold) -> dict[str, np.ndarray]:
    """All files of seed 0 as one; ``about`` is of the last, a generator."""
    return {name: values for path in grade_fold(plan, fold, 0) for name, values in np.load(path).items()}

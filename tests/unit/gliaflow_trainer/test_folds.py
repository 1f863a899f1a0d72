"""``gliaflow train --folds``: every patient is measured by networks that did not learn from it; the bundle has all."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import small  # noqa: E402
from gliaflow_plugins.classifiers import Pooled  # noqa: E402
from gliaflow_plugins.contracts import PluginError  # noqa: E402
from gliaflow_runtime.bundle.load import Bundle  # noqa: E402
from gliaflow_trainer import unet_bundle  # noqa: E402
from gliaflow_trainer.folds import CrossFit, split_into_folds  # noqa: E402
from gliaflow_trainer.own_grid import on_own_grid  # noqa: E402
from gliaflow_trainer.report import summary, write_report  # noqa: E402
from gliaflow_trainer.request import TrainRequest  # noqa: E402
from gliaflow_trainer.slices import kept_scans  # noqa: E402
from gliaflow_trainer.train import train  # noqa: E402
from gliaflow_trainer.unet_fit import fit_unet  # noqa: E402
from gliaflow_trainer.variants import choose  # noqa: E402
from rich.progress import Progress  # noqa: E402

PROFILE = dataclasses.replace(small.PROFILE, folds=2, unet={**small.PROFILE.unet, "epochs": 4, "epoch_slices": 64})
EVERYONE = {"H0", "H1", "H2", "L0", "L1", "L2"}
PATIENTS = [(f"p{n}", "HGG" if n % 3 else "LGG") for n in range(40)]


def test_each_fold_has_as_many_of_each_grade_and_a_patient_never_straddles() -> None:
    ungraded = [(f"u{n}", "not known") for n in range(3)]
    fold_of = split_into_folds([*PATIENTS, *PATIENTS, *ungraded], 5, seed=1)
    assert fold_of.keys() == {patient for patient, _ in [*PATIENTS, *ungraded]}
    for grade, expected in (("HGG", {5, 6}), ("LGG", {2, 3})):
        folds = [fold_of[patient] for patient, its in PATIENTS if its == grade]
        assert {folds.count(fold) for fold in range(1, 6)} == expected
    sizes = [list(fold_of.values()).count(fold) for fold in range(1, 6)]
    assert (min(sizes), max(sizes), sum(sizes)) == (8, 9, 43)
    assert fold_of == split_into_folds([*ungraded, *PATIENTS[::-1]], 5, seed=1)
    assert fold_of != split_into_folds([*PATIENTS, *ungraded], 5, seed=2)


def test_without_any_grade_folds_are_drawn_from_all() -> None:
    folds = list(split_into_folds([(patient, "not known") for patient, _ in PATIENTS], 4, seed=0).values())
    assert [folds.count(fold) for fold in (1, 2, 3, 4)] == [10] * 4


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        (15, "14 patients of grade LGG have scan and mask, fewer than 15 folds: give --folds 14, or less"),
        (1, "--folds 1 leaves nobody to learn from: give 2 or more, or 0 for one split"),
    ],
)
def test_more_folds_than_patients_of_a_grade_are_an_error_that_says_how_many_are_possible(
    folds: int, message: str
) -> None:
    with pytest.raises(PluginError, match=f"^{re.escape(message)}$"):
        split_into_folds(PATIENTS, folds, seed=0)
    with pytest.raises(PluginError, match=r"0 patients of grade LGG .* no folds are possible; give more patients"):
        split_into_folds(PATIENTS[1:3], 2, seed=0)


class Noted(Pooled):
    """The classifier, and whom each of its fits learned from."""

    def __init__(self) -> None:
        self.learned: list[set[str]] = []

    def fit(self, features: Any, options: Any, samples: Any, context: Any) -> Any:
        self.learned.append({samples.patients[i] for i in samples.learn})
        return super().fit(features, options, samples, context)


@dataclasses.dataclass
class Run:
    """A training in ``folder`` that was killed in the second fold, and resumed; and whom each fit learned from."""

    folder: Path
    classifier: Noted
    unets: list[set[str]]
    begun: list[set[str]]
    bundle: Bundle | None = None

    def train(self, **options: Any) -> Bundle:
        registry = dataclasses.replace(small.REGISTRY, classifiers={"pooled": self.classifier})
        with Progress(disable=True) as bar:
            bundle = train(
                TrainRequest(
                    cohort=small.cohort(self.folder / "cohort"),
                    folder=self.folder / "cohort",
                    out=self.folder / "bundle",
                    name="tiny",
                    profile=PROFILE,
                    variants=choose(registry, "levels", PROFILE, options),
                    seed=3,
                ),
                bar,
            )
        assert bundle is not None
        return bundle

    @property
    def table(self) -> dict[str, dict[str, str]]:
        with (self.folder / "bundle.work/out_of_fold.csv").open(encoding="utf-8") as file:
            return {row["patient"]: row for row in csv.DictReader(file)}

    @property
    def fold_of(self) -> dict[str, int]:
        return {patient: int(row["fold"]) for patient, row in self.table.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = Run(tmp_path_factory.mktemp("folds"), Noted(), [], [])
    small.write_cohort(made.folder / "cohort", 3, 3)

    def noted(slices: Any, learn: Any, choose: Any, *more: Any, **options: Any) -> Any:
        patients = set(slices.patients[learn].tolist())
        assert not len(choose), "without patients to choose an epoch by"
        made.begun.append(patients)
        if len(made.begun) == 2:
            raise KeyboardInterrupt
        made.unets.append(patients)
        return fit_unet(slices, learn, choose, *more, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unet_bundle, "fit_unet", noted)
        with pytest.raises(KeyboardInterrupt):
            made.train()
        made.bundle = made.train()
    return made


def test_each_patient_is_measured_by_networks_that_did_not_learn_from_it(run: Run) -> None:
    assert run.table.keys() == EVERYONE
    for fits in (run.unets, run.classifier.learned):
        for fold in (1, 2):
            assert fits[fold - 1] == {patient for patient in EVERYONE if run.fold_of[patient] != fold}
        assert fits[2:] == [EVERYONE], "the bundle's own networks are fitted on all patients, once"


def test_a_fold_that_was_finished_before_an_interruption_is_not_fitted_again(run: Run) -> None:
    first, second, everyone = run.unets
    assert run.begun == [first, second, second, everyone]
    assert not list(run.folder.glob("bundle.work/fold-*/features")), "features of the folds are not kept"


def test_the_manifest_has_the_scores_of_all_patients_says_whose_they_are_and_names_nobody(run: Run) -> None:
    assert run.bundle is not None
    manifest = run.bundle.manifest
    segmentation, grading = manifest.metrics["segmentation"], manifest.metrics["grading"]
    dice = sorted(float(row["dice"]) for row in run.table.values())
    assert segmentation["dice"] == pytest.approx(dice, abs=1e-4)
    assert segmentation["dice_mean"] == pytest.approx(np.mean(dice), abs=1e-4)
    assert segmentation["dice_ci95"][0] <= segmentation["dice_mean"] <= segmentation["dice_ci95"][1]
    assert (segmentation["patients"], grading["patients"], segmentation["folds"], grading["folds"]) == (6, 6, 2, 2)
    assert grading["auc"] is not None
    for part in (segmentation, grading):
        assert part["scores_of"].startswith("2 other networks, each fitted on 1/2 of the patients and measured on the")
    assert manifest.metrics["unet"].keys() == {"train"}
    assert manifest.training["cohort"]["patients"] == {"train": {"HGG": 3, "LGG": 3}}
    assert manifest.training["profile"]["folds"] == 2
    text = json.dumps(manifest.model_dump(mode="json"))
    assert not [name for name in EVERYONE if f'"{name}' in text]
    assert 0 <= manifest.min_tumour_ml <= 1


def test_dice_is_that_of_the_masks_on_the_scans_own_grids(run: Run) -> None:
    scans = kept_scans(run.folder / "bundle.work/slices")
    cases = {case.id: case for case in small.cohort(run.folder / "cohort").cases}
    for scan, found in CrossFit(None, scans, run.fold_of, run.folder / "bundle.work").masks():  # type: ignore[arg-type]
        kind = "HGG" if scan.patient.startswith("H") else "LGG"
        truth = np.asarray(nib.load(run.folder / f"cohort/{kind}/{scan.patient}/{scan.patient}_seg.nii.gz").dataobj) > 0
        patient, true, restored = on_own_grid(scan, cases[scan.case], found)
        assert patient == scan.patient
        assert np.array_equal(true, truth)
        expected = 2 * (truth & restored).sum() / (truth.sum() + restored.sum())
        assert float(run.table[patient]["dice"]) == pytest.approx(expected, abs=1e-4)
    scan, found = next(CrossFit(None, scans, run.fold_of, run.folder / "bundle.work").masks(2))  # type: ignore[arg-type]
    with pytest.raises(PluginError, match="not the file that was cut into slices"):
        on_own_grid(dataclasses.replace(scan, mask_file="another"), cases[scan.case], found)


def test_another_option_of_the_classifier_grades_again_with_the_same_unets(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a U-Net was fitted again")

    monkeypatch.setattr(unet_bundle, "fit_unet", never)
    before, table = len(run.classifier.learned), run.table
    # a kill after a fold's scores were written, before these were removed
    killed = [run.folder / "bundle.work/fold-1" / name for name in ("features", "source-0123", "unlabelled-4567")]
    for folder in killed:
        folder.mkdir()
    run.train(**{"pooled.penalty": "5"})
    assert not [folder for folder in killed if folder.exists()]
    assert run.classifier.learned[before:] == run.classifier.learned[:3]
    assert {name: row["dice"] for name, row in run.table.items()} == {name: row["dice"] for name, row in table.items()}
    assert {name: row["p_hgg"] for name, row in run.table.items()} != {n: row["p_hgg"] for n, row in table.items()}


def test_the_summary_and_the_page_say_how_each_patient_was_measured(run: Run, tmp_path: Path) -> None:
    assert run.bundle is not None
    lines = list(summary(run.bundle))
    assert ("patients", "6 to learn from (3 HGG, 3 LGG)") in lines
    text = "\n".join(f"{title}: {line}" for title, line in lines)
    assert re.search(
        r"U-Net: Dice 0\.\d\d \(0\.\d\d–\d\.\d\d, median 0\.\d\d\), on all 6 patients, each measured by", text
    )
    assert ": these are scores of 2 other networks, each fitted on 1/2 of the patients" in text
    assert "so few patients" not in text
    write_report(run.bundle, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The last epoch was kept" in page
    assert "to choose epochs by" not in page

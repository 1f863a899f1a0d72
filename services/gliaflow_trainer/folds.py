"""Every patient measured by networks that did not learn from it (cross-validation, as nnU-Net does).

Patients are split into folds. For each fold a U-Net and a classifier are fitted on the other folds' patients, without
patients to choose an epoch by, as the last fit on all patients has none: they are measured, and thrown away. Each step
keeps its result in the folder of its fold and is skipped if the result is there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gliaflow_plugins.contracts import PluginError
from gliaflow_proto import CLASSES
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.files import whole_file, write_whole
from numpy.typing import NDArray

from gliaflow_trainer.features import extract, found_masks, remove_features
from gliaflow_trainer.finished import same_classifier
from gliaflow_trainer.graders import SplitFeatures, grade_test_patients
from gliaflow_trainer.out_of_fold import OutOfFold
from gliaflow_trainer.own_grid import on_own_grid
from gliaflow_trainer.request import TrainRequest
from gliaflow_trainer.run_context import RunContext
from gliaflow_trainer.slices import CutScan, Slices
from gliaflow_trainer.source import source_features, source_name
from gliaflow_trainer.unet_bundle import UNetRecipe, fit_unet_bundle
from gliaflow_trainer.unet_fit import dice_by_patient
from gliaflow_trainer.unlabelled import folder_name, unlabelled_features

NOT_KNOWN = "not known"
"""The grade of a patient without one."""


def split_into_folds(patients: Sequence[tuple[str, str]], folds: int, seed: int) -> dict[str, int]:
    """Each patient's fold, from 1: at random, and as many of each grade in each fold as in any other, or one less.

    Parameters
    ----------
    patients: patient and grade of each scan. Patients without a grade are a stratum of their own.

    Raises
    ------
    PluginError: there are fewer than 2 folds, or more than patients of a grade.
    """
    grades = (*CLASSES, NOT_KNOWN)
    grade_of: dict[str, str] = {}
    for grade in grades:
        for patient in sorted({patient for patient, its_grade in patients if its_grade == grade}):
            grade_of.setdefault(patient, grade)
    counts = Counter(grade_of.values())
    least, fewest = min((counts[grade], grade) for grade in (CLASSES if counts.keys() & {*CLASSES} else (NOT_KNOWN,)))
    if folds < 2:
        raise PluginError(f"--folds {folds} leaves nobody to learn from: give 2 or more, or 0 for one split")
    if least < folds:
        remedy = f"give --folds {least}, or less" if least > 1 else "no folds are possible; give more patients"
        raise PluginError(f"{least} patients of grade {fewest} have scan and mask, fewer than {folds} folds: {remedy}")
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation([patient for patient in grade_of if grade_of[patient] == grade]) for grade in grades]
    return {str(patient): 1 + place % folds for place, patient in enumerate(np.concatenate(drawn))}


@dataclass(frozen=True)
class CrossFit:
    """The folds of a training.

    Parameters
    ----------
    fold_of: each patient's fold (``split_into_folds``).
    work: each fold has a folder in it.
    """

    request: TrainRequest
    scans: Sequence[CutScan]
    fold_of: Mapping[str, int]
    work: Path

    def scores(self, recipe: UNetRecipe, context: RunContext) -> list[OutOfFold]:
        """Fit the networks of each fold, and measure the fold's patients.

        Returns
        -------
        Each patient's scores; none in torchrun's other processes, which help to fit the U-Nets.

        Raises
        ------
        PluginError: the classifier cannot be fitted, or a U-Net found tumour in one class of its patients only.
        """
        folds, scored = max(self.fold_of.values()), list[OutOfFold]()
        slices, grade_of = Slices(self.scans), {scan.patient: scan.label for scan in self.scans if scan.label}
        for fold in range(1, folds + 1):
            folder = self.work / f"fold-{fold}"
            split = {patient: "test" if its == fold else "train" for patient, its in self.fold_of.items()}
            of_fold = replace(context, of=f"fold {fold}/{folds}: ", fits_after=folds + 1 - fold)
            unet = fit_unet_bundle(slices, split, replace(recipe, name=f"fold-{fold}"), folder / "unet", of_fold)
            if unet is None:
                continue
            self._find_masks(fold, unet, of_fold)
            dice, logits = self._dice(fold), self._logits(unet, split, folder, of_fold)
            scored += [OutOfFold(p, fold, grade_of.get(p), dice[p], logits.get(p)) for p in sorted(dice)]
            if not context.bar.disable:
                mean, number = np.mean(list(dice.values())), len(dice)
                context.bar.console.print(f"fold {fold}/{folds}: mean Dice {mean:.2f} of {number} patients")
        return scored

    def masks(self, *folds: int) -> Iterator[tuple[CutScan, NDArray[np.uint8]]]:
        """The scans of these folds (default: all) and the mask [n, H, W] that their fold's U-Net found in each."""
        for scan in self.scans:
            fold = self.fold_of[scan.patient]
            if not folds or fold in folds:
                with np.load(self._mask_file(scan, fold)) as file:
                    yield scan, file["mask"]

    def _mask_file(self, scan: CutScan, fold: int) -> Path:
        return self.work / f"fold-{fold}" / "masks" / f"{scan.id}.npz"

    def _find_masks(self, fold: int, bundle: Bundle, context: RunContext) -> None:
        """Keep the masks of the fold's patients."""
        files = {scan.id: self._mask_file(scan, fold) for scan in self.scans if self.fold_of[scan.patient] == fold}
        missing = [scan for scan in self.scans if scan.id in files and not files[scan.id].exists()]
        if not missing:
            return
        files[missing[0].id].parent.mkdir(exist_ok=True)
        for scan, mask in found_masks(missing, bundle, context):
            with whole_file(files[scan.id], ending=".npz") as part:
                np.savez_compressed(part, mask=mask)

    def _dice(self, fold: int) -> dict[str, float]:
        """Of the fold's patients, on the scans' own grids."""
        cases = {case.id: case for case in self.request.cohort.cases}
        return dice_by_patient(on_own_grid(scan, cases[scan.case], found) for scan, found in self.masks(fold))

    def _logits(self, unet: Bundle, split: Mapping[str, str], folder: Path, context: RunContext) -> dict[str, float]:
        """Of the fold's patients with a grade in whom tumour was found."""
        graded = [scan for scan in self.scans if scan.label is not None]
        file = folder / f"logits-{same_classifier(self.request)[:12]}.json"
        if not graded:
            return {}
        if not file.exists():
            store = extract(graded, unet, folder / "features", context, cropped=self.request.profile.cropped)
            request, profile = self.request, self.request.profile
            names = (folder_name(request.unlabelled, profile), source_name(request.source, profile))
            without = unlabelled_features(request, self.work, unet, folder / names[0], context)
            source = source_features(request, self.work, unet, folder / names[1], context)
            found = SplitFeatures(store, split, unet, self.work / "slices", without, source)
            logits = grade_test_patients(found, self.request.variants, context)
            write_whole(file, json.dumps(logits))
        others = [*folder.glob("unlabelled-*"), *folder.glob("source-*")]
        for left in (folder / "features", *others):  # as large as those of all patients, in each fold
            remove_features(left)
        return dict(json.loads(file.read_text(encoding="utf-8")))

"""The U-Nets of the folds: fitted, applied, and measured on patients that they never saw (the paper's Table 2)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from gliaflow_plugins.augmentations.pipeline import AugmentationPipeline
from gliaflow_plugins.contracts import Case
from gliaflow_plugins.registry import load_registry
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.files import write_whole
from gliaflow_store.feature_store import FeatureStore
from gliaflow_trainer.features import extract
from gliaflow_trainer.fine_tuning import unet_to_fine_tune
from gliaflow_trainer.own_grid import on_own_grid
from gliaflow_trainer.run_context import RunContext
from gliaflow_trainer.slices import CutScan, Slices, kept_scans
from gliaflow_trainer.unet_bundle import UNetRecipe, fit_unet_bundle
from gliaflow_trainer.unet_fit import dice_by_patient
from gliaflow_trainer.unlabelled import extract_unlabelled
from numpy.typing import NDArray

from gliaflow_evaluation.progress import ReportingBar, report
from gliaflow_evaluation.protocol import Fold, Plan
from gliaflow_evaluation.report import schema
from gliaflow_evaluation.score import NOT_MEASURED, Score
from gliaflow_evaluation.threads import use_threads

DICE_FILE = "dice.json"  # of each test patient, in the fold's folder
CURVES = ("loss", "val_dice", "val_iou")
OVERLAYS = 6


def fit_segmentation(plan: Plan, fold: Fold, cases: Mapping[str, Case], seed: int) -> None:
    """Fit the fold's U-Net, record the features of all slices, and measure the masks of the test patients.

    Parameters
    ----------
    cases: those of the test patients, by id.
    """
    use_threads(plan.threads)
    folder = fold.folder(plan)
    folder.mkdir(parents=True, exist_ok=True)
    scans = kept_scans(plan.slices)
    row = f"fold {fold.number}"
    with ReportingBar(row) as bar:
        context = RunContext(seed, plan.device, bar)
        if plan.unet is None:
            augment = AugmentationPipeline(load_registry(), plan.profile.augmentations)
            recipe = UNetRecipe(
                f"fold-{fold.number}",
                plan.profile,
                augment if augment.augmentations else None,
                unet_to_fine_tune(plan.init, plan.profile) if plan.init is not None else None,
            )
            fit_unet_bundle(Slices(scans), fold.split, recipe, fold.unet(plan), context)
        bundle = Bundle(fold.unet(plan), plan.profile.tap)
        features, cropped = fold.features(plan), plan.profile.cropped
        store = extract(scans, bundle, features, context, cropped=cropped, threads=plan.threads)
        if plan.unlabelled:
            cut, without = plan.work / plan.unlabelled, fold.features_of(plan, plan.unlabelled)
            extract_unlabelled(cut, bundle, without, context, cropped=cropped, threads=plan.threads)
        if plan.source:
            cut_source, source = kept_scans(plan.work / plan.source / "slices"), fold.features_of(plan, plan.source)
            extract(cut_source, bundle, source, context, cropped=cropped, threads=plan.threads)
    if not (folder / DICE_FILE).exists():
        tested = [scan for scan in scans if fold.split.get(scan.patient) == "test"]
        write_whole(folder / DICE_FILE, json.dumps(dice_by_patient(_masks(tested, store, cases))))
    report(row, "", 1, 1)


def _masks(
    scans: Sequence[CutScan], store: FeatureStore, cases: Mapping[str, Case]
) -> Iterator[tuple[str, NDArray[np.bool_], NDArray[np.bool_]]]:
    """Each scan's patient, true mask and found mask, on the scan's own grid."""
    for scan in scans:
        yield on_own_grid(scan, cases[scan.case], store.masks(np.flatnonzero(store.scans == scan.id)))


def table2(plan: Plan, folds: Sequence[Fold], scans: Sequence[CutScan]) -> schema.Table2:
    """Means over folds. Only the test patients' Dice has an interval. A U-Net of another run has no training slices."""
    dice = {
        (patient, fold.number): value
        for fold in folds
        for patient, value in json.loads((fold.folder(plan) / DICE_FILE).read_text()).items()
    }
    values = np.array(list(dice.values()))
    drawn = values[np.random.default_rng(0).integers(0, len(values), (2000, len(values)))].mean(axis=1)
    test_patients = schema.PatientsDice(
        dice=Score(mean=values.mean(), ci95=np.percentile(drawn, [2.5, 97.5]), n=len(values)),
        dice_median=float(np.median(values)),
        per_patient=[
            schema.PatientDice(patient=p, fold=f, dice=round(value, 4)) for (p, f), value in sorted(dice.items())
        ],
    )
    fitted = [] if plan.unet is not None else [Bundle(fold.unet(plan)).manifest.metrics["unet"] for fold in folds]

    def over(part: str) -> schema.SegmentationScores:
        slices = sum(len(scan.image) for scan in scans for fold in folds if fold.split[scan.patient] == part)
        means = {name: [each[part][name] for each in fitted] for name in schema.SegmentationScores.model_fields}
        scores = {
            name: Score(mean=float(np.mean(mean)), ci95=None, n=slices) if fitted else NOT_MEASURED
            for name, mean in means.items()
        }
        return schema.SegmentationScores(**scores)

    return schema.Table2(
        train=over("train"), validation=over("validation"), test=over("test"), test_patients=test_patients
    )


def learning_curves(plan: Plan, folds: Sequence[Fold]) -> schema.Learning | None:
    """Each fold's figures by epoch; None where the U-Net was fitted in another run."""
    if plan.unet is not None:
        return None
    histories = [Bundle(fold.unet(plan)).manifest.training["history"]["unet"] for fold in folds]
    return schema.Learning(
        unet=[[{name: epoch[name] for name in CURVES if name in epoch} for epoch in history] for history in histories]
    )


def overlays(fold: Fold, scans: Sequence[CutScan], store: FeatureStore) -> dict[str, NDArray[Any]]:
    """The slice with the most tumour of some test patients: ``image``, ``truth`` and ``found`` [k, H, W], ``names``."""
    tested = [scan for scan in scans if fold.split[scan.patient] == "test"]
    image, truth, found, names = [], [], [], []
    for scan in tested[:: max(1, len(tested) // OVERLAYS)][:OVERLAYS]:
        largest = int(np.argmax([np.count_nonzero(plane) for plane in scan.mask]))
        index = np.flatnonzero((store.scans == scan.id) & (store.slices == scan.geometry.slices[largest]))
        image.append(np.asarray(scan.flair[largest], np.float32))
        truth.append((np.asarray(scan.mask[largest]) > 0).astype(np.uint8))
        found.append(store.masks(index)[0])
        names.append(scan.patient)
    return {"image": np.stack(image), "truth": np.stack(truth), "found": np.stack(found), "names": np.array(names)}

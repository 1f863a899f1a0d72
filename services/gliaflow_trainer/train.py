"""``gliaflow train``: a cohort of labelled scans becomes a model bundle.

U-Net, generators and classifier are fitted in this order, each on the output of the one before. Each step keeps its
result in a folder of its own and is skipped if the result is there, so a run that was interrupted resumes.

No patient is used to fit, normalise or choose the networks that are measured on it. Without folds, patients are split
once, and those of the test part are measured. With folds, every patient is measured by the networks of its fold
(``folds``), and the bundle's own networks are fitted on all patients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow_phantoms.cohort import made_by
from gliaflow_plugins.augmentations.pipeline import AugmentationPipeline
from gliaflow_plugins.contracts import Case, PluginError
from gliaflow_proto import CLASSES, voxel_ml
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.bundle.manifest import MANIFEST
from numpy.typing import NDArray
from rich.progress import Progress

from gliaflow_trainer import out_of_fold
from gliaflow_trainer.calibration import Masks, spot_limits, typical_limits
from gliaflow_trainer.distributed import first_process_first, is_first
from gliaflow_trainer.features import extract, found_masks
from gliaflow_trainer.fine_tuning import unet_to_fine_tune
from gliaflow_trainer.finished import finished_bundle, note_finished
from gliaflow_trainer.folds import NOT_KNOWN, CrossFit, split_into_folds
from gliaflow_trainer.graders import NOTICE, SplitFeatures, fit_graders, publish, rounded
from gliaflow_trainer.kept_work import kept_work
from gliaflow_trainer.leaks import learned_from, refuse_copies, refuse_known, refuse_leaks
from gliaflow_trainer.request import TrainRequest
from gliaflow_trainer.run_context import RunContext
from gliaflow_trainer.run_folder import same_run, settings_of
from gliaflow_trainer.sequences import patients_with, refuse_absent, refuse_unlearned
from gliaflow_trainer.slices import CutScan, Slices, cut_cohort, kept_scans
from gliaflow_trainer.source import cut_source, refuse_one_class, source_features, source_name
from gliaflow_trainer.unet_bundle import UNetRecipe, fit_unet_bundle
from gliaflow_trainer.unet_fit import dice_by_patient
from gliaflow_trainer.unlabelled import cut_unlabelled, folder_name, unlabelled_features
from gliaflow_trainer.variants import learns_from_source

SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}


def train(request: TrainRequest, bar: Progress) -> Bundle | None:
    """Fit the networks on a cohort and write a bundle to ``request.out``; ``<out>.work`` keeps the work so far.

    Called again with the same request, it resumes; with one more generator, another classifier or other scans without
    labels, it keeps the U-Nets. A cohort without grades gives a bundle with a U-Net alone, from which another cohort's
    can be fine-tuned.

    Returns
    -------
    The bundle; None in torchrun's other processes, which help to fit the U-Net and have nothing to report.

    Raises
    ------
    PluginError: no generator is named, no scan has a sequence of the profile, too few scans can be used, there are more
        folds than patients of a grade, the cohort leaks, or ``<out>.work`` is of another run.
    BundleError: ``request.init`` cannot be fine-tuned with this profile.
    """
    cohort, out, profile, variants = request.cohort, request.out, request.profile, request.variants
    context = RunContext(request.seed, request.device, bar)
    if not variants.generators:
        raise PluginError("no generator was named")
    if request.unlabelled and not getattr(variants.registry.classifier(variants.classifier), "unlabelled", False):
        raise PluginError(
            f"--unlabelled: the classifier {variants.classifier!r} does not learn from scans without labels; "
            "give --classifier shared"
        )
    variants.require_source(bool(request.source))
    refuse_one_class(request.source)
    if request.source and not any(map(learns_from_source, map(variants.registry.generator, variants.generators))):
        raise PluginError("--source: no generator of this run learns from it; give --generator adapted")
    if all(case.label is None for case in cohort.cases if case.mask is not None):
        for flag in ("unlabelled", "source"):
            if getattr(request, flag):
                raise PluginError(
                    f"--{flag}: no scan with a mask has a grade, so no classifier is fitted: leave it out"
                )
    leaks = [*cohort.leaks, *learned_from([request.init], request.folder)]
    refuse_leaks(leaks, request.allow, bar)
    refuse_absent([case for case in cohort.cases if case.mask is not None], profile.input)
    augment = AugmentationPipeline(variants.registry, request.augmentations or profile.augmentations)
    if profile.folds:  # a mistake shows before any work
        split_into_folds(_grades(case for case in cohort.cases if case.mask is not None), profile.folds, request.seed)
    start = unet_to_fine_tune(request.init, profile) if request.init is not None else None
    if out.exists() and not (out / MANIFEST).exists():
        raise PluginError(f"{out}: exists and is not a bundle; name another folder")
    work = work_folder(out)
    init = Bundle(request.init).id if request.init is not None else None
    scans = _cut(request, init, work, bar)
    leaks += refuse_copies(scans, request.allow, bar)
    without_labels = folder_name(request.unlabelled, profile)
    without = kept_scans(work / without_labels / "slices") if request.unlabelled else []
    leaks += refuse_known((request.unlabelled, without), (cohort.cases, scans), request.allow, bar, "--unlabelled")
    source_scans = source_name(request.source, profile)
    source = kept_scans(work / source_scans / "slices") if request.source else []
    leaks += refuse_known((request.source, source), (cohort.cases, scans), request.allow, bar, "--source")
    if (complete := finished_bundle(request, work)) is not None and is_first():
        bar.console.print(
            f"{out} is complete, by this command: nothing to do. To train again, remove {work}, or give another --seed "
            "or --out",
            style="yellow",
            soft_wrap=True,
        )
        return complete
    graded = [scan for scan in scans if scan.label is not None]
    if 0 < len(graded) < len(scans):
        bar.console.print(
            f"{len(scans) - len(graded)} scans have no grade: only the U-Net learns from them", style="yellow"
        )
    recipe = UNetRecipe(request.name, profile, augment if augment.augmentations else None, start)
    cut = {scan.case for scan in scans}
    used = [case for case in cohort.cases if case.id in cut]
    folds, scored = None, list[out_of_fold.OutOfFold]()
    if profile.folds:
        split = dict.fromkeys((scan.patient for scan in scans), "train")
        fold_of = split_into_folds(_grades(scans), profile.folds, request.seed)
        for fold in range(1, profile.folds + 1):
            learn = [case for case in used if fold_of[case.patient] != fold]
            refuse_unlearned(learn, profile.input, f"fold {fold}/{profile.folds}: ")
        folds = CrossFit(request, scans, fold_of, work)
        scored = folds.scores(recipe, context)
        context = replace(context, of="all patients: ")
    else:
        split = split_patients(_grades(scans), request.seed)
        refuse_unlearned([case for case in used if split[case.patient] == "train"], profile.input)
    if scored:
        out_of_fold.write_table(work / out_of_fold.TABLE_FILE, scored)
    base = fit_unet_bundle(Slices(scans), split, recipe, work / "unet", context)
    if base is None:
        return None
    phantoms = made_by(request.folder)
    manifest = base.manifest.model_dump(mode="json", exclude={"schema_", "files"})
    learned = list(split.values()).count("train")
    manifest["notice"] = f"Trained on {learned} {'phantoms' if phantoms else 'patients'}. {NOTICE}"
    manifest["trained_on"] = "phantoms" if phantoms else "patients"
    seen = (scan.flair for scan in scans if split[scan.patient] != "test")
    manifest["typical"] = typical_limits(seen, base.manifest.input)
    manifest["training"] |= {
        "profile": asdict(profile),
        "seed": request.seed,
        "device": request.device,
        "cohort": {
            **phantoms,
            "layout": cohort.layout,
            "high": list(request.high),
            "leaks": len(leaks),  # no names: the bundle may be given away
            "patients": patients_by_part(split, {scan.patient: scan.label for scan in scans}),
            **({"sequences": patients_with(used, profile.input)} if profile.input.channels[1:] else {}),
            "ungraded": len({scan.patient for scan in scans if scan.label is None}),
            "unlabelled": len({scan.patient for scan in without}),
            "source": len({scan.patient for scan in source}),
        },
        "init": init,
        "phantoms": [
            *(Bundle(request.init).phantoms if request.init is not None else []),
            *(made_by(request.source_folder).values() if request.source_folder is not None else []),
        ],
    }
    if folds is not None:
        manifest["metrics"] |= out_of_fold.metrics(scored)
        manifest |= spot_limits(_masks(scan, found) for scan, found in folds.masks())
    else:
        choose, test = ([scan for scan in scans if split[scan.patient] == part] for part in ("validation", "test"))
        manifest |= spot_limits(_masks(scan, found) for scan, found in found_masks(choose, base, context))
        manifest["metrics"]["segmentation"] = _test_dice(found_masks(test, base, context))
    if not graded:
        bar.console.print("no scan has a grade: this bundle segments, and grades nothing", style="yellow")
        return note_finished(publish(work / "unet", out, manifest), request, work)
    store = extract(graded, base, work / "features", context, cropped=profile.cropped)
    others = unlabelled_features(request, work, base, work / f"{without_labels}-features", context)
    more = source_features(request, work, base, work / f"{source_scans}-features", context)
    features = SplitFeatures(store, split, base, work / "slices", others, more)
    return note_finished(fit_graders(features, variants, manifest, work / "bundle", out, context), request, work)


def work_folder(out: Path) -> Path:
    """The folder that keeps the work of the bundle ``out``."""
    return out.with_name(out.name + ".work")


def _cut(request: TrainRequest, init: str | None, work: Path, bar: Progress) -> list[CutScan]:
    """The cohort's slices, after a check that ``work`` is of the same run. ``init``: the id of the bundle."""
    cases, profile = request.cohort.cases, request.profile
    with first_process_first():
        if not is_first():
            return kept_scans(work / "slices")
        same_run(
            work,
            {
                "scan": settings_of((case for case in cases if case.mask is not None), profile.input.channels),
                # another classifier, or other scans without labels, need no other U-Net
                "profile": {key: value for key, value in asdict(profile).items() if key != "classifier"},
                "augmentations": list(request.augmentations),
                "init": init or False,
                "high": list(request.high),
                "seed": request.seed,
            },
        )
        if finished_bundle(request, work) is None and (kept := kept_work(work)):
            bar.console.print(f"resuming from {work}, which has: {kept}", soft_wrap=True)
        if request.unlabelled:
            cut_unlabelled(request.unlabelled, profile, work, bar)
        if request.source:
            cut_source(request.source, profile, work, bar)
        return cut_cohort(cases, profile, work, bar)


def _grades(scans: Iterable[Case | CutScan]) -> list[tuple[str, str]]:
    """The patient and the grade of each scan."""
    return [(scan.patient, scan.label or NOT_KNOWN) for scan in scans]


def split_patients(patients: Sequence[tuple[str, str]], seed: int) -> dict[str, str]:
    """Each patient's part, ``train``, ``validation`` or ``test``: by SHARES of each grade, at random, once.

    Patients without a grade are in ``train``, unless no patient has one.

    Parameters
    ----------
    patients: patient and grade of each scan.

    Raises
    ------
    PluginError: a grade has fewer than 4 patients, so that a part would be empty.
    """
    rng = np.random.default_rng(seed)
    split: dict[str, str] = {}
    grades = sorted({grade for _, grade in patients})
    for grade in grades if grades == [NOT_KNOWN] else CLASSES:
        of_grade = sorted({patient for patient, its_grade in patients if its_grade == grade})
        if len(of_grade) < 4:
            raise PluginError(f"{len(of_grade)} patients of grade {grade} have scan and mask; at least 4 are needed")
        test, validation = (max(1, round(SHARES[part] * len(of_grade))) for part in ("test", "validation"))
        for place, index in enumerate(rng.permutation(len(of_grade))):
            part = "test" if place < test else "validation" if place < test + validation else "train"
            split.setdefault(of_grade[index], part)
    return split | {patient: "train" for patient, _ in patients if patient not in split}


def patients_by_part(split: Mapping[str, str], grade: Mapping[str, str | None]) -> dict[str, dict[str, int]]:
    """How many patients of each grade are in each part. No names: the bundle may be given away."""
    return {
        part: {each: sum(split[p] == part and grade[p] == each for p in split) for each in CLASSES}
        for part in SHARES
        if part in split.values()
    }


def _test_dice(found: Iterable[tuple[CutScan, NDArray[np.uint8]]]) -> dict[str, Any]:
    """Dice by test patient, over all slices of the patient on the network's grid."""
    masks = ((scan.patient, np.asarray(scan.mask) > 0, mask > 0) for scan, mask in found)
    scores = list(dice_by_patient(masks).values())
    return {"dice_mean": rounded(np.mean(scores)), "dice_median": rounded(np.median(scores)), "patients": len(scores)}


def _masks(scan: CutScan, found: NDArray[np.uint8]) -> Masks:
    pixel_ml = voxel_ml(scan.geometry) * scan.geometry.step[0] * scan.geometry.step[1]
    return Masks(scan.patient, np.asarray(scan.mask) > 0, found, pixel_ml)

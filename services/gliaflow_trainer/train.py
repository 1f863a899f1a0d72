"""``gliaflow train``: a cohort of labelled scans becomes a model bundle.

U-Net, generator and classifier are fitted in that order, each on what the one before leaves. Patients are split
once; what is fitted, normalised or chosen never sees a patient of the test part, on which the metrics are measured.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gliaflow_phantoms.phantom import COHORT_FILE
from gliaflow_plugins.augmentations.pipeline import AugmentationPipeline
from gliaflow_plugins.contracts import Case, Cohort, Fitted, PluginError
from gliaflow_plugins.networks.cnn import patient_scores, slice_logits
from gliaflow_plugins.networks.export import export, export_generator
from gliaflow_plugins.registry import Registry
from gliaflow_proto import CLASSES, message_id
from gliaflow_runtime.bundle.load import Bundle, write_manifest
from gliaflow_store.feature_store import Samples
from rich.progress import Progress
from torch import nn

from gliaflow_trainer.profiles import Profile
from gliaflow_trainer.slice_features import Imaged
from gliaflow_trainer.slices import CutScan, Slices, cut
from gliaflow_trainer.steps import (
    WEIGHTS,
    blank_bundle,
    extract,
    fit_unet_bundle,
    initial,
    same_run,
    shown,
    synthetic,
    versions,
)
from gliaflow_trainer.variants import Variants, choose, fit_classifier, fit_generator

NOTICE = "Not a clinical model: it must not be used to diagnose or treat anybody."
SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}


def train(
    cohort: Cohort,
    folder: Path,
    out: Path,
    profile: Profile,
    registry: Registry,
    *,
    generators: str = "infogan",
    options: Mapping[str, Any] | None = None,
    augmentations: Sequence[tuple[str, Mapping[str, Any]]] = (),
    init: Path | None = None,
    high: Sequence[str] = (),
    name: str,
    seed: int = 0,
    device: str = "cpu",
    bar: Progress,
) -> Bundle:
    """Fit the networks on a cohort and write a bundle to ``out``; the work so far is kept in ``<out>.work``.

    Called again with the same arguments after it was cut off, it goes on; with one more generator, it fits that and the
    classifier. A cohort without grades gives a bundle with
    a U-Net alone, to fine-tune another cohort from.

    Parameters
    ----------
    cohort, folder: what was understood of which folder.
    generators, options: the variants and their options, as ``choose`` reads them.
    augmentations: names and options, in place of the profile's.
    init: a bundle whose U-Net is fine-tuned (the paper: pre-trained on BraTS, fine-tuned on REMBRANDT).
    high: the grades that were taken for HGG; kept with the bundle.
    name: of the bundle.
    bar: shows the progress of each step.

    Raises
    ------
    PluginError: the variant or an option is not known, too few scans can be used, or ``<out>.work`` is of another run.
    BundleError: ``init`` cannot be fine-tuned with this profile.
    """
    variants = choose(registry, generators, profile, options)
    if not variants.generators:
        raise PluginError("no generator was named")
    augment = AugmentationPipeline(registry, augmentations or profile.augmentations)
    start = initial(init, profile) if init is not None else None
    if out.exists() and not (out / "manifest.json").exists():
        raise PluginError(f"{out}: is there already and is no bundle; name another folder")
    work = out.with_name(out.name + ".work")
    run = {
        "cohort": str(folder.resolve()),
        "cases": message_id(*sorted(f"{c.id} {c.patient} {c.label}" for c in cohort.cases)),
        "profile": asdict(profile),
        "augmentations": list(augmentations),
        "init": start is not None and Bundle(init or work).id,
        "high": list(high),
        "seed": seed,
    }
    first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    if first:
        same_run(work, run)
    else:
        torch.distributed.barrier()
    scans = cut_cohort(cohort.cases, profile, work, bar)
    if first and torch.distributed.is_initialized():
        torch.distributed.barrier()
    graded = [scan for scan in scans if scan.label is not None]
    if 0 < len(graded) < len(scans):
        bar.console.print(f"{len(scans) - len(graded)} scans have no grade: they teach the U-Net alone", style="yellow")
    split = split_patients([(scan.patient, scan.label or "not known") for scan in scans], seed)
    base = fit_unet_bundle(
        Slices(scans),
        split,
        profile,
        work / "unet",
        name=name,
        seed=seed,
        device=device,
        bar=bar,
        augment=augment if augment.augmentations else None,
        start=start,
    )
    manifest = base.manifest.model_dump(mode="json", exclude={"schema_", "files"})
    manifest["notice"] = f"Trained on {len(split)} {'phantoms' if made_by(folder) else 'patients'}. {NOTICE}"
    manifest["training"] |= {
        "profile": asdict(profile),
        "seed": seed,
        "device": device,
        "cohort": made_by(folder) | {"layout": cohort.layout, "high": list(high), "patients": _count(split, scans)},
        "init": run["init"] or None,
    }
    if not graded:
        bar.console.print("no scan has a grade: this bundle segments, and grades nothing", style="yellow")
        return _publish(work / "unet", out, manifest)
    store = extract(graded, base, work / "features", cropped=profile.cropped, device=device, bar=bar)
    manifest["metrics"]["segmentation"] = dice_by_patient(graded, store, split)
    return fit_graders(store, split, base, work / "bundle", out, manifest, variants, seed, device, bar, work / "slices")


def fit_graders(
    store: Samples,
    split: Mapping[str, str],
    base: Bundle,
    work: Path,
    out: Path,
    manifest: dict[str, Any],
    variants: Variants,
    seed: int,
    device: str,
    bar: Progress,
    slices: Path | None = None,
) -> Bundle:
    """Fit generators and classifier on features in the store and publish them with the base's U-Net as ``out``.

    Parameters
    ----------
    split: each patient's part: learnt from, chosen with, or measured on.
    base: the bundle whose U-Net the features come from.
    manifest: of the base, with what is known of the training so far.
    slices: where those lie that the features come from, if they are known.
    """
    work.mkdir(parents=True, exist_ok=True)
    part = np.array([split[patient] for patient in store.patients])
    store, part = store.select(store.tumour > 0), part[store.tumour > 0]  # as in serving: others say nothing of grades
    known = store.select(part == "train")
    if len(set(known.labels)) < len(CLASSES):
        raise PluginError(
            "the U-Net found tumour in one class of training patients only, so there is nothing to grade by: "
            "give it more --epochs, or start from another bundle's by --init"
        )
    for left in work.glob("*.onnx"):  # of a run with other generators
        left.unlink()
    fitted: dict[str, Fitted] = {}
    for name, options in variants.generators.items():
        kept = message_id(options.model_dump_json(), variants.registry.code_of("generator", name))
        task = bar.add_task(f"generator {name}", total=None)
        fitted[name] = fit_generator(
            variants.registry.generator(name),
            known if slices is None else Imaged(known, slices, base, bool(manifest["cropped"])),
            options,
            seed=seed,
            device=device,
            progress=shown(bar, task),
            checkpoint=work / f"{name}-{kept[:12]}.checkpoint",
        )
        bar.remove_task(task)
        with exported("generator", name):
            export_generator(fitted[name], work, store.shape, name)

    seen = store.select(part != "test")  # a plugin may look at all that it is given
    index = {which: np.flatnonzero(part[part != "test"] == which) for which in ("train", "validation")}
    task = bar.add_task(f"classifier {variants.classifier}", total=None)
    graded = fit_classifier(
        variants.registry.classifier(variants.classifier),
        seen,
        variants.classifier_options,
        learn=index["train"],
        choose=index["validation"],
        patients=seen.patients.tolist(),
        weights="balanced",
        seed=seed,
        device=device,
        progress=shown(bar, task),
    )
    classifier = graded.module
    bar.remove_task(task)
    example = torch.from_numpy(seen.batch(index["train"][:5]))
    with exported("classifier", variants.classifier):
        export(classifier, [example], work / "classifier.onnx", ["features"], ["logit"])
    for file in ("unet.onnx", WEIGHTS):
        if file in base.manifest.files:  # older bundles have no weights to fine-tune
            (work / file).write_bytes(base.read(file))
    manifest |= {
        "generator": next(iter(variants.generators)),
        "generators": {
            name: {"options": options.model_dump(mode="json"), "noise": fitted[name].nz}
            for name, options in variants.generators.items()
        },
        "versions": versions(),
    }
    manifest["training"]["classifier"] = {
        "name": variants.classifier,
        "options": variants.classifier_options.model_dump(mode="json"),
    }
    manifest["training"].setdefault("history", {}).update(
        generator={name: each.history for name, each in fitted.items()}, classifier=graded.history
    )
    manifest["metrics"] |= {
        "grading": _grading(classifier, store.select(part == "test")),
        "synthetic": {name: _synthetic(each, classifier, seed) for name, each in fitted.items()},
    }
    return _publish(work, out, manifest)


def cut_cohort(cases: Iterable[Case], profile: Profile, work: Path, bar: Progress) -> list[CutScan]:
    """Every case with a mask, cut into slices by the preprocessor; what cannot be used is named and passed over."""
    usable = [case for case in cases if case.mask is not None]
    task = bar.add_task("slices", total=len(usable))

    def answered(case: Case, reason: str | None) -> None:
        bar.advance(task)
        if reason is not None:
            bar.console.print(f"passed over  {reason}", style="yellow", soft_wrap=True)

    scans = cut(usable, blank_bundle(profile, work / "blank"), work / "slices", answered)
    bar.remove_task(task)
    if not scans:
        raise PluginError("no scan with a mask could be read")
    return scans


def split_patients(patients: Sequence[tuple[str, str]], seed: int) -> dict[str, str]:
    """Each patient's part, ``train``, ``validation`` or ``test``: by SHARES of each grade, at random, once.

    Where others have a grade, patients without one are learnt from.

    Raises
    ------
    PluginError: a grade has fewer than 4 patients, so that a part would be empty.
    """
    rng = np.random.default_rng(seed)
    split: dict[str, str] = {}
    grades = sorted({grade for _, grade in patients})
    for grade in grades if grades == ["not known"] else CLASSES:
        of_grade = sorted({patient for patient, its in patients if its == grade})
        if len(of_grade) < 4:
            raise PluginError(f"{len(of_grade)} patients of grade {grade} have scan and mask; at least 4 are needed")
        test, validation = (max(1, round(SHARES[which] * len(of_grade))) for which in ("test", "validation"))
        for place, index in enumerate(rng.permutation(len(of_grade))):
            which = "test" if place < test else "validation" if place < test + validation else "train"
            split.setdefault(of_grade[index], which)
    return split | {patient: "train" for patient, _ in patients if patient not in split}


def dice_by_patient(scans: Sequence[CutScan], store: Samples, split: Mapping[str, str]) -> dict[str, Any]:
    """Dice by test patient, over all slices of a patient on the network's grid."""
    pairs: dict[str, list[int]] = {}
    for scan in scans:
        if split[scan.patient] == "test":
            truth, found = np.asarray(scan.mask) > 0, store.masks(np.flatnonzero(store.scans == scan.id)) > 0
            both = pairs.setdefault(scan.patient, [0, 0])
            both[0] += 2 * int((truth & found).sum())
            both[1] += int(truth.sum()) + int(found.sum())
    scores = [overlap / max(1, total) for overlap, total in pairs.values()]
    return {"dice_mean": _rounded(np.mean(scores)), "dice_median": _rounded(np.median(scores)), "patients": len(scores)}


def made_by(folder: Path) -> dict[str, Any]:
    """What ``gliaflow phantom`` wrote of how it made the cohort; nothing for another."""
    try:
        made = json.loads((folder / COHORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {"made_by": made} if isinstance(made, dict) else {}


def _publish(work: Path, out: Path, manifest: dict[str, Any]) -> Bundle:
    """Complete the bundle in ``work`` and copy it to ``out``: whoever reads there finds the old one or the new."""
    manifest = {key: value for key, value in manifest.items() if key not in ("schema", "files")}
    bundle = write_manifest(work, manifest)
    new = out.with_name(f".new-{out.name}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name in ("manifest.json", *bundle.manifest.files):
        shutil.copyfile(work / name, new / name)
    if out.exists():
        old = out.with_name(f".old-{out.name}")
        shutil.rmtree(old, ignore_errors=True)
        out.replace(old)
        new.replace(out)
        shutil.rmtree(old)
    else:
        new.replace(out)
    return Bundle(out)


@contextmanager
def exported(kind: str, name: str) -> Iterator[None]:
    """Raises PluginError where what a plugin made cannot be exported: ONNX has no such operation, say."""
    try:
        yield
    except Exception as error:
        raise PluginError(f"{kind} {name!r} cannot be exported: {' '.join(str(error).split())[:500]}") from error


def _grading(classifier: nn.Module, tested: Samples) -> dict[str, Any]:
    """By test patient: mean logit over the slices with tumour. Patients in whom no tumour was found have no score."""
    logits = slice_logits(classifier, tested, np.arange(len(tested)))
    scores = patient_scores(logits, tested.labels, [str(patient) for patient in tested.patients])
    return {
        "auc": _rounded(scores.auc),
        "balanced_accuracy": _rounded(scores.balanced_accuracy),
        "patients": len(scores.patients),
    }


def _synthetic(fitted: Fitted, classifier: nn.Module, seed: int) -> dict[str, Any]:
    """How many synthetic features its critic, and a classifier that never saw any, put into the right class.

    The classifier sees those that the critic accepted, as serving gives them out.
    """
    accepted, right, samples = [], [], 0
    for label in range(len(CLASSES)):
        features, share = synthetic(fitted, label, 128, seed + label)
        accepted.append(share)
        samples += len(features)
        with torch.inference_mode():
            graded = (classifier(torch.from_numpy(features)) < 0).long() == label
        right.append(float(graded.float().mean()) if len(features) else 0.0)  # none of a class: none is right
    return {
        "critic_accuracy": _rounded(np.mean(accepted)),
        "classifier_accuracy": _rounded(np.mean(right)),
        "samples": samples,
    }


def _count(split: Mapping[str, str], scans: Sequence[CutScan]) -> dict[str, dict[str, int]]:
    """Patients of each grade in each part. Counts, never names: the bundle may be given away."""
    grade = {scan.patient: scan.label for scan in scans}
    return {which: {g: sum(split[p] == which and grade[p] == g for p in split) for g in CLASSES} for which in SHARES}


def _rounded(value: Any) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None  # JSON has no NaN

"""One fold of an evaluation: everything is fitted on its training patients and asked about its test patients.

Each step leaves its result in the fold's folder and is not done again, so that a run that was cut off goes on, and a
later run with other generators uses the U-Nets of an earlier one.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gliaflow_plugins.augmentations.pipeline import AugmentationPipeline
from gliaflow_plugins.contracts import Case, PluginError
from gliaflow_plugins.registry import load_registry
from gliaflow_preprocessor.nifti import read_nifti
from gliaflow_proto import restore
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.logs import configure_logging
from gliaflow_store.feature_store import FeatureStore, Samples
from gliaflow_trainer.processes import end_with_parent
from gliaflow_trainer.slices import CutScan, Slices, kept_scans
from gliaflow_trainer.steps import extract, fit_unet_bundle, initial
from numpy.typing import NDArray
from rich.progress import Progress
from threadpoolctl import threadpool_limits

from gliaflow_evaluation.arms import Arms
from gliaflow_evaluation.protocol import CLASSES, Fold, Plan, Task, features_of, folder_of

ANSWERS = 3  # counted up when an arm comes to mean something else: answers of before are then found anew


def fit_segmentation(plan: Plan, fold: Fold, cases: Mapping[str, Case], seed: int) -> None:
    """Fit the fold's U-Net, record the features of all slices, and measure the masks of the test patients."""
    torch.set_num_threads(plan.threads)
    folder = folder_of(plan, fold)
    folder.mkdir(parents=True, exist_ok=True)
    scans = kept_scans(plan.work / "slices")
    with Progress(disable=True) as bar:
        if plan.unet is not None:
            bundle = Bundle(plan.unet, plan.tap)
        else:
            augment = AugmentationPipeline(load_registry(), plan.profile.augmentations)
            fit_unet_bundle(
                Slices(scans),
                fold.split,
                plan.profile,
                folder / "unet",
                name=f"fold-{fold.number}",
                seed=seed,
                device=plan.device,
                bar=bar,
                augment=augment if augment.augmentations else None,
                start=initial(plan.init, plan.profile) if plan.init is not None else None,
            )
            bundle = Bundle(folder / "unet", plan.tap)
        store = extract(
            scans,
            bundle,
            features_of(plan, fold),
            cropped=plan.profile.cropped,
            device=plan.device,
            threads=plan.threads,
            bar=bar,
        )
    target = folder / "dice.json"
    if not target.exists():
        tested = [scan for scan in scans if fold.split.get(scan.patient) == "test"]
        dice = _dice(tested, store, cases)
        _write(target, json.dumps(dice))


def _dice(scans: Sequence[CutScan], store: FeatureStore, cases: Mapping[str, Case]) -> dict[str, float]:
    """Dice of each patient over all voxels, on the scan's own grid."""
    overlap: dict[str, list[int]] = {}
    for scan in scans:
        mask = cases[scan.case].mask
        assert mask is not None
        truth = read_nifti(mask.read())[0] > 0
        here = np.flatnonzero(store.scans == scan.id)
        geometry = replace(scan.geometry, slices=[int(z) for z in store.slices[here]])
        found = restore(store.masks(here), geometry) > 0
        both = overlap.setdefault(scan.patient, [0, 0])
        both[0] += 2 * int((truth & found).sum())
        both[1] += int(truth.sum()) + int(found.sum())
    return {patient: both / max(1, total) for patient, (both, total) in overlap.items()}


_Asked = tuple[str, Mapping[str, Any]] | None  # a generator and its options; None: all that needs none


def grade_fold(plan: Plan, fold: Fold, seed: int) -> list[Path]:
    """Fit every arm with one seed. The files have the logits of the test slices by arm, and what was measured beside.

    There is a file without generators and one for each generator: who asks for one more fits no other again. Where a
    generator fails, its file says so and is not taken for an answer the next time.
    Keys: ``index`` [n], the numbers of the test slices in the store; ``arm/NAME`` [n]; ``scarce/N/NAME``;
    ``control/NAME``, those of generators with the first seed alone (to fit one takes longest); ``figures/NAME/…``; and
    ``about``, JSON.
    """
    torch.set_num_threads(plan.threads)
    threadpool_limits(plan.threads)  # threads of BLAS that spin while they wait take the other folds' cores
    asked: list[_Asked] = [None, *plan.generators]
    targets = [_answer(plan, fold, seed, generator) for generator in asked]
    if all(target.exists() for target in targets):
        return targets
    store = FeatureStore(features_of(plan, fold))
    samples, index = samples_of(plan, store)
    part = np.array([fold.split.get(patient, "") for patient in samples.patients])
    here = {which: np.flatnonzero(part == which) for which in ("train", "validation", "test")}
    if len(np.unique(samples.labels[here["train"]])) < 2:
        raise PluginError(f"fold {fold.number}: the U-Net found tumour in one class of training patients only, or none")
    unet = plan.unet if plan.unet is not None else folder_of(plan, fold) / "unet"
    bundle = Bundle(unet, plan.tap) if unet.exists() else None
    arms = Arms(plan, samples, here, seed, _counted(store.patients), bundle)
    thinned = {few: _thin(samples, here, plan.rare, few, seed) for few in plan.scarce}
    scarce = {
        few: Arms(plan, samples, chosen, seed, None, bundle) for few, chosen in thinned.items() if chosen is not None
    }
    control = None
    if plan.shuffle:
        dealt = samples.with_labels(shuffled(samples, plan.task), samples.classes)
        control = Arms(plan, dealt, here, seed, None, bundle)
    for number, (generator, target) in enumerate(zip(asked, targets, strict=True)):
        if target.exists():
            continue
        if generator is None:
            found = _without(arms, scarce, control)
        else:
            try:
                if generator[0] in plan.apart:
                    _fit_apart(replace(plan, generators=(generator,), apart=()), fold, seed, target)
                    continue
                found = _with(generator, arms, scarce, control if seed == plan.seed else None)
            except Exception as error:  # of somebody's plugin: the others go on
                said = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
                found = {"about": np.array(json.dumps({"failed": {generator[0]: " ".join(said.split())}}))}
                targets[number] = target = target.with_suffix(".failed.npz")
        _save(target, {"index": index[here["test"]], **found})
    return targets


def _fit_apart(plan: Plan, fold: Fold, seed: int, target: Path) -> None:
    """``grade_fold`` in a process of its own. Raises PluginError where no answer came of it, with what is known."""
    name = plan.generators[0][0]
    process = multiprocessing.get_context("spawn").Process(target=_apart, args=[plan, fold, seed])
    process.start()
    process.join(plan.deadline_s)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise PluginError(f"generator {name!r}: its fit took longer than {plan.deadline_s:g} s, and was ended")
    failed = target.with_suffix(".failed.npz")
    if process.exitcode == 0 and not target.exists():
        about = json.loads(str(np.load(failed)["about"]))
        raise PluginError(about["failed"][name])
    if process.exitcode:
        how = f"killed by {signal.Signals(-process.exitcode).name}" if process.exitcode < 0 else "ended"
        raise PluginError(f"generator {name!r}: its process was {how}: a crash, or more memory than there is")


def _apart(plan: Plan, fold: Fold, seed: int) -> None:
    end_with_parent()
    configure_logging("error", "auto")
    grade_fold(plan, fold, seed)
    os._exit(0)  # whatever threads it has left behind


def _answer(plan: Plan, fold: Fold, seed: int, generator: _Asked) -> Path:
    """Where the answers to all that was asked lie."""
    where = ("work", "threads", "device", "init", "unet")  # the work folder is of one U-Net
    others = ("generators", "code", "apart", "deadline_s")
    wanted = {name: value for name, value in asdict(plan).items() if name not in (*where, *others)}
    code = [plan.code[""], plan.code[generator[0]] if generator else ""]
    asked = json.dumps([ANSWERS, wanted, generator, code, fold.split, seed], default=str, sort_keys=True)
    return folder_of(plan, fold) / f"seed-{seed}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}.npz"


def _without(arms: Arms, scarce: Mapping[int, Arms], control: Arms | None) -> dict[str, Any]:
    found: dict[str, Any] = {f"arm/{name}": made for name, made in arms.without(quality=True).items()}
    for few, thin in scarce.items():
        found |= {f"scarce/{few}/{name}": logits for name, logits in thin.without().items()}
    if control is not None:
        found |= {f"control/{name}": logits for name, logits in control.control().items()}
    return {**found, "about": np.array("{}")}


def _with(
    generator: tuple[str, Mapping[str, Any]], arms: Arms, scarce: Mapping[int, Arms], control: Arms | None
) -> dict[str, Any]:
    name, _ = generator
    found: dict[str, Any] = {f"arm/{arm}": made for arm, made in arms.with_generator(*generator, quality=True).items()}
    for few, thin in scarce.items():
        found |= {f"scarce/{few}/{arm}": logits for arm, logits in thin.with_generator(*generator).items()}
    if control is not None:
        found |= {f"control/{arm}": logits for arm, logits in control.generator_control(*generator).items()}
    found |= {f"figures/{figure}": maps for figure, maps in arms.figures.items() if figure.startswith(f"{name}/")}
    about = {"gan": {name: arms.gan[name]}, "chosen": {name: arms.chosen[name]}}
    return {**found, "about": np.array(json.dumps(about))}


def _save(path: Path, found: Mapping[str, Any]) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **found)
    part.replace(path)


def samples_of(plan: Plan, store: FeatureStore) -> tuple[Samples, NDArray[np.int64]]:
    """The samples of the task, and their numbers in the store.

    ``grade``: as in serving, slices in which the U-Net found tumour. ``tumour``: all, by the true mask.
    """
    if plan.task == "grade":
        index = np.flatnonzero(store.tumour > 0)
        return store.select(index), index
    truth = {
        (scan.id, z): bool(np.any(mask))
        for scan in kept_scans(plan.work / "slices")
        for z, mask in zip(scan.geometry.slices, scan.mask, strict=True)
    }
    labels = np.array([0 if truth[scan, int(z)] else 1 for scan, z in zip(store.scans, store.slices, strict=True)])
    return store.with_labels(labels, CLASSES["tumour"]), np.arange(len(store))


def shuffled(samples: Samples, task: Task) -> NDArray[np.int64]:
    """Labels dealt anew, once for all folds and seeds: among patients (grade), or among all slices (tumour).

    Among patients, as many of each new label go to either old one, in proportion: a deal that resembles the truth by
    chance would show its signal. (Slices are not dealt within their patient: how many have tumour shows in the others.)
    """
    rng = np.random.default_rng(20_26)
    if task == "tumour":
        return rng.permutation(samples.labels)
    names, first = np.unique(samples.patients, return_index=True)
    old = samples.labels[first]
    new = old.copy()
    share = float((old == 0).mean())
    for label in np.unique(old):
        its = rng.permutation(np.flatnonzero(old == label))
        new[its] = (np.arange(len(its)) >= round(share * len(its))).astype(np.int64)
    return new[np.searchsorted(names, samples.patients)]


def _thin(
    samples: Samples, here: Mapping[str, NDArray[np.int64]], rare: int, few: int, seed: int
) -> dict[str, NDArray[np.int64]] | None:
    """Only ``few`` patients' samples of the rare class to learn from and choose with; None where no more are there."""
    of_rare = samples.labels == rare
    learnt = np.concatenate([here["train"], here["validation"]])
    have = np.unique(samples.patients[learnt[of_rare[learnt]]])
    if len(have) <= few or few < 2:
        return None
    chosen = np.random.default_rng([seed, few]).permutation(have)[:few]
    to_choose = max(1, round(few / 5))
    mine = {"validation": set(chosen[:to_choose]), "train": set(chosen[to_choose:])}

    def kept(which: str) -> NDArray[np.int64]:
        # a chosen patient's samples go where the patient was dealt, of either class (task "tumour"); others' samples
        # of the other class stay as they were split
        others = here[which][~of_rare[here[which]] & ~np.isin(samples.patients[here[which]], chosen)]
        its = learnt[np.isin(samples.patients[learnt], list(mine[which]))]
        return np.sort(np.concatenate([others, its]))

    return {"train": kept("train"), "validation": kept("validation"), "test": here["test"]}


def _counted(names: NDArray[np.str_]) -> dict[str, int]:
    return {str(name): int(count) for name, count in zip(*np.unique(names, return_counts=True), strict=True)}


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".part-{path.name}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)

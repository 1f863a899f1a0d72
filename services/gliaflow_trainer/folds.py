"""One fold of an evaluation: everything is fitted on its training patients and asked about its test patients.

Each step leaves its result in the fold's folder and is not done again, so that a run that was cut off goes on, and a
later run with other generators uses the U-Nets of an earlier one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gliaflow_plugins.base import PluginError, parse_options
from gliaflow_plugins.generators import ArrayFeatures, FeatureSource, Fitted, Joined
from gliaflow_plugins.pipeline import Pipeline
from gliaflow_plugins.readers import Case
from gliaflow_plugins.registry import load_registry
from gliaflow_preprocessor.nifti import read_nifti
from gliaflow_proto import restore
from gliaflow_runtime.bundle import Bundle
from numpy.typing import NDArray
from rich.progress import Progress
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from threadpoolctl import threadpool_limits
from torch import nn

from gliaflow_trainer.comparators import (
    WITH_EXTRA,
    FeaturePCA,
    balanced_offset,
    extra,
    linear_grader,
    moved_threshold,
    number_grader,
)
from gliaflow_trainer.gan_measures import gan_measures, pool
from gliaflow_trainer.grading import fit_classifier, slice_logits
from gliaflow_trainer.pooled import PooledClassifier, fit_pooled, statistics
from gliaflow_trainer.profiles import Profile
from gliaflow_trainer.scores import mean_by_patient
from gliaflow_trainer.slices import CutScan, Slices, kept_scans
from gliaflow_trainer.steps import extract, fit_unet_bundle, initial, synthetic
from gliaflow_trainer.store import FeatureStore, Samples

Task = Literal["grade", "tumour"]
CLASSES: dict[Task, tuple[str, str]] = {"grade": ("HGG", "LGG"), "tumour": ("tumour", "none")}
MANY = 2000  # training samples that comparators, which hold all of them, are given at most
MEASURED = 400  # synthetic samples of a class that are measured


@dataclass(frozen=True)
class Plan:
    """What an evaluation asks of every fold.

    ``unet``: a bundle whose U-Net is used as it is; it must not have seen this cohort. ``rare`` is the class that
    ``scarce`` thins, to as many patients as each of its numbers says.
    """

    work: Path
    profile: Profile
    task: Task
    rare: int
    tap: str
    generators: tuple[tuple[str, Mapping[str, Any]], ...]
    counts: tuple[int, ...]
    scarce: tuple[int, ...]
    shuffle: bool
    device: str
    threads: int
    init: Path | None = None
    unet: Path | None = None


@dataclass(frozen=True)
class Fold:
    """Which patient is learnt from, chosen with, or measured on (``train``, ``validation``, ``test``)."""

    number: int
    split: Mapping[str, str]


def folder_of(plan: Plan, fold: Fold) -> Path:
    return plan.work / f"fold-{fold.number}"


def features_of(plan: Plan, fold: Fold) -> Path:
    """Where the fold's features lie: those of a U-Net from elsewhere are the same in all folds."""
    name = f"features-{plan.tap}{'-cropped' if plan.profile.cropped else ''}"
    return plan.work / name if plan.unet is not None else folder_of(plan, fold) / name


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
            augment = Pipeline(load_registry(), plan.profile.augmentations)
            fit_unet_bundle(
                Slices(scans),
                fold.split,
                plan.profile,
                folder / "unet",
                name=f"fold-{fold.number}",
                seed=seed,
                device=plan.device,
                bar=bar,
                augment=augment if augment.steps else None,
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


def grade_fold(plan: Plan, fold: Fold, seed: int) -> Path:
    """Fit every arm with one seed; the file has the logits of the test slices by arm, and what was measured beside.

    Keys: ``index`` [n], the numbers of the test slices in the store; ``arm/NAME`` [n]; ``scarce/N/NAME``;
    ``control/NAME``; ``patients/NAME`` for arms that grade patients; and ``about``, JSON.
    """
    torch.set_num_threads(plan.threads)
    threadpool_limits(plan.threads)  # threads of BLAS that spin while they wait take the other folds' cores
    asked = json.dumps([asdict(plan), fold.split, seed], default=str, sort_keys=True)
    target = folder_of(plan, fold) / f"seed-{seed}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}.npz"
    if target.exists():
        return target
    store = FeatureStore(features_of(plan, fold))
    samples, index = samples_of(plan, store)
    part = np.array([fold.split.get(patient, "") for patient in samples.patients])
    here = {which: np.flatnonzero(part == which) for which in ("train", "validation", "test")}
    if len(np.unique(samples.labels[here["train"]])) < 2:
        raise PluginError(f"fold {fold.number}: the U-Net found tumour in one class of training patients only, or none")
    arms = _Arms(plan, samples, here, seed, _counted(store.patients))
    found: dict[str, Any] = {"index": index[here["test"]]}
    found |= {f"arm/{name}": logits for name, logits in arms.all(quality=True).items()}
    for few in plan.scarce:
        thinned = _thin(samples, here, plan.rare, few, seed)
        if thinned is not None:
            found |= {f"scarce/{few}/{name}": v for name, v in _Arms(plan, samples, thinned, seed).all().items()}
    if plan.shuffle:
        dealt = samples.with_labels(shuffled(samples, plan.task), samples.classes)
        found |= {f"control/{name}": logits for name, logits in _Arms(plan, dealt, here, seed).real().items()}
    about = {"gan": arms.gan, "chosen": arms.chosen}
    found |= {f"figures/{name}": maps for name, maps in arms.figures.items()}
    found["about"] = np.array(json.dumps(about))
    part_file = target.with_suffix(".part")
    with part_file.open("wb") as file:
        np.savez_compressed(file, **found)
    part_file.replace(target)
    return target


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


class _Arms:
    """All that is fitted on one choice of training samples, and the logits of the test samples by each.

    Parameters
    ----------
    samples: of the task.
    here: which of them to learn from, to choose with, and to measure on.
    slices: how many each patient's scans have.
    """

    def __init__(
        self,
        plan: Plan,
        samples: Samples,
        here: Mapping[str, NDArray[np.int64]],
        seed: int,
        slices: Mapping[str, int] | None = None,
    ) -> None:
        self.plan, self.samples, self.here, self.seed, self.slices = plan, samples, here, seed, slices or {}
        self.train, self.test = samples.select(here["train"]), samples.select(here["test"])
        self.grader = _POOLED if plan.profile.grader == "pooled" else _CNN
        self.gan: dict[str, Any] = {}
        self.options: dict[str, dict[str, Any]] = {}
        self.chosen: dict[str, int] = {}
        self.figures: dict[str, NDArray[np.float32]] = {}

    def all(self, quality: bool = False) -> dict[str, NDArray[np.float64]]:
        """Every arm; with ``quality`` also those that must not grade well, and how good the generators are."""
        real, weighted = self._grade(), self._grade(weights="balanced")
        found = {"real": self._test(real), "weights": self._test(weighted)}
        found["threshold"] = found["real"] - self._threshold(real)
        some = np.sort(np.random.default_rng(self.seed).permutation(len(self.train))[:MANY])
        maps, labels, patients = (
            self.train.batch(some).astype(np.float16),
            self.train.labels[some],
            self.train.patients[some],
        )
        pca = FeaturePCA.fit(maps, seed=self.seed)
        for name in WITH_EXTRA:
            made = extra(name, maps, labels, patients.tolist(), self._missing(), seed=self.seed, pca=pca)
            found[name] = self._test(self._grade(*made))
        for name, options in self.plan.generators:
            found |= self._with_generator(name, options, weighted if quality else None)
        if quality:
            found["linear"] = linear_grader(maps, labels)(self.test.batch(np.arange(len(self.test))))
            if self.plan.task == "grade":
                found |= self._numbers()
        return found

    def real(self) -> dict[str, NDArray[np.float64]]:
        """The arm of real features alone."""
        return {"real": self._test(self._grade())}

    def _grade(
        self,
        features: NDArray[Any] | None = None,
        labels: NDArray[np.int64] | None = None,
        weights: Literal["balanced"] | None = None,
        alone: bool = False,
    ) -> nn.Module:
        """A classifier fitted on the training samples and these (``alone``: on these)."""
        if features is None or labels is None:
            features, labels = np.zeros((0, *self.samples.shape), np.float16), np.zeros(0, np.int64)
        return self.grader(self, features, labels, weights, alone)

    def _score(self, module: nn.Module, offset: float) -> float:
        """The mean of balanced accuracy and AUC over the validation units."""
        logits, positive = self._units(module, "validation")
        if len(np.unique(positive)) < 2:
            return 0.0
        return float(balanced_accuracy_score(positive, logits + offset > 0) + roc_auc_score(positive, logits)) / 2

    def _test(self, module: nn.Module) -> NDArray[np.float64]:
        return self._logits(module, "test").astype(np.float64)

    def _logits(self, module: nn.Module, which: str) -> NDArray[np.float32]:
        if isinstance(module, PooledClassifier):
            with torch.inference_mode():
                graded: NDArray[np.float32] = module.grade(torch.from_numpy(self.statistics[self.here[which]])).numpy()
            return graded
        return slice_logits(module, self.samples, self.here[which], self.plan.device)

    @cached_property
    def statistics(self) -> NDArray[np.float32]:
        """Of all samples, read once for all classifiers."""
        return statistics(self.samples)

    def _units(self, module: nn.Module, *parts: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Logits and classes of the units of these parts: patients by their mean logit, or slices."""
        index = np.concatenate([self.here[part] for part in parts])
        logits = np.concatenate([self._logits(module, part) for part in parts]).astype(np.float64)
        positive = self.samples.labels[index] == 0
        if self.plan.task == "tumour":
            return logits, positive
        _, first, of = np.unique(self.samples.patients[index], return_index=True, return_inverse=True)
        return mean_by_patient(logits, of, len(first))[0], positive[first]

    def _threshold(self, module: nn.Module) -> float:
        """Where the validation units part best."""
        return moved_threshold(*self._units(module, "validation"))

    def _missing(self) -> dict[int, int]:
        """How many samples each class lacks beside the larger one."""
        have = np.bincount(self.train.labels, minlength=2)
        return {label: int(have.max() - number) for label, number in enumerate(have)}

    def _shares(self, count: int) -> dict[int, int]:
        """``count`` synthetic samples by class: the rare class until both are alike, then both."""
        missing = self._missing()
        rare = max(missing, key=lambda label: missing[label])
        first = min(count, missing[rare])
        return {rare: first + (count - first + 1) // 2, 1 - rare: (count - first) // 2}

    def _fitted(self, name: str, options: Mapping[str, Any]) -> Fitted:
        variant = load_registry().generator(name)
        chosen = parse_options(variant, {**self.plan.profile.generators.get(name, {}), **options})
        self.options[name] = chosen.model_dump(mode="json")
        return variant.fit(self.train, chosen, seed=self.seed, device=self.plan.device)

    def _draw(self, fitted: Fitted, count: int) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
        features, labels = [], []
        for label, number in self._shares(count).items():
            maps, _ = synthetic(fitted, label, number, self.seed + label) if number else (None, 0)
            if maps is not None:
                features.append(maps.astype(np.float16))
                labels.append(np.full(len(maps), label))
        if not features:
            return np.zeros((0, *self.samples.shape), np.float16), np.zeros(0, np.int64)
        return np.concatenate(features), np.concatenate(labels)

    def _with_generator(
        self, name: str, options: Mapping[str, Any], unseen: nn.Module | None
    ) -> dict[str, NDArray[np.float64]]:
        """An arm for each count, and the one whose count the validation patients chose.

        Synthetic samples say in which direction the classes part; where between them the line lies, real patients say.
        """
        fitted = self._fitted(name, options)
        counts = sorted(set(self.plan.counts) - {0})
        found, scores = {}, {}
        for count in counts:
            classifier = self._grade(*self._draw(fitted, count))
            offset = balanced_offset(*self._units(classifier, "train", "validation"))
            scores[count] = self._score(classifier, offset)
            found[f"{name}@{count}"] = self._test(classifier) + offset
        best = max(counts, key=lambda count: (scores[count], -count))
        self.chosen[name] = best
        found[name] = found[f"{name}@{best}"]
        if unseen is not None:
            found |= self._quality(name, fitted, unseen)
        return found

    def _quality(self, name: str, fitted: Fitted, unseen: nn.Module) -> dict[str, NDArray[np.float64]]:
        """Measure the generator; gives the arm that is fitted on synthetic features alone (CAS)."""
        made, accepted, right, real_right = [], [], [], []
        of_real = self._logits(unseen, "test")
        for label in (0, 1):
            maps, share = synthetic(fitted, label, MEASURED, 1000 + self.seed + label)
            accepted.append(share)
            logits = _logits(unseen, maps)
            right.append(_share_right(logits, label))
            real_right.append(_share_right(of_real[self.test.labels == label], label))
            made.append(maps)
        labels = np.repeat([0, 1], [len(maps) for maps in made])
        known = _pooled(self.train)
        self.gan[name] = {
            "accuracy_critic": accepted,
            "accuracy_unseen": right,
            "accuracy_unseen_real": real_right,
            "samples": len(labels),
            "tested": len(self.test),
            "options": self.options[name],
            "per_class": gan_measures(
                (known, self.train.labels),
                (_pooled(self.test), self.test.labels),
                (np.concatenate([pool(maps) for maps in made]), labels),
                self.samples.classes,
                seed=self.seed,
            ),
            "history": fitted.history,
        }
        for label, kind in enumerate(self.samples.classes):
            real = np.flatnonzero(self.test.labels == label)
            real = real[:: max(1, len(real) // 4)][:4]
            channels = np.argsort(-known[:, : self.samples.shape[0]].mean(axis=0))[:4]
            if len(real) and len(made[label]):
                self.figures[f"real_{kind}"] = self.test.batch(real)[:, channels]
                self.figures[f"synthetic_{kind}"] = made[label][:4][:, channels]
        if len(set(labels)) < 2:  # its critic accepts one class only: nothing to learn from, so nothing is graded
            return {f"{name} alone": np.full(len(self.test), np.nan)}
        alone = np.concatenate(made).astype(np.float16)
        return {f"{name} alone": self._test(self._grade(alone, labels, alone=True))}

    def _numbers(self) -> dict[str, NDArray[np.float64]]:
        """The tumour's size alone, and the number of slices alone, as the logit of each of a patient's slices."""
        found = {}
        names, of = np.unique(self.samples.patients, return_inverse=True)
        size = np.log1p(np.bincount(of, self.samples.tumour.astype(np.float64)))
        slices = np.array([self.slices[name] for name in names], dtype=np.float64)
        first = np.array([np.flatnonzero(of == p)[0] for p in range(len(names))])
        positive = self.samples.labels[first] == 0
        learnt = np.unique(of[self.here["train"]])
        for name, number in (("size", size), ("slices", slices)):
            found[name] = number_grader(number[learnt], positive[learnt])(number)[of[self.here["test"]]]
        return found


def _counted(names: NDArray[np.str_]) -> dict[str, int]:
    return {str(name): int(count) for name, count in zip(*np.unique(names, return_counts=True), strict=True)}


def _pooled(samples: Samples) -> NDArray[np.float32]:
    every = np.arange(len(samples))
    return np.concatenate([pool(samples.batch(every[start : start + 64])) for start in range(0, len(every), 64)])


def _share_right(logits: NDArray[np.floating], label: int) -> float:
    return float(((logits < 0) == bool(label)).mean()) if len(logits) else float("nan")


def _logits(module: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        parts = [
            module(torch.from_numpy(features[start : start + 64])).numpy() for start in range(0, len(features), 64)
        ]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _fit_pooled(
    arms: _Arms, features: NDArray[Any], labels: NDArray[np.int64], weights: Literal["balanced"] | None, alone: bool
) -> nn.Module:
    made = statistics(ArrayFeatures(features, labels, arms.samples.classes))
    if alone:
        return fit_pooled(made, labels, [""] * len(labels), weights=weights)
    return fit_pooled(
        np.concatenate([arms.statistics[arms.here["train"]], made]),
        np.concatenate([arms.train.labels, labels]),
        [*arms.train.patients.tolist(), *[""] * len(labels)],
        weights=weights,
    )


def _fit_cnn(
    arms: _Arms, features: NDArray[Any], labels: NDArray[np.int64], weights: Literal["balanced"] | None, alone: bool
) -> nn.Module:
    source: FeatureSource = arms.samples
    train = arms.here["train"]
    if len(labels):
        source = Joined(arms.samples, ArrayFeatures(features, labels, arms.samples.classes))
        more = np.arange(len(arms.samples), len(source))
        train = more if alone else np.concatenate([train, more])
    classifier, _ = fit_classifier(
        source,
        train,
        arms.here["validation"],
        [*arms.samples.patients.tolist(), *[""] * len(labels)],
        seed=arms.seed,
        weights=weights,
        device=arms.plan.device,
        **arms.plan.profile.classifier,
    )
    return classifier


_POOLED, _CNN = _fit_pooled, _fit_cnn


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".part-{path.name}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)

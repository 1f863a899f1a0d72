"""The samples a fold learns from: those of the task, with shuffled labels, or with fewer patients of the rare class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gliaflow_store.feature_store import FeatureStore, Samples
from gliaflow_trainer.slices import kept_scans
from gliaflow_trainer.source import require_both_classes
from numpy.typing import NDArray

from gliaflow_evaluation.protocol import TASK_CLASSES, Fold, Plan, Task

Indices = NDArray[np.int64]
Parts = Mapping[str, Indices]
"""Indices of the samples of ``train``, ``validation`` and ``test``."""


def samples_of(plan: Plan, store: FeatureStore, slices: Path | None = None) -> tuple[Samples, Indices]:
    """The samples of the task, and their numbers in the store.

    ``grade``: as in serving, slices in which the U-Net found tumour. ``tumour``: all slices, by the true mask.

    Parameters
    ----------
    slices: the folder of the slices that the store's features come from. Default: the cohort's.
    """
    if plan.design.task == "grade":
        index = np.flatnonzero(store.tumour > 0)
        return store.select(index), index
    truth = {
        (scan.id, z): bool(np.any(mask))
        for scan in kept_scans(plan.slices if slices is None else slices)
        for z, mask in zip(scan.geometry.slices, scan.mask, strict=True)
    }
    labels = np.array([0 if truth[scan, int(z)] else 1 for scan, z in zip(store.scans, store.slices, strict=True)])
    return store.with_labels(labels, TASK_CLASSES["tumour"]), np.arange(len(store))


def unlabelled_of(plan: Plan, fold: Fold) -> Samples | None:
    """The samples of scans without labels, chosen as those of the cohort are; None: there are no such scans.

    Their labels mean nothing.
    """
    if not plan.unlabelled:
        return None
    store = FeatureStore(fold.features_of(plan, plan.unlabelled))
    if plan.design.task == "grade":
        return store.select(store.tumour > 0)
    return store.with_labels(np.zeros(len(store), np.int64), TASK_CLASSES["tumour"])


def source_of(plan: Plan, fold: Fold) -> Samples | None:
    """The samples of another cohort's labelled scans, chosen as those of this cohort are; None: there are none.

    Raises
    ------
    PluginError: they are of one class.
    """
    if not plan.source:
        return None
    store = FeatureStore(fold.features_of(plan, plan.source))
    samples, _ = samples_of(plan, store, plan.work / plan.source / "slices")
    require_both_classes(samples, "--source: ")
    return samples


def parts_of(samples: Samples, fold: Fold) -> Parts:
    """The fold's split, by sample."""
    part = np.array([fold.split.get(patient, "") for patient in samples.patients])
    return {which: np.flatnonzero(part == which) for which in ("train", "validation", "test")}


def shuffled_labels(samples: Samples, task: Task, seed: int) -> Indices:
    """Shuffled labels, the same for all folds: among patients (grade), or among all slices (tumour).

    Each seed has its own: a single shuffle can be unlucky, which no interval over patients shows.

    Among patients, each old class gets the same share of the new labels: a shuffle that resembles the truth by chance
    would show its signal. (Slices are not shuffled within their patient: the other patients' labels would show how
    many of them have tumour.)
    """
    rng = np.random.default_rng([20_26, seed])
    if task == "tumour":
        return rng.permutation(samples.labels)
    names, first = np.unique(samples.patients, return_index=True)
    old = samples.labels[first]
    new = old.copy()
    share = float((old == 0).mean())
    for label in np.unique(old):
        members = rng.permutation(np.flatnonzero(old == label))
        new[members] = (np.arange(len(members)) >= round(share * len(members))).astype(np.int64)
    return new[np.searchsorted(names, samples.patients)]


def thinned(samples: Samples, parts: Parts, rare: int, few: int, seed: int) -> Parts | None:
    """Parts that learn from and choose with ``few`` patients of the rare class only; None where there are no more.

    A chosen patient's samples go to one part, those of the other class too (task ``tumour``). Samples of the other
    class of patients who were not chosen stay in their part.
    """
    of_rare = samples.labels == rare
    learnt = np.concatenate([parts["train"], parts["validation"]])
    patients = np.unique(samples.patients[learnt[of_rare[learnt]]])
    if len(patients) <= few or few < 2:
        return None
    chosen = np.random.default_rng([seed, few]).permutation(patients)[:few]
    to_choose = max(1, round(few / 5))

    def kept(which: str, members: NDArray[np.str_]) -> Indices:
        others = parts[which][~of_rare[parts[which]] & ~np.isin(samples.patients[parts[which]], chosen)]
        return np.sort(np.concatenate([others, learnt[np.isin(samples.patients[learnt], members)]]))

    return {
        "train": kept("train", chosen[to_choose:]),
        "validation": kept("validation", chosen[:to_choose]),
        "test": parts["test"],
    }

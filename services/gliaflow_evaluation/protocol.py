"""What an evaluation compares, and which patients each fold learns from, chooses with and measures on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gliaflow_plugins.contracts import PluginError
from gliaflow_proto import CLASSES
from gliaflow_trainer.profiles import Profile
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold, train_test_split

Task = Literal["grade", "tumour"]
ProtocolName = Literal["grouped", "paper"]

TASK_CLASSES: dict[Task, tuple[str, str]] = {"grade": CLASSES, "tumour": ("tumour", "none")}
PAPER_SHARE = {"HGG": 7 / 61, "LGG": 4 / 40}  # of the patients that the paper tested on
VALIDATION = 0.15  # of a fold's training patients


@dataclass(frozen=True)
class Design:
    """What is compared."""

    protocol: ProtocolName = "grouped"  # folds by patient, stratified; "paper": one split with the paper's shares
    task: Task = "grade"  # HGG or LGG, by patient; "tumour": slices with tumour or without, whatever the grade
    folds: int = 5  # of the protocol "grouped"
    seeds: int = 5  # how often all but the U-Net is fitted, from ``seed`` on
    seed: int = 0
    counts: tuple[int, ...] = (100, 400)  # numbers of synthetic samples to add
    scarce: tuple[int, ...] = ()  # numbers of patients of the rare class to learn from, a series each
    shuffle: bool = True  # also compare on shuffled labels, which must give chance

    @property
    def classes(self) -> tuple[str, str]:
        """The names of the classes; the first is the positive one."""
        return TASK_CLASSES[self.task]

    @property
    def all_seeds(self) -> range:
        """The seeds of the fits."""
        return range(self.seed, self.seed + self.seeds)


@dataclass(frozen=True)
class PlannedVariant:
    """A generator or classifier variant."""

    name: str
    options: Mapping[str, Any]  # all of them, defaults too
    code: str = ""  # a digest of its code: answers of other code are not used
    source: bool = False  # it learns from another cohort's labelled scans
    third_party: bool = False  # fitted in a process of its own, so a crash there does not affect ours


@dataclass(frozen=True)
class Plan:
    """What every fold does. It is sent to the processes of the folds, so it has names and options, not plugins."""

    work: Path
    profile: Profile
    design: Design
    rare: int  # the class that ``scarce`` thins
    generators: tuple[PlannedVariant, ...]
    classifier: PlannedVariant
    comparator_code: Mapping[str, str] = field(default_factory=dict)  # digests, of those that are generators
    init: Path | None = None  # a bundle whose U-Net every fold's starts from
    unet: Path | None = None  # a bundle whose U-Net is used unchanged
    unlabelled: str = ""  # the folder in ``work`` of the scans without labels, if there are any
    source: str = ""  # the folder in ``work`` of the labelled scans of another cohort, if there are any
    device: str = "cpu"
    threads: int = 1
    deadline_s: float = 86400  # the longest fit of a third-party generator
    memory_gib: float | None = None  # the most memory of its process

    @property
    def slices(self) -> Path:
        """The folder of the cohort's slices."""
        return self.work / "slices"


@dataclass(frozen=True)
class Fold:
    """Which part each patient is in: ``train`` (learn from), ``validation`` (choose with) or ``test`` (measure on)."""

    number: int
    split: Mapping[str, str]

    def folder(self, plan: Plan) -> Path:
        """The folder of this fold's work."""
        return plan.work / f"fold-{self.number}"

    def unet(self, plan: Plan) -> Path:
        """The bundle with this fold's U-Net."""
        return plan.unet if plan.unet is not None else self.folder(plan) / "unet"

    def features(self, plan: Plan) -> Path:
        """The folder of this fold's features. A U-Net that is used unchanged gives all folds the same features."""
        name = f"features-{plan.profile.tap}{'-cropped' if plan.profile.cropped else ''}"
        return plan.work / name if plan.unet is not None else self.folder(plan) / name

    def features_of(self, plan: Plan, scans: str) -> Path:
        """The folder of the features of other scans, by this fold's U-Net: ``plan.unlabelled`` or ``plan.source``."""
        features = self.features(plan)
        return features.with_name(f"{features.name}-{scans}")


def split_into_folds(label_of: Mapping[str, str], design: Design) -> list[Fold]:
    """Split patients into folds, by class. Of the patients not tested, a share chooses and the rest is learnt from.

    In the task ``tumour`` grades do not matter.

    Raises
    ------
    PluginError: a class has fewer patients than folds, or than the split needs.
    """
    patients = np.array(sorted(label_of))
    labels = np.array([label_of[patient] if design.task == "grade" else "any" for patient in patients])
    fewest = min(np.unique(labels, return_counts=True)[1])
    needed = max(4, design.folds if design.protocol == "grouped" else 0)
    if fewest < needed:
        raise PluginError(f"{fewest} patients of a class have scan and mask; {needed} are needed for this protocol")
    folds = []
    for number, test in enumerate(_test_patients(labels, design)):
        rest = np.setdiff1d(np.arange(len(patients)), test)
        least = ceil(len(rest) / np.unique(labels[rest], return_counts=True)[1].min())  # one patient of each class
        train, validation = train_test_split(
            rest,
            test_size=max(ceil(VALIDATION * len(rest)), least),
            stratify=labels[rest],
            random_state=design.seed * 1000 + number,
        )
        parts = {"train": train, "validation": validation, "test": test}
        folds.append(Fold(number, {str(patients[i]): part for part, of in parts.items() for i in sorted(of)}))
    return folds


def _test_patients(labels: NDArray[np.str_], design: Design) -> list[NDArray[np.int64]]:
    """The indices of each fold's test patients."""
    if design.protocol == "grouped":
        folds = StratifiedKFold(design.folds, shuffle=True, random_state=design.seed)
        return [test for _, test in folds.split(labels, labels)]
    rng = np.random.default_rng(design.seed)
    tested = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        tested.append(rng.permutation(members)[: max(1, round(PAPER_SHARE.get(label, 0.1) * len(members)))])
    return [np.concatenate(tested)]


def rare_class(label_of: Mapping[str, str], task: Task) -> int:
    """The class with fewer patients; in the task ``tumour``, slices with tumour."""
    if task == "tumour":
        return 0
    labels = list(label_of.values())
    return min((0, 1), key=lambda label: labels.count(CLASSES[label]))

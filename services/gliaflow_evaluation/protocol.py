"""What an evaluation asks, and which patient is on which side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gliaflow_plugins.contracts import PluginError
from gliaflow_trainer.profiles import Profile
from sklearn.model_selection import StratifiedKFold, train_test_split

Task = Literal["grade", "tumour"]
CLASSES: dict[Task, tuple[str, str]] = {"grade": ("HGG", "LGG"), "tumour": ("tumour", "none")}


@dataclass(frozen=True)
class Plan:
    """What an evaluation asks of every fold.

    ``unet``: a bundle whose U-Net is used as it is; it must not have seen this cohort. ``rare`` is the class that
    ``scarce`` thins, to as many patients as each of its numbers says. ``generators`` and ``classifier`` have all their
    options, defaults too, and ``code`` a digest of each one's code (the classifier's: ""): answers that were found with
    others are not taken for theirs. Generators in ``apart`` are fitted in a process of their own, for ``deadline_s`` at
    most: what a stranger's code does to its process, it does to none of ours.
    """

    work: Path
    profile: Profile
    task: Task
    rare: int
    tap: str
    generators: tuple[tuple[str, Mapping[str, Any]], ...]
    classifier: tuple[str, Mapping[str, Any]]
    code: Mapping[str, str]
    apart: tuple[str, ...]
    deadline_s: float
    counts: tuple[int, ...]
    scarce: tuple[int, ...]
    shuffle: bool
    seed: int
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


ProtocolName = Literal["grouped", "paper"]


PAPER_SHARE = {"HGG": 7 / 61, "LGG": 4 / 40}  # of the patients that the paper tested on


VALIDATION = 0.15  # of a fold's training patients


def deal(label_of: Mapping[str, str], protocol: ProtocolName, folds: int, seed: int) -> list[Fold]:
    """Patients to folds, by their class; of the patients not tested, a share chooses and the rest is learnt from.

    Raises
    ------
    PluginError: a class has fewer patients than folds, or than the split needs.
    """
    patients = np.array(sorted(label_of))
    labels = np.array([label_of[patient] for patient in patients])
    fewest, needed = min(np.unique(labels, return_counts=True)[1]), max(4, folds if protocol == "grouped" else 0)
    if fewest < needed:
        raise PluginError(f"{fewest} patients of a class have scan and mask; {needed} are needed for this protocol")
    if protocol == "grouped":
        tests = [test for _, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(patients, labels)]
    else:
        rng = np.random.default_rng(seed)
        tests = [
            np.concatenate(
                [
                    rng.permutation(np.flatnonzero(labels == label))[
                        : max(1, round(PAPER_SHARE.get(label, 0.1) * int((labels == label).sum())))
                    ]
                    for label in np.unique(labels)
                ]
            )
        ]
    dealt = []
    for number, test in enumerate(tests):
        rest = np.setdiff1d(np.arange(len(patients)), test)
        train, validation = train_test_split(
            rest,
            # so many that each class has one
            test_size=max(
                ceil(VALIDATION * len(rest)), ceil(len(rest) / np.unique(labels[rest], return_counts=True)[1].min())
            ),
            stratify=labels[rest],
            random_state=seed * 1000 + number,
        )
        parts = {"train": train, "validation": validation, "test": test}
        dealt.append(Fold(number, {str(patients[i]): part for part, of in parts.items() for i in sorted(of)}))
    return dealt


def classes_to_split_by(label_of: Mapping[str, str], task: Task) -> Mapping[str, str]:
    """By what patients are dealt: slices are told apart whatever the grade."""
    return label_of if task == "grade" else dict.fromkeys(label_of, "any")


def rare_class(label_of: Mapping[str, str], task: Task) -> int:
    """Which class has fewer patients; of slices, those with tumour."""
    if task == "tumour":
        return 0
    labels = list(label_of.values())
    return min((0, 1), key=lambda label: labels.count(CLASSES["grade"][label]))

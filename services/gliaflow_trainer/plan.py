"""What an evaluation asks, and which patient is on which side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gliaflow_trainer.profiles import Profile

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

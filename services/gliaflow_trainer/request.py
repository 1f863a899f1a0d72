"""The request of ``gliaflow train``: the command builds it, and ``train`` takes it whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gliaflow_plugins.contracts import Case, Cohort

from gliaflow_trainer.profiles import Profile
from gliaflow_trainer.variants import Variants


@dataclass(frozen=True)
class TrainRequest:
    """A training of all networks of a bundle on one cohort.

    Parameters
    ----------
    cohort, folder: the scans, and the folder that they were read from.
    out: the folder of the new bundle. ``<out>.work`` keeps the work so far.
    name: the bundle's name.
    profile: sizes of slices and networks, and the options of each fit.
    variants: generators and classifier with their options (``choose``).
    augmentations: names and options, in place of the profile's.
    init: a bundle whose U-Net is fine-tuned (the paper pre-trains on BraTS and fine-tunes on REMBRANDT).
    unlabelled: scans of other patients, of which no mask and no grade is read; the classifier learns from them too.
    source: scans of another cohort, each with a mask and a class, for the generators, and the folder that has them.
    high: the grades that count as HGG; they are noted in the bundle.
    allow: train in spite of leaks (``Cohort.leaks``, scans with the same voxels); the bundle notes their number.
    """

    cohort: Cohort
    folder: Path
    out: Path
    name: str
    profile: Profile
    variants: Variants
    augmentations: Sequence[tuple[str, Mapping[str, Any]]] = ()
    init: Path | None = None
    unlabelled: Sequence[Case] = ()
    source: Sequence[Case] = ()
    source_folder: Path | None = None
    high: Sequence[str] = ()
    allow: bool = False
    seed: int = 0
    device: str = "cpu"

"""Phantom patients: drawings of MRI scans with gliomas, whose masks and grades are known by construction.

An average brain (``atlas``) is bent, the tumour grows in it (``tumour``), and both are painted as FLAIR and, if wanted,
T1, T1 after contrast and T2 (``sequences``). The grade decides one hidden number, the aggressiveness, and this number
the tumour's looks; its volume, its place, the contrast and the scanner are drawn without it. Tissue contrast, skull,
noise, slice thickness and storage order vary far more than in one hospital: to a network that is trained on phantoms, a
real scan is one more variation (domain randomisation; Billot et al. 2023, SynthSeg). A phantom is not a patient: scores
on phantoms have no clinical meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from gliaflow_proto import CLASSES, SEQUENCES
from numpy.typing import NDArray

from gliaflow_phantoms.anatomy import Head
from gliaflow_phantoms.scanner import Storage, scan
from gliaflow_phantoms.sequences import PATCH, RANGES, draw_level, draw_levels
from gliaflow_phantoms.shapes import Grid, inside
from gliaflow_phantoms.tumour import Tumour

# Raise it with every change after which a seed gives another phantom. A folder of phantoms has one drawing: without the
# new number, an interrupted cohort would resume as a mixture of two.
DRAWING = 3
STRIPPED = 0.3  # share of skull-stripped scans


@dataclass(frozen=True)
class Phantom:
    """``images`` int16 by sequence, and ``mask`` uint8 (BraTS: 1 core, 2 oedema, 4 rim), all [i, j, k].

    ``affine``: voxel to mm.
    """

    images: Mapping[str, NDArray[np.int16]]
    mask: NDArray[np.uint8]
    affine: NDArray[np.float64]
    grade: str

    @property
    def flair(self) -> NDArray[np.int16]:
        return self.images["flair"]


def check_sequences(sequences: Sequence[str]) -> None:
    """Raise ValueError if a phantom cannot have these sequences: it has a FLAIR, and any of the other SEQUENCES."""
    if SEQUENCES[0] not in sequences or not set(sequences) <= set(SEQUENCES):
        listed = ", ".join(sequences) or "none"
        raise ValueError(
            f"sequences must be {SEQUENCES[0]}, or {SEQUENCES[0]} with some of {', '.join(SEQUENCES[1:])}: {listed}"
        )


def make_patient(grade: str, rng: np.random.Generator, sequences: Sequence[str] = ("flair",)) -> Phantom:
    """One phantom patient: ``rng`` draws anatomy, tumour and scanner. Takes about a second on one core.

    Parameters
    ----------
    sequences: see ``check_sequences``. They do not change each other, and are on the same grid.
    """
    if grade not in CLASSES:
        raise ValueError(f"grade must be one of {', '.join(CLASSES)}: {grade!r}")
    check_sequences(sequences)
    grid = Grid.draw(rng)
    stripped = bool(rng.random() < STRIPPED)
    head = Head(grid, rng)
    tumour = Tumour(head, grade, rng)
    brain = head.brain_at(tumour.displaced(head.p), tumour.swelling)
    if stripped:
        outside, visible = {}, inside(head.brain - np.float32(rng.uniform(0, 3)), 0.8)
    else:
        outside, visible = head.outside(), inside(head.intracranial, 1)
    storage = Storage(grid, rng)
    chances = {sequence: np.random.default_rng(rng.integers(2**63)) for sequence in SEQUENCES}
    images = {}
    for sequence in sequences:
        chance = chances[sequence]
        looks = "t1" if sequence == "t1ce" and not tumour.enhancing else sequence
        levels = draw_levels(RANGES[looks], chance)
        patches = [draw_level(PATCH[looks], chance) for _ in tumour.patches]
        image = tumour.paint(brain.paint(levels), levels, patches) * visible
        for tissue, share in outside.items():
            image += np.float32(levels[tissue]) * share * (1 - visible)
        images[sequence] = storage.image(scan(image, grid, head.p, chance, stripped), chance)
    return Phantom(images, storage.mask(tumour.labels), storage.affine, grade)

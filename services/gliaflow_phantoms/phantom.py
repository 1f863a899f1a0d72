"""Phantom patients: drawings of MRI scans with gliomas, whose masks and grades are known by construction.

An average brain (``atlas``) is bent, the tumour grows in it (``tumour``), and both are painted as FLAIR and, if wanted,
T1, T1 after contrast and T2 (``sequences``). The grade decides one hidden number, the aggressiveness, and this number
the looks; volume, place, contrast and scanner are drawn without it. Tissue contrast, skull, noise, slice thickness and
storage order vary far more than in one hospital: to a network that is trained on phantoms, a real scan is one more
variation (domain randomisation; Billot et al. 2023, SynthSeg). A phantom is not a patient: scores on phantoms have no
clinical meaning.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow_plugins.nibabel_alone import nib
from gliaflow_proto import CLASSES, SEQUENCES
from gliaflow_runtime.files import whole_file, write_whole
from numpy.typing import NDArray

from gliaflow_phantoms.anatomy import Head
from gliaflow_phantoms.scanner import Storage, scan
from gliaflow_phantoms.sequences import RANGES, T1, draw_levels
from gliaflow_phantoms.shapes import Grid, inside
from gliaflow_phantoms.tumour import Tumour

COHORT_FILE = "phantoms.json"  # how a cohort was made
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


def write_cohort(
    out: Path,
    patients: int,
    seed: int,
    hgg_share: float = 0.6,
    sequences: Sequence[str] = ("flair",),
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write ``patients`` phantoms in the BraTS 2018 layout: ``HGG|LGG/<ID>/<ID>_{flair,t1,t1ce,t2,seg}.nii.gz``.

    Patient k of a seed has the same FLAIR whatever the number of patients and sequences. Each file is written whole,
    and files that are there already are not changed, so an interrupted run resumes.

    Parameters
    ----------
    sequences: see ``make_patient``.
    progress: called with (patients done, patients).
    """
    if not 0 <= hgg_share <= 1:
        raise ValueError(f"hgg_share must be from 0 to 1: {hgg_share}")
    out.mkdir(parents=True, exist_ok=True)
    origin = {"made_by": "gliaflow phantom", "patients": patients, "seed": seed, "hgg_share": hgg_share}
    write_whole(out / COHORT_FILE, json.dumps(origin | {"sequences": list(sequences)}) + "\n")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        jobs = [pool.submit(_write_patient, out, (seed, k), _grade(k, hgg_share), sequences) for k in range(patients)]
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                job.result()
                if progress is not None:
                    progress(done, patients)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def made_by(folder: Path) -> dict[str, Any]:
    """How ``gliaflow phantom`` made the cohort in ``folder``; empty for any other folder."""
    try:
        made = json.loads((folder / COHORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {"made_by": made} if isinstance(made, dict) else {}


def _grade(k: int, hgg_share: float) -> str:
    # The first k patients, for any k, have as nearly as possible this share: a small cohort begins a larger one.
    return CLASSES[0] if int((k + 1) * hgg_share + 1e-9) > int(k * hgg_share + 1e-9) else CLASSES[1]


def _write_patient(out: Path, seed: tuple[int, int], grade: str, sequences: Sequence[str]) -> None:
    name = f"phantom_{seed[0]}_{seed[1]:04d}"
    folder = out / grade / name
    files = {kind: folder / f"{name}_{kind}.nii.gz" for kind in (*sequences, "seg")}
    if all(file.exists() for file in files.values()):
        return
    phantom = make_patient(grade, np.random.default_rng(seed), sequences)
    folder.mkdir(parents=True, exist_ok=True)
    for kind, voxels in {**phantom.images, "seg": phantom.mask}.items():
        with whole_file(files[kind], ending=".part.nii.gz") as part:
            nib.save(nib.Nifti1Image(voxels, phantom.affine), part)


def make_patient(grade: str, rng: np.random.Generator, sequences: Sequence[str] = ("flair",)) -> Phantom:
    """One phantom patient: ``rng`` draws anatomy, tumour and scanner. Takes about a second on one core.

    Parameters
    ----------
    sequences: of SEQUENCES. Further ones do not change the FLAIR. All are on the same grid.
    """
    if grade not in CLASSES:
        raise ValueError(f"grade must be one of {', '.join(CLASSES)}: {grade!r}")
    if unknown := set(sequences) - set(SEQUENCES):
        raise ValueError(f"sequences must be of {', '.join(SEQUENCES)}: {', '.join(sorted(unknown))}")
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
        ranges = RANGES[sequence]
        levels = draw_levels(ranges, chance)
        if sequence == "t1ce" and not tumour.enhancing:
            levels["rim"] = draw_levels(T1, chance)["rim"]
        image = tumour.paint(brain.paint(levels), levels, ranges, chance) * visible
        for tissue, share in outside.items():
            image += np.float32(levels[tissue]) * share * (1 - visible)
        images[sequence] = storage.image(scan(image, grid, head.p, chance, stripped), chance)
    return Phantom(images, storage.mask(tumour.labels), storage.affine, grade)

"""A cohort of phantoms in a folder, in the BraTS 2018 layout.

A folder has the phantoms of one drawing, one seed and one share of high grade: these decide every patient, and
``phantoms.json`` records them once. The number of patients and their sequences can only grow, so the folder shows them,
and the record does not repeat them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow_plugins.nibabel_alone import nib
from gliaflow_proto import CLASSES, SEQUENCES
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.files import whole_file, write_whole

from gliaflow_phantoms.atlas import atlas
from gliaflow_phantoms.phantom import DRAWING, check_sequences, make_patient

COHORT_FILE = "phantoms.json"


def write_cohort(
    out: Path,
    patients: int,
    seed: int,
    hgg_share: float = 0.6,
    sequences: Sequence[str] = SEQUENCES[:1],
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write ``patients`` phantoms, ``HGG|LGG/<ID>/<ID>_{flair,t1,t1ce,t2,seg}.nii.gz``, and return their folders.

    Patient k of a seed has the same images whatever the number of patients and the other sequences. Each file is
    written whole, and files that are there already are not changed. So an interrupted run resumes, and a later one may
    add patients or sequences, or ask for fewer than there are.

    Parameters
    ----------
    sequences: see ``check_sequences``.
    progress: called with (patients done, patients).

    Raises
    ------
    UsageError: ``out`` has another cohort, or files and no readable ``phantoms.json``. Nothing was written.
    """
    check_sequences(sequences)
    if not 0 <= hgg_share <= 1:
        raise ValueError(f"hgg_share must be from 0 to 1: {hgg_share}")
    out.mkdir(parents=True, exist_ok=True)
    _record(out, {"made_by": "gliaflow phantom", "drawing": DRAWING, "seed": seed, "hgg_share": hgg_share})
    folders = [out / _grade(k, hgg_share) / f"phantom_{seed}_{k:04d}" for k in range(patients)]
    missing = [[kind for kind in (*sequences, "seg") if not image_file(folder, kind).exists()] for folder in folders]
    if any(missing):
        atlas()  # before the threads start: each of them would compute it
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        jobs = [pool.submit(_write, folders[k], (seed, k), missing[k]) for k in range(patients)]
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                job.result()
                if progress is not None:
                    progress(done, patients)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return folders


def image_file(folder: Path, kind: str) -> Path:
    """A patient's file. ``kind``: a sequence, or ``seg``, the mask."""
    return folder / f"{folder.name}_{kind}.nii.gz"


def made_by(folder: Path) -> dict[str, Any]:
    """How ``gliaflow phantom`` made the cohort in ``folder``; empty for any other folder."""
    try:
        made = json.loads((folder / COHORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {"made_by": made} if isinstance(made, dict) else {}


def _record(out: Path, cohort: dict[str, Any]) -> None:
    """Record ``cohort`` in a new folder. Raises UsageError: the folder is not new, and has something else."""
    if all(entry.name.startswith(".") for entry in out.iterdir()):
        with suppress(FileExistsError):  # another process has just recorded its cohort
            write_whole(out / COHORT_FILE, json.dumps(cohort) + "\n", new=True)
    there = made_by(out).get("made_by")
    if there is None:
        raise UsageError(
            f"{out}: the folder has files, but no readable {COHORT_FILE} says that they are phantoms, and of which "
            "seed; name a new folder"
        )
    if other := [
        f"{name} {there.get(name, 'unknown')}, not {value}"
        for name, value in cohort.items()
        if there.get(name) != value
    ]:
        raise UsageError(
            f"{out}: {COHORT_FILE} says that the phantoms in it have {'; '.join(other)}. Two cohorts in a folder would "
            "mix; name another folder, or delete this one"
        )


def _grade(k: int, hgg_share: float) -> str:
    # The first k patients, for any k, have as nearly as possible this share: a small cohort begins a larger one.
    return CLASSES[0] if int((k + 1) * hgg_share + 1e-9) > int(k * hgg_share + 1e-9) else CLASSES[1]


def _write(folder: Path, seed: tuple[int, int], missing: Sequence[str]) -> None:
    """Draw the patient of ``folder``, and write the files that it lacks."""
    if not missing:
        return
    sequences = {SEQUENCES[0], *missing} - {"seg"}
    phantom = make_patient(folder.parent.name, np.random.default_rng(seed), sorted(sequences))
    voxels = {**phantom.images, "seg": phantom.mask}
    folder.mkdir(parents=True, exist_ok=True)
    for kind in missing:
        with whole_file(image_file(folder, kind), ending=".part.nii.gz") as part:
            nib.save(nib.Nifti1Image(voxels[kind], phantom.affine), part)

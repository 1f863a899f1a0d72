"""Phantom patients: drawings of FLAIR scans with gliomas, whose masks and grades are known by construction.

The head is painted from signed distances (mm, negative inside) to simple shapes, which smooth random fields bend. The
tumour is a level set of a random field, at the level that gives the drawn volume. The grade decides one hidden number,
the aggressiveness, and this number the looks; volume, place, contrast and scanner are drawn without it. Tissue
contrast, skull, noise, slice thickness and storage order vary far more than in one hospital: to a network that is
trained on phantoms, a real scan is one more variation (domain randomisation; Billot et al. 2023, SynthSeg). A phantom
is not a patient: scores on phantoms have no clinical meaning.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow_plugins.nibabel_alone import nib
from gliaflow_proto import CLASSES
from gliaflow_runtime.files import whole_file, write_whole
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gliaflow_phantoms.anatomy import Coordinates, Field, Grid, Head, inside, mix

COHORT_FILE = "phantoms.json"  # how a cohort was made
AMBIGUOUS = 0.15  # share of patients whose looks do not depend on their grade
STRIPPED = 0.3  # share of skull-stripped scans
MEDIAN_ML, SPREAD = 55.0, 0.85  # log-normal tumour volume, the same for both grades
FAR = np.float32(9)  # a level that no tumour reaches


@dataclass(frozen=True)
class Phantom:
    """``flair`` int16 and ``mask`` uint8 (BraTS: 1 core, 2 oedema, 4 rim), both [i, j, k]; voxel to mm ``affine``."""

    flair: NDArray[np.int16]
    mask: NDArray[np.uint8]
    affine: NDArray[np.float64]
    grade: str


def write_cohort(
    out: Path,
    patients: int,
    seed: int,
    hgg_share: float = 0.6,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write ``patients`` phantoms in the BraTS 2018 layout: ``HGG|LGG/<ID>/<ID>_{flair,seg}.nii.gz``.

    Patient k of a seed is the same whatever the number of patients. Each file is written whole, and files that are
    there already are not changed, so an interrupted run resumes.

    Parameters
    ----------
    progress: called with (patients done, patients).
    """
    if not 0 <= hgg_share <= 1:
        raise ValueError(f"hgg_share must be from 0 to 1: {hgg_share}")
    out.mkdir(parents=True, exist_ok=True)
    origin = {"made_by": "gliaflow phantom", "patients": patients, "seed": seed, "hgg_share": hgg_share}
    write_whole(out / COHORT_FILE, json.dumps(origin) + "\n")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        jobs = [pool.submit(_write_patient, out, k, seed, _grade(k, hgg_share)) for k in range(patients)]
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


def _write_patient(out: Path, k: int, seed: int, grade: str) -> None:
    name = f"phantom_{seed}_{k:04d}"
    folder = out / grade / name
    files = [folder / f"{name}_flair.nii.gz", folder / f"{name}_seg.nii.gz"]
    if all(file.exists() for file in files):
        return
    phantom = make_patient(grade, np.random.default_rng([seed, k]))
    folder.mkdir(parents=True, exist_ok=True)
    for file, voxels in zip(files, (phantom.flair, phantom.mask), strict=True):
        with whole_file(file, ending=".part.nii.gz") as part:
            nib.save(nib.Nifti1Image(voxels, phantom.affine), part)


def make_patient(grade: str, rng: np.random.Generator) -> Phantom:
    """One phantom patient: ``rng`` draws anatomy, tumour and scanner. Takes about half a second on one core."""
    if grade not in CLASSES:
        raise ValueError(f"grade must be one of {', '.join(CLASSES)}: {grade!r}")
    grid = Grid.draw(rng)
    stripped = bool(rng.random() < STRIPPED)
    head = Head(grid, rng)
    tumour = _Tumour(head, grade, rng)
    image = tumour.paint(head.paint_brain(tumour.displaced(head.p), tumour.swelling))
    if stripped:
        image = image * inside(head.brain - np.float32(rng.uniform(0, 3)), 0.8)
    else:
        image = mix(head.paint_outside(), image, inside(head.intracranial, 1.0))
    image = _scan(image, grid, head.p, rng, stripped)
    return _store(image, tumour.labels, grid, grade, rng)


class _Tumour:
    """The glioma. Volume, place and contrast do not depend on the grade; the texture depends on the aggressiveness."""

    labels: NDArray[np.uint8]

    def __init__(self, head: Head, grade: str, rng: np.random.Generator) -> None:
        self.head, self.rng = head, rng
        grid = head.grid
        self.volume = float(np.exp(np.clip(rng.normal(np.log(MEDIAN_ML), SPREAD), np.log(6), np.log(300))))
        radius = self.radius = float((self.volume * 3000 / (4 * np.pi)) ** (1 / 3))
        centre = self._place(rng, radius)
        self.contrast = rng.uniform(0.2, 1.0) if rng.random() < 0.85 else rng.uniform(0.1, 0.25)
        if rng.random() < AMBIGUOUS:
            a = float(rng.beta(3, 3))
        else:
            a = float(rng.beta(12, 2) if grade == "HGG" else rng.beta(2, 12))
        self.aggressive = a
        near = [axis - np.float32(c) for axis, c in zip(grid.axes, centre, strict=True)]
        self.offset = x, y, z = np.meshgrid(*near, indexing="ij", sparse=True)
        stretch = Rotation.random(random_state=rng).as_matrix() * np.exp(rng.normal(0, 0.18, 3))[:, None]
        squares: Any = sum((row[0] * x + row[1] * y + row[2] * z) ** 2 for row in stretch.astype(np.float32))
        rho = np.sqrt(squares) / np.float32(radius)
        rho += np.float32(0.12 + 0.10 * a) * grid.field(max(14, radius * 0.8), rng)
        rho += np.float32(rng.uniform(0.02, 0.08) + 0.12 * a) * grid.field(9, rng)
        # Oedema follows white matter and stops at the cortex (fingers); a slow tumour may be in the cortex itself. No
        # tumour crosses the midline except through the callosum.
        cortex = np.minimum(-head.brain, head.sulcus + np.maximum(-head.brain - 22, 0)).clip(0)
        rho += np.float32(rng.uniform(-0.6, 0.1) + 0.4 * a) * np.exp(-cortex / 3)
        callosum = (np.abs(head.p[1]) < 35) & (np.abs(head.p[2] - 22) < 8)
        rho += np.where(callosum, np.float32(0.3), np.float32(1.2)) * (head.p[0] * np.sign(centre[0]) < -2)
        rho[(head.brain > -0.5) | (head.cerebellum < 1)] = FAR
        self.rho: Field = rho
        self.push = (1 + rng.uniform(0, 2) + 6 * a) * min(1.0, radius / 20)

    def _place(self, rng: np.random.Generator, radius: float) -> tuple[float, float, float]:
        """A point deep enough in a hemisphere, and far enough from the ends of the scan."""
        head = self.head
        z = head.grid.axes[2]
        depth = -head.cerebrum
        fit = (
            (depth > min(0.6 * radius, rng.uniform(4, 14)))
            & (depth < rng.choice([18, 60]))
            & (np.abs(head.p[0]) > 8)
            & (head.p[2] > -36)
        )
        fit &= (z > z[0] + 12) & (z < z[-1] - 12)
        i, j, k = np.unravel_index(int(rng.choice(np.flatnonzero(fit))), fit.shape)
        return float(head.grid.axes[0][i]), float(head.grid.axes[1][j]), float(z[k])

    def displaced(self, p: Coordinates) -> Coordinates:
        """Mass effect: anatomy is sampled nearer to the tumour's centre, so that it appears pushed away."""
        x, y, z = self.offset
        r2 = x**2 + y**2 + z**2
        factor = np.float32(self.push) * np.exp(-r2 / np.float32(2 * (1.3 * self.radius) ** 2)) / np.sqrt(r2 + 25)
        return p[0] - factor * x, p[1] - factor * y, p[2] - factor * z

    @property
    def swelling(self) -> Field:
        return inside((self.rho - np.float32(1.1)) * np.float32(self.radius), 8) * np.float32(
            0.3 + 0.6 * self.aggressive
        )

    def paint(self, image: Field) -> Field:
        """Draw the tumour into ``image`` and set ``labels``: 2 oedema or uniform tumour, 4 rim, 1 core inside it."""
        rng, a, grid, radius = self.rng, self.aggressive, self.head.grid, np.float32(self.radius)
        rho = np.where(self.head.ventricle < 0.5, FAR, self.rho)
        voxels = max(8, int(self.volume / grid.voxel_ml))
        level = np.float32(min(np.partition(rho.ravel(), voxels)[voxels], 4))
        distance = (rho - level) * radius
        mask = distance < 0
        alpha = inside(distance, 0.8 + max(0.0, (4.5 - 4 * a) * rng.uniform(0.4, 1.3)))
        bright = np.float32(rng.uniform(1.0, 1.25) * (1 + self.contrast))
        pattern = grid.field(rng.uniform(5, 14), rng)
        lesion = bright * (1 + np.float32(0.02 + rng.uniform(0, 0.06) + 0.22 * a * rng.uniform(0.5, 1.2)) * pattern)
        # In both grades, a part may be hardly brighter than the brain around it, in broad patches or towards the edge.
        faint = np.float32(rng.uniform(0, 0.7)) * np.clip(grid.field(max(12, self.radius * 0.7), rng), 0, 1)
        faint = np.maximum(faint, np.float32(rng.uniform(0, 0.6)) * np.clip(1 + distance / (0.5 * radius), 0, 1))
        lesion -= faint * (lesion - 1)
        self.labels = np.where(mask, 2, 0).astype(np.uint8)
        # The core is off the middle and has a ragged outline. Most aggressive tumours have a dark core inside a thick
        # rim; a few slow ones have a smooth cyst.
        necrotic = bool(rng.random() < 1 / (1 + np.exp(-10 * (a - 0.5))))
        if necrotic or rng.random() < 0.08:
            x, y, z = (
                o - np.float32(c) for o, c in zip(self.offset, rng.normal(0, 0.25, 3) * self.radius, strict=True)
            )
            inner = np.sqrt(x**2 + y**2 + z**2) / radius + np.float32(0.7) * np.maximum(
                rho - level + np.float32(0.3), 0
            )
            inner += np.float32(0.08 + 0.15 * a) * grid.field(max(8, self.radius * 0.5), rng)
            inner -= np.float32(np.cbrt(rng.uniform(0.25, 0.7) if necrotic else rng.uniform(0.1, 0.4)))
            rim = np.float32(rng.uniform(2.5, 7)) * (1 + np.float32(0.5) * pattern) if necrotic else np.float32(1)
            outer = inside(inner * radius, 1.2) * mask
            hole = inside(inner * radius + rim, 1.5 if necrotic else 3) * outer
            lesion = mix(lesion, bright * np.float32(rng.uniform(0.65, 1.15)) * (1 + 0.1 * pattern), outer)
            lesion = mix(lesion, np.float32(rng.uniform(0.1, 0.75)) * (1 + 0.1 * pattern), hole)
            self.labels[mask & (outer > 0.5)] = 4
            self.labels[mask & (hole > 0.5)] = 1
        through = np.float32(rng.uniform(0.3, 0.95))  # CSF in the sulci stays partly dark inside the tumour
        return mix(image, np.where(image < 0.7, mix(image, lesion, through), lesion), alpha)


def _scan(image: Field, grid: Grid, p: Coordinates, rng: np.random.Generator, stripped: bool) -> Field:
    """The scanner: partial volume and blur, bias field, contrast, Rician noise, drawn without regard to the grade."""
    image = ndimage.gaussian_filter(image, [rng.uniform(0.2, 0.9), rng.uniform(0.2, 0.9), rng.uniform(0.35, 0.8)])
    bias = np.float32(rng.uniform(0.02, 0.12)) * grid.field(110, rng)
    if rng.random() < 0.5:  # surface coils: brighter near the scalp
        r2 = (p[0] / 75) ** 2 + (p[1] / 95) ** 2 + (p[2] / 75) ** 2
        bias += np.float32(rng.uniform(0, 0.25)) * (r2 - np.float32(0.5)).clip(-1, 1)
    image = np.maximum(image, 0) ** np.float32(rng.uniform(0.85, 1.2)) * np.exp(bias)
    noise = np.float32(rng.uniform(0.005, 0.06))
    real, imaginary = (noise * rng.standard_normal(image.shape, dtype=np.float32) for _ in range(2))
    noisy = np.hypot(image + real, imaginary)
    return np.where(image > 0.02, noisy, np.float32(0)) if stripped else noisy


def _store(image: Field, labels: NDArray[np.uint8], grid: Grid, grade: str, rng: np.random.Generator) -> Phantom:
    """Put the head into the full matrix, a little off its middle, in a random storage order and random units."""
    low = [
        int(np.clip((m - n) // 2 + rng.integers(-6, 7), 0, m - n))
        for m, n in zip(grid.matrix, grid.shape[:2], strict=True)
    ]
    inner = (slice(low[0], low[0] + grid.shape[0]), slice(low[1], low[1] + grid.shape[1]))
    full = np.zeros((*grid.matrix, grid.shape[2]), np.float32)
    mask = np.zeros(full.shape, np.uint8)
    full[inner], mask[inner] = image, labels
    air = float(np.median(image[:3]))
    if air > 0:  # the air outside the box is as noisy as the air in it; the median of a Rayleigh variable is 1.18 σ
        outside = np.ones(grid.matrix, bool)
        outside[inner] = False
        full[outside] = rng.rayleigh(air / 1.18, (int(outside.sum()), grid.shape[2]))
    affine = np.diag([*grid.spacing, 1.0])
    affine[:2, 3] = [-s * m / 2 for s, m in zip(grid.spacing, grid.matrix, strict=False)]
    affine[2, 3] = grid.axes[2][0]
    codes = [("R", "A", "S"), ("L", "P", "S"), ("L", "A", "S"), ("P", "S", "R"), ("A", "I", "L")]
    turn = nib.orientations.axcodes2ornt(codes[int(rng.choice(len(codes), p=[0.35, 0.35, 0.16, 0.07, 0.07]))])
    units = float(np.exp(rng.uniform(np.log(60), np.log(900))))
    flair = np.clip(full * units, 0, 32767).astype(np.int16)
    return Phantom(
        np.ascontiguousarray(nib.orientations.apply_orientation(flair, turn)),
        np.ascontiguousarray(nib.orientations.apply_orientation(mask, turn)),
        affine @ nib.orientations.inv_ornt_aff(turn, full.shape),
        grade,
    )

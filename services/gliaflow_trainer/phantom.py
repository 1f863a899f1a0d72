"""Phantom patients: drawings of FLAIR scans with gliomas, whose masks and grades are known because we drew them.

The head is painted from signed distances (mm, negative inside) to simple shapes, bent by smooth random fields; the
tumour is a level set of a random field, cut at the level that gives the volume asked for. What tells the grades
apart is drawn from one hidden number, the aggressiveness; what should not (volume, place, contrast, scanner) is
drawn without it. Tissue contrast, skull, noise, slice thickness and storage order vary far more than in one
hospital, so that a network trained on phantoms alone meets a real scan as one more variation (domain randomisation;
Billot et al. 2023, SynthSeg). A phantom is no patient: scores on phantoms say nothing clinical.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation

GRADES = ("HGG", "LGG")
AMBIGUOUS = 0.2  # share of patients whose looks say nothing of their grade
STRIPPED = 0.3  # share of skull-stripped scans
MEDIAN_ML, SPREAD = 55.0, 0.85  # log-normal tumour volume, the same for both grades
FAR = np.float32(9)  # a level that no tumour reaches

Field = NDArray[np.float32]
Coordinates = tuple[Field, Field, Field]


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
    workers: int | None = None,
) -> None:
    """Write ``patients`` phantoms in the BraTS 2018 layout: ``HGG|LGG/<ID>/<ID>_{flair,seg}.nii.gz``.

    Patient k of a seed is the same however many are written. Files appear whole, and those that are there already
    are left alone, so that an interrupted run goes on where it stopped.

    Parameters
    ----------
    progress: called with (patients done, patients).
    workers: threads; all cores by default.
    """
    if not 0 <= hgg_share <= 1:
        raise ValueError(f"hgg_share must lie in 0–1: {hgg_share}")
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        jobs = [pool.submit(_write_patient, out, k, seed, _grade(k, hgg_share)) for k in range(patients)]
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                job.result()
                if progress is not None:
                    progress(done, patients)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _grade(k: int, hgg_share: float) -> str:
    # Patient by patient as near the share as can be, so that a smaller cohort is the beginning of a larger one.
    return GRADES[0] if int((k + 1) * hgg_share + 1e-9) > int(k * hgg_share + 1e-9) else GRADES[1]


def _write_patient(out: Path, k: int, seed: int, grade: str) -> None:
    name = f"phantom_{seed}_{k:04d}"
    folder = out / grade / name
    files = [folder / f"{name}_flair.nii.gz", folder / f"{name}_seg.nii.gz"]
    if all(file.exists() for file in files):
        return
    phantom = make_patient(grade, np.random.default_rng([seed, k]))
    folder.mkdir(parents=True, exist_ok=True)
    for file, voxels in zip(files, (phantom.flair, phantom.mask), strict=True):
        part = folder / f".part-{file.name}"
        nib.save(nib.Nifti1Image(voxels, phantom.affine), part)
        part.replace(file)


def make_patient(grade: str, rng: np.random.Generator) -> Phantom:
    """One phantom patient, anatomy, tumour and scanner all drawn from ``rng``. About half a second on one core."""
    if grade not in GRADES:
        raise ValueError(f"grade must be one of {GRADES}: {grade!r}")
    grid = _Grid.draw(rng)
    stripped = bool(rng.random() < STRIPPED)
    head = _Head(grid, rng)
    tumour = _Tumour(head, grade, rng)
    image = tumour.paint(head.paint_brain(tumour.displaced(head.p), tumour.swelling))
    if stripped:
        image = image * _inside(head.brain - np.float32(rng.uniform(0, 3)), 0.8)
    else:
        image = _mix(head.paint_outside(), image, _inside(head.intracranial, 1.0))
    image = _scan(image, grid, head.p, rng, stripped)
    return grid.store(image, tumour.labels, grade, rng)


@dataclass(frozen=True)
class _Grid:
    """The voxels that are painted (a box around the head), and the matrix they are set into when stored."""

    axes: tuple[Field, Field, Field]  # voxel centres in mm, RAS, the middle of the brain about 0
    matrix: tuple[int, int]
    spacing: tuple[float, float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Grid:
        matrix = int(rng.choice([200, 224, 240, 256, 256]))
        pixel = max(rng.uniform(0.85, 1.2), 205 / matrix)
        thick = float(rng.choice([rng.uniform(4, 6.5), rng.uniform(2.5, 4), rng.uniform(1, 2.5)], p=[0.65, 0.25, 0.1]))
        top = rng.uniform(62, 88)
        # From the skull base or the jaw to the vertex; thin slices cover less, to be quick.
        slices = min(int((top + rng.uniform(50, 105)) / thick), 56)
        size = [min(int(mm / pixel), matrix) for mm in (188, 234)]
        x, y = [((np.arange(n) - (n - 1) / 2) * pixel).astype(np.float32) for n in size]
        z = (top - thick * np.arange(slices)[::-1]).astype(np.float32)
        return cls((x, y, z), (matrix, matrix), (pixel, pixel, thick))

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.axes[0]), len(self.axes[1]), len(self.axes[2])

    @property
    def voxel_ml(self) -> float:
        return float(np.prod(self.spacing)) / 1000

    def field(self, spacing: float, rng: np.random.Generator) -> Field:
        """A smooth random field of mean 0 and deviation 1: a cubic B-spline with knots ``spacing`` mm apart."""
        bases = [_spline_basis(axis, spacing, rng.uniform()) for axis in self.axes]
        field: Field = rng.standard_normal([basis.shape[1] for basis in bases], dtype=np.float32)
        for basis in bases:  # each turn contracts the first axis and appends it, so that the order is kept
            field = np.tensordot(field, basis, axes=(0, 1))
        field -= field.mean()
        field /= field.std() + np.float32(1e-6)
        return field

    def store(self, image: Field, labels: NDArray[np.uint8], grade: str, rng: np.random.Generator) -> Phantom:
        """Into the full matrix, the head a little off its middle, in some scanner's storage order and units."""
        low = [
            int(np.clip((m - n) // 2 + rng.integers(-6, 7), 0, m - n))
            for m, n in zip(self.matrix, self.shape[:2], strict=True)
        ]
        inner = (slice(low[0], low[0] + self.shape[0]), slice(low[1], low[1] + self.shape[1]))
        full = np.zeros((*self.matrix, self.shape[2]), np.float32)
        mask = np.zeros(full.shape, np.uint8)
        full[inner], mask[inner] = image, labels
        air = float(np.median(image[:3]))
        if air > 0:  # the air around the box is as noisy as the air in it; a Rayleigh's median is 1.18 σ
            outside = np.ones(self.matrix, bool)
            outside[inner] = False
            full[outside] = rng.rayleigh(air / 1.18, (int(outside.sum()), self.shape[2]))
        affine = np.diag([*self.spacing, 1.0])
        affine[:2, 3] = [-s * m / 2 for s, m in zip(self.spacing, self.matrix, strict=False)]
        affine[2, 3] = self.axes[2][0]
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


class _Head:
    """Where each tissue is. ``p``: the voxels in the head's own coordinates (mm, RAS), bent and tilted."""

    ventricle: Field
    grey: Field

    def __init__(self, grid: _Grid, rng: np.random.Generator) -> None:
        self.grid, self.rng = grid, rng
        size = rng.normal(1, 0.05, 3).clip(0.87, 1.13)
        tilt = Rotation.from_euler("xyz", rng.normal(0, [8, 4, 6]).clip(-18, 18), degrees=True).as_matrix()
        x, y, z = (
            a - s for a, s in zip(np.meshgrid(*grid.axes, indexing="ij", sparse=True), rng.normal(0, 3, 3), strict=True)
        )
        bend = np.float32(rng.uniform(0.5, 2.5))
        px, py, pz = (
            (row[0] * x + row[1] * y + row[2] * z).astype(np.float32) + bend * grid.field(45, rng)
            for row in tilt / size[:, None]
        )
        self.p: Coordinates = (px, py, pz)
        p, mirrored = self.p, (np.abs(px), py, pz)
        cerebrum = _smooth_max(_ellipsoid(p, (0, 0, 8), (67, 85, 61)), -20 - pz, 8)
        temporal = _ellipsoid(mirrored, (39, 4, -18), (28, 43, 25))
        cerebellum = _ellipsoid(mirrored, (21, -50, -34), (33, 32, 25))
        stem = _capsule(p, (0, -18, -12), (0, -32, -95), 13)
        self.cerebrum = _smooth_min(cerebrum, temporal, 6)
        self.cerebellum = _smooth_min(cerebellum, stem, 4)
        self.brain = np.minimum(self.cerebrum, self.cerebellum)
        self.intracranial = _smooth_min(self.cerebrum, self.cerebellum, 14) - np.float32(rng.uniform(0.5, 4.5))
        # Sulci are the zero set of a random field; |field| times its correlation length is about the distance to it.
        knots = rng.uniform(7, 13)
        self.sulcus = np.abs(grid.field(knots, rng)) * np.float32(0.55 * knots)
        self.texture = grid.field(rng.uniform(3, 7), rng)

    def ventricles(self, p: Coordinates) -> Field:
        """Signed distance to the ventricles."""
        wide = self.rng.uniform(0.2, 1.0)
        m = (np.abs(p[0]), p[1], p[2])
        shapes = [
            _capsule(m, (7 + 4 * wide, 32, 6), (9 + 3 * wide, 8, 14), 1.5 + 5 * wide),  # frontal horn
            _capsule(m, (9 + 3 * wide, 8, 14), (14, -26, 16), 1.5 + 5 * wide),  # body
            _capsule(m, (14, -26, 16), (27, -44, 2), 2 + 6 * wide),  # trigone
            _capsule(m, (27, -44, 2), (34, -12, -18), 0.8 + 2.5 * wide),  # temporal horn
            _capsule(m, (25, -42, 4), (24, -64, 4), 0.8 + 3 * wide),  # occipital horn
            _ellipsoid(p, (0, -6, 0), (1 + 3 * wide, 15, 11)),  # third
            _ellipsoid(p, (0, -38, -36), (5, 6, 9)),  # fourth
        ]
        return reduce(np.minimum, shapes)

    def paint_brain(self, p: Coordinates, swelling: Field) -> Field:
        """Brain and CSF without the lesion, white matter about 1. ``swelling`` 0–1 presses the sulci shut."""
        rng, grid = self.rng, self.grid
        contrast = rng.uniform(1.0, 1.4)  # grey over white; on FLAIR grey is the brighter
        csf, depth = rng.uniform(0.1, 0.5), rng.uniform(14, 30)
        sulcus = self.sulcus + np.maximum(-self.brain - np.float32(depth), 0)
        cortex = np.minimum(-self.brain, sulcus)
        image = 1 + np.float32(rng.uniform(0.01, 0.05)) * self.texture
        m = (np.abs(p[0]), p[1], p[2])
        nuclei = np.minimum(_ellipsoid(m, (24, 4, 2), (8, 20, 13)), _ellipsoid(m, (11, -16, 5), (8, 13, 9)))
        grey = np.maximum(
            _inside(cortex - np.float32(rng.uniform(2.0, 4.0)), 1.2), _inside(nuclei, 1.5) * np.float32(rng.uniform())
        )
        grey = np.where(self.cerebellum < 0, np.float32(rng.uniform(0, 0.9)), grey)
        image *= 1 + np.float32(contrast - 1) * grey
        ventricles = self.ventricles(p)
        # Caps and bands along the ventricles, and a few spots in the white matter: bright, and no tumour.
        if rng.random() < 0.7:
            caps = np.exp(-(((m[0] - 12) / 9) ** 2) - ((np.abs(p[1] + 6) - 42) / 9) ** 2) + np.float32(
                rng.uniform(0, 0.5)
            )
            fade = np.exp(-np.maximum(ventricles, 0) / np.float32(rng.uniform(1.5, 4)))
            image += np.float32(rng.uniform(0.2, 0.9)) * caps * fade
        if rng.random() < 0.4:
            spots = grid.field(rng.uniform(5, 9), rng) > rng.uniform(2.4, 3.2)
            image += np.float32(rng.uniform(0.2, 0.8)) * (spots & (cortex > 8))
        fissure = np.abs(p[0]) - np.float32(rng.uniform(0.2, 1.2)) + 40 * (p[2] < np.where(np.abs(p[1]) < 38, 26, -12))
        dark = np.maximum(_inside(sulcus - np.float32(rng.uniform(-1.0, 1.2)), 1.0), _inside(fissure, 1.0))
        dark = reduce(np.maximum, [dark * (1 - swelling), _inside(ventricles, 1.0), 1 - _inside(self.brain, 1.0)])
        self.ventricle, self.grey = ventricles, grey
        return _mix(image, np.float32(csf) * (1 + 0.3 * self.texture), dark)

    def paint_outside(self) -> Field:
        """Skull, scalp, face and neck."""
        rng, grid, p = self.rng, self.grid, self.p
        skull = np.float32(rng.uniform(3, 8)) + np.float32(rng.uniform(0.5, 1.5)) * grid.field(40, rng)
        scalp = np.maximum(np.float32(rng.uniform(3, 9)) + np.float32(rng.uniform(0.5, 2.5)) * grid.field(35, rng), 1.5)
        m = (np.abs(p[0]), p[1], p[2])
        face = _smooth_min(_ellipsoid(p, (0, 34, -66), (60, 58, 72)), _ellipsoid(p, (0, 92, -66), (15, 20, 26)), 10)
        neck = _capsule(p, (0, -22, -60), (0, -30, -170), rng.uniform(48, 62))
        bone = self.intracranial - skull
        head = _smooth_min(_smooth_min(bone - scalp, face, 10), neck, 15)
        fat = rng.uniform(1.2, 4.5) if rng.random() < 0.85 else rng.uniform(0.5, 1.2)
        tissue = grid.field(rng.uniform(9, 16), rng) + np.float32(0.5) * grid.field(6, rng)
        soft = np.where(tissue > 0.5, np.float32(fat), np.float32(rng.uniform(0.4, 1.0)))  # fat, muscle
        soft = np.where(tissue < -0.9, np.float32(rng.uniform(0.03, 0.3)), soft)  # bone, air cells, teeth
        soft = np.where(head > -scalp, np.float32(fat) * (1 + 0.08 * self.texture), soft)
        soft = np.where(_ellipsoid(m, (31, 70, -30), (20, 22, 18)) < 0, np.float32(fat * rng.uniform(0.6, 1.1)), soft)
        soft = _mix(soft, np.float32(rng.uniform(0.15, 0.7)), _inside(_ellipsoid(m, (31, 76, -30), (12, 12.5, 12)), 1))
        sinus = np.minimum(_ellipsoid(m, (12, 62, -58), (16, 26, 26)), _ellipsoid(p, (0, 78, -12), (20, 9, 14)))
        soft = np.where((sinus < 0) & (tissue > -0.8), np.float32(0.05), soft)
        marrow = np.float32(rng.uniform(0.1, 1.6)) * _inside(np.abs(bone + skull / 2) - skull / 5, 1)
        soft = _mix(soft, np.maximum(np.float32(0.1), marrow), _inside(bone, 1.0))
        return np.asarray(soft * _inside(head, 1.0), dtype=np.float32)


class _Tumour:
    """The glioma. Volume, place and contrast are drawn alike in both grades; its texture from the aggressiveness."""

    labels: NDArray[np.uint8]

    def __init__(self, head: _Head, grade: str, rng: np.random.Generator) -> None:
        self.head, self.rng = head, rng
        grid = head.grid
        self.volume = float(np.exp(np.clip(rng.normal(np.log(MEDIAN_ML), SPREAD), np.log(6), np.log(300))))
        radius = self.radius = float((self.volume * 3000 / (4 * np.pi)) ** (1 / 3))
        centre = self._place(rng, radius)
        self.contrast = rng.uniform(0.25, 1.1) if rng.random() < 0.85 else rng.uniform(0.12, 0.25)
        if rng.random() < AMBIGUOUS:
            a = float(rng.beta(3, 3))
        else:
            a = float(rng.beta(6, 2) if grade == "HGG" else rng.beta(2, 6))
        self.aggressive = a
        near = [axis - np.float32(c) for axis, c in zip(grid.axes, centre, strict=True)]
        self.offset = x, y, z = np.meshgrid(*near, indexing="ij", sparse=True)
        stretch = Rotation.random(random_state=rng).as_matrix() * np.exp(rng.normal(0, 0.18, 3))[:, None]
        squares: Any = sum((row[0] * x + row[1] * y + row[2] * z) ** 2 for row in stretch.astype(np.float32))
        rho = np.sqrt(squares) / np.float32(radius)
        rho += np.float32(0.12 + 0.10 * a) * grid.field(max(14, radius * 0.8), rng)
        rho += np.float32(rng.uniform(0.02, 0.08) + 0.12 * a) * grid.field(9, rng)
        # Oedema follows white matter and stops at the cortex: fingers. The midline stops all but in the callosum.
        cortex = np.minimum(-head.brain, head.sulcus + np.maximum(-head.brain - 22, 0)).clip(0)
        rho += np.float32(rng.uniform(0, 0.15) + 0.7 * a) * np.exp(-cortex / 3)
        callosum = (np.abs(head.p[1]) < 35) & (np.abs(head.p[2] - 22) < 8)
        rho += np.where(callosum, np.float32(0.3), np.float32(1.2)) * (head.p[0] * np.sign(centre[0]) < -2)
        rho[(head.brain > -0.5) | (head.cerebellum < 1)] = FAR
        self.rho: Field = rho
        self.push = (1 + rng.uniform(0, 2) + 6 * a) * min(1.0, radius / 20)

    def _place(self, rng: np.random.Generator, radius: float) -> tuple[float, float, float]:
        """A point deep enough in a hemisphere and far enough from the ends of the scan to be seen."""
        head = self.head
        z = head.grid.axes[2]
        fit = (-head.cerebrum > min(0.6 * radius, 16)) & (np.abs(head.p[0]) > 8) & (head.p[2] > -32)
        fit &= (z > z[0] + 12) & (z < z[-1] - 12)
        i, j, k = np.unravel_index(int(rng.choice(np.flatnonzero(fit))), fit.shape)
        return float(head.grid.axes[0][i]), float(head.grid.axes[1][j]), float(z[k])

    def displaced(self, p: Coordinates) -> Coordinates:
        """Mass effect: anatomy is read from nearer the tumour's centre, so it appears pushed away."""
        x, y, z = self.offset
        r2 = x**2 + y**2 + z**2
        factor = np.float32(self.push) * np.exp(-r2 / np.float32(2 * (1.3 * self.radius) ** 2)) / np.sqrt(r2 + 25)
        return p[0] - factor * x, p[1] - factor * y, p[2] - factor * z

    @property
    def swelling(self) -> Field:
        return _inside((self.rho - np.float32(1.1)) * np.float32(self.radius), 8) * np.float32(
            0.3 + 0.6 * self.aggressive
        )

    def paint(self, image: Field) -> Field:
        """Draw the tumour into ``image`` and set ``labels``: 2 oedema or a tumour of one kind, 4 rim, 1 what it rings."""
        rng, a, grid, radius = self.rng, self.aggressive, self.head.grid, np.float32(self.radius)
        rho = np.where(self.head.ventricle < 0.5, FAR, self.rho)
        voxels = max(8, int(self.volume / grid.voxel_ml))
        level = np.float32(min(np.partition(rho.ravel(), voxels)[voxels], 4))
        distance = (rho - level) * radius
        mask = distance < 0
        alpha = _inside(distance, 0.8 + max(0.0, (4.5 - 4 * a) * rng.uniform(0.4, 1.3)))
        bright = np.float32(rng.uniform(1.0, 1.25) * (1 + self.contrast))
        pattern = grid.field(rng.uniform(5, 14), rng)
        lesion = bright * (1 + np.float32(0.02 + rng.uniform(0, 0.06) + 0.16 * a * rng.uniform(0.5, 1.2)) * pattern)
        self.labels = np.where(mask, 2, 0).astype(np.uint8)
        # The core lies off the middle, with a ragged outline of its own. In most of the aggressive it is dark within
        # a thick rim; a few of the quiet have a smooth cyst.
        necrotic = bool(rng.random() < 1 / (1 + np.exp(-10 * (a - 0.5))))
        if necrotic or rng.random() < 0.12:
            x, y, z = (
                o - np.float32(c) for o, c in zip(self.offset, rng.normal(0, 0.25, 3) * self.radius, strict=True)
            )
            inner = np.sqrt(x**2 + y**2 + z**2) / radius + np.float32(0.7) * np.maximum(
                rho - level + np.float32(0.3), 0
            )
            inner += np.float32(0.08 + 0.15 * a) * grid.field(max(8, self.radius * 0.5), rng)
            inner -= np.float32(np.cbrt(rng.uniform(0.15, 0.45)))
            rim = np.float32(rng.uniform(2.5, 7)) * (1 + np.float32(0.5) * pattern) if necrotic else np.float32(1)
            outer = _inside(inner * radius, 1.2) * mask
            hole = _inside(inner * radius + rim, 1.5 if necrotic else 3) * outer
            lesion = _mix(lesion, bright * np.float32(rng.uniform(0.65, 1.15)) * (1 + 0.1 * pattern), outer)
            lesion = _mix(lesion, np.float32(rng.uniform(0.3, 0.9)) * (1 + 0.1 * pattern), hole)
            self.labels[mask & (outer > 0.5)] = 4
            self.labels[mask & (hole > 0.5)] = 1
        through = np.float32(rng.uniform(0.3, 0.95))  # CSF in the sulci stays partly dark inside the tumour
        return _mix(image, np.where(image < 0.7, _mix(image, lesion, through), lesion), alpha)


def _scan(image: Field, grid: _Grid, p: Coordinates, rng: np.random.Generator, stripped: bool) -> Field:
    """What the scanner adds: partial volume and blur, bias field, contrast, Rician noise. Knows nothing of grades."""
    image = ndimage.gaussian_filter(image, [rng.uniform(0.2, 0.9), rng.uniform(0.2, 0.9), 0.4])
    bias = np.float32(rng.uniform(0.02, 0.12)) * grid.field(110, rng)
    if rng.random() < 0.5:  # surface coils: brighter near the scalp
        r2 = (p[0] / 75) ** 2 + (p[1] / 95) ** 2 + (p[2] / 75) ** 2
        bias += np.float32(rng.uniform(0, 0.25)) * (r2 - np.float32(0.5)).clip(-1, 1)
    image = np.maximum(image, 0) ** np.float32(rng.uniform(0.85, 1.2)) * np.exp(bias)
    noise = np.float32(rng.uniform(0.005, 0.06))
    real, imaginary = (noise * rng.standard_normal(image.shape, dtype=np.float32) for _ in range(2))
    noisy = np.hypot(image + real, imaginary)
    return np.where(image > 0.02, noisy, np.float32(0)) if stripped else noisy


def _spline_basis(axis: Field, spacing: float, phase: float) -> Field:
    """Cubic B-splines at the points of ``axis``: [points, knots], each row four weights that add up to 1."""
    first = float(axis[0]) - spacing * phase
    at = (axis.astype(np.float64) - first) / spacing
    knots = np.arange(-3, int(at[-1]) + 6, dtype=np.float64)
    return np.asarray(BSpline.design_matrix(at, knots, 3).toarray(), dtype=np.float32)


def _ellipsoid(p: Coordinates, centre: Sequence[float], radii: Sequence[float]) -> Field:
    """About the signed distance to an ellipsoid (exact on its surface; Quilez, "ellipsoid - distance")."""
    q = [(axis - np.float32(c)) * np.float32(1 / r) for axis, c, r in zip(p, centre, radii, strict=True)]
    k0 = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2)
    for axis, r in zip(q, radii, strict=True):
        axis *= np.float32(1 / r)
    k1 = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2) + np.float32(1e-6)
    return np.asarray(k0 * (k0 - 1) / k1, dtype=np.float32)


def _capsule(p: Coordinates, start: Sequence[float], end: Sequence[float], radius: float) -> Field:
    """Signed distance to the points within ``radius`` of a segment."""
    along = np.subtract(end, start).astype(np.float32)
    unit = along / (along @ along)
    q = [axis - np.float32(c) for axis, c in zip(p, start, strict=True)]
    t = (q[0] * unit[0] + q[1] * unit[1] + q[2] * unit[2]).clip(0, 1)
    squares: Any = sum((axis - t * v) ** 2 for axis, v in zip(q, along, strict=True))
    return np.asarray(np.sqrt(squares) - np.float32(radius), dtype=np.float32)


def _smooth_min(a: Field, b: Field, k: float) -> Field:
    """The smaller, rounded where the two are within ``k`` mm (polynomial smooth minimum)."""
    h = np.maximum(np.float32(k) - np.abs(a - b), 0) * np.float32(1 / k)
    return np.asarray(np.minimum(a, b) - h * h * np.float32(k / 4), dtype=np.float32)


def _smooth_max(a: Field, b: Field, k: float) -> Field:
    return -_smooth_min(-a, -b, k)


def _inside(distance: Any, width: float) -> Field:
    """How much of a voxel lies inside: 1 within, 0 without, over ``width`` mm either side of the surface."""
    return np.asarray(np.clip(0.5 - distance * np.float32(0.5 / width), 0, 1), dtype=np.float32)


def _mix(a: Any, b: Any, share: Any) -> Field:
    return np.asarray(a + (b - a) * share, dtype=np.float32)

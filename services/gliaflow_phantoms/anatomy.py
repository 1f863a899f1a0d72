"""The head of a phantom patient without a tumour: voxels, shapes, and the brightness of each tissue on FLAIR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation

Field = NDArray[np.float32]
Coordinates = tuple[Field, Field, Field]


@dataclass(frozen=True)
class Grid:
    """The voxels that are painted (a box around the head), and the matrix of the stored scan."""

    axes: tuple[Field, Field, Field]  # voxel centres in mm, RAS, with 0 near the middle of the brain
    matrix: tuple[int, int]
    spacing: tuple[float, float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Grid:
        matrix = int(rng.choice([200, 224, 240, 256, 256]))
        pixel = max(rng.uniform(0.85, 1.2), 205 / matrix)
        thick = float(rng.choice([rng.uniform(4, 6.5), rng.uniform(2.5, 4), rng.uniform(1, 2.5)], p=[0.65, 0.25, 0.1]))
        top = rng.uniform(62, 88)
        # From the skull base or the jaw to the vertex. Thin slices cover less, to save time.
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
        """A smooth random field with mean 0 and deviation 1: a cubic B-spline with knots ``spacing`` mm apart."""
        bases = [_spline_basis(axis, spacing, rng.uniform()) for axis in self.axes]
        field: Field = rng.standard_normal([basis.shape[1] for basis in bases], dtype=np.float32)
        for basis in bases:  # each step contracts the first axis and appends the new one: the order stays
            field = np.tensordot(field, basis, axes=(0, 1))
        field -= field.mean()
        field /= field.std() + np.float32(1e-6)
        return field


class Head:
    """The place of each tissue. ``p``: the voxels in the head's own coordinates (mm, RAS), bent and tilted."""

    ventricle: Field
    grey: Field

    def __init__(self, grid: Grid, rng: np.random.Generator) -> None:
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
        cerebrum = smooth_max(ellipsoid(p, (0, 0, 8), (67, 85, 61)), -20 - pz, 8)
        temporal = ellipsoid(mirrored, (39, 4, -18), (28, 43, 25))
        cerebellum = ellipsoid(mirrored, (21, -50, -34), (33, 32, 25))
        stem = capsule(p, (0, -18, -12), (0, -32, -95), 13)
        self.cerebrum = smooth_min(cerebrum, temporal, 6)
        self.cerebellum = smooth_min(cerebellum, stem, 4)
        self.brain = np.minimum(self.cerebrum, self.cerebellum)
        self.intracranial = smooth_min(self.cerebrum, self.cerebellum, 14) - np.float32(rng.uniform(0.5, 4.5))
        # Sulci are the zero set of a random field; |field| times its correlation length approximates the distance.
        knots = rng.uniform(7, 13)
        self.sulcus = np.abs(grid.field(knots, rng)) * np.float32(0.55 * knots)
        self.texture = grid.field(rng.uniform(3, 7), rng)

    def ventricles(self, p: Coordinates) -> Field:
        """Signed distance to the ventricles."""
        wide = self.rng.uniform(0.2, 1.0)
        m = (np.abs(p[0]), p[1], p[2])
        shapes = [
            capsule(m, (7 + 4 * wide, 32, 6), (9 + 3 * wide, 8, 14), 1.5 + 5 * wide),  # frontal horn
            capsule(m, (9 + 3 * wide, 8, 14), (14, -26, 16), 1.5 + 5 * wide),  # body
            capsule(m, (14, -26, 16), (27, -44, 2), 2 + 6 * wide),  # trigone
            capsule(m, (27, -44, 2), (34, -12, -18), 0.8 + 2.5 * wide),  # temporal horn
            capsule(m, (25, -42, 4), (24, -64, 4), 0.8 + 3 * wide),  # occipital horn
            ellipsoid(p, (0, -6, 0), (1 + 3 * wide, 15, 11)),  # third
            ellipsoid(p, (0, -38, -36), (5, 6, 9)),  # fourth
        ]
        return reduce(np.minimum, shapes)

    def paint_brain(self, p: Coordinates, swelling: Field) -> Field:
        """Brain and CSF without the lesion; white matter is about 1. ``swelling`` (0–1) closes the sulci."""
        rng, grid = self.rng, self.grid
        contrast = rng.uniform(1.0, 1.4)  # grey over white matter: on FLAIR, grey is brighter
        csf, depth = rng.uniform(0.1, 0.5), rng.uniform(14, 30)
        sulcus = self.sulcus + np.maximum(-self.brain - np.float32(depth), 0)
        cortex = np.minimum(-self.brain, sulcus)
        image = 1 + np.float32(rng.uniform(0.01, 0.05)) * self.texture
        m = (np.abs(p[0]), p[1], p[2])
        nuclei = np.minimum(ellipsoid(m, (24, 4, 2), (8, 20, 13)), ellipsoid(m, (11, -16, 5), (8, 13, 9)))
        grey = np.maximum(
            inside(cortex - np.float32(rng.uniform(2.0, 4.0)), 1.2), inside(nuclei, 1.5) * np.float32(rng.uniform())
        )
        grey = np.where(self.cerebellum < 0, np.float32(rng.uniform(0, 0.9)), grey)
        image *= 1 + np.float32(contrast - 1) * grey
        ventricles = self.ventricles(p)
        # Caps and bands along the ventricles, and a few spots in the white matter, are bright without being tumour.
        if rng.random() < 0.7:
            caps = np.exp(-(((m[0] - 12) / 9) ** 2) - ((np.abs(p[1] + 6) - 42) / 9) ** 2) + np.float32(
                rng.uniform(0, 0.5)
            )
            fade = np.exp(-np.maximum(ventricles, 0) / np.float32(rng.uniform(1.5, 4)))
            image += np.float32(rng.uniform(0.2, 0.9)) * caps * fade
        if rng.random() < 0.4:
            spots = grid.field(rng.uniform(5, 9), rng) > rng.uniform(2.4, 3.2)
            image += np.float32(rng.uniform(0.2, 0.8)) * (spots & (cortex > 8))
        # Broad, faint and symmetric: the white matter behind the trigones, the insulae, the septum.
        behind = np.exp(-(((m[0] - 26) / 10) ** 2) - ((p[1] + 38) / 18) ** 2 - ((p[2] - 14) / 14) ** 2)
        insula = np.exp(-(((m[0] - 40) / 4) ** 2) - ((p[1] - 2) / 16) ** 2 - ((p[2] - 4) / 12) ** 2)
        septum = np.exp(-((m[0] / 3) ** 2) - ((p[1] + 4) / 30) ** 2 - ((p[2] - 15) / 9) ** 2)
        for place in (behind, insula, septum):
            image += np.float32(rng.uniform(-0.1, 0.3)) * place
        fissure = np.abs(p[0]) - np.float32(rng.uniform(0.2, 1.2)) + 40 * (p[2] < np.where(np.abs(p[1]) < 38, 26, -12))
        dark = np.maximum(inside(sulcus - np.float32(rng.uniform(-1.0, 1.2)), 1.0), inside(fissure, 1.0))
        dark = reduce(np.maximum, [dark * (1 - swelling), inside(ventricles, 1.0), 1 - inside(self.brain, 1.0)])
        self.ventricle, self.grey = ventricles, grey
        return mix(image, np.float32(csf) * (1 + 0.3 * self.texture), dark)

    def paint_outside(self) -> Field:
        """Skull, scalp, face and neck."""
        rng, grid, p = self.rng, self.grid, self.p
        skull = np.float32(rng.uniform(3, 8)) + np.float32(rng.uniform(0.5, 1.5)) * grid.field(40, rng)
        scalp = np.maximum(np.float32(rng.uniform(3, 9)) + np.float32(rng.uniform(0.5, 2.5)) * grid.field(35, rng), 1.5)
        # Towards the vertex, a thick slice cuts scalp and skull lengthwise. They merge into a broad grey or white ring,
        # which must not be mistaken for a tumour.
        vertex = np.float32(rng.uniform(0, 1)) * ((p[2] - 42) / 35).clip(0, 1)
        scalp = scalp * (1 + np.float32(rng.uniform(0, 1.5)) * vertex)
        m = (np.abs(p[0]), p[1], p[2])
        face = smooth_min(ellipsoid(p, (0, 34, -66), (60, 58, 72)), ellipsoid(p, (0, 92, -66), (15, 20, 26)), 10)
        neck = capsule(p, (0, -22, -60), (0, -30, -170), rng.uniform(48, 62))
        bone = self.intracranial - skull
        head = smooth_min(smooth_min(bone - scalp, face, 10), neck, 15)
        fat = rng.uniform(1.2, 4.5) if rng.random() < 0.85 else rng.uniform(0.5, 1.2)
        tissue = grid.field(rng.uniform(9, 16), rng) + np.float32(0.5) * grid.field(6, rng)
        soft = np.where(tissue > 0.5, np.float32(fat), np.float32(rng.uniform(0.4, 1.0)))  # fat, muscle
        soft = np.where(tissue < -0.9, np.float32(rng.uniform(0.03, 0.3)), soft)  # bone, air cells, teeth
        fade = 1 - np.float32(rng.uniform(0, 0.75)) * ((p[2] - 30) / 45).clip(0, 1)  # far from the coil
        soft = np.where(head > -scalp, np.float32(fat) * fade * (1 + np.float32(0.1) * grid.field(14, rng)), soft)
        soft = np.where(ellipsoid(m, (31, 70, -30), (20, 22, 18)) < 0, np.float32(fat * rng.uniform(0.6, 1.1)), soft)
        soft = mix(soft, np.float32(rng.uniform(0.15, 0.7)), inside(ellipsoid(m, (31, 76, -30), (12, 12.5, 12)), 1))
        sinus = np.minimum(ellipsoid(m, (12, 62, -58), (16, 26, 26)), ellipsoid(p, (0, 78, -12), (20, 9, 14)))
        soft = np.where((sinus < 0) & (tissue > -0.8), np.float32(0.05), soft)
        marrow = np.float32(rng.uniform(0.1, 1.6)) * inside(np.abs(bone + skull / 2) - skull / 5, 1)
        skull_value = mix(np.maximum(np.float32(0.1), marrow), np.float32(fat) * fade, vertex)
        soft = mix(soft, skull_value, inside(bone, 1.0))
        return np.asarray(soft * inside(head, 1.0), dtype=np.float32)


def _spline_basis(axis: Field, spacing: float, phase: float) -> Field:
    """Cubic B-splines at the points of ``axis``: [points, knots]. Each row has four weights, of sum 1."""
    first = float(axis[0]) - spacing * phase
    at = (axis.astype(np.float64) - first) / spacing
    knots = np.arange(-3, int(at[-1]) + 6, dtype=np.float64)
    return np.asarray(BSpline.design_matrix(at, knots, 3).toarray(), dtype=np.float32)


def ellipsoid(p: Coordinates, centre: Sequence[float], radii: Sequence[float]) -> Field:
    """An approximate signed distance to an ellipsoid (exact on its surface; Quilez, "ellipsoid - distance")."""
    q = [(axis - np.float32(c)) * np.float32(1 / r) for axis, c, r in zip(p, centre, radii, strict=True)]
    k0 = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2)
    for axis, r in zip(q, radii, strict=True):
        axis *= np.float32(1 / r)
    k1 = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2) + np.float32(1e-6)
    return np.asarray(k0 * (k0 - 1) / k1, dtype=np.float32)


def capsule(p: Coordinates, start: Sequence[float], end: Sequence[float], radius: float) -> Field:
    """Signed distance to the points within ``radius`` of a segment."""
    along = np.subtract(end, start).astype(np.float32)
    unit = along / (along @ along)
    q = [axis - np.float32(c) for axis, c in zip(p, start, strict=True)]
    t = (q[0] * unit[0] + q[1] * unit[1] + q[2] * unit[2]).clip(0, 1)
    squares: Any = sum((axis - t * v) ** 2 for axis, v in zip(q, along, strict=True))
    return np.asarray(np.sqrt(squares) - np.float32(radius), dtype=np.float32)


def smooth_min(a: Field, b: Field, k: float) -> Field:
    """The smaller of two distances, smoothed where they differ by less than ``k`` mm (polynomial smooth minimum)."""
    h = np.maximum(np.float32(k) - np.abs(a - b), 0) * np.float32(1 / k)
    return np.asarray(np.minimum(a, b) - h * h * np.float32(k / 4), dtype=np.float32)


def smooth_max(a: Field, b: Field, k: float) -> Field:
    return -smooth_min(-a, -b, k)


def inside(distance: Any, width: float) -> Field:
    """The share of a voxel inside a surface: 1 inside, 0 outside, linear within ``width`` mm of the surface."""
    return np.asarray(np.clip(0.5 - distance * np.float32(0.5 / width), 0, 1), dtype=np.float32)


def mix(a: Any, b: Any, share: Any) -> Field:
    return np.asarray(a + (b - a) * share, dtype=np.float32)

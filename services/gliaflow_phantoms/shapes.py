"""Voxels, smooth random fields, and signed distances (mm, negative inside) to simple shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline

Field = NDArray[np.float32]
Coordinates = tuple[Field, Field, Field]
MAX_SLICES = 56
BOX_MM = (215, 262)  # around the largest head, across and from front to back
FIELD_OF_VIEW_MM = 220  # the least; a nose or the back of a long head may end at it


@dataclass(frozen=True)
class Grid:
    """The voxels that are painted (a box around the head), and the matrix of the stored scan."""

    axes: tuple[Field, Field, Field]  # voxel centres in mm, RAS, with 0 near the middle of the brain
    matrix: tuple[int, int]
    spacing: tuple[float, float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Grid:
        matrix = int(rng.choice([200, 224, 240, 256, 256]))
        pixel = max(rng.uniform(0.85, 1.2), FIELD_OF_VIEW_MM / matrix)
        thick = float(rng.choice([rng.uniform(4, 6.5), rng.uniform(2.5, 4), rng.uniform(1, 2.5)], p=[0.65, 0.25, 0.1]))
        # From the skull base or the neck to above the vertex. Thin slices cover less, to save time.
        top, depth = rng.uniform(72, 108), rng.uniform(125, 225)
        slices = int(depth / thick)
        if slices > MAX_SLICES:
            slices, top = MAX_SLICES, rng.uniform(15, 85)
        size = [min(int(mm / pixel), matrix) for mm in BOX_MM]
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


def inside(distance: Any, width: float) -> Field:
    """The share of a voxel inside a surface: 1 inside, 0 outside, linear within ``width`` mm of the surface."""
    return np.asarray(np.clip(0.5 - distance * np.float32(0.5 / width), 0, 1), dtype=np.float32)


def mix(a: Any, b: Any, share: Any) -> Field:
    return np.asarray(a + (b - a) * share, dtype=np.float32)


def along_axes(values: Field, positions: Sequence[NDArray[Any]]) -> Field:
    """``values`` between its voxels, at the grid of ``positions`` along each axis: linear, and its edge beyond it."""
    for axis, at in enumerate(positions):
        last = values.shape[axis] - 1
        low = np.minimum(at.astype(int), max(0, last - 1))
        share = (at - low).clip(0, 1).astype(np.float32).reshape([-1 if k == axis else 1 for k in range(3)])
        values = mix(np.take(values, low, axis), np.take(values, np.minimum(low + 1, last), axis), share)
    return values

"""Where network pixels lie in a scan, and how masks go back onto the scan's own grid."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from gliaflow_proto.errors import ProtocolError

MAX_SIDE = 2**15
MAX_VOXELS = 2**29


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How network pixels lie in the scan, so that a mask can go back onto the scan's own grid.

    Pixel (row, column) of slice n stands for the voxel (origin + step * (row, column), slices[n]) of the scan
    after its axes were reordered to canonical RAS+ (right, anterior, superior).
    """

    affine: list[float]  # 16 numbers, row-major: stored voxel -> scanner mm (NIfTI-1)
    shape: list[int]  # the scan's own spatial shape [i, j, k]
    orientation: list[int]  # 6 numbers: stored axis n becomes RAS axis [2n], mirrored if [2n+1] is -1
    origin: list[float]  # canonical voxel [x, y] under network pixel (0, 0)
    step: list[float]  # canonical voxels per network pixel along x and y
    size: list[int]  # network rows and columns
    slices: list[int]  # canonical z of each slice in this message


def restore(mask: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Masks [n, rows, columns] of ``geometry.slices`` on the scan's own grid: uint8 ``geometry.shape``.

    Nearest neighbour; voxels outside what the network saw are 0.
    """
    stored_axis, mirrored = geometry.orientation[::2], geometry.orientation[1::2]
    canonical_shape = [geometry.shape[stored_axis.index(axis)] for axis in range(3)]
    canonical = np.zeros(canonical_shape, dtype=np.uint8)
    taken, inside = [], []
    for axis in (0, 1):
        voxels = np.arange(canonical_shape[axis])
        pixel = np.floor((voxels - geometry.origin[axis]) / geometry.step[axis] + 0.5).astype(int)
        inside.append(voxels[(pixel >= 0) & (pixel < mask.shape[axis + 1])])
        taken.append(pixel[inside[axis]])
    planes = mask[:, taken[0][:, None], taken[1][None, :]]
    canonical[np.ix_(inside[0], inside[1], geometry.slices)] = planes.transpose(1, 2, 0)
    stored = canonical.transpose(stored_axis)
    return np.ascontiguousarray(np.flip(stored, tuple(axis for axis in range(3) if mirrored[axis] < 0)))


def voxel_ml(geometry: Geometry) -> float:
    """The volume of one voxel of the scan's own grid, in millilitres."""
    affine = np.array(geometry.affine).reshape(4, 4)
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000


def check_geometry(geometry: Geometry) -> None:
    """Raise ProtocolError where a geometry that was read makes no sense."""
    lengths = {"affine": 16, "shape": 3, "orientation": 6, "origin": 2, "step": 2, "size": 2}
    for name, length in lengths.items():
        if len(getattr(geometry, name)) != length:
            raise ProtocolError(f"geometry.{name}: expected {length} numbers, got {len(getattr(geometry, name))}")
    if not all(0 < size <= MAX_SIDE for size in (*geometry.shape, *geometry.size)):
        raise ProtocolError(f"geometry.shape, geometry.size: expected sizes from 1 to {MAX_SIDE}")
    if prod(geometry.shape) > MAX_VOXELS:
        raise ProtocolError(f"geometry.shape: {geometry.shape} is over the limit of {MAX_VOXELS} voxels")
    if sorted(geometry.orientation[::2]) != [0, 1, 2] or {*geometry.orientation[1::2]} - {1, -1}:
        raise ProtocolError("geometry.orientation: expected the axes 0, 1, 2, each followed by 1 or -1")
    if not all(step > 0 for step in geometry.step):
        raise ProtocolError("geometry.step: expected numbers over 0")
    height = geometry.shape[geometry.orientation[::2].index(2)]
    if not geometry.slices or not all(0 <= z < height for z in geometry.slices):
        raise ProtocolError(f"geometry.slices: expected slices from 0 to {height - 1}")
    if len(set(geometry.slices)) < len(geometry.slices):
        raise ProtocolError("geometry.slices: a slice is there twice")

"""The position of the network's pixels in a scan, and masks on the scan's own grid."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from gliaflow_proto.errors import ProtocolError

MAX_SIDE = 2**15 - 1  # NIfTI-1 stores a side in 16 bits
MAX_VOXELS = 2**28  # 512 x 512 x 1024
MAX_PLACE = 1e6  # mm or voxels: within a kilometre of the scanner, so that results are finite
MAX_STEP = 1e4
MIN_VOLUME = 1e-9  # mm³, of a voxel
RESTORED_AT_ONCE = 2**20  # voxels: the slices of a copy; neighbours in memory are written together


@dataclass(frozen=True, kw_only=True)
class Forms:
    """How a scan's NIfTI header states its place, so that the mask's header states it in the same words (NIfTI-1)."""

    pixdim: list[float]  # the first 4: qfac, and the voxel's sides
    units: int  # xyzt_units
    qform_code: int
    sform_code: int
    quatern: list[float]  # b, c, d and the offsets x, y, z
    srow: list[float]  # 12 numbers: srow_x, srow_y, srow_z


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The position of the network's pixels in the scan, so that a mask can be mapped onto the scan's own grid.

    Pixel (row, column) of slice n is the voxel (origin + step * (row, column), slices[n]) of the scan
    after its axes are reordered to canonical RAS+ (right, anterior, superior).
    """

    affine: list[float]  # 16 numbers, row-major: stored voxel -> scanner mm (NIfTI-1)
    shape: list[int]  # the scan's own spatial shape [i, j, k]
    orientation: list[int]  # 6 numbers: stored axis n becomes RAS axis [2n], mirrored if [2n+1] is -1
    origin: list[float]  # canonical voxel [x, y] under network pixel (0, 0)
    step: list[float]  # canonical voxels per network pixel along x and y
    size: list[int]  # network rows and columns
    slices: list[int]  # canonical z of each slice in this message
    forms: Forms | None = None  # None: the scan is not NIfTI, or of an earlier version


def restore(mask: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Map masks [n, rows, columns] of ``geometry.slices`` onto the scan's own grid: uint8 ``geometry.shape``.

    Nearest neighbour; voxels outside the network's input are 0.

    Raises
    ------
    ValueError: there are not as many masks as slices.
    """
    if len(mask) != len(geometry.slices):
        raise ValueError(f"{len(mask)} masks for {len(geometry.slices)} slices")
    stored_axis, mirrored = geometry.orientation[::2], geometry.orientation[1::2]
    stored = np.zeros(geometry.shape, dtype=np.uint8)
    # a view of the same voxels along the canonical axes
    canonical = np.flip(stored, tuple(axis for axis in range(3) if mirrored[axis] < 0)).transpose(
        np.argsort(stored_axis)
    )
    pixel = []  # the network's row or column nearest to each canonical voxel: it never decreases
    for axis in (0, 1):
        voxels = np.arange(canonical.shape[axis])
        pixel.append(np.floor((voxels - geometry.origin[axis]) / geometry.step[axis] + 0.5).astype(int))
    # only the box of the tumour is written: all else is 0, and most of a mask is
    with_tumour = np.flatnonzero(mask.any(axis=(1, 2)))
    at_once = max(1, RESTORED_AT_ONCE // prod(canonical.shape[:2]))
    for start in range(0, len(with_tumour), at_once):
        some = with_tumour[start : start + at_once]
        planes = mask[some]
        places, z, outline = [], np.asarray(geometry.slices)[some], np.bitwise_or.reduce(planes, axis=0)
        for axis in (0, 1):
            inside = np.flatnonzero(outline.any(axis=1 - axis))
            place = slice(*np.searchsorted(pixel[axis], [inside[0], inside[-1] + 1]))
            planes = planes.take(pixel[axis][place], axis=axis + 1)
            places.append(place)
        in_row = slice(z[0], z[-1] + 1) if (np.diff(z) == 1).all() else z  # written faster than by their numbers
        canonical[places[0], places[1], in_row] = planes.transpose(1, 2, 0)
    return stored


def voxel_ml(geometry: Geometry) -> float:
    """The volume of one voxel of the scan's own grid, in millilitres."""
    affine = np.array(geometry.affine).reshape(4, 4)
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000


def check_geometry(geometry: Geometry) -> None:
    """Raise ProtocolError if the values of a geometry are not possible."""
    check_affine(geometry.affine, "geometry.affine")
    lengths = {"shape": 3, "orientation": 6, "origin": 2, "step": 2, "size": 2}
    for name, length in lengths.items():
        if len(getattr(geometry, name)) != length:
            raise ProtocolError(f"geometry.{name}: expected {length} numbers, got {len(getattr(geometry, name))}")
    if not all(0 < size <= MAX_SIDE for size in (*geometry.shape, *geometry.size)):
        raise ProtocolError(f"geometry.shape, geometry.size: expected sizes from 1 to {MAX_SIDE}")
    if prod(geometry.shape) > MAX_VOXELS:
        raise ProtocolError(f"geometry.shape: {geometry.shape} is over the limit of {MAX_VOXELS} voxels")
    if sorted(geometry.orientation[::2]) != [0, 1, 2] or {*geometry.orientation[1::2]} - {1, -1}:
        raise ProtocolError("geometry.orientation: expected the axes 0, 1, 2, each followed by 1 or -1")
    if not all(1 / MAX_STEP <= step <= MAX_STEP for step in geometry.step):
        raise ProtocolError(f"geometry.step: expected numbers from {1 / MAX_STEP:g} to {MAX_STEP:g}")
    if not all(abs(place) <= MAX_PLACE for place in geometry.origin):
        raise ProtocolError(f"geometry.origin: expected numbers within ±{MAX_PLACE:g}")
    height = geometry.shape[geometry.orientation[::2].index(2)]
    if not geometry.slices or not all(0 <= z < height for z in geometry.slices):
        raise ProtocolError(f"geometry.slices: expected slices from 0 to {height - 1}")
    if len(set(geometry.slices)) < len(geometry.slices):
        raise ProtocolError("geometry.slices: a slice is listed twice")


def check_forms(forms: Forms) -> None:
    """Raise ProtocolError if the values do not fit into a NIfTI-1 header."""
    for name, length in {"pixdim": 4, "quatern": 6, "srow": 12}.items():
        numbers = getattr(forms, name)
        if len(numbers) != length or not all(abs(number) <= MAX_PLACE for number in numbers):
            raise ProtocolError(f"forms.{name}: expected {length} numbers within ±{MAX_PLACE:g}, got {len(numbers)}")
    if not (0 <= forms.units <= 255 and 0 <= forms.qform_code <= 2**15 - 1 and 0 <= forms.sform_code <= 2**15 - 1):
        raise ProtocolError("forms.units, forms.qform_code, forms.sform_code: out of range")


def check_affine(affine: list[float], where: str) -> None:
    """Raise ProtocolError if the affine gives voxels no position or no volume."""
    if len(affine) != 16 or not all(abs(place) <= MAX_PLACE for place in affine):
        raise ProtocolError(f"{where}: expected 16 numbers within ±{MAX_PLACE:g}, got {len(affine)}")
    a, b, c, _, d, e, f, _, g, h, i, *_ = affine
    if abs(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)) < MIN_VOLUME:
        raise ProtocolError(f"{where}: its voxels have no volume")

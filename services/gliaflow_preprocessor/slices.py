"""Cut a volume into slices for the U-Net (``gliaflow_proto.restore`` maps their masks back onto the scan).

Serving and training both use ``prepare``, so that the network sees the same input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gliaflow_plugins.nibabel_alone import nib, voxel_sizes
from gliaflow_proto import Geometry
from gliaflow_proto.geometry import MAX_VOXELS
from gliaflow_runtime.bundle.manifest import InputSpec
from numpy.typing import NDArray

from gliaflow_preprocessor.intensities import fit_float32
from gliaflow_preprocessor.resampling import resampling
from gliaflow_preprocessor.scaling import IntensityScale, UnusableScan, fill_not_finite

__all__ = ["Plane", "Prepared", "UnusableScan", "native", "prepare", "prepare_mask", "resample"]

EMPTY = 0.005  # a slice with less head than this share of its pixels is dropped
TOGETHER = 4  # slices that are resampled at a time: larger arrays than these cost a page fault for each 4 KiB

Plane = Callable[[slice, slice, int], NDArray[Any]]
"""Gives voxels [x, y] of a canonical slice z of the scan: rows of x, columns of y."""


@dataclass(frozen=True)
class Prepared:
    """``image`` float32 [n, rows, columns], normalised; ``geometry`` has the position of each slice in the scan."""

    image: NDArray[np.float32]
    geometry: Geometry


def prepare(volume: NDArray[Any], affine: NDArray[Any], spec: InputSpec) -> Prepared:
    """Cut a FLAIR scan into normalised axial slices on the bundle's grid.

    Axes are reordered to canonical RAS+, intensities scaled so that air is 0 and the median of the head 1
    (scanner units are arbitrary), each slice resampled in-plane to ``spec.spacing`` and cropped or padded about the
    middle of the head to ``spec.size``, slices without head dropped, and pixels normalised by the bundle's mean and
    standard deviation (paper section 3.5).

    Parameters
    ----------
    volume: [i, j, k] of any real dtype, in stored order.
    affine: [4, 4], stored voxel to mm.

    Raises
    ------
    UnusableScan: the volume shows no head, or has too many slices for so many sequences.
    """
    orientation = nib.io_orientation(affine)
    if np.isnan(orientation).any():
        raise UnusableScan("the affine is singular: it maps the scan's axes onto fewer than three directions")
    volume = native(volume)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = IntensityScale.of(volume)
    mass = _mass(scale.find_head(volume), orientation)
    spacing = voxel_sizes(affine @ nib.orientations.inv_ornt_aff(orientation, volume.shape))

    step = [spec.spacing[axis] / float(spacing[axis]) for axis in (0, 1)]
    step = [round(s) if abs(s - round(s)) < 1e-3 * s else s for s in step]  # 0.99999 mm is 1 mm: avoid a needless blur
    origin = [_origin(mass[axis], step[axis], spec.size[axis]) for axis in (0, 1)]
    kept = np.flatnonzero(mass[2] / (len(mass[0]) * len(mass[1])) >= EMPTY)
    if not kept.size:
        raise UnusableScan("no slice of it shows a head: open it in a viewer; name another scan, or export it again")
    count = kept.size * len(spec.channels)
    if count * math.prod(spec.size) > MAX_VOXELS:  # as in the assembler
        of = f" of {len(spec.channels)} sequences" if spec.channels[1:] else ""
        raise UnusableScan(f"its {count} slices{of} of {list(spec.size)} pixels have over {MAX_VOXELS} pixels together")
    geometry = Geometry(
        affine=[float(x) for x in np.asarray(affine, dtype=float).ravel()],
        shape=[int(n) for n in volume.shape],
        orientation=[int(x) for x in orientation.ravel()],
        origin=origin,
        step=[float(s) for s in step],
        size=list(spec.size),
        slices=[int(z) for z in kept],
    )
    canonical = nib.apply_orientation(volume, orientation)
    return Prepared(resample(lambda x, y, z: canonical[x, y, z], scale, geometry, spec), geometry)


def prepare_mask(labels: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """A mask's labels [i, j, k] on the network's grid: uint8 [n, rows, columns], nearest neighbour."""
    canonical = nib.apply_orientation(labels, np.array(geometry.orientation, dtype=float).reshape(3, 2))
    nearest, inside = [], []  # for rows and for columns: canonical voxels, and whether they are in the scan
    for axis in (0, 1):
        voxel = np.floor(geometry.origin[axis] + geometry.step[axis] * np.arange(geometry.size[axis]) + 0.5).astype(int)
        inside.append((voxel >= 0) & (voxel < canonical.shape[axis]))
        nearest.append(voxel.clip(0, canonical.shape[axis] - 1))
    planes = canonical[:, :, geometry.slices].transpose(2, 0, 1)
    cut = planes[:, nearest[0][:, None], nearest[1][None, :]]
    return np.asarray(cut * (inside[0][:, None] & inside[1][None, :]), dtype=np.uint8)


def native(volume: NDArray[Any]) -> NDArray[Any]:
    """The volume as short integers, or as float32 that are finite, in the machine's byte order."""
    volume = fit_float32(volume)
    if volume.dtype.kind in "iu" and volume.itemsize <= 2:
        return volume.astype(volume.dtype.newbyteorder("="), copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = volume.astype(np.float32, copy=False)
    if not np.isfinite(numbers).all():
        numbers = numbers.copy(order="K")
        fill_not_finite(numbers)
    return numbers


def resample(voxels: Plane, scale: IntensityScale | None, geometry: Geometry, spec: InputSpec) -> NDArray[np.float32]:
    """The slices float32 [n, rows, columns] of a scan, scaled (None: the voxels are already) and normalised."""
    sides = [geometry.shape[n] for n in np.argsort(geometry.orientation[::2])]  # of x, y and z
    (to_rows, x), (to_columns, y) = (
        resampling(sides[axis], geometry.size[axis], geometry.step[axis], geometry.origin[axis]) for axis in (0, 1)
    )
    image = np.empty((len(geometry.slices), *geometry.size), dtype=np.float32)
    for start in range(0, len(image), TOGETHER):
        part = image[start : start + TOGETHER]
        planes = np.empty((y.stop - y.start, len(part), x.stop - x.start), np.float32)
        for number, z in enumerate(geometry.slices[start : start + TOGETHER]):
            planes[:, number] = voxels(x, y, z).T
        if scale is not None:
            scale.apply(planes)
        columns = (to_columns @ planes.reshape(len(planes), -1)).reshape(-1, *planes.shape[1:])
        pixels = to_rows @ columns.transpose(2, 1, 0).reshape(planes.shape[2], -1)
        pixels -= spec.mean
        pixels /= spec.std
        part[:] = pixels.reshape(-1, len(part), len(columns)).transpose(1, 0, 2)
    return image


def _mass(head: NDArray[np.bool_], orientation: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """How many voxels of the head [i, j, k] each plane across x, y and z has."""
    voxels = head.view(np.uint8)
    along_k, along_j = (voxels.sum(axis=axis, dtype=np.uint16) for axis in (2, 1))  # a side has under 2^16 voxels
    stored = along_k.sum(axis=1, dtype=int), along_k.sum(axis=0, dtype=int), along_j.sum(axis=0, dtype=int)
    turned = [mass[:: int(direction)] for mass, (_, direction) in zip(stored, orientation, strict=True)]
    return [turned[axis] for axis in np.argsort(orientation[:, 0])]


def _origin(mass: NDArray[np.int64], step: float, size: int) -> float:
    """The canonical voxel under network pixel 0, so that the middle of the head is in the middle of the image.

    A whole number, so that a scan with the bundle's spacing is cropped and not interpolated.
    """
    upto = mass.cumsum()
    low, high = np.searchsorted(upto, [0.002 * upto[-1], 0.998 * upto[-1]])
    return float(round((low + high) / 2 - step * (size - 1) / 2))

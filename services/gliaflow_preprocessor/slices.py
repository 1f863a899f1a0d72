"""Cut a volume into slices for the U-Net (``gliaflow_proto.restore`` maps their masks back onto the scan).

Serving and training both use ``prepare``, so that the network sees the same input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gliaflow_plugins.nibabel_alone import nib, voxel_sizes
from gliaflow_proto import Geometry
from gliaflow_proto.geometry import MAX_VOXELS
from gliaflow_runtime.bundle.manifest import InputSpec
from numpy.typing import NDArray
from scipy import ndimage

from gliaflow_preprocessor.intensities import fit_float32

CLIP = 4.0  # in units of the head's median: far above any FLAIR lesion, far below a metal artefact
HEAD = 0.2  # a voxel above this share of the 99.5th percentile is head, not air
FILLED = 0.1  # if this share of voxels has the corners' value, the background was filled in
FILLED_TOLERANCE = 1e-3  # as a share of the range: interpolation changes the value a little
EMPTY = 0.005  # a slice with less head than this share of its pixels is dropped


class UnusableScan(ValueError):
    """The volume shows no head: it is constant, empty or not finite."""


@dataclass(frozen=True)
class Prepared:
    """``image`` float32 [n, rows, columns], normalised; ``geometry`` has the position of each slice in the scan."""

    image: NDArray[np.float32]
    geometry: Geometry

    def part(self, start: int, stop: int) -> Prepared:
        """The slices from ``start`` to ``stop``."""
        slices = self.geometry.slices[start:stop]
        return Prepared(self.image[start:stop], replace(self.geometry, slices=slices))


def prepare(volume: NDArray[Any], affine: NDArray[Any], spec: InputSpec) -> Prepared:
    """Cut a scan into normalised axial slices on the bundle's grid.

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
    UnusableScan: the volume shows no head, or has too many slices.
    """
    orientation = nib.io_orientation(affine)
    if np.isnan(orientation).any():
        raise UnusableScan("the affine is singular: it maps the scan's axes onto fewer than three directions")
    volume = fit_float32(volume)
    with np.errstate(over="ignore", invalid="ignore"):  # _scale treats values that are not finite
        canonical = np.array(nib.apply_orientation(volume, orientation), dtype=np.float32, order="C")
        head = _scale(canonical)
    spacing = voxel_sizes(affine @ nib.orientations.inv_ornt_aff(orientation, volume.shape))

    step = [spec.spacing[axis] / float(spacing[axis]) for axis in (0, 1)]
    step = [round(s) if abs(s - round(s)) < 1e-3 * s else s for s in step]  # 0.99999 mm is 1 mm: avoid a needless blur
    origin = [_origin(head, axis, step[axis], spec.size[axis]) for axis in (0, 1)]
    kept = np.flatnonzero(head.mean(axis=(0, 1)) >= EMPTY)
    if not kept.size:
        raise UnusableScan("no slice of it shows a head: open it in a viewer; name another scan, or export it again")
    if kept.size * math.prod(spec.size) > MAX_VOXELS:  # as in the assembler
        raise UnusableScan(f"its {kept.size} slices of {list(spec.size)} pixels have over {MAX_VOXELS} pixels together")
    geometry = Geometry(
        affine=[float(x) for x in np.asarray(affine, dtype=float).ravel()],
        shape=[int(n) for n in volume.shape],
        orientation=[int(x) for x in orientation.ravel()],
        origin=origin,
        step=[float(s) for s in step],
        size=list(spec.size),
        slices=[int(z) for z in kept],
    )
    image = np.empty((len(kept), *spec.size), dtype=np.float32)
    blur = [max(0.0, (s - 1) / 2) for s in step]  # against aliasing
    for row, z in enumerate(kept):
        plane = canonical[:, :, z]
        if any(blur):
            plane = ndimage.gaussian_filter(plane, blur)
        ndimage.affine_transform(plane, step, origin, spec.size, output=image[row], order=1, cval=0.0)
    image -= spec.mean
    image /= spec.std
    return Prepared(image, geometry)


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


def fill_not_finite(volume: NDArray[np.float32]) -> None:
    """Replace NaN and infinities in place by the lowest finite value. Raises UnusableScan if there is none."""
    finite = np.isfinite(volume)
    if not finite.any():
        raise UnusableScan("it has no finite number: open it in a viewer, and export or download it again")
    if not finite.all():
        volume[~finite] = volume[finite].min()


def _scale(volume: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Scale intensities in place (air 0, median of the head 1, clipped to CLIP), and return where the head is."""
    fill_not_finite(volume)
    _blacken_background(volume)
    air, bright = np.percentile(volume, [1, 99.5])
    volume -= air
    head: NDArray[np.bool_] = volume > HEAD * (bright - air)
    if bright <= air or not head.any():
        raise UnusableScan("it is constant or almost empty: open it in a viewer, and export or download it again")
    volume /= np.median(volume[head])
    np.clip(volume, 0, CLIP, out=volume)
    return head


def _blacken_background(volume: NDArray[np.float32]) -> None:
    """Set a background that was filled with another value than air to the value of air.

    Such scans were normalised before (0 is in the middle of the range), converted from CT conventions (−1000), or
    padded with white. A background between 0 and the darkest part of the head is not changed.
    """
    corner = float(np.median(volume[:: volume.shape[0] - 1, :: volume.shape[1] - 1, :: volume.shape[2] - 1]))
    low, high = np.percentile(volume, [0.5, 99.5])
    background = np.abs(volume - np.float32(corner)) <= FILLED_TOLERANCE * (high - low)
    if background.mean() < FILLED or background.all():
        return
    darkest, dark = np.percentile(volume[~background], [0.5, 5])
    if corner > dark or corner < 0 <= darkest:
        volume[background] = min(0.0, float(darkest))


def _origin(head: NDArray[np.bool_], axis: int, step: float, size: int) -> float:
    """The canonical voxel under network pixel 0, so that the middle of the head is in the middle of the image.

    A whole number, so that a scan with the bundle's spacing is cropped and not interpolated.
    """
    mass = head.sum(axis=tuple(a for a in (0, 1, 2) if a != axis)).cumsum()
    low, high = np.searchsorted(mass, [0.002 * mass[-1], 0.998 * mass[-1]])
    return float(round((low + high) / 2 - step * (size - 1) / 2))

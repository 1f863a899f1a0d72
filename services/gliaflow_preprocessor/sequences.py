"""Another sequence of the study on the FLAIR's slices, so that a pixel shows one place of the head in all channels.

The two may have different grids. Their affines say where they are: nothing is registered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gliaflow_plugins.nibabel_alone import nib
from gliaflow_runtime.bundle.manifest import InputSpec
from numpy.typing import NDArray
from scipy import ndimage

from gliaflow_preprocessor.masks import find_head, voxels_apart
from gliaflow_preprocessor.scaling import IntensityScale, UnusableScan
from gliaflow_preprocessor.slices import Plane, Prepared, native, resample

SAME_VOXELS = 0.01  # grids that are less apart are one
LEAST_COVER, GOOD_COVER = 1 / 3, 0.8  # of the FLAIR's head; a brain without its skull covers about 0.4 of a head
LEAST_SHARED = 0.13  # nats: T1 after contrast of 64 patients has 0.18 or more, 122 of 123 of another patient up to 0.12
LEVELS = 16  # of intensity, each with as many pixels as any other


def prepare_beside(
    volume: NDArray[Any], affine: NDArray[np.float64], flair: Prepared, spec: InputSpec, *, placed: bool = True
) -> tuple[NDArray[np.float32], list[str]]:
    """The slices of another sequence, float32 [n, rows, columns], on those of the FLAIR, and doubts about it.

    Intensities are scaled as the FLAIR's are (``prepare``), by the sequence's own air and head. If its grid is another,
    voxels are interpolated on the FLAIR's grid (trilinear) before they are cut. Outside its image, it is 0, as air.

    Parameters
    ----------
    volume: [i, j, k] of any real dtype, in stored order.
    affine: [4, 4], stored voxel to mm.
    placed: the files of both state where they are (``NiftiScan.is_placed``).

    Raises
    ------
    UnusableScan: it shows no head, or hardly any of the FLAIR's; or it has another grid, and is not ``placed``.
    """
    volume = native(volume)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = IntensityScale.of(volume)
    geometry = flair.geometry
    orientation = np.array(geometry.orientation, dtype=float).reshape(3, 2)
    grid = np.array(geometry.affine).reshape(4, 4)
    if is_same_grid(volume, affine, geometry.shape, grid):
        canonical = nib.apply_orientation(volume, orientation)
        image = resample(lambda x, y, z: canonical[x, y, z], scale, geometry, spec)
    else:
        _check_placed(placed)
        scaled = volume.astype(np.float32)
        del volume
        scale.apply(scaled)
        canonical_grid = grid @ nib.orientations.inv_ornt_aff(orientation, geometry.shape)
        image = resample(_interpolated(scaled, affine, canonical_grid), None, geometry, spec)
    return image, _doubts(image, flair)


def missing_beside(flair: Prepared, spec: InputSpec) -> NDArray[np.float32]:
    """The slices of a sequence that a scan lacks, as the network learned to do without it: air."""
    return np.full_like(flair.image, -spec.mean / spec.std)


def on_grid(
    volume: NDArray[Any],
    affine: NDArray[np.float64],
    shape: tuple[int, ...],
    grid: NDArray[np.float64],
    *,
    placed: bool = True,
) -> NDArray[Any]:
    """A volume on the grid of another, of this shape and affine: as it is, or interpolated, 0 outside.

    Interpolated short integers are rounded; all others become float32.

    ``placed``: as for ``prepare_beside``.

    Raises
    ------
    UnusableScan: the affine is singular; or the grid is another, and the files are not ``placed``.
    """
    if is_same_grid(volume, affine, shape, grid):
        return volume
    _check_placed(placed)
    volume = native(volume)
    plane = _interpolated(volume.astype(np.float32, copy=False), affine, grid)
    moved = np.empty(shape, volume.dtype)
    for z in range(shape[2]):
        values = plane(slice(0, shape[0]), slice(0, shape[1]), z)
        moved[:, :, z] = np.rint(values) if volume.dtype.kind in "iu" else values
    return moved


def _check_placed(placed: bool) -> None:
    if not placed:
        raise UnusableScan(
            "its grid is not the FLAIR's, and one of the two files does not state where its image is (sform_code and "
            "qform_code are 0, or the affine is the identity): convert both anew from DICOM, or register it to the "
            "FLAIR scan"
        )


def is_same_grid(
    volume: NDArray[Any], affine: NDArray[np.float64], shape: Sequence[int], grid: NDArray[np.float64]
) -> bool:
    """Whether the volume is on the grid of this shape and affine, to ``SAME_VOXELS``."""
    return [*volume.shape] == [*shape] and voxels_apart(affine, grid, volume.shape) < SAME_VOXELS


def _interpolated(volume: NDArray[np.float32], affine: NDArray[Any], grid: NDArray[Any]) -> Plane:
    """Planes of ``volume`` on another grid, given by its affine; 0 outside."""
    try:
        to_voxel = np.linalg.solve(affine, grid)
    except np.linalg.LinAlgError:
        raise UnusableScan("the affine is singular: it maps the scan's axes onto fewer than three directions") from None

    def plane(x: slice, y: slice, z: int) -> NDArray[Any]:
        start = to_voxel @ [x.start, y.start, z, 1]
        shape = (x.stop - x.start, y.stop - y.start, 1)
        # "grid-constant": what rounding puts just beyond the last voxel is that voxel, and not 0
        placed = ndimage.affine_transform(
            volume, to_voxel[:3, :3], start[:3], shape, order=1, mode="grid-constant", prefilter=False
        )
        return np.asarray(placed[:, :, 0])

    return plane


def _doubts(image: NDArray[np.float32], flair: Prepared) -> list[str]:
    """It covers a part of the FLAIR's head only, or seems to show another head. Raises UnusableScan: hardly any."""
    images = flair.image[:, ::2, ::2], image[:, ::2, ::2]  # every second pixel is enough
    head, own = map(find_head, images)
    cover = float((own & head).sum() / max(1, head.sum()))
    if cover < LEAST_COVER:
        raise UnusableScan(
            f"by the files' affines, it covers {cover:.0%} of the head in the FLAIR scan, and at least "
            f"{LEAST_COVER:.0%} is needed: is it of the same patient and visit? If so, register it to the FLAIR scan, "
            "or convert both anew from DICOM"
        )
    doubts = []
    if cover < GOOD_COVER:
        doubts.append(f"it covers {cover:.0%} of the head in the FLAIR scan; elsewhere it counts as air")
    if shared_information(*(pixels[head & own] for pixels in images)) < LEAST_SHARED:
        doubts.append(
            "by the files' affines, its anatomy is not that of the FLAIR scan: is it of the same patient and visit? If "
            "so, register it to the FLAIR scan"
        )
    return doubts


def shared_information(first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]]) -> float:
    """The mutual information in nats of two images' pixels [n], by ``LEVELS`` of each (Maes et al. 1997).

    It is high if the intensity of one predicts that of the other, whatever the contrast, and about 0 if it does not.
    """
    shares = np.linspace(0, 1, LEVELS + 1)[1:-1]
    one, other = (np.searchsorted(np.quantile(pixels, shares), pixels) for pixels in (first, second))
    table = np.bincount(LEVELS * one + other, minlength=LEVELS**2).reshape(LEVELS, LEVELS)
    joint = table / max(1, len(first))
    alone = np.outer(joint.sum(axis=1), joint.sum(axis=0))
    some = joint > 0
    return float((joint[some] * np.log(joint[some] / alone[some])).sum())

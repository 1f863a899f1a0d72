"""Masks to learn from: 0 outside the tumour, whole labels inside, on the scan's grid. Anything else is refused.

The limits are far from true masks: the largest tumour of 71 patients covers 10 % of the head, that of 100 phantoms
a quarter, and under 5 % of a tumour is outside the head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gliaflow_plugins.nibabel_alone import nib, voxel_sizes
from gliaflow_proto import Geometry
from numpy.typing import NDArray
from scipy import ndimage

from gliaflow_preprocessor.nifti import SeveralVolumes, read_nifti
from gliaflow_preprocessor.scaling import HEAD
from gliaflow_preprocessor.slices import prepare_mask

WHOLE = 0.01  # a value this close to a whole number is that number: files that scale integers round them
MAX_LABELS = 32  # more different values are an image
MAX_SHARE = 1 / 3  # of the head: a larger mask is a mask of the brain, or inverted
MIN_SHARE = 2e-4  # of the head: a smaller tumour is doubtful
MAX_OUTSIDE = 1 / 3  # of the tumour: if more is outside the head, the mask is another scan's
MAX_APART = 0.5  # voxels between the mask's corners and the scan's
RING_MM = 9.0  # around the tumour: the head there is what it is compared with
BRIGHT = 75  # percentile that is compared: a core without blood is dark, and may be half of a tumour


DARK = (
    "the marked voxels are darker than the head around them, and a tumour is bright: is it another scan's mask, or "
    "mirrored?"
)


class MaskError(ValueError):
    """The file is not a mask of this scan's tumour. The text names what is in it, and the remedy."""


def read_mask(data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The labels [i, j, k] of a mask in stored order, 0 outside the tumour, and its affine [4, 4].

    Labels over 255 become 255. A mask of 0 and one fraction (255 that was scaled to 1, say) has label 1 there.

    Raises
    ------
    NiftiError: the file cannot be read.
    MaskError: its voxels are not 0 and whole labels.
    """
    try:
        voxels, affine = read_nifti(data)
    except SeveralVolumes as error:
        raise MaskError(
            f"a 4-D file {list(error.shape)} (one volume for each label?): save one 3-D volume of whole labels, 0 "
            "outside the tumour"
        ) from None
    return _labels(voxels), affine


def cut_mask(data: bytes, geometry: Geometry, image: NDArray[np.floating[Any]]) -> tuple[NDArray[np.uint8], list[str]]:
    """A scan's mask on the slices that ``prepare`` cut, uint8 [n, rows, columns], and what is doubtful about it.

    Parameters
    ----------
    data: the mask's file.
    geometry, image: of the scan's slices.

    Raises
    ------
    NiftiError: the file cannot be read.
    MaskError: it is not a mask of this scan's tumour.
    """
    return place_mask(*read_mask(data), geometry, image)


def place_mask(
    labels: NDArray[np.uint8], affine: NDArray[np.float64], geometry: Geometry, image: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.uint8], list[str]]:
    """As ``cut_mask``, of the labels and the affine that ``read_mask`` returns."""
    if list(labels.shape) != list(geometry.shape):
        raise MaskError(f"shape {list(labels.shape)}, but its scan has {list(geometry.shape)}")
    apart = voxels_apart(affine, np.array(geometry.affine).reshape(4, 4), labels.shape)
    if apart > MAX_APART:
        raise MaskError(
            f"its affine puts it up to {apart:.3g} voxels away from its scan; resample it onto the scan's grid, or "
            "repair its header"
        )
    planes = prepare_mask(labels, geometry)
    if not labels.any():
        return planes, ["the mask is empty; the patient counts as one without tumour"]
    head, tumour = find_head(image), planes > 0
    share = (tumour & head).sum() / head.sum()
    if share > MAX_SHARE:
        raise MaskError(
            f"it covers {share:.0%} of the head, and at most {MAX_SHARE:.0%} can be tumour: is it inverted, or a mask "
            "of the brain?"
        )
    outside = 1 - (tumour & head).sum() / max(1, tumour.sum())
    if outside > MAX_OUTSIDE:
        raise MaskError(
            f"{outside:.0%} of its {np.count_nonzero(labels):,} tumour voxels are outside the head: is it another "
            "scan's mask?"
        )
    doubts = []
    if share < MIN_SHARE:
        doubts.append(f"only {np.count_nonzero(labels):,} voxels of tumour, under {MIN_SHARE:.2%} of the head")
    if _is_dark(tumour, head, image, geometry):
        doubts.append(DARK)
    return planes, doubts


def _labels(voxels: NDArray[Any]) -> NDArray[np.uint8]:
    flat = voxels.ravel(order="K")
    not_zero = flat[flat != 0]
    values = np.unique(not_zero)
    if not np.isfinite(values).all():
        raise MaskError("it has NaN or infinite values; save 0 in their place")
    has_zero = len(not_zero) < len(flat)
    if has_zero and len(values) == 1 and 0 < values[0] < 1:
        return np.asarray(voxels != 0, dtype=np.uint8)
    if has_zero:
        values = np.append(values, 0)
    if not values.size:
        return np.zeros(voxels.shape, np.uint8)
    low, high = float(values.min()), float(values.max())
    text = f"{len(values):,} different values from {low:.4g} to {high:.4g}"
    nearest = np.rint(values)
    if (np.abs(values - nearest) > WHOLE).any() or (values.any() and not nearest.any()):
        if low > -1 and high < 2:
            raise MaskError(
                f"{text}: a probability map, a mask that was resampled with interpolation, or an image; threshold a "
                "probability map at 0.5 and save 0 and 1, or resample the original mask with nearest neighbour"
            )
        raise MaskError(
            f"{text}, with fractions: an image, or labels that were resampled with interpolation; resample the "
            "original with nearest neighbour"
        )
    labels = np.unique(nearest)
    if len(labels) > MAX_LABELS:
        raise MaskError(f"{text}: an image or a probability map, not labels; save 0 and the labels of the tumour")
    if low < -WHOLE:
        raise MaskError(f"{text}: labels below 0 (was a label over 127 saved as int8?); save 0 and labels above 0")
    if labels.all():
        listed = ", ".join(f"{label:g}" for label in labels)
        raise MaskError(f"no voxel is 0, the labels are {listed}: save 0 outside the tumour")
    return voxels if voxels.dtype == np.uint8 else np.asarray(np.minimum(np.rint(voxels), 255), dtype=np.uint8)


def find_head(image: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Where the head is on slices [n, rows, columns], dark tissue inside it included."""
    sample = image[:, ::2, ::2].astype(np.float32)
    air, bright = sample.min(), np.percentile(sample, 99.5)
    head = image.astype(np.float32) > air + HEAD * (bright - air)
    return _between(head, 1) & _between(head, 2)


def _is_dark(
    tumour: NDArray[np.bool_], head: NDArray[np.bool_], image: NDArray[np.floating[Any]], geometry: Geometry
) -> bool:
    """Whether the brightest quarter of the tumour is darker than that of the head around it.

    Not than that of the whole head: a scan may be brighter where the tumour is not, at a coil or in the skin.
    """
    canonical = np.array(geometry.affine).reshape(4, 4) @ nib.orientations.inv_ornt_aff(
        np.array(geometry.orientation, dtype=float).reshape(3, 2), geometry.shape
    )
    sides = voxel_sizes(canonical)[:2] * geometry.step
    inside, around = [], []
    for z in np.flatnonzero(tumour.any(axis=(1, 2))):
        away = ndimage.distance_transform_edt(~tumour[z], sampling=sides)
        inside.append(image[z][tumour[z]])
        around.append(image[z][(away > 0) & (away <= RING_MM) & head[z]])
    if not any(map(len, around)):
        return False
    marked, others = (np.percentile(np.concatenate(each), BRIGHT) for each in (inside, around))
    return bool(marked < others)


def _between(head: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Each line of pixels along ``axis`` filled from its first pixel of the head to its last."""
    from_first = np.logical_or.accumulate(head, axis)
    to_last = np.flip(np.logical_or.accumulate(np.flip(head, axis), axis), axis)
    return np.asarray(from_first & to_last)


def voxels_apart(mask: NDArray[np.float64], scan: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """The largest distance, in the scan's voxels, between the places that two affines give a corner of the grid."""
    corners = np.array([*np.ndindex(2, 2, 2)]) * (np.array(shape) - 1)
    corners = np.c_[corners, np.ones(8)].T
    return float(np.abs(np.linalg.solve(scan, mask @ corners) - corners).max())

"""A mask to learn from has 0 and whole labels on its scan's grid. Anything else is refused, with what it is."""

from __future__ import annotations

from collections.abc import Callable

import nibabel as nib
import numpy as np
import pytest
from gliaflow_preprocessor.masks import DARK, MAX_SHARE, MaskError, cut_mask, prepare_mask, read_mask
from gliaflow_preprocessor.slices import Prepared, prepare
from gliaflow_runtime.bundle.manifest import InputSpec
from numpy.typing import NDArray
from scipy import ndimage

SHAPE, AFFINE = (40, 48, 12), np.diag([4.0, 4.0, 6.0, 1.0])
X, Y, Z = np.meshgrid(*(np.linspace(-1, 1, side) for side in SHAPE), indexing="ij")
HEAD = X**2 + Y**2 + Z**2 < 0.8
TUMOUR = (X - 0.2) ** 2 + Y**2 + Z**2 < 0.1
LABELS = (2 * TUMOUR + 2 * ((X - 0.2) ** 2 + Y**2 + Z**2 < 0.03)).astype(np.uint8)  # 2 the oedema, 4 the core
SOFT = ndimage.gaussian_filter(TUMOUR.astype(np.float32), 1.5)


def scan() -> NDArray[np.int16]:
    noise = np.random.default_rng(0).normal(0, 15, SHAPE)
    return (HEAD * (300 + noise) + 250 * TUMOUR).clip(0).astype(np.int16)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(scan(), AFFINE, InputSpec(size=(64, 64), spacing=(4.0, 4.0)))


def nifti(voxels: NDArray[np.generic], affine: NDArray[np.float64] = AFFINE) -> bytes:
    return bytes(nib.Nifti1Image(voxels, affine).to_bytes())


def scaled_to_uint8(voxels: NDArray[np.generic]) -> bytes:
    """As nibabel saves floats in a header of uint8: with a scale that makes 0, 1.004, 2.008 and 4 of 0, 1, 2 and 4."""
    image = nib.Nifti1Image(voxels.astype(np.float32), AFFINE)
    image.header.set_data_dtype(np.uint8)
    return bytes(image.to_bytes())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (nifti(LABELS), LABELS),
        (nifti(TUMOUR.astype(np.uint8)), TUMOUR),
        (nifti(TUMOUR.astype(np.uint8) * np.uint8(255)), TUMOUR * 255),
        (nifti(TUMOUR.astype(np.int8)), TUMOUR),
        (nifti(LABELS.astype(np.float64)), LABELS),
        (nifti(LABELS.astype(np.uint16) * np.uint16(1000)), (LABELS > 0) * 255),
        (nifti(LABELS + np.float32(1e-6) * np.random.default_rng(0).random(SHAPE).astype(np.float32)), LABELS),
        (scaled_to_uint8(LABELS), LABELS),
        (nifti(TUMOUR * np.float32(1 / 255)), TUMOUR),
        (nifti(LABELS[..., None]), LABELS),
    ],
    ids=["BraTS", "0-1", "0-255", "int8", "float64", "over 255", "rounding", "scaled", "one fraction", "fourth side 1"],
)
def test_the_ways_in_which_masks_are_saved(data: bytes, expected: NDArray[np.generic]) -> None:
    labels, affine = read_mask(data)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(affine, AFFINE)


@pytest.mark.parametrize(
    ("voxels", "reason"),
    [
        (
            ndimage.zoom(TUMOUR[::2, ::2].astype(np.float32), (2, 2, 1), order=3),
            r"different values from -0\.\d+ to 1\.\d+: .* a mask that was resampled with interpolation",
        ),
        (1 / (1 + np.exp(-20 * (SOFT - 0.5))), "different values from .* to .*: a probability map.* threshold"),
        ((SOFT * 255).astype(np.uint8), r"\d+ different values from 0 to \d+: an image or a probability map"),
        (SOFT * np.float32(0.005), "a probability map"),
        (ndimage.zoom(LABELS[::2, ::2].astype(np.float32), (2, 2, 1), order=1), "resampled with interpolation"),
        (scan(), r"different values from 0 to \d+: an image"),
        (scan() * np.float32(0.37), "with fractions: an image"),
        (TUMOUR.astype(np.uint8) + np.uint8(1), "no voxel is 0, the labels are 1, 2: save 0 outside"),
        (np.ones(SHAPE, np.uint8), "no voxel is 0, the labels are 1"),
        (-TUMOUR.astype(np.int8), "from -1 to 0: labels below 0"),
        (np.where(TUMOUR, 1, np.nan).astype(np.float32), "NaN"),
        (np.where(TUMOUR, np.inf, 0).astype(np.float32), "infinite"),
        (np.stack([~TUMOUR, TUMOUR], axis=-1).astype(np.uint8), r"a 4-D file \[40, 48, 12, 2\] \(one volume for each"),
    ],
    ids=[
        "cubic",
        "probability",
        "probability in 255 steps",
        "faint probability",
        "labels resampled",
        "scan",
        "scan of floats",
        "background 1",
        "all 1",
        "negative",
        "NaN",
        "infinite",
        "one-hot",
    ],
)
def test_voxels_that_are_not_labels_are_named(voxels: NDArray[np.generic], reason: str) -> None:
    with pytest.raises(MaskError, match=reason):
        read_mask(nifti(voxels))


def moved(change: Callable[[NDArray[np.float64]], None]) -> NDArray[np.float64]:
    affine = AFFINE.copy()
    change(affine)
    return affine


@pytest.mark.parametrize(
    "affine",
    [
        np.eye(4),
        moved(lambda affine: affine.__setitem__((0, 3), 30)),
        nib.affines.from_matvec(np.diag([-4.0, 4, 6]), [156, 0, 0]),
        np.diag([4.0, 4.0, 5.0, 1.0]),
    ],
    ids=["unit", "shifted", "mirrored", "other spacing"],
)
def test_a_mask_that_its_header_puts_elsewhere_is_refused(prepared: Prepared, affine: NDArray[np.float64]) -> None:
    with pytest.raises(MaskError, match=r"affine puts it up to \d+\.?\d* voxels away from its scan; resample it"):
        cut_mask(nifti(LABELS, affine), prepared.geometry, prepared.image)


def test_a_mask_a_fraction_of_a_voxel_away_is_used(prepared: Prepared) -> None:
    near = moved(lambda affine: affine.__setitem__((0, 3), 1.0))
    planes, doubts = cut_mask(nifti(LABELS, near), prepared.geometry, prepared.image)
    np.testing.assert_array_equal(planes, prepare_mask(LABELS, prepared.geometry))
    assert doubts == []


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (LABELS[:-1], r"shape \[39, 48, 12\], but its scan has \[40, 48, 12\]"),
        (~TUMOUR, "covers 9.% of the head, and at most 33% can be tumour: is it inverted, or a mask of the brain"),
        (HEAD & (X**2 + Y**2 + Z**2 < 0.55), "covers .*a mask of the brain"),
        (np.roll(TUMOUR, 20, axis=1), "% of its .* tumour voxels are outside the head: is it another scan's mask"),
        (TUMOUR & (Y > 2), None),
    ],
    ids=["shape", "inverted", "brain", "outside", "empty"],
)
def test_the_tumour_is_a_part_of_the_head(prepared: Prepared, mask: NDArray[np.bool_], reason: str | None) -> None:
    data = nifti(mask.astype(np.uint8))
    if reason is None:  # a patient without tumour
        planes, doubts = cut_mask(data, prepared.geometry, prepared.image)
        assert not planes.any()
        assert doubts == ["the mask is empty; the patient counts as one without tumour"]
        return
    with pytest.raises(MaskError, match=reason):
        cut_mask(data, prepared.geometry, prepared.image)


def test_a_tumour_of_a_few_voxels_is_used_and_named(prepared: Prepared) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[24, 24, 6] = 1
    planes, doubts = cut_mask(nifti(mask), prepared.geometry, prepared.image)
    assert planes.sum() == 1
    assert doubts == ["only 1 voxels of tumour, under 0.02% of the head"]


def test_a_tumour_that_is_as_dark_as_air_is_in_the_head() -> None:
    dark = np.where(TUMOUR, 0, scan()).astype(np.int16)
    prepared = prepare(dark, AFFINE, InputSpec(size=(64, 64), spacing=(4.0, 4.0)))
    planes, doubts = cut_mask(nifti(LABELS), prepared.geometry, prepared.image)
    assert planes.any()
    assert doubts == [DARK], "a tumour is bright on FLAIR, so the mask may be another scan's"


def test_a_tumour_is_compared_with_the_head_around_it_and_by_its_bright_part() -> None:
    """A dark core may be most of a tumour, and a coil may make the other half of the head brighter than a tumour."""
    core = (X - 0.2) ** 2 + Y**2 + Z**2 < 0.075
    coil = 1 + 2 * np.clip(-X, 0, None)
    voxels = (np.where(core, 100, scan()) * coil).astype(np.int16)
    spec = InputSpec(size=(64, 64), spacing=(4.0, 4.0))
    prepared = prepare(voxels, AFFINE, spec)
    right, mirrored = LABELS, np.ascontiguousarray(LABELS[::-1])
    planes, doubts = cut_mask(nifti(right), prepared.geometry, prepared.image)
    assert np.median(prepared.image[planes > 0]) < np.median(prepared.image[prepared.image > 0.3])
    assert doubts == []
    dark = np.where(TUMOUR[::-1], 150, scan()).astype(np.int16)  # a place that is darker than what is around it
    prepared = prepare(dark, AFFINE, spec)
    assert cut_mask(nifti(mirrored), prepared.geometry, prepared.image)[1] == [DARK]


def test_the_largest_tumours_are_far_from_the_limit(prepared: Prepared) -> None:
    """The largest of 71 real tumours covers a tenth of its head, and the largest phantom's a fifth."""
    large = (X - 0.1) ** 2 + Y**2 + Z**2 < 0.25
    assert MAX_SHARE / 2 < large.sum() / HEAD.sum() < MAX_SHARE
    _, doubts = cut_mask(nifti(large.astype(np.uint8)), prepared.geometry, prepared.image)
    assert doubts == []

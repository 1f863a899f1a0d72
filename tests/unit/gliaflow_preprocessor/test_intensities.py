"""A scan's numbers: no offset, width or unit costs contrast, and doubtful numbers are named."""

from __future__ import annotations

import re

import nibabel as nib
import numpy as np
import pytest
from gliaflow_preprocessor.intensities import doubts
from gliaflow_preprocessor.nifti import read_scan
from gliaflow_preprocessor.slices import prepare
from gliaflow_runtime.bundle.manifest import InputSpec

SPEC = InputSpec(size=(48, 48), spacing=(5, 5))
AFFINE = np.diag([-5.0, -5, 8, 1])


def head() -> np.ndarray:
    """Whole numbers from 0 to about 500: an ellipsoid with noise and a bright lesion."""
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in (40, 48, 12)), indexing="ij")
    volume = (i**2 + j**2 + k**2 < 0.8) * np.random.default_rng(0).normal(300, 15, i.shape)
    return np.asarray((volume + 200 * ((i - 0.3) ** 2 + j**2 + k**2 < 0.04)).astype(np.int64))


def cut(volume: np.ndarray, slope: tuple[float, float] | None = None) -> np.ndarray:
    image = nib.Nifti1Image(volume, AFFINE, dtype=volume.dtype)
    raw = bytearray(image.to_bytes())
    if slope is not None:
        raw[112:120] = np.array(slope, np.float32).tobytes()  # scl_slope, scl_inter
    scan = read_scan(bytes(raw))
    return prepare(scan.volume, scan.affine, SPEC).image


@pytest.mark.parametrize(
    ("dtype", "offset"),
    [
        ("u2", 60_000),
        ("u4", 3_000_000_000),
        ("i4", 2_000_000_000),
        ("i4", -2_000_000_000),
        ("i8", 2**53 + 1),
        ("i8", -(2**62)),
        ("u8", 2**63),
        ("f4", 1e5),
        ("f8", 1e9),
        ("f8", -1e12),
    ],
)
def test_an_offset_does_not_change_the_slices(dtype: str, offset: float) -> None:
    volume = head().astype(dtype) + np.dtype(dtype).type(offset)
    assert volume.dtype == dtype
    np.testing.assert_array_equal(cut(volume), cut(head().astype(np.int16)))


@pytest.mark.parametrize("slope", [(1, 1e7), (1, -1e7), (0.5, 1e6), (2, -1024)])
def test_a_large_intercept_does_not_change_the_slices(slope: tuple[float, float]) -> None:
    np.testing.assert_array_equal(cut(head().astype(np.int16), slope), cut(head().astype(np.int16)))


@pytest.mark.parametrize("unit", [2.0**-200, 2.0**-100, 2.0**100, 2.0**900])
def test_a_unit_of_any_size_does_not_change_the_slices(unit: float) -> None:
    np.testing.assert_allclose(cut(head() * unit), cut(head().astype(np.int16)), atol=1e-6)


def test_the_numbers_of_a_scan_give_no_doubt() -> None:
    assert doubts(head().astype(np.int16)) == []
    assert doubts(head() * 0.37 - 40) == []


def labels() -> np.ndarray:
    return np.digitize(head(), [1, 400]).astype(np.uint8)


def regions() -> np.ndarray:
    i, j, k = np.indices((40, 48, 12)) // 8
    return (1000 + 100 * i + 10 * j + k).astype(np.int16)


@pytest.mark.parametrize(
    ("volume", "doubt"),
    [
        (labels(), r"only 3 different values \(0, 1, 2\); is this a label map"),
        (np.eye(40)[:, :, None] * np.ones(12), r"only 2 different values \(0, 1\); is this a label map"),
        (regions(), r"only 60 different values \(.*, …\); is this a label map"),
        (np.where(head() > 0, head(), np.nan), r"\d+ \(\d+ %\) are NaN or infinite"),
        ((head() - 30).astype(np.int16).view(np.uint16), "values from 211 to 65506 .* int16 numbers stored as uint16"),
        ((head() * 100).astype(np.uint16).view(np.int16), "values from .* uint16 numbers stored as int16"),
        (head() + np.where(head() > 0, 100_000, 0), "the head has almost no contrast: values from 100275 to"),
    ],
    ids=["labels", "a mask", "regions", "NaN", "wrapped", "wrapped to signed", "flat"],
)
def test_numbers_that_may_not_be_those_of_a_scan_are_named(volume: np.ndarray, doubt: str) -> None:
    with np.errstate(all="raise"):
        assert any(re.search(doubt, each) for each in doubts(volume)), doubts(volume)

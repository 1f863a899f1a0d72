"""Cutting a scan into slices and mapping its mask back, for any orientation, spacing and size."""

import nibabel as nib
import numpy as np
import pytest
from gliaflow_preprocessor.slices import UnusableScan, prepare, prepare_mask
from gliaflow_proto import restore, voxel_ml
from gliaflow_runtime.bundle.manifest import InputSpec
from hypothesis import given, settings
from hypothesis import strategies as st

SPEC = InputSpec(size=(64, 64), spacing=(3.0, 3.0))


def head(shape=(60, 72, 20), spacing=(3.0, 3.0, 6.0), scale=1.0):
    """An ellipsoid head of noise with a bright tumour, off centre in every direction; its mask and affine."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-80, -100, -40]
    i, j, k = np.meshgrid(*(np.arange(n) / n for n in shape), indexing="ij")
    inside = ((i - 0.5) / 0.4) ** 2 + ((j - 0.5) / 0.4) ** 2 + ((k - 0.5) / 0.45) ** 2 < 1
    tumour = ((i - 0.35) / 0.1) ** 2 + ((j - 0.6) / 0.08) ** 2 + ((k - 0.6) / 0.15) ** 2 < 1
    volume = np.random.default_rng(0).normal(100, 5, shape) * inside + 80.0 * tumour
    return (volume * scale).astype(np.float32), tumour.astype(np.uint8), affine


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


orientations = st.permutations([0, 1, 2]).flatmap(
    lambda axes: st.lists(st.sampled_from([1, -1]), min_size=3, max_size=3).map(
        lambda flips: np.array(list(zip(axes, flips, strict=True)))
    )
)


@settings(max_examples=40, deadline=None)
@given(orientations)
def test_the_stored_orientation_does_not_matter(orientation):
    volume, tumour, affine = head()
    turned = nib.Nifti1Image(volume, affine).as_reoriented(orientation)
    turned_tumour = nib.Nifti1Image(tumour, affine).as_reoriented(orientation)
    expected = prepare(volume, affine, SPEC)
    prepared = prepare(np.asarray(turned.dataobj), turned.affine, SPEC)
    np.testing.assert_array_equal(prepared.image, expected.image)
    back = restore(prepare_mask(tumour, expected.geometry), prepared.geometry)
    assert back.shape == turned.shape
    assert dice(back, np.asarray(turned_tumour.dataobj)) > 0.95


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.floats(0.5, 6.0)] * 3))
def test_a_mask_is_restored_on_a_grid_of_any_spacing(spacing):
    shape = tuple(max(8, round(120 / s)) for s in spacing)
    volume, tumour, affine = head(shape, spacing)
    geometry = prepare(volume, affine, SPEC).geometry
    back = restore(prepare_mask(tumour, geometry), geometry)
    assert back.shape == shape
    assert tumour.sum() < 30 or dice(back, tumour) > 0.7


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_the_scale_of_intensities_does_not_matter(dtype):
    volume, _, affine = head(scale=1.2)
    expected = prepare(np.round(volume), affine, SPEC).image
    np.testing.assert_allclose(prepare(np.round(volume).clip(0).astype(dtype), affine, SPEC).image, expected, atol=0.02)
    np.testing.assert_allclose(prepare(volume.astype(np.float64) * 37, affine, SPEC).image, expected, atol=0.02)


def test_in_a_normalised_scan_the_background_of_zero_becomes_air():
    volume, _, affine = head()
    inside = volume > 0
    normalised = np.where(inside, (volume - volume[inside].mean()) / volume[inside].std(), 0)
    image = prepare(normalised, affine, SPEC).image
    assert image[:, 0, 0].max() == 0, "air is the darkest"
    assert np.median(image[image > 0.2]) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda v: np.where(v > 0, v, -1000),  # CT's air
        lambda v: np.where(v > 0, v, 4095),  # white padding
        lambda v: np.where(v > 0, v, np.random.default_rng(1).normal(0, 1e-2, v.shape)),  # traces of interpolation
        lambda v: v.astype(np.int64) + 2**60,
        lambda v: v.astype(np.uint64) + 2**63,
    ],
    ids=["minus-1000", "white", "interpolated", "int64", "uint64"],
)
def test_a_background_of_any_value_becomes_air(spoil):
    volume, _, affine = head()
    volume = np.round(volume)
    np.testing.assert_allclose(
        prepare(spoil(volume), affine, SPEC).image, prepare(volume, affine, SPEC).image, atol=0.05
    )


def test_a_scan_with_the_bundles_spacing_is_not_interpolated():
    volume, _, affine = head()
    prepared = prepare(volume, affine, SPEC)
    assert prepared.geometry.step == [1.0, 1.0]
    assert all(float(o).is_integer() for o in prepared.geometry.origin)


def test_slices_without_head_are_dropped_and_their_mask_is_empty():
    volume, _, affine = head()
    volume = np.concatenate([np.zeros_like(volume[:, :, :5]), volume], axis=2)
    prepared = prepare(volume, affine, SPEC)
    assert min(prepared.geometry.slices) >= 5
    mask = restore(np.ones((len(prepared.image), 64, 64), np.uint8), prepared.geometry)
    assert not mask[:, :, :5].any()
    assert mask[:, :, 10].any()


def test_a_head_in_the_corner_of_a_large_field_of_view_is_found():
    volume, tumour, affine = head()
    large = np.zeros((200, 200, 20), np.float32)
    large[140:200, 128:200] = volume
    large_tumour = np.zeros(large.shape, np.uint8)
    large_tumour[140:200, 128:200] = tumour
    prepared = prepare(large, affine, SPEC)
    np.testing.assert_array_equal(prepared.image, prepare(volume, affine, SPEC).image)
    assert dice(restore(prepare_mask(large_tumour, prepared.geometry), prepared.geometry), large_tumour) == 1


def test_pixels_are_normalised_by_the_bundles_statistics():
    volume, _, affine = head()
    plain = prepare(volume, affine, SPEC).image
    normalised = prepare(volume, affine, SPEC.model_copy(update={"mean": 0.5, "std": 2.0})).image
    np.testing.assert_allclose(normalised, (plain - 0.5) / 2, atol=1e-6)
    assert 0.9 < np.median(plain[plain > 0.2]) < 1.1, "the median of the head is 1"


def test_voxels_that_are_not_finite_give_finite_slices():
    volume, _, affine = head()
    volume[30, 30, 10], volume[31, 30, 10] = np.nan, np.inf
    assert np.isfinite(prepare(volume, affine, SPEC).image).all()


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_a_volume_without_a_head_is_refused(value):
    with pytest.raises(UnusableScan):
        prepare(np.full((20, 20, 20), value, np.float32), np.eye(4), SPEC)


def test_a_scan_with_too_many_pixels_for_the_assembler_is_refused(monkeypatch):
    monkeypatch.setattr("gliaflow_preprocessor.slices.MAX_VOXELS", 10 * 64 * 64)
    volume, _, affine = head()
    with pytest.raises(UnusableScan, match=r"its \d+ slices of \[64, 64\] pixels have over 40960 pixels together"):
        prepare(volume, affine, SPEC)


def test_the_volume_of_a_voxel_in_millilitres():
    volume, _, affine = head()
    assert voxel_ml(prepare(volume, affine, SPEC).geometry) == pytest.approx(3 * 3 * 6 / 1000)

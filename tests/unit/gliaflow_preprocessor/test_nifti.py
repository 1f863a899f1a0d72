"""NIfTI from untrusted bytes: valid files are read; an error names what is wrong, and takes little memory."""

import gzip
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest
from gliaflow_preprocessor.nifti import NiftiError, read_nifti
from gliaflow_preprocessor.slices import UnusableScan, prepare
from gliaflow_runtime.bundle.manifest import InputSpec
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_scans import BROKEN, GOOD_SHAPE

AFFINE = np.array([[0, -2.0, 0, 5], [1, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])


def volume(dtype):
    return np.random.default_rng(0).integers(0, 100, (5, 6, 7)).astype(dtype)


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "u2", "i4", "u4", "i8", "u8", "f4", ">f4", "f8"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_every_real_dtype_and_both_versions_are_read_gzipped_or_not(dtype, kind, pack):
    expected = volume(dtype)
    image, affine = read_nifti(pack(kind(expected, AFFINE, dtype=np.dtype(dtype)).to_bytes()))
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_allclose(affine, AFFINE)


def test_slope_and_intercept_are_applied():
    image = nib.Nifti1Image(volume("i2"), AFFINE)
    image.header.set_slope_inter(0.5, -3)
    np.testing.assert_allclose(
        read_nifti(image.to_bytes())[0], nib.Nifti1Image.from_bytes(image.to_bytes()).get_fdata()
    )


def test_a_4d_file_needs_the_number_of_its_channel():
    four = np.stack([volume("i2"), volume("i2") + 100, volume("i2") + 200], axis=3)
    data = gzip.compress(nib.Nifti1Image(four, AFFINE).to_bytes())
    np.testing.assert_array_equal(read_nifti(data, channel="1")[0], four[..., 1])
    for channel in (None, "3", "-1", "FLAIR", "9" * 4400):
        with pytest.raises(NiftiError, match="channel"):
            read_nifti(data, channel)


def test_a_4d_file_with_one_volume_is_read_as_3d():
    data = nib.Nifti1Image(volume("i2")[..., None], AFFINE).to_bytes()
    assert read_nifti(data)[0].shape == (5, 6, 7)


def test_a_gzip_file_with_several_members_is_read():
    raw = nib.Nifti1Image(volume("i2"), AFFINE).to_bytes()
    np.testing.assert_array_equal(read_nifti(gzip.compress(raw[:400]) + gzip.compress(raw[400:]))[0], volume("i2"))


@pytest.mark.parametrize("name", BROKEN)
def test_an_error_names_what_is_wrong_and_takes_little_memory(name):
    make, reason = BROKEN[name]
    data = make()
    tracemalloc.start()
    with pytest.raises((NiftiError, UnusableScan), match=reason):
        prepare(*read_nifti(data), InputSpec(size=(48, 48), spacing=(5, 5)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30 * 2**20


def test_a_gzip_header_may_have_long_texts_and_a_checksum():
    raw = nib.Nifti1Image(volume("i2"), AFFINE).to_bytes()
    texts = b"name" * 5000 + b"\0" + b"comment" * 3000 + b"\0"
    header = b"\x1f\x8b\x08\x1e" + bytes(6) + (9).to_bytes(2, "little") + b"extra\0\0\0\0" + texts
    data = header + (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little") + gzip.compress(raw)[10:]
    np.testing.assert_array_equal(read_nifti(data)[0], volume("i2"))
    with pytest.raises(NiftiError):
        read_nifti(data[:20_000])


@pytest.mark.parametrize("shape", [(5, 6, 7), (128, 128, 64)], ids=["small", "over a block of 1 MiB"])
def test_a_file_whose_checksum_is_cut_off_is_read(shape):
    """All voxels are there; only that nothing is damaged cannot be verified."""
    pattern = np.random.default_rng(1).integers(0, 256, 997).astype(np.uint8)
    voxels = np.resize(pattern, shape[::-1]).T
    data = gzip.compress(nib.Nifti1Image(voxels, AFFINE).to_bytes())
    for cut in range(1, 9):
        np.testing.assert_array_equal(read_nifti(data[:-cut])[0], voxels)


def test_a_wrong_checksum_is_refused():
    data = bytearray(gzip.compress(nib.Nifti1Image(volume("i2"), AFFINE).to_bytes()))
    data[-8] ^= 1
    with pytest.raises(NiftiError, match="not a valid gzip file"):
        read_nifti(bytes(data))


def test_thousands_of_empty_gzip_members_before_the_scan_are_skipped():
    raw = nib.Nifti1Image(volume("i2"), AFFINE).to_bytes()
    np.testing.assert_array_equal(read_nifti(gzip.compress(b"") * 5000 + gzip.compress(raw))[0], volume("i2"))


def test_a_decompression_bomb_is_unpacked_only_to_the_size_in_its_header():
    header = nib.Nifti1Image(np.zeros(GOOD_SHAPE, np.int16), np.eye(4)).to_bytes()
    bomb = gzip.compress(header + bytes(300 * 2**20), 1)
    tracemalloc.start()
    read_nifti(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 2**20


@settings(max_examples=300)
@given(st.data())
def test_a_header_with_random_bytes_is_read_or_refused(data):
    raw = bytearray(nib.Nifti1Image(volume("i2"), AFFINE).to_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, 351))] = data.draw(st.integers(0, 255))
    try:
        image, affine = read_nifti(bytes(raw))
    except NiftiError:
        return
    assert image.ndim == 3
    assert np.isfinite(affine).all()

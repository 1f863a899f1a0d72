"""What a browser gets of a scan: a NIfTI file that the console wrote, with straight axes and the same voxels."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from gliaflow.scans import Input
from gliaflow_console import view
from gliaflow_console.view import ALONE, ReadBounds, read_image, shown_step, view_image, view_mask
from gliaflow_preprocessor.nifti import read_scan
from gliaflow_runtime.errors import UsageError
from sample_scans import BROKEN, GOOD_SHAPE, good_scan


def shown(data: bytes) -> Any:
    return nib.Nifti1Image.from_bytes(gzip.decompress(data))


def image_of(volume: np.ndarray, affine: np.ndarray) -> Any:
    return shown(view_image(read_scan(nib.Nifti1Image(volume, affine).to_bytes())))


def turned(codes: str) -> tuple[np.ndarray, np.ndarray]:
    """A volume of 3 x 4 x 5 mm voxels along RAS+, and where it is when it is stored along other axes."""
    volume = np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8)
    affine = np.diag([3.0, 4, 5, 1])
    affine[:3, 3] = -9, -14, -20
    orientation = nib.orientations.axcodes2ornt(codes)
    stored = nib.orientations.apply_orientation(volume, orientation)
    return stored, affine @ nib.orientations.inv_ornt_aff(orientation, volume.shape)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "AIL"])
def test_voxels_are_along_canonical_axes_whatever_the_storage_order(codes: str) -> None:
    image = image_of(*turned(codes))
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert (np.asarray(image.dataobj) == np.arange(6 * 7 * 8).reshape(6, 7, 8)).all()
    assert image.affine[:3, :3] == pytest.approx(np.diag([3, 4, 5]))
    assert image.affine[:3, 3] == pytest.approx([-9, -14, -20])


def test_the_axes_of_an_oblique_scan_are_straight_about_its_centre() -> None:
    volume, affine = turned("RAS")
    cos, sin = np.cos(0.3), np.sin(0.3)
    affine = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ affine
    image, middle = image_of(volume, affine), [2.5, 3, 3.5, 1]
    assert image.affine[:3, :3] == pytest.approx(np.diag([3, 4, 5]), abs=1e-5)
    assert image.affine @ middle == pytest.approx(affine @ middle, abs=1e-4)


def test_the_header_has_nothing_of_the_sender() -> None:
    original = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    original.header["descrip"] = original.header["db_name"] = original.header["aux_file"] = b"<img onerror>"
    original.header["intent_name"] = b"NIFTI_INTENT"
    original.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"<script>alert(1)</script>"))
    raw = gzip.decompress(view_image(read_scan(original.to_bytes())))
    assert b"<" not in raw[:352]
    assert b"INTENT" not in raw
    assert len(raw) == 352 + 2 * 60
    assert int.from_bytes(raw[254:256], "little") == 1, "sform_code"


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([0, 200], np.uint8), np.int16),
        (np.array([-5, 300], np.int16), np.int16),
        (np.array([0, 60000], np.uint16), np.float32),
        (np.array([0, 2**31 - 1], np.int32), np.float32),
        (np.array([0.25, 1e9], np.float64), np.float32),
    ],
)
def test_numbers_are_int16_or_float32_without_overflow(values: np.ndarray, dtype: type) -> None:
    volume = np.resize(values, (4, 4, 4))
    image = image_of(volume, np.eye(4))
    assert image.get_data_dtype() == dtype
    assert np.asarray(image.dataobj) == pytest.approx(volume.astype(np.float64))


def test_values_that_are_not_finite_are_shown_as_the_darkest_one() -> None:
    volume = np.full((4, 4, 4), 7, np.float32)
    volume[0, 0, :3], volume[1] = (np.nan, np.inf, -np.inf), 3
    voxels = np.asarray(image_of(volume, np.eye(4)).dataobj)
    assert (voxels[0, 0, :3] == 3).all()
    assert np.isfinite(np.asarray(image_of(np.full((4, 4, 4), np.nan, np.float32), np.eye(4)).dataobj)).all()


def test_the_range_of_grey_leaves_out_the_brightest_voxels() -> None:
    volume = np.resize(np.arange(100, dtype=np.int16), (20, 20, 20))
    volume[0, 0, 0] = 30000
    image = image_of(volume, np.eye(4))
    assert image.header["cal_max"] < 101
    assert image_of(np.ones((4, 4, 4), np.int16), np.eye(4)).header["cal_max"] == 2, "a range that is not empty"


def test_the_mask_is_on_the_grid_of_the_image() -> None:
    volume, affine = turned("LPS")
    mask = nib.Nifti1Image((volume == 17).astype(np.uint8), np.eye(4))
    seen = shown(view_mask(mask, affine))
    image = image_of(volume, affine)
    assert (seen.affine == image.affine).all()
    assert ((np.asarray(seen.dataobj) == 1) == (np.asarray(image.dataobj) == 17)).all()


def test_of_a_large_scan_every_second_pixel_of_every_slice_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [shown_step(shape) for shape in ((240, 240, 155), (512, 512, 320), (512, 512, 1024))] == [1, 2, 3]
    monkeypatch.setattr(view, "SHOWN_VOXELS", 100)
    volume, affine = turned("RAS")
    image = image_of(volume, affine)
    assert image.shape == (3, 4, 8)
    assert (np.asarray(image.dataobj) == volume[::2, ::2]).all()
    assert image.header.get_zooms() == pytest.approx((6, 8, 5))


def test_an_image_is_read_within_the_bounds(tmp_path: Path) -> None:
    path = good_scan(tmp_path / "a_flair.nii.gz")
    item = Input(path, "a", "a")
    assert read_image(item, ALONE).volume.shape == GOOD_SHAPE
    with pytest.raises(UsageError, match="bytes is over the limit of 100 bytes"):
        read_image(item, ReadBounds(100, 10**6, 10**6))
    with pytest.raises(UsageError, match="over the limit of 1000 bytes"):
        read_image(item, ReadBounds(10**6, 1000, 10**6))
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_image(Input(tmp_path / "gone.nii.gz", "a", "a"), ALONE)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_gives_a_text_without_the_folder_of_the_server(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(BROKEN[name][0]())
    text = ""
    try:
        view_image(read_image(Input(path, "a", "a"), ALONE))
    except UsageError as error:
        text = str(error)
    assert str(tmp_path) not in text
    assert bool(text) == (not name.startswith("all_")), "a scan without a head can still be shown"


def test_a_reader_that_names_the_file_names_it_as_its_sender_did(tmp_path: Path) -> None:
    class Reader:
        def read(self) -> bytes:
            raise ValueError(f"{tmp_path}/P1/IM0001: cut short")

    with pytest.raises(UsageError, match="cannot be read: P1/IM0001: cut short"):
        read_image(Input(tmp_path, "a", "a", volume=Reader()), ALONE)

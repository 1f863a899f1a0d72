"""A mask is in the same place as its scan, in every viewer: its header states the place in the scan's own fields."""

from __future__ import annotations

import gzip
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from gliaflow.answer import PackedMask, write_image
from gliaflow_preprocessor.nifti import read_scan
from gliaflow_proto import PredictionMessage
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat
from sample_messages import ONE_OF_EACH

PREDICTION = next(message for message in ONE_OF_EACH if isinstance(message, PredictionMessage))
SHAPE = (40, 48, 12)
AFFINE = from_matvec(euler2mat(0.1, 0.2, 0.05) @ np.diag([-5.0, 5, 8]), [90, -120, -40])
OTHER = from_matvec(euler2mat(0, 0, 0.3)) @ AFFINE
PLACE = ("sform_code", "qform_code", "xyzt_units", "quatern_b", "quatern_c", "quatern_d")
PLACE += ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z")


def scan(
    kind: Any = nib.Nifti1Image, codes: tuple[int, int] = (1, 1), sform: np.ndarray = AFFINE, **options: Any
) -> Any:
    image = kind(np.zeros((*SHAPE, *options.get("more", ())), np.int16), None, options.get("header"))
    image.set_data_dtype(np.int16)
    image.set_qform(AFFINE, 1, update_affine=False)
    image.set_sform(sform, 1)
    image.header.set_xyzt_units(*options.get("units", ("mm", "sec")))
    image.header["sform_code"], image.header["qform_code"] = codes
    return image


def mask_of(image: Any) -> Any:
    header = bytes(image.header.binaryblock)
    data = header + bytes(4 + 2 * int(np.prod(image.shape)))
    read = read_scan(data, "0" if image.ndim == 4 else None)
    message = replace(
        PREDICTION, mask=np.ones(SHAPE, np.uint8), affine=[float(x) for x in read.affine.ravel()], forms=read.forms
    )
    return PackedMask.of(message).image()


@pytest.mark.parametrize(
    "image",
    [
        scan(),
        scan(codes=(2, 0)),
        scan(codes=(0, 1)),
        scan(codes=(0, 0)),
        scan(codes=(4, 1)),
        scan(sform=OTHER),
        scan(sform=AFFINE @ np.diag([-1.0, 1, 1, 1])),
        scan(more=(3,)),
        scan(nib.Nifti2Image),
        scan(header=nib.Nifti1Header(endianness=">")),
        scan(units=("unknown", "unknown")),
    ],
    ids=["plain", "sform", "qform", "neither", "MNI", "turned", "mirrored", "4-D", "NIfTI-2", "big-endian", "no unit"],
)
def test_a_mask_has_the_scans_own_place(image: Any, tmp_path: Path) -> None:
    write_image(tmp_path / "mask.nii.gz", mask_of(image))
    mask: Any = nib.load(tmp_path / "mask.nii.gz")
    assert mask.shape == SHAPE
    assert mask.get_data_dtype() == np.uint8
    for field in PLACE:
        np.testing.assert_allclose(mask.header[field], image.header[field], rtol=1e-6, err_msg=field)
    np.testing.assert_allclose(mask.header["pixdim"][:4], image.header["pixdim"][:4], rtol=1e-6)
    np.testing.assert_allclose(mask.affine, image.header.get_best_affine(), atol=1e-4)


def test_a_prediction_of_an_earlier_version_has_only_an_affine() -> None:
    mask = PackedMask.of(replace(PREDICTION, forms=None)).image()
    np.testing.assert_allclose(mask.affine.ravel(), PREDICTION.affine)
    assert mask.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("tumour", [0.01, 0.3])
def test_the_file_of_a_mask_has_the_bytes_that_nibabel_writes(tmp_path: Path, tumour: float) -> None:
    voxels = (np.random.default_rng(0).random(SHAPE) < tumour).astype(np.uint8) * np.uint8(3)
    image = PackedMask.of(replace(PREDICTION, mask=voxels)).image()
    np.testing.assert_array_equal(image.dataobj, voxels)
    nib.save(image, tmp_path / "nibabel.nii.gz")
    write_image(tmp_path / "ours.nii.gz", image)
    ours, theirs = (gzip.decompress((tmp_path / f"{name}.nii.gz").read_bytes()) for name in ("ours", "nibabel"))
    assert ours == theirs


def test_a_mask_that_is_all_tumour_takes_few_bytes_a_voxel() -> None:
    packed = PackedMask.of(replace(PREDICTION, mask=np.ones((128, 128, 64), np.uint8)))
    tracemalloc.start()
    packed.image()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20

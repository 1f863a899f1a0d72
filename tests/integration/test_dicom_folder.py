"""The same scan has the same answer as NIfTI and as DICOM, however its series is stored."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import gliaflow
import nibabel as nib
import numpy as np
import pytest
from processes import Command
from pydicom.uid import JPEGLSLossless, RLELossless
from sample_dicom import CANARY, as_nifti, big_endian, enhanced, head, single_frames, write, write_flair

FORMS = ("plain", "big-endian", "rle", "jpeg-ls", "enhanced", "two-folders")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """One scan in each form, each as a patient of its own."""
    voxels, folder = head(), tmp_path / "study"
    for form in FORMS:
        images = single_frames(voxels, study=form, patient=form)
        if form == "two-folders":
            random.Random(0).shuffle(images)
            write(images[:9], folder / form / "a", ending="")
            write(images[9:], folder / form / "b", ending="")
            continue
        if form in ("rle", "jpeg-ls"):
            for image in images:
                image.compress(RLELossless if form == "rle" else JPEGLSLossless, generate_instance_uid=False)
        if form == "big-endian":
            images = [big_endian(image) for image in images]
        if form == "enhanced":
            images = [enhanced(voxels, study=form, patient=form)]
        write(images, folder / form)
    as_nifti(folder / "P9_flair.nii.gz", voxels)
    return folder


def test_score_and_mask_are_those_of_the_nifti_file_and_no_name_leaves_the_headers(
    gliaflow: Command, study: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = gliaflow("submit", "study", "--out", "out", "-v")
    with (out / "predictions.csv").open() as file:
        rows = {row["scan"]: row for row in csv.DictReader(file)}
    assert set(rows) == {*FORMS, "P9_flair"}
    expected = rows.pop("P9_flair")
    mask: Any = nib.load(out / expected["mask"])
    for form, row in rows.items():
        assert (row["status"], row["p_hgg"], row["tumour_ml"]) == ("ok", expected["p_hgg"], expected["tumour_ml"]), form
        own: Any = nib.load(out / row["mask"])
        np.testing.assert_array_equal(np.asarray(own.dataobj), np.asarray(mask.dataobj))
        np.testing.assert_allclose(own.affine, mask.affine, atol=1e-4)
        assert (out / f"{form}_seg.dcm").is_file()
        assert (out / f"{form}_sr.dcm").is_file()
    assert CANARY not in done.stdout + done.stderr
    for path in out.iterdir():
        assert CANARY not in path.name
        assert path.suffix == ".dcm" or CANARY.encode() not in path.read_bytes(), path.name


def test_python_takes_a_folder_of_dicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    voxels = head()
    write_flair(tmp_path / "P1", voxels)
    nifti = as_nifti(tmp_path / "P1_flair.nii.gz", voxels)
    with gliaflow.open(threads=1) as flow:
        answer, expected = flow.submit(tmp_path / "P1"), flow.submit(nifti)
    assert (answer.scan, answer.status, answer.p_hgg) == ("P1", "ok", expected.p_hgg)
    features = [gliaflow.extract(scan, threads=1).features for scan in (tmp_path / "P1", nifti)]
    np.testing.assert_array_equal(*features)
    write_flair(tmp_path / "P1", voxels[:, :, :12], study="gone")
    for path in sorted((tmp_path / "P1").glob("*.dcm"))[3:5]:
        path.unlink()
    with pytest.raises(gliaflow.UsageError, match="missing"):
        gliaflow.extract(tmp_path / "P1/IM0001.dcm")

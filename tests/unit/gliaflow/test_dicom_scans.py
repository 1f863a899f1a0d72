"""DICOM folders as people have them: which series are submitted, and what they are called."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from gliaflow.scans import Input, NoScanError, ScanRequest, find_inputs, find_one
from gliaflow_plugins.cohorts.scan_files import summary
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.settings import SettingsError
from sample_dicom import AXIAL, CANARY, as_nifti, enhanced, single_frames, uid, write, write_flair

VOXELS = np.arange(4 * 5 * 12, dtype=np.int16).reshape(4, 5, 12)


def t1(image: Any, number: int) -> None:
    image.ScanningSequence, image.InversionTime, image.EchoTime, image.SeriesNumber = "SE", None, 10, 7


def inputs(*paths: object, series: Sequence[str] = (), describe: bool = False) -> list[Input]:
    return find_inputs([str(path) for path in paths], ScanRequest(series=series), describe=describe).inputs


def called(*paths: object) -> list[tuple[str, str, str]]:
    return [(item.name, item.patient, item.relative) for item in inputs(*paths)]


def voxels_of(item: Input) -> tuple[Any, Any]:
    assert item.volume is not None
    image: Any = nib.Nifti1Image.from_bytes(item.volume.read())
    return np.asarray(image.dataobj), image.affine


def test_one_flair_series_a_study_is_a_scan_and_the_rest_is_counted(tmp_path: Path) -> None:
    for patient in ("P1", "P2"):
        write_flair(tmp_path / patient / "flair", VOXELS, study=patient, patient=patient)
        write(single_frames(VOXELS, series="ax t1", study=patient, change=t1), tmp_path / patient / "t1")
    (tmp_path / "P1/broken.dcm").write_bytes(b"junk")
    found = find_inputs([tmp_path])
    assert [(each.name, each.patient, each.relative) for each in found.inputs] == [
        ("P1_flair", "P1", "P1/flair"),
        ("P2_flair", "P2", "P2/flair"),
    ]
    assert [each.series for each in found.inputs] == [uid("P1", "flair"), uid("P2", "flair")]
    assert sorted(each.kind for each in found.left_out) == ["DICOM file", "DICOM series", "DICOM series"]
    voxels, affine = voxels_of(found.inputs[0])
    np.testing.assert_array_equal(voxels, VOXELS)
    np.testing.assert_allclose(affine, AXIAL, atol=1e-5)


@pytest.mark.parametrize("how", ["shuffled", "two folders", "no ending", "enhanced"])
def test_however_a_series_is_stored_it_is_one_scan(tmp_path: Path, how: str) -> None:
    images = single_frames(VOXELS)
    if how == "shuffled":
        random.Random(0).shuffle(images)
    if how == "two folders":
        write(images[::2], tmp_path / "P1/a")
        write(images[1::2], tmp_path / "P1/b")
    else:
        write(
            [enhanced(VOXELS)] if how == "enhanced" else images, tmp_path / "P1", "" if how == "no ending" else ".dcm"
        )
    for paths in ([tmp_path], [tmp_path / "P1/*"], [tmp_path / "P1", tmp_path / "P1"]):
        [item] = inputs(*paths)
        assert item.path == tmp_path / "P1"
        np.testing.assert_array_equal(voxels_of(item)[0], VOXELS)


def test_a_series_in_two_folders_that_are_named_both_is_one_scan(tmp_path: Path) -> None:
    images = single_frames(VOXELS)
    write(images[:6], tmp_path / "P1/a")
    write(images[6:], tmp_path / "P1/b")
    assert called(tmp_path / "P1/a", tmp_path / "P1/b") == [("P1", "P1", "P1")]


def test_dicom_and_nifti_in_one_folder(tmp_path: Path) -> None:
    write_flair(tmp_path / "P1/flair", VOXELS)
    as_nifti(tmp_path / "P2_flair.nii.gz", VOXELS)
    as_nifti(tmp_path / "P2_t1.nii.gz", VOXELS)
    assert [name for name, _, _ in called(tmp_path)] == ["P2_flair", "P1_flair"]


def test_a_file_that_is_named_alone_is_its_series(tmp_path: Path) -> None:
    write_flair(tmp_path / "P1", VOXELS)
    write(single_frames(VOXELS, series="ax t1", change=t1), tmp_path / "P2")
    item = find_one(tmp_path / "P1/IM0005.dcm")
    assert (item.name, item.path, item.warnings) == ("P1", tmp_path / "P1", ())
    np.testing.assert_array_equal(voxels_of(item)[0], VOXELS)
    assert "is it a FLAIR scan?" in find_one(tmp_path / "P2/IM0005.dcm").warnings[-1]


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["DICOM/PA0/ST0/SE0", "DICOM/PA1/ST0/SE0"], [("PA0_ST0_SE0", "PA0"), ("PA1_ST0_SE0", "PA1")]),
        (["P1/baseline/FLAIR", "P1/followup/FLAIR"], [("P1_baseline_FLAIR", "P1"), ("P1_followup_FLAIR", "P1")]),
        (["P1", "P2"], [("P1", "P1"), ("P2", "P2")]),
        (["siteA/101/FLAIR", "siteB/101/FLAIR"], [("siteA_101_FLAIR", "siteA_101"), ("siteB_101_FLAIR", "siteB_101")]),
    ],
)
def test_names_and_patients_are_those_of_the_folders(
    tmp_path: Path, folders: list[str], expected: list[tuple[str, str]]
) -> None:
    for folder in folders:
        patient = folder.rpartition("/FLAIR")[0].replace("baseline", "").replace("followup", "") or folder
        write_flair(tmp_path / "export" / folder, VOXELS, study=folder, patient=patient)
    (tmp_path / "export/DICOMDIR").write_bytes(bytes(128) + b"DICM")
    found = find_inputs([tmp_path / "export"])
    assert [(each.name, each.patient) for each in found.inputs] == expected
    assert found.left_out == []
    assert CANARY not in str([(each.name, each.patient, each.relative, each.warnings) for each in found.inputs])


def test_patients_whose_files_share_one_folder_are_kept_apart(tmp_path: Path) -> None:
    """To count two people as one is worse than to count one person as two."""
    images = [
        image
        for study, patient in (("1", "A"), ("2", "B"), ("3", "A"))
        for image in single_frames(VOXELS, study=study, patient=patient)
    ]
    write(images, tmp_path / "flat")
    found = inputs(tmp_path / "flat")
    assert [each.name for each in found] == ["flat", "flat-2", "flat-3"]
    assert sorted(each.patient for each in found) == ["flat", "flat", "flat-2"]
    assert "name several patients" in next(each for each in found if each.patient == "flat-2").warnings[-1]
    for image in images:
        image.PatientID = ""
    write(images, tmp_path / "flat")
    assert {each.patient for each in inputs(tmp_path / "flat")} == {"flat", "flat-2", "flat-3"}


def test_a_tie_is_refused_with_the_way_to_choose_and_without_a_word_of_the_headers(tmp_path: Path) -> None:
    write_flair(tmp_path / "P1/a", VOXELS, series=f"flair {CANARY}")
    other = single_frames(VOXELS, series="flair 2", change=lambda image, number: setattr(image, "SeriesNumber", 9))
    write(other, tmp_path / "P1/b")
    [item] = inputs(tmp_path, describe=True)
    assert item.volume is not None
    with pytest.raises(ValueError, match="--series 4 or --series 9") as error:
        item.volume.read()
    assert CANARY not in str(error.value)
    for wanted in ("9", "flair 2", uid("study", "flair 2")):
        [item] = inputs(tmp_path, series=[wanted])
        assert item.series == uid("study", "flair 2")


def test_series_chooses_in_the_studies_that_have_it_and_the_others_are_scans_too(tmp_path: Path) -> None:
    for patient, number in (("P1", 4), ("P2", 7)):
        images = single_frames(
            VOXELS, study=patient, patient=patient, change=lambda image, _, n=number: setattr(image, "SeriesNumber", n)
        )
        write(images, tmp_path / patient)
    other = single_frames(VOXELS, study="P2", patient="P2", series="flair 2")
    write(other, tmp_path / "P2/other")
    assert [each.name for each in inputs(tmp_path, series=["7"])] == ["P1", "P2"]
    with pytest.raises(UsageError, match=r"--series 99 matches no series .* series 4 'flair', 12 images; series 7"):
        inputs(tmp_path, series=["7", "99"], describe=True)
    with pytest.raises(UsageError, match="series 4, 12 images; series 7"):
        inputs(tmp_path, series=["99"])


def test_a_study_without_flair_is_named_among_what_is_left_out(tmp_path: Path) -> None:
    write_flair(tmp_path / "P1", VOXELS)
    write(single_frames(VOXELS, series="ax t1", study="2", change=t1), tmp_path / "P2")
    assert summary(find_inputs([tmp_path]).left_out) == [
        "1 DICOM series, 1 DICOM study without FLAIR",
        f"{tmp_path}/P2: a study without a FLAIR series",
    ]
    write(single_frames(VOXELS, series="ax t1", study="3", change=t1), tmp_path / "P3")
    assert summary(find_inputs([tmp_path]).left_out)[0] == "2 DICOM series, 2 DICOM studies without FLAIR"


def test_the_index_of_a_disc_is_not_a_scan(tmp_path: Path) -> None:
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(
        UsageError, match=f"DICOMDIR: an index of the DICOM files on a disc; submit its folder, {tmp_path}"
    ):
        find_inputs([tmp_path / "DICOMDIR"])


def test_without_flair_the_error_names_the_series_and_the_flag(tmp_path: Path) -> None:
    write(single_frames(VOXELS, series="ax t1", change=t1), tmp_path / "P1")
    with pytest.raises(NoScanError, match=r"series 7, 12 images: not FLAIR.*--series takes a DICOM series"):
        find_inputs([tmp_path])
    with pytest.raises(NoScanError, match="series 7 'ax t1', 12 images"):
        find_inputs([tmp_path], describe=True)
    assert len(inputs(tmp_path, series=["ax t1"])) == 1


def test_the_rules_are_settings_and_not_those_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(single_frames(VOXELS, series="ax t1", change=t1), tmp_path / "P1")
    monkeypatch.setenv("GLIAFLOW_DICOM_FLAIR", "ax.t1")
    assert len(inputs(tmp_path)) == 1
    monkeypatch.setenv("GLIAFLOW_DICOM_MIN_SLICES", "13")
    with pytest.raises(NoScanError, match="fewer than 13"):
        find_inputs([tmp_path])
    for name, value in (("FLAIR", "("), ("INVERSION_MS", "1"), ("MIN_SLICES", "0")):
        with monkeypatch.context() as patch:
            patch.setenv(f"GLIAFLOW_DICOM_{name}", value)
            with pytest.raises(SettingsError, match=f"GLIAFLOW_DICOM_{name}"):
                find_inputs([tmp_path])
    monkeypatch.delenv("GLIAFLOW_DICOM_MIN_SLICES")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gliaflow.toml").write_text('dicom_flair = "t1"')
    with pytest.raises(SettingsError, match="may not set this"):
        find_inputs([tmp_path])


def test_without_the_libraries_dicom_is_left_out_with_the_command_that_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_flair(tmp_path / "P1", VOXELS)
    as_nifti(tmp_path / "P2_flair.nii", VOXELS)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    found = find_inputs([tmp_path])
    assert [each.name for each in found.inputs] == ["P2_flair"]
    assert {each.why for each in found.left_out} == {"reading DICOM needs: pip install 'gliaflow[dicom]'"}
    for series in ([], ["1"]):
        with pytest.raises(UsageError, match=r"reading DICOM needs: pip install 'gliaflow\[dicom\]'"):
            inputs(tmp_path / "P1", series=series)


def test_an_empty_series_is_refused(tmp_path: Path) -> None:
    write_flair(tmp_path / "P1", VOXELS)
    with pytest.raises(UsageError, match="--series is empty"):
        inputs(tmp_path, series=[" "])


def test_dicom_in_a_store_is_left_out_with_the_remedy(tmp_path: Path) -> None:
    write_flair(tmp_path / "P1", VOXELS)
    with pytest.raises(NoScanError, match="a DICOM file in a store: copy its folder to this machine"):
        find_inputs([tmp_path.as_uri()])

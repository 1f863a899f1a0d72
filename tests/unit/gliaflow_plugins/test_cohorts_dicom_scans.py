"""Cohorts of DICOM: one folder for each patient, or a table that names folders."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gliaflow_plugins.cohorts.dicom_scans import as_series
from gliaflow_plugins.cohorts.layouts import Csv, Dicom
from gliaflow_plugins.cohorts.read import CohortRequest
from gliaflow_plugins.cohorts.scan_files import not_read, summary
from gliaflow_plugins.contracts import Case, Cohort, PluginError
from gliaflow_plugins.dicom.choose import FlairRules
from gliaflow_plugins.registry import load_registry
from sample_dicom import CANARY, as_nifti, head, single_frames, uid, write, write_flair

VOXELS = np.arange(4 * 5 * 12, dtype=np.int16).reshape(4, 5, 12)


def t1(image: Any, number: int) -> None:
    image.ScanningSequence, image.InversionTime, image.EchoTime, image.SeriesNumber = "SE", None, 10, 7


def read(folder: Path, reader: Csv | Dicom | None = None) -> Cohort:
    cohort = (reader or Dicom()).read(folder)
    assert cohort is not None
    return cohort


def shown(case: Case) -> tuple[str, str, str, str]:
    series = as_series(case.scan)
    assert series is not None
    return case.id, case.patient, series.uid, Path(str(case.mask)).name if case.mask else ""


def test_each_study_of_a_patient_is_a_scan_with_the_mask_in_its_folder(tmp_path: Path) -> None:
    write_flair(tmp_path / "P1/flair", VOXELS, study="1")
    write(single_frames(VOXELS, series="ax t1", study="1", change=t1), tmp_path / "P1/t1")
    as_nifti(tmp_path / "P1/P1_seg.nii.gz", VOXELS)
    for visit in ("baseline", "followup"):
        write_flair(tmp_path / "P2" / visit / "flair", VOXELS, study=visit)
    as_nifti(tmp_path / "P2/followup/mask.nii.gz", VOXELS)
    (tmp_path / "notes").mkdir()
    cohort = read(tmp_path)
    assert [shown(case) for case in cohort.cases] == [
        ("P1", "P1", uid("1", "flair"), "P1_seg.nii.gz"),
        ("P2_1", "P2", uid("baseline", "flair"), ""),
        ("P2_2", "P2", uid("followup", "flair"), "mask.nii.gz"),
    ]
    assert cohort.problems == ["notes: no DICOM in it; ignored"]


def test_what_is_refused_is_a_problem_with_the_files_and_hides_no_other_case(tmp_path: Path) -> None:
    images = single_frames(VOXELS)
    write(images[:5] + images[6:], tmp_path / "gap")
    write_flair(tmp_path / "good", VOXELS, study="2")
    write(single_frames(VOXELS, series=CANARY, study="3", change=t1), tmp_path / "t1/a")
    write(single_frames(VOXELS, series="t1 b", study="3", change=t1), tmp_path / "t1/b")
    write_flair(tmp_path / "tie/a", VOXELS, study="4")
    write_flair(tmp_path / "tie/b", VOXELS, study="4", series="flair 2")
    cohort = read(tmp_path)
    assert [case.id for case in cohort.cases] == ["good"]
    problems = "\n".join(cohort.problems)
    for text in ("gap: 1 slice is missing between IM0005.dcm and IM0006.dcm", "t1: no FLAIR series: a: series 7, 12"):
        assert text in problems
    assert "tie: 2 series of one study may be FLAIR" in problems
    assert CANARY not in problems
    chosen = Dicom(FlairRules(wanted=("flair 2",))).read(tmp_path)
    assert chosen is not None
    assert [shown(case)[2] for case in chosen.cases] == [uid("2", "flair"), uid("4", "flair 2")]


def test_a_series_that_no_patient_has_is_an_error_that_lists_the_series(tmp_path: Path) -> None:
    for patient in ("P1", "P2"):
        write_flair(tmp_path / patient, VOXELS, study=patient)
    (tmp_path / "cohort.csv").write_text("scan,patient\nP1,P1\nP2,P2\n")
    for reader in ("dicom", "csv"):
        with pytest.raises(PluginError, match=r"^--series 99 matches no series .* there is: series 4, 12 images$"):
            CohortRequest(tmp_path, reader, rules=FlairRules(wanted=("99",), describe=False)).read(load_registry())
    (tmp_path / "cohort.csv").unlink()
    with pytest.raises(PluginError, match=r"^--series 99 matches"):
        CohortRequest(tmp_path, rules=FlairRules(wanted=("4", "99"))).read(load_registry())


def test_a_patients_only_series_is_taken_with_a_problem_if_nothing_says_flair(tmp_path: Path) -> None:
    write(single_frames(VOXELS, series="anonymous", change=t1), tmp_path / "P1")
    cohort = read(tmp_path)
    assert [case.id for case in cohort.cases] == ["P1"]
    assert cohort.problems == [
        "P1: neither the description nor the timing of the series says FLAIR; is it a FLAIR scan?"
    ]


def test_a_table_names_folders_of_dicom(tmp_path: Path) -> None:
    write_flair(tmp_path / "a", VOXELS, study="1")
    for visit in "12":
        write_flair(tmp_path / "b" / visit, VOXELS, study=visit)
    as_nifti(tmp_path / "a_mask.nii.gz", VOXELS)
    (tmp_path / "c").mkdir()
    (tmp_path / "cohort.csv").write_text("scan,mask,patient,grade\na,a_mask.nii.gz,P1,2\nb,,P2,2\nb/1,,P2,2\nc,,P3,2\n")
    cohort = read(tmp_path, Csv())
    assert [shown(case) for case in cohort.cases] == [
        ("a", "P1", uid("1", "flair"), "a_mask.nii.gz"),
        ("1", "P2", uid("1", "flair"), ""),
    ]
    assert cohort.problems == [
        "cohort.csv line 3: scan b: 2 FLAIR series, of several studies: name the folder of one; ignored",
        "cohort.csv line 5: scan c: no DICOM in it; ignored",
    ]


def test_a_table_of_grades_with_patient_ids_is_an_error_that_says_what_a_patient_is(tmp_path: Path) -> None:
    for patient in ("P1", "P2"):
        write_flair(tmp_path / "set" / patient, VOXELS, study=patient, patient=f"1000{patient}")
    (tmp_path / "grades.csv").write_text("patient,grade\n1000P1,2\n1000P2,4\n")
    with pytest.raises(PluginError, match=r"the cohort's are like 'P1' \(a DICOM patient is a folder\)"):
        CohortRequest(tmp_path / "set", grades=tmp_path / "grades.csv").read(load_registry())


def test_one_series_in_the_folders_of_two_patients_is_a_leak(tmp_path: Path) -> None:
    for patient in ("P1", "P2"):
        write_flair(tmp_path / patient, VOXELS)
    cohort = CohortRequest(tmp_path).read(load_registry())
    assert cohort.reader == "dicom"
    assert "one file is the scan of P1 and P2" in cohort.leaks


def test_one_patient_in_two_folders_is_a_leak(tmp_path: Path) -> None:
    for folder, patient in (("before", "P1"), ("after", "P1"), ("other", "P2"), ("unnamed", ""), ("nameless", "")):
        images = single_frames(VOXELS, study=folder, patient=patient)
        for image in images:
            image.PatientID = patient
        write(images, tmp_path / folder)
    cohort = CohortRequest(tmp_path).read(load_registry())
    assert cohort.leaks == ["one PatientID: after and before; are they one patient?"]


def test_the_series_that_are_not_read_are_counted_without_reading_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_flair(tmp_path / "P1/flair", VOXELS)
    write(single_frames(VOXELS, series="ax swi", change=t1), tmp_path / "P1/swi")
    cohort = CohortRequest(tmp_path).read(load_registry())
    monkeypatch.delattr("gliaflow_plugins.dicom.choose.read_image")
    left_out = not_read(cohort, tmp_path)
    assert summary(left_out) == ["1 DICOM series"]
    (left,) = left_out
    assert (left.path, left.why) == (
        tmp_path / "P1/swi",
        "series 7, 12 images: not FLAIR by its description or timing",
    )


def test_dicom_that_another_reader_does_not_read_is_one_line_a_folder(tmp_path: Path) -> None:
    write_flair(tmp_path / "P1/dicom", VOXELS)
    as_nifti(tmp_path / "P1/P1_flair.nii.gz", VOXELS)
    left_out = not_read(CohortRequest(tmp_path).read(load_registry()), tmp_path)
    assert [(each.path, each.why) for each in left_out] == [
        (tmp_path / "P1/dicom", "DICOM files (12): the reader folders does not read them")
    ]


def test_training_cuts_a_series_as_it_cuts_the_nifti_file(tmp_path: Path) -> None:
    """The mask beside it is on the grid of the series."""
    pytest.importorskip("torch")
    from gliaflow_trainer.profiles import PROFILES
    from gliaflow_trainer.slices import blank_bundle, cut_each

    voxels = head()
    mask = (voxels > 400).astype(np.uint8)
    write_flair(tmp_path / "dicom/P1", voxels)
    as_nifti(tmp_path / "dicom/P1/P1_seg.nii.gz", mask)
    (tmp_path / "nifti").mkdir()
    as_nifti(tmp_path / "nifti/P1_flair.nii.gz", voxels)
    as_nifti(tmp_path / "nifti/P1_seg.nii.gz", mask)
    (tmp_path / "nifti/cohort.csv").write_text("scan,mask,patient\nP1_flair.nii.gz,P1_seg.nii.gz,P1\n")
    cases = [read(tmp_path / "dicom").cases[0], read(tmp_path / "nifti", Csv()).cases[0]]
    blank = blank_bundle(PROFILES["demo"], tmp_path)
    dicom, nifti = (result.scan for result in cut_each(cases, blank))
    assert dicom is not None
    assert nifti is not None
    assert (dicom.tumour, dicom.voxels) == (nifti.tumour, nifti.voxels)


def test_without_the_libraries_the_problem_has_the_command_that_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_flair(tmp_path / "P1", VOXELS)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    cohort = read(tmp_path)
    assert cohort.cases == []
    assert "reading DICOM needs: pip install 'gliaflow[dicom]'" in cohort.problems[0]

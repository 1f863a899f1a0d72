"""Which scans are of one patient: two people are never counted as one without a warning."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest
from gliaflow_plugins.cohorts.patients import find_patients

STUDY = PurePosixPath("/study")

# the scans of a submission, and the patient of each
APART = {
    "numbers": ("siteA/101 siteA/102 siteB/101", "siteA_101 102 siteB_101"),
    "numbers in folders of images": ("siteA/images/000 siteB/images/000", "siteA_000 siteB_000"),
    "images": ("siteA/images/img0 siteB/images/img0", "siteA_img0 siteB_img0"),
    "cases": ("siteA/images/case_000 siteB/images/case_000", "siteA_case_000 siteB_case_000"),
    "subjects": ("siteA/subj0 siteB/subj0", "siteA_subj0 siteB_subj0"),
    "BIDS": ("ds1/sub-01/anat/sub-01_FLAIR ds2/sub-01/anat/sub-01_FLAIR", "ds1_sub-01 ds2_sub-01"),
    "numbered folders": ("site1/1/flair site2/1/flair", "site1_1 site2_1"),
    "grades": ("HGG/1/flair LGG/1/flair", "HGG_1 LGG_1"),
    "training and test": ("train/101 test/101", "train_101 test_101"),
    "numbered FLAIR scans": ("smith/5_flair jones/5_flair", "smith_5 jones_5"),
    "a folder of numbered FLAIR scans": ("17_flair 18_flair", "17 18"),
}
TOGETHER = {
    "visits": ("P1/baseline/flair P1/followup/flair", "P1 P1"),
    "sessions": ("sub-01/ses-1/anat/sub-01_ses-1_FLAIR sub-01/ses-2/anat/sub-01_ses-2_FLAIR", "sub-01 sub-01"),
    "numbered visits": ("101/t0/flair 101/t1/flair", "101 101"),
    "named visits": ("sub-01/first/sub-01_flair sub-01/second/sub-01_flair", "sub-01 sub-01"),
    "series of dcm2niix": (
        "PAT001/7_AX_FLAIR PAT001/13_WIP_Brain_VIEW_FLAIR_SHC_CLEAR PAT001/16_PostGad_FLAIR PAT001/17_FLAIR_SUB"
        " PAT001/3D_FLAIR_MPR_COR PAT001/s7_FLAIR PAT001/Series007_FLAIR PAT001/20200101_120000_7_AX_FLAIR",
        " ".join(["PAT001"] * 8),
    ),
    "XNAT": ("x/XNAT_S0001/scans/7-t2_flair/resources/NIFTI/files/image", "XNAT_S0001"),
    "scanner folders": ("S001/MR1/T2_FLAIR_AX S002/MR1/T2_FLAIR_AX", "S001 S002"),
}


@pytest.mark.parametrize("name", [*APART, *TOGETHER])
def test_scans_are_of_these_patients_without_a_warning(name: str) -> None:
    files, patients = {**APART, **TOGETHER}[name]
    found = find_patients([STUDY / f"{file}.nii.gz" for file in files.split()])
    assert [each.patient for each in found] == patients.split()
    assert not any(each.warnings for each in found)


@pytest.mark.parametrize(
    ("files", "patients", "warning"),
    [
        ("P1/7_AX_FLAIR P1/12_AX_FLAIR", "P1_7 P1_12", "2 scans in P1 differ by a number only .* P1_"),
        ("P1/1/flair P1/2/flair", "P1_1 P1_2", "2 scans in P1 differ by a number only"),
        ("x/P1_flair y/P1_flair", "P1 P1", "x/P1_flair.nii.gz and y/P1_flair.nii.gz count as scans of one patient, P1"),
        ("siteA/P1/flair siteB/P1/flair siteC/P1/flair", "P1 P1 P1", "siteA/P1/.* and siteB/P1/.* and 1 more count"),
    ],
)
def test_a_doubt_is_a_warning_of_each_scan(files: str, patients: str, warning: str) -> None:
    found = find_patients([STUDY / f"{file}.nii.gz" for file in files.split()])
    assert [each.patient for each in found] == patients.split()
    for each in found:
        [text] = each.warnings
        assert re.search(warning, text)

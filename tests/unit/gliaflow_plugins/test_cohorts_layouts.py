"""Readers: each layout is recognised by its file names alone."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gliaflow_plugins.cohorts.case_folders import (
    BRATS_2020,
    BRATS_2021,
    REMBRANDT,
    UCSF,
    Brats,
    PatientFolders,
    files_in,
    image,
)
from gliaflow_plugins.cohorts.dicom_scans import as_series, folder_of
from gliaflow_plugins.cohorts.layouts import SHIPPED, Bids, Csv, Kaggle, Msd
from gliaflow_plugins.cohorts.patients import find_patients
from gliaflow_plugins.cohorts.scan_files import Chooser, not_read
from gliaflow_plugins.cohorts.volumes import NiftiFile, TiffStack
from gliaflow_plugins.contracts import Case, Cohort, Reader
from sample_dicom import write_flair

DICOM = "a series"
MAPPING = "Grade,BraTS_2017_subject_ID,BraTS_2020_subject_ID\nHGG,A,BraTS20_Training_001\nLGG,NA,BraTS20_Training_355\n"
KAGGLE = "TCGA_CS_4938_19970222/TCGA_CS_4938_19970222"

# reader: the tree, and each case as "id patient grade scan mask"
LAYOUTS: dict[str, tuple[dict[str, str], list[str]]] = {
    "brats": (
        dict.fromkeys(
            ["HGG/A/A_flair.nii.gz", "HGG/A/A_t1.nii.gz", "HGG/A/A_seg.nii.gz", "LGG/B/B_flair.nii", "LGG/notes.txt"],
            "",
        ),
        ["A A HGG HGG/A/A_flair.nii.gz HGG/A/A_seg.nii.gz", "B B LGG LGG/B/B_flair.nii None"],
    ),
    "brats2020": (
        {
            "BraTS20_Training_001/BraTS20_Training_001_flair.nii": "",
            "BraTS20_Training_001/BraTS20_Training_001_seg.nii": "",
            "BraTS20_Training_355/BraTS20_Training_355_flair.nii": "",
            "BraTS20_Training_355/W39_1998.09.19_Segm.nii": "",
            "name_mapping.csv": MAPPING,
        },
        [
            "BraTS20_Training_001 BraTS20_Training_001 HGG"
            " BraTS20_Training_001/BraTS20_Training_001_flair.nii BraTS20_Training_001/BraTS20_Training_001_seg.nii",
            "BraTS20_Training_355 BraTS20_Training_355 LGG"
            " BraTS20_Training_355/BraTS20_Training_355_flair.nii BraTS20_Training_355/W39_1998.09.19_Segm.nii",
        ],
    ),
    "brats2021": (
        {
            "BraTS2021_00030/BraTS2021_00030_flair.nii.gz": "",
            "BraTS2021_00030/BraTS2021_00030_seg.nii.gz": "",
        },
        [
            "BraTS2021_00030 BraTS2021_00030 None"
            " BraTS2021_00030/BraTS2021_00030_flair.nii.gz BraTS2021_00030/BraTS2021_00030_seg.nii.gz"
        ],
    ),
    "brats2023": (
        {
            "BraTS-GLI-00005-101/BraTS-GLI-00005-101-t2f.nii.gz": "",
            "BraTS-GLI-00005-101/BraTS-GLI-00005-101-t2w.nii.gz": "",
            "BraTS-GLI-00005-101/BraTS-GLI-00005-101-seg.nii.gz": "",
        },
        [
            "BraTS-GLI-00005-101 BraTS-GLI-00005 None"
            " BraTS-GLI-00005-101/BraTS-GLI-00005-101-t2f.nii.gz BraTS-GLI-00005-101/BraTS-GLI-00005-101-seg.nii.gz"
        ],
    ),
    "msd": (
        {
            "imagesTr/BRATS_306.nii.gz": "",
            "imagesTr/._BRATS_306.nii.gz": "",
            "imagesTs/BRATS_485.nii.gz": "",
            "labelsTr/BRATS_306.nii.gz": "",
            "dataset.json": '{"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}}',
        },
        ["BRATS_306 BRATS_306 None imagesTr/BRATS_306.nii.gz labelsTr/BRATS_306.nii.gz"],
    ),
    "rembrandt": (
        dict.fromkeys(
            [
                "900-00-1961_2005.07.05/900-00-1961_2005.07.05_flair_LPS_rSRI.nii.gz",
                "900-00-1961_2005.07.05/900-00-1961_2005.07.05_t2_LPS_rSRI.nii.gz",
                "900-00-1961_2005.07.05/900-00-1961_2005.07.05_GlistrBoost_out.nii.gz",
                "HF0855_2001.01.01/HF0855_2001.01.01_flair_LPS_rSRI.nii.gz",
            ],
            "",
        ),
        [
            "900-00-1961_2005.07.05 900-00-1961 None"
            " 900-00-1961_2005.07.05/900-00-1961_2005.07.05_flair_LPS_rSRI.nii.gz"
            " 900-00-1961_2005.07.05/900-00-1961_2005.07.05_GlistrBoost_out.nii.gz",
            "HF0855_2001.01.01 HF0855 None HF0855_2001.01.01/HF0855_2001.01.01_flair_LPS_rSRI.nii.gz None",
        ],
    ),
    "ucsf": (
        {
            "UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_FLAIR.nii.gz": "",
            "UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_FLAIR_bias.nii.gz": "",
            "UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_tumor_segmentation.nii.gz": "",
            "UCSF-PDGM-metadata.csv": "ID,Sex,WHO CNS Grade\nUCSF-PDGM-004,M,4\n",
        },
        [
            "UCSF-PDGM-0004 UCSF-PDGM-0004 IV UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_FLAIR.nii.gz"
            " UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_tumor_segmentation.nii.gz"
        ],
    ),
    "kaggle": (
        {f"{KAGGLE}_{number}{kind}.tif": "" for number in (1, 2, 10) for kind in ("", "_mask")}
        | {"data.csv": "Patient,age,neoplasm_histologic_grade\nTCGA_CS_4938,44,1\n"},
        [f"TCGA_CS_4938_19970222 TCGA_CS_4938 II {KAGGLE}_1.tif+2 {KAGGLE}_1_mask.tif+2"],
    ),
    "bids": (
        {
            "participants.tsv": "participant_id\tage\twho_grade\nsub-01\t50\t3\nsub-02\t60\tn/a\n",
            "sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz": "",
            "sub-01/ses-2/anat/sub-01_ses-2_FLAIR.nii.gz": "",
            "sub-02/anat/sub-02_FLAIR.nii.gz": "",
            "sub-02/anat/sub-02_T1w.nii.gz": "",
            "derivatives/manual/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz": "",
            "derivatives/manual/sub-01/ses-1/anat/sub-01_ses-1_space-MNI152_label-lesion_mask.nii.gz": "",
            "derivatives/fmriprep/sub-01/ses-1/anat/sub-01_ses-1_desc-brain_mask.nii.gz": "",
            "derivatives/fmriprep/sub-01/ses-1/anat/sub-01_ses-1_dseg.nii.gz": "",
            "derivatives/manual/sub-02/sub-02_seg.nii.gz": "",
        },
        [
            "sub-01_ses-1 sub-01 III sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz"
            " derivatives/manual/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz",
            "sub-01_ses-2 sub-01 III sub-01/ses-2/anat/sub-01_ses-2_FLAIR.nii.gz None",
            "sub-02 sub-02 None sub-02/anat/sub-02_FLAIR.nii.gz derivatives/manual/sub-02/sub-02_seg.nii.gz",
        ],
    ),
    "folders": (
        {
            "participants.tsv": "participant_id\tgrade\na\tII\n",
            "a/a_flair.nii.gz": "",
            "a/a_seg.nii.gz": "",
        },
        ["a a II a/a_flair.nii.gz a/a_seg.nii.gz"],
    ),
    "csv": (
        {
            "cohort.csv": "scan,mask,patient,grade\nx/1.nii,x/m.nii,p,2\nx/2.nii.gz,,p,2\n",
            "x/1.nii": "",
            "x/m.nii": "",
            "x/2.nii.gz": "",
        },
        ["1 p 2 x/1.nii x/m.nii", "2 p 2 x/2.nii.gz None"],
    ),
    "dicom": (
        {
            "P1/2001/FLAIR/": DICOM,
            "P1/P1_seg.nii.gz": "",
            "P2/": DICOM,
        },
        ["P1 P1 None P1/2001/FLAIR P1/P1_seg.nii.gz", "P2 P2 None P2 None"],
    ),
}


def write(folder: Path, files: dict[str, str] | list[str]) -> Path:
    """Write files with these texts, or empty files: readers open no images."""
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            write_flair(path, np.ones((4, 5, 12), np.int16), study=name, patient=name)
        else:
            path.write_text(files[name] if isinstance(files, dict) else "")
    return folder


def read(reader: Reader, folder: Path) -> Cohort:
    cohort = reader.read(folder)
    assert cohort is not None
    return cohort


def line(case: Case, folder: Path) -> str:
    def where(volume: object) -> str:
        if isinstance(volume, TiffStack):
            return f"{volume.paths[0].relative_to(folder)}+{len(volume.paths) - 1}"
        if series := as_series(volume):
            return str(folder_of(series).relative_to(folder))
        if isinstance(volume, NiftiFile):
            return os.path.relpath(str(volume), folder)
        return str(volume)

    return f"{case.id} {case.patient} {case.grade} {where(case.scan)} {where(case.mask)}"


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_recognised_by_its_file_names(tmp_path: Path, name: str) -> None:
    files, expected = LAYOUTS[name]
    write(tmp_path, files)
    first = next(reader for reader in SHIPPED if reader.read(tmp_path) is not None)
    assert first.name == name
    assert [line(case, tmp_path) for case in read(first, tmp_path).cases] == expected


def test_every_shipped_reader_is_tested_and_leaves_other_folders_alone(tmp_path: Path) -> None:
    assert {reader.name for reader in SHIPPED} == set(LAYOUTS), "a layout without a test"

    write(tmp_path / "notes", ["readme.txt", "photos/1.jpg"])
    for reader in SHIPPED:
        for folder in (tmp_path, tmp_path / "notes", tmp_path / "notes/readme.txt", tmp_path / "gone"):
            assert not (cohort := reader.read(folder)) or not cohort.cases


def test_a_case_without_flair_is_a_problem_and_hides_no_other_case(tmp_path: Path) -> None:
    write(tmp_path, ["HGG/A/A_flair.nii", "HGG/B/B_t1.nii", "LGG/.hidden/x", "old/C/C_flair.nii"])
    cohort = read(Brats(), tmp_path)
    assert [case.id for case in cohort.cases] == ["A"]
    assert cohort.problems == ["HGG/B: no B_flair.nii.gz or .nii", "old: beside HGG and LGG; ignored"]
    assert Brats().read(tmp_path / "HGG") is None


def test_a_folder_with_another_name_is_a_problem(tmp_path: Path) -> None:
    write(tmp_path, ["HF1_2001.01.01/HF1_2001.01.01_flair_LPS_rSRI.nii.gz", "HF2/HF2_flair_LPS_rSRI.nii.gz"])
    assert read(REMBRANDT, tmp_path).problems == ["HF2: not named as a case of this layout; ignored"]


def test_a_folder_name_with_wildcard_characters_is_taken_literally(tmp_path: Path) -> None:
    write(tmp_path, ["ab_seg.nii"])
    assert image(files_in(tmp_path), ("{id}_seg",), "a[b]*") is None
    write(tmp_path, ["a[b]*_seg.nii"])
    assert image(files_in(tmp_path), ("{id}_seg",), "a[b]*") == NiftiFile(tmp_path / "a[b]*_seg.nii")


def test_a_second_scan_of_ucsf_has_the_same_patient_and_two_tables_are_a_problem(tmp_path: Path) -> None:
    write(tmp_path, ["UCSF-PDGM-0429_FU003d_nifti/UCSF-PDGM-0429_FU003d_FLAIR.nii.gz", "a.csv", "b.csv"])
    cohort = read(UCSF, tmp_path)
    assert (cohort.cases[0].id, cohort.cases[0].patient) == ("UCSF-PDGM-0429_FU003d", "UCSF-PDGM-0429")
    assert cohort.problems == ["several tables (a.csv, b.csv): name one with --grades"]


def test_the_decathlons_dataset_json_names_the_flair_volume(tmp_path: Path) -> None:
    write(tmp_path, ["imagesTr/B_1.nii.gz"])
    (tmp_path / "dataset.json").write_text('{"modality": {"0": "T1w", "1": "FLAIR"}}')
    assert read(Msd(), tmp_path).cases[0].channel == "1"
    for text in ("{", "[" * 100_000, "[]", '{"modality": {"0": "MRI"}}', '{"modality": {"x": "FLAIR"}}'):
        (tmp_path / "dataset.json").write_text(text)
        cohort = read(Msd(), tmp_path)
        assert cohort.cases == []
        assert cohort.problems[0].startswith("dataset.json: ")


def test_nnunets_copy_of_the_decathlon_has_one_file_for_each_volume(tmp_path: Path) -> None:
    write(tmp_path, [f"imagesTr/B_001_000{n}.nii.gz" for n in range(4)] + ["labelsTr/B_001.nii.gz"])
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "3": "FLAIR"}}))
    [case] = read(Msd(), tmp_path).cases
    assert (line(case, tmp_path), case.channel) == (
        "B_001 B_001 None imagesTr/B_001_0003.nii.gz labelsTr/B_001.nii.gz",
        None,
    )


def test_slices_are_ordered_by_number_and_gaps_are_problems(tmp_path: Path) -> None:
    write(tmp_path, [f"{KAGGLE}_{n}.tif" for n in (1, 2, 4, 10)] + [f"{KAGGLE}_{n}_mask.tif" for n in (1, 2, 4)])
    cohort = read(Kaggle(), tmp_path)
    scan = cohort.cases[0].scan
    assert isinstance(scan, TiffStack)
    assert [path.name.rpartition("_")[2] for path in scan.paths] == ["1.tif", "2.tif", "4.tif", "10.tif"]
    assert cohort.cases[0].mask is None
    assert cohort.problems[:2] == [
        "TCGA_CS_4938_19970222: no slice 3, 5, 6, 7, 8, 9",
        "TCGA_CS_4938_19970222: slice 10 without a mask",
    ]
    assert cohort.problems[2].startswith("no grades: "), "data.csv does not exist"


def test_of_two_possible_masks_bids_takes_the_tumours_or_none(tmp_path: Path) -> None:
    raters = [f"derivatives/rater{n}/sub-brain1/anat/sub-brain1_mask.nii.gz" for n in (1, 2)]
    write(tmp_path, ["sub-brain1/anat/sub-brain1_FLAIR.nii.gz", *raters])
    cohort = read(Bids(), tmp_path)
    assert cohort.cases[0].mask is None
    assert cohort.problems == [f"sub-brain1: several files may be its mask: {', '.join(raters)}"]
    tumour = write(tmp_path, ["derivatives/tumour/sub-brain1/sub-brain1_dseg.nii.gz"]) / "derivatives/tumour/sub-brain1"
    assert read(Bids(), tmp_path).cases[0].mask == NiftiFile(tumour / "sub-brain1_dseg.nii.gz")


def test_a_csv_may_leave_its_folder_only_by_an_absolute_path(tmp_path: Path) -> None:
    outside = write(tmp_path, ["secret.nii"]) / "secret.nii"
    folder = write(tmp_path / "set", ["in.nii"])
    (folder / "link.nii").symlink_to(outside)
    rows = ["scan,patient", "../secret.nii,a", "link.nii,b", "gone.nii,c", ",d", "in.nii,", "in.nii,e", f"{outside},f"]
    (folder / "my.csv").write_text("\n".join(rows))
    cohort = read(Csv(), folder / "my.csv")
    assert [case.patient for case in cohort.cases] == ["e", "f"]
    assert [problem.split(";")[0] for problem in cohort.problems] == [
        "my.csv line 2: scan ../secret.nii is outside the table's folder",
        "my.csv line 3: scan link.nii is outside the table's folder",
        "my.csv line 4: scan gone.nii does not exist",
        "my.csv line 5: scan is missing",
        "my.csv line 6: no patient",
    ]


def test_a_csv_without_patients_has_a_problem_and_one_without_scans_has_no_cases(tmp_path: Path) -> None:
    write(tmp_path, {"1.nii": "", "cohort.csv": "Scan;Grade\n1.nii;IV\n"})
    cohort = read(Csv(), tmp_path)
    assert [line(case, tmp_path) for case in cohort.cases] == ["1 1 IV 1.nii None"]
    assert "no column 'patient'" in cohort.problems[0]
    write(tmp_path, {"cohort.csv": "image,grade\n1.nii,IV\n"})
    assert read(Csv(), tmp_path).problems == ["cohort.csv: no column 'scan'; there is: image, grade"]


@pytest.mark.parametrize(
    ("header", "used"),
    [
        ("SCAN,Patient,Grade", "scans by 'SCAN', patients by 'Patient', grades by 'Grade'"),
        ("scan,Patient ID,WHO grade", "scans by 'scan', patients by 'Patient ID', grades by 'WHO grade'"),
        ("scan,patient,age", "scans by 'scan', patients by 'patient'; not used: age"),
    ],
)
def test_a_csvs_columns_are_found_in_any_spelling_and_named(tmp_path: Path, header: str, used: str) -> None:
    write(tmp_path, {"1.nii": "", "cohort.csv": f"{header}\n1.nii,p,4\n"})
    cohort = read(Csv(), tmp_path)
    assert cohort.tables == [f"cohort.csv: {used}"]
    assert cohort.cases[0].patient == "p"


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("scan,grade,patient,Grade", "several columns are called 'grade': 'grade' and 'Grade'"),
        ("scan,grade,patient,grade", r"'grade \(column 2\)' and 'grade \(column 4\)'"),
        ("scan,x,patient,Scan", "several columns are called 'scan'"),
        ("scan,x,patient_id,subject", "several columns may be the patient: 'patient_id' and 'subject'"),
    ],
)
def test_two_columns_of_a_csv_that_would_do_are_a_problem(tmp_path: Path, header: str, problem: str) -> None:
    write(tmp_path, {"1.nii": "", "cohort.csv": f"{header}\n1.nii,2,p,4\n"})
    cohort = read(Csv(), tmp_path)
    assert cohort.cases == []
    assert re.search(problem, cohort.problems[0])


def test_a_table_in_the_folder_that_needs_a_choice_gives_no_grade_and_names_the_remedy(tmp_path: Path) -> None:
    write(tmp_path, {"a/a_flair.nii": "", "participants.tsv": "participant_id\tgrade\tGrade\na\t2\t4\n"})
    cohort = read(PatientFolders(), tmp_path)
    assert cohort.cases[0].grade is None
    [problem] = cohort.problems
    assert re.fullmatch(
        r"no grades: .*'grade' and 'Grade'.*--grade-column \(with --grades .*participants\.tsv\)", problem
    )


def test_the_columns_of_name_mapping_are_found_in_any_case(tmp_path: Path) -> None:
    write(
        tmp_path,
        LAYOUTS["brats2020"][0] | {"name_mapping.csv": MAPPING.replace("Grade,", "grade,").replace("ID", "id")},
    )
    cohort = read(BRATS_2020, tmp_path)
    assert [case.grade for case in cohort.cases] == ["HGG", "LGG"]
    assert cohort.tables == [
        "name_mapping.csv: patients by 'BraTS_2020_subject_id', grades by 'grade'; 2 of 2 patients matched"
    ]


# Chooser finds the scans that ``gliaflow submit`` sends
NIFTI = sorted(LAYOUTS.keys() - {"csv", "kaggle", "dicom"})
OTHER_STYLES = {
    "names without the case": ["P1/FLAIR.nii.gz", "P1/T1.nii.gz", "P1/seg.nii.gz", "P2/flair.nii", "P2/mask.nii"],
    "upper case": ["P1/P1_FLAIR.NII.GZ", "P1/P1_SEG.NII.GZ", "P2/P2_Flair.nii.gz", "P2/P2_T1CE.nii.gz"],
    "visits": ["P1/baseline/FLAIR.nii.gz", "P1/followup/FLAIR.nii.gz", "P1/followup/seg.nii.gz"],
    "names that say nothing": ["P1/P1.nii.gz", "P1/P1_mask.nii.gz", "P2/scan.nii.gz"],
    "a lower-case BraTS": ["hgg/A/A_flair.nii.gz", "lgg/B/FLAIR.nii.gz", "lgg/B/seg.nii.gz"],
    "other names in a known layout": ["BraTS2021_00030/FLAIR.nii.gz", "BraTS2021_00030/T1.nii.gz"],
    "BIDS in small letters": ["sub-01/anat/sub-01_flair.nii.gz", "sub-01/anat/sub-01_t1w.nii.gz"],
    "BIDS with two runs": ["sub-01/anat/sub-01_run-1_FLAIR.nii.gz", "sub-01/anat/sub-01_run-2_FLAIR.nii.gz"],
}


@pytest.mark.parametrize("name", [*NIFTI, *OTHER_STYLES])
def test_a_cohort_has_the_scans_that_submit_sends(tmp_path: Path, name: str) -> None:
    write(tmp_path, LAYOUTS[name][0] if name in LAYOUTS else OTHER_STYLES[name])
    cohort = next(cohort for reader in SHIPPED if (cohort := reader.read(tmp_path)) is not None)
    sent = [scan.path for scan in Chooser().folder(tmp_path / "imagesTr" if name == "msd" else tmp_path)]
    assert sorted(str(case.scan) for case in cohort.cases) == sorted(map(str, sent))


def test_masks_of_other_names_are_found_unless_several_would_do(tmp_path: Path) -> None:
    write(tmp_path, ["a/FLAIR.nii.gz", "a/seg.nii.gz", "a/brain_mask.nii.gz", "b/b_flair.nii.gz", "b/b_lesion.nii"])
    write(tmp_path, ["c/flair.nii.gz", "c/rater1_seg.nii.gz", "c/rater2_seg.nii.gz", "d/v1/flair.nii", "d/mask.nii"])
    cohort = read(PatientFolders(), tmp_path)
    masks = {case.id: os.path.relpath(str(case.mask), tmp_path) if case.mask else "" for case in cohort.cases}
    assert masks == {"a": "a/seg.nii.gz", "b": "b/b_lesion.nii", "c": "", "d": "d/mask.nii"}
    assert cohort.problems == ["c: several files may be its mask: rater1_seg.nii.gz, rater2_seg.nii.gz"]


def test_a_folder_of_many_patients_has_a_problem_that_names_them(tmp_path: Path) -> None:
    write(tmp_path, ["a/a_flair.nii", "site/P1/P1_flair.nii", "site/P2/P2_flair.nii", "b/1/flair.nii", "b/2/flair.nii"])
    cohort = read(PatientFolders(), tmp_path)
    assert [(case.id, case.patient) for case in cohort.cases] == [
        ("a", "a"),
        ("b_1", "1"),
        ("b_2", "2"),
        ("site_P1", "P1"),
        ("site_P2", "P2"),
    ]
    assert cohort.problems == [
        "b: scans of 2 patients (1, 2), not of one",
        "site: scans of 2 patients (P1, P2), not of one",
    ]


@pytest.mark.parametrize(
    "files",
    [
        ["siteA/101.nii", "siteA/102.nii", "siteB/101.nii", "siteB/102.nii"],
        [f"XNAT_S000{n}/scans/7-t2_flair/resources/NIFTI/files/image.nii" for n in (1, 2)],
        ["PAT001/7_AX_FLAIR.nii", "PAT001/9_COR_FLAIR.nii", "PAT002/3D_FLAIR_MPR_COR.nii"],
        ["P1/baseline/flair.nii", "P1/followup/flair.nii", "P2/flair.nii"],
    ],
)
def test_a_cohort_has_the_patients_that_submit_sends(tmp_path: Path, files: list[str]) -> None:
    cohort = read(PatientFolders(), write(tmp_path, files))
    paths = [Path(str(case.scan)) for case in cohort.cases]
    assert [case.patient for case in cohort.cases] == [each.patient for each in find_patients(paths)]
    assert len(paths) == len(files)


def test_what_belongs_to_no_case_is_left_out_with_a_reason(tmp_path: Path) -> None:
    write(tmp_path, ["a/a_flair.nii.gz", "a/a_swi.nii.gz", "a/a_seg.nii.gz", "images/x.nii.gz", "b/b_t1.nii.gz"])
    cohort = replace(read(PatientFolders(), tmp_path), reader="folders")
    left_out = {str(each.path.relative_to(tmp_path)): each.why for each in not_read(cohort, tmp_path)}
    assert left_out == {
        "images/x.nii.gz": "the reader folders does not read it",
        "a/a_swi.nii.gz": "its name says swi: another sequence",
        "b/b_t1.nii.gz": "its name says t1: another sequence",
    }


def test_a_scan_that_was_not_fetched_is_a_problem_with_the_command(tmp_path: Path) -> None:
    for name in ("sub-01/anat/sub-01_FLAIR.nii.gz", "study/a/a_flair.nii.gz", "BraTS2021_1/BraTS2021_1_flair.nii.gz"):
        write(tmp_path, [f"{name}.json"])
        (tmp_path / name).symlink_to(".git/annex/objects/aa/MD5E-s1--1.nii.gz")
    write(tmp_path, ["study/b/b_flair.nii.gz"])
    for reader, folder in ((Bids(), tmp_path), (PatientFolders(), tmp_path / "study"), (BRATS_2021, tmp_path)):
        problems = "\n".join(read(reader, folder).problems)
        assert "_flair.nii.gz: its content is not on this machine; to fetch it: datalad get " in problems.casefold()


@pytest.mark.parametrize(
    ("reader", "files", "mask"),
    [
        (PatientFolders(), ["P13/P13_flair.nii", "P14/P14_flair.nii", "P14/P13_seg.nii"], "P13_seg.nii"),
        (PatientFolders(), ["P14/P14_flair.nii", "P14/P99_seg.nii"], "P99_seg.nii"),
        (PatientFolders(), ["P14/flair.nii", "P14/masks/p13_tumor.nii"], "p13_tumor.nii"),
        (PatientFolders(), ["Smith/flair.nii", "Jones/flair.nii", "Jones/Smith_seg.nii"], "Smith_seg.nii"),
        (PatientFolders(), ["013/flair.nii", "014/flair.nii", "014/013_seg.nii"], "013_seg.nii"),
        (BRATS_2021, ["BraTS2021_1/BraTS2021_1_flair.nii", "BraTS2021_1/BraTS2021_2_seg.nii"], "BraTS2021_2_seg.nii"),
        (Brats(), ["HGG/P14/P14_flair.nii", "HGG/P14/P13_seg.nii"], "P13_seg.nii"),
    ],
)
def test_a_mask_that_is_named_after_another_case_is_not_taken(
    tmp_path: Path, reader: Reader, files: list[str], mask: str
) -> None:
    write(tmp_path, files)
    cohort = read(reader, tmp_path)
    assert [case.mask for case in cohort.cases] == [None] * len(cohort.cases)
    folder = (tmp_path / files[-1]).relative_to(tmp_path).parts[0 if files[0][:3] != "HGG" else 1]
    assert (
        f"{mask} in {folder}: named after another case, so not its mask; rename it if it is {folder}'s"
        in cohort.problems
    )


@pytest.mark.parametrize(
    "mask", ["seg", "mask", "tumor", "seg_2", "P14_seg", "p14_T1_mask", "glioma_mask_rater2", "Mueller_seg"]
)
def test_a_mask_with_a_general_name_or_with_its_own_cases_is_taken(tmp_path: Path, mask: str) -> None:
    write(tmp_path, ["P13/P13_flair.nii", "P14/P14_flair.nii", f"P14/{mask}.nii", "P1/P1_flair.nii"])
    cohort = read(PatientFolders(), tmp_path)
    assert [case.id for case in cohort.cases if case.mask is not None] == ["P14"]
    assert not [problem for problem in cohort.problems if "another case" in problem]


def test_a_bids_mask_of_another_subject_is_not_taken(tmp_path: Path) -> None:
    write(tmp_path, ["sub-01/anat/sub-01_FLAIR.nii", "sub-01/anat/sub-02_mask.nii"])
    assert [case.mask for case in read(Bids(), tmp_path).cases] == [None]

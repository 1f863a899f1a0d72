"""Readers: each layout that people have is known by its tree alone; then, how the bytes of a scan are had."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from gliaflow_plugins.cohorts.case_folders import Brats, Plain, Rembrandt, Ucsf
from gliaflow_plugins.cohorts.clinical_tables import normal_grade, read_table, with_grades
from gliaflow_plugins.cohorts.layouts import SHIPPED, Bids, Csv, Kaggle, Msd
from gliaflow_plugins.cohorts.volumes import DicomSeries, NiftiFile, TiffStack
from gliaflow_plugins.contracts import Case, Cohort, Reader

# real scans, never in the repository: a folder with tcga-lgg and kaggle_3m in it
REAL = Path(os.environ.get("GLIAFLOW_TEST_DATA", Path(__file__).parents[4] / "shared/data"))
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
            "P1/2001/FLAIR/1-01.dcm": "",
            "P1/P1_seg.nii.gz": "",
            "P2/IM0001": "\0" * 128 + "DICM",
        },
        ["P1 P1 None P1 P1/P1_seg.nii.gz", "P2 P2 None P2 None"],
    ),
}


def lay(folder: Path, files: dict[str, str] | list[str]) -> Path:
    """Files with the texts given, or empty ones: readers open no images."""
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[name] if isinstance(files, dict) else "")
    return folder


def read(reader: Reader, folder: Path) -> Cohort:
    cohort = reader.read(folder)
    assert cohort is not None
    return cohort


def told(case: Case, folder: Path) -> str:
    def where(volume: object) -> str:
        if isinstance(volume, TiffStack):
            return f"{volume.paths[0].relative_to(folder)}+{len(volume.paths) - 1}"
        if isinstance(volume, NiftiFile | DicomSeries):
            return os.path.relpath(str(volume), folder)
        return str(volume)

    return f"{case.id} {case.patient} {case.grade} {where(case.scan)} {where(case.mask)}"


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_known_by_its_tree(tmp_path: Path, name: str) -> None:
    files, expected = LAYOUTS[name]
    lay(tmp_path, files)
    first = next(reader() for reader in SHIPPED if reader().read(tmp_path) is not None)
    assert first.name == name
    assert [told(case, tmp_path) for case in read(first, tmp_path).cases] == expected


def test_all_that_ship_are_tested_and_none_takes_an_empty_or_a_missing_folder(tmp_path: Path) -> None:
    assert {reader().name for reader in SHIPPED} == set(LAYOUTS), "a layout without a test"

    lay(tmp_path / "notes", ["readme.txt", "photos/1.jpg"])
    for reader in SHIPPED:
        for folder in (tmp_path, tmp_path / "notes", tmp_path / "notes/readme.txt", tmp_path / "gone"):
            assert not (found := reader().read(folder)) or not found.cases


def test_a_case_without_a_flair_is_told_and_hides_no_other(tmp_path: Path) -> None:
    lay(tmp_path, ["HGG/A/A_flair.nii", "HGG/B/B_t1.nii", "LGG/.hidden/x", "old/C/C_flair.nii"])
    cohort = read(Brats(), tmp_path)
    assert [case.id for case in cohort.cases] == ["A"]
    assert cohort.problems == ["HGG/B: no B_flair.nii.gz or .nii", "old: beside HGG and LGG; passed over"]
    assert Brats().read(tmp_path / "HGG") is None


def test_a_folder_that_is_named_otherwise_is_told(tmp_path: Path) -> None:
    lay(tmp_path, ["HF1_2001.01.01/HF1_2001.01.01_flair_LPS_rSRI.nii.gz", "HF2/HF2_flair_LPS_rSRI.nii.gz"])
    assert read(Rembrandt(), tmp_path).problems == ["HF2: not named as a case of this layout; passed over"]


def test_a_name_with_characters_of_a_pattern_is_only_a_name(tmp_path: Path) -> None:
    lay(tmp_path, ["a[b]*/a[b]*_flair.nii", "c/a[b]*_flair.nii"])
    assert [case.id for case in read(Plain(), tmp_path).cases] == ["a[b]*"]


def test_a_second_scan_of_ucsf_is_of_the_same_patient_and_one_table_must_be_meant(tmp_path: Path) -> None:
    lay(tmp_path, ["UCSF-PDGM-0429_FU003d_nifti/UCSF-PDGM-0429_FU003d_FLAIR.nii.gz", "a.csv", "b.csv"])
    cohort = read(Ucsf(), tmp_path)
    assert (cohort.cases[0].id, cohort.cases[0].patient) == ("UCSF-PDGM-0429_FU003d", "UCSF-PDGM-0429")
    assert cohort.problems == ["several tables (a.csv, b.csv): name one with --grades"]


def test_the_decathlon_says_which_volume_is_flair(tmp_path: Path) -> None:
    lay(tmp_path, ["imagesTr/B_1.nii.gz"])
    (tmp_path / "dataset.json").write_text('{"modality": {"0": "T1w", "1": "FLAIR"}}')
    assert read(Msd(), tmp_path).cases[0].channel == "1"
    for text in ("{", "[" * 100_000, "[]", '{"modality": {"0": "MRI"}}', '{"modality": {"x": "FLAIR"}}'):
        (tmp_path / "dataset.json").write_text(text)
        cohort = read(Msd(), tmp_path)
        assert cohort.cases == []
        assert cohort.problems[0].startswith("dataset.json: ")


def test_nnunets_copy_of_it_has_a_file_a_volume(tmp_path: Path) -> None:
    lay(tmp_path, [f"imagesTr/B_001_000{n}.nii.gz" for n in range(4)] + ["labelsTr/B_001.nii.gz"])
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "3": "FLAIR"}}))
    [case] = read(Msd(), tmp_path).cases
    assert (told(case, tmp_path), case.channel) == (
        "B_001 B_001 None imagesTr/B_001_0003.nii.gz labelsTr/B_001.nii.gz",
        None,
    )


def test_slices_are_ordered_by_number_and_gaps_are_told(tmp_path: Path) -> None:
    lay(tmp_path, [f"{KAGGLE}_{n}.tif" for n in (1, 2, 4, 10)] + [f"{KAGGLE}_{n}_mask.tif" for n in (1, 2, 4)])
    cohort = read(Kaggle(), tmp_path)
    scan = cohort.cases[0].scan
    assert isinstance(scan, TiffStack)
    assert [path.name.rpartition("_")[2] for path in scan.paths] == ["1.tif", "2.tif", "4.tif", "10.tif"]
    assert cohort.cases[0].mask is None
    assert cohort.problems[:2] == [
        "TCGA_CS_4938_19970222: no slice 3, 5, 6, 7, 8, 9",
        "TCGA_CS_4938_19970222: slice 10 without a mask",
    ]
    assert cohort.problems[2].startswith("no grades: "), "data.csv is not there"


def test_of_two_possible_masks_bids_takes_the_tumour_or_none(tmp_path: Path) -> None:
    raters = [f"derivatives/rater{n}/sub-brain1/anat/sub-brain1_mask.nii.gz" for n in (1, 2)]
    lay(tmp_path, ["sub-brain1/anat/sub-brain1_FLAIR.nii.gz", *raters])
    cohort = read(Bids(), tmp_path)
    assert cohort.cases[0].mask is None
    assert cohort.problems == [f"sub-brain1: several files may be its mask: {', '.join(raters)}"]
    tumour = lay(tmp_path, ["derivatives/tumour/sub-brain1/sub-brain1_dseg.nii.gz"]) / "derivatives/tumour/sub-brain1"
    assert read(Bids(), tmp_path).cases[0].mask == NiftiFile(tumour / "sub-brain1_dseg.nii.gz")


def test_a_csv_may_not_point_out_of_its_folder_unless_plainly(tmp_path: Path) -> None:
    outside = lay(tmp_path, ["secret.nii"]) / "secret.nii"
    folder = lay(tmp_path / "set", ["in.nii"])
    (folder / "link.nii").symlink_to(outside)
    rows = ["scan,patient", "../secret.nii,a", "link.nii,b", "gone.nii,c", ",d", "in.nii,", "in.nii,e", f"{outside},f"]
    (folder / "my.csv").write_text("\n".join(rows))
    cohort = read(Csv(), folder / "my.csv")
    assert [case.patient for case in cohort.cases] == ["e", "f"]
    assert [problem.split(";")[0] for problem in cohort.problems] == [
        "my.csv line 2: scan ../secret.nii is outside the table's folder",
        "my.csv line 3: scan link.nii is outside the table's folder",
        "my.csv line 4: scan gone.nii is not there",
        "my.csv line 5: scan is not told",
        "my.csv line 6: no patient",
    ]


def test_a_csv_without_patients_is_told_and_one_without_scans_has_no_cases(tmp_path: Path) -> None:
    lay(tmp_path, {"1.nii": "", "cohort.csv": "Scan;Grade\n1.nii;IV\n"})
    cohort = read(Csv(), tmp_path)
    assert [told(case, tmp_path) for case in cohort.cases] == ["1 1 IV 1.nii None"]
    assert "no column 'patient'" in cohort.problems[0]
    lay(tmp_path, {"cohort.csv": "image,grade\n1.nii,IV\n"})
    assert read(Csv(), tmp_path).problems == ["cohort.csv: no column 'scan'; there is: image, grade"]


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        *[
            (text, "II")
            for text in ("2", "II", "ii", "G2", "grade 2", "WHO II", "WHO CNS Grade 2", "2.0", " Grade_II ")
        ],
        *[(text, "IV") for text in ("4", "GBM", "Glioblastoma, IDH-wildtype", "WHO grade IV")],
        *[("HGG", "HGG"), ("low-grade glioma", "LGG"), ("High grade", "HGG")],
        *[(text, None) for text in ("", "n/a", "NaN", "--", "[Not Available]", "unknown")],
    ],
)
def test_grades_as_people_write_them(text: str, grade: str | None) -> None:
    assert normal_grade(text) == grade


@pytest.mark.parametrize("text", ["5", "0", "II-III", "astrocytoma", "grade", "22", "2.5"])
def test_what_is_no_grade_is_no_guess(text: str) -> None:
    with pytest.raises(ValueError, match="not understood"):
        normal_grade(text)


def cases_of(*patients: str) -> list[Case]:
    return [Case(f"{patient}_scan", NiftiFile(Path("x")), None, patient, None) for patient in patients]


def grades_from(table: Path, *patients: str, **columns: str) -> tuple[list[str | None], list[str]]:
    cases, problems = with_grades(cases_of(*patients), table, **columns)
    return [case.grade for case in cases], problems


def test_a_table_is_matched_by_the_column_that_holds_the_patients(tmp_path: Path) -> None:
    table = tmp_path / "clinical.csv"
    table.write_text("age,Sample,Grade\n1,HF0001,II\n2,hf-2,GBM\n3,HF0003,III\n3,HF0003,IV\n4,HF0004,?\n5,HF0005,odd\n")
    grades, problems = grades_from(table, "HF0001", "HF0002", "HF0003", "HF0004", "HF0005", "HF0006")
    assert grades == ["II", "IV", None, None, None, None]
    assert problems == [
        "HF0003_scan: clinical.csv says III and IV",
        "HF0005_scan: clinical.csv line 7: grade 'odd' is not understood",
        "HF0006_scan: no row in clinical.csv",
    ]


def test_the_very_text_goes_before_what_only_looks_alike(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("patient,grade\nP-1,II\nP-01,IV\n")
    assert grades_from(table, "P-1", "P-01") == (["II", "IV"], [])
    assert grades_from(table, "P001")[0] == [None], "either may be meant"


def test_columns_can_be_named_and_must_be_there(tmp_path: Path) -> None:
    table = tmp_path / "t.tsv"
    table.write_text("subject\tpath_grade\tgrade_at_biopsy\na\tII\tIV\n")
    assert grades_from(table, "a", patient_column="subject", grade_column="path_grade")[0] == ["II"]
    for columns, error in (
        ({}, "several columns may be the grade"),
        ({"grade_column": "grade"}, "no column 'grade'; there is: subject"),
        ({"grade_column": "path_grade", "patient_column": "id"}, "no column 'id'"),
    ):
        with pytest.raises(ValueError, match=error):
            grades_from(table, "a", **columns)
    with pytest.raises(ValueError, match="none of the patients is in it"):
        grades_from(table, "b", grade_column="path_grade")


def test_kaggles_codes_are_not_who_grades(tmp_path: Path) -> None:
    table = tmp_path / "data.csv"
    table.write_text("Patient,neoplasm_histologic_grade\na,1\nb,2\nc,G2\n")
    assert grades_from(table, "a", "b", "c")[0] == ["II", "III", "II"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_a_table_may_come_from_any_spreadsheet(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("patiënt;grade\r\nä;II\r\n\r\nb;III;;\r\nc\r\n".encode(encoding))
    table = read_table(path)
    assert table.rows == [(2, {"patiënt": "ä", "grade": "II"}), (4, {"patiënt": "b", "grade": "III"})]
    assert table.problems == ["t.csv line 5: 1 cells, expected 2"]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "no header"),
        (b"PK\3\4", "spreadsheet"),
        (b"a," * 2**22, "too large"),
        (b'a,b\n"' + b"x" * 200_000, "line"),
    ],
)
def test_a_table_that_is_none_is_told_by_name(tmp_path: Path, data: bytes, error: str) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(ValueError, match=rf"t\.csv.*{error}"):
        read_table(tmp_path / "t.csv")


def test_a_nifti_file_is_had_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"bytes")
    assert NiftiFile(tmp_path / "a.nii").read() == b"bytes"
    os.mkfifo(tmp_path / "pipe.nii")
    for name in ("gone.nii", "pipe.nii"):
        with pytest.raises(OSError, match=name):
            NiftiFile(tmp_path / name).read()


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.nii").open("wb") as file:
        file.truncate(2**31 + 1)  # takes no room on the disk
    with pytest.raises(ValueError, match=r"a\.nii.*over the limit"):
        NiftiFile(tmp_path / "a.nii").read()


def tiffs(folder: Path, planes: np.ndarray) -> tuple[Path, ...]:
    image = pytest.importorskip("PIL.Image")
    paths = tuple(folder / f"{number}.tif" for number in range(len(planes)))
    for path, plane in zip(paths, planes, strict=True):
        image.fromarray(plane).save(path)
    return paths


def test_slices_become_one_volume_with_the_patients_left_at_the_end_of_a_row(tmp_path: Path) -> None:
    planes = np.random.default_rng(0).integers(0, 255, (4, 6, 5, 3)).astype(np.uint8)
    stack = TiffStack(tiffs(tmp_path, planes), channel=1, spacing=(1, 2, 3))
    image = nib.Nifti1Image.from_bytes(stack.read())
    np.testing.assert_array_equal(np.asarray(image.dataobj), planes[..., 1].transpose(2, 1, 0))
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    assert image.header.get_zooms() == (1, 2, 3)


def test_slices_that_are_none_are_told_by_name(tmp_path: Path) -> None:
    grey = tiffs(tmp_path, np.zeros((2, 6, 5), np.uint8))
    with pytest.raises(ValueError, match=r"0\.tif: pixels \(6, 5\), expected a colour image with a channel 1"):
        TiffStack(grey, channel=1).read()
    (tmp_path / "other").mkdir()
    larger = tiffs(tmp_path / "other", np.zeros((1, 7, 5), np.uint8))
    with pytest.raises(ValueError, match=r"other/0\.tif: .*\(5, 7\) pixels; the slices before it have \(5, 6\)"):
        TiffStack((*grey, *larger)).read()
    grey[1].write_bytes(grey[1].read_bytes()[:60])
    with pytest.raises(ValueError, match=r"1\.tif: "):
        TiffStack(grey).read()
    with pytest.raises(ValueError, match="gone"):
        TiffStack((tmp_path / "gone.tif",)).read()


def test_a_decompression_bomb_is_refused_before_it_goes_off(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "bomb.tif"
    image.new("1", (5000, 5000)).save(path, compression="group4")
    assert path.stat().st_size < 2**15
    with pytest.raises(ValueError, match=r"bomb\.tif: .*over the limit"):
        TiffStack((path,)).read()


def dicom(folder: Path, voxels: np.ndarray, description: str, uid: str) -> Path:
    """A series of axial slices [z, y, x], 4 mm apart, in files whose names tell another order."""
    sitk = pytest.importorskip("SimpleITK")
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k, plane in enumerate(voxels):
        image = sitk.GetImageFromArray(plane)
        image.SetSpacing((0.5, 0.75))
        for tag, value in {
            "0008|0018": f"{uid}.{k}",
            "0008|0060": "MR",
            "0008|103e": description,
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0020|0032": f"-10\\-20\\{30 + 4 * k}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{9 - k}.dcm"))
        writer.Execute(image)
    return folder


VOXELS = np.arange(6 * 8 * 10, dtype=np.int16).reshape(6, 8, 10)


def test_of_several_dicom_series_the_flair_is_read(tmp_path: Path) -> None:
    dicom(tmp_path / "study/a", -VOXELS, "AX T1", "1.2.3.1")
    dicom(tmp_path / "study/b", VOXELS, "Ax T2 Flair", "1.2.3.2")
    image = nib.Nifti1Image.from_bytes(DicomSeries(tmp_path).read())
    np.testing.assert_array_equal(np.asarray(image.dataobj), VOXELS.transpose(2, 1, 0))
    np.testing.assert_allclose(image.affine, [[-0.5, 0, 0, 10], [0, -0.75, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])
    dicom(tmp_path / "study/c", VOXELS, "SAG FLAIR", "1.2.3.3")
    with pytest.raises(
        ValueError, match=r"several series are FLAIR; keep one of Ax T2 Flair \(1\.2\.3\.2\), SAG FLAIR"
    ):
        DicomSeries(tmp_path).read()


def test_a_dicom_series_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    series = dicom(tmp_path / "a", VOXELS, "", "1.2.3.1")
    assert DicomSeries(series).read(), "a single series needs no name"
    (series / "6.dcm").unlink()
    with pytest.raises(ValueError, match="slices are missing"):
        DicomSeries(series).read()
    lay(tmp_path, {"b/1.dcm": "junk"})
    with pytest.raises(ValueError, match="no DICOM series"):
        DicomSeries(tmp_path / "b").read()


def test_what_is_not_installed_is_told_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ValueError, match=r"pip install 'gliaflow\[dicom\]'"):
        DicomSeries(tmp_path).read()
    with pytest.raises(ValueError, match=r"pip install 'gliaflow\[train\]'"):
        TiffStack((tmp_path / "1.tif",)).read()


@pytest.mark.skipif(not REAL.is_dir(), reason="no real scans here (GLIAFLOW_TEST_DATA names their folder)")
def test_real_slices_are_the_volumes_that_others_made_of_them() -> None:
    """The grid, too: without it left and right, or feet and head, would be guessed."""
    cohort = read(Kaggle(), REAL / "kaggle_3m")
    assert [case.grade for case in cohort.cases] == ["III", "II"]
    for case in cohort.cases:
        patient = case.patient.replace("_", "-")
        for volume, kind in ((case.scan, "flair"), (case.mask, "seg")):
            assert volume is not None
            ours = nib.Nifti1Image.from_bytes(volume.read())
            theirs = nib.load(REAL / "tcga-lgg" / patient / f"{patient}_{kind}.nii.gz")
            np.testing.assert_array_equal(np.asarray(ours.dataobj) > 0, np.asarray(theirs.dataobj) > 0)
            np.testing.assert_array_equal(ours.affine, theirs.affine)

"""The other sequences of a FLAIR scan's study: which files are taken, and what is never guessed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gliaflow_plugins.cohorts.layouts import SHIPPED
from gliaflow_plugins.cohorts.leaks import same_files
from gliaflow_plugins.cohorts.read import CohortRequest
from gliaflow_plugins.cohorts.scan_files import Chooser, not_read
from gliaflow_plugins.contracts import Cohort
from gliaflow_plugins.registry import load_registry
from gliaflow_plugins.sequence_names import OTHERS, sequences_of

UCSF = "UCSF-PDGM-0004_nifti/UCSF-PDGM-0004"
REMBRANDT = "900-00-1961_2005.11.27/900-00-1961_2005.11.27"
MSD = {"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}}

# reader: the files, and the sequences of each case
LAYOUTS: dict[str, tuple[dict[str, str], dict[str, dict[str, str]]]] = {
    "brats": (
        dict.fromkeys([f"HGG/A/A_{name}.nii.gz" for name in ("flair", "t1", "t1ce", "t2", "seg")], ""),
        {"A": {"t1": "A_t1.nii.gz", "t1ce": "A_t1ce.nii.gz", "t2": "A_t2.nii.gz"}},
    ),
    "brats2020": (
        dict.fromkeys([f"BraTS20_Training_001/BraTS20_Training_001_{name}.nii" for name in ("flair", "t1ce")], ""),
        {"BraTS20_Training_001": {"t1ce": "BraTS20_Training_001_t1ce.nii"}},
    ),
    "brats2021": (
        dict.fromkeys([f"BraTS2021_00030/BraTS2021_00030_{name}.nii.gz" for name in ("flair", "t1ce", "t2")], ""),
        {"BraTS2021_00030": {"t1ce": "BraTS2021_00030_t1ce.nii.gz", "t2": "BraTS2021_00030_t2.nii.gz"}},
    ),
    "brats2023": (
        dict.fromkeys(
            [f"BraTS-GLI-00005-101/BraTS-GLI-00005-101-{name}.nii.gz" for name in ("t2f", "t1n", "t1c", "t2w")], ""
        ),
        {
            "BraTS-GLI-00005-101": {
                "t1": "BraTS-GLI-00005-101-t1n.nii.gz",
                "t1ce": "BraTS-GLI-00005-101-t1c.nii.gz",
                "t2": "BraTS-GLI-00005-101-t2w.nii.gz",
            }
        },
    ),
    "rembrandt": (
        dict.fromkeys([f"{REMBRANDT}_{name}_LPS_rSRI.nii.gz" for name in ("flair", "t1", "t1ce")], ""),
        {
            "900-00-1961_2005.11.27": {
                "t1": "900-00-1961_2005.11.27_t1_LPS_rSRI.nii.gz",
                "t1ce": "900-00-1961_2005.11.27_t1ce_LPS_rSRI.nii.gz",
            }
        },
    ),
    "ucsf": (
        dict.fromkeys([f"{UCSF}_{name}.nii.gz" for name in ("FLAIR", "FLAIR_bias", "T1c", "T1c_bias", "SWI")], ""),
        {"UCSF-PDGM-0004": {"t1ce": "UCSF-PDGM-0004_T1c.nii.gz"}},
    ),
    "msd": (
        {"imagesTr/BRATS_306.nii.gz": "", "labelsTr/BRATS_306.nii.gz": "", "dataset.json": json.dumps(MSD)},
        {"BRATS_306": {"t1": "BRATS_306.nii.gz:1", "t1ce": "BRATS_306.nii.gz:2", "t2": "BRATS_306.nii.gz:3"}},
    ),
    "bids": (
        dict.fromkeys(
            [f"sub-01/anat/sub-01_{name}.nii.gz" for name in ("FLAIR", "T1w", "ce-gadolinium_T1w", "run-2_T2w")]
            + ["sub-01/anat/sub-01_run-1_T2w.nii.gz", "sub-01/dwi/sub-01_dwi.nii.gz"],
            "",
        ),
        {
            "sub-01": {
                "t1": "sub-01_T1w.nii.gz",
                "t1ce": "sub-01_ce-gadolinium_T1w.nii.gz",
                "t2": "sub-01_run-1_T2w.nii.gz",
            }
        },
    ),
    "folders": (
        dict.fromkeys(
            ["P1/FLAIR.nii.gz", "P1/T1.nii.gz", "P1/T1_Gd.nii.gz", "P2/6_ax_flair/x.nii", "P2/9_ax_t1_km/x.nii"], ""
        ),
        {"P1": {"t1": "T1.nii.gz", "t1ce": "T1_Gd.nii.gz"}, "P2": {"t1ce": "x.nii"}},
    ),
    "csv": (
        {
            **dict.fromkeys(["a.nii", "b.nii", "4d.nii"], ""),
            "cohort.csv": "scan,T1,T1 Gd,t2_channel,channel\na.nii,,b.nii,,\n4d.nii,,,3,0\n",
        },
        {"a": {"t1ce": "b.nii"}, "4d": {"t2": "4d.nii:3"}},
    ),
}


def put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def read(folder: Path, reader: str = "folders") -> Cohort:
    cohort = next(each for each in SHIPPED if each.name == reader).read(folder)
    assert cohort is not None
    return cohort


def found(cohort: Cohort) -> dict[str, dict[str, str]]:
    return {
        case.id: {
            name: Path(str(each.volume)).name + (f":{each.channel}" if each.channel else "")
            for name, each in case.sequences.items()
        }
        for case in cohort.cases
    }


def made(folder: Path, *names: str) -> tuple[dict[str, str], list[str]]:
    """The sequences of the only case of a folder with these files, and the problems."""
    put(folder, dict.fromkeys(names, ""))
    cohort = read(folder)
    (sequences,) = found(cohort).values()
    return sequences, [line for line in cohort.problems if "not used" in line]


@pytest.mark.parametrize("reader", LAYOUTS)
def test_each_layout_has_its_own_names_of_the_sequences(tmp_path: Path, reader: str) -> None:
    files, expected = LAYOUTS[reader]
    put(tmp_path, files)
    cohort = read(tmp_path, reader)
    assert found(cohort) == expected
    assert not any("not used:" in line for line in cohort.problems)


@pytest.mark.parametrize("reader", sorted(LAYOUTS.keys() - {"csv", "msd"}))
def test_the_other_sequences_change_neither_the_scans_nor_the_masks(tmp_path: Path, reader: str) -> None:
    files, _ = LAYOUTS[reader]
    put(tmp_path / "all", files)
    put(tmp_path / "alone", {name: text for name, text in files.items() if not sequences_of(Path(name).name[:-7])})
    cases = [
        [(case.id, str(case.scan).replace(str(folder), ""), case.patient) for case in read(folder, reader).cases]
        for folder in (tmp_path / "all", tmp_path / "alone")
    ]
    assert cases[0] == cases[1]


MEANINGS = {
    "t1ce": "t1ce,T1Gd,t1_post,T1post,t1c,AX T1 +C,T1w MPRAGE KM,T1 fspgr 3D gad,sub-1_ce-gadolinium_T1w,acq-postgd_T1w"
    ",T1 ax dopo mdc,T1 INJECTE,T1 IV+,T1 MPRAGE +,T1 xyz post,T1 nach KM",
    "t1": "t1,t1n,T1 pre contrast,AX T1 w/o,T1 -C,T1 ohne KM,post-op t1,T1 vor KM,t1 before contrast,T1 sin contraste"
    ",T1 zonder contrast,T1 avant gado,T1 prior to contrast,T1 minus gad,T1 senza mdc,t1_mprage_sag_p2_iso 1mm",
    "t2": "T2w,t2_tse_tra",
    # both, or a word that is in no list: przed means before
    "t1 t1ce": "T1 pre and post,AX T1 W/WO GAD,T1 przed KM,T1 xyz,T1 GD001",
    # t1_t1ce: t1 may be a visit
    "": "T2-FLAIR,T2*,t2_star,t1_map,T1 subtraction,T1 c-spine,pd_t2,dwi,t2_tirm_tra,T2 FLR,t1_t1ce",
}


@pytest.mark.parametrize("meaning", MEANINGS)
def test_what_a_name_or_a_description_means(meaning: str) -> None:
    texts = MEANINGS[meaning].split(",")
    assert {text: " ".join(sequences_of(text)) for text in texts} == dict.fromkeys(texts, meaning)


def test_two_candidates_are_named_and_neither_is_used(tmp_path: Path) -> None:
    sequences, problems = made(
        tmp_path, "P1/P1_flair.nii.gz", "P1/P1_t1ce.nii.gz", "P1/P1_t1gd.nii.gz", "P1/P1_t2.nii.gz"
    )
    assert sequences == {"t2": "P1_t2.nii.gz"}
    assert problems == [
        "P1: t1ce is not used: several files may be its T1 after contrast: P1_t1ce.nii.gz, P1_t1gd.nii.gz. "
        "Name it with --t1ce, or in a table"
    ]


def test_post_in_the_names_of_both_may_be_the_visit_so_t1_is_not_used(tmp_path: Path) -> None:
    sequences, problems = made(tmp_path, "P1/P1_post_flair.nii.gz", "P1/P1_post_t1.nii.gz")
    assert sequences == {}
    assert all("before or after contrast?" in line and "P1_post_t1.nii.gz" in line for line in problems)
    assert len(problems) == 2


def test_a_version_registered_onto_the_flair_is_preferred_and_then_the_same_processing(tmp_path: Path) -> None:
    registered, _ = made(tmp_path / "a", "P1/P1_flair.nii.gz", "P1/P1_t1.nii.gz", "P1/P1_t1_to_flair.nii.gz")
    assert registered == {"t1": "P1_t1_to_flair.nii.gz"}
    alike, _ = made(tmp_path / "b", "P1/P1_flair_n4.nii.gz", "P1/P1_t1.nii.gz", "P1/P1_t1_n4.nii.gz")
    assert alike == {"t1": "P1_t1_n4.nii.gz"}


def test_another_visit_or_another_patient_is_not_taken(tmp_path: Path) -> None:
    baseline = ["P1/baseline/flair.nii.gz", "P1/baseline/t1.nii.gz", "P1/followup/flair.nii.gz"]
    others = ["P2/P2_flair.nii.gz", "P2/P3_t1.nii.gz", "P4/P4_baseline_flair.nii.gz", "P4/P4_followup_t1.nii.gz"]
    put(tmp_path, dict.fromkeys([*baseline, *others], ""))
    cases = {case.id: sorted(case.sequences) for case in read(tmp_path).cases}
    assert cases == {"P1_baseline": ["t1"], "P1_followup": [], "P2": [], "P4": []}


# the files of one folder, and what the scan with the first name gets; "-": nothing, and a problem names that file
ONE_FOLDER: dict[str, tuple[str, dict[str, str]]] = {
    "another patient": ("001_flair 002_t1ce", {"t1ce": "-002_t1ce"}),
    "another patient beside an unknown file": ("001_flair 002_fl 002_t1ce", {"t1ce": "-002_t1ce"}),
    "another patient without FLAIR in the names": ("002 001 001_t1ce", {}),
    "another date": ("20190101_flair 20190101_t1 20200615_t1ce", {"t1": "20190101_t1", "t1ce": "-20200615_t1ce"}),
    "another date of a patient": ("P1_2019-01-01_flair P1_2020-06-15_t1ce", {"t1ce": "-P1_2020-06-15_t1ce"}),
    "another visit of BraTS": ("BraTS-GLI-1-000-t2f BraTS-GLI-1-001-t1c", {"t1ce": "-BraTS-GLI-1-001-t1c"}),
    "another number": ("6_ax_flair 9_ax_t1_km", {"t1ce": "-9_ax_t1_km"}),
    "a patient called GD": ("GD001_flair GD001_t1", {"t1": "GD001_t1"}),
    "a patient called gad": ("gaddis_flair gaddis_t1", {"t1": "gaddis_t1"}),
    "a patient called CE": ("CE_01_flair CE_01_t1", {"t1": "-CE_01_t1", "t1ce": "-CE_01_t1"}),
    "a patient called NC": ("NC_01_flair NC_01_t1_post NC_01_t1", {"t1": "NC_01_t1", "t1ce": "NC_01_t1_post"}),
    "a subject of BIDS called gd": ("sub-gd_FLAIR sub-gd_T1w", {"t1": "sub-gd_T1w"}),
    "a session of BIDS called post": ("sub-1_ses-post_FLAIR sub-1_ses-post_T1w", {"t1": "sub-1_ses-post_T1w"}),
    "FLAIR of Siemens": ("P1_flair P1_t2_tirm", {}),
    "visits t1 and t2": (
        "P1_t2_flair P1_t1_flair P1_t1_t1ce P1_t1_mprage",
        {"t1": "-P1_t1_flair", "t1ce": "-P1_t1_flair", "t2": "-P1_t1_flair"},
    ),
    "a visit t1": ("P1_t2_flair P1_t1_t1ce", {}),
    "registered": ("P1_FLAIR P1_T1toFLAIR P1_T1", {"t1": "P1_T1toFLAIR"}),
    "a plus": ("P1_flair P1_t1+c P1_t1", {"t1": "P1_t1", "t1ce": "P1_t1+c"}),
}


@pytest.mark.parametrize("case", ONE_FOLDER)
def test_what_may_be_of_another_patient_or_visit_is_not_taken_and_named(tmp_path: Path, case: str) -> None:
    names, expected = ONE_FOLDER[case]
    place = tmp_path / "glioma"
    put(place, dict.fromkeys([f"{name}.nii.gz" for name in names.split()], ""))
    chooser = Chooser(sequences=OTHERS)
    name = names.split()[0]
    for scan in (
        *(each for each in chooser.folder(place) if each.path.name == f"{name}.nii.gz"),
        chooser.one(place / f"{name}.nii.gz"),
    ):
        used = {name: each.path.name.removesuffix(".nii.gz") for name, each in scan.sequences.found.items()}
        assert used == {name: text for name, text in expected.items() if text[0] != "-"}
        unused = {name: text[1:] for name, text in expected.items() if text[0] == "-"}
        assert scan.sequences.problems.keys() == unused.keys()
        assert all(unused[name] in why and f"--{name}" in why for name, why in scan.sequences.problems.items())


def test_folders_called_t1_and_t2_with_a_flair_are_those_of_visits(tmp_path: Path) -> None:
    put(tmp_path, dict.fromkeys([f"P1/{name}.nii.gz" for name in ("T1/P1_FLAIR", "T2/P1_FLAIR", "T2/P1_T1ce")], ""))
    scans = Chooser(sequences=OTHERS).folder(tmp_path)
    assert [[*scan.sequences.found] for scan in scans] == [[], ["t1ce"]]


def test_a_number_of_a_folder_is_that_of_a_series_unless_it_is_padded_as_a_patients(tmp_path: Path) -> None:
    names = ["P1/5-ax_flair/NIFTI/x", "P1/9-ax_t1_km/NIFTI/x", "study/001_FLAIR/x", "study/002_T1ce/x"]
    put(tmp_path, dict.fromkeys([f"{name}.nii.gz" for name in names], ""))
    series, padded = (scan.sequences for scan in Chooser(sequences=OTHERS).folder(tmp_path))
    assert series.found["t1ce"].path == tmp_path / f"{names[1]}.nii.gz"
    assert padded.found == {}
    assert "002_T1ce/x.nii.gz: another number than in 001_FLAIR/x.nii.gz" in padded.problems["t1ce"]


def test_sequences_in_folders_of_their_names(tmp_path: Path) -> None:
    by_patient, _ = made(
        tmp_path / "a", "P1/FLAIR/image.nii.gz", "P1/T1/image.nii.gz", "P1/3_t1_post/nifti/image.nii.gz"
    )
    assert set(by_patient) == {"t1", "t1ce"}
    put(tmp_path / "b", dict.fromkeys(["FLAIR/P1.nii.gz", "FLAIR/P2.nii.gz", "T1/P1.nii.gz", "T1/P2.nii.gz"], ""))
    scans = Chooser(sequences=OTHERS).folder(tmp_path / "b")
    assert [[each.path.name for each in scan.sequences.found.values()] for scan in scans] == [
        ["P1.nii.gz"],
        ["P2.nii.gz"],
    ]


def test_of_a_flat_folder_each_scan_has_its_own(tmp_path: Path) -> None:
    names = [f"P{n}_{kind}.nii.gz" for n in range(3) for kind in ("flair", "t1ce")]
    put(tmp_path, dict.fromkeys(names, ""))
    chooser = Chooser(sequences=OTHERS)
    pairs = [
        (scan.path.name[:2], *(e.path.name[:2] for e in scan.sequences.found.values()))
        for scan in chooser.folder(tmp_path)
    ]
    assert pairs == [("P0", "P0"), ("P1", "P1"), ("P2", "P2")]
    assert chooser.left_out == []


def test_nobody_looks_for_sequences_that_are_not_wanted(tmp_path: Path) -> None:
    put(
        tmp_path, dict.fromkeys(["P1/P1_flair.nii.gz", "P1/P1_t1ce.nii.gz", "P1/P1_t1gd.nii.gz", "P1/P1_t2.nii.gz"], "")
    )
    chooser = Chooser(sequences=("t2",))
    (scan,) = chooser.folder(tmp_path)
    assert (list(scan.sequences.found), scan.sequences.problems) == (["t2"], {})
    assert [each.path.name for each in chooser.left_out] == ["P1_t1ce.nii.gz", "P1_t1gd.nii.gz"]
    (scan,) = Chooser().folder(tmp_path)
    assert (scan.sequences.found, scan.sequences.problems) == ({}, {})


def test_nnunets_files_are_known_by_the_channels_of_dataset_json(tmp_path: Path) -> None:
    names = [f"imagesTr/C1_000{n}.nii.gz" for n in range(3)]
    put(
        tmp_path,
        {
            **dict.fromkeys([*names, "labelsTr/C1.nii.gz"], ""),
            "dataset.json": '{"channel_names": {"0": "T1", "1": "FLAIR", "2": "T1 post"}}',
        },
    )
    assert found(read(tmp_path, "msd")) == {"C1": {"t1": "C1_0000.nii.gz", "t1ce": "C1_0002.nii.gz"}}


def test_a_channel_that_may_be_before_or_after_contrast_is_named(tmp_path: Path) -> None:
    described = {"modality": {"0": "FLAIR", "1": "T1 vor KM", "2": "T1 xyz KM"}}
    put(tmp_path, {"imagesTr/B1.nii.gz": "", "labelsTr/B1.nii.gz": "", "dataset.json": json.dumps(described)})
    cohort = read(tmp_path, "msd")
    assert found(cohort) == {"B1": {"t1": "B1.nii.gz:1"}}
    assert any(
        "t1ce is not used: before or after contrast?" in line and "2 (T1 xyz KM)" in line for line in cohort.problems
    )


def test_two_channels_of_one_meaning_are_named(tmp_path: Path) -> None:
    described = {"modality": {"0": "FLAIR", "1": "T1gd", "2": "T1c"}}
    put(tmp_path, {"imagesTr/B1.nii.gz": "", "labelsTr/B1.nii.gz": "", "dataset.json": json.dumps(described)})
    cohort = read(tmp_path, "msd")
    assert found(cohort) == {"B1": {}}
    assert "B1: t1ce is not used: several channels may be its T1 after contrast: 1 (T1gd), 2 (T1c)" in cohort.problems


def test_kaggles_copy_of_flair_in_the_place_of_a_missing_sequence_is_not_used(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    case = tmp_path / "TCGA_CS_4938_19970222"
    case.mkdir()
    for number in (1, 2, 3):
        pixels = np.random.default_rng(number).integers(1, 255, (4, 4, 3), np.uint8)
        pixels[..., 2] = pixels[..., 1]
        pillow.fromarray(pixels).save(case / f"{case.name}_{number}.tif")
    (tmp_path / "data.csv").write_text("Patient,neoplasm_histologic_grade\nTCGA_CS_4938,1\n")
    (only,) = read(tmp_path, "kaggle").cases
    assert list(only.sequences) == ["t1"]
    assert only.sequences["t1"].volume.read() != only.scan.read()


def test_a_sequence_that_was_not_fetched_is_a_problem_with_the_command(tmp_path: Path) -> None:
    put(tmp_path, {"P1/P1_flair.nii.gz": "", "P1/P1_t1.nii.gz": "version https://git-lfs.github.com/spec/v1\n"})
    cohort = read(tmp_path)
    assert found(cohort) == {"P1": {}}
    assert any("P1: t1 is not used: P1_t1.nii.gz" in line and "git lfs pull" in line for line in cohort.problems)


def test_a_missing_file_of_a_table_is_a_problem_and_the_scan_stays(tmp_path: Path) -> None:
    put(tmp_path, {"a.nii": "", "cohort.csv": "scan,patient,t1ce\na.nii,P1,gone.nii\n"})
    cohort = read(tmp_path, "csv")
    assert found(cohort) == {"a": {}}
    assert "cohort.csv line 2: t1ce is not used: gone.nii does not exist" in cohort.problems
    assert cohort.cases[0].unused == {"t1ce": "gone.nii does not exist"}


def test_a_table_that_names_one_image_twice_uses_it_for_neither(tmp_path: Path) -> None:
    put(tmp_path, {"a.nii": "", "b.nii": "", "cohort.csv": "scan,patient,t1,t1ce,t2\na.nii,P1,b.nii,./b.nii,a.nii\n"})
    cohort = read(tmp_path, "csv")
    assert found(cohort) == {"a": {}}
    assert cohort.problems == [
        "cohort.csv line 2: t1 is not used: it is the same image as t1ce",
        "cohort.csv line 2: t1ce is not used: it is the same image as t1",
        "cohort.csv line 2: t2 is not used: it is the same image as scan",
    ]


def test_two_columns_that_may_be_one_sequence_are_refused(tmp_path: Path) -> None:
    put(tmp_path, {"a.nii": "", "cohort.csv": "scan,patient,T1Gd,T1c\na.nii,P1,a.nii,a.nii\n"})
    assert "several columns may be t1ce: 'T1Gd' and 'T1c'" in read(tmp_path, "csv").problems[0]


def test_one_file_of_two_patients_is_a_leak_and_a_file_that_is_used_is_not_left_out(tmp_path: Path) -> None:
    table = "scan,patient,t1ce\na.nii,P1,c.nii\nb.nii,P2,c.nii\n"
    put(tmp_path, {"a.nii": "a", "b.nii": "b", "c.nii": "c", "cohort.csv": table})
    cohort = CohortRequest(tmp_path).read(load_registry())
    assert same_files(cohort.cases)[0] == ["one file is the t1ce of a (patient P1) and b (patient P2)"]
    assert not_read(cohort, tmp_path) == []

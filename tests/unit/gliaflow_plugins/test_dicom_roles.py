"""Which series of a study are its T1, its T1 after contrast and its T2, by their headers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow_plugins.cohorts.read import CohortRequest
from gliaflow_plugins.cohorts.scan_files import not_read
from gliaflow_plugins.dicom.choose import FlairRules, find_series
from gliaflow_plugins.dicom.series import DicomSeries
from gliaflow_plugins.registry import load_registry
from gliaflow_plugins.sequence_names import OTHERS
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence
from sample_dicom import AXIAL, CANARY, enhanced, head, single_frames, uid, write, write_flair

SMALL = head((12, 10, 12))
SAGITTAL = np.array([[0.0, 0, 5, -30], [-1, 0, 0, 100], [0, -1, 0, 60], [0, 0, 0, 1]])
RULES = FlairRules(sequences=OTHERS)


def spin_echo(
    number: int, repetition: float = 600, echo: float = 10, **fields: Any
) -> Callable[[FileDataset, int], None]:
    def change(image: FileDataset, _: int) -> None:
        image.ScanningSequence, image.InversionTime = "SE", None
        image.RepetitionTime, image.EchoTime, image.SeriesNumber = repetition, echo, number
        for keyword, value in fields.items():
            setattr(image, keyword, value)

    return change


def add(folder: Path, name: str, number: int, affine: Any = AXIAL, **fields: Any) -> None:
    change = spin_echo(number, **fields)
    write(single_frames(SMALL, affine, series=name, change=change), folder / f"{number} {name}")


def flair_of(folder: Path, rules: FlairRules = RULES) -> DicomSeries:
    (series,) = find_series(sorted(folder.rglob("*.dcm")), rules).flair
    return series


def roles(series: DicomSeries) -> dict[str, int | None]:
    return {name: each.number for name, each in series.sequences.items()}


def test_roles_by_description_and_contrast_agent(tmp_path: Path) -> None:
    write_flair(tmp_path / "flair", SMALL)
    add(tmp_path, "t1 tse tra", 1)
    add(tmp_path, "t1 tse", 2, ContrastBolusAgent="Dotarem 15 ml")
    add(tmp_path, "t2 tse tra", 3, repetition=5000, echo=100, ContrastBolusAgent="Dotarem 15 ml")
    add(tmp_path, "dwi", 5)
    series = flair_of(tmp_path)
    assert roles(series) == {"t1": 1, "t1ce": 2, "t2": 3}
    assert series.sequence_problems == {}
    assert all(each.problem == "" and each.warnings == () for each in series.sequences.values())
    assert series.sequences["t1"].read()


def test_a_description_beats_the_agent_which_some_scanners_state_in_the_whole_study(tmp_path: Path) -> None:
    write_flair(tmp_path / "flair", SMALL)
    add(tmp_path, "t1 native", 1, ContrastBolusAgent="Gd")
    add(tmp_path, "t1 +C", 2, ContrastBolusAgent="NONE")
    assert roles(flair_of(tmp_path)) == {"t1": 1, "t1ce": 2}


def test_the_agent_says_nothing_if_it_may_be_stated_in_the_whole_study(tmp_path: Path) -> None:
    wide = np.array([[0.0, 0, 8, 50], [-8, 0, 0, 150], [0, 8, 0, -70], [0, 0, 0, 1]])  # sagittal, around the FLAIR
    write_flair(tmp_path / "flair", SMALL)
    add(tmp_path, "t1 se tra", 1, ContrastBolusAgent="Gd")
    add(tmp_path, "t1 se post", 2, wide, ContrastBolusAgent="Gd")
    series = flair_of(tmp_path)
    assert roles(series) == {"t1ce": 2}
    assert "before or after contrast?" in series.sequence_problems["t1"]
    add(tmp_path, "t1 se", 3)  # without: then the others' agent is their own, and what a description says is preferred
    assert roles(flair_of(tmp_path)) == {"t1": 3, "t1ce": 2}


def test_of_a_word_that_no_list_knows_the_agent_decides_if_it_tells_two_series_apart(tmp_path: Path) -> None:
    write_flair(tmp_path / "flair", SMALL)
    add(tmp_path, "t1 xyz", 1)
    series = flair_of(tmp_path)
    assert (roles(series), sorted(series.sequence_problems)) == ({}, ["t1", "t1ce"])
    add(tmp_path, "t1 zyx", 2, ContrastBolusAgent="Gd")
    assert roles(flair_of(tmp_path)) == {"t1": 1, "t1ce": 2}


def test_the_name_of_a_protocol_that_the_flair_has_too_says_nothing(tmp_path: Path) -> None:
    def of_protocol(image: FileDataset, _: int) -> None:
        image.ProtocolName = "HEAD GLIOM W/WO KM"

    write_flair(tmp_path / "flair", SMALL, change=of_protocol)
    for number, name in ((1, "t1 nativ"), (2, "t1 post")):
        add(tmp_path, name, number, ProtocolName="HEAD GLIOM W/WO KM")
    assert roles(flair_of(tmp_path)) == {"t1": 1, "t1ce": 2}


def test_a_flair_without_positions_has_no_roles_and_its_own_problem(tmp_path: Path) -> None:
    def unplaced(image: FileDataset, _: int) -> None:
        del image.ImagePositionPatient

    write_flair(tmp_path / "P1/flair", SMALL, change=unplaced)
    add(tmp_path / "P1", "t1", 1)
    series = flair_of(tmp_path, FlairRules(sequences=OTHERS, sequence_series={"t1ce": "1"}))
    assert "ImagePositionPatient: missing" in series.problem
    assert (series.sequences, series.sequence_problems) == ({}, {})


def test_a_series_of_another_patient_is_refused(tmp_path: Path) -> None:
    write_flair(tmp_path / "flair", SMALL)
    add(tmp_path, "t1 post", 1, PatientID="another")
    series = flair_of(tmp_path)
    assert roles(series) == {}
    assert series.sequence_problems == {"t1ce": "series 1, 12 images: another PatientID than the FLAIR series"}


def test_other_flair_series_are_neither_t2_nor_the_scan(tmp_path: Path) -> None:
    def inversion(number: int, time: float, echo: float, *types: str) -> Callable[[FileDataset, int], None]:
        def change(image: FileDataset, _: int) -> None:
            image.SeriesNumber, image.InversionTime, image.EchoTime = number, time, echo
            image.ImageType = [*types, "PRIMARY"]

        return change

    for number, (name, *of) in enumerate(
        [
            ("t2_tirm_tra", 2500, 90, "ORIGINAL"),
            ("t2_tirm_cor", 2500, 90, "DERIVED"),
            ("AX T1 FLAIR", 780, 10, "ORIGINAL"),
        ],
        1,
    ):
        write(single_frames(SMALL, series=name, change=inversion(number, *of)), tmp_path / name)
    series = flair_of(tmp_path)
    assert (series.number, series.problem, roles(series)) == (1, "", {"t1": 3})


def test_a_series_that_the_user_named_for_one_sequence_is_no_other(tmp_path: Path) -> None:
    write_flair(tmp_path / "flair", SMALL)
    add(tmp_path, "t1", 1)
    assert roles(flair_of(tmp_path, FlairRules(sequences=OTHERS, sequence_series={"t1ce": "1"}))) == {"t1ce": 1}
    twice = flair_of(tmp_path, FlairRules(sequences=OTHERS, sequence_series={"t1": "1", "t1ce": "t1"}))
    assert roles(twice) == {"t1": 1}
    assert twice.sequence_problems == {"t1ce": "series 1, 12 images is its T1, by --t1"}


def test_the_flair_and_what_is_left_out_are_the_same_whether_roles_are_looked_for_or_not(tmp_path: Path) -> None:
    write_flair(tmp_path / "flair", SMALL)
    add(tmp_path, "t1", 1)
    add(tmp_path, "dwi", 5)
    paths = sorted(tmp_path.rglob("*.dcm"))
    plain, with_roles = find_series(paths), find_series(paths, RULES)
    assert plain.flair == with_roles.flair
    assert plain.flair[0].sequences == {}
    assert len(plain.left_out) == 2
    assert [each.path.name for each in with_roles.left_out] == ["5 dwi"]


def test_two_series_of_one_role_are_named_and_a_number_or_uid_chooses(tmp_path: Path) -> None:
    write_flair(tmp_path / "flair", SMALL)
    add(tmp_path, "t1 post", 6)
    add(tmp_path, "t1 post 2", 7)
    series = flair_of(tmp_path)
    assert roles(series) == {}
    problem = series.sequence_problems["t1ce"]
    assert problem.startswith("2 series may be its T1 after contrast: series 6, 12 images; series 7, 12 images")
    assert f"--t1ce {uid('study', 't1 post 2')}" in problem
    assert CANARY not in problem
    assert "t1 post" not in problem  # people write names into descriptions
    for value in ("7", uid("study", "t1 post 2"), "post 2"):
        assert roles(flair_of(tmp_path, FlairRules(sequences=("t1ce",), sequence_series={"t1ce": value}))) == {
            "t1ce": 7
        }


def test_of_a_choice_that_no_series_has_there_is_a_problem(tmp_path: Path) -> None:
    write_flair(tmp_path / "flair", SMALL)
    series = flair_of(tmp_path, FlairRules(sequences=("t1",), sequence_series={"t1": "99"}))
    assert series.sequence_problems == {"t1": "no series of the study matches --t1 99"}


def test_an_original_series_in_the_plane_of_the_flair_is_preferred(tmp_path: Path) -> None:
    write_flair(tmp_path / "flair", head((60, 60, 12)))
    add(tmp_path, "t1 ax post", 6)
    add(tmp_path, "t1 sag post", 7, SAGITTAL)
    add(tmp_path, "t1 post mpr", 8, ImageType=["DERIVED", "SECONDARY", "MPR"])
    write(single_frames(head((60, 60, 12)), series="t1 wide post", change=spin_echo(9)), tmp_path / "wide")
    assert roles(flair_of(tmp_path)) == {"t1ce": 9}  # series 6 to 8 cover too little of this FLAIR


def test_of_two_planes_the_flairs_own_is_taken(tmp_path: Path) -> None:
    write_flair(tmp_path / "flair", SMALL)
    add(tmp_path, "t1 ax post", 6)
    wide = np.array([[0.0, 0, 8, 50], [-8, 0, 0, 150], [0, 8, 0, -70], [0, 0, 0, 1]])  # sagittal, around the FLAIR
    add(tmp_path, "t1 sag post", 7, wide)
    add(tmp_path, "t1 post mpr", 8, ImageType=["DERIVED", "SECONDARY", "MPR"])
    assert roles(flair_of(tmp_path)) == {"t1ce": 6}


def test_another_frame_of_reference_is_refused_by_name_unless_it_overlaps(tmp_path: Path) -> None:
    write_flair(tmp_path / "flair", SMALL)
    moved = AXIAL.copy()
    moved[:3, 3] += [0, 0, 300]
    add(tmp_path, "t1", 1, moved, FrameOfReferenceUID=uid("other"))
    add(tmp_path, "t2", 2, FrameOfReferenceUID=uid("other"))
    series = flair_of(tmp_path)
    assert roles(series) == {"t2": 2}
    assert series.sequence_problems == {
        "t1": "series 1, 12 images: another frame of reference than the FLAIR series, and it covers 0% of that"
    }
    assert "did the patient move between them?" in series.sequences["t2"].warnings[0]


def test_a_slab_of_a_part_of_the_head_and_a_series_with_a_missing_slice_are_refused_by_name(tmp_path: Path) -> None:
    write_flair(tmp_path / "flair", head((12, 10, 40)))
    add(tmp_path, "t1", 1)
    write(single_frames(head((12, 10, 40)), series="t2", change=spin_echo(2)), tmp_path / "t2")[20].unlink()
    problems = flair_of(tmp_path).sequence_problems
    assert problems["t1"].endswith("of the FLAIR series; at least 50% are needed")
    assert "1 slice is missing between" in problems["t2"]


def test_without_descriptions_spin_echoes_are_known_by_their_timing_with_a_warning(tmp_path: Path) -> None:
    write_flair(tmp_path / "flair", SMALL)
    add(tmp_path, "a", 1)
    add(tmp_path, "b", 2, repetition=4000, echo=90)
    add(tmp_path, "c", 3, ContrastBolusAgent="Gadovist")
    add(tmp_path, "d", 5, repetition=1800, echo=50)
    add(tmp_path, "e", 6, ScanningSequence="GR")
    series = flair_of(tmp_path)
    assert roles(series) == {"t1": 1, "t2": 2, "t1ce": 3}
    assert series.sequences["t2"].warnings == ("known by its timing alone (TR 4000 ms, TE 90 ms)",)


def test_enhanced_images_state_contrast_and_agent_in_sequences(tmp_path: Path) -> None:
    def weighted(image: FileDataset) -> None:
        image.AcquisitionContrast = "T1"
        image.ContrastBolusAgentSequence = Sequence([Dataset()])
        del image.SharedFunctionalGroupsSequence[0].MRModifierSequence

    write([enhanced(SMALL)], tmp_path / "flair")
    write([enhanced(SMALL, series="x", change=weighted)], tmp_path / "x")
    assert list(flair_of(tmp_path).sequences) == ["t1ce"]


def test_a_cohort_of_dicom_has_the_sequences_and_names_the_doubtful(tmp_path: Path) -> None:
    write_flair(tmp_path / "P1/flair", SMALL)
    add(tmp_path / "P1", "t1 post", 6)
    add(tmp_path / "P1", "t2", 7, repetition=5000, echo=100)
    add(tmp_path / "P1", "t2 again", 8, repetition=5000, echo=100)
    cohort = CohortRequest(tmp_path).read(load_registry())
    (case,) = cohort.cases
    assert list(case.sequences) == ["t1ce"]
    assert any(line.startswith("P1: t2 is not used: 2 series may be its T2: series 7") for line in cohort.problems)
    assert {each.path.name for each in not_read(cohort, tmp_path)} == {"7 t2", "8 t2 again"}

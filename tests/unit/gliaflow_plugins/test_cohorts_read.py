"""Reading a cohort: which reader is used, the class of each grade, and the problems that are reported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from gliaflow_plugins.cohorts.read import HIGH, CohortRequest
from gliaflow_plugins.cohorts.volumes import NiftiFile
from gliaflow_plugins.contracts import Case, Cohort, PluginError
from gliaflow_plugins.registry import Registry, load_registry

REAL = Path(os.environ.get("GLIAFLOW_TEST_DATA", Path(__file__).parents[4] / "shared/data"))
REGISTRY = load_registry()


class Mine:
    """A plugin's reader that knows every folder."""

    name = "mine"

    def __init__(self, *cases: tuple[str, str, str | None], error: Exception | None = None) -> None:
        self.cases, self.error = cases, error

    def read(self, folder: Path) -> Cohort | None:
        if self.error:
            raise self.error
        return Cohort(
            "mine",
            [
                Case(name, NiftiFile(folder / f"{n}.nii"), NiftiFile(folder / f"{n}_seg.nii"), patient, grade)
                for n, (name, patient, grade) in enumerate(self.cases)
            ],
        )


def only(*cases: tuple[str, str, str | None]) -> Registry:
    return Registry(readers={"mine": Mine(*cases)})


def folders(folder: Path, grades: dict[str, str]) -> Path:
    """A folder for each patient, with grades in participants.tsv."""
    for patient in grades:
        (folder / patient).mkdir()
        for kind in ("flair", "seg"):
            (folder / patient / f"{patient}_{kind}.nii.gz").touch()
    rows = [f"{patient}\t{grade}\n" for patient, grade in grades.items()]
    (folder / "participants.tsv").write_text("participant_id\tgrade\n" + "".join(rows))
    return folder


def labels(cohort: Cohort) -> list[str | None]:
    return [case.label for case in cohort.cases]


def test_the_high_grades_decide_which_scans_are_hgg(tmp_path: Path) -> None:
    grades = {"a": "1", "b": "II", "c": "3", "d": "IV", "e": "HGG", "f": "LGG", "g": "n/a"}
    folders(tmp_path, grades)
    assert labels(CohortRequest(tmp_path).read(REGISTRY)) == ["LGG", "LGG", "HGG", "HGG", "HGG", "LGG", None]
    brats = CohortRequest(tmp_path, high="4").read(REGISTRY)
    assert labels(brats) == ["LGG", "LGG", "LGG", "HGG", "HGG", "LGG", None]
    assert [case.grade for case in brats.cases] == ["I", "II", "III", "IV", "HGG", "LGG", None], "as found"
    assert (brats.layout, brats.reader) == ("one folder a patient", "folders")
    assert labels(CohortRequest(tmp_path, high="").read(REGISTRY)).count("HGG") == 1, (
        "no grade is high, only HGG itself"
    )
    for high in ("V", "LGG", "III,unknown"):
        with pytest.raises(PluginError, match="high"):
            CohortRequest(tmp_path, high=high).read(REGISTRY)


def test_a_request_names_the_grades_that_count_as_high(tmp_path: Path) -> None:
    assert CohortRequest(tmp_path).high_grades == HIGH == ("III", "IV")
    assert CohortRequest(tmp_path, high=" 4 , III,").high_grades == ("4", "III")
    assert CohortRequest(tmp_path, high="").high_grades == ()


def test_the_grades_of_a_table_replace_those_of_the_folder(tmp_path: Path) -> None:
    folders(tmp_path, {"HF0001": "II", "HF0002": "II", "HF0003": "IV"})
    table = tmp_path / "clinical.csv"
    table.write_text("Sample,Disease,Stage\nHF0001,GBM,4\nHF2,GBM,?\n")
    cohort = CohortRequest(tmp_path, grades=table, grade_column="Stage").read(REGISTRY)
    assert [case.grade for case in cohort.cases] == ["IV", "II", "IV"]
    assert cohort.problems == [
        "clinical.csv replaces grades of the folder that contradict it: HF0001 IV for II",
        "clinical.csv: no row for 1 of 3 patients: HF0003",
    ]
    assert [text.partition(";")[0] for text in cohort.tables] == [
        "participants.tsv: patients by 'participant_id', grades by 'grade'",
        "clinical.csv: patients by 'Sample', grades by 'Stage'",
    ]
    with pytest.raises(PluginError, match=r"no column is called grade \(columns: Sample.*--grade-column"):
        CohortRequest(tmp_path, grades=table).read(REGISTRY)
    with pytest.raises(PluginError, match="name it with --grades"):
        CohortRequest(tmp_path, grade_column="Stage").read(REGISTRY)
    with pytest.raises(PluginError, match=r"--grades .*gone\.csv: no such file"):
        CohortRequest(tmp_path, grades=tmp_path / "gone.csv").read(REGISTRY)


def test_each_problem_names_its_case(tmp_path: Path) -> None:
    registry = only(("s1", "p", "II"), ("s2", "p", "IV"), ("s3", "q", "III"), ("s4", "q", "IV"), ("s5", "r", "bad"))
    cohort = CohortRequest(tmp_path).read(registry)
    assert labels(cohort) == [None, None, "HGG", "HGG", None]
    assert cohort.problems == [
        "s5: grade 'bad' is not understood",
        "p: 2 scans",
        "q: 2 scans",
        "every scan with a class is HGG (high: III, IV)",
        "s5: no grade",
    ]
    assert cohort.leaks == [
        "p: scans of grade II and IV; both high and low, so left out of both",
        "q: scans of grade III and IV",
    ]


def test_names_of_one_patient_in_several_spellings_are_a_leak(tmp_path: Path) -> None:
    names = ("p1", "P1 ", "P-01", "sub-p1", "P2", "P10", "P-1-0")
    cohort = CohortRequest(tmp_path).read(only(*((name, name, "II") for name in names)))
    assert cohort.leaks == [
        "the patients 'p1', 'P1 ', 'P-01' and 'sub-p1' may be one: their names differ in spelling only"
    ]


def test_one_file_of_two_patients_is_a_leak_and_of_one_patient_a_problem(tmp_path: Path) -> None:
    for name in ("a.nii", "b.nii", "c.nii", "m.nii"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link.nii").symlink_to("a.nii")
    (tmp_path / "hard.nii").hardlink_to(tmp_path / "b.nii")
    rows = ["a.nii,,p1,2", "link.nii,,p2,2", "b.nii,,p3,2", "hard.nii,,p3,2", "c.nii,m.nii,p4,2", "c.nii,m.nii,p5,4"]
    (tmp_path / "cohort.csv").write_text("scan,mask,patient,grade\n" + "\n".join(rows))
    cohort = CohortRequest(tmp_path).read(REGISTRY)
    assert cohort.leaks == [
        "one file is the scan of a (patient p1) and link (patient p2)",
        "one file is the scan of c (patient p4) and c-2 (patient p5)",
        "one file is the mask of c (patient p4) and c-2 (patient p5)",
    ]
    assert "one file is the scan of b (patient p3) and hard (patient p3)" in cohort.problems


def test_a_grade_that_every_scan_misses_is_one_problem(tmp_path: Path) -> None:
    cohort = CohortRequest(tmp_path).read(only(("a", "a", None), ("b", "b", None)))
    assert cohort.problems == ["no scan has a grade (--grades TABLE gives them)"]


def test_ids_are_unique_and_names_contain_no_terminal_commands(tmp_path: Path) -> None:
    cohort = CohortRequest(tmp_path).read(
        only(("A", "p", "II"), ("a", "q", "II"), ("a-2", "r", "II"), ("\x1b[2J\udc80", "\n", "II"))
    )
    assert [case.id for case in cohort.cases] == ["A", "a-2", "a-2-2", "?[2J?"]
    assert cohort.cases[3].patient == "?"


def test_an_installed_reader_comes_before_those_that_ship_unless_the_request_names_one(tmp_path: Path) -> None:
    folders(tmp_path, {"a": "II"})
    registry = load_registry()
    registry.readers["mine"] = Mine(("x", "x", "II"))
    assert CohortRequest(tmp_path).read(registry).reader == "mine"
    assert CohortRequest(tmp_path, reader="folders").read(registry).reader == "folders"
    with pytest.raises(PluginError, match="reader brats does not know this layout"):
        CohortRequest(tmp_path, reader="brats").read(registry)
    with pytest.raises(PluginError, match="no usable reader 'none'"):
        CohortRequest(tmp_path, reader="none").read(registry)


def test_a_broken_reader_does_not_stop_the_others(tmp_path: Path) -> None:
    folders(tmp_path, {"a": "II"})
    registry = load_registry()
    registry.readers["mine"] = Mine(error=RuntimeError("oh no"))
    cohort = CohortRequest(tmp_path).read(registry)
    assert cohort.reader == "folders"
    assert "reader mine failed: RuntimeError: oh no" in cohort.problems
    with pytest.raises(PluginError, match=r"reader mine failed on .*oh no"):
        CohortRequest(tmp_path, reader="mine").read(registry)


def test_an_unknown_layout_and_a_missing_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"no reader knows this layout \(readers: csv, brats"):
        CohortRequest(tmp_path).read(REGISTRY)
    with pytest.raises(PluginError, match="gone: no such folder or table"):
        CohortRequest(tmp_path / "gone").read(REGISTRY)


@pytest.mark.skipif(not REAL.is_dir(), reason="no real scans here (GLIAFLOW_TEST_DATA names their folder)")
def test_real_patients_of_two_grades() -> None:
    cohort = CohortRequest(REAL / "tcga-lgg").read(REGISTRY)
    assert (len(cohort.cases), labels(cohort).count("HGG"), labels(cohort).count("LGG")) == (71, 37, 33)
    assert all(case.mask is not None for case in cohort.cases)
    assert cohort.problems == ["TCGA-HT-A61B: no grade"]
    again = CohortRequest(REAL / "tcga-lgg", grades=REAL / "kaggle_3m/data.csv").read(REGISTRY)
    assert [case.grade for case in again.cases] == [case.grade for case in cohort.cases]

"""Grades in their spellings, and the clinical tables that contain them."""

from __future__ import annotations

from pathlib import Path

import pytest
from gliaflow_plugins.cohorts.clinical_tables import normal_grade, read_table, with_grades
from gliaflow_plugins.cohorts.volumes import NiftiFile
from gliaflow_plugins.contracts import Case


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
def test_the_spellings_of_a_grade(text: str, grade: str | None) -> None:
    assert normal_grade(text) == grade


@pytest.mark.parametrize("text", ["5", "0", "II-III", "astrocytoma", "grade", "22", "2.5"])
def test_a_text_that_is_not_a_grade_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not understood"):
        normal_grade(text)


def cases_of(*patients: str) -> list[Case]:
    return [Case(f"{patient}_scan", NiftiFile(Path("x")), None, patient, None) for patient in patients]


def grades_from(table: Path, *patients: str, **columns: str) -> tuple[list[str | None], list[str]]:
    cases, problems = with_grades(cases_of(*patients), table, **columns)
    return [case.grade for case in cases], problems


def test_the_column_with_the_patients_is_found(tmp_path: Path) -> None:
    table = tmp_path / "clinical.csv"
    table.write_text("age,Sample,Grade\n1,HF0001,II\n2,hf-2,GBM\n3,HF0003,III\n3,HF0003,IV\n4,HF0004,?\n5,HF0005,odd\n")
    grades, problems = grades_from(table, "HF0001", "HF0002", "HF0003", "HF0004", "HF0005", "HF0006")
    assert grades == ["II", "IV", None, None, None, None]
    assert problems == [
        "HF0003_scan: clinical.csv says III and IV",
        "HF0005_scan: clinical.csv line 7: grade 'odd' is not understood",
        "HF0006_scan: no row in clinical.csv",
    ]


def test_an_exact_patient_name_comes_before_a_similar_one(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("patient,grade\nP-1,II\nP-01,IV\n")
    assert grades_from(table, "P-1", "P-01") == (["II", "IV"], [])
    assert grades_from(table, "P001")[0] == [None], "either may be meant"


def test_columns_can_be_named_and_must_exist(tmp_path: Path) -> None:
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
def test_an_unusable_table_is_named(tmp_path: Path, data: bytes, error: str) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(ValueError, match=rf"t\.csv.*{error}"):
        read_table(tmp_path / "t.csv")

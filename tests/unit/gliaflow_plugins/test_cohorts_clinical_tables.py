"""Grades in their spellings, and the clinical tables that contain them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from gliaflow_plugins.cohorts.clinical_tables import normal_grade, with_grades
from gliaflow_plugins.cohorts.volumes import NiftiFile
from gliaflow_plugins.contracts import Case, Cohort


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


def cohort_of(*patients: str) -> Cohort:
    """One scan of each patient."""
    return Cohort("test", [Case(f"{patient}_scan", NiftiFile(Path("x")), None, patient, None) for patient in patients])


def read(table: Path, text: str, *patients: str, **columns: str) -> Cohort:
    """The patients with the grades of a table with this text."""
    table.write_text(text, encoding="utf-8")
    return with_grades(cohort_of(*patients), table, **columns)


def grades(cohort: Cohort) -> list[str | None]:
    return [case.grade for case in cohort.cases]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "t.csv"


def test_the_columns_that_were_used_and_the_patients_that_matched_are_named(table: Path) -> None:
    text = "age,Sample,Grade\n1,HF0001,II\n2,hf-2,GBM\n4,HF0004,?\n5,HF0005,odd\n6,X1,II\n7,X2,II\n"
    cohort = read(table, text, "HF0001", "HF0002", "HF0004", "HF0005", "HF0006", "HF0007")
    assert grades(cohort) == ["II", "IV", None, None, None, None]
    assert cohort.tables == [
        "t.csv: patients by 'Sample', grades by 'Grade'; 4 of 6 patients matched; 1 in another spelling (hf-2 for "
        "HF0002); 2 rows match no patient (X1, X2)"
    ]
    assert cohort.problems == [
        "HF0005_scan: t.csv line 5: grade 'odd' is not understood",
        "t.csv: no row for 2 of 6 patients: HF0006, HF0007",
    ]


def test_two_grades_of_one_patient_are_a_leak(table: Path) -> None:
    cohort = read(table, "patient,visit,grade\nP1,1,II\nP1,2,IV\nP2,1,III\nP2,2,3\n", "P1", "P2")
    assert grades(cohort) == [None, "III"]
    assert cohort.leaks == ["P1: t.csv says II and IV"]


def test_an_exact_name_comes_before_another_spelling_and_no_row_serves_two_patients(table: Path) -> None:
    assert grades(read(table, "patient,grade\nP-1,II\nP-01,IV\n", "P-1", "P-01")) == ["II", "IV"]
    either = read(table, "patient,grade\nP-1,II\nP-01,II\n", "P001")
    assert grades(either) == [None]
    assert either.problems == ["P001_scan: 'P-01' and 'P-1' in t.csv may both be it; no grade taken"]
    one_row = read(table, "patient,grade\np001,II\nP2,II\n", "P1", "P01", "P2")
    assert grades(one_row) == [None, None, "II"]
    assert one_row.problems[0] == "P1_scan: line 2 of t.csv may be 'P1' and 'P01'; no grade taken"
    assert grades(read(table, "patient,grade\nP1,II\n", "P1", "p1")) == ["II", None], "the row has P1's exact name"


@pytest.mark.parametrize("patient", ["sub-0045", "45", "0045"])
@pytest.mark.parametrize("cell", ["45", "0045", "45.0", "sub-45", " 45 "])
def test_spreadsheets_change_the_spelling_of_names(table: Path, patient: str, cell: str) -> None:
    assert grades(read(table, f"participant_id,grade\n{cell},II\n", patient)) == ["II"]


def test_a_number_alone_is_a_match_if_nothing_else_would_do_and_the_user_reads_it(table: Path) -> None:
    text = "patient,age,grade\nREM-45,46,4\nREM-46,45,2\n"
    cohort = read(table, text, "45", "46")
    assert grades(cohort) == ["IV", "II"], "the ages are no names"
    assert cohort.problems == [
        "t.csv: REM-45 is taken for 45, REM-46 is taken for 46, by the number alone ('age' has them too, but is no "
        "identifier); if this is wrong, name the column with --patient-column"
    ]
    assert grades(read(table, "ID,grade\n45,4\n46,2\n", "REM-45", "REM-46")) == ["IV", "II"]
    with pytest.raises(ValueError, match="none of the patients is in it"):
        read(table, "patient,grade\nREM-45,4\nCTL-45,2\n", "45")
    assert grades(read(table, text, "45", "46", patient_column="age")) == ["II", "IV"], "if the request says so"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("patient,age,grade\nA,1,4\nB,2,4\nC,3,2\n", "3 of 3 patients are in its column 'age', which may not be"),
        ("nr;grade\n1;4\n2;4\n3;2\n", "column 'nr', which may not be"),
        (",patient,grade\n1,A,4\n2,B,4\n3,C,2\n", r"column '\(column 1\)', which may not be"),
        ("patient,site_id,grade\nA,1,4\nB,2,4\nC,3,2\n", "column 'site_id', which may not be"),
        ("patient_weight,grade\n1,4\n2,4\n3,2\n", "column 'patient_weight', which may not be"),
        ("id,patient,grade\n1,REM-3,4\n2,REM-1,2\n3,REM-2,2\n", r"'id' and 'patient' may both .*\(3 and 3 found"),
        ("patient,nr,grade\n1,3,4\n2,1,2\n3,2,2\n", "'patient' and 'nr' may both identify"),
        ("patient,former id,grade\n1,2,4\n2,1,2\n3,9,2\n", "'patient' and 'former id' may both identify"),
    ],
)
def test_a_column_that_may_be_something_else_than_the_patient_is_asked_about(
    table: Path, text: str, named: str
) -> None:
    with pytest.raises(ValueError, match=rf"t\.csv: .*{named}.*name the right one with --patient-column"):
        read(table, text, "1", "2", "3")


def test_columns_that_agree_and_measures_beside_an_identifier_are_no_question(table: Path) -> None:
    assert grades(read(table, "subject,Patient ID,age,grade\np1,P1,1,4\np2,P2,2,2\n", "P1", "P2")) == ["IV", "II"]
    assert grades(read(table, "id,age,grade\n1,2,4\n2,1,2\n", "1", "2")) == ["IV", "II"]
    assert grades(read(table, "Kürzel,grade\nanna,4\nbert,2\n", "anna", "bert")) == ["IV", "II"]


def test_a_few_similar_names_are_no_match(table: Path) -> None:
    patients = [f"P{number}" for number in range(5)]
    with pytest.raises(ValueError, match=r"only 1 of the patients match .*p-01 is taken for P1.*--patient-column"):
        read(table, "patient,grade\np-01,4\nQ7,2\n", *patients)
    assert grades(read(table, "patient,grade\np-01,4\n", *patients, patient_column="patient"))[1] == "IV"


def test_of_two_columns_of_grades_that_differ_one_must_be_named(table: Path) -> None:
    text = "patient,grade,age,grade\nP1,2,50,4\n"
    with pytest.raises(ValueError, match=r"'grade \(column 2\)' and 'grade \(column 4\)'.*--grade-column"):
        read(table, text, "P1")
    with pytest.raises(ValueError, match=r"called 'Grade': 'grade \(column 2\)' and"):
        read(table, text, "P1", grade_column="Grade")
    assert grades(read(table, text, "P1", grade_column="grade (column 4)")) == ["IV"]
    for other in ("Grade", "WHO CNS Grade", "grade_at_biopsy", "Tumorgrad"):
        with pytest.raises(ValueError, match=f"several columns may be the grade, and differ: 'grade' and '{other}'"):
            read(table, f"patient,grade,{other}\nP1,2,4\nP2,4,2\n", "P1", "P2")
    assert grades(read(table, "patient,grade,WHO grade\nP1,2,WHO II\n", "P1")) == ["II"], "both say the same"
    assert grades(read(table, "patient,tumor_grade,who_cns_grade\nP1,G2,'--\n", "P1")) == ["II"], "one is empty"


def test_columns_can_be_named_and_must_exist(table: Path) -> None:
    text = "subject,path_grade,grade_at_biopsy\na,II,IV\n"
    assert grades(read(table, text, "a", patient_column="Subject", grade_column="Path grade")) == ["II"]
    for columns, error in (
        ({}, "several columns may be the grade"),
        ({"grade_column": "grade"}, "no column 'grade'; there is: subject"),
        ({"grade_column": "path_grade", "patient_column": "id"}, "no column 'id'"),
        ({"grade_column": "path_grade", "patient_column": "grade_at_biopsy"}, "none of the patients is in its column"),
    ):
        with pytest.raises(ValueError, match=error):
            read(table, text, "a", **columns)
    with pytest.raises(ValueError, match="none of the patients is in it"):
        read(table, text, "b", grade_column="path_grade")


def test_kaggles_codes_are_not_who_grades(table: Path) -> None:
    cohort = read(table, "Patient,neoplasm_histologic_grade\na,1\nb,2.0\nc,G2\n", "a", "b", "c")
    assert grades(cohort) == ["II", "III", "II"]
    assert cohort.tables[0].endswith("1 and 2 are Kaggle's codes of II and III")
    plain = read(table, "Patient,neoplasm_histologic_grade\na,2\nb,3\n", "a", "b")
    assert grades(plain) == ["II", "III"], "Kaggle has no 3"


def test_zeros_and_ones_are_no_grades(table: Path) -> None:
    with pytest.raises(ValueError, match="'grade' has 0, so its numbers are codes"):
        read(table, "patient,grade\na,1\nb,0\n", "a", "b")


def test_a_grade_that_contradicts_the_folders_is_a_problem(table: Path) -> None:
    table.write_text("patient,grade\na,II\nb,III\n")
    cohort = cohort_of("a", "b")
    cohort = replace(cohort, cases=[replace(case, grade="HGG") for case in cohort.cases])
    assert with_grades(cohort, table).problems == [
        "t.csv replaces grades of the folder that contradict it: a_scan II for HGG"
    ]


@pytest.mark.parametrize("column", ["Karnofsky grade", "Grade_num_code", "ISUP grade", "oedema grade", "grade_id"])
def test_a_grade_of_something_else_than_the_tumour_is_asked_about(table: Path, column: str) -> None:
    text = f"patient,{column}\nP1,2\nP2,4\n"
    with pytest.raises(ValueError, match=f"'{column}' may be another grade than the tumour's; .*--grade-column"):
        read(table, text, "P1", "P2")
    assert grades(read(table, text, "P1", "P2", grade_column=column)) == ["II", "IV"]
    assert grades(read(table, f"patient,{column},WHO grade\nP1,4,2\n", "P1")) == ["II"]


@pytest.mark.parametrize(
    "column",
    [
        *(
            "Grade",
            "WHO CNS Grade",
            "WHO-Grad",
            "Tumorgrad",
            "Grading",
            "tumor_grade",
            "gliomaGrade",
            "Histologic Grade",
        ),
        *(
            "neoplasm_histologic_grade",
            "WHO grade (2021)",
            "Grade at diagnosis",
            "Histologischer Grad",
            "GRADE I-IV",
            "Grade OMS",
            "tumor_grade_pre",
        ),
    ],
)
def test_the_names_of_the_column_of_tumour_grades(table: Path, column: str) -> None:
    assert grades(read(table, f"patient,{column}\nP1,2\nP2,4\n", "P1", "P2")) == ["II", "IV"]


def test_a_tcga_barcode_of_a_sample_names_its_patient(table: Path) -> None:
    text = "Sample,WHO grade\nTCGA-CS-4942-01A-11R,2\nTCGA-CS-4943-01A,3\nTCGA-CS-5393-01,II\nTCGA-CS-5393-02A,2\n"
    cohort = read(table, text, "TCGA-CS-4942", "TCGA-CS-4943", "TCGA_CS_5393")
    assert grades(cohort) == ["II", "III", "II"]
    assert "3 in another spelling (TCGA-CS-4942-01A-11R for TCGA-CS-4942" in cohort.tables[0]
    assert grades(read(table, text + "TCGA-CS-4942,4\n", "TCGA-CS-4942")) == ["IV"], "the exact name comes first"
    (leak,) = read(table, "Sample,grade\nTCGA-CS-1-1,2\nTCGA-CS-5396-01A,2\nTCGA-CS-5396-02A,4\n", "TCGA-CS-5396").leaks
    assert leak == "TCGA-CS-5396: t.csv says II and IV", "two samples of one patient"
    other = read(table, "Sample,grade\nTCGA-CS-4942-02A,2\nP2,3\n", "TCGA-CS-4942-01A", "P2")
    assert grades(other) == [None, "III"], "another sample"


@pytest.mark.parametrize(
    ("patient", "cell", "remedy"),
    [
        ("A-1", "7", "write the cohort's names into the table, or name their column with --patient-column"),
        ("Jan-01", "01. Jan", "a spreadsheet program may have changed names into dates or numbers"),
        ("Mar-03", "03. Mrz", "a spreadsheet program may have changed names into dates or numbers"),
        ("3-12", "2024-12-03", "a spreadsheet program may have changed names into dates or numbers"),
        ("1E5", "1.00E+05", "a spreadsheet program may have changed names into dates or numbers"),
    ],
)
def test_a_table_without_any_patient_is_refused_with_both_sides_names(
    table: Path, patient: str, cell: str, remedy: str
) -> None:
    text = f"patient,age,grade\n{cell},33,2\n"
    message = f"the cohort's are like '{patient}', and column 'patient' has '{cell}'; {remedy}"
    for columns in ({}, {"patient_column": "patient"}):
        with pytest.raises(ValueError, match="none of the patients is in it") as error:
            read(table, text, patient, **columns)
        assert message in str(error.value)

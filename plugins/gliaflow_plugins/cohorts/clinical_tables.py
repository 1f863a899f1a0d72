"""Grades in their many spellings, and the clinical tables that contain them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gliaflow_proto import CLASSES

from gliaflow_plugins.cohorts.patient_rows import PatientRows, find_rows, patients_of
from gliaflow_plugins.cohorts.tables import Table, few, quoted, read_table, simple
from gliaflow_plugins.contracts import Case, Cohort

ROMAN = {"1": "I", "2": "II", "3": "III", "4": "IV"}
WHO = re.compile(r"(?:(?:who|cns|grade|grad|gr|g)[\s_.:-]*)*(iv|iii|ii|i|[1-4])(?:[.,]0+)?")
HIGH_OR_LOW = re.compile(r"(hgg|high[\s_-]*grade(?:[\s_-]*glioma)?)|(?:lgg|low[\s_-]*grade(?:[\s_-]*glioma)?)")
GLIOBLASTOMA = re.compile(r"(?:gbm|glioblastoma)\b.*")  # grade IV by definition (WHO 2016 and 2021)
UNKNOWN = {"", "-", "--", "'--", "?", ".", "na", "n/a", "nan", "none", "null", "unknown", "unbekannt"}
UNKNOWN |= {"not available", "not reported", "not applicable"}
GRADE_WORD = re.compile(r"(who|cns|who_?cns)?(tumou?r|glioma)?grad(e|es|ing|o)?")
# Words beside "grade" with which the column is still the tumour's grade: a Karnofsky grade is none.
TUMOUR_WORD = re.compile(
    r"who|oms|cns|(brain)?(tumou?rs?|tumoral\w*|gliom\w*)|neoplasms?|cancer|histo\w*|path(o|olog(y|ic|ical))?"
    r"|malignan(cy|z)|primary|integrated|final|initial|current|diagnos(is|tic|e)|dx|surgery|biopsy|first|at|of|the|de|du|der|des"
    r"|pre(op)?|post(op)?|before|after|in|by|and|or|patient|case|text|new|true|label|class|value|edition|20(00|07|16|21)|[1-4]|i|ii|iii|iv|hgg|lgg"
)
# The Kaggle LGG set codes TCGA's G2 and G3 as 1 and 2; TCGA itself writes no bare digit in this column.
CODED_COLUMN, CODES = "neoplasm_histologic_grade", {"1": "II", "2": "III"}


def normal_grade(text: str) -> str | None:
    """HGG, LGG, or I to IV for "2", "G2", "WHO grade III", "4.0", "GBM" and the like; None for "unknown" and the like.

    Raises
    ------
    ValueError: the text is not a grade.
    """
    plain = text.strip().casefold().strip("[]")
    if plain in UNKNOWN:
        return None
    if match := WHO.fullmatch(plain):
        return ROMAN.get(match[1], match[1].upper())
    if match := HIGH_OR_LOW.fullmatch(plain):
        return "HGG" if match[1] else "LGG"
    if GLIOBLASTOMA.fullmatch(plain):
        return "IV"
    raise ValueError(f"grade {text[:40]!r} is not understood")


def with_grades(
    cohort: Cohort, path: Path, patient_column: str | None = None, grade_column: str | None = None
) -> Cohort:
    """The cohort with the grades of a table, and with what was read from the table and what was not.

    A case without a row keeps its grade, and so does one whose rows contradict each other: that is a leak.

    Parameters
    ----------
    patient_column: None: the column that identifies the patients (``find_rows``).
    grade_column: None: the only column of grades that is called so.

    Raises
    ------
    OSError, ValueError: the table or the column does not exist, several columns would do, or no case matches.
    """
    table, cases = read_table(path), cohort.cases
    grade_column = table.column(grade_column) if grade_column is not None else grade_column_of(table)
    kaggle = _has_codes(table, grade_column)
    found = find_rows(table, cases, grade_column, patient_column)
    problems = [*cohort.problems, *table.problems, *found.doubts.values()]
    leaks = list(cohort.leaks)
    graded, replaced = [], []
    for case, rows in zip(cases, found.rows, strict=True):
        normal = set()
        for row in rows:
            try:
                normal.add(_grade(row.cells[grade_column], kaggle))
            except ValueError as error:
                problems.append(f"{case.id}: {path.name} line {row.line}: {error}")
        grades = sorted(grade for grade in normal if grade)
        if len(grades) > 1:
            leaks.append(f"{case.patient}: {path.name} says {' and '.join(grades)}")
        elif grades:
            if _contradict(case.grade, grades[0]):
                replaced.append(f"{case.id} {grades[0]} for {case.grade}")
            case = replace(case, grade=grades[0])
        graded.append(case)
    if replaced:
        problems.append(f"{path.name} replaces grades of the folder that contradict it: {few(replaced)}")
    return replace(
        cohort,
        cases=graded,
        problems=problems + list(_unmatched(table, found, cases)),
        leaks=list(dict.fromkeys(leaks)),
        tables=[*cohort.tables, _how_read(table, found, cases, grade_column, kaggle)],
    )


def _grade(text: str, kaggle: bool) -> str | None:
    plain = re.sub(r"[.,]0+$", "", text.strip())
    return CODES[plain] if kaggle and plain in CODES else normal_grade(text)


def _has_codes(table: Table, column: str) -> bool:
    """Whether the column has Kaggle's codes: 1 or 2, and no other bare number.

    Raises
    ------
    ValueError: it has a 0, so its numbers are codes of something else: a 1 is not grade I.
    """
    numbers = {re.sub(r"[.,]0+$", "", row.cells[column]) for row in table.rows}
    if "0" in numbers and numbers & ROMAN.keys():
        raise ValueError(
            f"{table.path}: the column {column!r} has 0, so its numbers are codes and no WHO grades; write HGG, LGG or "
            "I to IV, or name another column with --grade-column"
        )
    return simple(column) == CODED_COLUMN and bool(numbers & CODES.keys()) and not numbers & {"3", "4"}


def _contradict(before: str | None, now: str) -> bool:
    """Whether two grades cannot both be true; a WHO grade III may count as HGG or as LGG."""
    if before is None:
        return False
    try:
        before = normal_grade(before)
    except ValueError:
        return False
    low, high = ("LGG", "I", "II"), ("HGG", "IV")
    if before is None or before == now:
        return False
    return (before in low and now in high) or (before in high and now in low) or not {before, now} & {*CLASSES}


def grade_column_of(table: Table) -> str:
    """The column of grades. Several that would do are fine if all of them say the same."""
    named = [column for column in table.columns if is_grade(column)]
    similar = [column for column in table.columns if any(map(GRADE_WORD.fullmatch, _words(column)))]
    if not named and similar:
        raise ValueError(
            f"{table.path}: {quoted(similar)} may be another grade than the tumour's; if one is the tumour's grade "
            f"(HGG, LGG, or WHO I to IV), name it with --grade-column (columns: {', '.join(table.columns)})"
        )
    if not named:
        raise ValueError(
            f"{table.path}: no column is called grade (columns: {', '.join(table.columns)}); name it with "
            "--grade-column"
        )
    filled = [column for column in named if any(grades := _grades(table, column)) and _mostly_known(grades)]
    if len(filled) > 1 and any(_grades(table, column) != _grades(table, filled[0]) for column in filled[1:]):
        raise ValueError(
            f"{table.path}: several columns may be the grade, and differ: {quoted(filled)}; name the right one with "
            "--grade-column"
        )
    if not filled and len(named) > 1:
        raise ValueError(f"{table.path}: none of the columns {quoted(named)} has grades; name one with --grade-column")
    return (filled or named)[0]


def is_grade(column: str) -> bool:
    """Whether the column's name is that of the tumour's grade: ``WHO-Grad``, ``Tumorgrad``; not ``Karnofsky grade``."""
    words = _words(column)
    is_word = [GRADE_WORD.fullmatch(word) is not None for word in words]
    return any(is_word) and all(
        known or TUMOUR_WORD.fullmatch(word) for known, word in zip(is_word, words, strict=True)
    )


def _words(column: str) -> list[str]:
    return re.sub(r"_column_\d+$", "", simple(column)).split("_")


def _grades(table: Table, column: str) -> list[str | None]:
    """The grade of each row; the text itself, if it is not understood."""
    grades: list[str | None] = []
    for row in table.rows:
        try:
            grades.append(normal_grade(row.cells[column]))
        except ValueError:
            grades.append(row.cells[column])
    return grades


def _mostly_known(grades: Sequence[str | None]) -> bool:
    texts = [grade for grade in grades if grade]
    return 2 * sum(grade in ROMAN.values() or grade in CLASSES for grade in texts) >= len(texts)


def _unmatched(table: Table, found: PatientRows, cases: Sequence[Case]) -> list[str]:
    held = found.held
    without = patients_of(cases, set(range(len(cases))) - held)
    lines = []
    if without:
        every = len({case.patient for case in cases})
        lines.append(f"{table.path.name}: no row for {len(without)} of {every} patients: {few(without)}")
    if found.by_number:
        others = f" ({quoted(found.others)} has them too, but is no identifier)" if found.others else ""
        lines.append(
            f"{table.path.name}: {few(found.spellings, 2)}, by the number alone{others}; if this is wrong, name the "
            "column with --patient-column"
        )
    return lines


def _how_read(table: Table, found: PatientRows, cases: Sequence[Case], grade_column: str, kaggle: bool) -> str:
    """The columns that were used, and how many patients and rows belong to each other."""
    used = {row.line for rows in found.rows for row in rows}
    rest = list(dict.fromkeys(row.cells[found.column] or "no name" for row in table.rows if row.line not in used))
    matched = patients_of(cases, {number for number, rows in enumerate(found.rows) if rows})
    parts = [f"{len(matched)} of {len({case.patient for case in cases})} patients matched"]
    if found.texts and not found.by_number:
        spelled = few([f"{text} for {name}" for name, text in found.texts.items()], 2)
        parts.append(f"{len(found.texts)} in another spelling ({spelled})")
    if rest:
        parts.append(f"{len(table.rows) - len(used)} rows match no patient ({few(rest, 3)})")
    if kaggle:
        parts.append("1 and 2 are Kaggle's codes of II and III")
    return f"{table.path.name}: patients by {found.column!r}, grades by {grade_column!r}; {'; '.join(parts)}"

"""Grades in their many spellings, and the tables that contain them. A table is untrusted, so its size is limited."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gliaflow_plugins.contracts import Case

MAX_TABLE_BYTES = 4 * 2**20
ROMAN = {"1": "I", "2": "II", "3": "III", "4": "IV"}
WHO = re.compile(r"(?:(?:who|cns|grade|gr|g)[\s_.:-]*)*(iv|iii|ii|i|[1-4])(?:\.0+)?")
HIGH_OR_LOW = re.compile(r"(hgg|high[\s_-]*grade(?:[\s_-]*glioma)?)|(?:lgg|low[\s_-]*grade(?:[\s_-]*glioma)?)")
GLIOBLASTOMA = re.compile(r"(?:gbm|glioblastoma)\b.*")  # grade IV by definition (WHO 2016 and 2021)
UNKNOWN = {"", "-", "--", "?", ".", "na", "n/a", "nan", "none", "null", "unknown", "not available", "not reported"}
GRADE_COLUMNS = ("who_cns_grade", "who_grade", "grade", "tumor_grade", "tumour_grade", "neoplasm_histologic_grade")
# The Kaggle LGG set codes TCGA's G2 and G3 as 1 and 2; TCGA itself writes no bare digit in this column.
CODES = {"neoplasm_histologic_grade": {"1": "II", "2": "III"}}


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


@dataclass(frozen=True)
class Table:
    """Rows with their line numbers, each a mapping from column to text; ``problems`` lists the ignored rows."""

    path: Path
    columns: list[str]
    rows: list[tuple[int, dict[str, str]]]
    problems: list[str]


def read_table(path: Path) -> Table:
    """Read a CSV or TSV file with a header, in UTF-8, UTF-16 or Windows-1252.

    Raises
    ------
    OSError, ValueError: the file cannot be read, or is not such a table. The text names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        data = file.read(MAX_TABLE_BYTES + 1)
    if len(data) > MAX_TABLE_BYTES:
        raise ValueError(f"{path}: over {MAX_TABLE_BYTES} bytes, too large for a table of patients")
    if data.startswith(b"PK"):
        raise ValueError(f"{path}: a spreadsheet; save it as CSV first")
    text = _decoded(data)
    header = text.partition("\n")[0]
    tabs = path.suffix.casefold() == ".tsv"
    lines = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tabs else max(",;\t", key=header.count))
    rows, problems = [], []
    try:
        columns = [cell.strip() for cell in next(lines, [])]
        if not any(columns):
            raise ValueError(f"{path}: no header in its first line")
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) < len(columns) or any(cells[len(columns) :]):
                problems.append(f"{path.name} line {lines.line_num}: {len(cells)} cells, expected {len(columns)}")
                continue
            rows.append((lines.line_num, dict(zip(columns, map(str.strip, cells), strict=False))))
    except csv.Error as error:
        raise ValueError(f"{path} line {lines.line_num}: {error}") from None
    return Table(path, columns, rows, problems)


def with_grades(
    cases: Sequence[Case], path: Path, patient_column: str | None = None, grade_column: str | None = None
) -> tuple[list[Case], list[str]]:
    """The cases with the grades of a table, and its problems, one line each.

    A case's row has the scan's id, or else the patient's. If no row has the exact text, ``tcga_1`` and ``TCGA-001`` are
    the same patient. A case without a row, or whose rows contradict each other, keeps its grade.

    Parameters
    ----------
    patient_column: None: the column that matches most cases.
    grade_column: None: one of GRADE_COLUMNS, or the only column with the word in its name.

    Raises
    ------
    OSError, ValueError: the table or the column does not exist, or no case matches.
    """
    table = read_table(path)
    grade_column = _known(table, grade_column) if grade_column is not None else _grade_column(table)
    among = [_known(table, patient_column)] if patient_column is not None else table.columns
    # of equally good columns, the leftmost
    rows = max((_Rows(table, column) for column in among), key=lambda rows: sum(map(bool, map(rows.of, cases))))
    if cases and patient_column is None and not any(map(rows.of, cases)):
        raise ValueError(f"{path}: none of the patients is in it (columns: {', '.join(table.columns)})")
    graded, problems = [], list(table.problems)
    codes = CODES.get(_simple(grade_column), {})
    for case in cases:
        normal = set()
        for line, row in rows.of(case):
            text = row[grade_column]
            try:
                normal.add(codes.get(text) or normal_grade(text))
            except ValueError as error:
                problems.append(f"{case.id}: {path.name} line {line}: {error}")
        grades = sorted(grade for grade in normal if grade)
        if len(grades) == 1:
            case = replace(case, grade=grades[0])
        elif grades:
            problems.append(f"{case.id}: {path.name} says {' and '.join(grades)}")
        elif not rows.of(case):
            problems.append(f"{case.id}: no row in {path.name}")
        graded.append(case)
    return graded, problems


class _Rows:
    """The rows of a table by one of its columns."""

    def __init__(self, table: Table, column: str) -> None:
        self._exact: dict[str, list[tuple[int, dict[str, str]]]] = defaultdict(list)
        self._loose: dict[str, list[tuple[int, dict[str, str]]]] = defaultdict(list)
        for line, row in table.rows:
            self._exact[row[column]].append((line, row))
            self._loose[_loose(row[column])].append((line, row))

    def of(self, case: Case) -> list[tuple[int, dict[str, str]]]:
        for name in (case.id, case.patient):
            if rows := self._exact.get(name):
                return rows
        for name in (case.id, case.patient):
            if (key := _loose(name)) and (rows := self._loose.get(key)):
                return rows
        return []


def _loose(name: str) -> str:
    """A patient's name in small letters, without leading zeros, separators and BIDS's ``sub-``."""
    parts = re.findall(r"[^\W\d_]+|\d+", name.casefold())
    return "-".join(part.lstrip("0") or part[:1] for part in (parts[1:] if parts[:1] == ["sub"] else parts))


def _known(table: Table, column: str) -> str:
    if column not in table.columns:
        raise ValueError(f"{table.path}: no column {column!r}; there is: {', '.join(table.columns)}")
    return column


def _grade_column(table: Table) -> str:
    by_name = {_simple(column): column for column in reversed(table.columns)}
    named = [by_name[name] for name in GRADE_COLUMNS if name in by_name]
    named = named or [column for name, column in by_name.items() if "grade" in name.split("_")]
    if not named or (len(named) > 1 and _simple(named[0]) not in GRADE_COLUMNS):
        which = "several columns may be the grade" if named else "no column is called grade"
        raise ValueError(f"{table.path}: {which} (columns: {', '.join(table.columns)})")
    return named[0]


def _simple(column: str) -> str:
    return re.sub(r"[\W_]+", "_", column.casefold()).strip("_")


def _decoded(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")

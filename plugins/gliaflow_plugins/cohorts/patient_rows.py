"""Finds each case's rows in a table: by the column that identifies the patients, and by the name in it.

A column of numbers can hold the names of folders by chance (an age, a row number). So one column must clearly be the
identifier; otherwise the error asks for its name.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from gliaflow_plugins.cohorts.dicom_scans import as_series
from gliaflow_plugins.cohorts.patient_names import TCGA_SAMPLE, loose, number_in, patient_key
from gliaflow_plugins.cohorts.tables import Table, TableRow, few, listed, quoted, simple
from gliaflow_plugins.contracts import Case

PERSON = re.compile(
    r"(patient|subject|participant|proband|person|pseudonym|barcode|kennung|fall).*|cases?|samples?|subj|pat"
)
IDENTIFIER = re.compile(r"ids?|pid|mrn|name|scan|(pat|subj|case|sample|study|scan|record)id")
LAST_WORD = ("id", "ids", "name", "number", "nummer", "no", "nr", "code")
MEASURE = re.compile(
    "age|alter|sex|gender|geschlecht|race|ethnicity|site|cent(er|re)|hospital|scanner|visit|session|date|datum|time|year|"
    "jahr|months?|days?|type|status|group|arm|cluster|grad(e|ing)?|stage|volumen?|weight|gewicht|height|size|count|score|"
    "kps|survival|os|pfs|dose|death|index|fold|split|unnamed|row|zeile|ml|mm|cm|slices"
)
EXCEL_DATE = re.compile(
    r"(\d{1,2}[-./ ]*)?(jan|feb|m[aä]r|mrz|apr|ma[iy]|jun|jul|aug|sep|o[ck]t|nov|de[cz])[a-z]*[-./ ]*(\d{1,4})?"
    r"|\d{1,4}[-./]\d{1,2}[-./]\d{1,4}( 0?0:00(:00)?)?",
    re.IGNORECASE,
)
EXCEL_NUMBER = re.compile(r"\d([.,]\d+)?e[+-]?\d+", re.IGNORECASE)
NUMBER_OR_DATE = re.compile(r"-?\d+[.,]\d*[1-9]\d*|\d{1,4}[-./]\d{1,2}[-./]\d{1,4}")


@dataclass
class PatientRows:
    """The rows of each case by one column.

    Parameters
    ----------
    rows: of each case; none if the column does not have the case's name.
    doubts: of cases for which several rows or several patients would do. They get no row.
    texts: the cells that differ from the names that they were found for, by name.
    by_number: names and cells share nothing but a number.
    others: columns that have the names too, but do not identify patients.
    exact: a name has the exact text of its cell.
    letters: a cell that was found has a letter: a name, not a number that any column may hold.
    """

    column: str
    rows: list[list[TableRow]]
    doubts: dict[int, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    by_number: bool = False
    others: list[str] = field(default_factory=list)
    exact: bool = False
    letters: bool = False

    @property
    def held(self) -> set[int]:
        """The numbers of the cases whose names the column has."""
        return {number for number, rows in enumerate(self.rows) if rows} | self.doubts.keys()

    @property
    def spellings(self) -> list[str]:
        """``REM-45 is taken for 45``."""
        return [f"{text} is taken for {name}" for name, text in self.texts.items()]

    def disagrees(self, other: PatientRows) -> bool:
        """Whether the two columns give a case different rows, or have equally many cases, but different ones."""
        both = [(own, its) for own, its in zip(self.rows, other.rows, strict=True) if own and its]
        apart = any(not {row.line for row in own} & {row.line for row in its} for own, its in both)
        return apart or (len(self.held) == len(other.held) and self.held != other.held)


def find_rows(table: Table, cases: Sequence[Case], grade_column: str, patient_column: str | None) -> PatientRows:
    """The rows of each case.

    Parameters
    ----------
    patient_column: None: the identifier that most patients have. A column whose name says nothing counts as an
        identifier if it has no text twice, and the names have letters.

    Raises
    ------
    ValueError: no patient is in the table, or it is not clear which column identifies them. The text names the columns.
    """
    if patient_column is not None:
        named = rows_by(table, table.column(patient_column), cases)
        if cases and not named.held:
            raise ValueError(_none_found(table, cases, [named.column]))
        return named
    if not cases:
        return PatientRows(table.columns[0], [])
    every = [rows_by(table, column, cases) for column in table.columns if column != grade_column]
    holding = [rows for rows in every if rows.held]
    usable = [
        rows
        for rows in holding
        if _is_identifier(rows.column) or (_may_be_identifier(table, rows.column) and not rows.by_number)
    ]
    usable = [rows for rows in usable if rows.letters] or usable
    if not usable:
        others = [rows for rows in holding if not rows.by_number]
        if others:
            raise ValueError(_not_identifier(table, others, cases))
        raise ValueError(_none_found(table, cases, [column for column in table.columns if column != grade_column]))
    best = max(usable, key=lambda rows: (len(rows.held), _is_identifier(rows.column), -sum(map(len, rows.rows))))
    for rows in usable:
        as_good = _is_identifier(rows.column) or len(rows.held) >= len(best.held)
        if rows is not best and as_good and rows.disagrees(best):
            counts = " and ".join(str(len(patients_of(cases, some.held))) for some in (best, rows))
            raise ValueError(
                f"{table.path}: the columns {quoted([best.column, rows.column])} may both identify the patients "
                f"({counts} found, in different rows); name the right one with --patient-column"
            )
    if not _is_identifier(best.column) and not best.letters:
        raise ValueError(_not_identifier(table, [best], cases))
    found = patients_of(cases, best.held)
    if not best.exact and 2 * len(found) < len({case.patient for case in cases}):
        raise ValueError(
            f"{table.path}: only {len(found)} of the patients match its column {best.column!r}, and only in another "
            f"spelling ({few(best.spellings)}); if this is right, give --patient-column {best.column!r}"
        )
    best.others = [rows.column for rows in holding if rows is not best and rows.disagrees(best)]
    return best


def rows_by(table: Table, column: str, cases: Sequence[Case]) -> PatientRows:
    """The rows of each case by one column: the scan's name in it, or else the patient's.

    An exact text comes before another spelling (``loose``) and before TCGA's barcode of a patient's sample. If no case
    has any, and one side's names are bare numbers, ``45`` is ``REM-45``.
    """
    by_text: dict[str, list[TableRow]] = defaultdict(list)
    by_key: dict[str, list[TableRow]] = defaultdict(list)
    for row in table.rows:
        text = row.cells[column]
        if key := loose(text):
            by_text[text].append(row)
            for each in {key, patient_key(text)}:
                by_key[each].append(row)
    found = PatientRows(column, [[] for _ in cases])
    exact = set()
    for number, case in enumerate(cases):
        id_first = loose(case.id).startswith(loose(case.patient))
        names = (case.id, case.patient) if id_first else (case.patient, case.id)
        hits = [(name, rows) for name in names if (rows := by_text.get(name))]
        if hits:
            exact.add(number)
        else:
            hits = [(name, rows) for name in names if (rows := by_key.get(loose(name)))]
        if not hits:
            continue
        texts = sorted({row.cells[column] for _, rows in (hits[:1] if id_first else hits) for row in rows})
        if len(texts) > 1 and not all(map(TCGA_SAMPLE.fullmatch, texts)):
            found.doubts[number] = f"{case.id}: {quoted(texts)} in {table.path.name} may both be it; no grade taken"
            continue
        found.rows[number] = hits[0][1]
        if number not in exact:
            found.texts[hits[0][0]] = texts[0]
    found.exact = bool(exact)
    found.letters = any(char.isalpha() for rows in found.rows for row in rows for char in row.cells[column])
    if not found.held:
        _match_numbers(found, by_text, cases)
    _share_no_row(found, table, cases, exact)
    return found


def patients_of(cases: Sequence[Case], numbers: set[int]) -> list[str]:
    """The patients of these cases, each once."""
    return list(dict.fromkeys(case.patient for number, case in enumerate(cases) if number in numbers))


def _match_numbers(found: PatientRows, by_text: dict[str, list[TableRow]], cases: Sequence[Case]) -> None:
    """Match by number, if the names of one side are bare numbers, and all names of the other side have one form."""
    cells = {text: number_in(text) for text in by_text}
    names = {case.patient: number_in(case.patient) for case in cases}
    forms = [{number and number[0] for number in side.values()} for side in (cells, names)]
    if not all(len(form) == 1 and None not in form for form in forms) or {"#"} not in forms:
        return
    texts = {number[1]: text for text, number in cells.items() if number}
    if len(texts) < len(cells):
        return
    for place, case in enumerate(cases):
        number = names[case.patient]
        if number and (text := texts.get(number[1])):
            found.rows[place] = by_text[text]
            found.texts[case.patient] = text
            found.by_number = True


def _share_no_row(found: PatientRows, table: Table, cases: Sequence[Case], exact: set[int]) -> None:
    """A row that was found for several patients is kept by the one with its exact text, if there is one."""
    claims: dict[int, set[int]] = defaultdict(set)
    for number, rows in enumerate(found.rows):
        for row in rows:
            claims[row.line].add(number)
    for line, numbers in claims.items():
        patients = patients_of(cases, numbers)
        if len(patients) < 2:
            continue
        owners = patients_of(cases, numbers & exact)
        for number in numbers:
            if len(owners) != 1 or cases[number].patient != owners[0]:
                found.rows[number] = []
                found.doubts[number] = (
                    f"{cases[number].id}: line {line} of {table.path.name} may be {quoted(patients)}; no grade taken"
                )
                found.texts.pop(cases[number].id, None)
                found.texts.pop(cases[number].patient, None)


def names_patients(column: str) -> bool:
    """Whether a column is called patient, subject or the like, and not ``patient_age``."""
    words = simple(column).split("_")
    person = any(map(PERSON.fullmatch, words))
    return person and (words[-1] in LAST_WORD or not any(map(MEASURE.fullmatch, words)))


def _is_identifier(column: str) -> bool:
    words = simple(column).split("_")
    return names_patients(column) or (any(map(IDENTIFIER.fullmatch, words)) and not any(map(MEASURE.fullmatch, words)))


def _may_be_identifier(table: Table, column: str) -> bool:
    """Whether the column has no text twice, no measures and no dates."""
    cells = Counter(loose(row.cells[column]) for row in table.rows if row.cells[column])
    return (
        not any(map(MEASURE.fullmatch, simple(column).split("_")))
        and max(cells.values(), default=0) < 2
        and not any(NUMBER_OR_DATE.fullmatch(row.cells[column]) for row in table.rows)
    )


def _none_found(table: Table, cases: Sequence[Case], columns: Sequence[str]) -> str:
    """The error for a table without any patient: an example of the cohort's names and of the table's, and a remedy."""
    where = f"its column {columns[0]!r}" if len(columns) == 1 and len(table.columns) > 2 else "it"
    likely = [column for column in columns if _is_identifier(column)]
    likely = likely or [column for column in columns if _may_be_identifier(table, column)] or list(columns)
    examples = [(column, next((row.cells[column] for row in table.rows if row.cells[column]), "")) for column in likely]
    shown = [f"column {column!r} has {text[:40]!r}" for column, text in examples if text][:3]
    text = f"{table.path}: none of the patients is in {where}: the cohort's are like {cases[0].patient!r}"
    text += " (a DICOM patient is a folder)" if as_series(cases[0].scan) else ""
    text += f", and {listed(shown)}" if shown else ""
    if any(EXCEL_DATE.fullmatch(cell) or EXCEL_NUMBER.fullmatch(cell) for _, cell in examples):
        return (
            f"{text}; a spreadsheet program may have changed names into dates or numbers: write the cohort's names "
            "into the table, with that column's cells formatted as text"
        )
    return (
        f"{text}; write the cohort's names into the table, or name their column with --patient-column (columns: "
        f"{', '.join(table.columns)})"
    )


def _not_identifier(table: Table, some: Sequence[PatientRows], cases: Sequence[Case]) -> str:
    best = max(some, key=lambda rows: len(rows.held))
    count = len(patients_of(cases, best.held))
    return (
        f"{table.path}: {count} of {len({case.patient for case in cases})} patients are in its column {best.column!r}, "
        f"which may not be their identifier; name the right one with --patient-column: {', '.join(table.columns)}"
    )

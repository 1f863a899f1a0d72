"""``predictions.csv``: a row for each scan. A table that a spreadsheet program saved again is read too, or refused.

Spreadsheet programs change the encoding, the separator, the decimal point, the order of columns, and add columns of the
user. The user's columns are kept. Where a value has two meanings, the table is refused.

A text from a name or a message must not be a formula for these programs (``gliaflow_runtime.formulas``).
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from gliaflow.answer import Answer
from gliaflow_proto import CLASSES, NO_TUMOUR
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.formulas import quoted, unquoted

TABLE = "predictions.csv"
ANSWERED = ("ok", NO_TUMOUR)
STATUSES = (*ANSWERED, "failed")
REQUIRED = ("scan", "status", "grade", "p_hgg")
LARGEST = {"p_hgg": 1.0, "tumour_ml": 3000.0, "slices": 1e4, "seconds": 1e7}  # a larger one has lost its decimal point
WHERE_KNOWN = ("true_grade", "series")  # columns of a table only if a row has a value
BETWEEN = " | "  # warnings; their own texts have semicolons
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
THOUSANDS = re.compile(r"[1-9]\d{0,2}([.,]\d{3})+")


@dataclass(frozen=True)
class ScanRow:
    """One line of ``predictions.csv``.

    Parameters
    ----------
    scan: the scan's name, unique in the table. source: its path, relative to what was submitted.
    p_hgg: rounded to 6 digits. status: ``ok``, ``no tumour`` or ``failed``; then ``error`` says why.
    mask: the name of the mask's file, in the table's folder.
    true_grade: the grade that came with the scan (``--labelled``, ``--grade``).
    series: the SeriesInstanceUID of a DICOM series.
    added: columns that the user added to the table.
    """

    scan: str
    patient: str
    source: str = ""
    grade: str = ""
    p_hgg: float | None = None
    tumour_ml: float | None = None
    slices: int | None = None
    status: str = "failed"
    error: str = ""
    warnings: tuple[str, ...] = ()
    bundle: str = ""
    trained_on: str = ""
    seconds: float | None = None
    mask: str = ""
    true_grade: str = ""
    series: str = ""
    added: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, answer: Answer) -> ScanRow:
        """The line of an answer, without what the folder of answers adds."""
        return cls(
            scan=answer.scan,
            patient=answer.patient,
            grade=answer.grade or "",
            p_hgg=None if answer.p_hgg is None else round(answer.p_hgg, 6),
            tumour_ml=None if answer.tumour_ml is None else round(answer.tumour_ml, 3),
            slices=answer.slices,
            status=answer.status,
            error=answer.reason,
            warnings=answer.warnings,
            bundle=answer.bundle or "",
            trained_on=answer.trained_on,
            seconds=answer.seconds,
        )

    def values(self) -> dict[str, Any]:
        """The fields by column, without those of WHERE_KNOWN that are empty."""
        names = [name for name in COLUMNS if name not in WHERE_KNOWN or getattr(self, name)]
        return {name: getattr(self, name) for name in names}


COLUMNS = [each.name for each in fields(ScanRow) if each.name != "added"]


def write_table(path: Path, rows: Iterable[ScanRow]) -> None:
    """Write a table."""
    lines = [{**row.added, **row.values()} for row in rows]
    present = {name for line in lines for name in line}
    columns = [name for name in COLUMNS if name not in WHERE_KNOWN or name in present]
    columns += dict.fromkeys(name for line in lines for name in line if name not in COLUMNS)
    # errors: a file name that is not UTF-8 must not stop the run
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        for line in lines:
            writer.writerow({name: _cell(name, value) for name, value in line.items()})


def read_table(path: Path, *, unchanged: bool = False) -> dict[str, ScanRow]:
    """The rows of a table, by scan; none if there is no table.

    ``unchanged``: no other program has written the table, so that its numbers may be of any size, and its texts may
    begin or end with spaces.

    Raises
    ------
    UsageError: another tool's table, or a value that a spreadsheet program changed beyond recognition. The text names
        line, column and remedy.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        reason = "a folder, not a table" if path.is_dir() else error.strerror or type(error).__name__
        raise UsageError(f"{path}: {reason}; move it, or choose another --out") from None
    return _Reader(path, unchanged).rows(data)


def _cell(column: str, value: Any) -> str:
    if column not in COLUMNS:
        return str(value)  # the user's own, who may have written a formula
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".")  # never 1e-05, which spreadsheet programs rewrite
    if isinstance(value, tuple):
        value = BETWEEN.join(each.replace(BETWEEN, " / ") for each in value)
    return quoted(value) if isinstance(value, str) else "" if value is None else str(value)


class _Reader:
    """Reads one table. ``path`` is for messages; ``unchanged``: no other program has written the table."""

    def __init__(self, path: Path, unchanged: bool) -> None:
        self._path, self._unchanged = path, unchanged

    def rows(self, data: bytes) -> dict[str, ScanRow]:
        lines = self._lines(self._decode(data))
        decimal = self._decimal(lines)
        rows: dict[str, ScanRow] = {}
        for number, cells in lines:
            row = self._row(number, cells, decimal)
            if row.scan in rows:
                raise self._refusal(number, "scan", f"{row.scan!r} has two rows")
            rows[row.scan] = row
        return rows

    def _decode(self, data: bytes) -> str:
        wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        try:
            return data.decode("utf-16" if wide else "utf-8-sig")
        except UnicodeDecodeError:
            raise UsageError(f"{self._path}: the text is not UTF-8; save the table as CSV UTF-8, or move it") from None

    def _lines(self, text: str) -> list[tuple[int, dict[str, str]]]:
        """Each line's number and cells by column."""
        missing = list(REQUIRED)
        for delimiter in ",;\t":
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
            try:
                lines = [
                    (reader.line_num, [cell if self._unchanged else cell.strip() for cell in cells]) for cells in reader
                ]
            except csv.Error as error:
                raise UsageError(f"{self._path}: line {reader.line_num}: {error}; correct or move the table") from None
            lines = [(number, cells) for number, cells in lines if any(cells)]
            if lines and lines[0][1][0].casefold().startswith("sep="):  # Excel's own line
                del lines[0]
            header = lines.pop(0)[1] if lines else []
            lacks = [name for name in REQUIRED if name not in header]
            if not lacks:
                return [(number, self._cells(number, header, cells)) for number, cells in lines]
            missing = min(missing, lacks, key=len)
        raise UsageError(
            f"{self._path}: not a table of `gliaflow submit`: it has no column {', '.join(missing)}. "
            "Move it, or choose another --out"
        )

    def _cells(self, number: int, header: list[str], cells: list[str]) -> dict[str, str]:
        if any(cells[len(header) :]):
            raise self._refusal(number, "", f"{len(cells)} values for {len(header)} columns")
        cells = cells + [""] * (len(header) - len(cells))
        named: dict[str, str] = {}
        for name, cell in zip(header, cells, strict=False):
            if name in named:
                raise self._refusal(number, name, "there are two columns of this name")
            if name:
                named[name] = cell
            elif cell:
                raise self._refusal(number, "", f"{cell!r} is in a column without a name")
        return named

    def _decimal(self, lines: list[tuple[int, dict[str, str]]]) -> str:
        """The decimal separator of the table's numbers: the last separator in each of them."""
        separators: dict[str, tuple[int, str, str]] = {}
        only_thousands = True
        for number, cells in lines:
            for name in LARGEST:
                text = cells.get(name, "")
                if used := [letter for letter in text if letter in ".,"]:
                    separators.setdefault(used[-1], (number, name, text))
                    only_thousands &= bool(THOUSANDS.fullmatch(text))
        if "," not in separators:
            return "."
        number, name, text = separators[","]
        if "." in separators:
            raise self._refusal(number, name, f"{text!r} has a decimal comma, and {separators['.'][2]!r} a point")
        if only_thousands:
            raise self._refusal(number, name, f"{text!r} may be a decimal comma or a thousand")
        return ","

    def _row(self, number: int, cells: dict[str, str], decimal: str) -> ScanRow:
        values: dict[str, Any] = {name: unquoted(cells[name]) for name in COLUMNS if name in cells}
        for name in LARGEST:
            values[name] = self._number(number, name, cells.get(name, ""), decimal)
        if values["slices"] is not None:
            values["slices"] = int(values["slices"])
        values["warnings"] = tuple(part for part in values.get("warnings", "").split(BETWEEN) if part)
        row = ScanRow(**{"patient": "", **values}, added={k: v for k, v in cells.items() if k not in COLUMNS})
        if not row.scan:
            raise self._refusal(number, "scan", "is empty")
        if row.status not in STATUSES:
            raise self._refusal(number, "status", f"{row.status!r} is not one of {', '.join(STATUSES)}")
        if row.status == "ok" and (row.grade not in CLASSES or row.p_hgg is None):
            raise self._refusal(number, "grade", f"status ok needs a grade ({', '.join(CLASSES)}) and p_hgg")
        if row.mask and not row.mask.startswith(f"{row.scan}_"):
            raise self._refusal(number, "scan", f"{row.scan!r}, but its mask is {row.mask}")
        return row

    def _number(self, line: int, name: str, text: str, decimal: str) -> float | None:
        if not text:
            return None
        whole, _, rest = text.rpartition(decimal)
        if decimal not in whole and THOUSANDS.fullmatch(whole):
            whole = whole.replace(".", "").replace(",", "")
        plain = f"{whole}.{rest}" if decimal in text else text
        value = float(plain) if NUMBER.fullmatch(plain) else -1.0
        largest = math.inf if self._unchanged else LARGEST[name]
        if not 0 <= value <= largest or (name == "slices" and not value.is_integer()):
            raise self._refusal(line, name, f"{text!r} is not a possible value")
        return value

    def _refusal(self, line: int, column: str, why: str) -> UsageError:
        where = f"line {line}, column {column}" if column else f"line {line}"
        return UsageError(
            f"{self._path}: {where}: {why} (did a spreadsheet program change it?). Correct it, or move the table"
        )

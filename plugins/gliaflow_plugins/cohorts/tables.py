"""CSV and TSV tables as spreadsheets write them. A table is untrusted, so its size is limited."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_TABLE_BYTES = 4 * 2**20
OLD_EXCEL = b"\xd0\xcf\x11\xe0"
NUMBERED = re.compile(r" \(column \d+\)$")


@dataclass(frozen=True)
class TableRow:
    """A row of a table: the number of its last line, and its text by column."""

    line: int
    cells: dict[str, str]


@dataclass(frozen=True)
class Table:
    """A table's rows; ``problems`` lists the ignored rows.

    Each column has a name of its own: two columns ``grade`` are ``grade (column 2)`` and ``grade (column 5)``.
    """

    path: Path
    columns: list[str]
    rows: list[TableRow]
    problems: list[str]

    def column(self, name: str) -> str:
        """The column with this exact name, or else the one that ``find`` finds.

        Raises
        ------
        ValueError: there is no such column, or several.
        """
        column = name if name in self.columns else self.find(name)
        if column is None:
            raise ValueError(f"{self.path}: no column {name!r}; there is: {', '.join(self.columns)}")
        return column

    def find(self, name: str) -> str | None:
        """The column with this name, without regard to case and separators; None if there is none.

        Raises
        ------
        ValueError: there are several.
        """
        same = [column for column in self.columns if _letters(NUMBERED.sub("", column)) == _letters(name)]
        if len(same) > 1:
            raise ValueError(f"{self.path}: several columns are called {name!r}: {quoted(same)}; keep one, or name it")
        return same[0] if same else None


def read_table(path: Path) -> Table:
    """Read a CSV or TSV file with a header, in UTF-8, UTF-16 or Windows-1252.

    Raises
    ------
    OSError, ValueError: the file cannot be read, or is not such a table. The text names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'a folder, not a table' if path.is_dir() else 'no such file'}")
    with path.open("rb") as file:
        data = file.read(MAX_TABLE_BYTES + 1)
    if len(data) > MAX_TABLE_BYTES:
        raise ValueError(f"{path}: over {MAX_TABLE_BYTES} bytes, too large for a table of patients")
    if data.startswith((b"PK", OLD_EXCEL)):
        raise ValueError(f"{path}: a spreadsheet; save it as CSV first")
    text = _decoded(data)
    if "\0" in text:
        raise ValueError(f"{path}: not a text file")
    first, _, rest = text.partition("\n")
    excel = re.fullmatch(r'"?sep=(.)"?\r?', first)  # Excel's own line for its delimiter
    text, skipped = (rest, 1) if excel else (text, 0)
    delimiter = excel[1] if excel else _delimiter(path, first, rest.partition("\n")[0])
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    cells: list[tuple[int, list[str]]] = []
    try:
        header = [cell.strip() for cell in next(lines, [])]
        if not any(header):
            raise ValueError(f"{path}: no header in its first line")
        cells += ((lines.line_num + skipped, [cell.strip() for cell in line]) for line in lines)
    except csv.Error as error:
        raise ValueError(
            f"{path} line {lines.line_num + skipped}: {error}; is a quotation mark not closed? Save the CSV again"
        ) from None
    columns = _columns(header)
    rows, problems = [], []
    for line, row in cells:
        if not any(row):
            continue
        if len(row) < len(columns) or any(row[len(columns) :]):
            problems.append(f"{path.name} line {line}: {len(row)} cells, expected {len(columns)}")
        elif row[: len(header)] == header:
            problems.append(f"{path.name} line {line}: the header again; ignored")
        else:
            rows.append(TableRow(line, dict(zip(columns, row, strict=False))))
    filled = [
        name for name, title in zip(columns, header, strict=True) if title or any(row.cells[name] for row in rows)
    ]
    return Table(path, filled, rows, problems)


def simple(column: str) -> str:
    """A column's name in small letters, joined by ``_``: ``patient_id`` for ``Patient ID`` and ``PatientID``."""
    apart = re.sub(r"(?<=[a-zäöüß])(?=[A-ZÄÖÜ])", "_", column)
    return re.sub(r"[\W_]+", "_", apart.casefold()).strip("_")


def _letters(column: str) -> str:
    return re.sub(r"[\W_]+", "", column.casefold())


def quoted(names: Sequence[str]) -> str:
    """The names for a message: ``'age', 'id' and 'nr'``."""
    return listed([repr(name) for name in names])


def listed(names: Sequence[str]) -> str:
    """The names, with "and" before the last."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def few(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _columns(header: Sequence[str]) -> list[str]:
    """The columns' names, with their numbers where two are equal or one is empty."""
    count = Counter(header)
    return [
        title if title and count[title] == 1 else f"{title} (column {number})".strip()
        for number, title in enumerate(header, 1)
    ]


def _delimiter(path: Path, header: str, second: str) -> str:
    if path.suffix.casefold() == ".tsv" and "\t" in header:
        return "\t"
    usual = max("\t;,", key=header.count)  # of equally frequent ones, the one that is rarer in plain text
    bars = header.count("|")  # a bar may also be text: "grade (I|II)"
    return "|" if bars > header.count(usual) and bars == second.count("|") else usual


def _decoded(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")

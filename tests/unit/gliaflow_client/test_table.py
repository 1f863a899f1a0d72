"""``predictions.csv``, as gliaflow writes it and as spreadsheet programs save it again."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from gliaflow_client.table import TABLE, ScanRow, read_table, write_table
from gliaflow_runtime.errors import UsageError

Cells = list[list[str]]
ROWS = [
    ScanRow("P1", "p", "a/P1.nii", "HGG", 0.25, 3.5, 12, "ok", mask="P1_seg.nii.gz", seconds=0.5),
    ScanRow("P2", "q", "P2.nii", tumour_ml=0.0, slices=4, status="no tumour", warnings=("one; first", "two, a|b")),
    ScanRow("P3", "r", "P3.nii", error="a strange\nreason; really"),
]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    write_table(tmp_path / TABLE, ROWS)
    return tmp_path / TABLE


def save_again(
    table: Path, delimiter: str = ",", encoding: str = "utf-8", change: Callable[[Cells], Cells] = lambda cells: cells
) -> None:
    """Save the table as a spreadsheet program does."""
    with table.open(newline="", encoding="utf-8") as file:
        cells = change(list(csv.reader(file)))
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(cells)
    table.write_text(text.getvalue(), encoding=encoding)


def commas(cells: Cells) -> Cells:
    numbers = {cells[0].index(name) for name in ("p_hgg", "tumour_ml", "seconds")}
    return [[cell.replace(".", ",") if i in numbers else cell for i, cell in enumerate(line)] for line in cells]


def with_value(line: int, column: str, value: str) -> Callable[[Cells], Cells]:
    def change(cells: Cells) -> Cells:
        cells[line - 1][cells[0].index(column)] = value
        return cells

    return change


def test_a_table_is_read_as_it_was_written(table: Path, tmp_path: Path) -> None:
    assert list(read_table(table).values()) == ROWS
    assert read_table(tmp_path / "none.csv") == {}


def test_the_columns(table: Path) -> None:
    header = "scan,patient,source,grade,p_hgg,tumour_ml,slices,status,error,warnings,bundle,trained_on,seconds,mask"
    assert table.read_text().splitlines()[0] == header
    write_table(table, [replace(ROWS[0], true_grade="LGG"), ROWS[1]])
    assert table.read_text().splitlines()[0] == header + ",true_grade", "only if a scan has one"


def test_numbers_have_no_exponent_and_at_most_six_digits(table: Path) -> None:
    write_table(table, [replace(ROWS[0], p_hgg=1e-5, tumour_ml=0.0, seconds=1.25)])
    line = next(csv.DictReader(io.StringIO(table.read_text())))
    assert (line["p_hgg"], line["tumour_ml"], line["seconds"]) == ("0.00001", "0", "1.25")


def test_the_number_of_warnings_stays(table: Path) -> None:
    write_table(table, [replace(ROWS[1], warnings=("a file a | b.nii; ignored", "two"))])
    assert read_table(table)["P2"].warnings == ("a file a / b.nii; ignored", "two")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_of_a_spreadsheet_program_is_read(table: Path, delimiter: str, encoding: str) -> None:
    save_again(table, delimiter, encoding, lambda cells: [line[::-1] for line in cells])
    assert list(read_table(table).values()) == ROWS


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_decimal_commas_are_read(table: Path, delimiter: str) -> None:
    save_again(table, delimiter, change=commas)
    assert list(read_table(table).values()) == ROWS


@pytest.mark.parametrize(
    ("written", "value"), [("1,00E-05", 1e-5), ("2,5e-1", 0.25), ("0,778801", 0.778801), ("1", 1.0)]
)
def test_numbers_with_exponents_and_commas(table: Path, written: str, value: float) -> None:
    save_again(table, ";", change=lambda cells: with_value(2, "p_hgg", written)(commas(cells)))
    assert read_table(table)["P1"].p_hgg == value


def test_added_columns_are_kept_and_missing_ones_are_empty(table: Path) -> None:
    def change(cells: Cells) -> Cells:
        keep = [i for i, name in enumerate(cells[0]) if name not in ("bundle", "seconds", "error")]
        lines = [[line[i] for i in keep] for line in cells]
        notes = ["read by", "A. B.", "", "C"]
        return [[note, *line, "", ""] for note, line in zip(notes, lines, strict=True)] + [[""] * 14, []]

    save_again(table, ";", change=change)
    rows = read_table(table)
    assert [row.added for row in rows.values()] == [{"read by": "A. B."}, {"read by": ""}, {"read by": "C"}]
    assert (rows["P1"].seconds, rows["P3"].error) == (None, "")
    write_table(table, rows.values())
    assert read_table(table) == rows
    assert table.read_text().splitlines()[1].endswith(",A. B.")


def test_the_table_of_an_older_version_is_read(table: Path) -> None:
    table.write_text(
        "scan,patient,grade,p_hgg,tumour_ml,slices,status,error,bundle,seconds\n"
        "P1,p,HGG,0.7788007855415344,1.235,12,ok,,demo@1,2.5\n"
    )
    assert read_table(table)["P1"].p_hgg == 0.7788007855415344


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_value(2, "p_hgg", "1,234.5"), "line 2, column p_hgg: '1,234.5' is not a possible value"),
        (with_value(2, "p_hgg", "78%"), "line 2, column p_hgg: '78%' is not"),
        (with_value(2, "tumour_ml", "12. Mai"), "line 2, column tumour_ml: '12. Mai' is not"),
        (with_value(2, "tumour_ml", "12345"), "line 2, column tumour_ml: '12345' is not"),
        (with_value(2, "tumour_ml", "3,5"), "'3,5' has a decimal comma, and '0.25' a point"),
        (with_value(2, "slices", "1.5"), "column slices: '1.5'"),
        (with_value(2, "p_hgg", ""), "line 2, column grade: status ok needs a grade"),
        (with_value(2, "status", "done"), "line 2, column status: 'done' is not one of ok, no tumour, failed"),
        (with_value(2, "scan", ""), "line 2, column scan: is empty"),
        (with_value(2, "scan", "1"), "line 2, column scan: '1', but its mask is P1_seg.nii.gz"),
        (with_value(3, "scan", "P1"), "line 3, column scan: 'P1' has two rows"),
        (with_value(1, "patient", "scan"), "column scan: there are two columns of this name"),
        (lambda cells: [*cells[:2], [*cells[2], "more"]], "line 3: 15 values for 14 columns"),
        (lambda cells: [[*cells[0], ""], [*cells[1], "note"]], "line 2: 'note' is in a column without a name"),
    ],
)
def test_a_value_that_a_spreadsheet_program_changed_is_refused_in_one_line(
    table: Path, change: Callable[[Cells], Cells], message: str
) -> None:
    save_again(table, change=change)
    with pytest.raises(UsageError) as refused:
        read_table(table)
    assert message in str(refused.value)
    assert str(refused.value).startswith(f"{table}: ")
    assert "Correct it, or move the table" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_number_that_may_be_a_thousand_is_refused(table: Path) -> None:
    save_again(table, change=lambda c: with_value(2, "p_hgg", "1")(with_value(2, "tumour_ml", "1,234")(commas(c)[:2])))
    save_again(table, change=with_value(2, "seconds", "2"))
    with pytest.raises(UsageError, match="'1,234' may be a decimal comma or a thousand"):
        read_table(table)


def test_numbers_of_a_table_that_nobody_changed_may_be_large(table: Path) -> None:
    write_table(table, [replace(ROWS[0], tumour_ml=12345.0)])
    assert read_table(table, unchanged=True)["P1"].tumour_ml == 12345


@pytest.mark.parametrize("text", ["", "subject,age\nP1,40\n", "scan;volume\nP1;3\n", "\x00\x01"])
def test_the_table_of_another_tool_is_refused(table: Path, text: str) -> None:
    table.write_text(text)
    with pytest.raises(UsageError, match=r"not a table of `gliaflow submit`: it has no column .*Move it, or choose"):
        read_table(table)


def test_a_table_of_another_encoding_is_refused(table: Path) -> None:
    table.write_bytes(table.read_bytes().replace(b"strange", "für".encode("latin-1")))
    with pytest.raises(UsageError, match="not UTF-8; save the table as CSV UTF-8"):
        read_table(table)


FORMULAS = [
    "=cmd|'/C calc'!A0",
    "+1",
    "-0.5",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "  =1",
    "\u200b=1",
    "＝1",
    '"=1"',
    "a;=1",
    "a\n=1",
]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("name", FORMULAS)
def test_no_name_is_a_formula_in_a_spreadsheet_program(tmp_path: Path, name: str, delimiter: str) -> None:
    """Whatever the program takes for the separator, and though it skips spaces and quotes."""
    write_table(tmp_path / TABLE, [ScanRow(name, name, name, error=name, warnings=(name,))])
    with (tmp_path / TABLE).open(newline="", encoding="utf-8") as file:
        cells = [cell for line in csv.reader(file, delimiter=delimiter) for cell in line]
    assert [cell for cell in cells if re.match(r"[\s\"\u200b]*[=+\-@＝]|[\t\r]", cell)] == []


@pytest.mark.parametrize("name", [*FORMULAS, "'=1", "''=1", "'a", " a ", "a=1", "=\t=\n;'=;=", "'"])
def test_names_are_read_back_exactly(tmp_path: Path, name: str) -> None:
    rows = [ScanRow(name, name, name, error=name, warnings=(name, "b"))]
    write_table(tmp_path / TABLE, rows)
    assert list(read_table(tmp_path / TABLE, unchanged=True).values()) == rows


def test_numbers_and_the_users_own_columns_are_not_quoted(tmp_path: Path) -> None:
    row = ScanRow("a", "b", "c", "HGG", 0.5, 1.0, 3, "ok", added={"sum": "=A1+1", "change": "-0.5"})
    write_table(tmp_path / TABLE, [row])
    assert "'" not in (tmp_path / TABLE).read_text()
    assert read_table(tmp_path / TABLE)["a"] == row

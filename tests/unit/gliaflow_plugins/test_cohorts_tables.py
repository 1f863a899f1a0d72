"""CSV and TSV tables as spreadsheets write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from gliaflow_plugins.cohorts.tables import TableRow, read_table


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("first", ["", "sep=;\r\n"])
def test_a_table_may_come_from_any_spreadsheet(tmp_path: Path, encoding: str, first: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(f"{first}patiënt;grade, WHO\r\nä;II\r\n\r\nb;2,0;;\r\nc\r\n".encode(encoding))
    table = read_table(path)
    line = 2 if not first else 3
    assert table.rows == [
        TableRow(line, {"patiënt": "ä", "grade, WHO": "II"}),
        TableRow(line + 2, {"patiënt": "b", "grade, WHO": "2,0"}),
    ]
    assert table.problems == [f"t.csv line {line + 3}: 1 cells, expected 2"]


def test_a_table_with_commas_may_be_called_tsv(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("a,b\n1,2\n")
    assert read_table(tmp_path / "t.tsv").columns == ["a", "b"]


def test_each_column_has_a_name_of_its_own_and_a_second_header_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("grade,,a,grade,\n1,x,2,3,\ngrade,,a,grade,\n")
    table = read_table(path)
    assert table.columns == ["grade (column 1)", "(column 2)", "a", "grade (column 4)"]
    assert table.problems == ["t.csv line 3: the header again; ignored"]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "no header"),
        (b"PK\3\4", "spreadsheet"),
        (b"\xd0\xcf\x11\xe0", "spreadsheet"),
        (b"a,b\n\0,1\n", "not a text file"),
        (b"a," * 2**22, "too large"),
        (b'a,b\n"' + b"x" * 200_000, "line"),
        (b'a,b\n1,"he said\n2,x\n', "line 3: unexpected end of data; is a quotation mark not closed"),
    ],
)
def test_an_unusable_table_is_named(tmp_path: Path, data: bytes, error: str) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(ValueError, match=rf"t\.csv.*{error}"):
        read_table(tmp_path / "t.csv")


def test_a_bar_separates_cells_if_it_does_so_in_the_second_line_too(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("patient|age, years|grade\nP1|33|2\n")
    assert read_table(path).columns == ["patient", "age, years", "grade"]
    path.write_text("patient,grade (I|II|III|IV)\nP1,2\n")
    assert read_table(path).columns == ["patient", "grade (I|II|III|IV)"]


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="a folder, not a table"):
        read_table(tmp_path)

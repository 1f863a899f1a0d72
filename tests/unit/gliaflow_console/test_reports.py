"""Reports in the operator's folder: which are listed, what the list says, and what stays outside."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from gliaflow_client.table import ScanRow, write_table
from gliaflow_console import reports
from gliaflow_console.reports import find_reports, why_no_reports
from gliaflow_runtime.bundle.load import demo_bundle
from sample_metrics import made_up


def write_page(folder: Path, text: str = "page") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.html").write_text(text)
    return folder


def write_answers(folder: Path) -> Path:
    write_page(folder)
    rows = [ScanRow("a", "P1", grade="HGG", p_hgg=0.9, status="ok"), ScanRow("b", "P2", error="no FLAIR")]
    write_table(folder / "predictions.csv", rows)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one report of each kind."""
    (write_page(tmp_path / "evaluations" / "first") / "metrics.json").write_text(json.dumps(made_up()))
    shutil.copy(demo_bundle() / "manifest.json", write_page(tmp_path / "bundle"))
    write_answers(tmp_path / "answers")
    write_page(tmp_path / "other program")
    return tmp_path


def test_reports_of_each_kind_are_listed_with_a_summary(folder: Path) -> None:
    listed = {report.kind: report for report in find_reports(folder)}
    assert {report.name for report in listed.values()} == {"evaluations/first", "bundle", "answers"}
    assert listed["evaluation"].summary().startswith("Synthetic features raised balanced accuracy by ")
    assert "AUC" in listed["training"].summary()
    assert "trained on phantoms" in listed["training"].summary()
    assert listed["answers"].summary() == "1 of 2 scans answered: 1 graded, 1 failed"
    assert listed["answers"].page() == b"page"


def test_the_newest_is_first(folder: Path) -> None:
    os.utime(folder / "bundle" / "report.html", (2e9, 2e9))
    assert find_reports(folder)[0].name == "bundle"


def test_the_folder_itself_may_be_a_report(tmp_path: Path) -> None:
    (report,) = find_reports(write_answers(tmp_path / "run 1"))
    assert report.name == "run 1"


def test_a_damaged_table_is_named_and_the_page_stays(folder: Path) -> None:
    for name in ("evaluations/first/metrics.json", "bundle/manifest.json", "answers/predictions.csv"):
        (folder / name).write_bytes(b"\xff{")
    for report in find_reports(folder):
        summary = report.summary()
        assert summary.startswith(reports.KINDS[report.kind][0])
        assert str(folder) not in summary
        assert report.page() == b"page"


def test_a_huge_table_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "TABLE_BYTES", 1)
    assert all("open the report" in report.summary() for report in find_reports(folder))


def test_links_lead_nowhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = write_answers(tmp_path_factory.mktemp("outside"))
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "linked").symlink_to(outside)
    write_answers(folder / "page")
    (folder / "page" / "report.html").unlink()
    (folder / "page" / "report.html").symlink_to(outside / "report.html")
    assert find_reports(folder) == []


def test_a_page_that_becomes_a_link_or_a_pipe_is_not_read(folder: Path) -> None:
    report = next(report for report in find_reports(folder) if report.kind == "answers")
    page = report.folder / "report.html"
    page.unlink()
    page.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match=r"symbolic|levels"):
        report.page()
    page.unlink()
    os.mkfifo(page)
    with pytest.raises(OSError, match="not a file"):
        report.page()


def test_the_search_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_answers(folder / "1" / "2" / "3" / "4" / "too deep")
    write_answers(folder / ".hidden")
    assert len(find_reports(folder)) == 3
    monkeypatch.setattr(reports, "FOLDERS", 1)
    assert find_reports(folder) == []


def test_a_folder_that_is_missing_is_a_problem_with_a_remedy(tmp_path: Path) -> None:
    assert why_no_reports(None) == why_no_reports(tmp_path) == ""
    assert "create it" in why_no_reports(tmp_path / "missing")

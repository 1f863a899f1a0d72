"""The progress of an evaluation: a row of the bar for each fold and seed, or a line now and then."""

from __future__ import annotations

import io

import pytest

pytest.importorskip("torch")

from gliaflow_evaluation import progress
from gliaflow_evaluation.progress import Report, ReportingBar, Rows
from rich.console import Console
from rich.progress import Progress


def test_each_fold_and_seed_has_a_row_until_it_ends() -> None:
    with Progress(console=Console(file=io.StringIO(), force_terminal=True)) as bar:
        rows = Rows(bar)
        rows(Report("fold 0", "U-Net", 1, 7))
        rows(Report("fold 1, seed 0", "levels, epochs", 3, None))
        rows(Report("fold 0", "U-Net", 2, 7))
        assert [(task.description, task.completed, task.total) for task in bar.tasks] == [
            ("fold 0: U-Net", 2, 7),
            ("fold 1, seed 0: levels, epochs", 3, None),
        ]
        rows(Report("fold 0", "", 1, 1))
        assert [task.description for task in bar.tasks] == ["fold 1, seed 0: levels, epochs"]


def test_without_a_terminal_a_line_is_printed_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    text, now = io.StringIO(), 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Progress(console=Console(file=text)) as bar:
        rows = Rows(bar)
        for epoch in range(1, 8):
            now += 4
            rows(Report("fold 0", "U-Net", epoch, 7))
        printed = text.getvalue().splitlines()
    assert printed == ["fold 0: U-Net 3/7", "fold 0: U-Net 6/7"]


def test_the_rows_of_a_training_are_reported_as_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[Report] = []
    monkeypatch.setattr(progress, "_sends", [reports.append])
    with ReportingBar("fold 2") as bar:
        row = bar.add_task("U-Net", total=3)
        bar.update(row, completed=1, total=3)
        bar.advance(row)
    assert reports == [Report("fold 2", "U-Net", done, 3) for done in (0, 1, 2)]

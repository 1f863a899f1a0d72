"""``gliaflow submit``: what it says when it is interrupted."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from gliaflow_cli.client.out_folder import OutFolder
from gliaflow_cli.main import app
from sample_scans import good_scan
from typer.testing import CliRunner


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_its_rows_and_names_the_way_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setenv("GLIAFLOW_STATE", str(tmp_path / "state"))
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        good_scan(tmp_path / "in" / f"{name}_flair.nii.gz")
    saved = OutFolder._save_answer

    def interrupted_after_one(folder: OutFolder, target: Any, answer: Any) -> Any:
        row = saved(folder, target, answer)
        signal.raise_signal(number)
        return row

    monkeypatch.setattr(OutFolder, "_save_answer", interrupted_after_one)
    before = signal.getsignal(signal.SIGTERM)
    try:
        done = CliRunner().invoke(
            app, ["submit", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--threads", "1"]
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done.exit_code == 130
    assert "of 2 scans answered; the same command with --resume continues" in done.output
    assert (tmp_path / "out" / "predictions.csv").exists()

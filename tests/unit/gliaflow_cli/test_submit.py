"""``gliaflow submit``: what it says when it is interrupted, and when scans fail that have an answer."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gliaflow.answer import Answer
from gliaflow.flow import Flow
from gliaflow_cli.main import app
from gliaflow_client.out_folder import OutFolder
from gliaflow_client.table import TABLE, read_table
from sample_dicom import write_flair
from sample_scans import good_scan
from sample_sequences import save, several_channels
from typer.testing import CliRunner


def test_an_interrupted_run_keeps_its_rows_and_names_the_way_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIAFLOW_STATE", str(tmp_path / "state"))
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        good_scan(tmp_path / "in" / f"{name}_flair.nii.gz")
    saved = OutFolder.save_answer

    def interrupted_after_one(folder: OutFolder, target: Any, answer: Any) -> Any:
        row = saved(folder, target, answer)
        signal.raise_signal(signal.SIGINT)
        return row

    monkeypatch.setattr(OutFolder, "save_answer", interrupted_after_one)
    done = CliRunner().invoke(app, ["submit", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--threads", "1"])
    assert done.exit_code == 130
    assert "of 2 scans answered; the same command with --resume continues" in done.output
    assert (tmp_path / "out" / "predictions.csv").exists()


def test_a_scan_that_fails_again_keeps_its_answer_and_counts_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIAFLOW_STATE", str(tmp_path / "state"))
    (tmp_path / "P1_flair.nii.gz").write_bytes(b"scan")
    good = Answer("P1_flair", "P1", "P1_flair.nii.gz", "ok", grade="HGG", p_hgg=0.9)
    command = ["submit", str(tmp_path / "P1_flair.nii.gz"), "--out", str(tmp_path / "out"), "--threads", "1"]
    codes, printed = [], ""
    for failing in (False, True):
        monkeypatch.setattr(
            Flow, "submit_all", lambda _, items, bad=failing: [Answer.failed(items[0], "no broker") if bad else good]
        )
        done = CliRunner().invoke(app, command)
        codes.append(done.exit_code)
        printed = done.output
    assert codes == [0, 1]
    assert "0 of 1 scans answered: 1 failed" in printed
    (row,) = read_table(tmp_path / "out" / TABLE).values()
    assert (row.status, row.grade, row.warnings) == ("ok", "HGG", ("not answered again: no broker",))


def test_sequences_that_the_bundle_reads_are_found_counted_and_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIAFLOW_STATE", str(tmp_path / "state"))
    for name in ("in/A/A_flair", "in/A/A_t1ce", "in/B/B_flair", "x"):
        save(tmp_path / f"{name}.nii.gz", np.ones((4, 5, 12), np.float32))
    sent: list[Any] = []

    def answered(_: Flow, items: Any) -> list[Answer]:
        sent.extend(items)
        return [Answer.failed(item, "no broker") for item in items]

    monkeypatch.setattr(Flow, "submit_all", answered)
    bundle = several_channels(tmp_path / "two", ["flair", "t1ce"], sees="t1ce")

    def submit(*arguments: object) -> Any:
        every = ["submit", *arguments, "--out", tmp_path / "out", "--threads", 1]
        return CliRunner().invoke(app, [*map(str, every)])

    done = submit(tmp_path / "in", "--bundle", bundle)
    assert "sequences flair 2, t1ce 1; without t1ce: B_flair" in done.output
    assert [[*item.sequences] for item in sent] == [["t1ce"], []]
    sent.clear()
    submit(tmp_path / "in/B/B_flair.nii.gz", "--bundle", bundle, "--t1ce", tmp_path / "x.nii.gz")
    assert sent[0].sequences["t1ce"].path.name == "x.nii.gz"
    refused = submit(tmp_path / "in/B/B_flair.nii.gz", "--t1ce", tmp_path / "x.nii.gz")
    assert refused.exit_code == 2
    assert "--t1ce: the bundle reads flair; choose another with --bundle" in " ".join(refused.output.split())


def test_a_table_of_scans_needs_no_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIAFLOW_STATE", str(tmp_path / "state"))
    save(tmp_path / "a.nii.gz", np.ones((4, 5, 12), np.float32))
    (tmp_path / "scans.csv").write_text("scan,patient\na.nii.gz,P1\ngone.nii.gz,P2\n")
    monkeypatch.setattr(Flow, "submit_all", lambda _, items: [Answer.failed(item, "no broker") for item in items])
    done = CliRunner().invoke(app, ["submit", str(tmp_path / "scans.csv"), "--out", str(tmp_path / "out")])
    assert "scans.csv line 3: scan gone.nii.gz does not exist; ignored" in done.output
    (row,) = read_table(tmp_path / "out" / TABLE).values()
    assert (row.scan, row.patient, row.source, row.true_grade) == ("a", "P1", "a.nii.gz", "")


def test_a_study_without_a_choice_is_a_failed_scan_with_the_way_to_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIAFLOW_STATE", str(tmp_path / "state"))
    for name in ("a", "b"):
        write_flair(tmp_path / "in/P1" / name, np.ones((4, 5, 12), np.int16), series=name)
    monkeypatch.setattr(Flow, "submit_all", lambda _, items: [Answer.failed(items[0], items[0].volume.problem)])
    done = CliRunner().invoke(app, ["submit", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--threads", "1"])
    assert done.exit_code == 1
    assert "2 series of one study may be FLAIR" in done.output
    assert "To choose a series, repeat the command with --resume and that --series." in done.output

"""``gliaflow submit`` and ``gliaflow watch`` with folders as people have them: nothing is overwritten or mixed up."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from processes import GLIAFLOW, Command, environment
from sample_scans import GOOD_SHAPE, good_scan


def table(out: Path) -> dict[str, dict[str, str]]:
    """The rows, by source."""
    with (out / "predictions.csv").open() as file:
        return {row["source"]: row for row in csv.DictReader(file)}


def test_patients_whose_scans_have_one_file_name(gliaflow: Command, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"study/P{number}").mkdir(parents=True)
        good_scan(tmp_path / f"study/P{number}/flair.nii.gz", seed=number)
    gliaflow("submit", "study", "--out", "out")
    before = table(tmp_path / "out")
    (tmp_path / "study/P0").mkdir()
    good_scan(tmp_path / "study/P0/flair.nii.gz", seed=3)
    (tmp_path / "study").rename(tmp_path / "moved")
    done = gliaflow("submit", "moved", "--out", "out", "--resume")
    assert "2 of 3 scans have an answer in out" in done.stdout
    rows = table(tmp_path / "out")
    assert {source: rows[source] for source in before} == before
    assert list(rows) == ["P1/flair.nii.gz", "P2/flair.nii.gz", "P0/flair.nii.gz"]
    assert [row["patient"] for row in rows.values()] == ["P1", "P2", "P0"]
    assert len({row["mask"] for row in rows.values()}) == 3


def test_a_study_that_is_also_out_keeps_its_manual_masks(gliaflow: Command, tmp_path: Path) -> None:
    study = tmp_path / "study"
    study.mkdir()
    good_scan(study / "P1.nii.gz")
    (study / "P1_seg.nii.gz").write_bytes(b"by hand")
    done = gliaflow("submit", "study", "--out", "study")
    assert "gliaflow did not write P1_seg.nii.gz, or it was changed since: it is kept" in done.stderr.replace("\n", " ")
    assert (study / "P1_seg.nii.gz").read_bytes() == b"by hand"
    assert table(study)["P1.nii.gz"]["mask"] == "P1_gliaflow_seg.nii.gz"
    again = gliaflow("submit", "study", "--out", "study")
    assert "1 of 1 scans answered: 1 graded; 1 with warnings: study/predictions.csv" in again.stdout


def test_rows_of_an_earlier_submission_stay(gliaflow: Command, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        good_scan(tmp_path / name / "P1_flair.nii.gz", seed=ord(name))
        done = gliaflow("submit", name, "--out", "out")
    note = "another scan in out is named P1_flair; this scan's answers are named P1_flair-2"
    assert f"renamed    b/P1_flair.nii.gz: {note}" in done.stdout
    with (tmp_path / "out/predictions.csv").open() as file:
        masks = {row["scan"]: row["mask"] for row in csv.DictReader(file)}
    assert masks == {"P1_flair": "P1_flair_seg.nii.gz", "P1_flair-2": "P1_flair-2_seg.nii.gz"}


def test_the_table_of_another_tool_is_refused_before_work_begins(gliaflow: Command, tmp_path: Path) -> None:
    good_scan(tmp_path / "scan.nii.gz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/predictions.csv").write_text("subject,age\nP1,40\n")
    done = gliaflow("submit", "scan.nii.gz", "--out", "out", check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "out/predictions.csv: not a table of `gliaflow submit`" in done.stderr
    assert (tmp_path / "out/predictions.csv").read_text() == "subject,age\nP1,40\n"


def test_the_screen_names_what_needs_attention_and_the_report_shows_it(gliaflow: Command, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    study = tmp_path / "study"
    study.mkdir()
    good_scan(study / "good.nii.gz")
    (study / "broken.nii.gz").write_bytes(b"not a scan")
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in GOOD_SHAPE), indexing="ij")
    head = (i**2 + j**2 + k**2 < 0.8) * np.random.default_rng(0).normal(300, 15, GOOD_SHAPE)
    nib.save(nib.Nifti1Image(head.astype(np.int16), np.diag([5.0, 5, 6, 1])), study / "healthy.nii.gz")
    done = gliaflow("submit", "study", "--out", "out", "--grade", "lgg", "--report", check=False)
    assert done.returncode == 1
    assert "failed     study/broken.nii.gz: preprocessor: not a NIfTI file" in done.stderr.replace("\n", " ")
    assert "no tumour  study/healthy.nii.gz: tumour 0.0 ml, so no grade" in done.stderr.replace("\n", " ")
    assert "This bundle was trained on phantoms" in done.stdout
    assert "Not counted: 1 without tumour, 1 failed" in done.stdout
    assert "2 of 3 scans answered: 1 graded, 1 without tumour, 1 failed" in done.stdout
    row = table(tmp_path / "out")["healthy.nii.gz"]
    assert (row["status"], row["grade"], row["p_hgg"], row["true_grade"]) == ("no tumour", "", "", "LGG")
    assert row["trained_on"] == "phantoms"
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<img") == 2
    assert "trained on phantoms" in page


def test_watch_answers_each_scan_once_under_a_name_of_its_own(tmp_path: Path) -> None:
    inbox, out = tmp_path / "inbox", tmp_path / "inbox/answers"

    def watch(answers: int) -> list[dict[str, object]]:
        """Run until there are so many answers, and two rounds longer."""
        command = [*GLIAFLOW, "watch", str(inbox), "--out", str(out)]
        with (tmp_path / "log").open("a") as log:
            process = subprocess.Popen(command, env=environment(tmp_path, "memory://"), stdout=log, stderr=log)
        deadline = time.monotonic() + 100
        while len(found := [*out.glob("[!.]*.json")]) < answers and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        return [json.loads(file.read_text()) for file in sorted(found)]

    (inbox / "P1").mkdir(parents=True)
    good_scan(inbox / "P1/flair.nii.gz")
    good_scan(inbox / "P1/t1.nii.gz")
    assert [each["source"] for each in watch(1)] == ["P1/flair.nii.gz"]
    (inbox / "P2").mkdir()
    good_scan(inbox / "P2/flair.nii.gz", seed=2)
    assert {each["source"] for each in watch(2)} == {"P1/flair.nii.gz", "P2/flair.nii.gz"}
    log = (tmp_path / "log").read_text()
    assert log.count('"answered"') == 2, "a restart answers nothing twice"
    assert log.count("trained on phantoms") == 2, "once in each run"
    assert "P1" not in log, "names of patients are in no log"
    assert (out / "left_out.txt").read_text().startswith(str(inbox / "P1/t1.nii.gz"))
    assert len(table(out)) == 2

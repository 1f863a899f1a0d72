"""The page of ``gliaflow demo``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from gliaflow_cli.client.table import ScanRow
from gliaflow_cli.commands.demo_report import Shown, write_report
from read_page import UNTRUSTED, PageReader, check_stands_alone

METRICS = {"segmentation": {"dice_mean": 0.67, "patients": 30}, "grading": {"auc": 0.81, "patients": 28}}


def shown(number: int, grade: str, answer: str) -> Shown:
    rng = np.random.default_rng(number)
    truth = np.zeros((40, 48, 6), np.uint8)
    truth[10:20, 10:20, 2:4] = 1
    row = ScanRow(
        scan=f"phantom_{number}_flair",
        patient=f"phantom_{number}",
        grade=answer,
        p_hgg=0.75,
        tumour_ml=12.3,
        status="ok",
        bundle="demo@1",
        seconds=1.23,
    )
    flair = rng.uniform(0, 1, truth.shape) + truth
    return Shown(row, grade, 0.5, flair, np.roll(truth, 5, axis=0), truth, (1.0, 1.0))


def page(scans: list[Shown], tmp_path: Path, channels: int = 16) -> str:
    rng = np.random.default_rng(0)
    real = {grade: rng.gamma(1, 1, (channels, 15, 15)).astype(np.float16) for grade in ("HGG", "LGG")}
    synthetic = {grade: rng.gamma(1, 1, (8, channels, 15, 15)).astype(np.float16) for grade in ("HGG", "LGG")}
    write_report(tmp_path / "report.html", scans, real, synthetic, METRICS)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_shows_each_phantom_with_its_grade_and_both_dice(tmp_path: Path) -> None:
    written = page([shown(1, "HGG", "HGG"), shown(2, "LGG", "HGG")], tmp_path)
    check_stands_alone(written)
    text = PageReader(written).text
    for part in (
        "2 of 2 phantom scans answered by demo@1 ; 1 of 2 grades are right; mean Dice of the scans 0.50.",
        "mean Dice 0.67 (30 patients); AUC of the grade 0.81 (28 patients; 0.5 is chance).",
        "phantom_1_flair HGG HGG 0.750 12.3 0.50 1.2",
        "phantom_2_flair LGG HGG ✗",
        "phantom_1 graded HGG, true HGG: right Dice of this slice 0.50 Dice of the scan 0.50",
        "phantom_2 graded HGG, true LGG: wrong ✗",
        "the patient’s left (L) is at the right of the picture",
        "the 8 strongest of 16 channels",
    ):
        assert part in text.replace("demo@1;", "demo@1 ;")
    assert len(PageReader(written).all("img")) == 2 + 4


def test_a_scan_that_failed_has_its_reason(tmp_path: Path) -> None:
    failed = shown(1, "HGG", "")
    failed = replace(failed, row=ScanRow("phantom_1_flair", "phantom_1", error="no head in it"))
    text = PageReader(page([failed], tmp_path, channels=4)).text
    assert "0 of 1 phantom scans answered." in text
    assert "failed: no head in it" in text
    assert "strongest of 4 channels" in text


def test_names_are_untrusted_text(tmp_path: Path) -> None:
    scan = shown(1, "HGG", "HGG")
    named = replace(scan, row=replace(scan.row, scan=UNTRUSTED, patient=UNTRUSTED, bundle=UNTRUSTED))
    read = PageReader(page([named], tmp_path))
    assert not any("onerror" in attributes for _, attributes in read.tags)
    assert UNTRUSTED in read.raw
    assert len(read.all("img")) == 1 + 4

"""The page of ``gliaflow submit --report`` and of ``gliaflow demo``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("matplotlib")

from gliaflow.scans import Input
from gliaflow_cli.commands import answers_report
from gliaflow_cli.commands.answers_report import DemoParts, Shown, answers_page
from gliaflow_client.table import ScanRow
from gliaflow_pages.slices import Slice
from read_page import UNTRUSTED, UNTRUSTED_SHOWN, PageReader, check_stands_alone

METRICS = {"segmentation": {"dice_mean": 0.67, "patients": 30}, "grading": {"auc": 0.81, "patients": 28}}
OK = ScanRow(
    scan="P1_flair",
    patient="P1",
    source="P1/flair.nii.gz",
    grade="HGG",
    p_hgg=0.75,
    tumour_ml=12.3,
    status="ok",
    bundle="demo@1",
    trained_on="phantoms",
    seconds=1.23,
)
NO_TUMOUR = ScanRow("P2_flair", "P2", "P2/flair.nii.gz", status="no tumour", tumour_ml=0.0, warnings=("is it a head?",))
FAILED = ScanRow("P3_flair", "P3", "P3/flair.nii.gz", error="no head in it")


def shown(row: ScanRow, dice: float | None = None) -> Shown:
    rng = np.random.default_rng(0)
    truth = np.zeros((40, 48), np.uint8)
    truth[10:20, 10:20] = 1
    found = np.roll(truth, 5, axis=0)
    return Shown(row, Slice(rng.uniform(0, 1, truth.shape) + truth, truth, found), "slice 2 (0 to 5)", dice)


def demo_parts(channels: int = 16) -> DemoParts:
    rng = np.random.default_rng(0)
    real = {grade: rng.gamma(1, 1, (channels, 15, 15)).astype(np.float16) for grade in ("HGG", "LGG")}
    synthetic = {grade: rng.gamma(1, 1, (8, channels, 15, 15)).astype(np.float16) for grade in ("HGG", "LGG")}
    return DemoParts(real, synthetic, METRICS)


def check(page: str, parts: Sequence[str]) -> None:
    check_stands_alone(page)
    text = PageReader(page).text
    for part in parts:
        assert part in text


def test_each_scan_has_its_answer_and_a_picture() -> None:
    page = answers_page([shown(OK), shown(NO_TUMOUR), Shown(FAILED, None, "no picture: the scan cannot be read")])
    check(
        page,
        [
            "2 of 3 scans answered: 1 graded, 1 without tumour, 1 failed; 1 with warnings; by demo@1",
            "This bundle was trained on phantoms (drawings of scans): its answers say nothing about a patient.",
            "P1_flair HGG 0.750 12.3 1.2 P1 P1/flair.nii.gz",
            "P2_flair no tumour ⚠ – 0.0 – P2",
            "P3_flair failed: no head in it P3",
            "P1_flair HGG , P(HGG) 0.750, 12.3 ml slice 2 (0 to 5); P1/flair.nii.gz",
            "P2_flair no tumour , so no grade; 0.0 ml slice 2 (0 to 5); P2/flair.nii.gz ⚠ is it a head?",
            "P3_flair failed : no head in it no picture: the scan cannot be read; P3/flair.nii.gz",
            "the patient’s left (L) is at the right of the picture",
        ],
    )
    text = PageReader(page).text
    assert "true" not in text.replace("is not the true", "")
    assert len(PageReader(page).all("img")) == 2


def test_true_grades_are_shown_where_they_are_known() -> None:
    rows = [
        replace(OK, true_grade="HGG"),
        replace(OK, scan="x", true_grade="LGG"),
        replace(NO_TUMOUR, true_grade="LGG"),
    ]
    check(
        answers_page([shown(row) for row in rows]),
        [
            "True grades: 1 of 2 graded scans are right; HGG 1 of 1; LGG 0 of 1",
            "Not counted: 1 without tumour.",
            "x LGG HGG ✗",
            "true grade LGG: wrong ✗",
            "true grade HGG: right",
        ],
    )


def test_the_demo_adds_dice_and_feature_maps() -> None:
    rows = [replace(OK, true_grade="HGG"), replace(OK, true_grade="LGG"), replace(NO_TUMOUR, true_grade="LGG")]
    page = answers_page([shown(row, 0.5) for row in rows], demo_parts())
    check(
        page,
        [
            "3 of 3 scans answered: 2 graded, 1 without tumour",
            "True grades: 1 of 2 graded scans are right",
            "Mean Dice of the scans: 0.50.",
            "gliaflow demo",
            "mean Dice 0.67 (30 patients); AUC of the grade 0.81 (28 patients; 0.5 is chance).",
            "P1_flair HGG HGG 0.750 12.3 0.50 1.2",
            "true grade HGG: right Dice of this slice 0.50, of the scan 0.50",
            "true mask (blue, solid)",
            "the 8 strongest of 16 channels",
        ],
    )
    assert len(PageReader(page).all("img")) == 3 + 4


def test_a_demo_in_which_all_failed_by_a_bundle_without_scores_has_a_page() -> None:
    parts = replace(demo_parts(channels=4), metrics={})  # as of an int8 bundle
    page = answers_page([Shown(replace(FAILED, true_grade="HGG"), None, "")], parts)
    check(page, ["0 of 1 scans answered: 1 failed", "failed: no head in it", "strongest of 4 channels"])


def test_a_page_of_many_scans_has_pictures_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_report, "MAX_PICTURES", 2)
    page = answers_page([shown(replace(OK, scan=f"s{number}")) for number in range(3)])
    check(page, ["This page has pictures of the first 2 of 3 scans.", "s2 HGG 0.750"])
    assert len(PageReader(page).all("img")) == 2


def test_names_are_untrusted_text() -> None:
    row = replace(OK, scan=UNTRUSTED, patient=UNTRUSTED, source=UNTRUSTED, bundle=UNTRUSTED, warnings=(UNTRUSTED,))
    read = PageReader(answers_page([shown(row)]))
    assert not any("onerror" in attributes for _, attributes in read.tags)
    assert UNTRUSTED_SHOWN in read.raw
    assert len(read.all("img")) == 1


def write_scan(folder: Path, affine: np.ndarray | None = None) -> Input:
    """A scan and its mask ``mask.nii.gz`` with tumour in the stored slice 1 of 6; a bright voxel marks x = 3, y = 5."""
    affine = np.diag([-2.0, 3, 5, 1]) if affine is None else affine
    voxels, mask = np.zeros((10, 12, 6), np.int16), np.zeros((10, 12, 6), np.uint8)
    voxels[3, 5], mask[3, 5, 1] = 100, 1
    nib.save(nib.Nifti1Image(voxels, affine), folder / "scan.nii.gz")
    nib.save(nib.Nifti1Image(mask, affine), folder / "mask.nii.gz")
    return Input(folder / "scan.nii.gz", "scan", "P")


def test_the_slice_is_the_one_with_most_tumour_in_canonical_axes(tmp_path: Path) -> None:
    item = write_scan(tmp_path)
    made = Shown.of(replace(OK, mask="mask.nii.gz"), item, tmp_path)
    assert made.slice is not None
    assert (made.where, made.slice.spacing, made.slice.image.shape) == ("slice 1 (0 to 5)", (2.0, 3.0), (10, 12))
    assert [np.argwhere(plane > 0).tolist() for plane in (made.slice.image, made.slice.found)] == [[[6, 5]], [[6, 5]]]


def test_a_scan_that_is_gone_or_another_is_drawn_without_its_image(tmp_path: Path) -> None:
    item = write_scan(tmp_path)
    row = replace(OK, mask="mask.nii.gz")
    other = write_scan(tmp_path)
    nib.save(nib.Nifti1Image(np.ones((5, 5, 5), np.int16), np.eye(4)), tmp_path / "scan.nii.gz")
    for gone in (other, None, replace(item, path=tmp_path / "none.nii.gz")):
        made = Shown.of(row, gone, tmp_path)
        assert made.slice is not None
        assert made.where == "slice 1 (0 to 5); the scan cannot be read"
        assert not made.slice.image.any()
        assert made.slice.found.any()


def test_a_failed_scan_is_shown_if_it_can_be_read(tmp_path: Path) -> None:
    made = Shown.of(FAILED, write_scan(tmp_path), tmp_path)
    assert made.where == "slice 3 (0 to 5)"
    (tmp_path / "scan.nii.gz").write_text("broken")
    assert Shown.of(FAILED, Input(tmp_path / "scan.nii.gz", "scan", "P"), tmp_path).slice is None


def test_dice_is_of_the_whole_mask(tmp_path: Path) -> None:
    item = write_scan(tmp_path)
    made = Shown.of(replace(OK, mask="mask.nii.gz"), item, tmp_path, truth=tmp_path / "mask.nii.gz")
    assert made.dice == 1
    assert Shown.of(FAILED, item, tmp_path, truth=tmp_path / "mask.nii.gz").dice == 0


def test_a_scan_in_a_store_is_shown_too(tmp_path: Path) -> None:
    item = write_scan(tmp_path)
    made = Shown.of(OK, replace(item, path=Path("none"), uri=item.path.as_uri()), tmp_path)
    assert made.where == "slice 3 (0 to 5)"


def test_without_matplotlib_the_page_has_all_but_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gliaflow_pages.drawing.find_spec", lambda name: None)
    page = answers_page([shown(replace(OK, true_grade="HGG"), 0.71)], demo_parts())
    assert "<img" not in page
    check(page, ["P1_flair HGG HGG 0.750 12.3 0.71", "no picture, for lack of matplotlib: pip install matplotlib"])

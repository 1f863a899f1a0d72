"""What ``gliaflow train`` says at its end, and its page: figures and counts, no names and no slices."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")

from gliaflow_runtime.bundle.load import Bundle, demo_bundle
from gliaflow_trainer.report import summary, write_report


def bundle_with(**changes: object) -> Bundle:
    """The shipped bundle with other metrics or training."""
    bundle = Bundle(demo_bundle())
    bundle.manifest = bundle.manifest.model_copy(update=changes)
    return bundle


COHORT = {"patients": {part: {"HGG": n, "LGG": m} for part, n, m in (("train", 3, 2), ("test", 1, 1))}}


def test_the_summary_says_what_was_learned_from_whom_and_how_well() -> None:
    metrics = {
        "unet": {},
        "segmentation": {"dice_mean": 0.8123, "dice_median": 0.834, "patients": 2},
        "grading": {"auc": None, "balanced_accuracy": 0.75, "patients": 1},
        "synthetic": {"levels": {"critic_accuracy": 0.914, "classifier_accuracy": 0.97, "samples": 200}},
    }
    bundle = bundle_with(metrics=metrics, training={"cohort": COHORT | {"ungraded": 4}}, trained_on="patients")
    assert list(summary(bundle)) == [
        (
            "patients",
            "5 to learn from (3 HGG, 2 LGG); 2 to measure on (1 HGG, 1 LGG); 4 without a grade, for the U-Net alone",
        ),
        ("U-Net", "Dice 0.81 (median 0.83), on 2 patients that nothing was fitted on"),
        (
            "grade",
            "AUC not measured, balanced accuracy 0.75, on 1 patient that nothing was fitted on; 0.5 is chance",
        ),
        (
            "generator levels",
            "its critic accepts 91 % of its synthetic features; the classifier puts 97 % of those into their class",
        ),
        ("", "so few patients say little: `gliaflow evaluate` tests every patient and gives intervals"),
    ]


def test_a_unet_alone_has_a_summary_and_a_page(tmp_path: Path) -> None:
    bundle = bundle_with(
        metrics={"unet": {"test": {"soft_dice_loss": 0.2, "hard_dice": 0.8, "iou": 0.7}}},
        training={"cohort": {"patients": {"train": {"HGG": 0, "LGG": 0}}, "ungraded": 12}},
        trained_on="phantoms",
        generators={},
    )
    assert dict(summary(bundle)) == {
        "patients": "12 without a grade, for the U-Net alone",
        "": "they are phantoms, that is, drawings: no figure here says anything about people",
        "U-Net": "Dice 0.80 over all pixels of the test patients",
    }
    write_report(bundle, tmp_path / "report.html")
    assert "No learning curves of the U-Net were kept." in (tmp_path / "report.html").read_text()


def test_the_page_has_the_curves_and_the_patients_by_class(tmp_path: Path) -> None:
    bundle = Bundle(demo_bundle())
    write_report(bundle, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == 2 + 2 * len(bundle.manifest.generators)
    assert re.search(r"to learn from</th><td>140</td><td>140</td>", page)
    assert f"Generator {bundle.manifest.generator}" in page
    assert "<script" not in page

"""The plots of the report: one SVG each, whose letters can be read."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

pytest.importorskip("matplotlib")

from gliaflow_evaluation.report import charts
from gliaflow_evaluation.report.schema import Metrics
from gliaflow_pages import curves
from gliaflow_pages.drawing import Picture
from sample_metrics import made_up

PLOTS: dict[str, Callable[[Metrics], Picture]] = {
    "counts": lambda metrics: charts.against_counts(metrics, "auc"),
    "patients": lambda metrics: charts.against_patients(metrics, "LGG", "balanced_accuracy"),
    "roc": charts.roc,
    "calibration": lambda metrics: charts.reliability(metrics.calibration, "HGG"),
    "generator": lambda metrics: curves.generator_curves(metrics.gan["acgan"].history)[1],
    "unet": lambda metrics: curves.unet_curves(metrics.learning.unet)[1] if metrics.learning else Picture(b""),
    "dice": lambda metrics: charts.dice_histogram(metrics.table2.test_patients) if metrics.table2 else Picture(b""),
}


@pytest.mark.parametrize("name", PLOTS)
def test_letters_are_at_least_11_pixels_high_at_the_width_of_the_page(name: str) -> None:
    svg = PLOTS[name](Metrics.model_validate(made_up())).data.decode()
    assert svg.startswith("<?xml")
    width = float(re.findall(r'<svg [^>]*width="([\d.]+)pt"', svg)[0])
    assert width * 4 / 3 <= 27 * 16, "a panel of the page is 27 rem wide, so the plot is not made smaller"
    assert charts_font_size() * 4 / 3 >= 11
    assert "<script" not in svg


def charts_font_size() -> float:
    from gliaflow_pages.drawing import STYLE

    return min(float(size) for key, size in STYLE.items() if key.endswith("size") and isinstance(size, int | float))


@pytest.mark.parametrize("name", PLOTS)
def test_the_same_figures_give_the_same_plot(name: str) -> None:
    metrics = Metrics.model_validate(made_up())
    assert PLOTS[name](metrics) == PLOTS[name](metrics)


def test_a_generator_that_reports_no_losses_has_no_plot_of_them() -> None:
    assert curves.generator_curves([[{"seconds": 1.0}, {"seconds": 2.0}]]) == []
    assert len(curves.generator_curves([[{"accuracy_real": 0.5}, {"accuracy_real": None}]])) == 1


def test_folds_that_stopped_early_and_missing_figures_are_drawn() -> None:
    folds = [[{"val_iou": 0.2, "loss": 1.0}], [{"val_iou": None, "loss": 0.9}, {"val_iou": 0.4}], []]
    assert len(curves.unet_curves(folds)) == 2

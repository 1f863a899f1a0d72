"""What a training gave: lines for the terminal, and ``report.html`` with the learning curves.

Both have figures and counts alone, no names and no slices: a bundle may be given away.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gliaflow_pages.curves import generator_curves, learning_curves, unet_curves
from gliaflow_pages.drawing import Picture
from gliaflow_pages.pages import render_page
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.files import write_whole

REPORT_FILE = "report.html"
FEW = 20  # test patients, below which a score is uncertain
PARTS = {"train": "to learn from", "validation": "to choose epochs by", "test": "to measure on"}


def summary(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """What was learned, from whom and how well, as pairs of a title and a text."""
    manifest, metrics = bundle.manifest, bundle.manifest.metrics
    yield "patients", "; ".join(_patients(manifest.training.get("cohort", {})))
    if bundle.trained_on == "phantoms":
        yield "", "they are phantoms, that is, drawings: no figure here says anything about people"
    if (sequences := manifest.input.channels)[1:]:
        may = f"; a scan may lack {', '.join(manifest.input.optional)}" if manifest.input.optional else ""
        having = manifest.training.get("cohort", {}).get("sequences", {})
        shown = [f"{name} (of {having[name]} patients)" if name in having else name for name in sequences]
        yield "sequences", f"{', '.join(shown)}{may}"
    segmentation, grading = metrics.get("segmentation"), metrics.get("grading")
    if segmentation:
        median = f"median {_figure(segmentation['dice_median'])}"
        yield "U-Net", f"{_score('Dice', segmentation, 'dice_mean', 'dice_ci95', median)}, {_on(segmentation)}"
    elif "test" in metrics.get("unet", {}):
        yield "U-Net", f"Dice {_figure(metrics['unet']['test']['hard_dice'])} over all pixels of the test patients"
    if grading:
        auc = _score("AUC", grading, "auc", "auc_ci95")
        accuracy = _score("balanced accuracy", grading, "balanced_accuracy", "balanced_accuracy_ci95")
        yield "grade", f"{auc}, {accuracy}, {_on(grading)}; 0.5 is chance"
    if scores_of := (segmentation or {}).get("scores_of"):
        yield "", f"these are scores of {scores_of}"
    for name, shares in metrics.get("synthetic", {}).items():
        right = shares["classifier_accuracy"]
        puts = "learned from some" if right is None else f"puts {_percent(right)} of those into their class"
        yield (
            f"generator {name}",
            f"its critic accepts {_percent(shares['critic_accuracy'])} of its synthetic features; the classifier "
            f"{puts}",
        )
    tested = min((part["patients"] for part in (segmentation, grading) if part and "folds" not in part), default=FEW)
    if tested < FEW:
        yield "", "so few patients say little: `gliaflow evaluate` tests every patient and gives intervals"


def write_report(bundle: Bundle, out: Path) -> None:
    """Write the page to the file ``out``."""
    manifest = bundle.manifest
    history = manifest.training.get("history", {})
    text = render_page(
        "gliaflow_trainer",
        "train.html",
        bundle=bundle,
        manifest=manifest,
        summary=list(summary(bundle)),
        parts=PARTS,
        patients=manifest.training.get("cohort", {}).get("patients", {}),
        scores=manifest.metrics.get("unet", {}),
        figure=_figure,
        unet_plots=unet_curves([history["unet"]]) if history.get("unet") else [],
        generator_plots={
            name: plots
            for name, epochs in history.get("generator", {}).items()
            if (plots := generator_curves([epochs]))
        },
        classifier_plots=_classifier_curves(history.get("classifier", [])),
        settings=json.dumps(
            {
                "profile": manifest.training.get("profile", {}),
                "seed": manifest.training.get("seed"),
                "generators": {name: of.options for name, of in manifest.generators.items()},
                "classifier": manifest.training.get("classifier", {}),
            },
            indent=1,
            ensure_ascii=False,
            default=str,
        ),
    )
    write_whole(out, text)


def _patients(cohort: dict[str, Any]) -> Iterator[str]:
    """How many patients each part has, by grade."""
    for part, grades in cohort.get("patients", {}).items():
        if sum(grades.values()):
            of_each = ", ".join(f"{count} {grade}" for grade, count in grades.items())
            yield f"{sum(grades.values())} {PARTS[part]} ({of_each})"
    if cohort.get("source"):
        yield f"{cohort['source']} of another cohort, whose features the generator has"
    if cohort.get("ungraded"):
        yield f"{cohort['ungraded']} without a grade, for the U-Net alone"


def _classifier_curves(epochs: list[dict[str, Any]]) -> list[Picture]:
    keys = sorted({key for epoch in epochs for key in epoch})
    losses, shares = [key for key in keys if "loss" in key], [key for key in keys if "loss" not in key]
    plots = [learning_curves([epochs], losses, "Loss")] if losses else []
    return plots + ([learning_curves([epochs], shares, "Scores", share=True)] if shares else [])


def _on(part: dict[str, Any]) -> str:
    patients, by = part["patients"], "networks that did not learn from it"
    if "folds" in part:
        return f"on all {patients} patients, each measured by {by}"
    return f"on {patients} patient{'s' if patients != 1 else ''} that nothing was fitted on"


def _score(title: str, part: dict[str, Any], value: str, interval: str, *more: str) -> str:
    """``Dice 0.84 (0.81–0.87, median 0.88)``; an interval is known of out-of-fold scores alone."""
    ends = part.get(interval)
    brackets = [f"{_figure(ends[0])}–{_figure(ends[1])}"] if ends else []
    inside = ", ".join([*brackets, *more])
    return f"{title} {_figure(part[value])}" + (f" ({inside})" if inside else "")


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}".replace("%", " %")

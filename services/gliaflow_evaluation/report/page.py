"""The page of ``gliaflow evaluate``: the verdict, then its evidence. The templates lay it out and have its words.

``python -m gliaflow_evaluation.report FOLDER`` draws it again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow_pages import curves
from gliaflow_pages.pages import render_page
from gliaflow_pages.slices import Slice, feature_maps, slice_pictures
from gliaflow_runtime.files import write_whole
from numpy.typing import NDArray

from gliaflow_evaluation.comparators import COMPARATORS, KINDS
from gliaflow_evaluation.generator_quality import DISTANCES
from gliaflow_evaluation.judges import JUDGEMENTS
from gliaflow_evaluation.measures import AGAINST_CHANCE, DIFFERENCES, MEASURES, OVER_SLICES, OVER_UNITS
from gliaflow_evaluation.report import charts, numbers
from gliaflow_evaluation.report.schema import Against, Metrics, read_metrics
from gliaflow_evaluation.report.verdict import arm_name, rare_class, verdict

METRICS_FILE, FIGURES_FILE, REPORT_FILE = "metrics.json", "figures.npz", "report.html"
OVERLAYS = 12
COPIES = 0.5  # of the held-out patients' distance: synthetic features nearer than that are copies
OFF_SCALE = 20  # times the floor: a distance beyond says only that features are far outside the range of real ones
LEAST_FLOOR = 0.1  # for OFF_SCALE: a floor may be near 0, or below
PAPER_TABLE2 = {"train": (0.13, 0.84, 0.74), "validation": (0.13, 0.88, 0.79)}
PAPER_TABLE3 = {"baseline": (0.95, 0.05, 0.61), "augmented": (0.569, 0.384, 0.524)}

Figures = Mapping[str, NDArray[Any]]


def write_report(metrics: Metrics, figures: Figures, out: Path) -> None:
    """Write the page to the file ``out``.

    Parameters
    ----------
    figures: any may be missing. ``image`` [k, H, W] float, ``truth`` and ``found`` [k, H, W] uint8 and ``names`` [k]
        str: slices on the network's grid, of which the first twelve are shown. ``G/real_X`` and
        ``G/synthetic_X`` [samples, C, h, w] float for each generator G and class X: the same few channels of a few
        samples. Axes are as in ``gliaflow_preprocessor.slices``.
    """
    made = metrics.made
    arms = metrics.comparators.values()
    scores = [row.scores[measure] for row in arms for measure in AGAINST_CHANCE]
    differences = [row.difference[measure] for row in arms if row.difference for measure in DIFFERENCES]
    ends = [end for score in scores if score.ci95 is not None for end in score.ci95]
    text = render_page(
        "gliaflow_evaluation.report",
        "report.html",
        metrics=metrics,
        made=made,
        verdict=verdict(metrics),
        arm_name=arm_name,
        numbers=numbers,
        digits=numbers.decimals_of_page(scores),
        change_digits=numbers.decimals_of_page(differences),
        measures={"units": OVER_UNITS, "slices": OVER_SLICES, "chance": AGAINST_CHANCE, "differences": DIFFERENCES},
        titles={name: measure.title.format(*made.classes) for name, measure in MEASURES.items()},
        chance={name: measure.chance for name, measure in MEASURES.items()},
        unit="patients" if made.task == "grade" else "slices",
        judgements=[judgement.title for judgement in JUDGEMENTS.values()],
        distances=DISTANCES.values(),
        settings=json.dumps(
            {"profile": made.profile} | {f"generator {name}": of.options for name, of in metrics.gan.items()},
            indent=1,
            ensure_ascii=False,
            default=str,
        ),
        paper2=PAPER_TABLE2,
        paper3=PAPER_TABLE3,
        groups=_groups(metrics),
        span=(math.floor(min([0.4, *ends]) * 10) / 10, min(1.0, math.ceil(max([0.7, *ends]) * 10) / 10)),
        patients=_patients(metrics),
        distance_digits=_distance_digits(metrics),
        off_scale=off_scale,
        off_scale_times=OFF_SCALE,
        copied=copied,
        maps=_maps(metrics, figures),
        slices=_slices(metrics, figures),
        **_plots(metrics),
    )
    write_whole(out, text)


def render(folder: Path) -> Path:
    """Draw ``report.html`` from the ``metrics.json`` and, if present, the ``figures.npz`` in ``folder``.

    Raises
    ------
    MetricsError, OSError: as ``read_metrics``.
    """
    metrics, figures = read_metrics(folder / METRICS_FILE), {}
    if (folder / FIGURES_FILE).exists():
        with np.load(folder / FIGURES_FILE, allow_pickle=False) as stored:
            figures = dict(stored)
    write_report(metrics, figures, folder / REPORT_FILE)
    return folder / REPORT_FILE


def _groups(metrics: Metrics) -> dict[str, list[str]]:
    """The arms by kind, the best first; those with synthetic features by generator and count."""

    def worth(name: str) -> float:
        return metrics.comparators[name].scores[AGAINST_CHANCE[0]].mean or 0

    def generator_and_count(arm: str) -> tuple[str, int]:
        generator, _, count = arm.partition("@")
        return generator, int(count) if count.isdecimal() else -1

    groups: dict[str, list[str]] = {title: [] for title in KINDS.values()}
    for name in sorted(metrics.comparators, key=worth, reverse=True):
        if not metrics.synthetic(name):
            groups[KINDS[COMPARATORS[name].kind if name in COMPARATORS else "remedy"]].append(name)
    groups["Synthetic features"] = sorted(filter(metrics.synthetic, metrics.comparators), key=generator_and_count)
    return {title: names for title, names in groups.items() if names}


def _patients(metrics: Metrics) -> list[dict[str, Any]]:
    """Each test patient's class, Dice and answers."""
    dice = {(e.patient, e.fold): e.dice for e in metrics.table2.test_patients.per_patient} if metrics.table2 else {}
    graded = {(each.patient, each.fold): each for each in metrics.patients}
    rows = [
        {
            "name": patient,
            "label": graded[patient, fold].label if (patient, fold) in graded else "",
            "dice": dice.get((patient, fold)),
            "answers": graded[patient, fold].answers if (patient, fold) in graded else {},
        }
        for patient, fold in sorted(dice.keys() | graded.keys())
    ]
    return sorted(rows, key=lambda row: row["label"])


def _distance_digits(metrics: Metrics) -> dict[str, int]:
    """The number of decimals of each column of distances."""
    measured = [against for quality in metrics.gan.values() for against in quality.distances.values()]
    return {
        name: numbers.decimals_of_values(
            value
            for column in measured
            for value in (column[name].floor, None if off_scale(name, column[name]) else column[name].synthetic)
            if value is not None
        )
        for name in DISTANCES
    }


def off_scale(name: str, against: Against) -> bool:
    """Whether a distance only says that synthetic features are far outside the range of real ones."""
    if against.synthetic is None or against.floor is None or DISTANCES[name].higher_is_better is not False:
        return False
    return against.synthetic > OFF_SCALE * max(against.floor, LEAST_FLOOR)


def copied(nearest: Against) -> bool:
    """Whether synthetic features are so near to fitted ones that the generator may be copying patients."""
    if nearest.synthetic is None or nearest.floor is None:
        return False
    return nearest.synthetic < COPIES * nearest.floor


def _maps(metrics: Metrics, figures: Figures) -> list[dict[str, Any]]:
    """Feature maps of each generator and class."""
    return [
        {
            "generator": generator,
            "label": label,
            "maps": feature_maps(real, figures.get(f"{generator}/synthetic_{label}")),
        }
        for generator, label in product(metrics.gan, metrics.made.classes)
        if (real := figures.get(f"{generator}/real_{label}")) is not None and real.size
    ]


def _slices(metrics: Metrics, figures: Figures) -> list[dict[str, Any]]:
    """Example slices with their masks, the Dice of the slice and of the patient."""
    if any(key not in figures for key in ("image", "truth", "found")):
        return []
    spacing = metrics.made.profile["input"]["spacing"]
    arrays = (figures[key][:OVERLAYS] for key in ("image", "truth", "found"))
    slices = [Slice(image, true, found, (spacing[0], spacing[1])) for image, true, found in zip(*arrays, strict=True)]
    names = [str(name) for name in figures.get("names", [""] * len(slices))[:OVERLAYS]]
    dice = {row["name"]: row["dice"] for row in _patients(metrics)}
    return [
        {"picture": picture, "name": name, "dice": each.dice(), "patient_dice": dice.get(name)}
        for name, each, picture in zip(names, slices, slice_pictures(slices), strict=True)
    ]


def _plots(metrics: Metrics) -> dict[str, Any]:
    """The plots by name. What was not measured has none."""
    dice, learning = metrics.table2 and metrics.table2.test_patients, metrics.learning
    shown = dict.fromkeys(("real", metrics.best_comparator, metrics.augmented_arm))
    bins = {name: metrics.calibration[name] for name in shown if name and metrics.calibration.get(name)}
    counted = "real" in metrics.comparators and any(metrics.counts.values())
    rare = rare_class(metrics)
    return {
        "rare": rare,
        "count_plots": [charts.against_counts(metrics, measure) for measure in AGAINST_CHANCE if counted],
        "scarce_plots": [
            charts.against_patients(metrics, rare, measure) for measure in AGAINST_CHANCE if metrics.scarce
        ],
        "roc_plot": charts.roc(metrics) if any(metrics.roc.values()) else None,
        "calibration_plot": charts.reliability(bins, metrics.made.classes[0]) if bins else None,
        "dice_plot": charts.dice_histogram(dice) if dice and dice.per_patient else None,
        "unet_plots": curves.unet_curves(learning.unet) if learning and any(learning.unet) else [],
        "generator_plots": {
            name: curves.generator_curves(of.history) for name, of in metrics.gan.items() if any(of.history)
        },
    }

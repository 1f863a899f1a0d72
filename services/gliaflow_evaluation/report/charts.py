"""The plots of the evaluation's report, one SVG each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gliaflow_pages.curves import SERIES, finished
from gliaflow_pages.drawing import BLACK, BLUE, GREY, Picture, drawing, panel

from gliaflow_evaluation.measures import MEASURES
from gliaflow_evaluation.report.schema import CalibrationBin, Metrics, PatientsDice
from gliaflow_evaluation.report.verdict import arm_name
from gliaflow_evaluation.score import Score

DASHES = ("-", "--", "-.")
Series = Mapping[str, Sequence[tuple[int, Score]]]


def against_counts(metrics: Metrics, measure: str) -> Picture:
    """A measure against the number of synthetic samples, a line for each generator, and the best comparator's level."""
    real, best = metrics.comparators["real"].scores[measure], metrics.comparators.get(metrics.best_comparator or "")
    series = {
        name: [(each.count, each.scores[measure]) for each in line] for name, line in sorted(metrics.counts.items())
    }
    for line in series.values():
        if all(count for count, _ in line):
            line.insert(0, (0, real))
    counts = sorted({count for line in series.values() for count, _ in line})
    least = min((count for count in counts if count), default=1)
    with drawing():
        figure, axes = panel()
        _lines(axes, series, measure)
        if best is not None and (score := best.scores[measure]).mean is not None:
            axes.axhline(score.mean, color=BLACK, linestyle="--", linewidth=1.2, label="best comparator")
            if score.ci95 is not None:
                axes.axhspan(*score.ci95, color=BLACK, alpha=0.06, linewidth=0)
        axes.set_xscale("symlog", linthresh=least, linscale=0.7)  # counts grow by factors, and one is 0
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_xticks([], minor=True)
        axes.set_xlim(-0.15 * least, max(counts) * 1.25 or 1)
        axes.set_xlabel("synthetic samples added")
        return finished(figure, axes)


def against_patients(metrics: Metrics, rare: str, measure: str) -> Picture:
    """A measure against the number of patients of the rare class to fit on, a line for each kind of arm."""
    series: dict[str, list[tuple[int, Score]]] = {}
    for point in metrics.scarce or []:
        arms = {"synthetic features": point.augmented_arm, "best comparator": point.best_comparator}
        for name, arm in (arms | {"real features alone": "real"}).items():
            if arm in point.arms:
                series.setdefault(name, []).append((point.rare_patients, point.arms[arm].scores[measure]))
    with drawing():
        figure, axes = panel()
        _lines(axes, {name: sorted(line) for name, line in series.items()}, measure)
        axes.set_xticks(sorted({x for line in series.values() for x, _ in line}))
        axes.set_xlabel(f"{rare} patients to fit on")
        return finished(figure, axes)


def roc(metrics: Metrics) -> Picture:
    """ROC curves, a line for each arm."""
    first, second = metrics.made.classes
    with drawing():
        figure, axes = panel(height=5)
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2, label="chance")
        for (name, points), (colour, _), dashes in zip(metrics.roc.items(), SERIES, DASHES, strict=False):
            x, y = [p.false_positive_rate for p in points], [p.true_positive_rate for p in points]
            axes.plot(x, y, color=colour, linestyle=dashes, label=arm_name(name))
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set_xlabel(f"share of {second} graded {first} (1 − specificity)")
        axes.set_ylabel(f"share of {first} graded {first} (sensitivity)")
        return finished(figure, axes, columns=1)


def reliability(bins: Mapping[str, Sequence[CalibrationBin]], positive: str) -> Picture:
    """The observed share of the first class against its predicted probability, by arm; a mark's area: patients."""
    with drawing():
        figure, axes = panel(height=5)
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2, label="calibrated")
        most = max(each.n for line in bins.values() for each in line)
        for (name, line), (colour, marker) in zip(bins.items(), SERIES, strict=False):
            x, y = [each.predicted for each in line], [each.observed for each in line]
            area = [18 + 130 * each.n / most for each in line]
            axes.plot(x, y, color=colour, linewidth=1.2, marker=marker, markersize=4, label=arm_name(name))
            axes.scatter(x, y, s=area, color=colour, marker=marker, alpha=0.35, linewidths=0)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        axes.set_xlabel(f"predicted probability of {positive}")
        axes.set_ylabel(f"share of {positive}")
        return finished(figure, axes, columns=1)


def dice_histogram(patients: PatientsDice) -> Picture:
    """The number of test patients by Dice."""
    values = np.array([each.dice for each in patients.per_patient])
    with drawing():
        figure, axes = panel()
        axes.hist(values, bins=np.linspace(0, 1, 21), color=BLUE, alpha=0.75, edgecolor="white")
        axes.plot(values, np.zeros(len(values)), "|", color=BLACK, markersize=9, alpha=0.6, clip_on=False)
        for value, name, dashes in ((patients.dice.mean, "mean", "-"), (patients.dice_median, "median", "--")):
            if value is not None:
                axes.axvline(value, color=BLACK, linestyle=dashes, linewidth=1.3, label=f"{name} {value:.2f}")
        axes.set_xlim(0, 1)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("Dice of a test patient, over all slices")
        axes.set_ylabel("patients")
        return finished(figure, axes)


def _lines(axes: Any, series: Series, measure: str) -> None:
    from matplotlib.transforms import ScaledTranslation

    for place, (name, line) in enumerate(series.items()):
        colour, marker = SERIES[place % len(SERIES)]
        aside = (place - (len(series) - 1) / 2) * 5 / 72  # inches, so that intervals do not hide each other
        shifted = axes.transData + ScaledTranslation(aside, 0, axes.figure.dpi_scale_trans)
        known = [(x, score) for x, score in line if score.mean is not None]
        if not known:
            continue
        x, y = [x for x, _ in known], [score.mean for _, score in known]
        drawn = axes.plot(x, y, color=colour, marker=marker, markersize=5, label=name)
        for at, score in known:
            if score.ci95 is not None:
                drawn += axes.plot([at] * 2, score.ci95, color=colour, linewidth=1, alpha=0.7)
        for each in drawn:
            each.set_transform(shifted)  # only now: the limits of the axes follow the data, not the shift
    if (chance := MEASURES[measure].chance) is not None:
        axes.axhline(chance, color=GREY, linestyle=":", linewidth=1.2, label="chance")
    title = MEASURES[measure].title
    axes.set_title(title[0].upper() + title[1:])

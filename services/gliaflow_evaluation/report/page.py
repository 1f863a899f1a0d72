"""The page of ``gliaflow evaluate``: the verdict, then what it rests on. One file, no scripts, no links out.

``python -m gliaflow_evaluation.report.page FOLDER`` draws it again.
"""

from __future__ import annotations

import base64
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gliaflow_evaluation.report import charts as charts
from gliaflow_evaluation.report.schema import (
    Against,
    Comparator,
    Control,
    Difference,
    GanQuality,
    Measured,
    Metrics,
    Row,
    Score,
    Table3,
    read_metrics,
)
from gliaflow_evaluation.report.verdict import SHORTCUTS, Verdict, arm_name, interval, number, told, two_digits, verdict

METRICS_FILE, FIGURES_FILE, REPORT_FILE = "metrics.json", "figures.npz", "report.html"
OVERLAYS = 12
MAP_SAMPLES, MAP_CHANNELS = 4, 8
COPIES = 0.5  # of the held-out patients' distance: synthetic features nearer than that are copies
PAPER_TABLE2 = {"train": (0.13, 0.84, 0.74), "validation": (0.13, 0.88, 0.79)}
PAPER_TABLE3 = {"baseline": (0.95, 0.05, 0.61), "augmented": (0.569, 0.384, 0.524)}

STYLE = """
:root { color-scheme: light } html { background: #fff }
body { font: 16px/1.55 system-ui, sans-serif; color: #1b1f24; max-width: 68rem; margin: 2rem auto; padding: 0 1rem }
h1, h2, h3 { line-height: 1.2 } h2 { margin: 3rem 0 .6rem; border-top: 1px solid #d0d7de; padding-top: 1.4rem }
h3 { margin: 1.8rem 0 .4rem } p, figcaption, li { max-width: 46rem } a { color: #0a558c }
nav { font-size: .9rem } nav a { margin-right: .9rem; white-space: nowrap }
.verdict { border-left: .4rem solid #8c959f; background: #f6f8fa; padding: .9rem 1.2rem; margin: 1.2rem 0 }
.verdict.gain { border-color: #0072b2 } .verdict.loss { border-color: #d55e00 }
.verdict p, .warnings li { margin: .3rem 0; max-width: none }
.verdict > p:first-child { font-size: 1.3rem; line-height: 1.35; font-weight: 600 }
.warnings { padding-left: 1.2rem; margin: .8rem 0 .2rem } .warnings li::marker { content: "⚠ "; color: #b42318 }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .8rem 0 }
caption { text-align: left; color: #57606a; padding-bottom: .3rem; max-width: 46rem }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #d0d7de; vertical-align: middle }
thead th { font-weight: 600; vertical-align: bottom; border-bottom: 2px solid #8c959f }
tr > :first-child { text-align: left; padding-left: 0 } tbody th { font-weight: 400 }
tr.group > th { font-weight: 600; padding-top: 1rem } tr.paper > * { color: #57606a; font-style: italic }
tr.chosen > th { font-weight: 600 } .tag { font-size: .75rem; font-weight: 400; color: #57606a; display: block }
.ci { color: #57606a; font-size: .88em; white-space: nowrap } .note { color: #57606a }
td.plot { white-space: nowrap; text-align: left } .forest thead th:not(:last-child) { text-align: left }
.plot svg { margin-right: .6rem } th svg text { font-weight: 400 }
td.text { text-align: left } svg { vertical-align: middle }
figure { margin: 1.2rem 0 } figcaption { color: #57606a; font-size: .95rem } img { max-width: 100%; height: auto }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .8rem }
.grid figure { margin: 0 } .grid img { width: 100%; display: block } .grid figcaption { font-size: .82rem }
pre { background: #f6f8fa; padding: .8rem 1rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere }
summary { cursor: pointer; color: #0a558c } figcaption, td, th, p, li, h1 { overflow-wrap: break-word }
@media print {
  body { max-width: none; margin: 0; font-size: 10.5pt } nav { display: none }
  details::details-content { content-visibility: visible; display: block }
  figure, tr, .verdict { break-inside: avoid } h2, h3 { break-after: avoid } .scroll { overflow: visible }
}
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # nothing is fetched, nothing runs


def write_report(metrics: Metrics, figures: Mapping[str, NDArray[Any]], out: Path) -> None:
    """Write the page to the file ``out``.

    Parameters
    ----------
    figures: any may be missing. ``image`` [k, H, W] float, ``truth`` and ``found`` [k, H, W] uint8 and ``names`` [k]
        str: slices on the network's grid, of which the first twelve are shown. ``G/real_X`` and
        ``G/synthetic_X`` [samples, C, h, w] float for each generator G and class X: the same few channels of a few
        samples. Rows run to the right, as in ``gliaflow_preprocessor.slices``.
    """
    sections = (
        ("question", "The question", _question(metrics)),
        ("table3", f"{'Grading' if metrics.made.task == 'grade' else 'Tumour or none'} (Table 3)", _table3(metrics)),
        ("arms", "All arms", _arms(metrics)),
        ("counts", "How many synthetic samples", _counts(metrics)),
        ("scarce", "Fewer patients", _scarce(metrics)),
        ("gan", "The synthetic features", _gan(metrics)),
        ("maps", "Feature maps", _maps(metrics, figures)),
        ("table2", "Segmentation (Table 2)", _table2(metrics)),
        ("overlays", "Masks", _overlays(figures)),
        ("calibration", "Calibration", _calibration(metrics)),
        ("control", "Control: shuffled labels", _control(metrics)),
        ("made", "How this was made", _made(metrics)),
    )
    links = "".join(f"<a href='#{key}'>{title}</a> " for key, title, _ in sections)
    body = "".join(f"<section id={key}><h2>{title}</h2>{text}</section>" for key, title, text in sections)
    cohort = escape(metrics.made.cohort.folder)
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f'<meta http-equiv=Content-Security-Policy content="{POLICY}">'
        f"<title>gliaflow evaluate: {cohort}</title><style>{STYLE}</style>"
        f"<h1>Do synthetic features help? <span class=note>{cohort}</span></h1>"
        f"{_verdict(verdict(metrics))}<nav aria-label=Contents>{links}</nav>{body}</html>\n"
    )
    out.write_text(page.replace("95 %", "95\u00a0%"), encoding="utf-8")


def render(folder: Path) -> Path:
    """Draw ``report.html`` of the ``metrics.json`` and, if it is there, the ``figures.npz`` in ``folder``.

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


def _verdict(found: Verdict) -> str:
    more = "".join(f"<p>{escape(line)}</p>" for line in found.more)
    warnings = "".join(f"<li>{escape(line)}</li>" for line in found.warnings)
    listed = f"<ul class=warnings aria-label=Warnings>{warnings}</ul>" if warnings else ""
    return f"<div class='verdict {found.kind}'><p>{escape(found.sentence)}</p>{more}{listed}</div>"


def _question(metrics: Metrics) -> str:
    made, cohort, protocol = metrics.made, metrics.made.cohort, metrics.made.protocol
    what = (
        "grade patients it has not seen"
        if made.task == "grade"
        else "tell slices with tumour from slices without, in patients it has not seen,"
    )
    patients = ", ".join(f"{count} {escape(label)}" for label, count in cohort.patients.items())
    high = f" Grades {escape(', '.join(map(str, cohort.high)))} count as {escape(made.classes[0])}." * bool(cohort.high)
    folds = f"{protocol.folds} folds by patient, stratified by class" if protocol.folds > 1 else "one split by patient"
    times = f", dealt {protocol.repeats} times" if protocol.repeats > 1 else ""
    seeds = ", ".join(map(str, protocol.seeds))
    fitted = (
        "Nothing that is tested on a patient was fitted or chosen on a slice of that patient."
        if protocol.name == "grouped"
        else "Patients were split as in the paper: once, into patients to fit on and a few to test."
    )
    shape = "×".join(map(str, made.shape[1:] + made.shape[:1]))
    generators = ", ".join(map(escape, made.generators)) or "none"
    unit = (
        "A patient’s score is the mean logit of its slices; one in whom no tumour was found counts as a coin toss."
        if made.task == "grade"
        else "Each slice is graded, whatever its patient’s grade: this says nothing of grades."
    )
    rows = (
        ("patients", f"{patients}; {cohort.slices} slices.{high}"),
        ("cohort", f"<code>{escape(cohort.folder)}</code>, {escape(cohort.layout)}"),
        ("protocol", f"<code>{protocol.name}</code>: {folds}{times}; seeds {seeds}"),
        ("features", f"U-Net block <code>{escape(made.tap)}</code>, {shape}"),
        ("generators", f"{generators}; {', '.join(map(str, made.counts))} synthetic samples"),
    )
    body = "".join(f"<tr><th scope=row>{name}</th><td class=text>{text}</td></tr>" for name, text in rows)
    return (
        f"<p>Does a classifier that is also fitted on synthetic features {what} better than one that is not? "
        f"{fitted} "
        f"{unit} Intervals are 95 %, by bootstrap over patients; "
        "differences are paired by patient.</p>"
        f"<table><tbody>{body}</tbody></table>"
        "<p class=note>Not a medical device: nothing here may be used to diagnose or treat anybody.</p>"
    )


def _table3(metrics: Metrics) -> str:
    if metrics.table3 is None:
        return _missing("Grading was not measured in this run.")
    table = metrics.table3
    rows: list[tuple[str, Row]] = [(f"baseline: {arm_name(table.baseline.arm)}", table.baseline)]
    if table.augmented is not None:
        rows.append((f"augmented: {arm_name(table.augmented.arm)}", table.augmented))
    none = "" if table.augmented is not None else _missing("No generator was asked for: there is no augmented arm.")
    if metrics.made.task == "tumour":
        return _judged(metrics, rows, table) + none
    return _judged(metrics, rows, table) + none + _as_in_the_paper(metrics, rows)


def _judged(metrics: Metrics, rows: Sequence[tuple[str, Row]], table: Table3) -> str:
    lines = []
    for name, row in rows:
        recalls = [row.recall.get(label) for label in metrics.made.classes]
        scores = (row.balanced_accuracy, row.auc, *recalls, row.brier)
        lines.append(_line(name, [*map(_cell, scores), _n(row.balanced_accuracy)]))
    differences = {"augmented − baseline": table.difference, "augmented − baseline, line moved": table.beyond_line}
    for name, difference in differences.items():
        if difference is not None:
            cells = [_cell(difference.balanced_accuracy, True), _cell(difference.auc, True), "<td></td>" * 2]
            cells += [_cell(difference.brier, True), _n(difference.balanced_accuracy)]
            lines.append(_line(name, cells, "chosen"))
    unit = "patients" if metrics.made.task == "grade" else "slices"
    recalls_head = [f"recall {escape(label)}" for label in metrics.made.classes]
    return _table(
        f"What to judge by, over {unit}. 0.5 is chance for balanced accuracy and AUC; a lower Brier score is better.",
        ["", "balanced accuracy", "AUC", *recalls_head, "Brier", unit],
        lines,
    )


def _as_in_the_paper(metrics: Metrics, rows: Sequence[tuple[str, Row]]) -> str:
    classes = metrics.made.classes
    lines = [
        _line(name, [*(_cell(row.slices.get(key)) for key in (*classes, "total")), _n(row.slices.get("total"))])
        for name, row in rows
    ]
    lines += [
        _line(f"the paper’s {name}", [*(f"<td>{value:.2f}</td>" for value in values), "<td></td>"], "paper")
        for name, values in PAPER_TABLE3.items()
    ]
    return _table(
        "As in the paper: accuracy over slices, of each class and in total. A classifier that always says the "
        "common class has a high total; the slices of a patient are not independent.",
        ["", *map(escape, classes), "total", "slices"],
        lines,
    )


def _arms(metrics: Metrics) -> str:
    arms = metrics.comparators
    if not arms:
        return _missing("No arms were compared in this run.")
    synthetic = sorted(filter(metrics.synthetic, arms), key=_generator_and_count)
    simple = [arm for arm in arms if arm in (*SHORTCUTS, "linear")]
    others = [arm for arm in arms if arm not in ("real", *simple, *synthetic)]
    groups = (
        ("Real features", [arm for arm in arms if arm == "real"]),
        ("Other remedies for too few samples", sorted(others, key=lambda arm: -(_mean(arms[arm]) or 0))),
        ("Simpler classifiers", sorted(simple, key=lambda arm: -(_mean(arms[arm]) or 0))),
        ("Synthetic features", synthetic),
    )
    scores = [score for arm in arms.values() for score in (arm.balanced_accuracy, arm.auc)]
    ends = [end for score in scores if score.ci95 is not None for end in score.ci95]
    span = (math.floor(min([0.4, *ends]) * 10) / 10, min(1.0, math.ceil(max([0.7, *ends]) * 10) / 10))
    rows = []
    for title, members in groups:
        if members:
            rows.append(f"<tr class=group><th scope=rowgroup colspan=4>{title}</th></tr>")
        rows += [_arm_line(metrics, name, arms[name], span) for name in members]
    axis = f"<br>{_axis(span)}"
    return _table(
        "Each arm’s score on the test patients, with its 95 % interval. Dotted: chance. Dashed: real features alone. "
        "Last: the difference in balanced accuracy to real features alone, paired by patient. With so many arms some "
        "are ahead by chance.",
        ["", f"balanced accuracy{axis}", f"AUC{axis}", "difference"],
        rows,
        "forest",
    )


def _arm_line(metrics: Metrics, name: str, arm: Comparator, span: Span) -> str:
    tags = []
    if name == metrics.best_comparator:
        tags.append("best comparator")
    if name == metrics.augmented_arm:
        tags.append("judged")
    if name in metrics.made.generators:
        tags.append("number of samples chosen on validation patients")
    tag = f" <span class=tag>{' · '.join(tags)}</span>" if tags else ""
    colour = charts.VERMILION if metrics.synthetic(name) else charts.BLACK if name == "real" else charts.BLUE
    real = metrics.comparators.get("real")
    cells = []
    for measure in charts.MEASURES:
        score = getattr(arm, measure)
        level = getattr(real, measure).mean if real is not None else None
        cells.append(f"<td class=plot>{_interval_plot(score, level, span, colour)}{told(score)}</td>")
    difference = arm.difference.balanced_accuracy if arm.difference is not None else None
    style = " class=chosen" if name in (metrics.best_comparator, metrics.augmented_arm) else ""
    return (
        f"<tr{style}><th scope=row>{escape(arm_name(name))}{tag}</th>{''.join(cells)}"
        f"{_cell(difference, True) if difference is not None else '<td></td>'}</tr>"
    )


def _generator_and_count(arm: str) -> tuple[str, int]:
    generator, _, count = arm.partition("@")
    return generator, int(count) if count.isdecimal() else -1


def _mean(arm: Row) -> float | None:
    return arm.balanced_accuracy.mean


PLOT_WIDTH, PLOT_HEIGHT = 210, 26
Span = tuple[float, float]


def _place(value: float, span: Span) -> float:
    low, high = span
    return 9 + (PLOT_WIDTH - 18) * (min(high, max(low, value)) - low) / (high - low)


def _axis(span: Span) -> str:
    labels = "".join(
        f"<text x='{_place(value, span):.1f}' y=11 font-size=11 fill='#57606a' text-anchor=middle>{value:.1f}</text>"
        for value in (span[0], 0.5, span[1])
        if value == 0.5 or abs(value - 0.5) > 0.12 * (span[1] - span[0])
    )
    return f"<svg width={PLOT_WIDTH} height=14 aria-hidden=true>{labels}</svg>"


def _interval_plot(score: Score, level: float | None, span: Span, colour: str) -> str:
    """A row of the forest plot. Its figures stand beside it in words."""

    def upright(value: float, dash: str, stroke: str) -> str:
        x = _place(value, span)
        return (
            f"<line x1='{x:.1f}' x2='{x:.1f}' y1=0 y2={PLOT_HEIGHT} stroke='{stroke}' stroke-dasharray='{dash}'></line>"
        )

    marks = [upright(0.5, "1.5 3", charts.GREY)]
    if level is not None:
        marks.append(upright(level, "5 3", charts.GREY))
    middle = PLOT_HEIGHT / 2
    if score.ci95 is not None:
        left, right = (_place(end, span) for end in score.ci95)
        marks.append(
            f"<line x1='{left:.1f}' x2='{right:.1f}' y1={middle} y2={middle} stroke='{colour}' stroke-width=2></line>"
        )
    if score.mean is not None:
        marks.append(f"<circle cx='{_place(score.mean, span):.1f}' cy={middle} r=4.5 fill='{colour}'></circle>")
    return f"<svg width={PLOT_WIDTH} height={PLOT_HEIGHT} aria-hidden=true>{''.join(marks)}</svg>"


def _counts(metrics: Metrics) -> str:
    real = metrics.comparators.get("real")
    if real is None or not any(metrics.counts.values()):
        return _missing("No generator was asked for, so there is nothing to count.")
    best = metrics.comparators.get(metrics.best_comparator or "")
    level = Measured(balanced_accuracy=best.balanced_accuracy, auc=best.auc) if best is not None else None
    rows = [
        _line(
            name,
            [
                f"<td>{each.count}</td>",
                _cell(each.balanced_accuracy),
                _cell(each.auc),
                *_differences(each.difference),
            ],
        )
        for name, line in sorted(metrics.counts.items())
        for each in line
    ]
    head = ["generator", "samples", "balanced accuracy", "AUC", "difference, balanced accuracy", "difference, AUC"]
    return _figure(
        charts.against_counts(metrics.counts, real.balanced_accuracy, real.auc, level),
        "Balanced accuracy and AUC against the number of synthetic samples, by generator. The table below has the "
        "figures.",
        "Bars: 95 % intervals. Dashed, with its interval in grey: the best comparator. The rare class is filled up "
        "first. The paper found 1,158 best, and more to hurt.",
    ) + _folded(_table("Differences are those to real features alone.", head, rows))


def _scarce(metrics: Metrics) -> str:
    if not metrics.scarce:
        return _missing("Not tried in this run: the rare class with fewer of its patients.")
    rare = min(metrics.made.cohort.patients.items(), key=lambda item: item[1], default=("rare", 0))[0]
    series: dict[str, list[tuple[int, Measured]]] = {}
    rows = []
    for point in sorted(metrics.scarce, key=lambda each: each.rare_patients):
        names = {"real features alone": "real", "best comparator": point.best_comparator}
        names["synthetic features"] = point.augmented_arm
        for name, arm in names.items():
            if arm is not None and arm in point.arms:
                series.setdefault(name, []).append((point.rare_patients, point.arms[arm]))
        minus = point.augmented_minus_best
        rows.append(
            _line(
                str(point.rare_patients),
                [
                    f"<td>{escape(arm_name(point.augmented_arm or '–'))}</td>",
                    f"<td>{escape(arm_name(point.best_comparator or '–'))}</td>",
                    *_differences(minus),
                ],
            )
        )
    order = [name for name in ("synthetic features", "best comparator", "real features alone") if name in series]
    plot = (
        ""
        if not order
        else _figure(
            charts.against_patients({name: series[name] for name in order}, rare),
            f"Balanced accuracy and AUC against the number of {rare} patients to fit on. The figures are below.",
            f"All {escape(rare)} patients are tested all the same; fewer were there to fit on. Bars: 95 % intervals. "
            "The best comparator, and the number of synthetic samples, may differ from point to point.",
        )
    )
    head = [f"{escape(rare)} patients", "judged", "best comparator", "difference, balanced accuracy", "difference, AUC"]
    return plot + _table("Judged arm − best comparator, paired by patient.", head, rows)


def _differences(difference: Difference | None) -> list[str]:
    if difference is None:
        return ["<td></td>", "<td></td>"]
    return [_cell(difference.balanced_accuracy, True), _cell(difference.auc, True)]


def _gan(metrics: Metrics) -> str:
    if not metrics.gan:
        return _missing("No generator was asked for.")
    rows = [
        _line(
            name,
            [
                _cell(each.accuracy_critic),
                _cell(each.accuracy_unseen),
                _cell(each.accuracy_unseen_real),
                _cell(each.accuracy_others),
                _cell(each.accuracy_others_real),
                _cell(each.cas.balanced_accuracy if each.cas is not None else None),
                _cell(each.cas.auc if each.cas is not None else None),
            ],
        )
        for name, each in metrics.gan.items()
    ]
    if metrics.made.task == "grade":
        rows.append(_line("the paper’s ACGAN, 512 kernels", ["<td>0.82</td>", "<td></td>" * 6], "paper"))
    head = [
        "generator",
        "right by its critic",
        "right by a classifier of the same patients",
        "real test slices right by that one",
        "right by one of other patients",
        "real training slices right by that one",
        "CAS, balanced accuracy",
        "CAS, AUC",
    ]
    classes = _table(
        "The share of synthetic features that is put into its class: by the critic, which the generator learnt to "
        "please, and by classifiers that never saw a synthetic one. The one of the same patients also agrees with the "
        "generator on what differs between them by chance; the one of other patients agrees on signal alone. "
        "CAS: a classifier fitted on synthetic features alone, tested on real patients. Intervals: 95 % of the fits.",
        head,
        rows,
    )
    history = {name: each.history for name, each in metrics.gan.items() if any(each.history)}
    curves = (
        _figure(
            charts.gan_curves(history),
            "Losses and class accuracies of each generator by epoch: " + ", ".join(history),
            "As Fig. 11 of the paper. Thin: each fold; thick: their mean. Dotted: chance.",
        )
        if history
        else _missing("No learning curves were kept.")
    )
    floor = (
        "<p class=note>Below: synthetic features beside the floor, real features of patients who were held out, both "
        "measured against those that were fitted. ↓ lower is better, ↑ higher.</p>"
    )
    return classes + floor + "".join(_quality(name, each) for name, each in metrics.gan.items()) + curves


def _quality(name: str, gan: GanQuality) -> str:
    if not gan.per_class:
        return ""
    measures: tuple[tuple[str, Callable[[Any], Against]], ...] = (
        ("Fréchet distance ↓", lambda of: of.frechet),
        ("KID ↓", lambda of: of.kid),
        ("precision ↑", lambda of: of.precision),
        ("recall ↑", lambda of: of.recall),
        ("density ↑", lambda of: of.density),
        ("coverage ↑", lambda of: of.coverage),
        (
            "median distance to the nearest fitted",
            lambda of: Against(synthetic=of.nearest.synthetic_to_train, floor=of.nearest.held_out_to_train),
        ),
    )
    rows = []
    for title, measure in measures:
        pairs = [measure(of) for of in gan.per_class.values()]
        cells = [f"<td>{two_digits(pair.synthetic)}</td><td class=ci>{two_digits(pair.floor)}</td>" for pair in pairs]
        rows.append(_line(title, cells))
    head = [""]
    for label in gan.per_class:
        head += [f"{escape(label)}<br>synthetic", f"{escape(label)}<br>held-out real"]
    copies = [
        label
        for label, of in gan.per_class.items()
        if of.nearest.synthetic_to_train is not None
        and of.nearest.held_out_to_train is not None
        and of.nearest.synthetic_to_train < COPIES * of.nearest.held_out_to_train
    ]
    warning = (
        f"<p><b>⚠ {escape(', '.join(copies))}:</b> synthetic features lie far closer to the fitted ones than real "
        "features of other patients do. The generator may be copying patients.</p>"
        if copies
        else ""
    )
    return f"<h3>{escape(name)}</h3>" + _table("", head, rows) + warning


def _maps(metrics: Metrics, figures: Mapping[str, NDArray[Any]]) -> str:
    shown = []
    for name, label in product(metrics.gan, metrics.made.classes):
        real, synthetic = (_few(figures.get(f"{name}/{kind}_{label}")) for kind in ("real", "synthetic"))
        if real is None:
            continue
        below = "" if synthetic is not None else " No synthetic ones were kept."
        shown.append(
            f"<h3>{escape(name)}, {escape(label)}</h3>"
            + _figure(
                charts.feature_maps(real, synthetic),
                f"Feature maps of class {label}: real samples beside synthetic ones of {name}, the same channels.",
                f"A row is a sample, a column a channel. A channel has one grey scale, real and synthetic.{below}",
            )
        )
    return "".join(shown) or _missing("No feature maps were kept.")


def _few(maps: NDArray[Any] | None) -> NDArray[Any] | None:
    return None if maps is None or not maps.size else maps[:MAP_SAMPLES, :MAP_CHANNELS]


def _table2(metrics: Metrics) -> str:
    if metrics.table2 is None:
        learnt = _unet_curves(metrics)
        return _missing("Segmentation was not measured in this run.") + learnt
    table = metrics.table2
    parts = {"train": table.train, "validation": table.validation, "test": table.test}
    rows = [
        _line(name, [*map(_cell, (of.soft_dice_loss, of.hard_dice, of.iou)), _n(of.hard_dice)])
        for name, of in parts.items()
        if of.hard_dice.mean is not None
    ]
    rows += [
        _line(f"the paper’s {name}", [*(f"<td>{value:.2f}</td>" for value in values), "<td></td>"], "paper")
        for name, values in PAPER_TABLE2.items()
        if rows
    ]
    patients = table.test_patients
    values = patients.per_patient
    lowest = ", ".join(
        f"{escape(each.patient)} {each.dice:.2f}" for each in sorted(values, key=lambda each: each.dice)[:5]
    )
    spread = (
        _figure(
            charts.dice_histogram(values, patients.dice.mean, patients.dice_median),
            f"Histogram of the Dice of {len(values)} test patients: mean {number(patients.dice)}.",
            f"Mean {told(patients.dice)}, n = {patients.dice.n}. Lowest: {lowest}.",
        )
        if values
        else _missing("No Dice by patient was kept.")
    )
    return (
        _table(
            "Over slices, as in the paper; test patients were not shown to the U-Net that segments them.",
            ["", "soft-Dice loss", "hard Dice", "IoU", "slices"],
            rows,
        )
        if rows
        else _missing("Not measured over slices: this U-Net was fitted elsewhere.")
    ) + ("<h3>Dice by test patient</h3>" + spread + _unet_curves(metrics))


def _unet_curves(metrics: Metrics) -> str:
    if metrics.learning is None or not any(metrics.learning.unet):
        return _missing("No learning curves of the U-Net were kept.")
    return "<h3>Learning curves of the U-Net</h3>" + _figure(
        charts.unet_curves(metrics.learning.unet),
        "Loss of the U-Net on training patients, Dice and IoU on validation patients, by epoch.",
        "Thin: each fold; thick: their mean.",
    )


def _overlays(figures: Mapping[str, NDArray[Any]]) -> str:
    if any(key not in figures for key in ("image", "truth", "found")) or not len(figures["image"]):
        return _missing("No example slices were kept.")
    shown = []
    names = figures.get("names", np.array([""] * len(figures["image"])))
    for image, truth, found, name in zip(
        *(figures[key][:OVERLAYS] for key in ("image", "truth", "found")), names[:OVERLAYS], strict=True
    ):
        both = int(((truth > 0) & (found > 0)).sum())
        either = int((truth > 0).sum() + (found > 0).sum())
        dice = f"Dice {2 * both / either:.2f}" if either else "no tumour, none found"
        data = base64.b64encode(charts.overlay(image, truth, found)).decode()
        alt = escape(f"Slice of {name} with the true and the found outline. {dice}", quote=True)
        shown.append(
            f'<figure><img alt="{alt}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(str(name))}<br>{dice}</figcaption></figure>"
        )
    return (
        f"<p class=note>Slices of test patients. <b style='color:#0072b2'>Blue, solid</b>: true. "
        f"<b style='color:#9a6700'>Amber, dashed</b>: found.</p><div class=grid>{''.join(shown)}</div>"
    )


def _calibration(metrics: Metrics) -> str:
    wanted = list(dict.fromkeys(["real", metrics.best_comparator, metrics.augmented_arm, *metrics.calibration]))[:3]
    bins = {arm_name(name): metrics.calibration[name] for name in wanted if name and metrics.calibration.get(name)}
    if not bins:
        return _missing("Calibration was not measured in this run.")
    positive = metrics.made.classes[0]
    return _figure(
        charts.reliability(bins, positive),
        f"Share of patients that are {positive} against the probability that was given, for " + ", ".join(bins),
        "On the diagonal a probability means what it says. The area of a mark is its number of patients.",
    )


def _control(metrics: Metrics) -> str:
    control = metrics.control
    if control is None:
        return _missing("No control with shuffled labels was run.")
    says = (
        "Chance lies in all intervals, as it must."
        if control.chance_inside
        else "<b>⚠ Chance lies outside an interval: something may leak. Do not believe this page.</b>"
    )
    arms: list[tuple[str, Control | Measured]] = [("real", control), *control.arms.items()]
    rows = [_line(name, [_cell(scores.balanced_accuracy), _cell(scores.auc), _n(scores.auc)]) for name, scores in arms]
    return (
        "<p>Real features alone, and with the most synthetic ones, again, on labels that were dealt at random. "
        f"Nothing is to be learnt, so anything but 0.5 is a fault of the measurement. {says}</p>"
        + _table("", ["", "balanced accuracy", "AUC", "patients"], rows)
    )


def _made(metrics: Metrics) -> str:
    made = metrics.made
    minutes = f"{made.seconds / 60:.0f} minutes" if made.seconds >= 120 else f"{made.seconds:.0f} seconds"
    versions = ", ".join(f"{escape(name)} {escape(version)}" for name, version in made.versions.items())
    start = f"started from {escape(made.init)}" if made.init else "started from random weights"
    unet = f"is that of {escape(made.unet)}, as it was" if made.unet else start
    settings = {"profile": made.profile, **{f"generator {name}": of.options for name, of in metrics.gan.items()}}
    return (
        f"<pre>{escape(made.command)}</pre>"
        f"<p>{escape(made.date)}; {minutes} on {escape(made.device)}; seeds "
        f"{', '.join(map(str, made.protocol.seeds))}; the U-Net {unet}.</p><p>{versions}</p>"
        + _folded(f"<pre>{escape(json.dumps(settings, indent=1, ensure_ascii=False, default=str))}</pre>", "Settings")
        + f"<p class=note>The same figures, for machines: <code>{METRICS_FILE}</code> beside this page "
        f"(schema {escape(metrics.schema_)}).</p>"
    )


def _table(caption: str, head: Sequence[str], rows: Iterable[str], style: str = "plain") -> str:
    """``caption``, ``head`` and ``rows`` are HTML."""
    top = "".join(f"<th scope=col>{name}</th>" if name else "<td></td>" for name in head)
    titled = f"<caption>{caption}</caption>" if caption else ""
    body = f"{titled}<thead><tr>{top}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f"<div class=scroll><table class={style}>{body}</table></div>"


def _line(name: str, cells: Iterable[str], style: str = "") -> str:
    """``name`` is text, ``cells`` are HTML."""
    return f"<tr{f' class={style}' if style else ''}><th scope=row>{escape(name)}</th>{''.join(cells)}</tr>"


def _cell(score: Score | None, signed: bool = False) -> str:
    if score is None:
        return "<td>–</td>"
    ends = interval(score, signed)
    return f"<td>{number(score, signed)}{f'<br><span class=ci>{ends}</span>' if ends else ''}</td>"


def _n(score: Score | None) -> str:
    return f"<td>{score.n if score is not None else ''}</td>"


def _figure(image: bytes, alt: str, caption: str) -> str:
    """``alt`` is text, ``caption`` HTML."""
    kind = "image/png" if image.startswith(b"\x89PNG") else "image/svg+xml"
    data = base64.b64encode(image).decode()
    return (
        f'<figure><img alt="{escape(alt, quote=True)}" src="data:{kind};base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _folded(content: str, title: str = "The figures") -> str:
    return f"<details><summary>{title}</summary>{content}</details>"


def _missing(why: str) -> str:
    return f"<p class=note>{escape(why)}</p>"


if __name__ == "__main__":
    print(render(Path(sys.argv[1])))

"""The figures of the evaluation's report, each as the bytes of an SVG or PNG.

matplotlib takes a second to import and is only needed here, so it is imported when a figure is drawn. Colours are of
Okabe and Ito's palette, told apart by the colour-blind; markers and dashes tell the same apart in grey.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gliaflow_evaluation.report.schema import CalibrationBin, Count, Measured, PatientDice, Score

BLACK, BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#1b1f24", "#0072b2", "#d55e00", "#009e73", "#aa4499", "#e69f00"
GREY = "#8c959f"
SERIES = ((VERMILION, "o"), (BLUE, "s"), (GREEN, "D"), (PURPLE, "^"), (ORANGE, "v"), (BLACK, "P"))
FOUND, TRUE = "#ffb000", "#40c4ff"  # as in the demo's page
MEASURES = {"balanced_accuracy": "Balanced accuracy", "auc": "AUC"}
STYLE = {
    "text.parse_math": False,  # names are strangers' text: a $ in one is a $
    "svg.hashsalt": "gliaflow",  # the same metrics give the same bytes
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": BLACK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
}
WORDS = {
    "loss_d": "discriminator",
    "loss_g": "generator",
    "accuracy_real": "real features",
    "accuracy_fake": "synthetic features",
    "val_dice": "Dice",
    "val_iou": "IoU",
}
Epochs = Sequence[Mapping[str, float | None]]


def against_counts(series: Mapping[str, Sequence[Count]], real: Score, real_auc: Score, best: Measured | None) -> bytes:
    """Score against the number of synthetic samples, a line for each generator; without any: the arm ``real``."""
    with _drawing():
        figure, panels = _panels(2)
        for axes, measure, without in zip(panels, MEASURES, (real, real_auc), strict=True):
            points = {
                name: [(each.count, getattr(each, measure)) for each in line] for name, line in sorted(series.items())
            }
            for line in points.values():
                if all(count for count, _ in line):
                    line.insert(0, (0, without))
            _lines(axes, points, measure)
            if best is not None:
                _level(axes, getattr(best, measure), "best comparator")
            counts = sorted({count for line in points.values() for count, _ in line})
            _spread(axes, counts)
            axes.set_xlabel("synthetic samples added")
        _legend(figure, panels)
        return _svg(figure)


def against_patients(series: Mapping[str, Sequence[tuple[int, Measured]]], rare: str) -> bytes:
    """Score against the patients of the rare class that were left to fit on, a line for each kind of arm."""
    with _drawing():
        figure, panels = _panels(2)
        for axes, measure in zip(panels, MEASURES, strict=True):
            points = {name: [(x, getattr(arm, measure)) for x, arm in line] for name, line in series.items()}
            _lines(axes, points, measure)
            axes.set_xticks(sorted({x for line in points.values() for x, _ in line}))
            axes.set_xlabel(f"{rare} patients to fit on")
        _legend(figure, panels)
        return _svg(figure)


def gan_curves(history: Mapping[str, Sequence[Epochs]]) -> bytes:
    """Fig. 11 of the paper: losses above, class accuracies below, a column for each generator, a line for each fold."""
    with _drawing():
        figure, panels = _panels(len(history), rows=2, width=3.4, height=2.1)
        for column, (name, folds) in enumerate(history.items()):
            keys = {key for fold in folds for epoch in fold for key in epoch}
            for row, what in enumerate(("loss", "accuracy")):
                axes = panels[row * len(history) + column]
                _folds(axes, folds, sorted((key for key in keys if key.startswith(what)), reverse=bool(row)))
                if row:
                    axes.set_ylim(0, 1.03)
                    axes.axhline(0.5, color=GREY, linestyle=":", linewidth=1)
                    axes.set_xlabel("epoch")
                else:
                    axes.set_title(name)
                if not column:
                    axes.set_ylabel("loss" if not row else "class accuracy")
                if axes.get_legend_handles_labels()[0]:  # a variant need not tell of either
                    axes.legend(loc="best" if not row else "lower right")
        return _svg(figure)


def unet_curves(folds: Sequence[Epochs]) -> bytes:
    """Training loss, and Dice and IoU of the validation patients, with the epoch that was kept of each fold."""
    with _drawing():
        figure, (left, right) = _panels(2)
        _folds(left, folds, ["loss"])
        left.set_title("Loss, training patients")
        left.set_ylim(bottom=0)
        _folds(right, folds, ["val_dice", "val_iou"])
        right.set_title("Validation patients")
        right.set_ylim(0, 1)
        for fold in folds:
            iou = [(epoch.get("val_iou"), number) for number, epoch in enumerate(fold, 1)]
            known = [(value, number) for value, number in iou if value is not None]
            if known:
                value, number = max(known)
                right.plot(number, value, "o", color=BLACK, markersize=4, zorder=4)
        right.plot([], [], "o", color=BLACK, markersize=4, label="best epoch of a fold")
        right.legend(loc="lower right")
        for axes in (left, right):
            axes.set_xlabel("epoch")
        return _svg(figure)


def dice_histogram(patients: Sequence[PatientDice], mean: float | None, median: float | None) -> bytes:
    """How many test patients have which Dice."""
    values = np.array([each.dice for each in patients])
    with _drawing():
        figure, (axes,) = _panels(1, width=7, height=2.6)
        axes.hist(values, bins=np.linspace(0, 1, 21), color=BLUE, alpha=0.75, edgecolor="white")
        axes.plot(values, np.zeros(len(values)), "|", color=BLACK, markersize=9, alpha=0.6, clip_on=False)
        for value, name, dash in ((mean, "mean", "-"), (median, "median", "--")):
            if value is not None:
                axes.axvline(value, color=BLACK, linestyle=dash, linewidth=1.3, label=f"{name} {value:.2f}")
        axes.set_xlim(0, 1)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("Dice of a test patient")
        axes.set_ylabel("patients")
        axes.legend(loc="upper left")
        return _svg(figure)


def reliability(bins: Mapping[str, Sequence[CalibrationBin]], positive: str) -> bytes:
    """Share that is of the first class against the probability that was given, by arm; area: patients."""
    with _drawing():
        figure, (axes,) = _panels(1, width=4.6, height=4.2)
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2, label="calibrated")
        most = max((each.n for line in bins.values() for each in line), default=1)
        for (name, line), (colour, marker) in zip(bins.items(), SERIES, strict=False):
            x, y = [each.predicted for each in line], [each.observed for each in line]
            area = [18 + 130 * each.n / most for each in line]
            axes.plot(x, y, color=colour, linewidth=1.2, marker=marker, markersize=4, label=name)
            axes.scatter(x, y, s=area, color=colour, marker=marker, alpha=0.35, linewidths=0)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        axes.set_xlabel(f"probability of {positive} that was given")
        axes.set_ylabel(f"share that is {positive}")
        axes.legend(loc="upper left")
        return _svg(figure)


def overlay(image: NDArray[Any], truth: NDArray[Any], found: NDArray[Any]) -> bytes:
    """A slice [H, W] with the outlines of the true and of the found mask [H, W]. Rows run to the right."""
    image = np.nan_to_num(image.astype(np.float32))
    with _drawing():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(2.2, 2.2 * image.shape[1] / image.shape[0]), facecolor="black")
        axes = figure.add_axes((0, 0, 1, 1))
        low, high = np.percentile(image, [1, 99.7])
        grey = {"cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-6)}
        axes.imshow(image.T, origin="lower", interpolation="bilinear", **grey)
        for mask, colour, dash in ((truth, TRUE, "solid"), (found, FOUND, "dashed")):
            if (mask > 0).any() and not (mask > 0).all():
                axes.contour(mask.T > 0, levels=[0.5], colors=[colour], linewidths=1.5, linestyles=[dash])
        axes.set_axis_off()
        return _png(figure)


def feature_maps(real: NDArray[Any], synthetic: NDArray[Any] | None) -> bytes:
    """Samples [n, C, h, w], real on the left: a row a sample, a column a channel, which has one grey scale."""
    blocks = {"real": real} if synthetic is None else {"real": real, "synthetic": synthetic}
    channels = min(maps.shape[1] for maps in blocks.values())
    shown = [np.nan_to_num(maps[:, :channels].astype(np.float32)) for maps in blocks.values()]
    top = np.max([np.percentile(maps, 99.5, axis=(0, 2, 3)) for maps in shown], axis=0)
    top[top <= 0] = 1
    height = 4.4 * max(len(maps) for maps in shown) / channels
    with _drawing():
        figure, panels = _panels(len(shown), width=4.6, height=min(9, height) + 0.3)
        for axes, name, maps in zip(panels, blocks, shown, strict=True):
            axes.imshow(_mosaic(maps / top[:, None, None]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(name)
            axes.set_axis_off()
        return _png(figure)


def _mosaic(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Maps [n, C, h, w] as one picture with gaps, each upright as the slices above."""
    upright = maps.swapaxes(2, 3)[:, :, ::-1]
    gap = max(1, upright.shape[2] // 15)
    padded = np.pad(upright, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=np.nan)
    rows, columns, height, width = padded.shape
    picture: NDArray[np.float32] = padded.swapaxes(1, 2).reshape(rows * height, columns * width)[:-gap, :-gap]
    return picture


def _lines(axes: Any, series: Mapping[str, Sequence[tuple[int, Score]]], measure: str) -> None:
    from matplotlib.transforms import ScaledTranslation

    for place, (name, line) in enumerate(series.items()):
        colour, marker = SERIES[place % len(SERIES)]
        aside = (place - (len(series) - 1) / 2) * 5 / 72  # inches: or intervals would hide each other
        shifted = axes.transData + ScaledTranslation(aside, 0, axes.figure.dpi_scale_trans)
        known = [(x, score) for x, score in line if score.mean is not None]
        if not known:
            continue
        x, y = [x for x, _ in known], [float(score.mean or 0) for _, score in known]
        drawn = axes.plot(x, y, color=colour, marker=marker, markersize=5, label=name)
        for at, score in known:
            if score.ci95 is not None:
                drawn += axes.plot([at] * 2, score.ci95, color=colour, linewidth=1, alpha=0.7)
        for each in drawn:
            each.set_transform(shifted)  # once the limits know it
    axes.axhline(0.5, color=GREY, linestyle=":", linewidth=1.2, label="chance")
    axes.set_title(MEASURES[measure])


def _level(axes: Any, score: Score, name: str) -> None:
    if score.mean is None:
        return
    axes.axhline(score.mean, color=BLACK, linestyle="--", linewidth=1.2, label=name)
    if score.ci95 is not None:
        axes.axhspan(*score.ci95, color=BLACK, alpha=0.06, linewidth=0)


def _spread(axes: Any, counts: Sequence[int]) -> None:
    """Counts grow by factors: near 0 the axis is linear, beyond the smallest logarithmic."""
    least = min((count for count in counts if count), default=1)
    axes.set_xscale("symlog", linthresh=least, linscale=0.7)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xticks([], minor=True)
    axes.set_xlim(-0.15 * least, max(counts) * 1.25 or 1)


def _folds(axes: Any, folds: Sequence[Epochs], keys: Sequence[str]) -> None:
    for key, (colour, _) in zip(keys, (SERIES[1], SERIES[0], *SERIES[2:]), strict=False):
        lines = [np.array([epoch.get(key, np.nan) for epoch in fold], dtype=float) for fold in folds]
        for line in lines:
            axes.plot(np.arange(1, len(line) + 1), line, color=colour, linewidth=0.8, alpha=0.4)
        longest = max((len(line) for line in lines), default=0)
        padded = np.full((len(lines), longest), np.nan)
        for row, line in enumerate(lines):
            padded[row, : len(line)] = line
        there = np.isfinite(padded)
        mean = np.where(there, padded, 0).sum(0) / np.maximum(1, there.sum(0))
        mean[~there.all(0)] = np.nan  # folds that stopped early would make it jump
        axes.plot(
            np.arange(1, longest + 1), mean, color=colour, linewidth=2, label=WORDS.get(key, key.replace("_", " "))
        )


def _panels(count: int, rows: int = 1, width: float = 4.6, height: float = 3.0) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, height * rows), layout="constrained", facecolor="white")
    return figure, [figure.add_subplot(rows, count, place + 1) for place in range(rows * count)]


def _legend(figure: Any, panels: Sequence[Any]) -> None:
    found = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=5)


@contextmanager
def _drawing() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks is drawn as boxes
        yield


def _svg(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()

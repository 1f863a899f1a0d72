"""Curves of figures by epoch, and what all plots share: colours, words and the legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gliaflow_pages.drawing import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION, Picture, drawing, panel, to_svg

SERIES = ((VERMILION, "o"), (BLUE, "s"), (GREEN, "D"), (PURPLE, "^"), (ORANGE, "v"), (BLACK, "P"))
WORDS = {
    "loss_d": "discriminator",
    "loss_g": "generator",
    "accuracy_real": "real features",
    "accuracy_fake": "synthetic features",
    "val_dice": "Dice",
    "val_iou": "IoU",
}
Epochs = Sequence[Mapping[str, float | None]]


def learning_curves(
    folds: Sequence[Epochs], keys: Sequence[str], title: str, share: bool = False, kept: str = ""
) -> Picture:
    """Figures by epoch: each fold thin, the mean of the folds thick.

    Parameters
    ----------
    share: the figures are between 0 and 1.
    kept: of this figure, mark the highest of each fold: the epoch that was kept.
    """
    with drawing():
        figure, axes = panel()
        for key, (colour, _) in zip(keys, (SERIES[1], SERIES[0], *SERIES[2:]), strict=False):
            lines = [np.array([epoch.get(key, np.nan) for epoch in fold], dtype=float) for fold in folds]
            for line in lines:
                axes.plot(np.arange(len(line)) + 1, line, color=colour, linewidth=0.8, alpha=0.4)
            shortest = min(len(line) for line in lines)  # beyond, the mean would jump where a fold stops
            mean = np.mean([line[:shortest] for line in lines], axis=0)
            label = WORDS.get(key, key.replace("_", " "))
            axes.plot(np.arange(shortest) + 1, mean, color=colour, linewidth=2, label=label)
        highest = [max(each) for fold in folds if (each := _known(fold, kept))]
        if highest:
            label = "epoch kept, by fold" if len(folds) > 1 else "epoch kept"
            axes.plot(
                [n for _, n in highest], [value for value, _ in highest], "o", color=BLACK, markersize=4, label=label
            )
        if share:
            axes.set_ylim(0, 1.03)
        axes.set_title(title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("epoch")
        return finished(figure, axes)


def generator_curves(folds: Sequence[Epochs]) -> list[Picture]:
    """Fig. 11 of the paper: losses, and class accuracies. A variant may report neither."""
    keys = sorted({key for fold in folds for epoch in fold for key in epoch})
    losses, accuracies = ([key for key in keys if key.startswith(kind)] for kind in ("loss", "accuracy"))
    plots = [learning_curves(folds, losses, "Loss")] if losses else []
    return plots + ([learning_curves(folds, accuracies[::-1], "Class accuracy", share=True)] if accuracies else [])


def unet_curves(folds: Sequence[Epochs]) -> list[Picture]:
    """The loss on training patients, and Dice and IoU of validation patients, if there were any."""
    plots = [learning_curves(folds, ["loss"], "Loss, training patients")]
    if any("val_iou" in epoch for fold in folds for epoch in fold):
        plots += [learning_curves(folds, ["val_dice", "val_iou"], "Validation patients", share=True, kept="val_iou")]
    return plots


def finished(figure: Any, axes: Any, columns: int = 2) -> Picture:
    """The figure as an SVG, with the legend below."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside lower left", ncols=columns)
    return to_svg(figure)


def _known(fold: Epochs, key: str) -> list[tuple[float, int]]:
    """A figure with the number of its epoch, where it is known."""
    values = ((epoch.get(key), number) for number, epoch in enumerate(fold, 1))
    return [(value, number) for value, number in values if value is not None]

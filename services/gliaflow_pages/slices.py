"""Slices and feature maps as pictures: turned, cropped and scaled alike on every page.

Pictures follow the radiological convention: the patient is seen from the feet, so that the patient's left (L) is at the
right of the picture, and the front is at the top. Arrays come in canonical axes (RAS+), as in
``gliaflow_preprocessor.slices``: rows run to the patient's right, columns to the front. Feature maps keep these axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gliaflow_pages.drawing import FOUND, TRUE, Picture, drawing, grey_png, to_png

CHANNELS, SAMPLES = 8, 4  # feature maps in a picture, at most
BAR_MM = 50  # the scale bar
MARGIN_MM = 5.0
HEAD = 0.2  # of the range of grey: what is brighter is head
RESPONSE = 0.02  # of the strongest channel: a channel that stays below is not shown
CONTENT = 0.1  # of a channel's white: what is brighter is content
INCHES = 2.2
PIXELS = 640  # width of a picture of feature maps, at least


@dataclass(frozen=True)
class Slice:
    """An axial slice [rows, columns] and its masks of the same shape; ``spacing`` [mm] of rows and of columns."""

    image: NDArray[Any]
    true: NDArray[Any]
    found: NDArray[Any]
    spacing: tuple[float, float] = (1.0, 1.0)

    def dice(self) -> float | None:
        """Dice of the two masks in this slice; None where neither has tumour."""
        true, found = self.true > 0, self.found > 0
        total = int(true.sum() + found.sum())
        return 2 * int((true & found).sum()) / total if total else None


def upright(planes: NDArray[Any]) -> NDArray[Any]:
    """Planes [..., rows, columns] as pixels [..., height, width] in the radiological convention."""
    return planes.swapaxes(-2, -1)[..., ::-1, ::-1]


def mark_sides(axes: Any) -> None:
    """Write R and L into the upper corners of an upright slice."""
    for name, place, align in (("R", 0.03, "left"), ("L", 0.97, "right")):
        axes.text(place, 0.97, name, transform=axes.transAxes, ha=align, va="top", color="white", fontsize=12)


def slice_pictures(slices: Sequence[Slice]) -> list[Picture]:
    """A picture of each slice with the outlines of its masks, the letters R and L, and a scale bar; all at one scale.

    Each is cropped to the same field of view, which the largest head fills.
    """
    boxes = [_head_box(each) for each in slices]
    view = np.max([high - low for low, high in boxes], axis=0) + 2 * MARGIN_MM if boxes else np.ones(2)
    return [_picture(each, (low + high) / 2, view) for each, (low, high) in zip(slices, boxes, strict=True)]


@dataclass(frozen=True)
class FeatureMaps:
    """Pictures of real and synthetic maps: a row for each sample, a column for each of the ``shown`` channels.

    ``white``: the value that is drawn white, of the weakest and of the strongest channel.
    """

    real: Picture
    synthetic: Picture | None
    shown: int
    white: tuple[float, float]


def feature_maps(real: NDArray[Any], synthetic: NDArray[Any] | None) -> FeatureMaps:
    """Draw the strongest channels of samples [n, C, H, W], real and synthetic cropped and scaled alike.

    Channels that hardly respond are left out. A channel has one grey scale, from 0 to the 99.5th percentile of its
    values; all maps are cropped to the square that holds what is brighter than ``CONTENT`` of it.
    """
    blocks = [np.nan_to_num(maps[:SAMPLES].astype(np.float32)) for maps in (real, synthetic) if maps is not None]
    strength = blocks[0].mean(axis=(0, 2, 3))
    chosen = np.sort(np.argsort(-strength, kind="stable")[:CHANNELS])
    white = np.max([np.percentile(maps[:, chosen], 99.5, axis=(0, 2, 3)) for maps in blocks], axis=0)
    responds = white > RESPONSE * white.max()
    if responds.any():
        chosen, white = chosen[responds], white[responds]
    scaled = [maps[:, chosen] / np.where(white > 0, white, 1)[:, None, None] for maps in blocks]
    rows, columns = _content(np.concatenate(scaled))
    pictures = [grey_png(_mosaic(upright(maps[..., rows, columns]))) for maps in scaled]
    return FeatureMaps(
        real=pictures[0],
        synthetic=pictures[1] if len(pictures) > 1 else None,
        shown=len(chosen),
        white=(float(white.min()), float(white.max())),
    )


def _head_box(each: Slice) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The corners [2] in mm of the box around head and masks."""
    image = np.nan_to_num(each.image.astype(np.float32))
    air, bright = np.percentile(image, [1, 99.5])
    head = image > air + HEAD * (bright - air)
    low, high = np.zeros(2), np.array(image.shape, dtype=float)
    for axis in (0, 1):
        mass = head.sum(axis=1 - axis).cumsum()
        inside = np.flatnonzero(((each.true > 0) | (each.found > 0)).any(axis=1 - axis))
        if mass[-1]:  # single bright pixels of noise do not count
            ends = np.searchsorted(mass, [0.002 * mass[-1], 0.998 * mass[-1]])
            low[axis] = min([ends[0], *inside[:1]])
            high[axis] = max([ends[1], *inside[-1:]]) + 1
    return low * each.spacing, high * each.spacing


def _picture(each: Slice, centre: NDArray[np.float64], view: NDArray[np.float64]) -> Picture:
    image = np.nan_to_num(each.image.astype(np.float32))
    low, high = np.percentile(image, [1, 99.7])
    extent = (0, image.shape[0] * each.spacing[0], 0, image.shape[1] * each.spacing[1])
    x, y = ((np.arange(size) + 0.5) * mm for size, mm in zip(image.shape, each.spacing, strict=True))
    (left, bottom), (right, top) = centre - view / 2, centre + view / 2
    with drawing():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(INCHES, INCHES * view[1] / view[0]), facecolor="black")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(
            image.T, extent=extent, origin="lower", cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect="auto"
        )
        for mask, colour, dashes in ((each.true > 0, TRUE, "solid"), (each.found > 0, FOUND, "dashed")):
            if mask.any() and not mask.all():
                axes.contour(x, y, mask.T, levels=[0.5], colors=[colour], linewidths=1.5, linestyles=[dashes])
        mark_sides(axes)
        bar = right - 0.05 * view[0]
        axes.plot([bar, bar - BAR_MM], [bottom + 0.05 * view[1]] * 2, color="white", linewidth=2)
        axes.set(xlim=(right, left), ylim=(bottom, top))  # the patient's right is at the left of the picture
        axes.set_axis_off()
        return to_png(figure, dpi=160)


def _content(maps: NDArray[np.float32]) -> tuple[slice, slice]:
    """Rows and columns of the smallest square that holds the content of scaled maps [n, C, H, W]."""
    bright = np.asarray((maps > CONTENT).any(axis=(0, 1)))
    ends = []
    for axis in (0, 1):
        inside = np.flatnonzero(bright.any(axis=1 - axis))
        ends.append((int(inside[0]) - 1, int(inside[-1]) + 2) if inside.size else (0, bright.shape[axis]))
    side = max(stop - start for start, stop in ends)
    cuts = []
    for (start, stop), size in zip(ends, bright.shape, strict=True):
        first = max(0, min((start + stop - side) // 2, size - side))
        cuts.append(slice(first, min(size, first + side)))
    return cuts[0], cuts[1]


def _mosaic(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Upright maps [n, C, h, w] as one picture: a row for each sample, white gaps (NaN) between the maps."""
    scale = -(-PIXELS // (maps.shape[1] * maps.shape[3]))
    large = maps.repeat(scale, axis=2).repeat(scale, axis=3)
    gap = 6
    padded = np.pad(large, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=np.nan)
    rows, columns, height, width = padded.shape
    picture: NDArray[np.float32] = padded.swapaxes(1, 2).reshape(rows * height, columns * width)[:-gap, :-gap]
    return picture

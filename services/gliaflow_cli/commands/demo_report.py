"""The demo's page: each scan with its mask, feature maps real and synthetic, the table. One file, no links out."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gliaflow_cli.client.table import Row

FOUND, TRUE = "#ffb000", "#40c4ff"  # told apart by the colour-blind too
MAPS = 25  # feature maps shown of each sample, as in Fig. 9 and 10 of the paper

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 68rem; margin: 2rem auto; padding: 0 1rem }
h1, h2 { line-height: 1.2 } img { max-width: 100%; height: auto } .scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } .note { color: #57606a }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #d0d7de }
th:first-child, td:first-child { text-align: left }
figure { margin: 1.5rem 0 } figcaption { color: #57606a } .wrong { color: #b42318; font-weight: 600 }
"""


@dataclass(frozen=True)
class Shown:
    """A scan with its answer and its truth. The arrays [x, y, z] are in canonical RAS+ axes."""

    row: Row
    grade: str
    dice: float
    flair: NDArray[Any]
    mask: NDArray[np.uint8]
    truth: NDArray[np.uint8]


def write_report(
    path: Path,
    scans: Sequence[Shown],
    real: Mapping[str, NDArray[Any]],
    synthetic: Mapping[str, NDArray[Any]],
    metrics: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write the page.

    Parameters
    ----------
    scans: at least one.
    real: by class, the features [C, H, W] of one slice.
    synthetic: by class, synthetic features [n, C, H, W].
    metrics: those of the bundle's manifest.
    """
    answered = [scan for scan in scans if scan.row.status == "ok"]
    right = sum(scan.row.grade == scan.grade for scan in answered)
    dice = f"{np.mean([scan.dice for scan in answered]):.2f}" if answered else "–"
    bundle = next((scan.row.bundle for scan in answered), "")
    sections = [
        f"<p>{len(answered)} of {len(scans)} phantom scans answered by <code>{escape(bundle)}</code>; "
        f"mean Dice {dice}; {right} of {len(answered)} graded as they were made.</p>"
        "<p class=note>Phantoms are drawings of scans, made by <code>gliaflow phantom</code>, and this bundle learnt "
        "from other phantoms alone. These figures say that the pipeline works. They say nothing about patients: "
        "this is not a medical device.</p>",
        _held_out(metrics),
        _table(scans),
        "<h2>Masks</h2>",
        _figure(
            _overlays(scans),
            f"The slice with most tumour of each scan. <b style='color:{FOUND}'>Amber</b>: found. "
            f"<b style='color:{TRUE}'>Blue</b>: true.",
        ),
        "<h2>Deep features, real and synthetic</h2>",
        _figure(
            _feature_maps(real, synthetic),
            f"The {MAPS} strongest channels of a real slice, and the same channels of a synthetic sample of the same "
            "class, on one grey scale (Fig. 9 and 10 of the paper).",
        ),
    ]
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>gliaflow demo</title><style>{STYLE}</style><h1>gliaflow demo</h1>{''.join(sections)}</html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _held_out(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """What the bundle's own manifest says of it: half a dozen scans say little."""
    told = []
    if segmentation := metrics.get("segmentation"):
        told.append(f"mean Dice {segmentation['dice_mean']:.2f} ({segmentation['patients']} patients)")
    if grading := metrics.get("grading"):
        told.append(f"AUC of the grade {grading['auc']:.2f} ({grading['patients']} patients; 0.5 is chance)")
    return f"<p class=note>Measured when it was trained, on held-out patients: {'; '.join(told)}.</p>" if told else ""


def _table(scans: Sequence[Shown]) -> str:
    head = "".join(f"<th>{name}" for name in ("scan", "true grade", "grade", "P(HGG)", "tumour ml", "Dice", "seconds"))
    lines = []
    for scan in scans:
        row = scan.row
        if row.status != "ok":
            lines.append(
                f"<tr><td>{escape(row.scan)}<td>{escape(scan.grade)}<td colspan=5 class=wrong>{escape(row.error)}"
            )
            continue
        wrong = "" if row.grade == scan.grade else " class=wrong"
        lines.append(
            f"<tr><td>{escape(row.scan)}<td>{escape(scan.grade)}<td{wrong}>{escape(row.grade)}<td>{row.p_hgg:.3f}"
            f"<td>{row.tumour_ml:.1f}<td>{scan.dice:.2f}<td>{row.seconds:.1f}"
        )
    return f"<div class=scroll><table><tr>{head}{''.join(lines)}</table></div>"


def _overlays(scans: Sequence[Shown]) -> Figure:
    columns = min(4, len(scans))
    rows = -(-len(scans) // columns)
    figure = Figure(figsize=(2.9 * columns, 3.2 * rows), layout="constrained", facecolor="black")
    for index, scan in enumerate(scans):
        axes = figure.add_subplot(rows, columns, index + 1)
        z = int((scan.truth + scan.mask).sum(axis=(0, 1)).argmax())
        plane = scan.flair[:, :, z].T
        low, high = np.percentile(scan.flair, [1, 99.7])
        axes.imshow(plane, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="bilinear")
        for mask, colour in ((scan.truth, TRUE), (scan.mask, FOUND)):
            if mask[:, :, z].any():
                axes.contour(mask[:, :, z].T, levels=[0.5], colors=[colour], linewidths=1.4)
        grade = f"{scan.row.grade or 'failed'} (true {scan.grade})"
        axes.set_title(f"{scan.row.patient}\n{grade}, Dice {scan.dice:.2f}", fontsize=8, color="white")
        axes.set_axis_off()
    return figure


def _feature_maps(real: Mapping[str, NDArray[Any]], synthetic: Mapping[str, NDArray[Any]]) -> Figure:
    classes = [label for label in synthetic if label in real]
    figure = Figure(figsize=(10, 5.2 * max(1, len(classes))), layout="constrained")
    for row, label in enumerate(classes):
        strongest = np.sort(real[label].astype(np.float32).mean(axis=(1, 2)).argsort()[::-1][:MAPS])
        chosen = [real[label][strongest], synthetic[label][0][strongest]]
        top = float(np.percentile(np.stack(chosen).astype(np.float32), 99.5)) or 1.0
        for column, (title, maps) in enumerate(zip(("real", "synthetic"), chosen, strict=True)):
            axes = figure.add_subplot(len(classes), 2, 2 * row + column + 1)
            upright = maps.astype(np.float32).transpose(0, 2, 1)[:, ::-1]  # rows run to the right, as scans are shown
            axes.imshow(_mosaic(upright), cmap="gray", vmin=0, vmax=top, interpolation="nearest")
            axes.set_title(f"{label}, {title}", fontsize=11)
            axes.set_axis_off()
    return figure


def _mosaic(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Maps [n, H, W] in a square grid with gaps."""
    side = int(np.ceil(np.sqrt(len(maps))))
    height, width = maps.shape[1] + 1, maps.shape[2] + 1
    grid = np.full((side * height - 1, side * width - 1), np.nan, dtype=np.float32)
    for index, each in enumerate(maps):
        y, x = index // side * height, index % side * width
        grid[y : y + height - 1, x : x + width - 1] = each
    return grid


def _figure(figure: Figure, caption: str) -> str:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    data = base64.b64encode(png.getvalue()).decode()
    return f"<figure><img alt='' src='data:image/png;base64,{data}'><figcaption>{caption}</figcaption></figure>"

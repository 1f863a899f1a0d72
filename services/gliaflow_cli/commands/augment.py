"""``gliaflow augment``: a picture of what augmentations do to a slice, cut as for the profile ``paper``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gliaflow_plugins.augmentations.pipeline import (
    PAPER_AUGMENTATIONS,
    AugmentationPipeline,
    parse_named,
    read_augmentations,
)
from gliaflow_plugins.registry import load_registry
from gliaflow_preprocessor.nifti import NiftiError, read_nifti
from gliaflow_preprocessor.slices import UnusableScan, prepare, prepare_mask
from gliaflow_runtime.bundle.manifest import InputSpec
from gliaflow_runtime.errors import UsageError
from rich.console import Console

COLUMNS = 4
INCHES = 2.4  # of a slice


def draw_augmented(
    scan: Path,
    out: Path,
    augmentations: Sequence[str],
    pipeline: Path | None,
    mask: Path | None,
    channel: str | None,
    slice_number: int | None,
    count: int,
    seed: int,
    console: Console,
) -> None:
    """``gliaflow augment``. Raises UsageError: a file cannot be used, or matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UsageError("this needs matplotlib: pip install 'gliaflow[report]'") from None
    if out.suffix != ".png":
        raise UsageError(f"--out: {out} is no .png")
    steps = [*(read_augmentations(pipeline) if pipeline else []), *map(parse_named, augmentations)]
    augment = AugmentationPipeline(load_registry(), steps or PAPER_AUGMENTATIONS)
    try:
        prepared = prepare(*read_nifti(scan.read_bytes(), channel), InputSpec())
        truth = np.zeros(prepared.image.shape, np.uint8)
        if mask is not None:
            truth = prepare_mask(read_nifti(mask.read_bytes())[0], prepared.geometry)
    except (NiftiError, UnusableScan) as error:
        raise UsageError(f"{scan}: {error}") from None
    numbers = prepared.geometry.slices
    if slice_number is not None and slice_number not in numbers:
        raise UsageError(f"--slice: {slice_number} is not one of {numbers[0]} to {numbers[-1]}")
    fullest = int(np.argmax(truth.sum(axis=(1, 2)) if truth.any() else (prepared.image > 0).sum(axis=(1, 2))))
    place = fullest if slice_number is None else numbers.index(slice_number)
    image, tumour = prepared.image[place], truth[place]
    draws = [augment(image, tumour, np.random.default_rng([seed, number])) for number in range(count)]
    shown = [("as it is", image, tumour), *((f"draw {number}", *draw) for number, draw in enumerate(draws, 1))]
    rows = -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(INCHES * COLUMNS, (INCHES + 0.25) * rows), facecolor="white", layout="constrained")
    figure.suptitle(", ".join(name for name, _ in steps or PAPER_AUGMENTATIONS), fontsize=9)
    for axes, (title, pixels, outline) in zip(figure.subplots(rows, COLUMNS, squeeze=False).flat, shown, strict=False):
        axes.imshow(pixels.T, cmap="gray", origin="lower", vmin=0, vmax=float(np.percentile(image, 99.8)))
        if outline.any():
            axes.contour(outline.T > 0, [0.5], colors="#D55E00", linewidths=1)
        axes.set_title(title, fontsize=8)
    for axes in figure.axes:
        axes.set_axis_off()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    console.print(f"slice {numbers[place]} of {scan.name}: {out}", soft_wrap=True)

"""``gliaflow augment``: a picture of augmented slices, cut as for the profile ``paper``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gliaflow_cli import flags
from gliaflow_cli.terminal import console

COLUMNS = 4
INCHES = 2.4  # of a slice


def augment(
    scan: Annotated[Path, typer.Argument(help="A scan (NIfTI).")],
    out: Annotated[Path, typer.Option("--out", help="A PNG: the original slice, and the slice after each draw.")],
    augmentation: Annotated[
        list[str] | None,
        typer.Option(
            "--augmentation",
            help="Name (gliaflow plugins -v lists them), name:option=value,…, a TOML file, scanner (all that a scanner "
            "does) or paper (Table 1); repeatable, in order. Such as motion, spikes:number=1 or "
            "rician-noise:deviation=0.2.",
        ),
    ] = None,
    pipeline: Annotated[Path | None, typer.Option("--pipeline", help="A TOML file of augmentations.")] = None,
    mask: Annotated[Path | None, typer.Option("--mask", help="Its mask: the outline is drawn too.")] = None,
    channel: flags.Channel = None,
    slice_number: Annotated[
        int | None, typer.Option("--slice", help="Which slice; default: the one with most tumour, or most head.")
    ] = None,
    count: Annotated[int, typer.Option("--count", help="Number of draws.", min=1, max=64)] = 7,
    seed: flags.Seed = 0,
) -> None:
    """Draw augmented slices of a scan. Without --augmentation and --pipeline: the paper's Table 1.

    Pictures follow the radiological convention: the patient's left (L) is at the right.
    """
    import numpy as np
    from gliaflow_pages.drawing import require_matplotlib
    from gliaflow_pages.slices import mark_sides, upright
    from gliaflow_plugins.augmentations.pipeline import (
        PAPER_AUGMENTATIONS,
        AugmentationPipeline,
        parse_augmentations,
        read_augmentations,
    )
    from gliaflow_plugins.registry import load_registry
    from gliaflow_preprocessor.masks import MaskError, cut_mask
    from gliaflow_preprocessor.nifti import NiftiError, read_nifti
    from gliaflow_preprocessor.slices import UnusableScan, prepare
    from gliaflow_runtime.bundle.manifest import InputSpec
    from gliaflow_runtime.errors import UsageError

    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcdefaults()  # nothing from a matplotlibrc in the working folder

    if out.suffix != ".png":
        raise UsageError(f"--out: {out} is not a .png: the picture is a PNG, so give it a name that ends so")
    steps = [*(read_augmentations(pipeline) if pipeline else []), *parse_augmentations(augmentation or ())]
    apply = AugmentationPipeline(load_registry(), steps or PAPER_AUGMENTATIONS)
    try:
        prepared = prepare(*read_nifti(_bytes("SCAN", scan), channel), InputSpec())
    except (NiftiError, UnusableScan) as error:
        raise UsageError(f"{scan}: {error}") from None
    truth = np.zeros(prepared.image.shape, np.uint8)
    if mask is not None:
        try:
            truth, _ = cut_mask(_bytes("--mask", mask), prepared.geometry, prepared.image)
        except (NiftiError, MaskError) as error:
            raise UsageError(f"{mask}: {error}") from None
    numbers = prepared.geometry.slices
    if slice_number is not None and slice_number not in numbers:
        raise UsageError(f"--slice: {slice_number} is not one of {numbers[0]} to {numbers[-1]}")
    fullest = int(np.argmax(truth.sum(axis=(1, 2)) if truth.any() else (prepared.image > 0).sum(axis=(1, 2))))
    place = fullest if slice_number is None else numbers.index(slice_number)
    image, tumour = prepared.image[place], truth[place]
    draws = [apply(image, tumour, np.random.default_rng([seed, number])) for number in range(count)]
    shown = [("original", image, tumour), *((f"draw {number}", *draw) for number, draw in enumerate(draws, 1))]
    rows = -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(INCHES * COLUMNS, (INCHES + 0.25) * rows), facecolor="white", layout="constrained")
    figure.suptitle(", ".join(each.name for each, _ in apply.augmentations), fontsize=9)
    for axes, (title, pixels, outline) in zip(figure.subplots(rows, COLUMNS, squeeze=False).flat, shown, strict=False):
        axes.imshow(upright(pixels), cmap="gray", vmin=0, vmax=float(np.percentile(image, 99.8)))
        if outline.any():
            axes.contour(upright(outline) > 0, [0.5], colors="#D55E00", linewidths=1)
        axes.set_title(title, fontsize=8)
    mark_sides(figure.axes[0])  # of the original alone: a draw may be mirrored or turned
    for axes in figure.axes:
        axes.set_axis_off()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    names = ", ".join(each.name for each, _ in apply.augmentations)
    of_tumour = f", with {int(tumour.astype(bool).sum())} pixels of tumour" if mask is not None else ""
    console.print(
        f"{out}: slice {numbers[place]} of {scan.name}{of_tumour}, and {count} draws of: {names}", soft_wrap=True
    )


def _bytes(what: str, path: Path) -> bytes:
    """The content of a file that the user named as ``what``."""
    from gliaflow_runtime.errors import UsageError

    try:
        return path.read_bytes()
    except IsADirectoryError:
        raise UsageError(f"{what} {path}: a folder; name one NIfTI file (.nii or .nii.gz) in it") from None
    except OSError as error:
        raise UsageError(f"{what} {path}: {(error.strerror or str(error)).lower()}") from None

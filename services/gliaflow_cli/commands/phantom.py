"""``gliaflow phantom``: a cohort of drawings of scans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from gliaflow_runtime.errors import UsageError

from gliaflow_cli import flags
from gliaflow_cli.terminal import console, progress_bar


def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write the cohort to (BraTS 2018 layout).")],
    patients: Annotated[int, typer.Option("--patients", help="Number of patients.", min=1)] = 20,
    seed: flags.PhantomSeed = 0,
    hgg_share: Annotated[float, typer.Option("--hgg-share", help="Share of high grade.", min=0, max=1)] = 0.6,
    sequences: Annotated[
        str, typer.Option("--sequences", help="flair, or flair with some of t1, t1ce, t2, separated by commas.")
    ] = "flair",
) -> None:
    """Write a cohort of phantom scans with masks and grades.

    A phantom is a drawing: an average brain, bent at random, in which a tumour has grown. It is not a patient.

    An interrupted command resumes. A later one adds patients or sequences to a cohort of the same seed and share;
    another cohort needs another folder.
    """
    from gliaflow_phantoms.cohort import write_cohort
    from gliaflow_phantoms.phantom import check_sequences

    names = tuple(dict.fromkeys(name.strip().casefold() for name in sequences.split(",")))
    try:
        check_sequences(names)
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    with progress_bar() as bar:
        task = bar.add_task("phantoms", total=patients)
        write_cohort(out, patients, seed, hgg_share, names, progress=lambda done, _: bar.update(task, completed=done))
    console.print(f"{patients} patients: {out}")

"""``gliaflow phantom``: a cohort of drawings of scans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gliaflow_cli import flags
from gliaflow_cli.terminal import console, progress_bar


def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write the cohort to (BraTS 2018 layout).")],
    patients: Annotated[int, typer.Option("--patients", help="Number of patients.", min=1)] = 20,
    seed: flags.PhantomSeed = 0,
    hgg_share: Annotated[float, typer.Option("--hgg-share", help="Share of high grade.", min=0, max=1)] = 0.6,
) -> None:
    """Write a cohort of phantom scans with masks and grades."""
    from gliaflow_phantoms.phantom import write_cohort

    with progress_bar() as bar:
        task = bar.add_task("phantoms", total=patients)
        write_cohort(
            out, patients, seed, hgg_share=hgg_share, progress=lambda done, _: bar.update(task, completed=done)
        )
    console.print(f"{patients} patients: {out}")

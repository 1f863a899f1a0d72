"""``gliaflow generate``: synthetic features of one class, in a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from gliaflow_cli import flags
from gliaflow_cli.interrupted import interruptible
from gliaflow_cli.terminal import console, progress_bar, waiting_printer

TIMEOUT_S = 600.0  # no answer for so long means that no generator runs


@interruptible("nothing was written; run the same command again")
def generate(
    grade: Annotated[str, typer.Option("--grade", help="Class of the features: HGG or LGG.")],
    count: Annotated[int, typer.Option("--count", metavar="<int>", help="Number of features.", min=1)],
    out: Annotated[
        Path, typer.Option("--out", help="A .safetensors or .npz file for features [N, C, H, W] and label [N].")
    ],
    seed: flags.Seed = 0,
    generator: flags.Served = None,
    broker: flags.Broker = None,
    bundle: flags.Bundle = None,
) -> None:
    """Write synthetic features of one class: only those that the critic assigns to it.

    A .npz has the arrays features and label, and the class, bundle, generator, tap and seed as texts.
    """
    import numpy as np
    from gliaflow.opening import open_flow
    from gliaflow.scans import check_grade
    from gliaflow.synthetic_file import about, labels, write_npz
    from gliaflow_runtime.errors import UsageError
    from gliaflow_runtime.files import whole_file
    from gliaflow_runtime.settings import load_settings
    from safetensors.numpy import save_file

    grade = check_grade(grade)
    if out.suffix not in (".safetensors", ".npz") or out.is_dir():
        raise UsageError(f"--out: {out}: name a file that ends in .safetensors or .npz")
    if os.path.lexists(out):
        raise UsageError(f"--out: {out} exists already; name another file, or delete it")
    settings = load_settings({"broker": broker, "bundle": bundle, "generator": generator})
    with progress_bar() as bar, open_flow(settings, TIMEOUT_S, waiting_printer(bar)) as flow:
        task = bar.add_task(f"{grade} features", total=count)
        parts = flow.generate_parts(grade, count, seed=seed, progress=lambda done: bar.update(task, completed=done))
    first = parts[0]
    features = np.concatenate([part.features for part in parts])
    texts = about(grade, first.bundle, first.generator, first.tap, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as part:
        if out.suffix == ".npz":
            with part.open("xb") as file:  # numpy appends .npz to a name
                write_npz(file, features, grade, texts)
        else:
            save_file({"features": features, "label": labels(len(features), grade)}, part, texts)
    console.print(
        f"{len(features)} {grade} features {features.shape[1:]} by {first.generator} of {first.bundle}: {out}",
        soft_wrap=True,
    )

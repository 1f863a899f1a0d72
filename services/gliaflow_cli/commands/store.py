"""``gliaflow store``: what the trainer has recorded, by submission, and removal of a submission or a scan."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from gliaflow_cli.terminal import console


def store(
    folder: Annotated[
        Path | None, typer.Argument(help="The feature store; default: GLIAFLOW_STORE.", metavar="STORE")
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option("--remove", help="Id of a submission or of a scan to remove; repeatable.", metavar="ID"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before removing.")] = False,
) -> None:
    """List the trainer's feature store by submission, or remove scans from it."""
    from gliaflow_runtime.errors import UsageError
    from gliaflow_runtime.folders import become_owner
    from gliaflow_runtime.settings import load_settings
    from gliaflow_store.part_file import StoreError
    from gliaflow_store.submissions import remove_scans, stored_submissions

    folder = folder or load_settings().store
    try:
        if folder.is_dir():
            become_owner(folder)  # in a container that was started as root
        submissions = stored_submissions(folder)
    except StoreError as error:
        raise UsageError(str(error)) from None
    chosen = set(remove or ())
    for each in submissions:
        if chosen and each.id not in chosen and not chosen & each.labels.keys():
            continue
        counts = ", ".join(f"{count} {label}" for label, count in sorted(Counter(each.labels.values()).items()))
        cohorts = ", ".join(sorted(filter(None, each.cohorts))) or "none"
        console.print(
            f"{each.id or 'no submission':32}  {each.recorded:25}  {len(each.labels)} scans ({counts}) of "
            f"{len(each.patients)} patients, cohort {cohorts}",
            soft_wrap=True,
        )
    if not chosen:
        console.print(f"{len(submissions)} submissions in {folder}")
        return
    count = sum(1 for each in submissions for scan in each.labels if each.id in chosen or scan in chosen)
    if not count:
        raise UsageError(f"--remove: no scan or submission in {folder} has this id")
    if not yes:
        typer.confirm(f"remove {count} scans from {folder}?", abort=True)
    console.print(f"{len(remove_scans(folder, sorted(chosen)))} scans removed from {folder}")

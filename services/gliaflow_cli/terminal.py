"""What all commands print with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from gliaflow_plugins.cohorts.walk import LeftOut
    from gliaflow_plugins.contracts import Cohort
    from rich.progress import Progress

console = Console(markup=False, highlight=False)  # file names and reasons are not markup


def progress_bar() -> Progress:
    """A bar with count, time taken and time left.

    While it is shown, ``console.print`` and ``bar.console.print`` print above it, and each stream keeps its
    destination: the bar is on stderr if stdout is a file or a pipe.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console if console.is_terminal else Console(stderr=True, markup=False, highlight=False),
        redirect_stdout=console.is_terminal,
        redirect_stderr=sys.stderr.isatty(),
    )


def print_problems(cohort: Cohort) -> None:
    """Print how a cohort's tables were read, and its problems, one per line."""
    for table in cohort.tables:
        console.print(f"table     {table}", soft_wrap=True)
    for problem in cohort.problems:
        console.print(f"problem   {problem}", style="yellow", soft_wrap=True)


def print_left_out(left_out: Sequence[LeftOut], verbose: bool, how: str = "-v lists them") -> None:
    """Print what was left out, counted by kind, and ``how`` to list it; with ``verbose`` each file and the reason."""
    from gliaflow_plugins.cohorts.scan_files import summary

    lines = [f"{each.path}: {each.why}" for each in left_out]
    if left_out and not verbose:
        counts, *rest = summary(left_out)
        lines = [f"{counts} ({how})", *rest]
    for line in lines:
        console.print(f"left out  {line}".encode("utf-8", "replace").decode(), style="yellow", soft_wrap=True)


def print_leaks(leaks: Sequence[str]) -> None:
    """Print a cohort's leaks, one per line."""
    for leak in leaks:
        console.print(f"leak      {leak}", style="red", soft_wrap=True)

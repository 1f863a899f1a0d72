"""What all commands print with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from gliaflow_plugins.contracts import Cohort
    from rich.progress import Progress

console = Console(markup=False, highlight=False)  # file names and reasons are not markup


def progress_bar() -> Progress:
    """A bar with count, time taken and time left, on stderr."""
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
        console=Console(stderr=True, markup=False, highlight=False),
    )


def print_problems(cohort: Cohort) -> None:
    """Print the problems that a cohort's reader found, one per line."""
    for problem in cohort.problems:
        console.print(f"problem   {problem}", style="yellow", soft_wrap=True)

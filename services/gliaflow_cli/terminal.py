"""What all commands print with. Texts of files and messages reach the terminal through here alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from gliaflow_runtime.ending import INTERRUPTED
from gliaflow_runtime.visible import visible
from rich.console import Console
from typer import Exit
from typer.core import TyperGroup

if TYPE_CHECKING:
    from gliaflow_plugins.contracts import Cohort
    from gliaflow_plugins.left_out import LeftOut
    from rich.progress import Progress, Task
    from rich.text import Text


class Terminal(Console):
    """A console whose strings are texts: each is one line, without markup, emoji codes or commands to the terminal.

    For several lines, print several strings with ``sep="\\n"``.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, highlight=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich, which turns each string into a text here: what is printed, the cells of tables, live displays."""
        return super().render_str(visible(text), **options)


console = Terminal()


def print_error(error: Exception, text: str) -> None:
    """Print an error's text on stderr, and each of its notes on a line of its own."""
    for line in (f"gliaflow: {text}", *getattr(error, "__notes__", ())):
        print(visible(line), file=sys.stderr)


class Commands(TyperGroup):
    """Typer's group of commands. Its errors name what the user or the shell wrote: a file may be named ``--\\x1b``."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        """As typer: parse the command line."""
        with _visible_errors():
            return super().make_context(*args, **options)

    def invoke(self, *args: Any) -> Any:
        """As typer: run the command."""
        with _visible_errors():
            return super().invoke(*args)


@contextmanager
def _visible_errors() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:  # the command itself did not catch it
        sys.stderr.write("gliaflow: interrupted\n")
        raise Exit(INTERRUPTED) from None
    except Exception as error:
        if isinstance(message := getattr(error, "message", None), str):  # typer's own errors
            with suppress(AttributeError):  # jinja2's cannot be changed
                error.message = visible(message)  # type: ignore[attr-defined]
        raise


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

    class Description(TextColumn):
        """The task's description, as the console prints it."""

        def render(self, task: Task) -> Text:
            return console.render_str(task.description)

    return Progress(
        Description(""),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console if console.is_terminal else Terminal(stderr=True),
        redirect_stdout=console.is_terminal,
        redirect_stderr=sys.stderr.isatty(),
    )


def searching() -> AbstractContextManager[object]:
    """Shows on a terminal that files are searched: the headers of many DICOM files take seconds."""
    return console.status("searching for scans")


def starting(what: str) -> AbstractContextManager[object]:
    """Says on stderr what is done before the first bar: loading PyTorch takes seconds, on a busy machine many."""
    stderr = Terminal(stderr=True)
    if stderr.is_terminal:
        return stderr.status(what)
    stderr.print(what, soft_wrap=True)
    return nullcontext()


def waiting_printer(bar: Progress) -> Callable[[str], None]:
    """Prints above the bar what a flow waits for (``gliaflow.open``)."""
    return lambda reason: bar.console.print(f"{'waiting':<10} {reason}", style="yellow", soft_wrap=True)


def print_problems(cohort: Cohort) -> None:
    """Print how a cohort's tables were read, and its problems, one per line."""
    for table in cohort.tables:
        console.print(f"table     {table}", soft_wrap=True)
    print_problem_lines(cohort.problems)


def print_problem_lines(problems: Sequence[str]) -> None:
    """Print problems, one per line."""
    for problem in problems:
        console.print(f"problem   {problem}", style="yellow", soft_wrap=True)


def print_sequences(scans: Mapping[str, Collection[str]], wanted: Sequence[str] = ()) -> None:
    """Print how many scans have each sequence, and which scans lack one that others have, or that is wanted.

    ``scans``: the sequences beside the FLAIR of each scan, by its name.
    """
    from gliaflow_plugins.cohorts.tables import few
    from gliaflow_plugins.sequence_names import OTHERS

    counts, lacking = [f"flair {len(scans)}"], []
    for name in OTHERS:
        without = [scan for scan, has in scans.items() if name not in has]
        if name in wanted or len(without) < len(scans):
            counts.append(f"{name} {len(scans) - len(without)}")
            lacking += [f"without {name}: {few(without)}"] if without else []
    console.print(f"sequences {'; '.join([', '.join(counts), *lacking])}", soft_wrap=True)


def print_left_out(left_out: Sequence[LeftOut], verbose: bool, how: str = "-v lists them") -> None:
    """Print what was left out, counted by kind, and ``how`` to list it; with ``verbose`` each file and the reason."""
    from gliaflow_plugins.cohorts.scan_files import summary

    lines = [f"{each.path}: {each.why}" for each in left_out]
    if left_out and not verbose:
        counts, *rest = summary(left_out)
        lines = [f"{counts} ({how})", *rest]
    for line in lines:
        console.print(f"left out  {line}", style="yellow", soft_wrap=True)


def print_leaks(leaks: Sequence[str]) -> None:
    """Print a cohort's leaks, one per line."""
    for leak in leaks:
        console.print(f"leak      {leak}", style="red", soft_wrap=True)

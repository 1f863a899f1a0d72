"""What a command prints after Ctrl-C or SIGTERM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from gliaflow_runtime.ending import INTERRUPTED

from gliaflow_cli.terminal import Terminal


@contextmanager
def until_stopped() -> Iterator[None]:
    """For a service: after Ctrl-C or SIGTERM, also while Python imports it, end with exit code 0."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit from None


@contextmanager
def interruptible(next_step: str | Callable[[], str]) -> Iterator[None]:
    """For a command: after Ctrl-C or SIGTERM, print ``next_step`` on stderr and end with exit code 130.

    ``next_step``: a text, or what gives it once the command was interrupted.
    """
    try:
        yield
    except KeyboardInterrupt:
        text = next_step if isinstance(next_step, str) else next_step()
        Terminal(stderr=True).print(f"interrupted: {text}", style="yellow", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None

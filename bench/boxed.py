"""A part of a benchmark in a process of its own, for a limited time."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

Row = tuple[str, float | str, str]  # what, value, unit


def run(section: Callable[[], Iterator[Row]], seconds: float) -> tuple[list[Row], str]:
    """The rows of a section, and why it has no more: empty if it is complete.

    The process is forked, so that libraries are imported once. The caller must use no device and no thread before.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(section, theirs), daemon=True)
    process.start()
    theirs.close()
    rows: list[Row] = []
    ends = time.monotonic() + seconds
    reason = f"stopped after {seconds:g} s"
    try:
        while ours.poll(max(0.0, ends - time.monotonic())):
            got = ours.recv()
            if not isinstance(got, tuple):
                reason = got or ""
                break
            rows.append(got)
    except EOFError:
        process.join()
        reason = f"its process ended with code {process.exitcode}"
    process.kill()
    process.join()
    return rows, reason


def _send(section: Callable[[], Iterator[Row]], pipe: Connection) -> None:
    """Run a section and send its rows, then None, or the text of the error."""
    try:
        for row in section():
            pipe.send(row)
        pipe.send(None)
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {str(error)[:500]}")

"""A call in a process of its own, with limits: if third-party code crashes, hangs or takes all memory, only it ends."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from gliaflow_runtime.logs import configure_logging
from gliaflow_trainer.processes import end_with_parent

from gliaflow_evaluation.progress import report, send_to

CHECK_S = 0.05  # between two checks of the memory
GIB = 2**30


class ProcessEnded(Exception):
    """The process crashed, or was ended because it passed a limit. The text says why."""


@dataclass(frozen=True)
class Limits:
    """``seconds``: the longest call. ``memory_gib``: the most memory of the process; None: no limit."""

    seconds: float
    memory_gib: float | None = None


def can_measure_memory() -> bool:
    """Whether this system reports the memory of a process (Linux)."""
    return Path("/proc/self/status").exists()


def call_in_own_process(call: Callable[..., Any], arguments: tuple[Any, ...], limits: Limits) -> None:
    """Call a function of a module. Its reports (``progress``) arrive here.

    Raises
    ------
    ProcessEnded: the process crashed, or it passed a limit.
    """
    context = multiprocessing.get_context("spawn")
    reports, end = context.Pipe(duplex=False)
    process = context.Process(target=_called, args=[end, call, arguments])
    process.start()
    end.close()
    deadline = time.monotonic() + limits.seconds
    reason = ""
    try:
        while process.exitcode is None and not reason:
            _forward(reports, process.sentinel)
            used = _memory(process.pid) if limits.memory_gib is not None and process.pid else 0
            if time.monotonic() > deadline:
                reason = f"took longer than {limits.seconds:g} s"
            elif limits.memory_gib is not None and used > limits.memory_gib * GIB:
                reason = f"took {used / GIB:.2g} GiB of memory, more than the limit of {limits.memory_gib:g} GiB"
    finally:  # also when the caller's task is cancelled, which a report finds out
        if process.exitcode is None:
            process.kill()
            process.join()
    if reason:
        raise ProcessEnded(f"its fit {reason}, and was ended")
    if process.exitcode:
        how = f"killed by {signal.Signals(-process.exitcode).name}" if process.exitcode < 0 else "ended"
        raise ProcessEnded(f"its process was {how}: it crashed, or needed more memory than there is")


def _forward(reports: Connection, ended: int) -> None:
    """Wait a moment for reports or the end of the process, and pass the reports on."""
    ready = wait([ended] if reports.closed else [reports, ended], CHECK_S)
    if reports in ready:
        try:
            each = reports.recv()
            report(each.row, each.step, each.done, each.total)
        except EOFError:
            reports.close()


def _memory(process: int) -> int:
    """The bytes of memory that a process has for itself. Pages of files that it reads do not count."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:  # it has ended
        return 0
    return 1024 * sum(map(int, re.findall(r"^Rss(?:Anon|Shmem):\s*(\d+) kB", status, re.M)))


def _called(end: Connection, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    configure_logging("error", "auto")
    send_to(end.send)
    call(*arguments)
    os._exit(0)  # threads of third-party code may still run

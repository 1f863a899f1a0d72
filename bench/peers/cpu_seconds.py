"""CPU seconds of processes and all that they started (Linux)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def family(roots: Iterable[int], but: int = 0) -> dict[int, float]:
    """CPU seconds, with those of ended children, of each process and its descendants, by process id.

    ``but``: a process that is left out, with its descendants.
    """
    children: dict[int, list[int]] = {}
    seconds: dict[int, float] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            pid = int(folder.name)
            children.setdefault(int(fields[1]), []).append(pid)
            seconds[pid] = sum(map(int, fields[11:15])) / TICKS
    found: dict[int, float] = {}
    open_pids = [pid for pid in roots if pid in seconds]
    while open_pids:
        pid = open_pids.pop()
        if pid != but:
            found[pid] = seconds[pid]
            open_pids += children.get(pid, [])
    return found


def cpu_seconds(roots: Iterable[int], but: int = 0) -> float:
    """The sum over ``family``."""
    return sum(family(roots, but).values())


def send_signal(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to those of the processes that still run."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

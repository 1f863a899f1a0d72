"""How far the folds are. Their processes report it, and the command shows it: a row of the bar for each fold and seed.

Without a terminal, the command prints a line every ten seconds instead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from typing import Any

from rich.progress import Progress, TaskID

EVERY_S = 10.0  # between lines, without a terminal


@dataclass(frozen=True)
class Report:
    """A fold has done ``done`` of ``total`` parts of a ``step``; None: ``row`` is finished."""

    row: str
    step: str
    done: int
    total: int | None


Send = Callable[[Report], None]
_sends: list[Send] = []  # where this process sends its reports


def send_to(send: Send) -> None:
    """Send this process's reports here."""
    _sends[:] = [send]


def report(row: str, step: str, done: int, total: int | None) -> None:
    """Report where a fold is. Without ``send_to``, nothing is shown."""
    for send in _sends:
        send(Report(row, step, done, total))


class ReportingBar(Progress):
    """A bar whose rows are reported as the steps of a fold's row."""

    def __init__(self, row: str) -> None:
        super().__init__(disable=True)
        self._row = row

    def add_task(self, *args: Any, **options: Any) -> TaskID:
        number = super().add_task(*args, **options)
        self._report(number)
        return number

    def update(self, task_id: TaskID, *args: Any, **options: Any) -> None:
        super().update(task_id, *args, **options)
        self._report(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._report(task_id)

    def _report(self, number: TaskID) -> None:
        task = self._tasks[number]
        report(self._row, task.description, int(task.completed), None if task.total is None else int(task.total))


class Rows:
    """Shows reports: call it with each."""

    def __init__(self, bar: Progress) -> None:
        self._bar, self._rows, self._printed = bar, dict[str, TaskID](), time.monotonic()

    def __len__(self) -> int:
        """How many rows are shown."""
        return len(self._rows)

    def __call__(self, report: Report) -> None:
        bar, text = self._bar, f"{report.row}: {report.step}"
        if not report.step:
            if report.row in self._rows:
                bar.remove_task(self._rows.pop(report.row))
        elif report.row in self._rows:
            bar.update(self._rows[report.row], description=text, completed=report.done, total=report.total)
        else:
            self._rows[report.row] = bar.add_task(text, completed=report.done, total=report.total)
        now = time.monotonic()
        if report.step and not (bar.disable or bar.console.is_terminal) and now - self._printed > EVERY_S:
            self._printed = now
            bar.console.print(f"{text} {report.done}/{'?' if report.total is None else report.total}", soft_wrap=True)


@dataclass(frozen=True)
class RunProgress:
    """The bar's first row, which counts tasks, and the rows below it, one for each task in work."""

    bar: Progress
    row: TaskID
    rows: Rows

    def workers(self, count: int, otherwise: str) -> None:
        """Show how many workers there are. ``otherwise``: what to do if there are none, printed once."""
        text = f"folds and seeds, {len(self.rows)} running on {count} workers" if count else "waiting for workers"
        task = next(task for task in self.bar.tasks if task.id == self.row)
        if not count and task.description != text:
            self.bar.console.print(otherwise, style="yellow", soft_wrap=True)
        self.bar.update(self.row, description=text)


@contextmanager
def received(queue: SimpleQueue[Report | None], rows: Rows) -> Iterator[None]:
    """Show the reports that other processes put into the queue."""

    def show() -> None:
        while (each := queue.get()) is not None:
            rows(each)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    yield
    queue.put(None)  # not after an error: a process that was ended may have left the queue locked
    thread.join(5)

"""Who runs the tasks of an evaluation: this process, processes of this machine, or a Dask cluster (``cluster``).

All of them run the same tasks, so the figures do not depend on who did.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from typing import Any, Protocol

from gliaflow_plugins.contracts import PluginError
from gliaflow_runtime.logs import configure_logging
from gliaflow_trainer.processes import end_with_parent

from gliaflow_evaluation.progress import Report, Rows, received, send_to


@dataclass(frozen=True)
class Task:
    """A call of a function of a module. Its results are files, so a task that is run again costs only time."""

    name: str  # for people: ``fold 1, seed 0``
    call: Callable[..., Any]
    arguments: tuple[Any, ...]


class TaskLost(Exception):
    """Every worker that ran a task ended. The text names the task and the reason."""


class Runner(Protocol):
    """Runs tasks, in any order."""

    def submit(self, task: Task) -> None:
        """Run this task, now or later."""

    def next(self) -> tuple[Task, Any]:
        """Wait for the next task that ends. Returns it with its result. Raises what the task raised, or TaskLost."""


def run_all(runner: Runner, tasks: Iterable[Task], then: Callable[[Task, Any], Iterable[Task]]) -> None:
    """Run the tasks and, after each, those that ``then`` returns for it and its result.

    Raises
    ------
    PluginError: workers ended while they ran a task. All tasks that do not need it were run before.
    """
    running, lost = 0, []
    waiting = deque(tasks)
    while waiting or running:
        while waiting:
            runner.submit(waiting.popleft())
            running += 1
        try:
            task, result = runner.next()
        except TaskLost as error:
            lost.append(str(error))
        else:
            waiting.extend(then(task, result))
        running -= 1
    if lost:
        raise PluginError(f"{'; '.join(lost)}. All else is kept: the same command does what is missing")


class ThisProcess:
    """Runs one task after the other, here."""

    def __init__(self, rows: Rows) -> None:
        send_to(rows)
        self._tasks: deque[Task] = deque()

    def submit(self, task: Task) -> None:
        self._tasks.append(task)

    def next(self) -> tuple[Task, Any]:
        task = self._tasks.popleft()
        return task, task.call(*task.arguments)


class _Processes:
    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool
        self._tasks: dict[Future[Any], Task] = {}

    def submit(self, task: Task) -> None:
        self._tasks[self._pool.submit(task.call, *task.arguments)] = task

    def next(self) -> tuple[Task, Any]:
        done = next(iter(wait(self._tasks, return_when=FIRST_COMPLETED).done))
        return self._tasks.pop(done), done.result()


@contextmanager
def processes(count: int, rows: Rows) -> Iterator[Runner]:
    """Processes of this machine, for the block.

    Raises
    ------
    PluginError: a process was killed.
    """
    others, context = set(multiprocessing.active_children()), multiprocessing.get_context("spawn")
    reports: SimpleQueue[Report | None] = context.SimpleQueue()
    with (
        received(reports, rows),
        ProcessPoolExecutor(count, context, initializer=start_process, initargs=(reports,)) as pool,
    ):
        try:
            yield _Processes(pool)
        except BaseException as error:  # do not wait for running fits: their epochs are kept
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                reason = "a process was killed, most likely for lack of memory; run the same command with --jobs 1"
                raise PluginError(reason) from None
            raise


def start_process(reports: SimpleQueue[Report | None]) -> None:
    """The first call in each of ``processes``."""
    configure_logging("error", "auto")
    end_with_parent()
    send_to(reports.put)

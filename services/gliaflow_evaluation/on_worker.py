"""What a Dask worker does: it checks that it may, and runs a task.

The scheduler imports this module too, so it imports neither torch nor what needs it before a task runs.
"""

from __future__ import annotations

import multiprocessing
import pickle
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from distributed import Status, Worker, get_worker
from gliaflow_plugins.contracts import PluginError
from gliaflow_runtime.logs import configure_logging

from gliaflow_evaluation.progress import Report, send_to

if TYPE_CHECKING:
    from gliaflow_evaluation.conditions import Conditions

REPORT_S = 0.5  # between two reports of a step
ENDING = (Status.closing, Status.closed, Status.failed)  # of a worker: its scheduler is lost, or it is being stopped

_good: set[str] = set()  # the runs whose conditions this process has


class TaskCancelled(BaseException):
    """Nobody waits for this task any more. Not an Exception: code that guards against plugins must not catch it."""


def check_worker(conditions: Conditions, dask_worker: Worker) -> tuple[str, list[str]]:
    """The processor of this worker, and why it must not run a task of that run."""
    from gliaflow_evaluation.conditions import processor

    return processor(), list(_problems(conditions, dask_worker))


def run_task(versions: Mapping[str, str], code: str, packed: bytes) -> Any:
    """Run a task of a run that our scheduler sent.

    Parameters
    ----------
    versions, code: see ``Conditions``. Checked first: another gliaflow may not be able to unpickle the rest.
    packed: pickled conditions, topic of reports, call and arguments.

    Raises
    ------
    PluginError: this worker differs from the process that started the run.
    TaskCancelled: nobody waits for the task any more, or this worker ends.
    """
    from gliaflow_evaluation.conditions import other_versions

    worker = get_worker()
    _refuse(worker, other_versions(versions, code))
    conditions, topic, call, arguments = pickle.loads(packed)
    if conditions.run not in _good:
        configure_logging("error", "auto")
        _refuse(worker, _problems(conditions, worker))
        _good.add(conditions.run)
    send_to(_Reports(worker, topic))
    return call(*arguments)


def _refuse(worker: Worker, problems: Iterable[str]) -> None:
    if wrong := list(problems):
        raise PluginError("\n".join(f"worker {worker.address}: {text}" for text in wrong))


def _problems(conditions: Conditions, worker: Worker) -> Iterator[str]:
    from gliaflow_evaluation.conditions import problems

    if worker.state.nthreads != 1:
        yield (
            f"it runs {worker.state.nthreads} tasks in one process, which share a random generator: start it with "
            "--nthreads 1 and a larger --nworkers"
        )
    if conditions.third_party and multiprocessing.current_process().daemon:
        yield (
            "it cannot start a process of its own for an installed generator: start it with "
            "DASK_DISTRIBUTED__WORKER__DAEMON=False"
        )
    yield from problems(conditions)


class _Reports:
    """Sends the reports of a task. Raises TaskCancelled once the task is cancelled or the worker ends."""

    def __init__(self, worker: Worker, topic: str) -> None:
        self._worker, self._topic, self._key = worker, topic, worker.get_current_task()
        self._last, self._sent = ("", ""), 0.0

    def __call__(self, report: Report) -> None:
        task = self._worker.state.tasks.get(self._key)
        if task is None or task.state != "executing" or self._worker.status in ENDING:
            raise TaskCancelled(self._key)
        now, step = time.monotonic(), (report.row, report.step)
        if step == self._last and now - self._sent < REPORT_S:
            return
        self._last, self._sent = step, now
        self._worker.log_event(self._topic, [report.row, report.step, report.done, report.total])

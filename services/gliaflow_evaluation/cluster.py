"""A Dask cluster runs the tasks of an evaluation. Only this module and ``on_worker`` import Dask.

Scheduler and workers are anybody's: ``dask scheduler`` and ``dask worker``, dask-jobqueue, dask-kubernetes. A task
reads and writes files below ``out/work``, which all of them share, so what travels is names and numbers. If a worker
ends, the scheduler gives its task to another, which resumes from the same files.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from queue import Empty, SimpleQueue
from typing import Any
from uuid import uuid4

from distributed import Client, Future, KilledWorker
from gliaflow_plugins.contracts import PluginError
from gliaflow_runtime.errors import UsageError

from gliaflow_evaluation.conditions import SAME, Conditions, processor
from gliaflow_evaluation.on_worker import TaskCancelled, check_worker, run_task
from gliaflow_evaluation.progress import Report, RunProgress
from gliaflow_evaluation.runners import Runner, Task, TaskLost

CONNECT_S = 10.0
COUNT_S = 2.0  # between two counts of the workers
ATTEMPTS = 10  # of a task whose workers are being stopped


class Cluster:
    """The connection to a scheduler, for the block. See ``connected``."""

    def __init__(self, address: str, client: Client) -> None:
        self.address, self.client = address, client

    @contextmanager
    def runner(self, ours: AbstractContextManager[Conditions], shown: RunProgress) -> Iterator[Runner]:
        """Runs tasks on the workers, for the block. After an error, running tasks end with their next report.

        Workers are checked here, and those that come later by their first task.

        Raises
        ------
        PluginError: workers differ from this process, each named with the remedy.
        """
        with ours as conditions:
            self._check(conditions, shown)
            topic = f"gliaflow-{conditions.run}"
            self.client.subscribe_topic(topic, lambda event: shown.rows(Report(*event[1])))
            tasks = _Tasks(self, conditions, topic, shown)
            try:
                yield tasks
            finally:
                self.client.unsubscribe_topic(topic)
                tasks.cancel()

    def show(self, shown: RunProgress) -> None:
        """Show how many workers there are now."""
        try:
            count = self.client.scheduler_info(n_workers=1)["n_workers"]
        except OSError:  # the connection is lost; the tasks' futures say so if it stays so
            count = 0
        shown.workers(
            count, f"no worker at {self.address}; start some: dask worker {self.address} --nworkers N --nthreads 1"
        )

    def _check(self, conditions: Conditions, shown: RunProgress) -> None:
        found: dict[str, Any] = self.client.run(check_worker, conditions, on_error="return")
        wrong = [
            f"worker {worker}: {text}"
            for worker, one in found.items()
            for text in (one[1] if isinstance(one, tuple) else [_missing(one)])
        ]
        if wrong:
            raise PluginError("\n".join(wrong))
        ours = processor()
        for worker, (theirs, _) in found.items():
            if theirs != ours:
                shown.bar.console.print(
                    f"worker {worker} computes with {theirs}, this machine with {ours}: last digits differ",
                    style="yellow",
                    soft_wrap=True,
                )
        self.show(shown)


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """Connect to the scheduler at ``tcp://host:port`` or ``tls://host:port``, for the block.

    The certificates of ``tls://`` are Dask's own settings: DASK_DISTRIBUTED__COMM__TLS__CA_FILE and so on.

    Raises
    ------
    UsageError: the address has another form, or no scheduler answers there.
    """
    if not re.fullmatch(r"(tcp|tls)://.+:\d+", address):
        raise UsageError(f"--scheduler: {address!r} is not of the form tcp://HOST:PORT or tls://HOST:PORT")
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # what matters, the command says itself
    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False, name="gliaflow-evaluate")
    except (OSError, ValueError, TypeError) as error:  # TypeError: tls:// without a certificate
        reason = " ".join(str(error).split())
        remedy = "start one (dask scheduler), or correct the address or the certificates"
        raise UsageError(f"--scheduler: no Dask scheduler answers at {address}: {reason}; {remedy}") from None
    with client:
        yield Cluster(address, client)


class _Tasks:
    """The tasks of one run on a cluster."""

    def __init__(self, cluster: Cluster, conditions: Conditions, topic: str, shown: RunProgress) -> None:
        self._cluster, self._conditions, self._topic, self._shown = cluster, conditions, topic, shown
        self._open: dict[str, tuple[Future, Task]] = {}
        self._given_back: Counter[str] = Counter()  # by the task's name
        self._ended: SimpleQueue[str] = SimpleQueue()

    def submit(self, task: Task) -> None:
        key = f"{task.name}, {uuid4().hex[:8]}"
        # pickled here, so that the scheduler, which reads what it passes on, need not import torch for it
        ours = self._conditions
        packed = pickle.dumps((ours, self._topic, task.call, task.arguments))
        future = self._cluster.client.submit(run_task, dict(ours.versions), ours.code, packed, key=key, pure=False)
        self._open[key] = future, task
        future.add_done_callback(lambda one: self._ended.put(one.key))

    def next(self) -> tuple[Task, Any]:
        while True:
            future, task = self._next()
            error = future.exception() if future.status == "error" else None
            if not isinstance(error, TaskCancelled):
                return task, self._result(future, task, error)
            # its worker was being stopped, and reported this before it left
            self._given_back[task.name] += 1
            if self._given_back[task.name] == ATTEMPTS:
                raise TaskLost(f"{task.name}: {ATTEMPTS} times its worker was stopped")
            self.submit(task)

    def _next(self) -> tuple[Future, Task]:
        while True:
            try:
                return self._open.pop(self._ended.get(timeout=COUNT_S))
            except Empty:
                self._cluster.show(self._shown)

    def _result(self, future: Future, task: Task, error: BaseException | None) -> Any:
        if future.status == "finished":
            return future.result()
        if error is None:
            raise PluginError(
                f"{self._cluster.address}: the Dask scheduler ended, or somebody cancelled {task.name}; the same "
                "command resumes"
            )
        if isinstance(error, KilledWorker):
            times = error.allowed_failures + 1
            raise TaskLost(
                f"{task.name}: {times} workers ended while they ran it (the last: {error.last_worker.address}), most "
                "likely for lack of memory"
            )
        if isinstance(error, ModuleNotFoundError) or "deserialization" in str(error):
            raise PluginError(_missing(error))
        raise error

    def cancel(self) -> None:
        """Nothing is left that still runs or waits."""
        if self._open and self._cluster.client.status == "running":
            self._cluster.client.cancel([future for future, _ in self._open.values()], force=True)


def _missing(error: object) -> str:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{reason}; scheduler and workers need gliaflow[serve,train,dask] too: {SAME}"

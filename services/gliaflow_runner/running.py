"""Stages that run in threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

import structlog
from gliaflow_runtime import metrics
from gliaflow_runtime.broker.interface import AccessDenied, Broker
from gliaflow_runtime.bundle.load import load_bundle
from gliaflow_runtime.settings import Settings
from gliaflow_runtime.stage import Worker

from gliaflow_runner.broker import open_broker
from gliaflow_runner.services import SERVICES

LEAVE_S = 1.0

log = structlog.get_logger()


class RunningStages:
    """The stages of some services, each in a thread of its own with a broker connection of its own.

    Entering starts them and returns when all of them consume. Leaving drains them; leaving by an exception waits only
    LEAVE_S for the messages in work.

    Parameters
    ----------
    services: names from ``SERVICES``.
    settings: as for the command.
    deadline: a message in work for longer than ``deadline_s`` ends this process.
    killed: how this process's predecessors were killed, which the broker shows.

    Raises
    ------
    BundleError, DeviceError, BrokerError: the stages cannot start.
    """

    def __init__(
        self, services: Sequence[str], settings: Settings, *, deadline: bool = False, killed: str = ""
    ) -> None:
        self.bundle = load_bundle(
            settings.bundle, settings.tap, settings.bundle_sha256, settings.state, settings.bundles
        )
        self.failed = threading.Event()
        self.error: BaseException | None = None
        self._settings = settings = settings.model_copy(update={"roots": list(settings.roots)})
        self._deadline_s = settings.deadline_s if deadline else None
        self._killed = killed
        self._makers = [make for service in services for make in SERVICES[service](self.bundle, settings)]
        self._left_out = 0  # optional stages whose queues the broker does not have
        self._brokers: list[Broker] = []
        self._workers: list[Worker] = []
        self._threads: list[threading.Thread] = []

    def allow(self, roots: Iterable[str]) -> None:
        """Let the preprocessor read scans under these folders or URLs too."""
        known = self._settings.roots
        known.extend(root for root in set(roots) if not any(f"{root}/".startswith(f"{each}/") for each in known))

    def ready(self) -> dict[str, bool]:
        """Whether each stage can work now, by name."""
        state = {worker.stage.name: worker.ready() for worker in list(self._workers)}
        for name, ready in state.items():
            metrics.READY.labels(name).set(ready)
        return state if len(state) + self._left_out == len(self._makers) else {**state, "started": False}

    def busy(self) -> bool:
        """Whether a stage computes now."""
        return any(worker.busy for worker in list(self._workers))

    def check(self) -> None:
        """Raise the error that ended a stage, if one has ended."""
        if self.error is not None:
            raise self.error

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start(self) -> None:
        for make in self._makers:
            broker = open_broker(self._settings, self.bundle.id, killed=self._killed)
            self._brokers.append(broker)
            worker = Worker(
                make(broker),
                broker,
                prefetch=self._settings.prefetch,
                max_attempts=self._settings.max_attempts,
                deadline_s=self._deadline_s,
            )
            try:
                broker.declare(worker.stage.queue)  # all queues must exist before the first message needs one
            except AccessDenied as error:
                if not worker.stage.optional:
                    raise
                log.warning("stage left out", stage=worker.stage.name, reason=str(error))
                self._left_out += 1
                continue
            self._workers.append(worker)
        for worker in self._workers:
            thread = threading.Thread(target=self._run, args=[worker], name=worker.stage.name, daemon=True)
            thread.start()
            self._threads.append(thread)
        while not all(self.ready().values()) and not self.failed.wait(0.02):
            pass
        self.check()

    def _run(self, worker: Worker) -> None:
        try:
            worker.run()
        except BaseException as error:
            self.error = error
            self.failed.set()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for worker in self._workers:
            worker.stop()
        for thread in self._threads:
            thread.join(LEAVE_S if kind else None)
        for broker in self._brokers:
            broker.close()

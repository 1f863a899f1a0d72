"""The thread that sends the queued scans through the pipeline and stores their answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import structlog
from gliaflow.flow import Flow
from gliaflow.scans import Input
from gliaflow_runtime.broker.interface import BrokerError
from gliaflow_runtime.logs import where

from gliaflow_console.store import ScanStore

RETRY_S = 5.0
LEAVE_S = 4.0  # the longest wait for the thread at the end

log = structlog.get_logger()


class ScanSender:
    """Start it with ``start``; ``stop`` ends it within a few seconds, before the flow is closed.

    ``problem``: why scans are not being sent now, with the remedy; empty if they are.
    """

    def __init__(self, flow: Flow, store: ScanStore, stopping: threading.Event) -> None:
        self.problem = ""
        self._flow, self._store, self._stopping = flow, store, stopping
        self._last = ""  # the id of the scan that the flow got last
        self._thread = threading.Thread(target=self._run, name="console sender", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Scans without an answer are sent again after a restart, if the console has a folder."""
        self._stopping.set()
        self._flow.stop()
        if self._thread.is_alive():
            self._thread.join(LEAVE_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                for answer in self._flow.answer_stream(self._scans()):
                    self._store.answered(answer.id, answer)
                    self.problem = ""
            except BrokerError as error:
                self._report(f"scans wait: {error}")
            except Exception as error:  # the other scans may be fine
                log.error("a scan was not sent", fault=where(error))
                if self._flow.stages is not None and self._flow.stages.failed.is_set():
                    self._report(f"scans wait: a stage has ended ({type(error).__name__}): start the console again")
                else:
                    kind = type(error).__name__
                    self._store.fail(self._last, f"the scan cannot be sent: its file cannot be read ({kind})")
            self._store.queue_again()
            self._stopping.wait(RETRY_S)

    def _scans(self) -> Iterator[Input | None]:
        """The queued scans; None while there is none."""
        while True:
            scan = self._store.next_queued()
            if scan is None:
                yield None
            elif (item := self._store.item(scan.id)) is None:
                self._store.fail(scan.id, "the scan cannot be sent: its file is no longer there: upload it again")
            else:
                self._last = scan.id
                yield item

    def _report(self, problem: str) -> None:
        if not self._stopping.is_set() and problem != self.problem:
            self.problem = problem
            log.warning("scans wait", reason=problem)

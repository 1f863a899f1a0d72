"""The thread that sends the queued scans through the pipeline and stores their answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import structlog
from gliaflow.answer import Answer
from gliaflow.flow import Flow
from gliaflow.scans import Input
from gliaflow_runtime.broker.interface import BrokerError
from gliaflow_runtime.logs import where

from gliaflow_console.store import ScanStore

RETRY_S = 5.0

log = structlog.get_logger()


class ScanSender:
    """``run`` is its thread; ``stop`` ends it within a few seconds, before the flow is closed.

    ``problem``: why scans are not being sent now, with the remedy; empty if they are.
    """

    def __init__(self, flow: Flow, store: ScanStore, stopping: threading.Event) -> None:
        self.problem = ""
        self._flow, self._store, self._stopping = flow, store, stopping
        self._sending = ""  # the id of the scan that is being read and sent

    def stop(self) -> None:
        """End the thread. Scans without an answer are sent again after a restart, if the console has a folder."""
        self._stopping.set()
        self._flow.stop()

    def run(self) -> None:
        """Send scans and store their answers until ``stopping`` is set."""
        while not self._stopping.is_set():
            self._sending = ""
            try:
                for answer in self._flow.answer_stream(self._scans()):
                    self._sending = ""
                    self._keep(answer)
                    self.problem = ""
            except BrokerError as error:
                self._report(f"scans wait: {error}")
            except Exception as error:  # the other scans may be fine
                self._failed(error)
            finally:
                self._store.queue_again()
            self._stopping.wait(RETRY_S)

    def _scans(self) -> Iterator[Input | None]:
        """The queued scans; None while there is none, or the broker is away: then they stay queued."""
        while True:
            scan = None if self._flow.broker.trouble else self._store.next_queued()
            if scan is None:
                yield None
                continue
            self._sending = scan.id
            if (item := self._store.item(scan.id)) is None:
                self._store.fail(scan.id, "the scan cannot be sent: its file is no longer there: upload it again")
            else:
                yield item
            self._sending = ""  # the flow has sent it, since it requests the next one

    def _keep(self, answer: Answer) -> None:
        try:
            self._store.answered(answer.id, answer)
        except Exception as error:  # the other answers may be fine
            log.error("an answer is not stored", fault=where(error))
            kind = type(error).__name__
            self._store.fail(answer.id, f"the answer cannot be stored ({kind}): send the scan again")

    def _failed(self, error: Exception) -> None:
        """Fail the scan that was being sent. If there was none, all are sent again."""
        log.error("a scan was not sent", fault=where(error))
        kind = type(error).__name__
        if self._flow.stages is not None and self._flow.stages.failed.is_set():
            self._report(f"scans wait: a stage has ended ({kind}): start the console again")
        elif self._sending:
            self._store.fail(self._sending, f"the scan cannot be sent: its file cannot be read ({kind})")
        else:
            self._report(f"scans wait, and are sent again: the console has a fault ({kind}): see its log")

    def _report(self, problem: str) -> None:
        if not self._stopping.is_set() and problem != self.problem:
            self.problem = problem
            log.warning("scans wait", reason=problem)

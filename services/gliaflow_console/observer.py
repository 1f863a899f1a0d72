"""The observer: copies of all answers of the pipeline, and the progress of the console's own scans."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

import structlog
from gliaflow_proto import FailureMessage, GradedMessage, PredictionMessage, ProtocolError, decode
from gliaflow_proto.routing import ASSEMBLERS, GENERATOR, check_route
from gliaflow_runtime.broker.interface import AccessDenied, Broker, BrokerError, Consumer, Delivery
from gliaflow_runtime.logs import where

from gliaflow_console.store import ScanStore

ANSWERS = ("prediction.*", "failure.*")
PROGRESS = tuple(queue.keys[0] for queue in ASSEMBLERS)  # parts of all shards
LENGTH, SIZE = 256, 64 * 2**20  # of the messages that wait at the broker for this process
POLL_S = 0.2
LINGER_S = 5.0  # how long progress is still received when no own scan is in work: another one may follow
RETRY_S = 30.0

log = structlog.get_logger()


class Observer:
    """Passes the answers to all clients to the store. ``run`` is its thread.

    The tensors of the messages have no content (``decode`` with ``contents=False``), since most masks are never
    needed.

    ``problem``: why the answers to other clients do not appear, with the remedy; empty if they do.
    """

    def __init__(self, broker: Broker, store: ScanStore, stopping: threading.Event) -> None:
        self.problem = ""
        self._broker, self._store, self._stopping = broker, store, stopping
        self._progress: Consumer | None = None  # open while own scans are in work
        self._worked = 0.0  # when an own scan was last in work, by time.monotonic

    def run(self) -> None:
        """Receive until ``stopping`` is set."""
        while not self._stopping.is_set():
            try:
                with ExitStack() as consumers:
                    answers = consumers.enter_context(self._broker.observe(ANSWERS, length=LENGTH, size=SIZE))
                    consumers.callback(self._end_progress)
                    self.problem = ""
                    while not self._stopping.is_set():
                        self._receive(answers)
            except BrokerError as error:
                if self._stopping.is_set():
                    return
                self.problem = f"the scans of other clients do not appear: {error}"
                if isinstance(error, AccessDenied):
                    self.problem += ": give this user the rights of the user console in deploy/rabbitmq/users.json"
                log.warning("answers are not observed", reason=str(error))
                self._stopping.wait(RETRY_S)

    def _receive(self, answers: Consumer) -> None:
        """Pass on what has come: at most one answer, and all graded parts."""
        if delivery := answers.next(timeout=POLL_S):
            self._pass_on(delivery)
            answers.ack(delivery)
        if self._store.in_work():
            self._worked = time.monotonic()
            self._progress = self._progress or self._broker.observe(PROGRESS, length=LENGTH, size=SIZE)
        elif time.monotonic() - self._worked > LINGER_S:
            self._end_progress()
        while self._progress is not None and (delivery := self._progress.next(timeout=0)):
            self._pass_on(delivery)
            self._progress.ack(delivery)

    def _end_progress(self) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    def _pass_on(self, delivery: Delivery) -> None:
        try:
            message = decode(delivery.body, contents=False)
            check_route(message, *delivery.route)
        except ProtocolError as error:
            log.warning("passed over", reason=str(error))
            return
        try:
            match message:
                case GradedMessage():
                    self._store.graded(message.scan.id, message.part)
                case FailureMessage(retry=True):
                    pass  # its client sends the scan again
                case FailureMessage() if f"gliaflow.{message.stage}" == GENERATOR.name:
                    pass  # the answer to a request for features
                case PredictionMessage() | FailureMessage():
                    self._store.observed(message, delivery.body)
        except Exception as error:  # the next answer may be fine
            log.error("an answer is not shown", fault=where(error))

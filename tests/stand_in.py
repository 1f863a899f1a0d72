"""A stand-in for the stages: it takes scans and answers them as a test says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from gliaflow_proto import FailureMessage, Message, ScanMessage, decode, encode, expect, message_id, routing_key
from gliaflow_proto.routing import PREPROCESSOR
from gliaflow_runtime.broker.interface import Broker
from gliaflow_runtime.broker.memory import MemoryBroker


class StandIn:
    """Runs in a thread on a broker of its own, and calls ``answer`` for each scan. ``seen`` has all scans."""

    def __init__(self, answer: Callable[[Broker, ScanMessage], None]) -> None:
        self.broker, self.seen = MemoryBroker(), list[ScanMessage]()
        self._answer = answer
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.broker.declare(PREPROCESSOR)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        with self.broker.attach() as broker, broker.consume(PREPROCESSOR, 10) as consumer:
            while not self._over.is_set():
                if delivery := consumer.next(0.05):
                    message = expect(decode(delivery.body), ScanMessage)
                    self.seen.append(message)
                    self._answer(broker, message)
                    consumer.ack(delivery)


def fail(broker: Broker, message: Message, reason: str = "an answer", retry: bool = False) -> None:
    """Answer with a failure: the shortest answer."""
    news = FailureMessage(id=message_id(message.id, "f"), scan=message.scan, stage="test", reason=reason, retry=retry)
    broker.publish(routing_key(news), encode(news), message_id=news.id, mandatory=False)

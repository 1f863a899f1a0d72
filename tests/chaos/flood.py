"""A producer that is ten times too fast: queues stay within their limits, and memory stays bounded."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from gliaflow_proto import PredictionMessage, Scan, ScanMessage, Source, decode, encode, message_id, submission_queue
from gliaflow_runtime.broker.interface import Refused
from gliaflow_runtime.broker.rabbitmq import AmqpBroker

PRODUCERS = 4


@dataclass
class Flood:
    """The number of scans offered, the ids that the broker accepted, and the number of answers for each id."""

    offered: int = 0
    seconds: float = 0.0
    served_a_second: float = 0.0
    accepted: list[str] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)


def flood(url: str, scan: Path, seconds: float, settle_s: float = 600) -> Flood:
    """Publish one small scan under new ids as fast as the broker allows, then wait for the answers.

    Parameters
    ----------
    seconds: how long to publish.
    settle_s: the longest time for the whole flood, answers included.
    """
    submission = uuid.uuid4().hex
    queue, data = submission_queue(submission), scan.read_bytes()
    result, lock, over = Flood(), threading.Lock(), threading.Event()

    def produce() -> None:
        with AmqpBroker(url) as broker:
            while not over.is_set():
                scan_id = uuid.uuid4().hex
                about = Scan(id=scan_id, submission=submission, name="flood")
                message = ScanMessage(id=message_id(scan_id), scan=about, source=Source(data=data))
                try:
                    broker.publish("scan", encode(message), message_id=message.id)
                except Refused:
                    accepted = False
                else:
                    accepted = True
                with lock:
                    result.offered += 1
                    if accepted:
                        result.accepted.append(scan_id)

    with AmqpBroker(url) as broker:
        broker.declare(queue)
        with broker.consume(queue, 100) as consumer:
            threads = [threading.Thread(target=produce, daemon=True) for _ in range(PRODUCERS)]
            started = time.monotonic()
            for thread in threads:
                thread.start()
            while (now := time.monotonic() - started) < settle_s:
                if now > seconds and not over.is_set():
                    over.set()
                    for thread in threads:
                        thread.join()
                    result.seconds = time.monotonic() - started
                    result.served_a_second = len(result.answers) / result.seconds
                if over.is_set() and len(result.answers) == len(result.accepted):
                    break
                if delivery := consumer.next(0.2):
                    answer = decode(delivery.body)
                    if isinstance(answer, PredictionMessage):
                        result.answers[answer.scan.id] = result.answers.get(answer.scan.id, 0) + 1
                    consumer.ack(delivery)
        broker.delete(queue.name)
    return result

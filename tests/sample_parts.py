"""Graded parts of small scans, and assemblers that combine them in threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from gliaflow_classifier.assembler import Assembler
from gliaflow_proto import Geometry, GradedMessage, Queue, Scan, encode, routing_key
from gliaflow_runtime.broker.interface import Broker, Consumer
from gliaflow_runtime.bundle.load import load_bundle
from gliaflow_runtime.stage import Worker

BUNDLE = load_bundle(None)
ANSWERS = Queue("gliaflow.test-answers", ("prediction.*", "failure.*"), expires_s=600)
PARTS = 3


def part(index: int, scan: str = "s", shard: int = 0, attempt: int = 0) -> GradedMessage:
    size = list(BUNDLE.manifest.input.size)
    geometry = Geometry(
        affine=[1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
        shape=[8, 8, PARTS],
        orientation=[0, 1, 1, 1, 2, 1],
        origin=[0.0, 0.0],
        step=[1.0, 1.0],
        size=size,
        slices=[index],
    )
    return GradedMessage(
        id=f"{scan}{index}",
        scan=Scan(id=scan, submission="sub", attempt=attempt, shard=shard),
        part=[index, PARTS],
        bundle=BUNDLE.id,
        geometry=geometry,
        logit=np.ones(1),
        mask=np.ones((1, *size), np.uint8),
    )


def send(broker: Broker, message: GradedMessage) -> None:
    broker.publish(routing_key(message), encode(message, "lz4"))


@contextmanager
def running(assemblers: Sequence[Assembler], connect: Callable[[], Broker]) -> Iterator[None]:
    """The assemblers, each in a thread and with a connection of its own."""
    workers = [Worker(each, connect()) for each in assemblers]
    threads = [threading.Thread(target=worker.run) for worker in workers]
    try:
        for worker, thread in zip(workers, threads, strict=True):
            thread.start()
            while not worker.ready():
                time.sleep(0.001)
        yield
    finally:
        for worker in workers:
            worker.stop()
        for worker, thread in zip(workers, threads, strict=True):
            thread.join()
            worker.broker.close()


def bodies(consumer: Consumer, count: int) -> list[bytes]:
    """The bodies of all messages, which are so many."""
    found = []
    while delivery := consumer.next(10 if len(found) < count else 0.2):
        found.append(delivery.body)
    return found

"""The stages that serve, run in this process for training: ``memory://``, the same code, the same messages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from gliaflow_proto import FailureMessage, Message, Queue, decode, encode, routing_key
from gliaflow_runtime.broker.interface import Broker, Refused
from gliaflow_runtime.broker.memory import STAGE_LIMITS, MemoryBroker
from gliaflow_runtime.stage import InvalidInput, Stage, Worker

AHEAD = 4  # scans on their way at a time: enough to keep every stage busy, few enough to stay in memory


def stream(
    messages: Iterable[Message],
    stages: Sequence[Callable[[Broker], Stage]],
    recorder: Stage,
    answered: Callable[[str, str | None], None],
) -> None:
    """Send ``messages`` through ``stages``, and what comes out of the last of them to ``recorder``.

    Parameters
    ----------
    messages: one a scan, or several parts of one in a row.
    stages: each is made on a broker connection of its own and runs in a thread.
    recorder: takes the result, in this thread; what it publishes is passed over.
    answered: called with a scan's id once all its parts are recorded, or with the reason why they are not.
    """
    results = Queue("gliaflow.training", (*recorder.queue.keys, "failure.*"))
    left: dict[str, set[int] | None] = {}  # parts that a scan still lacks; None: not known yet
    failed: set[str] = set()  # of these no more parts are sent, and none that still comes is recorded
    waiting = iter(messages)
    sent_all = False
    held: Message | None = None
    with _running(stages) as (broker, check):
        broker.declare(results)
        with broker.consume(results, prefetch=1) as consumer:
            while left or not sent_all:
                while not sent_all and len(left) < AHEAD:
                    held = held or next(waiting, None)
                    if held is None:
                        sent_all = True
                        break
                    if held.scan.id in failed:
                        held = None
                        continue
                    left.setdefault(held.scan.id, None)
                    try:
                        broker.publish(routing_key(held), encode(held), message_id=held.id)
                    except Refused:
                        break
                    held = None
                check()
                delivery = consumer.next(timeout=0.1)
                if delivery is None:
                    continue
                message = decode(delivery.body)
                scan, (index, count) = message.scan.id, message.part
                if scan in failed:
                    consumer.ack(delivery)
                    continue
                reason = message.reason if isinstance(message, FailureMessage) else None
                try:
                    if reason is None:
                        recorder.handle(message, delivery)
                except InvalidInput as error:
                    reason = str(error)
                consumer.ack(delivery)
                lacks = left[scan]
                left[scan] = lacks = (set(range(count)) if lacks is None else lacks) - {index}
                if reason is not None or not lacks:
                    del left[scan]
                    if reason is not None:
                        failed.add(scan)
                    answered(scan, reason)


@contextmanager
def _running(stages: Sequence[Callable[[Broker], Stage]]) -> Iterator[tuple[Broker, Callable[[], None]]]:
    """The stages at work; gives their broker, and a function that raises what ended one of them."""
    broker = MemoryBroker(limits=STAGE_LIMITS)
    workers = [Worker(make(connection), connection) for make in stages for connection in [broker.attach()]]
    failed: list[BaseException] = []

    def run(worker: Worker) -> None:
        try:
            worker.run()
        except BaseException as error:
            failed.append(error)

    def check() -> None:
        if failed:
            raise failed[0]

    for worker in workers:
        broker.declare(worker.stage.queue)
    threads = [threading.Thread(target=run, args=[worker], name=worker.stage.name, daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        while not all(worker.ready() for worker in workers):
            check()
            time.sleep(0.01)
        yield broker, check
    finally:
        for worker in workers:
            worker.stop()
        for thread in threads:
            thread.join()

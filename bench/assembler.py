"""How many scans a second the assembler combines: graded parts are waiting in its queues, and nothing else runs.

    python bench/assembler.py                                          # memory://: threads of one process
    python tests/rabbitmq.py python bench/assembler.py --shards 1,2    # RabbitMQ: a process for each shard

The parts are those of one phantom of 155 slices, under the names of many scans. The time is wall-clock time, from the
first delivery until all answers are in the queue of their submission. CPU seconds are those of the assemblers alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.synchronize import Event

from gliaflow_classifier.assembler import Assembler
from gliaflow_classifier.grader import Grader
from gliaflow_extractor.extractor import Extractor, UNetSession
from gliaflow_preprocessor.preprocessor import Preprocessor
from gliaflow_proto import GradedMessage, Message, Queue, Scan, ScanMessage, Source, encode, routing_key
from gliaflow_proto.routing import ASSEMBLERS, shard_of
from gliaflow_runtime.broker.connect import connect
from gliaflow_runtime.broker.interface import Broker, Delivery
from gliaflow_runtime.broker.memory import MemoryBroker
from gliaflow_runtime.bundle.load import load_bundle
from gliaflow_runtime.logs import configure_logging
from gliaflow_runtime.stage import Worker
from scaling import scan_of

ANSWERS = Queue("gliaflow.bench-assembler", ("prediction.bench",), expires_s=600)


def graded_parts() -> list[GradedMessage]:
    """What the classifier publishes for one scan."""
    bundle = load_bundle(None)
    stages = [
        Preprocessor(bundle, MemoryBroker(), []),
        Extractor(bundle, UNetSession(bundle, batch=4, threads=1)),
        Grader(bundle, threads=1),
    ]
    source = Source(data=scan_of(155))
    messages: list[Message] = [ScanMessage(id="m", scan=Scan(id="s", submission="bench"), source=source)]
    for stage in stages:
        messages = [
            result
            for message in messages
            for result in stage.handle(message, Delivery(stage.queue.name, "", b"")).publish
        ]
    return [message for message in messages if isinstance(message, GradedMessage)]


def fill(broker: Broker, parts: list[GradedMessage], scans: int, shards: int) -> None:
    for queue in (*ASSEMBLERS[:shards], ANSWERS):
        broker.delete(queue.name)
        broker.declare(queue)
    for number in range(scans):
        about = Scan(id=str(number), submission="bench")
        about = replace(about, shard=shard_of(about, shards))
        for part in parts:
            message = replace(part, scan=about)
            broker.publish(routing_key(message), encode(message, "lz4"))


def assemble(broker: Broker, shards: range, start: Callable[[], object], stop: Callable[[], object]) -> float:
    """Run the assemblers of these shards in threads, from ``start`` to ``stop``; returns their CPU seconds."""
    configure_logging("error", "text")
    bundle = load_bundle(None)
    workers = [Worker(Assembler(bundle, timeout_s=1e9, shard=shard), broker) for shard in shards]
    threads = [threading.Thread(target=worker.run) for worker in workers]
    start()
    before = resource.getrusage(resource.RUSAGE_SELF)
    for thread in threads:
        thread.start()
    stop()
    after = resource.getrusage(resource.RUSAGE_SELF)
    for worker in workers:
        worker.stop()
    for thread in threads:
        thread.join()
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def assemble_in_process(url: str, shard: int, ready: Event, go: Event, over: Event, spent: object) -> None:
    with connect(url) as broker:

        def start() -> None:
            ready.set()
            go.wait()

        spent.put(assemble(broker, range(shard, shard + 1), start, over.wait))  # type: ignore[attr-defined]


def until_answered(broker: Broker, scans: int) -> float:
    """Seconds from now until all answers are there."""
    started = time.perf_counter()
    while broker.depth(ANSWERS.name) < scans:
        time.sleep(0.02)
    return time.perf_counter() - started


def in_memory(parts: list[GradedMessage], scans: int, shards: int) -> tuple[float, float]:
    with MemoryBroker() as broker:
        fill(broker, parts, scans, shards)
        took: list[float] = []
        cpu = assemble(broker, range(shards), lambda: None, lambda: took.append(until_answered(broker, scans)))
        return took[0], cpu


def on_rabbitmq(url: str, parts: list[GradedMessage], scans: int, shards: int) -> tuple[float, float]:
    context = multiprocessing.get_context("spawn")
    with connect(url) as broker:
        fill(broker, parts, scans, shards)
        go, over, spent = context.Event(), context.Event(), context.Queue()
        ready = [context.Event() for _ in range(shards)]
        processes = [
            context.Process(target=assemble_in_process, args=(url, shard, ready[shard], go, over, spent))
            for shard in range(shards)
        ]
        for process in processes:
            process.start()
        for each in ready:
            each.wait()
        go.set()
        took = until_answered(broker, scans)
        over.set()
        cpu = sum(spent.get() for _ in processes)
        for process in processes:
            process.join()
        broker.delete(ANSWERS.name)
    return took, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--broker", default=os.environ.get("GLIAFLOW_TEST_BROKER", "memory://"), help="amqp://… or memory://"
    )
    parser.add_argument("--shards", default="1,2", help="numbers of shards to measure, in turn")
    parser.add_argument("--scans", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    configure_logging("error", "text")
    parts = graded_parts()
    print(f"{len(parts)} parts a scan; {options.broker.rpartition('@')[2]}")
    print("shards   scans/s   CPU ms a scan")
    for _ in range(options.rounds):
        for shards in map(int, options.shards.split(",")):
            if options.broker.startswith("memory:"):
                took, cpu = in_memory(parts, options.scans, shards)
            else:
                took, cpu = on_rabbitmq(options.broker, parts, options.scans, shards)
            print(f"{shards:6} {options.scans / took:9.1f} {1000 * cpu / options.scans:15.2f}", flush=True)


if __name__ == "__main__":
    main()

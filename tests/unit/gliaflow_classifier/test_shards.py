"""Several assemblers share the scans. Their number may change while scans stream, and no scan fails for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gliaflow_classifier import shares
from gliaflow_classifier.assembler import Assembler
from gliaflow_classifier.shares import Shares
from gliaflow_proto import Geometry, GradedMessage, ProtocolError, Queue, Scan, decode, encode, routing_key
from gliaflow_proto.messages import MAX_SHARDS
from gliaflow_proto.routing import ASSEMBLERS, shard_of
from gliaflow_runner.services import SERVICES
from gliaflow_runtime.broker.interface import Broker, Consumer
from gliaflow_runtime.broker.memory import MemoryBroker
from gliaflow_runtime.bundle.load import load_bundle
from gliaflow_runtime.settings import Settings
from gliaflow_runtime.stage import Worker
from hypothesis import given
from hypothesis import strategies as st

BUNDLE = load_bundle(None)
ANSWERS = Queue("answers", ("prediction.*", "failure.*"))
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
def running(broker: MemoryBroker, *assemblers: Assembler) -> Iterator[None]:
    """The assemblers, each in a thread of its own."""
    workers = [Worker(each, broker.attach()) for each in assemblers]
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
        for thread in threads:
            thread.join()


@pytest.fixture
def broker() -> Iterator[MemoryBroker]:
    with MemoryBroker() as broker:
        for queue in (*ASSEMBLERS, ANSWERS):
            broker.declare(queue)
        yield broker


@given(st.text(max_size=20), st.text(max_size=20), st.integers(1, MAX_SHARDS))
def test_a_scan_has_one_shard_of_those_in_use(submission: str, scan: str, shards: int) -> None:
    assert 0 <= shard_of(Scan(id=scan, submission=submission), shards) < shards


def test_scans_are_spread_evenly() -> None:
    chosen = [shard_of(Scan(id=str(n), submission="sub"), 4) for n in range(4000)]
    assert all(900 < chosen.count(shard) < 1100 for shard in range(4))


def test_a_part_goes_to_the_queue_of_its_shard_and_without_one_to_that_of_earlier_versions() -> None:
    assert [routing_key(part(0, shard=shard)) for shard in (0, 1, 3)] == ["graded", "graded.1", "graded.3"]
    assert ASSEMBLERS[0].name == "gliaflow.assembler"


@pytest.mark.parametrize("shard", [-1, MAX_SHARDS])
def test_a_shard_that_does_not_exist_is_refused(shard: int) -> None:
    with pytest.raises(ProtocolError, match=rf"scan.shard: {shard} is not from 0 to 3"):
        decode(encode(replace(part(0), scan=Scan(id="s", shard=shard))))


def test_the_remains_of_a_scan_in_another_shard_are_no_failure(broker: MemoryBroker) -> None:
    """A preprocessor died after some parts. The next one, with another number of shards, sent all parts elsewhere."""
    timeout_s = 0.2
    assemblers = [Assembler(BUNDLE, timeout_s=timeout_s, shard=shard) for shard in (0, 1)]
    with running(broker, *assemblers), broker.consume(ANSWERS, 10) as answers:
        send(broker, part(0))
        for index in range(PARTS):
            send(broker, part(index, shard=1))
        send(broker, part(1))  # late
        assert (answer := answers.next(10)) is not None
        assert decode(answer.body).kind == "prediction"
        assert answers.next(2 * timeout_s + 1.5) is None, "neither a second answer nor a failure"
    assert [broker.depth(queue.dead) for queue in ASSEMBLERS] == [0] * MAX_SHARDS


def test_a_failure_of_an_earlier_attempt_in_another_shard_does_not_end_the_next_attempt(broker: MemoryBroker) -> None:
    """Its parts were lost in part; meanwhile the client has sent the scan again, and the number has changed."""
    with (
        running(broker, Assembler(BUNDLE, timeout_s=0.1, shard=0), Assembler(BUNDLE, timeout_s=60, shard=1)),
        broker.consume(ANSWERS, 10) as answers,
    ):
        send(broker, part(0))
        send(broker, part(0, shard=1, attempt=1))
        assert (failure := answers.next(10)) is not None
        assert (decode(failure.body).kind, decode(failure.body).scan.attempt) == ("failure", 0)
        for index in range(1, PARTS):
            send(broker, part(index, shard=1, attempt=1))
        assert (answer := answers.next(10)) is not None
        assert (decode(answer.body).kind, decode(answer.body).scan.attempt) == ("prediction", 1)


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("amqp://classifier@host/", ["assembler", "assembler.1", "assembler.2", "assembler.3"]),
        ("memory://", ["assembler", "assembler.1"]),
    ],
)
def test_on_a_broker_a_classifier_reads_all_shards_also_those_above_the_number(url: str, names: list[str]) -> None:
    """Scans may still be on their way there after the number was lowered."""
    makers = SERVICES["classifier"](BUNDLE, Settings(broker=url, assembler_shards=2, state=Path("/nowhere")))
    stages: list[Any] = [make(MemoryBroker()) for make in makers]
    assert [stage.name for stage in stages] == ["classifier", *names]
    assert [stage.optional for stage in stages[1:]] == [name in ("assembler.2", "assembler.3") for name in names]


class TestSpread:
    """Of two processes, the second starts when the first is the active consumer of all shards."""

    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shares, "CHECK_S", 0.0)

    @staticmethod
    def busy(*shards: int, of: int = 4) -> Shares:
        mine = Shares(of)
        for shard in shards:
            mine.note(shard)
        return mine

    @pytest.mark.parametrize(
        ("mine", "of", "consumers", "left"),
        [
            ([0, 1], 2, 1, []),
            ([0, 1], 2, 2, [1]),
            ([0, 1, 2, 3], 4, 2, [2, 3]),
            ([1, 3], 4, 3, []),
            ([0, 1, 2, 3], 4, 9, [1, 2, 3]),
            ([2], 4, 9, []),
        ],
    )
    def test_what_is_above_the_share_is_left_and_the_lowest_stay(
        self, broker: MemoryBroker, mine: list[int], of: int, consumers: int, left: list[int]
    ) -> None:
        with ExitStack() as stack:
            for queue in ASSEMBLERS:
                for _ in range(consumers):
                    stack.enter_context(broker.consume(queue, 1))
            assert [shard for shard in range(4) if self.busy(*mine, of=of).leaves(shard, broker)] == left

    def test_a_shard_without_parts_is_no_work(self, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shares, "BUSY_S", 0.0)
        with broker.consume(ASSEMBLERS[1], 1), broker.consume(ASSEMBLERS[1], 1):
            assert not self.busy(0, 1, of=2).leaves(1, broker)

    def test_a_second_process_takes_over_a_shard_with_its_open_scans(self, broker: MemoryBroker) -> None:
        """All answers come, each once, though the shard moves while its scans are incomplete."""
        processes = [Shares(2), Shares(2)]
        first, second = (
            [Assembler(BUNDLE, timeout_s=60, shard=shard, shares=each) for shard in (0, 1)] for each in processes
        )
        with running(broker, *first), broker.consume(ANSWERS, 10) as answers:
            for shard in (0, 1):
                send(broker, part(0, scan=f"scan{shard}", shard=shard))
            with running(broker, *second):
                while processes[1].busy() != [1]:
                    time.sleep(0.01)
                assert processes[0].busy() == [0]
                for shard in (0, 1):
                    for index in (1, 2):
                        send(broker, part(index, scan=f"scan{shard}", shard=shard))
                assert sorted(decode(body).scan.id for body in bodies(answers, 2)) == ["scan0", "scan1"]
        assert [broker.depth(queue.dead) for queue in ASSEMBLERS] == [0] * MAX_SHARDS


def bodies(consumer: Consumer, count: int) -> list[bytes]:
    """The bodies of all messages, which are so many."""
    found = []
    while delivery := consumer.next(10 if len(found) < count else 0.2):
        found.append(delivery.body)
    return found

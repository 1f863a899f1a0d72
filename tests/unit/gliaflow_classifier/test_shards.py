"""Several assemblers share the scans. Their number may change while scans stream, and no scan fails for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gliaflow_classifier import shares
from gliaflow_classifier.assembler import Assembler
from gliaflow_classifier.shares import Shares
from gliaflow_proto import ProtocolError, Scan, decode, encode, routing_key
from gliaflow_proto.messages import MAX_SHARDS
from gliaflow_proto.routing import ASSEMBLERS, CLASSIFIER, shard_of
from gliaflow_runner.services import SERVICES
from gliaflow_runtime.broker.memory import MemoryBroker
from gliaflow_runtime.settings import Settings
from hypothesis import given
from hypothesis import strategies as st
from sample_parts import ANSWERS, BUNDLE, PARTS, bodies, part, running, send


@pytest.fixture
def broker() -> Iterator[MemoryBroker]:
    with MemoryBroker() as broker:
        for queue in (CLASSIFIER, *ASSEMBLERS, ANSWERS):
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
    with running(assemblers, broker.attach), broker.consume(ANSWERS, 10) as answers:
        send(broker, part(0))
        for index in range(PARTS):
            send(broker, part(index, shard=1))
        send(broker, part(1))  # late
        assert (answer := answers.next(10)) is not None
        assert decode(answer.body).kind == "prediction"
        assert answers.next(2 * timeout_s + 1.5) is None, "neither a second answer nor a failure"
    assert [broker.depth(queue.dead) for queue in ASSEMBLERS] == [0] * MAX_SHARDS


def test_late_remains_join_their_scan_which_its_own_shard_is_still_assembling(broker: MemoryBroker) -> None:
    """They would fail it."""
    scan = next(name for name in map(str, range(99)) if shard_of(part(0, scan=name).scan, 2) == 1)
    number = Shares(2)
    assemblers = [Assembler(BUNDLE, timeout_s=t, shard=n, shares=number) for n, t in enumerate((0.1, 60))]
    with running(assemblers, broker.attach), broker.consume(ANSWERS, 10) as answers:
        send(broker, part(0, scan=scan, shard=0))
        send(broker, part(1, scan=scan, shard=1))
        assert answers.next(1.5) is None, "no failure"
        send(broker, part(2, scan=scan, shard=1))
        assert (answer := answers.next(10)) is not None
        assert decode(answer.body).kind == "prediction"
        assert answers.next(0.2) is None
    assert [broker.depth(queue.dead) for queue in ASSEMBLERS] == [0] * MAX_SHARDS


def test_an_incomplete_scan_moves_once_at_most_also_between_processes_that_differ_in_the_number(
    broker: MemoryBroker,
) -> None:
    scan = next(
        name
        for name in map(str, range(99))
        if (shard_of(part(0, scan=name).scan, 2), shard_of(part(0, scan=name).scan, 4)) == (1, 3)
    )
    assemblers = [
        Assembler(BUNDLE, timeout_s=0.01, shard=1, shares=Shares(4)),
        Assembler(BUNDLE, timeout_s=0.01, shard=3, shares=Shares(2)),
    ]
    with running(assemblers, broker.attach), broker.consume(ANSWERS, 10) as answers:
        send(broker, part(0, scan=scan, shard=3))
        assert (answer := answers.next(20)) is not None
        assert decode(answer.body).reason.startswith("incomplete: parts [1, 2] of 3")
        assert answers.next(0.2) is None


def test_a_failure_of_an_earlier_attempt_in_another_shard_does_not_end_the_next_attempt(broker: MemoryBroker) -> None:
    """Its parts were lost in part; meanwhile the client has sent the scan again, and the number has changed."""
    assemblers = [Assembler(BUNDLE, timeout_s=0.1, shard=0), Assembler(BUNDLE, timeout_s=60, shard=1)]
    with running(assemblers, broker.attach), broker.consume(ANSWERS, 10) as answers:
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
        monkeypatch.setattr(shares, "STAY_S", 0.0)

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
            for _ in range(consumers):
                stack.enter_context(broker.consume(CLASSIFIER, 1))
            assert [shard for shard in range(4) if self.busy(*mine, of=of).leaves(shard, broker)] == left

    def test_a_shard_without_parts_is_no_work(self, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shares, "BUSY_S", 0.0)
        with broker.consume(CLASSIFIER, 1), broker.consume(CLASSIFIER, 1):
            assert not self.busy(0, 1, of=2).leaves(1, broker)

    def test_a_shard_that_comes_back_stays_twice_as_long(
        self, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The other classifier may be of an earlier version, which reads no shard but the first."""
        monkeypatch.setattr(shares, "STAY_S", 10.0)
        now = 1000.0
        monkeypatch.setattr(shares.time, "monotonic", lambda: now)
        mine, left = Shares(2), []
        with broker.consume(CLASSIFIER, 1), broker.consume(CLASSIFIER, 1):
            for _ in range(100):
                now += 1
                mine.note(0)
                mine.note(1)
                if mine.leaves(1, broker):
                    left.append(now - 1001)
        assert left == [10, 31, 72]

    def test_a_shard_that_another_had_for_long_is_left_soon_again(
        self, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As when a replica ends each night and a new one starts each morning."""
        monkeypatch.setattr(shares, "STAY_S", 10.0)
        now = 0.0
        monkeypatch.setattr(shares.time, "monotonic", lambda: now)
        mine, stayed = Shares(2), []
        with broker.consume(CLASSIFIER, 1), broker.consume(CLASSIFIER, 1):
            for _ in range(3):
                now += 1000
                came = now
                mine.came_back(1)
                while not mine.leaves(1, broker):
                    mine.note(0)
                    mine.note(1)
                    now += 1
                stayed.append(now - came)
        assert stayed == [10, 10, 10]

    def test_a_second_process_takes_over_a_shard_with_its_open_scans(self, broker: MemoryBroker) -> None:
        """All answers come, each once, though the shard moves while its scans are incomplete."""
        processes = [Shares(2), Shares(2)]
        first, second = (
            [Assembler(BUNDLE, timeout_s=60, shard=shard, shares=each) for shard in (0, 1)] for each in processes
        )
        with running(first, broker.attach), broker.consume(ANSWERS, 10) as answers:
            for shard in (0, 1):
                send(broker, part(0, scan=f"scan{shard}", shard=shard))
            with broker.consume(CLASSIFIER, 1), broker.consume(CLASSIFIER, 1), running(second, broker.attach):
                while processes[1].busy() != [1]:
                    time.sleep(0.01)
                assert processes[0].busy() == [0]
                for shard in (0, 1):
                    for index in (1, 2):
                        send(broker, part(index, scan=f"scan{shard}", shard=shard))
                assert sorted(decode(body).scan.id for body in bodies(answers, 2)) == ["scan0", "scan1"]
        assert [broker.depth(queue.dead) for queue in ASSEMBLERS] == [0] * MAX_SHARDS

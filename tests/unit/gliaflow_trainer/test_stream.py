"""The serving stages run for training: what comes out is recorded, what fails is named, nothing waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from gliaflow_proto import FeaturesMessage, Geometry, Message, ProtocolError, Scan, SlicesMessage, expect
from gliaflow_proto.routing import EXTRACTOR, RECORDER
from gliaflow_runtime.broker.interface import BrokerError, Delivery
from gliaflow_runtime.stage import InvalidInput, Outcome, Stage
from gliaflow_trainer.stream import AHEAD, stream

GEOMETRY = Geometry(
    affine=[1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
    shape=[8, 8, 6],
    orientation=[0, 1, 1, 1, 2, 1],
    origin=[0.0, 0.0],
    step=[1.0, 1.0],
    size=[8, 8],
    slices=[3],
)

pytestmark = pytest.mark.timeout(30)


def scan(name: str, parts: int = 1) -> list[SlicesMessage]:
    return [
        SlicesMessage(
            id=f"{name}-{index}",
            scan=Scan(id=name, patient=name, label="HGG"),
            part=[index, parts],
            geometry=GEOMETRY,
            image=np.zeros((1, 1, 8, 8), np.float16),
        )
        for index in range(parts)
    ]


class Copier(Stage):
    """``slices`` → ``features``. Fails on ``bad`` (scan, part); does to itself what ``dies`` says."""

    name = "copier"
    queue = EXTRACTOR
    max_attempts = 1

    def __init__(self, bad: set[tuple[str, int]] | None = None, dies: BaseException | None = None) -> None:
        self.bad, self.dies = bad or set(), dies

    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        slices = expect(message, SlicesMessage)
        if self.dies is not None:
            raise self.dies
        if (slices.scan.id, slices.part[0]) in self.bad:
            raise InvalidInput("it is bad")
        if slices.scan.id == "odd":
            raise ProtocolError("it is odd")
        features, mask = np.zeros((1, 2, 4, 4), np.float16), np.zeros((1, 8, 8), np.uint8)
        return Outcome(
            [
                FeaturesMessage(
                    id="f" + slices.id, scan=slices.scan, part=slices.part, bundle="b", tap="t", geometry=GEOMETRY,
                    features=features, mask=mask,
                )
            ]
        )  # fmt: skip


class Keeper(Stage):
    """Keeps (scan, part); refuses ``bad`` scans. What it publishes goes nowhere."""

    name = "keeper"
    queue = RECORDER

    def __init__(self, *bad: str) -> None:
        self.kept: list[tuple[str, int]] = []
        self.bad = bad
        self.threads: set[str] = set()

    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        if message.scan.id in self.bad:
            raise InvalidInput("not for me")
        self.kept.append((message.scan.id, message.part[0]))
        self.threads.add(threading.current_thread().name)
        return Outcome([message])


def run(messages: list[SlicesMessage], stage: Stage, keeper: Keeper) -> list[tuple[str, str | None]]:
    told: list[tuple[str, str | None]] = []
    stream(messages, [lambda broker: stage], keeper, lambda name, reason: told.append((name, reason)))
    return told


def test_every_part_is_recorded_in_order_by_the_calling_thread() -> None:
    keeper = Keeper()
    told = run(scan("a") + scan("b", 3) + scan("c"), Copier(), keeper)
    assert keeper.kept == [("a", 0), ("b", 0), ("b", 1), ("b", 2), ("c", 0)]
    assert told == [("a", None), ("b", None), ("c", None)]
    assert keeper.threads == {threading.current_thread().name}


def test_nothing_to_send_is_nothing_to_do() -> None:
    assert run([], Copier(), Keeper()) == []


def test_what_a_stage_or_the_recorder_refuses_is_told_and_the_rest_goes_on() -> None:
    keeper = Keeper("refused")
    messages = scan("a") + scan("bad") + scan("odd") + scan("refused") + scan("z")
    told = run(messages, Copier({("bad", 0)}), keeper)
    reasons = {"a": None, "bad": "it is bad", "odd": "it is odd", "refused": "not for me", "z": None}
    assert dict(told) == reasons
    assert [name for name, _ in keeper.kept] == ["a", "z"]


@pytest.mark.parametrize("part", [0, 1, 19])
def test_a_scan_of_many_parts_fails_once_whichever_part_is_bad(part: int) -> None:
    """Its other parts may be on their way, or not sent yet."""
    for stage, keeper in ((Copier({("long", part)}), Keeper()), (Copier(), Keeper("long"))):
        told = run(scan("a") + scan("b") + scan("c") + scan("long", 20) + scan("z"), stage, keeper)
        assert sorted(name for name, _ in told) == ["a", "b", "c", "long", "z"]
        assert [name for name, reason in told if reason] == ["long"]


@pytest.mark.parametrize("dies", [BrokerError("the line is cut"), KeyboardInterrupt("enough")])
def test_a_stage_that_ends_ends_the_stream(dies: BaseException) -> None:
    with pytest.raises(type(dies), match=str(dies)):
        run(scan("a"), Copier(dies=dies), Keeper())


def test_an_error_of_the_recorder_ends_the_stream() -> None:
    class Full(Keeper):
        def handle(self, message: Message, delivery: Delivery) -> Outcome:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        run(scan("a"), Copier(), Full())
    assert not [thread for thread in threading.enumerate() if thread.name == "copier"]


def test_few_scans_are_on_their_way_at_a_time() -> None:
    """A cohort need not fit into memory."""
    drawn = done = most = 0

    def messages() -> Iterator[SlicesMessage]:
        nonlocal drawn, most
        for number in range(20):
            drawn += 1
            most = max(most, drawn - done)
            yield from scan(str(number), 1 + number % 3)

    def answered(name: str, reason: str | None) -> None:
        nonlocal done
        done += 1

    stream(messages(), [lambda broker: Copier()], Keeper(), answered)
    assert done == 20
    assert most <= AHEAD + 1, "one more than that is drawn, and held"

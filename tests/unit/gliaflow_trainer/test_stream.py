"""A serving stage run for training: its results are recorded in order, and failures are named."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from gliaflow_proto import FeaturesMessage, Geometry, Message, ProtocolError, Scan, SlicesMessage, expect
from gliaflow_proto.routing import EXTRACTOR
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.stage import InvalidInput, Outcome, Stage
from gliaflow_trainer.stream import stream

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
    """``slices`` → ``features``. Refuses the ``bad`` (scan, part); raises ``error`` for every message."""

    name = "copier"
    queue = EXTRACTOR

    def __init__(self, bad: set[tuple[str, int]] | None = None, error: BaseException | None = None) -> None:
        self.bad, self.error = bad or set(), error

    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        slices = expect(message, SlicesMessage)
        if self.error is not None:
            raise self.error
        if (slices.scan.id, slices.part[0]) in self.bad:
            raise InvalidInput("it is bad")
        if slices.scan.id == "invalid":
            raise ProtocolError("it is invalid")
        features, mask = np.zeros((1, 2, 4, 4), np.float16), np.zeros((1, 8, 8), np.uint8)
        return Outcome(
            [
                FeaturesMessage(
                    id="f" + slices.id, scan=slices.scan, part=slices.part, bundle="b", tap="t", geometry=GEOMETRY,
                    features=features, mask=mask,
                )
            ]
        )  # fmt: skip


class Kept:
    """Records (scan, part) of each result; refuses the scan ``bad``."""

    def __init__(self, bad: str = "") -> None:
        self.parts: list[tuple[str, int]] = []
        self.bad = bad

    def __call__(self, results: list[Message]) -> None:
        for result in results:
            if result.scan.id == self.bad:
                raise InvalidInput("it cannot be recorded")
            self.parts.append((result.scan.id, result.part[0]))


def run(messages: list[SlicesMessage], stage: Stage, kept: Kept) -> list[tuple[str, str | None]]:
    answers: list[tuple[str, str | None]] = []
    stream(messages, stage, kept, lambda name, reason: answers.append((name, reason)))
    return answers


def test_every_part_is_recorded_in_order() -> None:
    kept = Kept()
    answers = run(scan("a") + scan("b", 3) + scan("c"), Copier(), kept)
    assert kept.parts == [("a", 0), ("b", 0), ("b", 1), ("b", 2), ("c", 0)]
    assert answers == [("a", None), ("b", None), ("c", None)]


def test_no_messages_give_no_answers() -> None:
    assert run([], Copier(), Kept()) == []


def test_a_scan_that_is_refused_is_named_and_the_others_are_recorded() -> None:
    kept = Kept("refused")
    messages = scan("a") + scan("bad") + scan("invalid") + scan("refused") + scan("z")
    answers = run(messages, Copier({("bad", 0)}), kept)
    reasons = {"a": None, "bad": "it is bad", "invalid": "it is invalid", "refused": "it cannot be recorded", "z": None}
    assert dict(answers) == reasons
    assert [name for name, _ in kept.parts] == ["a", "z"]


@pytest.mark.parametrize("part", [0, 1, 19])
def test_a_scan_of_many_parts_fails_once_whichever_part_is_bad(part: int) -> None:
    for stage, kept in ((Copier({("long", part)}), Kept()), (Copier(), Kept("long"))):
        answers = run(scan("a") + scan("b") + scan("c") + scan("long", 20) + scan("z"), stage, kept)
        assert [name for name, _ in answers] == ["a", "b", "c", "long", "z"]
        assert [name for name, reason in answers if reason] == ["long"]


def test_an_unexpected_error_of_the_stage_is_named_with_its_place() -> None:
    ((name, reason),) = run(scan("a"), Copier(error=ZeroDivisionError("of this scan")), Kept())
    assert name == "a"
    assert reason is not None
    assert "unexpected ZeroDivisionError" in reason
    assert "test_stream.py" in reason


@pytest.mark.parametrize("error", [KeyboardInterrupt("enough"), SystemExit("it ends")])
def test_a_stage_that_ends_the_process_ends_the_stream(error: BaseException) -> None:
    with pytest.raises(type(error), match=str(error)):
        run(scan("a"), Copier(error=error), Kept())


def test_an_error_of_the_recorder_ends_the_stream() -> None:
    def full(results: list[Message]) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        stream(scan("a") + scan("b"), Copier(), full, lambda *_: None)


def test_scans_are_read_one_by_one() -> None:
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

    stream(messages(), Copier(), Kept(), answered)
    assert done == 20
    assert most <= 2, "the next scan ends the one before"

"""A message that a stage cannot read: its sender receives a failure that names the field, and it is a dead letter."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from broken_messages import Broken, broken_messages, valid
from gliaflow_proto import (
    FailureMessage,
    Message,
    Queue,
    decode,
    encode,
    is_announcement,
    routing_key,
    submission_queue,
)
from gliaflow_runtime.broker.interface import REASON, Consumer, Delivery
from gliaflow_runtime.broker.memory import MemoryBroker
from gliaflow_runtime.stage import Outcome, Stage, Worker, failure
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_messages import ONE_OF_EACH, changed

SUBMISSION = "the-submission-of-the-sender"
IN = Queue("in", ("scan", "generate", "slices", "features.*", "graded", "prediction.*", "failure.*"))
BROKEN = [each for each in broken_messages(SUBMISSION) if not each.late]
END = msgpack.packb(valid("generate", SUBMISSION) | {"scan": {"id": "end", "submission": SUBMISSION}})
_, SLICES, FEATURES, GRADED, PREDICTION, _, SYNTHETIC, FAILURE = (
    replace(message, scan=replace(message.scan, submission=SUBMISSION, label=None)) for message in ONE_OF_EACH
)


class Answering(Stage):
    """Answers each message that it can read, and receives all failures, as the assembler does."""

    name = "answering"
    queue = IN

    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        return Outcome() if is_announcement(message) else Outcome([failure(message, self.name, "could be read")])


class Answers:
    """A running stage, and what it answers to the submission."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        answers = submission_queue(SUBMISSION)
        for queue in (IN, answers):
            broker.declare(queue)
        self._answers, self._dead = broker.consume(answers, 1), broker.consume(Queue(IN.dead), 1)

    def to(self, key: str, body: bytes) -> FailureMessage | None:
        """The answer to a message, or None."""
        self._broker.publish(key, body)
        self._broker.publish("generate", END)  # its answer comes after the others
        answers = []
        while (answer := decode(take(self._answers).body)).scan.id != "end":
            answers.append(answer)
        assert len(answers) <= 1
        assert all(isinstance(answer, FailureMessage) for answer in answers)
        return answers[0] if answers else None

    def dead_reason(self) -> str:
        return take(self._dead).headers[REASON]


def take(consumer: Consumer) -> Delivery:
    delivery = consumer.next(5)
    assert delivery is not None
    consumer.ack(delivery)
    return delivery


@pytest.fixture(scope="module")
def answers() -> Iterator[Answers]:
    broker = MemoryBroker()
    running = Answers(broker)
    worker = Worker(Answering(), broker.attach())
    thread = threading.Thread(target=worker.run)
    thread.start()
    yield running
    worker.stop()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_the_sender_learns_which_field_is_wrong(broken: Broken, answers: Answers) -> None:
    answer = answers.to(broken.key, broken.body)
    assert answers.dead_reason().startswith(broken.reason)
    assert (answer and answer.scan.id) == broken.scan
    if answer:
        assert (answer.stage, answer.reason[: len(broken.reason)]) == ("answering", broken.reason)


@pytest.mark.parametrize(
    ("key", "body", "reason"),
    [
        ("slices", changed(SLICES, geometry=None), "geometry: missing"),
        ("slices", changed(SLICES, geometry__shape=[4, 5]), "geometry.shape: expected 3 numbers, got 2"),
        ("slices", changed(SLICES, geometry__size=[8.0, 8]), "geometry.size[0]: expected an integer, got a float"),
        ("slices", changed(SLICES, geometry__affine=[None] * 16), "geometry.affine[0]: expected a number, got nil"),
        ("slices", changed(SLICES, geometry__forms=[]), "geometry.forms: expected a map, got an array"),
        ("slices", changed(SLICES, geometry__forms__srow=None), "geometry.forms.srow: missing"),
        ("slices", changed(SLICES, tensors=None), "tensors.image: missing"),
        ("slices", changed(SLICES, tensors__image=b"pixels"), "tensors.image: expected a map, got binary data"),
        ("slices", changed(SLICES, tensors__image__dtype=None), "tensors.image.dtype: nil is not one of BOOL"),
        ("slices", changed(SLICES, tensors__image__shape=[2, 1, 8, 8.0]), "tensors.image.shape: a size is not"),
        ("slices", changed(SLICES, tensors__image__data="x" * 256), "tensors.image.data: expected binary data"),
        ("slices", changed(SLICES, tensors__image__data="x" * 70_000), "tensors.image.data: text of over 65536 bytes"),
        ("slices", changed(SLICES, bundle=1), "bundle: expected text, got an integer"),
        ("features.unlabelled", changed(FEATURES, tap=None), "tap: missing"),
        ("features.unlabelled", changed(FEATURES, tensors__mask=None), "tensors.mask: missing"),
        ("graded", changed(GRADED, tensors__logit__data=None), "tensors.logit.data: expected binary data"),
    ],
)
def test_a_stage_that_sends_a_broken_part_fails_its_scan(key: str, body: bytes, reason: str, answers: Answers) -> None:
    answer = answers.to(key, body)
    assert answer is not None
    assert (answer.scan.id, answer.reason[: len(reason)]) == ("s1", reason)
    assert answers.dead_reason().startswith(reason)


def test_the_sender_of_a_message_over_the_limit_learns_its_size(answers: Answers) -> None:
    body = msgpack.packb(valid("scan", SUBMISSION) | {"source": {"data": bytes(17 * 2**20)}})
    answer = answers.to("scan", body)
    assert answer is not None
    assert (answer.scan.id, answer.reason) == ("s1", f"a message of {len(body)} bytes is over the limit of 16777216")
    assert answers.dead_reason() == answer.reason


@pytest.mark.parametrize(
    ("key", "body"),
    [
        ("failure.x", changed(FAILURE, reason=7)),
        ("failure.x", changed(FAILURE, kind="fail")),
        ("failure.x", changed(FAILURE, kind=...)),
        ("prediction.x", changed(PREDICTION, p_hgg=float("nan"))),
        ("prediction.x", changed(PREDICTION, kind=b"prediction")),
        ("generate", changed(FAILURE, scan__id=7)),
        ("generate", changed(PREDICTION, tensors=None)),
        ("generate", changed(SYNTHETIC, seed="x")),
        ("generate", encode(FAILURE)),
        ("slices", encode(PREDICTION)),
    ],
)
def test_a_broken_announcement_makes_no_failure_because_each_could_make_another_one(
    key: str, body: bytes, answers: Answers
) -> None:
    assert answers.to(key, body) is None
    assert answers.dead_reason()


def test_the_failure_has_the_attempt_of_the_message_and_its_id_is_the_same_each_time(answers: Answers) -> None:
    """The assembler ignores failures of lower attempts, and a client those that it has already."""
    body = changed(SLICES, geometry=None, scan__attempt=3)
    first, second = answers.to("slices", body), answers.to("slices", body)
    assert first == second
    assert first is not None
    assert first.scan.attempt == 3
    assert answers.dead_reason() == answers.dead_reason() == "geometry: missing"


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.sampled_from([msgpack.Timestamp(1, 2), msgpack.ExtType(5, b"x"), "x" * 5000, "x" * 70_000])
    | st.just(9000).map(lambda length: [0] * length),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=9) | st.binary(max_size=9) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in a document."""
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield (*path, key)
        yield from places(node[key], (*path, key))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from([m for m in ONE_OF_EACH if not is_announcement(m)]), st.data())
def test_any_change_to_a_message_is_answered_while_its_submission_is_intact(
    answers: Answers, message: Message, data: st.DataObject
) -> None:
    scan = replace(message.scan, submission=SUBMISSION, label=None)
    document = msgpack.unpackb(encode(replace(message, scan=scan)))
    intact = [("scan",), ("scan", "submission")]
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, last = data.draw(st.sampled_from([path for path in places(document) if path not in intact]))
        place = document
        for key in parents:
            place = place[key]
        match data.draw(st.sampled_from(["replace", "delete", "add"])):
            case "delete" if isinstance(place, dict):
                del place[last]
            case "add" if isinstance(place, dict):
                place[data.draw(st.text(max_size=9) | st.binary(max_size=9) | st.integers(0, 9))] = data.draw(anything)
            case _:
                place[last] = data.draw(anything)
    answer = answers.to(routing_key(replace(message, scan=scan)), msgpack.packb(document))
    assert answer is not None
    if answer.reason != "could be read":
        assert answers.dead_reason()[:4000] == answer.reason

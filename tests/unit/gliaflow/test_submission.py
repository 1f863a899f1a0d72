"""The exchange with the stages skips what is not an answer, and waits for the next message."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from gliaflow.submission import NoStage, Submission
from gliaflow_proto import FailureMessage, Scan, encode
from gliaflow_runtime.broker.connect import connect
from gliaflow_runtime.broker.interface import Broker, NoExchange
from gliaflow_runtime.broker.memory import MemoryBroker
from sample_messages import ONE_OF_EACH, changed

PREDICTION = ONE_OF_EACH[4]
NO_ANSWERS = [
    b"not msgpack",
    changed(PREDICTION, schema="gliaflow/2"),
    changed(PREDICTION, affine=[0.0] * 16),
    changed(PREDICTION, tensors__mask__shape=[120]),
    changed(PREDICTION, tensors__mask={"dtype": "FP64", "shape": [1, 1, 1], "data": bytes(8)}),
    encode(ONE_OF_EACH[0]),
]


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    with connect(f"memory://{request.node.name}") as broker:
        yield broker


def test_unreadable_messages_are_skipped_and_the_next_answer_is_returned(broker: Broker) -> None:
    with Submission(broker, by_uri=False) as submission:
        key = f"prediction.{submission.id}"
        for body in NO_ANSWERS:
            broker.publish(key, body)
        news = FailureMessage(id="f", scan=Scan(id="s", submission=submission.id), stage="extractor", reason="because")
        broker.publish(key, encode(news))  # by the key of another kind
        broker.publish(f"failure.{submission.id}", encode(news))
        assert submission.answer(5) == news
        assert "a 'failure' message must be published to the exchange 'gliaflow' with the key" in submission.unreadable
        started = time.monotonic()
        assert submission.answer(0.2) is None
        assert time.monotonic() - started < 2


class OldDefinitions(MemoryBroker):
    """A broker without the exchange for clients."""

    def publish(self, *arguments: object, **options: object) -> None:
        raise NoExchange("there is no exchange 'gliaflow.client' for the key 'generate'")


def test_a_missing_exchange_is_said_at_once_with_the_import_of_the_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that declare it may be starting, so the client waits nevertheless."""
    monkeypatch.setattr("gliaflow.submission.ROUTE_WAIT_S", 0.5)
    said: list[tuple[float, str]] = []

    def waiting(waited_s: float, reason: str) -> str:
        said.append((waited_s, reason))
        return reason

    with (
        OldDefinitions() as broker,
        Submission(broker, by_uri=False, waiting=waiting) as submission,
        pytest.raises(NoStage, match="Import those of this version") as ended,
    ):
        submission.generate("LGG", 1, 0)
    waited_s, reason = said[0]
    assert waited_s < 0.5
    assert "no exchange 'gliaflow.client'" in reason
    assert "start the stages" in reason
    assert reason in str(ended.value)

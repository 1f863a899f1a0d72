"""The exchange with the stages skips what is not an answer, and waits for the next message."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from gliaflow.submission import Submission
from gliaflow_proto import FailureMessage, Scan, encode
from gliaflow_runtime.broker.connect import connect
from gliaflow_runtime.broker.interface import Broker
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

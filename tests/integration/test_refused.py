"""A client in another language sends messages with mistakes to a RabbitMQ, and learns of each."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgpack
import pika
import pytest
from broken_messages import broken_messages, valid
from gliaflow_proto import FailureMessage, decode, message_id
from gliaflow_proto.routing import GENERATOR, PREPROCESSOR
from gliaflow_runtime.broker.connect import connect
from gliaflow_runtime.broker.credentials import Credentials

pytestmark = pytest.mark.rabbitmq
WITHIN_S = 60


class Client:
    """A client with pika and msgpack alone, as in the README."""

    def __init__(self, connection: pika.BlockingConnection) -> None:
        self._channel = connection.channel()
        self._channel.confirm_delivery()
        self._queue = self._channel.queue_declare("", exclusive=True).method.queue

    def new_submission(self) -> str:
        submission = uuid.uuid4().hex
        self._channel.queue_bind(self._queue, "gliaflow", f"failure.{submission}")
        return submission

    def send(self, key: str, body: bytes, properties: pika.BasicProperties | None = None) -> None:
        self._channel.basic_publish("gliaflow.client", key, body, properties)

    def failures(self, count: int) -> dict[str, FailureMessage]:
        """The next failures, by submission."""
        failures: dict[str, FailureMessage] = {}
        for method, _, body in self._channel.consume(self._queue, auto_ack=True, inactivity_timeout=WITHIN_S):
            if method is None:
                break
            message = decode(body)
            assert isinstance(message, FailureMessage)
            failures[method.routing_key.removeprefix("failure.")] = message
            if len(failures) == count:
                break
        self._channel.cancel()
        return failures


@pytest.fixture
def client(secrets: Path, rabbitmq_url: str) -> Iterator[Client]:
    access = Credentials(secrets / "gliaflow" / "password")
    host = urlsplit(rabbitmq_url).netloc.rpartition("@")[2]
    with pika.BlockingConnection(access.parameters(f"amqp://gliaflow@{host}/", "test")) as connection:
        yield Client(connection)


def test_each_mistake_is_answered_with_a_failure_that_names_the_field(client: Client, stages, rabbitmq_url) -> None:
    stages("preprocessor", "generator")
    sent = {}
    for number in range(len(broken_messages(""))):
        submission = client.new_submission()
        message = sent[submission] = broken_messages(submission)[number]
        client.send(message.key, message.body)
    answered = {submission: message for submission, message in sent.items() if message.scan is not None}
    failures = client.failures(len(answered))
    assert {answered[s].name: f.scan.id for s, f in failures.items()} == {m.name: m.scan for m in answered.values()}
    differing = {
        answered[submission].name: failure.reason
        for submission, failure in failures.items()
        if not failure.reason.startswith(answered[submission].reason)
    }
    assert differing == {}
    deadline = time.monotonic() + WITHIN_S
    with connect(rabbitmq_url) as broker:
        while broker.depth(PREPROCESSOR.dead) + broker.depth(GENERATOR.dead) < len(sent):
            assert time.monotonic() < deadline, "those that could not be answered are dead letters too"
            time.sleep(0.1)
    unanswered = [message.name for message in sent.values() if message.scan is None]
    assert len(answered) > 80
    assert len(unanswered) < 20, "no valid submission can be read in these"


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


PROPERTIES = [
    {},
    {"message_id": "x" * 255, "content_type": "application/json", "content_encoding": "gzip", "type": "t"},
    {"priority": 255, "delivery_mode": 1, "expiration": "60000", "reply_to": "amq.rabbitmq.reply-to.x"},
    {"timestamp": 2**63, "app_id": "a", "correlation_id": "c", "user_id": "gliaflow"},
    {"headers": {"x-delivery-count": 10**9}},  # only RabbitMQ's own count is one of attempts
    {"headers": {"x-first-death-reason": "x", "x-death": [{"routing-keys": [7], "time": "no"}]}},
    {"headers": {"integer": 1, "nil": None, "map": {"list": [True]}, "bytes": b"\xff", "long": "x" * 5000}},
    {"headers": {"nested": nested(3000)}},  # pika cannot read it
]


def test_the_amqp_properties_of_a_client_do_not_matter(client: Client, stages, rabbitmq_url: str) -> None:
    (preprocessor,) = stages("preprocessor")
    sent = {client.new_submission(): properties for properties in PROPERTIES}
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)  # to send the nested header
    try:
        for submission, properties in sent.items():
            client.send("scan", msgpack.packb(valid("scan", submission)), pika.BasicProperties(**properties))
    finally:
        sys.setrecursionlimit(limit)
    failures = client.failures(len(sent))
    assert failures.keys() == sent.keys()
    assert all("gzip" in failure.reason for failure in failures.values()), "the stage read each scan"
    assert {failure.id for failure in failures.values()} == {message_id("m1", "preprocessor", "failure")}
    assert '"broker connection lost"' not in preprocessor.log.read_text()
    with connect(rabbitmq_url) as broker:
        assert broker.depth(PREPROCESSOR.dead) == len(sent)

"""No user of the shipped definitions can make a stage or a client accept a message that this user may not send.

Each user tries the detours that RabbitMQ offers to a message: exchanges and queues of its own, alternate exchanges,
bindings, dead letters, the header CC, and queues by name. RabbitMQ stops most of them. What arrives nevertheless is
refused by its receiver (``check_route``).
"""

from __future__ import annotations

import itertools
import logging
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pika
import pytest
from gliaflow_proto import Message, ProtocolError, Queue, decode, encode, routing_key, submission_queue
from gliaflow_proto.routing import CLIENT_EXCHANGE, EXCHANGE, LABELLED_EXCHANGE, RECORDER, STAGE_QUEUES, check_route
from gliaflow_runtime.broker.credentials import Credentials
from gliaflow_runtime.broker.rabbitmq import AmqpBroker
from pika.exceptions import AMQPError
from sample_messages import ONE_OF_EACH

pytestmark = pytest.mark.rabbitmq

VICTIM = "sub"  # the submission of ONE_OF_EACH
SENDS = {  # kinds, and a key that the user may publish with
    "preprocessor": ({"slices", "failure"}, "slices"),
    "extractor": ({"features", "failure"}, "features.labelled"),
    "classifier": ({"graded", "prediction", "failure"}, "graded"),
    "generator": ({"synthetic", "failure"}, f"synthetic.{VICTIM}"),
    "trainer": (set(), "features.labelled"),
    "gliaflow": ({"generate"}, "scan"),  # its scans have no label
    "inbox": ({"generate"}, "scan"),
    "annotator": ({"generate", "scan"}, "scan.labelled"),
}
RECEIVERS = (*STAGE_QUEUES, RECORDER, submission_queue(VICTIM))
DEAD = tuple(Queue(queue.dead) for queue in (*STAGE_QUEUES, RECORDER))
OWN_DEAD = {"classifier": "(classifier|assembler)", "generator": "(generator|balancer)", "trainer": "recorder"}
FORGED = {"scan", "graded", "prediction"}
TARGETS = (EXCHANGE, CLIENT_EXCHANGE, LABELLED_EXCHANGE)
Step = Callable[[pika.channel.Channel], object]


class Forger:
    """One user's attempts to have a message delivered by every detour."""

    def __init__(self, parameters: list[pika.URLParameters], message: Message, allowed_key: str) -> None:
        self.parameters = parameters
        self.connection = pika.BlockingConnection(parameters)
        self.body, self.key, self.allowed_key = encode(message), routing_key(message), allowed_key

    def attempt(self, *steps: Step) -> bool:
        """Do these steps on a channel of their own, until RabbitMQ refuses one."""
        try:
            if not self.connection.is_open:
                self.connection = pika.BlockingConnection(self.parameters)
            with self.connection.channel() as channel:
                channel.confirm_delivery()
                for step in steps:
                    step(channel)
        except AMQPError:
            return False
        return True

    def send(self, exchange: str, key: str, *copies: str) -> Step:
        properties = pika.BasicProperties(headers={"CC": list(copies)} if copies else {}, delivery_mode=2)
        return lambda channel: channel.basic_publish(exchange, key, self.body, properties)

    def try_everything(self) -> None:
        both = ((self.key, self.allowed_key), (self.allowed_key, self.key))
        for target in (*TARGETS, *(queue.name for queue in DEAD)):
            self.attempt(self.send(target, self.key))
            for first, copy in both:
                self.attempt(self.send(target, first, copy))
        for queue in (*RECEIVERS, *DEAD):
            self.attempt(self.send("", queue.name))
            self.attempt(lambda c, queue=queue: c.exchange_declare(queue.name, "fanout"))
        for name in (f"gliaflow.submission.{uuid.uuid4().hex}", "gliaflow.mine", "gliaflow.recorder"):
            if self.attempt(lambda c, name=name: c.exchange_declare(name, "fanout")):
                for queue in (*RECEIVERS, *DEAD):
                    self.attempt(lambda c, name=name, queue=queue: c.queue_bind(queue.name, name))
                self.attempt(self.send(name, self.key))
                self.attempt(lambda c, name=name: c.exchange_delete(name))
            for target in TARGETS:
                self._by_own_exchange(name, target, both)
                self._by_dead_letters(name, target, both)

    def _by_own_exchange(self, name: str, target: str, both: tuple[tuple[str, str], ...]) -> None:
        """A fanout exchange that is bound to the target, or whose alternate exchange the target is."""
        for options in ({}, {"alternate-exchange": target}):
            if self.attempt(lambda c, options=options: c.exchange_declare(name, "fanout", arguments=options)):
                for key in ("#", self.key, self.allowed_key):
                    self.attempt(lambda c, key=key: c.exchange_bind(target, name, key))
                for first, copy in both:
                    self.attempt(self.send(name, first, copy))
                self.attempt(lambda c: c.exchange_delete(name))

    def _by_dead_letters(self, name: str, target: str, both: tuple[tuple[str, str], ...]) -> None:
        """A queue whose messages expire at once into the target."""
        for key in (None, self.key, self.allowed_key):
            options = {"x-dead-letter-exchange": target, "x-message-ttl": 0}
            options |= {"x-dead-letter-routing-key": key} if key else {}
            if self.attempt(lambda c, options=options: c.queue_declare(name, durable=True, arguments=options)):
                self.attempt(lambda c: c.exchange_declare(name, "fanout"), lambda c: c.queue_bind(name, name))
                for first, copy in both:
                    self.attempt(self.send(name, first, copy))
                self.attempt(lambda c: c.exchange_delete(name))
                self.attempt(lambda c: c.queue_delete(name))


@pytest.fixture
def receivers(rabbitmq_url: str) -> Iterator[AmqpBroker]:
    """The queues of all stages and of one client."""
    with AmqpBroker(rabbitmq_url) as broker:
        for queue in RECEIVERS:
            broker.declare(queue)
        yield broker
        for name in (RECORDER.name, RECORDER.dead, submission_queue(VICTIM).name):
            broker.delete(name)


@pytest.mark.parametrize("user", SENDS)
def test_no_detour_makes_a_receiver_accept_a_forged_message(
    user: str, receivers: AmqpBroker, secrets: Path, rabbitmq_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "pika")
    access = Credentials(secrets / user / "password")
    parameters = access.parameters(f"amqp://{user}@{urlsplit(rabbitmq_url).netloc.rpartition('@')[2]}/", "test")
    kinds, allowed_key = SENDS[user]
    accepted = []
    for forged in (message for message in ONE_OF_EACH if message.kind in FORGED - kinds):
        forger = Forger(parameters, forged, allowed_key)
        forger.try_everything()
        with suppress(AMQPError):
            forger.connection.close()
        accepted += list(itertools.chain.from_iterable(accepted_in(receivers, queue, forged) for queue in RECEIVERS))
        foreign = [queue for queue in DEAD if not re.match(rf"gliaflow\.{OWN_DEAD.get(user, user)}\.", queue.name)]
        accepted += [f"{forged.kind} in {queue.name}" for queue in foreign if receivers.depth(queue.name)]
    assert not accepted


def accepted_in(broker: AmqpBroker, queue: Queue, forged: Message) -> Iterator[str]:
    """The routes by which the receiver of this queue would accept the message. Empties the queue."""
    with broker.consume(queue, 200) as consumer:
        while (delivery := consumer.next(0.05)) is not None:
            consumer.ack(delivery)
            with suppress(ProtocolError):
                check_route(decode(delivery.body), delivery.exchange, delivery.key)
                yield f"{forged.kind} in {queue.name} by {delivery.exchange!r} with {delivery.key!r}"

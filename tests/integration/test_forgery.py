"""No user of the shipped definitions can make a stage or a client accept a message that this user may not send.

Each user tries the detours that RabbitMQ offers to a message: exchanges and queues of its own, alternate exchanges,
bindings, dead letters, the header CC, and queues by name. RabbitMQ stops most of them. What arrives nevertheless is
refused by its receiver (``check_route``).
"""

from __future__ import annotations

import itertools
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from gliaflow_proto import Message, ProtocolError, Queue, decode, encode, routing_key, submission_queue
from gliaflow_proto.routing import (
    CLIENT_EXCHANGE,
    EXCHANGE,
    LABELLED_EXCHANGE,
    PREPROCESSOR,
    RECORDER,
    STAGE_QUEUES,
    check_route,
)
from gliaflow_runtime.broker.credentials import Credentials
from gliaflow_runtime.broker.interface import REASON, SENT_TO, SENT_WITH, Delivery
from gliaflow_runtime.broker.rabbitmq import AmqpBroker
from gliaflow_runtime.stage import Outcome, Stage, Worker
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
    "gliaflow": ({"generate"}, "scan"),  # its scans have no label; inbox and dicom have the same rights
    "annotator": ({"generate", "scan"}, "scan.labelled"),
}
RECEIVERS = (*STAGE_QUEUES, RECORDER, submission_queue(VICTIM))
DEAD = tuple(Queue(queue.dead) for queue in (*STAGE_QUEUES, RECORDER))
OWN_DEAD = {"classifier": "(classifier|assembler)", "generator": "(generator|balancer)", "trainer": "recorder"}
TARGETS = (EXCHANGE, CLIENT_EXCHANGE, LABELLED_EXCHANGE)
Step = Callable[[pika.channel.Channel], object]


class Forger:
    """One user's attempts to have forged messages delivered by every detour."""

    def __init__(self, parameters: list[pika.URLParameters], forged: list[Message], allowed_key: str) -> None:
        self.parameters, self.forged, self.allowed_key = parameters, forged, allowed_key
        self.connect()

    def connect(self) -> None:
        self.connection = pika.BlockingConnection(self.parameters)
        self.open()

    def open(self) -> None:
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()

    def may(self, step: Step) -> bool:
        """Whether RabbitMQ does it. It closes the channel, or even the connection, when it refuses."""
        try:
            step(self.channel)
        except AMQPError:
            self.open() if self.connection.is_open else self.connect()
            return False
        return True

    def send(self, exchange: str, key: str = "") -> None:
        """Publish the messages to the exchange: with the key alone, or with their own key and an allowed one."""
        for message in self.forged:
            own, body = routing_key(message), encode(message)
            for first, copies in (
                [(key, [])] if key else [(own, []), (own, [self.allowed_key]), (self.allowed_key, [own])]
            ):
                properties = pika.BasicProperties(headers={"CC": copies} if copies else {}, delivery_mode=2)
                if not self.may(lambda c, f=first, b=body, p=properties: c.basic_publish(exchange, f, b, p)) and key:
                    return

    def try_everything(self) -> None:
        for target in (*TARGETS, *(queue.name for queue in DEAD)):
            self.send(target)
        for queue in (*RECEIVERS, *DEAD):
            self.send("", queue.name)
            self.may(lambda c, queue=queue: c.exchange_declare(queue.name, "fanout"))
        for name in (f"gliaflow.submission.{uuid.uuid4().hex}", "gliaflow.mine", "gliaflow.recorder"):
            self._by_own_exchange(name)
            self._by_dead_letters(name)

    def _by_own_exchange(self, name: str) -> None:
        """A fanout exchange that is bound to queues or a target, or whose alternate exchange the target is."""
        for target in (None, *TARGETS):
            options = {"alternate-exchange": target} if target else {}
            if self.may(lambda c, options=options: c.exchange_declare(name, "fanout", arguments=options)):
                for queue in (*RECEIVERS, *DEAD) if target is None else ():
                    self.may(lambda c, queue=queue: c.queue_bind(queue.name, name))
                for bound in TARGETS if target is None else ():
                    for key in ("#", self.allowed_key, *map(routing_key, self.forged)):
                        self.may(lambda c, bound=bound, key=key: c.exchange_bind(bound, name, key))
                self.send(name)
                self.may(lambda c: c.exchange_delete(name))

    def _by_dead_letters(self, name: str) -> None:
        """A queue whose messages expire at once into the target."""
        for target in TARGETS:
            for key in (None, self.allowed_key, "graded", f"prediction.{VICTIM}"):
                options = {"x-dead-letter-exchange": target, "x-message-ttl": 0}
                options |= {"x-dead-letter-routing-key": key} if key else {}
                if self.may(lambda c, options=options: c.queue_declare(name, durable=True, arguments=options)):
                    self.may(lambda c: c.exchange_declare(name, "fanout"))
                    self.may(lambda c: c.queue_bind(name, name))
                    self.send(name)
                    self.may(lambda c: c.exchange_delete(name))
                    self.may(lambda c: c.queue_delete(name))


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
    forger = Forger(parameters, [message for message in ONE_OF_EACH if message.kind not in kinds], allowed_key)
    forger.try_everything()
    forger.connection.close()
    accepted = list(itertools.chain.from_iterable(accepted_in(receivers, queue, kinds) for queue in RECEIVERS))
    foreign = [queue for queue in DEAD if not re.match(rf"gliaflow\.{OWN_DEAD.get(user, user)}\.", queue.name)]
    accepted += [queue.name for queue in foreign if receivers.depth(queue.name)]
    assert not accepted


def accepted_in(broker: AmqpBroker, queue: Queue, kinds: set[str]) -> Iterator[str]:
    """The forged messages that the receiver of this queue would accept. Empties the queue."""
    with broker.consume(queue, 200) as consumer:
        while (delivery := consumer.next(0.2)) is not None:
            consumer.ack(delivery)
            with suppress(ProtocolError):
                message = decode(delivery.body)
                check_route(message, delivery.exchange, delivery.key)
                if message.kind not in kinds:
                    yield f"{message.kind} in {queue.name} by {delivery.exchange!r} with {delivery.key!r}"


class Accepting(Stage):
    """A preprocessor that keeps what it accepts."""

    name, queue = "preprocessor", PREPROCESSOR

    def __init__(self) -> None:
        self.accepted: list[Message] = []

    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        self.accepted.append(message)
        return Outcome()


def test_a_refused_message_is_not_accepted_when_an_operator_replays_it(
    receivers: AmqpBroker, secrets: Path, rabbitmq_url: str, gliaflow: Callable[..., Any]
) -> None:
    """A client sends a labelled scan as one without a label; also one that only a later gliaflow can read."""
    access = Credentials(secrets / "gliaflow" / "password")
    labelled = next(message for message in ONE_OF_EACH if routing_key(message) == "scan.labelled")
    honest = replace(labelled, id="honest", scan=replace(labelled.scan, label=None))
    later = encode(labelled).replace(b"gliaflow/1", b"gliaflow/2")
    url = f"amqp://gliaflow@{urlsplit(rabbitmq_url).netloc.rpartition('@')[2]}/"
    with pika.BlockingConnection(access.parameters(url, "test")) as connection:
        for name, body in (("forged", encode(labelled)), ("later", later), ("honest", encode(honest))):
            properties = pika.BasicProperties(
                message_id=name, delivery_mode=2, headers={SENT_TO: "gliaflow.labelled", SENT_WITH: "scan.labelled"}
            )
            connection.channel().basic_publish(CLIENT_EXCHANGE, "scan", body, properties)
    with receivers.consume(PREPROCESSOR, 10) as consumer:
        for _ in range(3):
            delivery = consumer.next(10)
            receivers.dead_letter(delivery, "test")
            consumer.ack(delivery)
    done = gliaflow("dead", "replay", "--all", broker=rabbitmq_url, check=False)
    assert done.returncode == 1
    assert "forged is not replayed: scan.label: a labelled scan must be published to the exchange" in done.stdout
    assert "2 of 3 sent back to their queues" in done.stdout
    assert "1 refused" in done.stdout
    stage = Accepting()
    with AmqpBroker(rabbitmq_url) as broker, pytest.MonkeyPatch.context() as patch:
        patch.setattr("gliaflow_proto.reading.SCHEMA", "gliaflow/2")  # the stage is upgraded
        worker = Worker(stage, broker)
        thread = threading.Thread(target=worker.run)
        thread.start()
        until = time.monotonic() + 30
        while receivers.depth(PREPROCESSOR.dead) < 3 and time.monotonic() < until:
            time.sleep(0.1)
        worker.stop()
        thread.join(10)
    with receivers.consume(Queue(PREPROCESSOR.dead), 10) as dead:
        letters = [dead.next(10) for _ in range(3)]
        for letter in letters:
            dead.ack(letter)
    assert stage.accepted == [], "honest is of an old schema now, and later was sent by a client"
    assert {letter.route for letter in letters} == {(CLIENT_EXCHANGE, "scan")}, "also after the second death"
    assert any("needs the right to label" in letter.headers[REASON] for letter in letters)

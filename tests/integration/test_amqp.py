"""Features of the RabbitMQ broker only: connections that break, and policies."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pika
import pytest
from gliaflow_preprocessor.sources import SourceError, read_source
from gliaflow_proto import Queue, Source
from gliaflow_proto.routing import ASSEMBLERS, BALANCER, EXTRACTOR, PREPROCESSOR, exchange_of
from gliaflow_runtime.broker.interface import (
    DIED_IN,
    REASON,
    SENT_TO,
    SENT_WITH,
    BrokerError,
    Consumer,
    Delivery,
    NoExchange,
    Refused,
    Unroutable,
)
from gliaflow_runtime.broker.rabbitmq import AmqpBroker

pytestmark = pytest.mark.rabbitmq


@pytest.fixture
def broker(rabbitmq_url: str) -> Iterator[AmqpBroker]:
    with AmqpBroker(rabbitmq_url, connect_timeout=5) as broker:
        yield broker


@pytest.fixture
def queue(broker: AmqpBroker) -> Iterator[Queue]:
    """A queue of the test's own."""
    name = f"gliaflow.test-{uuid.uuid4().hex[:12]}"
    queue = Queue(name, (f"{name}.scan",))
    broker.declare(queue)
    yield queue
    broker.delete(queue.name)
    broker.delete(queue.dead)


def take(consumer: Consumer) -> Delivery:
    delivery = consumer.next(timeout=10)
    assert delivery is not None, "no message arrived"
    return delivery


def test_connections_outlive_a_compute_longer_than_several_heartbeats(rabbitmq_url: str, queue: Queue) -> None:
    # RabbitMQ closes a connection that was silent for two heartbeats
    url = f"{rabbitmq_url}?heartbeat=1"
    with AmqpBroker(url, connect_timeout=5) as broker, broker.consume(queue, 1) as consumer:
        broker.publish(queue.keys[0], b"first")
        delivery = take(consumer)
        time.sleep(4)
        assert broker.connected
        broker.publish(queue.keys[0], b"second")
        consumer.ack(delivery)
        assert take(consumer).body == b"second"


def test_consumer_resumes_after_its_connection_was_cut(
    broker: AmqpBroker, queue: Queue, rabbitmqctl: Callable[..., str]
) -> None:
    with broker.consume(queue, 3) as consumer:
        for number in range(3):
            broker.publish(queue.keys[0], b"%d" % number)
        in_work = take(consumer)
        rabbitmqctl("close_all_connections", "test")
        consumer.ack(in_work)  # too late: ignored, and the message comes again
        seen: dict[bytes, int] = {}
        while len(seen) < 3:
            delivery = take(consumer)
            consumer.ack(delivery)
            seen[delivery.body] = delivery.attempts
            assert delivery.tag > consumer.lost >= in_work.tag
        assert seen[b"0"] == 1
        assert consumer.next(0.2) is None
        assert broker.connected


def test_publisher_loses_no_message_when_its_connection_is_cut(
    broker: AmqpBroker, queue: Queue, rabbitmqctl: Callable[..., str]
) -> None:
    numbers, cut = iter(range(100_000)), threading.Event()
    sent: list[int] = []

    def publish() -> None:
        for number in numbers:
            broker.publish(queue.keys[0], b"%d" % number, message_id=str(number))
            sent.append(number)
            if cut.is_set():
                return

    thread = threading.Thread(target=publish)
    thread.start()
    for _ in range(3):
        time.sleep(0.2)
        rabbitmqctl("close_all_connections", "test")
    cut.set()
    thread.join(30)
    assert not thread.is_alive()
    with broker.consume(queue, 1000) as consumer:
        arrived: set[str] = set()
        while len(arrived) < len(sent) and (delivery := consumer.next(10)):
            arrived.add(delivery.message_id)
            consumer.ack(delivery)
    assert arrived == {str(number) for number in sent}


def test_queue_that_was_deleted_under_its_consumer_is_declared_again(
    broker: AmqpBroker, queue: Queue, rabbitmqctl: Callable[..., str]
) -> None:
    with broker.consume(queue, 1) as consumer:
        rabbitmqctl("delete_queue", queue.name)
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                broker.publish(queue.keys[0], b"again")
                break
            except BrokerError:
                time.sleep(0.1)
        assert take(consumer).body == b"again"


def test_message_over_the_limit_is_an_error_that_names_it(broker: AmqpBroker, queue: Queue) -> None:
    with pytest.raises(BrokerError, match=rf"17825792 bytes for '{queue.keys[0]}'"):
        broker.publish(queue.keys[0], bytes(17 * 2**20))
    with pytest.raises(BrokerError, match="0 bytes"):
        broker.publish(queue.keys[0], b"", headers={"long": "x" * 200_000})
    broker.publish(queue.keys[0], b"the connection is still open")


def test_id_that_is_not_text_and_headers_that_nearly_fill_a_frame_are_accepted(
    broker: AmqpBroker, queue: Queue, rabbitmq_url: str
) -> None:
    death = {"x-first-death-reason": "x", "x-death": [{"routing-keys": 5}]}  # no broker writes it like this
    properties = pika.BasicProperties(
        message_id=b"\xff" * 200, headers=death | {f"x-{n}": "語" * 1500 for n in range(25)}
    )
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        connection.channel().basic_publish("", queue.name, b"body", properties)
    with broker.consume(queue, 1) as consumer:
        delivery = take(consumer)
        assert delivery.message_id == "\ufffd" * 85, "as many as fit into a short string"
        broker.dead_letter(delivery, "語" * 5000)
        consumer.ack(delivery)
    with broker.consume(Queue(queue.dead), 1) as consumer:
        letter = take(consumer)
    assert letter.body == b"body"
    assert letter.headers[REASON] == "語" * 4000


def test_upload_in_an_exclusive_queue_is_an_error_of_the_sender(broker: AmqpBroker, rabbitmq_url: str) -> None:
    name = f"gliaflow.upload.{uuid.uuid4().hex}"
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        connection.channel().queue_declare(name, exclusive=True)
        with pytest.raises(SourceError, match="RESOURCE_LOCKED"):
            read_source(Source(upload=name, chunks=1), [], broker)
    assert broker.connected


def test_declaring_a_queue_with_other_arguments_is_an_error(broker: AmqpBroker) -> None:
    name = f"gliaflow.test.{uuid.uuid4().hex}"
    broker.declare(Queue(name, expires_s=60))
    with pytest.raises(BrokerError, match="inequivalent arg"):
        broker.declare(Queue(name, expires_s=61))
    assert broker.connected


def test_stage_queue_that_exists_is_left_as_it_is(broker: AmqpBroker, queue: Queue) -> None:
    """Its definitions belong to the administrator, and a stage has no right to declare (``gliaflow doctor`` checks)."""
    broker.declare(Queue(queue.name, ("other",), single_active=True))
    with pytest.raises(Unroutable):
        broker.publish("other", b"")


def test_wrong_password_is_an_error_at_once_and_never_printed(rabbitmq_server: str) -> None:
    parts = urlsplit(rabbitmq_server)
    began = time.monotonic()
    with pytest.raises(BrokerError, match="refuses the access") as caught:
        AmqpBroker(f"amqp://guest:s3cret@{parts.hostname}:{parts.port}/")
    assert time.monotonic() - began < 5
    assert "s3cret" not in str(caught.value)
    assert f"guest@{parts.hostname}" in str(caught.value)


def test_unknown_virtual_host_is_an_error_at_once(rabbitmq_server: str) -> None:
    parts = urlsplit(rabbitmq_server)
    with pytest.raises(BrokerError, match="virtual host"):
        AmqpBroker(f"amqp://{parts.netloc}/nowhere")


@pytest.mark.parametrize("messages", [1, 2, 3])
def test_connection_that_is_cut_in_the_handshake_is_tried_again(rabbitmq_server: str, messages: int) -> None:
    """It must not be reported as a wrong password."""
    parts = urlsplit(rabbitmq_server)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        cut = threading.Thread(target=_serve_second, args=[listener, (parts.hostname, parts.port), messages])
        cut.start()
        port = listener.getsockname()[1]
        with AmqpBroker(f"amqp://{parts.username}:{parts.password}@127.0.0.1:{port}/", connect_timeout=20) as broker:
            assert broker.connected
        cut.join()


def _serve_second(listener: socket.socket, target: tuple[str, int], messages: int) -> None:
    """Forward so many messages on the first connection, then close it. Forward everything on the second."""
    near, _ = listener.accept()
    with near, socket.create_connection(target) as far, contextlib.suppress(OSError):
        for _ in range(messages):
            far.sendall(near.recv(4096))
            near.sendall(far.recv(4096))
    near, _ = listener.accept()
    with near, socket.create_connection(target) as far:
        back = threading.Thread(target=_forward, args=[far, near])
        back.start()
        _forward(near, far)
        back.join()


def _forward(source: socket.socket, to: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(4096):
            to.sendall(data)
        to.shutdown(socket.SHUT_WR)


def test_broker_that_accepts_the_connection_and_stays_silent_is_reported_after_the_timeout() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(BrokerError, match=r"no RabbitMQ at .* within 1 s \(Timeout during AMQP handshake"),
    ):
        AmqpBroker(f"amqp://127.0.0.1:{silent.getsockname()[1]}/?stack_timeout=0.3", connect_timeout=1)


def test_missing_broker_is_an_error_with_the_remedy() -> None:
    with pytest.raises(
        BrokerError, match=r"amqp://guest@127.0.0.1:1/ within 0.5 s .*refused.* GLIAFLOW_BROKER"
    ) as caught:
        AmqpBroker("amqp://guest:s3cret@127.0.0.1:1/", connect_timeout=0.5)
    assert "s3cret" not in str(caught.value)


def test_with_an_infinite_outage_timeout_a_missing_broker_is_no_error() -> None:
    """The connection is there at once, says what is wrong, and its calls wait until the process ends."""
    with AmqpBroker("amqp://guest:s3cret@127.0.0.1:1/", connect_timeout=0.2, outage_timeout=math.inf) as broker:
        assert not broker.connected
        assert "no connection to RabbitMQ at amqp://guest@127.0.0.1:1/" in broker.trouble
        broker.hurried = True
        with pytest.raises(BrokerError, match="no connection to RabbitMQ"):
            broker.queue_state("gliaflow.preprocessor")


def test_url_with_an_invalid_option_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="heartbeat"):
        AmqpBroker("amqp://guest:s3cret@localhost/?heartbeat=soon")


class TestPolicies:
    """The policies of ``deploy/rabbitmq/definitions.json`` apply."""

    @pytest.fixture(autouse=True)
    def _policies(self, rabbitmqctl: Callable[..., str]) -> None:
        assert "gliaflow.dead-letters" in rabbitmqctl("list_policies")

    def test_full_queue_refuses_messages(self, broker: AmqpBroker) -> None:
        def fill() -> None:
            for _ in range(300):
                broker.publish("slices", b"")

        broker.declare(EXTRACTOR)
        with pytest.raises(Refused, match="slices"):
            fill()
        assert broker.depth(EXTRACTOR.name) < 200
        with broker.consume(EXTRACTOR, 50) as consumer:
            for _ in range(50):
                consumer.ack(take(consumer))
        broker.publish("slices", b"the queue has room again")

    def test_queue_of_the_assembler_never_refuses_and_that_of_the_balancer_drops_the_oldest(
        self, broker: AmqpBroker
    ) -> None:
        broker.declare(ASSEMBLERS[0])
        broker.declare(BALANCER)
        for _ in range(300):
            broker.publish("graded", b"")
        for _ in range(100):  # the classifier's queue gets them too, and takes 128
            broker.publish("features.labelled", b"")
        assert broker.depth(ASSEMBLERS[0].name) == 300
        assert broker.depth(BALANCER.name) == 64

    def test_message_that_was_requeued_too_often_becomes_a_dead_letter(self, broker: AmqpBroker) -> None:
        broker.declare(EXTRACTOR)
        broker.publish("slices", b"poison", message_id="id-1")
        with broker.consume(EXTRACTOR, 1) as consumer:
            while delivery := consumer.next(1):
                consumer.requeue(delivery)
        with broker.consume(Queue(EXTRACTOR.dead), 10) as dead:
            letter = take(dead)
        assert (letter.body, letter.message_id) == (b"poison", "id-1")
        assert "delivery_limit" in letter.headers[REASON]
        assert (letter.headers[DIED_IN], letter.key) == (EXTRACTOR.name, "slices")
        assert letter.route == ("gliaflow", "slices")

    @pytest.mark.parametrize("exchange", ["", "gliaflow", "gliaflow.labelled"])
    def test_the_sender_of_a_message_that_the_broker_gives_up_cannot_forge_its_reason_or_route(
        self, broker: AmqpBroker, rabbitmq_url: str, exchange: str
    ) -> None:
        """RabbitMQ 3 takes over parts of a sender's ``x-death``. What the key does not confirm is no route."""
        broker.declare(PREPROCESSOR)
        death = {"queue": PREPROCESSOR.name, "reason": "delivery_limit", "exchange": exchange, "count": 0}
        forged = {REASON: "harmless", SENT_TO: "gliaflow.labelled", SENT_WITH: "scan.labelled", "x-death": [death]}
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbitmq_url))) as connection:
            connection.channel().basic_publish("gliaflow.client", "scan", b"", pika.BasicProperties(headers=forged))
        with broker.consume(PREPROCESSOR, 1) as consumer:
            while delivery := consumer.next(1):
                consumer.requeue(delivery)
        with broker.consume(Queue(PREPROCESSOR.dead), 10) as dead:
            letter = take(dead)
            dead.ack(letter)
        assert letter.headers[REASON] == "delivery_limit: the broker gave it up"
        assert letter.route in ((PREPROCESSOR.dead, "scan"), ("gliaflow.client", "scan"))

    def test_reading_dead_letters_without_acknowledging_keeps_them(self, broker: AmqpBroker) -> None:
        broker.declare(EXTRACTOR)
        broker.dead_letter(Delivery(EXTRACTOR.name, "slices", b""), "reason")
        for _ in range(25):
            with broker.consume(Queue(EXTRACTOR.dead), 10) as dead:
                take(dead)
        until = time.monotonic() + 10
        while broker.depth(EXTRACTOR.dead) != 1:  # the broker needs a moment to requeue it
            assert time.monotonic() < until
            time.sleep(0.05)


def test_any_node_of_a_cluster_is_enough(rabbitmq_server: str) -> None:
    """The other nodes may be down. A refused password is still an error."""
    parts = urlsplit(rabbitmq_server)
    user, _, node = parts.netloc.rpartition("@")
    for _ in range(4):  # the client tries the nodes in random order
        with AmqpBroker(f"amqp://{user}@127.0.0.1:1,{node},127.0.0.1:2{parts.path}", connect_timeout=5) as broker:
            assert broker.connected
    with pytest.raises(BrokerError, match="refuses the access") as caught:
        AmqpBroker(f"amqp://guest:s3cret@127.0.0.1:1,{node}/", connect_timeout=20)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ValueError, match="a node between the commas is empty"):
        AmqpBroker(f"amqp://{user}@{node},/")


def test_a_consumer_reads_no_more_than_its_stage_can_hold(
    broker: AmqpBroker, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The assembler receives up to 2,000 messages ahead, each of up to 16 MiB."""
    monkeypatch.setattr("gliaflow_runtime.broker.rabbitmq_consumer.WAITING_BYTES", 3 * 2**16)
    monkeypatch.setattr("gliaflow_runtime.broker.rabbitmq_consumer.WAITING_S", 20)
    for _ in range(10):
        broker.publish(queue.keys[0], bytes(2**16))
    with broker.consume(queue, 100) as consumer:
        while consumer._arrived.qsize() < 3:
            time.sleep(0.01)
        time.sleep(0.5)
        assert consumer._arrived.qsize() == 3
        for _ in range(10):
            consumer.ack(take(consumer))
    assert broker.depth(queue.name) == 0


def test_a_consumer_that_has_no_room_keeps_its_connection_and_closes_at_once(
    rabbitmq_url: str, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gliaflow_runtime.broker.rabbitmq_consumer.WAITING_BYTES", 2**16)
    with AmqpBroker(f"{rabbitmq_url}?heartbeat=2", connect_timeout=5) as broker:
        for _ in range(30):
            broker.publish(queue.keys[0], bytes(2**16))
        consumer = broker.consume(queue, 100)
        time.sleep(8)
        assert consumer.lost == 0
        assert consumer._arrived.qsize() < 25, "a delivery waits for a quarter of the heartbeat"
    with AmqpBroker(rabbitmq_url, connect_timeout=5) as broker:
        consumer = broker.consume(queue, 100)
        time.sleep(1)
        consumer.close()
        assert not consumer.thread._thread.is_alive(), "it does not wait for the room that never comes"


def test_a_message_for_an_exchange_that_does_not_exist_is_refused_by_name(
    broker: AmqpBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gliaflow_runtime.broker.rabbitmq.exchange_of", lambda key: "gliaflow.none")
    with pytest.raises(NoExchange, match=r"there is no exchange 'gliaflow\.none' for the key 'scan'"):
        broker.publish("scan", b"")


def test_a_message_that_one_full_queue_refuses_is_in_the_other_queues(
    broker: AmqpBroker, queue: Queue, rabbitmq_url: str
) -> None:
    """So an answer reaches its client even if a stage gives up publishing it (``ANNOUNCE_S``)."""
    full, key = f"{queue.name}.full", queue.keys[0]
    arguments = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbitmq_url))) as connection:
        channel = connection.channel()
        channel.queue_declare(full, durable=True, arguments=arguments)
        channel.queue_bind(full, exchange_of(key), key)
        try:
            sent = 0
            with contextlib.suppress(Refused):
                for sent in range(20):
                    broker.publish(key, b"", message_id=str(sent))
            with broker.consume(queue, 100) as consumer:
                ids = [take(consumer).message_id for _ in range(sent + 1)]
        finally:
            channel.queue_delete(full)
    assert sent < 19, "the last was refused"
    assert ids[-1] == str(sent)

"""Uploads on RabbitMQ: each queue that a client can make is read, or refused within seconds, and ends no stage."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from gliaflow.submission import Submission
from gliaflow_preprocessor.sources import MAX_CHUNKS, UPLOAD_WAIT_S, SourceError, UploadGone, read_source
from gliaflow_proto import FailureMessage, Queue, Scan, ScanMessage, Source, encode
from gliaflow_proto.routing import PREPROCESSOR
from gliaflow_runtime.broker.credentials import Credentials
from gliaflow_runtime.broker.rabbitmq import AmqpBroker
from processes import Stage

pytestmark = pytest.mark.rabbitmq
QUORUM = {"x-queue-type": "quorum"}


@pytest.fixture
def preprocessor(secrets: Path, rabbitmq_url: str) -> Iterator[AmqpBroker]:
    """A connection with the permissions of the preprocessor."""
    host = urlsplit(rabbitmq_url).netloc.rpartition("@")[2]
    password = Credentials(secrets / "preprocessor" / "password")
    with AmqpBroker(f"amqp://preprocessor@{host}/", credentials=password, connect_timeout=5) as broker:
        yield broker


@pytest.fixture
def client(secrets: Path, rabbitmq_url: str) -> Iterator[Any]:
    """A bare pika channel with the permissions of a client."""
    host = urlsplit(rabbitmq_url).netloc.rpartition("@")[2]
    access = Credentials(secrets / "gliaflow" / "password")
    with pika.BlockingConnection(access.parameters(f"amqp://gliaflow@{host}/", "test")) as connection:
        yield connection.channel()


@pytest.fixture
def admin(rabbitmq_url: str) -> Iterator[Any]:
    """A bare pika channel with all permissions."""
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        yield connection.channel()


@pytest.fixture
def name(client: Any, rabbitmq_url: str) -> Iterator[str]:
    name = f"gliaflow.upload.{uuid.uuid4().hex}"
    yield name
    with AmqpBroker(rabbitmq_url, connect_timeout=5) as broker:
        broker.delete(name)


def declare(client: Any, name: str, **arguments: object) -> None:
    names = {key.replace("_", "-"): value for key, value in arguments.items()}
    client.queue_declare(name, durable=True, arguments=names or QUORUM)
    client.queue_bind(name, "gliaflow.client", name.removeprefix("gliaflow."))


def send(client: Any, name: str, *chunks: bytes) -> None:
    client.confirm_delivery()
    for number, chunk in enumerate(chunks):
        properties = pika.BasicProperties(message_id=str(number))
        client.basic_publish("gliaflow.client", name.removeprefix("gliaflow."), chunk, properties)


def read(broker: AmqpBroker, name: str, chunks: int) -> bytes:
    """The upload. Whatever is wrong, the reading ends soon and the connection stays."""
    started = time.monotonic()
    try:
        return read_source(Source(upload=name, chunks=chunks), [], broker)
    finally:
        assert time.monotonic() - started < 3 * UPLOAD_WAIT_S
        assert broker.queue_state(PREPROCESSOR.name), "the connection is open"


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"x_queue_type": "classic"},
        {"x_max_priority": 5},
        {"x_queue_mode": "lazy"},
        {"x_queue_type": "quorum", "x_single_active_consumer": True},
    ],
)
def test_chunks_in_a_queue_of_any_type_are_read(
    preprocessor: AmqpBroker, client: Any, name: str, arguments: dict[str, object]
) -> None:
    declare(client, name, **arguments)
    send(client, name, b"a ", b"sc", b"an")
    for _ in range(3):  # a retry finds them again
        assert read(preprocessor, name, 3) == b"a scan"


def test_as_many_chunks_as_allowed_are_read_also_if_each_is_there_twice(
    preprocessor: AmqpBroker, client: Any, name: str
) -> None:
    declare(client, name)
    send(client, name, *[b"x"] * MAX_CHUNKS)
    send(client, name, *[b"x"] * MAX_CHUNKS)
    assert read(preprocessor, name, MAX_CHUNKS) == b"x" * MAX_CHUNKS


def test_a_stream_is_refused(preprocessor: AmqpBroker, client: Any, name: str) -> None:
    declare(client, name, x_queue_type="stream")
    send(client, name, b"a ", b"scan")
    with pytest.raises(SourceError, match="0 of 2 chunks arrived"):
        read(preprocessor, name, 2)


def test_an_exclusive_queue_is_refused(preprocessor: AmqpBroker, client: Any, name: str) -> None:
    client.queue_declare(name, exclusive=True)
    with pytest.raises(SourceError, match="RESOURCE_LOCKED"):
        read(preprocessor, name, 1)
    client.queue_delete(name)


@pytest.mark.parametrize("exclusive", [True, False])
def test_chunks_that_another_consumer_holds_are_not_awaited_for_long(
    preprocessor: AmqpBroker, client: Any, admin: Any, name: str, exclusive: bool
) -> None:
    """No client has the right to do this."""
    declare(client, name, x_queue_type="classic")
    send(client, name, b"a ", b"scan")
    admin.basic_qos(prefetch_count=1)
    admin.basic_consume(name, lambda *_: None, exclusive=exclusive)
    admin.connection.process_data_events(0.5)
    with pytest.raises(SourceError, match="1 of 2 chunks arrived"):
        read(preprocessor, name, 2)
    if exclusive:
        with pytest.raises(SourceError, match="ACCESS_REFUSED"):
            read(preprocessor, name, 1)


def test_an_upload_that_is_deleted_while_it_is_read_is_gone(
    preprocessor: AmqpBroker, client: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(client, name)
    send(client, name, b"a ", b"scan")
    consume = preprocessor.consume

    def consume_late(queue: Queue, prefetch: int) -> Any:
        consumer = consume(queue, 1)
        client.queue_delete(name)
        return consumer

    monkeypatch.setattr(preprocessor, "consume", consume_late)
    with pytest.raises(UploadGone):
        read(preprocessor, name, 2)


def test_an_upload_of_a_few_bytes_does_not_hold_a_stage(
    stages: Callable[..., list[Stage]], rabbitmq_url: str, client: Any, name: str
) -> None:
    """Each scan is a dead letter at once, its sender gets a failure, and no other attempt follows."""
    (stage,) = stages("preprocessor")
    with AmqpBroker(rabbitmq_url, connect_timeout=5) as broker, Submission(broker, by_uri=False) as submission:
        for bodies in [b""], [b"a"], [b"a", b""], [b"a"] * 5:
            declare(client, name)
            send(client, name, *bodies)
            scan = Scan(id=f"s{bodies}", submission=submission.id)
            message = ScanMessage(id=f"m{bodies}", scan=scan, source=Source(upload=name, chunks=2))
            started = time.monotonic()
            broker.publish("scan", encode(message), message_id=message.id)
            answer = submission.answer(60)
            assert isinstance(answer, FailureMessage)
            assert (answer.scan.id, answer.reason[:15]) == (scan.id, "source.upload: ")
            assert time.monotonic() - started < 3 * UPLOAD_WAIT_S
            broker.delete(name)
        assert (broker.depth(PREPROCESSOR.dead), broker.depth(PREPROCESSOR.name)) == (4, 0)
    assert stage.get("/readyz")[0] == 200

"""The contract of ``Broker``, tested on the embedded broker and on RabbitMQ."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from gliaflow.scans import Input
from gliaflow.sequences import SequenceInput
from gliaflow.submission import Submission
from gliaflow_preprocessor.sources import read_source
from gliaflow_proto import Queue, ScanMessage, decode, expect, submission_queue, upload_queue
from gliaflow_proto.routing import PREPROCESSOR, exchange_of
from gliaflow_runtime.broker.connect import connect
from gliaflow_runtime.broker.interface import (
    DIED_AT,
    DIED_IN,
    REASON,
    SENT_TO,
    SENT_WITH,
    Broker,
    BrokerError,
    Consumer,
    Delivery,
    QueueState,
    Unroutable,
)

Make = Callable[..., Queue]


@pytest.fixture(params=["memory", pytest.param("amqp", marks=pytest.mark.rabbitmq)])
def open_broker(request: pytest.FixtureRequest) -> Iterator[Callable[[], Broker]]:
    """Opens connections to one broker, each like that of another process."""
    url = f"memory://{uuid.uuid4()}" if request.param == "memory" else request.getfixturevalue("rabbitmq_server")
    opened: list[Broker] = []

    def open_one() -> Broker:
        opened.append(connect(url, connect_timeout=5))
        return opened[-1]

    yield open_one
    for broker in opened:
        broker.close()


@pytest.fixture
def broker(open_broker: Callable[[], Broker]) -> Broker:
    return open_broker()


@pytest.fixture
def make(open_broker: Callable[[], Broker]) -> Iterator[Make]:
    """Declares a queue for the test, bound to ``<its name>.scan`` only, and deletes it afterwards."""
    connection = open_broker()
    declared: list[Queue] = []

    def declare(**options: object) -> Queue:
        name = f"gliaflow.test-{uuid.uuid4().hex[:12]}"
        declared.append(replace(Queue(name, (f"{name}.scan",)), **options))  # type: ignore[arg-type]
        connection.declare(declared[-1])
        return declared[-1]

    yield declare
    for queue in declared:
        connection.delete(queue.name)
        connection.delete(queue.dead)


def key(queue: Queue) -> str:
    return f"{queue.name}.scan"


def receive(consumer: Consumer, count: int) -> list[Delivery]:
    """Exactly ``count`` deliveries, not acknowledged."""
    received: list[Delivery] = []
    for _ in range(count):
        delivery = consumer.next(timeout=5)
        assert delivery is not None, f"only {len(received)} of {count} arrived"
        received.append(delivery)
    return received


def eventually(condition: Callable[[], bool], within_s: float = 5) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_message_arrives_as_it_was_published(broker: Broker, make: Make) -> None:
    queue = make()
    broker.publish(key(queue), b"body", message_id="id-1", headers={"traceparent": "00-1"})
    with broker.consume(queue, 1) as consumer:
        [delivery] = receive(consumer, 1)
        assert (delivery.queue, delivery.key) == (queue.name, key(queue))
        assert (delivery.body, delivery.message_id, delivery.attempts) == (b"body", "id-1", 0)
        assert delivery.headers["traceparent"] == "00-1"
        consumer.ack(delivery)
        assert consumer.next(timeout=0.1) is None
    assert broker.depth(queue.name) == 0


def test_message_is_in_the_queue_once_publish_returns(broker: Broker, make: Make) -> None:
    queue = make()
    for count in (1, 2, 3):
        broker.publish(key(queue), b"")
        assert broker.depth(queue.name) == count


def test_messages_arrive_in_the_order_of_publishing(broker: Broker, make: Make) -> None:
    queue = make()
    for number in range(50):
        broker.publish(key(queue), b"%d" % number)
    with broker.consume(queue, 10) as consumer:
        for number in range(50):
            [delivery] = receive(consumer, 1)
            assert delivery.body == b"%d" % number
            consumer.ack(delivery)


def test_message_goes_to_every_queue_with_a_matching_key(broker: Broker, make: Make) -> None:
    prefix = uuid.uuid4().hex
    all_features = make(keys=(f"{prefix}.features.*",))
    labelled = make(keys=(f"{prefix}.features.labelled",))
    everything = make(keys=(f"{prefix}.#",))
    broker.publish(f"{prefix}.features.labelled", b"")
    broker.publish(f"{prefix}.features.unlabelled", b"")
    broker.publish(f"{prefix}.scan", b"")
    assert [broker.depth(queue.name) for queue in (all_features, labelled, everything)] == [2, 1, 3]


def test_message_that_matches_no_queue_is_an_error(broker: Broker) -> None:
    with pytest.raises(Unroutable):
        broker.publish(f"nobody.{uuid.uuid4().hex}", b"")
    with pytest.raises(Unroutable):
        broker.send(f"gliaflow.test-{uuid.uuid4().hex}", b"")


def test_optional_message_that_matches_no_queue_is_no_error(broker: Broker) -> None:
    broker.publish(f"nobody.{uuid.uuid4().hex}", b"", mandatory=False)


def test_send_reaches_a_queue_by_its_name(broker: Broker, make: Make) -> None:
    queue = make(keys=())
    broker.send(queue.name, b"body", message_id="id", headers={"a": "b"})
    with broker.consume(queue, 1) as consumer:
        [delivery] = receive(consumer, 1)
    assert (delivery.body, delivery.message_id, delivery.headers["a"]) == (b"body", "id", "b")


def test_large_message_arrives_whole(broker: Broker, make: Make) -> None:
    queue, body = make(), bytes(range(256)) * 2**15  # 8 MiB
    broker.publish(key(queue), body)
    with broker.consume(queue, 1) as consumer:
        [delivery] = receive(consumer, 1)
        assert delivery.body == body
        consumer.ack(delivery)


def test_crash_of_a_consumer_loses_no_message(open_broker: Callable[[], Broker], make: Make) -> None:
    queue, other = make(), open_broker()
    for number in range(3):
        other.publish(key(queue), b"%d" % number)
    crashing = open_broker()
    consumer = crashing.consume(queue, 2)
    first, _ = receive(consumer, 2)
    consumer.ack(first)
    crashing.close()
    with other.consume(queue, 3) as consumer:
        again = receive(consumer, 2)
    assert sorted(delivery.body for delivery in again) == [b"1", b"2"]
    assert max(delivery.attempts for delivery in again) == 1


def test_attempts_count_earlier_deliveries(broker: Broker, make: Make) -> None:
    queue = make()
    broker.publish(key(queue), b"poison")
    with broker.consume(queue, 1) as consumer:
        for attempts in range(4):
            [delivery] = receive(consumer, 1)
            assert delivery.attempts == attempts
            consumer.requeue(delivery)


def test_a_settled_delivery_cannot_be_settled_again(broker: Broker, make: Make) -> None:
    """The assembler may still hold a delivery that the worker returned."""
    queue = make()
    broker.publish(key(queue), b"part")
    with broker.consume(queue, 2) as consumer:
        [returned] = receive(consumer, 1)
        consumer.requeue(returned)
        [again] = receive(consumer, 1)
        consumer.ack(returned)
        broker.publish(key(queue), b"next")
        assert receive(consumer, 1)[0].body == b"next", "the channel is open"
        assert consumer.lost == 0
    with broker.consume(queue, 2) as consumer:
        assert sorted(delivery.body for delivery in receive(consumer, 2)) == [b"next", b"part"]
    assert again.attempts == 1


def test_returned_messages_come_before_new_ones(broker: Broker, make: Make) -> None:
    queue = make()
    for body in (b"old", b"new"):
        broker.publish(key(queue), body)
    with broker.consume(queue, 1) as consumer:
        assert receive(consumer, 1)[0].body == b"old"
    with broker.consume(queue, 1) as consumer:
        assert receive(consumer, 1)[0].body == b"old"


def test_dead_letter_carries_the_reason_and_the_message(broker: Broker, make: Make) -> None:
    queue = make()
    broker.publish(key(queue), b"not msgpack", message_id="id-1", headers={"traceparent": "00-1"})
    with broker.consume(queue, 1) as consumer:
        [delivery] = receive(consumer, 1)
        broker.dead_letter(delivery, "not a msgpack message")
        consumer.ack(delivery)
    with broker.consume(Queue(queue.dead), 10) as dead:
        [letter] = receive(dead, 1)
    assert (letter.body, letter.message_id, letter.key) == (b"not msgpack", "id-1", key(queue))
    assert letter.headers[REASON] == "not a msgpack message"
    assert letter.headers[DIED_IN] == queue.name
    assert letter.exchange == queue.dead
    assert letter.headers["traceparent"] == "00-1"
    assert letter.headers[DIED_AT].endswith("+00:00")


def test_delivery_names_the_exchange_where_it_was_published(broker: Broker, make: Make) -> None:
    queue = make()
    broker.publish(key(queue), b"by key")
    broker.send(queue.name, b"by name")
    with broker.consume(queue, 2) as consumer:
        deliveries = receive(consumer, 2)
    assert [delivery.exchange for delivery in deliveries] == ["gliaflow", ""]


def test_dead_letters_stay_after_reading(broker: Broker, make: Make) -> None:
    queue = make()
    for number in range(5):
        broker.dead_letter(Delivery(queue.name, key(queue), b"%d" % number), f"reason {number}")
    for _ in range(3):
        seen = []
        with broker.consume(Queue(queue.dead), 100) as dead:
            while letter := dead.next(timeout=0.3):
                seen.append(letter.headers[REASON])
        assert seen == [f"reason {number}" for number in range(5)]
    eventually(lambda: broker.depth(queue.dead) == 5)


def test_dead_letter_can_be_replayed(broker: Broker, make: Make) -> None:
    queue = make()
    broker.dead_letter(Delivery(queue.name, key(queue), b"body", "id-1"), "reason")
    with broker.consume(Queue(queue.dead), 10) as dead:
        [letter] = receive(dead, 1)
        broker.send(letter.headers[DIED_IN], letter.body, message_id=letter.message_id)
        dead.ack(letter)
    assert broker.depth(queue.dead) == 0
    assert broker.depth(queue.name) == 1


def test_at_most_prefetch_deliveries_are_unacknowledged(broker: Broker, make: Make) -> None:
    queue = make()
    for _ in range(5):
        broker.publish(key(queue), b"")
    with broker.consume(queue, 2) as consumer:
        first, _ = receive(consumer, 2)
        assert consumer.next(timeout=0.2) is None
        consumer.ack(first)
        receive(consumer, 1)
        assert consumer.next(timeout=0.2) is None


def test_consumers_share_the_work(open_broker: Callable[[], Broker], make: Make) -> None:
    queue, seen, lock = make(), [], threading.Lock()

    def work(broker: Broker, worker: int) -> None:
        with broker.consume(queue, 1) as consumer:
            while delivery := consumer.next(timeout=1):
                time.sleep(0.01)
                with lock:
                    seen.append((worker, delivery.body))
                consumer.ack(delivery)

    publisher = open_broker()
    for number in range(40):
        publisher.publish(key(queue), b"%d" % number)
    threads = [threading.Thread(target=work, args=(open_broker(), worker)) for worker in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(body for _, body in seen) == sorted(b"%d" % number for number in range(40))
    assert min([by for by, _ in seen].count(worker) for worker in (0, 1)) > 5


def test_only_one_consumer_of_a_single_active_queue_receives(open_broker: Callable[[], Broker], make: Make) -> None:
    queue = make(single_active=True)
    one, two = open_broker(), open_broker()
    active, waiting = one.consume(queue, 1), two.consume(queue, 1)
    for _ in range(3):
        one.publish(key(queue), b"")
    for _ in range(2):
        [delivery] = receive(active, 1)
        active.ack(delivery)
    assert waiting.next(timeout=0.2) is None
    one.close()
    receive(waiting, 1)


def test_upload_is_read_to_its_end_and_deleted(open_broker: Callable[[], Broker]) -> None:
    client, stage = open_broker(), open_broker()
    queue = upload_queue(uuid.uuid4().hex)
    client.declare(queue)
    for number in range(6):
        client.publish(queue.keys[0], b"%d" % number)
    with stage.consume(Queue(queue.name), 6) as consumer:
        chunks = receive(consumer, 6)
    stage.delete(queue.name)
    assert b"".join(chunk.body for chunk in chunks) == b"012345"
    assert stage.depth(queue.name) == 0
    with pytest.raises(Unroutable):
        client.publish(queue.keys[0], b"")
    stage.delete(queue.name)  # a second delete is no error


@pytest.mark.parametrize(("size", "by_value"), [(256, True), (257, False)])
def test_a_4d_file_whose_sequences_make_a_message_too_large_is_an_upload(
    open_broker: Callable[[], Broker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, by_value: bool
) -> None:
    monkeypatch.setattr("gliaflow.submission.BY_VALUE_BYTES", 1024)
    stage, path = open_broker(), tmp_path / "four.nii"
    path.write_bytes(bytes(size))
    stage.declare(PREPROCESSOR)
    sequences = {name: SequenceInput(path, str(number)) for number, name in enumerate(("t1", "t1ce", "t2"), 1)}
    with Submission(open_broker(), by_uri=False) as submission, stage.consume(PREPROCESSOR, 1) as consumer:
        submission.submit(Input(path, "P1", "P1", channel="0", sequences=sequences))
        [delivery] = receive(consumer, 1)
        consumer.ack(delivery)
        message = expect(decode(delivery.body), ScanMessage)
        assert (message.source.data is not None) == by_value
        assert {file.source for file in message.sequences.values()} == {message.source}
        assert read_source(message.source, [], stage) == bytes(size)


def test_a_scan_whose_sequence_cannot_be_read_leaves_no_upload(
    open_broker: Callable[[], Broker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploads of an attempt that was sent before stay: it may be answered yet."""
    monkeypatch.setattr("gliaflow.submission.BY_VALUE_BYTES", 64)
    broker, path, made = open_broker(), tmp_path / "flair.nii", list[str]()
    broker.declare(PREPROCESSOR)

    def recorded(name: str) -> Queue:
        made.append(upload_queue(name).name)
        return upload_queue(name)

    monkeypatch.setattr("gliaflow.submission.upload_queue", recorded)
    path.write_bytes(bytes(100))
    scan = Input(path, "P1", "P1", sequences={"t1ce": SequenceInput(path.with_name("missing.nii"))})
    with Submission(open_broker(), by_uri=False) as submission, broker.consume(PREPROCESSOR, 1) as consumer:
        submission.submit(replace(scan, sequences={}))
        consumer.ack(*receive(consumer, 1))
        with pytest.raises(ValueError, match=r"^t1ce: .*missing.nii: No such file"):
            submission.submit(scan, attempt=1)
        first, second = made
        assert broker.depth(first) == 2
        assert broker.queue_state(second) is None


def test_submission_receives_only_its_own_answers(broker: Broker) -> None:
    one, other = (submission_queue(uuid.uuid4().hex) for _ in range(2))
    broker.declare(one)
    broker.declare(other)
    broker.publish(one.keys[0], b"answer")
    assert (broker.depth(one.name), broker.depth(other.name)) == (1, 0)
    broker.delete(one.name)
    broker.delete(other.name)


def test_queue_may_be_declared_again(broker: Broker, make: Make) -> None:
    queue = make(single_active=True, expires_s=60)
    broker.publish(key(queue), b"")
    broker.declare(queue)
    assert broker.depth(queue.name) == 1


def test_queue_state_counts_waiting_messages_and_consumers(broker: Broker, make: Make) -> None:
    queue = make()
    broker.publish(key(queue), b"")
    assert broker.queue_state(queue.name) == QueueState(waiting=1, consumers=0)
    with broker.consume(queue, 1) as consumer:
        receive(consumer, 1)
        assert broker.queue_state(queue.name) == QueueState(waiting=0, consumers=1)
    assert broker.queue_state("gliaflow.nowhere") is None


def test_observer_receives_copies_beside_the_queue(broker: Broker, make: Make) -> None:
    queue = make()
    with (
        broker.observe(queue.keys, length=10, size=1000) as one,
        broker.observe(queue.keys, length=10, size=1000) as two,
    ):
        broker.publish(key(queue), b"body", message_id="id-1", headers={"traceparent": "00-1"})
        for observer in (one, two):
            [delivery] = receive(observer, 1)
            assert (delivery.key, delivery.body, delivery.message_id) == (key(queue), b"body", "id-1")
            assert delivery.exchange == exchange_of(key(queue))
            observer.ack(delivery)
        assert broker.depth(queue.name) == 1


def test_observer_that_reads_nothing_refuses_no_message_and_keeps_the_newest(broker: Broker, make: Make) -> None:
    queue, small = make(), 100
    with broker.observe(queue.keys, length=5, size=2**20) as observer:
        for number in range(small):
            broker.publish(key(queue), b"%d" % number)
        received = []
        while delivery := observer.next(timeout=1):
            received.append(int(delivery.body))
            observer.ack(delivery)
        assert received[-5:] == list(range(small - 5, small))
        assert len(received) <= 4 + 5, "those that it may hold, and those that may wait"
        assert broker.depth(queue.name) == small


def test_observer_keeps_no_more_bytes_than_its_size(broker: Broker, make: Make) -> None:
    queue, body = make(), bytes(2**20)
    with broker.observe(queue.keys, length=1000, size=3 * len(body)) as observer:
        for _ in range(20):
            broker.publish(key(queue), body)
        count = 0
        while delivery := observer.next(timeout=1):
            observer.ack(delivery)
            count += 1
        assert 3 <= count <= 4 + 3
        broker.publish(key(queue), bytes(4 * len(body)))  # alone larger than its queue
        broker.publish(key(queue), b"after")
        while (delivery := observer.next(timeout=5)) and delivery.body != b"after":
            observer.ack(delivery)
        assert delivery


def test_queue_of_an_observer_ends_with_it(broker: Broker, open_broker: Callable[[], Broker], make: Make) -> None:
    queue = make()
    other = open_broker()
    with other.observe(queue.keys, length=10, size=1000) as observer:
        broker.publish(key(queue), b"")
        [delivery] = receive(observer, 1)
        assert delivery.queue.startswith("gliaflow.console.")
        assert broker.queue_state(queue.name) == QueueState(1, 0)
    eventually(lambda: broker.queue_state(delivery.queue) is None)
    with pytest.raises(BrokerError):
        observer.next(timeout=0)
    other.observe(queue.keys, length=10, size=1000)
    other.close()
    broker.publish(key(queue), b"")
    assert broker.depth(queue.name) == 2


def test_missing_queue_is_empty_and_cannot_be_consumed(broker: Broker) -> None:
    nowhere = Queue(f"gliaflow.test-{uuid.uuid4().hex}")
    assert broker.depth(nowhere.name) == 0
    with pytest.raises(BrokerError, match=nowhere.name):
        broker.consume(nowhere, 1)
    assert broker.connected


def test_closed_consumer_ignores_acknowledgements_and_its_messages_return(broker: Broker, make: Make) -> None:
    queue = make()
    broker.publish(key(queue), b"")
    consumer = broker.consume(queue, 1)
    [delivery] = receive(consumer, 1)
    consumer.close()
    consumer.ack(delivery)
    consumer.requeue(delivery)
    consumer.close()
    eventually(lambda: broker.depth(queue.name) == 1)
    with pytest.raises(BrokerError):
        consumer.next(timeout=0.1)


def test_queues_outlive_the_connection_that_declared_them(open_broker: Callable[[], Broker], make: Make) -> None:
    queue, first = make(), open_broker()
    first.publish(key(queue), b"")
    assert first.connected
    first.close()
    assert not first.connected
    with pytest.raises(BrokerError, match="closed"):
        first.publish(key(queue), b"")
    assert open_broker().depth(queue.name) == 1


def test_waiting_for_a_message_ends_as_soon_as_it_arrives(broker: Broker, make: Make) -> None:
    queue = make()
    with broker.consume(queue, 1) as consumer:
        timer = threading.Timer(0.2, broker.publish, [key(queue), b""])
        timer.start()
        began = time.monotonic()
        receive(consumer, 1)
        assert time.monotonic() - began < 2
        timer.join()


@pytest.mark.parametrize("url", ["http://localhost", "rabbit", "amqp:/localhost", ""])
def test_unknown_kind_of_broker_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"memory://, amqp:// or amqps://"):
        connect(url)


def test_a_dead_letter_names_the_route_of_its_sender_also_after_a_replay(broker: Broker, make: Make) -> None:
    """The headers of the sender do not count, and those of an operator do."""
    queue = make()
    forged = {SENT_TO: "", SENT_WITH: "scan.labelled"}
    broker.publish(key(queue), b"", headers=forged)
    for headers in (None, {SENT_TO: "gliaflow.client", SENT_WITH: "scan"}):
        broker.send(queue.name, b"", headers=headers)
    with broker.consume(queue, 10) as consumer:
        for delivery in receive(consumer, 3):
            broker.dead_letter(delivery, "reason")
            consumer.ack(delivery)
    with broker.consume(Queue(queue.dead), 10) as dead:
        routes = [letter.route for letter in receive(dead, 3)]
    assert routes == [("gliaflow", key(queue)), ("", queue.name), ("gliaflow.client", "scan")]

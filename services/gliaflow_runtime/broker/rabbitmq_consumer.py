"""Receive the deliveries of a RabbitMQ queue."""

from __future__ import annotations

import queue as queues
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from gliaflow_proto import Queue
from gliaflow_proto.routing import exchange_of
from pika.adapters.utils import io_services_utils
from pika.exceptions import ChannelClosedByBroker

from gliaflow_runtime.broker import safe_headers
from gliaflow_runtime.broker.connection_thread import Channel, ConnectionThread, Server
from gliaflow_runtime.broker.interface import (
    DIED_AT,
    DIED_IN,
    REASON,
    SENT_TO,
    SENT_WITH,
    AccessDenied,
    BrokerError,
    Consumer,
    Delivery,
    NoQueue,
)

WAITING_BYTES = 256 * 2**20  # of deliveries that the stage has not taken; then the connection reads no more
WAITING_S = (
    15.0  # the longest wait of a delivery, also a quarter of the heartbeat: pika may read three before it sends one
)
SMALL_BYTES = 48 * 2**10  # such deliveries never wait: all of them weigh less than WAITING_BYTES
READ_BYTES = 32 * 2**10  # of a read; pika goes on up to 100 KiB, then sends what waits
SHORT_STRING = 255  # bytes: a message id, AMQP 0-9-1 section 4.2.5.3

# With its own 4 KiB, pika copies what it has of a frame 32 times: a third of a client's CPU time for a message of 2 MB.
io_services_utils._AsyncTransportBase._MAX_RECV_BYTES = READ_BYTES
safe_headers.install()


class AmqpConsumer(Consumer):
    """Receives the deliveries of one RabbitMQ queue on a separate connection.

    Parameters
    ----------
    what: what it receives, for logs and errors.
    declare: called with the channel of each new connection; returns the name of the queue.
    """

    def __init__(self, server: Server, what: str, prefetch: int, declare: Callable[[Channel], str]) -> None:
        self.queue = ""
        self._prefetch = prefetch
        self._declare = declare
        self._arrived: queues.SimpleQueue[Delivery | None] = queues.SimpleQueue()  # None: the end
        self._room = threading.Condition()
        self._waiting = 0  # bytes in ``_arrived``
        self._open: dict[int, tuple[Channel, int]] = {}  # our tag: the channel of the delivery, and its tag there
        self._tag = 0
        self.thread = ConnectionThread(server, f"consume {what}", self._prepare, self._lost, self._ended)
        try:
            self.thread.open()
        except ChannelClosedByBroker as error:
            error_type = NoQueue if error.reply_code == 404 else AccessDenied
            raise error_type(f"cannot receive from {what!r}: {error.reply_text}") from None

    def next(self, timeout: float) -> Delivery | None:
        until = time.monotonic() + timeout
        while True:
            try:
                delivery = self._arrived.get(timeout=max(0, until - time.monotonic()))
            except queues.Empty:
                return None
            if delivery is None:
                self._arrived.put(None)
                raise self.thread.failure or BrokerError(f"the consumer of {self.queue!r} is closed")
            with self._room:
                self._waiting -= len(delivery.body)
                self._room.notify()
            if delivery.tag in self._open:
                return delivery

    def ack(self, delivery: Delivery) -> None:
        self._settle(delivery, lambda channel, tag: channel.basic_ack(tag))

    def requeue(self, delivery: Delivery) -> None:
        # not basic.nack, which RabbitMQ 4.3 and later does not count as an attempt
        self._settle(delivery, lambda channel, tag: channel.basic_reject(tag, requeue=True))

    def close(self) -> None:
        self.stop()
        self.thread.close()

    def stop(self) -> None:
        """Begin to close, without waiting."""
        self.thread.stop()
        with self._room:
            self._room.notify_all()

    def _settle(self, delivery: Delivery, answer: Callable[[Channel, int], None]) -> None:
        channel, tag = self._open.pop(delivery.tag, (None, 0))

        def job(current: Channel) -> None:
            if current is channel:
                answer(channel, tag)

        if channel:
            self.thread.post(job)

    # the methods below run in the connection's thread

    def _prepare(self, channel: Channel) -> None:
        self.queue = self._declare(channel)
        channel.basic_qos(prefetch_count=self._prefetch)
        channel.add_on_cancel_callback(lambda _: self.thread.renew("the broker ended the consumer"))
        channel.basic_consume(self.queue, self._receive)

    def _receive(self, channel: Channel, method: Any, properties: Any, body: bytes) -> None:
        self._tag += 1
        self._open[self._tag] = (channel, method.delivery_tag)
        headers = properties.headers or {}
        count = headers.get("x-delivery-count")  # of a first delivery, it could only be the sender's
        delivery = Delivery(
            queue=self.queue,
            key=_string(method.routing_key),
            body=body,
            message_id=_string(properties.message_id),
            headers=_texts(headers, _string(method.routing_key)),
            attempts=count if method.redelivered and isinstance(count, int) else int(method.redelivered),
            tag=self._tag,
            exchange=_string(method.exchange),
        )
        self._await_room(len(body), _heartbeat_s(channel))
        self._arrived.put(delivery)

    def _await_room(self, size: int, heartbeat_s: float) -> None:
        """Wait until the stage has taken enough of what has arrived. Meanwhile, this connection reads nothing."""

        def has_room() -> bool:
            return self._waiting + size <= WAITING_BYTES or self.thread.closed

        with self._room:
            if size > SMALL_BYTES:
                self._room.wait_for(has_room, min(WAITING_S, heartbeat_s / 4))
            self._waiting += size

    def _lost(self) -> None:
        self._open.clear()  # the broker delivers them again
        self.lost = self._tag

    def _ended(self) -> None:
        self._open.clear()
        self._arrived.put(None)


def _string(value: str | bytes | None) -> str:
    """An AMQP short string as text, cut to its limit. pika returns bytes for one that is not UTF-8."""
    value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""
    return value.encode()[:SHORT_STRING].decode("utf-8", "ignore")


def _heartbeat_s(channel: Channel) -> float:
    """The interval of heartbeats that was agreed with the broker."""
    return float(channel.connection._impl.params.heartbeat or 60)


def _texts(headers: Mapping[str, Any], key: str) -> dict[str, str]:
    """The text headers. If the broker dead-lettered the message itself, also those that ``dead_letter`` adds.

    A sender may have written any of them, and RabbitMQ 3 keeps parts of a sender's ``x-death``. So a route that the
    message's key does not confirm is no route: it counts as the dead-letter queue's own exchange, which none may use.
    """
    texts = {name: value for name, value in headers.items() if isinstance(name, str) and isinstance(value, str)}
    deaths = headers.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict):
        death, queue = deaths[0], str(deaths[0].get("queue", ""))
        texts[REASON] = f"{death.get('reason', 'unknown')}: the broker gave it up"
        texts[DIED_IN] = queue
        texts.pop(DIED_AT, None)
        if isinstance(death.get("time"), datetime):
            texts[DIED_AT] = death["time"].replace(tzinfo=UTC).isoformat()
        exchange = death.get("exchange")
        if not (exchange == "" and key == queue):  # otherwise, an operator sent it, with the headers of ``route``
            texts[SENT_TO] = exchange if exchange == exchange_of(key) else Queue(queue).dead
            texts[SENT_WITH] = key
    return texts

"""``amqp://``: RabbitMQ through pika. A broker has one connection to publish, and each consumer one to receive.

Only this module, ``connection_thread``, ``credentials`` and ``safe_headers`` use pika.
"""

from __future__ import annotations

import queue as queues
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

import pika
from gliaflow_proto import Queue
from gliaflow_proto.routing import exchange_of
from pika.exceptions import AMQPError, ChannelClosedByBroker, NackError, UnroutableError

from gliaflow_runtime.broker import safe_headers
from gliaflow_runtime.broker.connection_thread import Channel, ConnectionThread, Server, text
from gliaflow_runtime.broker.credentials import Credentials
from gliaflow_runtime.broker.interface import (
    DIED_AT,
    DIED_IN,
    REASON,
    SENT_TO,
    SENT_WITH,
    AccessDenied,
    Broker,
    BrokerError,
    Consumer,
    Delivery,
    Headers,
    NoExchange,
    NoQueue,
    QueueState,
    Refused,
    Unroutable,
)

# headers must fit into one frame of 128 KiB, or RabbitMQ closes the connection
MAX_REASON = 4000
MAX_HEADERS, MAX_HEADER = 20, 1000
WAITING_BYTES = 256 * 2**20  # of deliveries that the stage has not taken; then the connection reads no more
WAITING_S = (
    15.0  # the longest wait of a delivery, also a quarter of the heartbeat: pika may read three before it sends one
)
SMALL_BYTES = 32 * 2**10  # such deliveries never wait: all of them weigh less than WAITING_BYTES
SHORT_STRING = 255  # bytes: a message id, AMQP 0-9-1 section 4.2.5.3

Result = TypeVar("Result")
safe_headers.install()


class AmqpBroker(Broker):
    """A connection to RabbitMQ. Threads may share it.

    It survives restarts of the broker: calls wait until the broker is back. Then the queues are declared again, and
    a message whose confirm was missing is published again under the same id.

    Parameters
    ----------
    url: ``amqp://user:password@host:port/vhost``; ``amqps://`` for TLS; options as in pika's ``URLParameters``.
        The nodes of a cluster are separated by commas: ``amqp://user:password@one:5672,two:5672/vhost``.
    credentials: password and certificates that the URL does not have.
    connect_timeout: seconds to wait for the first connection.
    outage_timeout: seconds to wait for a new connection after a loss.
    about: what RabbitMQ shows about this client's connections.
    waiting: called about once a second while a call waits for the broker, with the reason and the remedy.

    Raises
    ------
    ValueError: the URL is malformed.
    BrokerError: the broker does not answer, or denies access.
    """

    def __init__(
        self,
        url: str,
        *,
        credentials: Credentials | None = None,
        connect_timeout: float = 60,
        outage_timeout: float = 300,
        about: Mapping[str, str] | None = None,
        waiting: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._server = Server(
            url, credentials or Credentials(), connect_timeout, outage_timeout, dict(about or {}), waiting
        )
        self._known: dict[str, Queue] = {}
        self._consumers: list[AmqpConsumer] = []
        self._thread = ConnectionThread(self._server, "publish", self._prepare)
        self._thread.open()

    def declare(self, queue: Queue) -> None:
        try:
            self._manage(f"declare {queue.name!r}", lambda channel: _declare(channel, queue))
        except AccessDenied as error:
            raise AccessDenied(
                f"{error}: the queue or its dead letters are missing, and this user may not declare them "
                "(rabbitmqctl import_definitions secrets/rabbitmq/definitions.json)"
            ) from None
        self._known[queue.name] = queue

    def publish(
        self, key: str, body: bytes, *, message_id: str = "", headers: Headers = None, mandatory: bool = True
    ) -> None:
        self._put(exchange_of(key), key, body, message_id, headers, mandatory)

    def send(self, queue: str, body: bytes, *, message_id: str = "", headers: Headers = None) -> None:
        self._put("", queue, body, message_id, headers)

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        exchange, key = delivery.route
        headers = {
            **{name: value[:MAX_HEADER] for name, value in list(delivery.headers.items())[:MAX_HEADERS]},
            SENT_TO: exchange,
            SENT_WITH: key,
            REASON: reason[:MAX_REASON],
            DIED_IN: delivery.queue,
            DIED_AT: datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        self._put(Queue(delivery.queue).dead, key, delivery.body, delivery.message_id, headers)

    def consume(self, queue: Queue, prefetch: int) -> AmqpConsumer:
        consumer = AmqpConsumer(self._server, queue.name, prefetch, self._known)
        self._consumers = [*(other for other in self._consumers if not other.thread.closed), consumer]
        return consumer

    def delete(self, queue: str) -> None:
        self._known.pop(queue, None)
        for consumer in self._consumers:
            if consumer.queue == queue:
                consumer.close()
        self._manage(f"delete {queue!r}", lambda channel: channel.queue_delete(queue))

    def queue_state(self, queue: str) -> QueueState | None:
        def count(channel: Channel) -> QueueState | None:
            try:
                state = channel.queue_declare(queue, passive=True).method
            except ChannelClosedByBroker as error:
                if error.reply_code == 404:
                    return None
                raise
            return QueueState(int(state.message_count), int(state.consumer_count))

        return self._manage(f"read the state of {queue!r}", count)

    @property
    def connected(self) -> bool:
        return self._thread.connected and all(c.thread.closed or c.thread.connected for c in self._consumers)

    @property
    def trouble(self) -> str:
        open_threads = [self._thread, *(c.thread for c in self._consumers if not c.thread.closed)]
        return next((thread.trouble for thread in open_threads if thread.trouble), "")

    @property
    def hurried(self) -> bool:
        return self._server.hurried

    @hurried.setter
    def hurried(self, value: bool) -> None:
        self._server.hurried = value

    def close(self) -> None:
        self._thread.stop()
        for consumer in self._consumers:
            consumer.stop()
        for thread in [self._thread, *(consumer.thread for consumer in self._consumers)]:
            thread.close()

    def _prepare(self, channel: Channel) -> None:
        for queue in list(self._known.values()):
            _declare(channel, queue)
        channel.confirm_delivery()

    def _manage(self, what: str, action: Callable[[Channel], Result]) -> Result:
        """Run ``action`` on a separate channel, since the broker closes a channel when it refuses a request."""

        def job(channel: Channel) -> Result:
            with channel.connection.channel() as own:
                return action(own)

        try:
            return self._thread.call(job)
        except AMQPError as error:
            denied = isinstance(error, ChannelClosedByBroker) and error.reply_code == 403
            raise (AccessDenied if denied else BrokerError)(f"cannot {what}: {text(error)}") from None

    def _put(
        self, exchange: str, key: str, body: bytes, message_id: str, headers: Headers, mandatory: bool = True
    ) -> None:
        properties = pika.BasicProperties(
            content_type="application/msgpack",
            delivery_mode=pika.DeliveryMode.Persistent.value,
            message_id=message_id or None,
            headers=dict(headers or {}),
        )
        try:
            self._thread.call(lambda channel: channel.basic_publish(exchange, key, body, properties, mandatory))
        except UnroutableError:
            raise Unroutable(f"no queue is bound to the key {key!r} of exchange {exchange!r}") from None
        except NackError:
            raise Refused(f"the broker refused a message for {key!r}: a queue is full") from None
        except ChannelClosedByBroker as error:
            if error.reply_code == 404 and not mandatory:  # the exchange does not exist, so no queue is bound to it
                return
            if error.reply_code == 404:
                raise NoExchange(f"there is no exchange {exchange!r} for the key {key!r}") from None
            error_type = AccessDenied if error.reply_code == 403 else BrokerError
            raise error_type(f"the broker refused a message of {len(body)} bytes for {key!r}: {text(error)}") from None
        except AMQPError as error:
            raise BrokerError(f"the broker refused a message of {len(body)} bytes for {key!r}: {text(error)}") from None


class AmqpConsumer(Consumer):
    """Receives the deliveries of one RabbitMQ queue on a separate connection."""

    def __init__(self, server: Server, queue: str, prefetch: int, known: Mapping[str, Queue]) -> None:
        self.queue = queue
        self._prefetch = prefetch
        self._known = known  # queues to declare again if the broker has lost them
        self._arrived: queues.SimpleQueue[Delivery | None] = queues.SimpleQueue()  # None: the end
        self._room = threading.Condition()
        self._waiting = 0  # bytes in ``_arrived``
        self._open: dict[int, tuple[Channel, int]] = {}  # our tag: the channel of the delivery, and its tag there
        self._tag = 0
        self.thread = ConnectionThread(server, f"consume {queue}", self._prepare, self._lost, self._ended)
        try:
            self.thread.open()
        except ChannelClosedByBroker as error:
            error_type = NoQueue if error.reply_code == 404 else AccessDenied
            raise error_type(f"cannot receive from {queue!r}: {error.reply_text}") from None

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
        if self.queue in self._known:
            _declare(channel, self._known[self.queue])
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


def _declare(channel: Channel, queue: Queue) -> None:
    """Declare the queue, its bindings and its dead letters, unless they exist. Its limits are policies of the broker.

    ``deploy/rabbitmq`` declares the stages' queues, since the users of stages have no right to. An earlier version
    declared queues that were bound differently, and no exchange for dead letters: then everything is declared again.
    """
    keeps_dead_letters = queue.expires_s is None
    complete = keeps_dead_letters and all(_exists(channel, kind, queue.dead) for kind in ("exchange", "queue"))
    if complete and _exists(channel, "queue", queue.name):
        return
    arguments: dict[str, Any] = {"x-queue-type": "quorum"}
    if keeps_dead_letters and not complete:
        channel.queue_declare(queue.dead, durable=True, arguments=arguments)
    if queue.expires_s is not None:
        arguments = arguments | {"x-expires": queue.expires_s * 1000}
    if queue.single_active:
        arguments = arguments | {"x-single-active-consumer": True}
    channel.queue_declare(queue.name, durable=True, arguments=arguments)
    for key in queue.keys:
        exchange = exchange_of(key)
        if not _exists(channel, "exchange", exchange):
            channel.exchange_declare(exchange, "topic", durable=True)
        channel.queue_bind(queue.name, exchange, key)
    if keeps_dead_letters and not complete:  # last, since its existence says that all is declared
        channel.exchange_declare(queue.dead, "fanout", durable=True)
        channel.queue_bind(queue.dead, queue.dead)


def _exists(channel: Channel, kind: Literal["exchange", "queue"], name: str) -> bool:
    """Whether a passive declaration finds it. It needs no right."""
    try:
        with channel.connection.channel() as own:
            (own.exchange_declare if kind == "exchange" else own.queue_declare)(name, passive=True)
    except ChannelClosedByBroker as error:
        if error.reply_code != 404:
            raise
        return False
    return True


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

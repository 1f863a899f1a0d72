"""``amqp://``: RabbitMQ through pika. A broker has one connection to publish, and each consumer one to receive.

Only the modules ``rabbitmq…``, ``connection_thread``, ``credentials`` and ``safe_headers`` use pika.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TypeVar

import pika
from gliaflow_proto import Queue
from gliaflow_proto.routing import exchange_of
from pika.exceptions import AMQPError, ChannelClosedByBroker, NackError, UnroutableError

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
    Delivery,
    Headers,
    NoExchange,
    QueueState,
    Refused,
    Unroutable,
)
from gliaflow_runtime.broker.rabbitmq_consumer import AmqpConsumer
from gliaflow_runtime.broker.rabbitmq_queues import declare, declare_observing

# headers must fit into one frame of 128 KiB, or RabbitMQ closes the connection
MAX_REASON = 4000
MAX_HEADERS, MAX_HEADER = 20, 1000
OBSERVED_AT_ONCE = 4  # deliveries that an observer may hold: each may weigh 8 MiB

Result = TypeVar("Result")


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
    outage_timeout: seconds to wait for a new connection after a loss; ``math.inf`` as for ``connect``.
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
        self._requests: Channel = None  # the channel of _manage
        self._thread = ConnectionThread(self._server, "publish", self._prepare)
        self._thread.open()

    def declare(self, queue: Queue) -> None:
        try:
            self._manage(f"declare {queue.name!r}", lambda channel: declare(channel, queue))
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
        def prepare(channel: Channel) -> str:
            if queue.name in self._known:  # declared again, if the broker has lost it
                declare(channel, self._known[queue.name])
            return queue.name

        return self._add(AmqpConsumer(self._server, queue.name, prefetch, prepare))

    def observe(self, keys: tuple[str, ...], *, length: int, size: int) -> AmqpConsumer:
        def prepare(channel: Channel) -> str:
            return declare_observing(channel, keys, length, size)

        return self._add(AmqpConsumer(self._server, " ".join(keys), OBSERVED_AT_ONCE, prepare))

    def _add(self, consumer: AmqpConsumer) -> AmqpConsumer:
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
            declare(channel, queue)
        channel.confirm_delivery()

    def _manage(self, what: str, action: Callable[[Channel], Result]) -> Result:
        """Run ``action`` on a channel of its own, since the broker closes a channel when it refuses a request.

        It is kept for the next request: to open and close one costs more than most requests.
        """

        def job(channel: Channel) -> Result:
            kept = self._requests
            if kept is None or not kept.is_open or kept.connection is not channel.connection:
                self._requests = kept = channel.connection.channel()
            return action(kept)

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

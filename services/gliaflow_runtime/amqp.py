"""``amqp://``: RabbitMQ through pika. Nothing else in gliaflow knows pika.

pika's connections are not thread-safe, and one that nobody attends to misses its heartbeats. So each connection here
(a ``_Link``) belongs to a thread of its own that attends to it all the time; other threads leave jobs for it. A broker
has one link to publish on, and each consumer one to receive on.
"""

from __future__ import annotations

import contextlib
import queue as queues
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pika
import structlog
from gliaflow_proto import Queue
from gliaflow_proto.routing import DEAD_EXCHANGE, EXCHANGE
from pika.exceptions import (
    AMQPConnectionError,
    AMQPError,
    AuthenticationError,
    ChannelClosedByBroker,
    ChannelWrongStateError,
    ConnectionClosedByBroker,
    NackError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
    UnroutableError,
)

from gliaflow_runtime.broker import (
    DIED_AT,
    DIED_IN,
    REASON,
    ROUTING_KEY,
    Broker,
    BrokerError,
    Consumer,
    Delivery,
    Refused,
    Unroutable,
)

HEARTBEAT_S = 30  # where the URL has no ?heartbeat=
BLOCKED_S = 300  # a broker out of memory or disk blocks its publishers: after so long, try a new connection
PAUSE_S = (0.1, 10.0)  # between attempts to connect: first and longest
STEADY_S = 5.0  # a connection that lived so long was a good one: the pauses start anew
MAX_REASON = 4000  # headers must fit into one frame of 128 KiB, or RabbitMQ closes the connection
FRAME_FAULTS = range(501, 506)  # reply codes that blame what was sent, not the state of the broker

log = structlog.get_logger()
Channel = Any  # pika is not typed for us
Result = TypeVar("Result")


class AmqpBroker(Broker):
    """A connection to RabbitMQ. Threads may share it.

    It outlives restarts of the broker: while it is away, calls wait; then queues are declared again and what was
    being published is published again, under the same id.

    Parameters
    ----------
    url: ``amqp://user:password@host:port/vhost``; ``amqps://`` for TLS; options as in pika's ``URLParameters``.
    connect_timeout: seconds to wait for a broker that is not there yet.
    outage_timeout: seconds to wait for one that went away.

    Raises
    ------
    ValueError: the URL is not well formed.
    BrokerError: there is no broker, or it refuses the access.
    """

    def __init__(self, url: str, *, connect_timeout: float = 60, outage_timeout: float = 300) -> None:
        self._url = url
        self._timeouts = (connect_timeout, outage_timeout)
        self._known: dict[str, Queue] = {}
        self._consumers: list[AmqpConsumer] = []
        self._link = _Link(url, self._timeouts, "publish", self._prepare)
        self._link.open()

    def declare(self, queue: Queue) -> None:
        self._manage(f"declare {queue.name!r}", lambda channel: _declare(channel, queue))
        self._known[queue.name] = queue

    def publish(
        self,
        key: str,
        body: bytes,
        *,
        message_id: str = "",
        headers: Mapping[str, str] | None = None,
        mandatory: bool = True,
    ) -> None:
        self._put(EXCHANGE, key, body, message_id, headers, mandatory)

    def send(self, queue: str, body: bytes, *, message_id: str = "", headers: Mapping[str, str] | None = None) -> None:
        self._put("", queue, body, message_id, headers)

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        headers = {
            **delivery.headers,
            REASON: reason[:MAX_REASON],
            DIED_IN: delivery.queue,
            DIED_AT: datetime.now(UTC).isoformat(timespec="milliseconds"),
            ROUTING_KEY: delivery.key,
        }
        self._put(DEAD_EXCHANGE, delivery.queue, delivery.body, delivery.message_id, headers)

    def consume(self, queue: Queue, prefetch: int) -> AmqpConsumer:
        consumer = AmqpConsumer(self._url, self._timeouts, queue.name, prefetch, self._known)
        self._consumers = [*(other for other in self._consumers if not other.closed), consumer]
        return consumer

    def delete(self, queue: str) -> None:
        self._known.pop(queue, None)
        for consumer in self._consumers:
            if consumer.queue == queue:
                consumer.close()
        self._manage(f"delete {queue!r}", lambda channel: channel.queue_delete(queue))

    def depth(self, queue: str) -> int:
        def count(channel: Channel) -> int:
            try:
                return int(channel.queue_declare(queue, passive=True).method.message_count)
            except ChannelClosedByBroker as error:
                if error.reply_code == 404:
                    return 0
                raise

        return self._manage(f"look at {queue!r}", count)

    @property
    def connected(self) -> bool:
        return self._link.connected and all(c.closed or c.connected for c in self._consumers)

    def close(self) -> None:
        for consumer in self._consumers:
            consumer.close()
        self._link.close()

    def _prepare(self, channel: Channel) -> None:
        for queue in list(self._known.values()):
            _declare(channel, queue)
        if not self._known:
            _declare_exchanges(channel)
        channel.confirm_delivery()

    def _manage(self, what: str, action: Callable[[Channel], Result]) -> Result:
        """Do ``action`` on a channel of its own, since a refusal closes the channel."""

        def job(channel: Channel) -> Result:
            with channel.connection.channel() as own:
                return action(own)

        try:
            return self._link.call(job)
        except AMQPError as error:
            raise BrokerError(f"cannot {what}: {_text(error)}") from None

    def _put(
        self,
        exchange: str,
        key: str,
        body: bytes,
        message_id: str,
        headers: Mapping[str, str] | None,
        mandatory: bool = True,
    ) -> None:
        properties = pika.BasicProperties(
            content_type="application/msgpack",
            delivery_mode=pika.DeliveryMode.Persistent.value,
            message_id=message_id or None,
            headers=dict(headers or {}),
        )
        try:
            self._link.call(lambda channel: channel.basic_publish(exchange, key, body, properties, mandatory))
        except UnroutableError:
            raise Unroutable(f"no queue is bound to the key {key!r} of exchange {exchange!r}") from None
        except NackError:
            raise Refused(f"the broker refused a message for {key!r}: a queue is full") from None
        except AMQPError as error:
            raise BrokerError(
                f"the broker refused a message of {len(body)} bytes for {key!r}: {_text(error)}"
            ) from None


class AmqpConsumer(Consumer):
    """Deliveries of one RabbitMQ queue, on a connection of its own."""

    def __init__(
        self, url: str, timeouts: tuple[float, float], queue: str, prefetch: int, known: Mapping[str, Queue]
    ) -> None:
        self.queue = queue
        self._prefetch = prefetch
        self._known = known  # queues that may be declared again should the broker have lost them
        self._arrived: queues.SimpleQueue[Delivery | None] = queues.SimpleQueue()  # None: nothing more will come
        self._open: dict[int, tuple[Channel, int]] = {}  # our tag: the channel it came by, and its tag there
        self._tag = 0
        self._link = _Link(url, timeouts, f"consume {queue}", self._prepare, self._lost, self._ended)
        try:
            self._link.open()
        except ChannelClosedByBroker as error:
            raise BrokerError(f"cannot receive from {queue!r}: {error.reply_text}") from None

    @property
    def connected(self) -> bool:
        """Whether it receives now."""
        return self._link.connected

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._link.closed

    def next(self, timeout: float) -> Delivery | None:
        until = time.monotonic() + timeout
        while True:
            try:
                delivery = self._arrived.get(timeout=max(0, until - time.monotonic()))
            except queues.Empty:
                return None
            if delivery is None:
                self._arrived.put(None)
                raise self._link.failure or BrokerError(f"the consumer of {self.queue!r} is closed")
            if delivery.tag in self._open:
                return delivery

    def ack(self, delivery: Delivery) -> None:
        self._settle(delivery, lambda channel, tag: channel.basic_ack(tag))

    def requeue(self, delivery: Delivery) -> None:
        # not basic.nack, which from RabbitMQ 4.3 on does not count as an attempt
        self._settle(delivery, lambda channel, tag: channel.basic_reject(tag, requeue=True))

    def close(self) -> None:
        self._link.close()

    def _settle(self, delivery: Delivery, answer: Callable[[Channel, int], None]) -> None:
        channel, tag = self._open.pop(delivery.tag, (None, 0))

        def job(current: Channel) -> None:
            if current is channel:
                answer(channel, tag)

        if channel:
            self._link.post(job)

    # what follows runs in the link's thread

    def _prepare(self, channel: Channel) -> None:
        if self.queue in self._known:
            _declare(channel, self._known[self.queue])
        channel.basic_qos(prefetch_count=self._prefetch)
        channel.add_on_cancel_callback(lambda _: self._link.renew("the broker ended the consumer"))
        channel.basic_consume(self.queue, self._receive)

    def _receive(self, channel: Channel, method: Any, properties: Any, body: bytes) -> None:
        self._tag += 1
        self._open[self._tag] = (channel, method.delivery_tag)
        headers = properties.headers or {}
        delivery = Delivery(
            queue=self.queue,
            key=method.routing_key,
            body=body,
            message_id=properties.message_id or "",
            headers=_texts(headers),
            attempts=int(headers.get("x-delivery-count", method.redelivered)),
            tag=self._tag,
        )
        self._arrived.put(delivery)

    def _lost(self) -> None:
        self._open.clear()  # all of it comes again

    def _ended(self) -> None:
        self._open.clear()
        self._arrived.put(None)


@dataclass
class _Job:
    action: Callable[[Channel], Any]
    future: Future[Any] | None  # None: nobody waits for it


class _Link:
    """A connection with one channel, and the thread that owns both.

    Parameters
    ----------
    url, timeouts: as ``AmqpBroker`` takes them.
    name: for the log.
    prepare: called with each new channel.
    lost: called when the connection is gone, before the next one.
    ended: called when there will be none any more.
    """

    def __init__(
        self,
        url: str,
        timeouts: tuple[float, float],
        name: str,
        prepare: Callable[[Channel], None],
        lost: Callable[[], None] = lambda: None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.failure: BrokerError | None = None
        self._parameters = _parameters(url, name)
        self._url = _without_password(url)
        self._first_timeout, self._outage_timeout = timeouts
        self._log = log.bind(broker=self._url, link=name)
        self._prepare, self._lost, self._ended = prepare, lost, ended
        self._jobs: queues.SimpleQueue[_Job] = queues.SimpleQueue()
        self._again: _Job | None = None  # was in work when the connection went
        self._connection: Any = None
        self._channel: Channel = None
        self._renew = ""
        self._pause = PAUSE_S[0]
        self._stop = threading.Event()
        self._gate = threading.Lock()  # so that no job is left behind by a thread that has ended
        self._over = False
        self._opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name=f"gliaflow {name}", daemon=True)

    def open(self) -> None:
        """Connect for the first time.

        Raises
        ------
        BrokerError: no broker within the time, or it refuses the access.
        ChannelClosedByBroker: it refused what ``prepare`` asked for.
        """
        self._thread.start()
        try:
            self._opened.result()
        except BaseException:
            self.close()
            raise

    def call(self, action: Callable[[Channel], Result]) -> Result:
        """Run ``action`` in the link's thread and wait for its result; again, should the connection be lost meanwhile.

        Raises
        ------
        BrokerError: the link is closed or lost for good.
        Exception: what ``action`` raised.
        """
        future: Future[Result] = Future()
        self._leave(_Job(action, future))
        return future.result()

    def post(self, action: Callable[[Channel], None]) -> None:
        """Have ``action`` run in the link's thread; forget it should the connection be lost first."""
        with contextlib.suppress(BrokerError):
            self._leave(_Job(action, None))

    def renew(self, why: str) -> None:
        """Give up this connection for a new one. Called in the link's thread."""
        self._renew = why

    @property
    def connected(self) -> bool:
        """Whether the connection stands."""
        connection = self._connection
        return connection is not None and bool(connection.is_open)

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._stop.is_set()

    def close(self) -> None:
        """Finish the jobs that were left, then disconnect."""
        self._stop.set()
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=30)

    def _leave(self, job: _Job) -> None:
        with self._gate:
            if self._over:
                raise self.failure or BrokerError(f"the connection to {self._url} is closed")
            self._jobs.put(job)
        self._wake()

    def _wake(self) -> None:
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(AMQPError, OSError):  # it is being lost: the thread looks at the jobs anyway
                connection.add_callback_threadsafe(lambda: None)

    # what follows runs in the link's thread

    def _run(self) -> None:
        try:
            self._live()
        except BrokerError as error:
            self.failure = error
        except Exception as error:  # never leave callers waiting for a thread that died
            self.failure = BrokerError(f"internal fault of the connection to {self._url}: {error!r}")
            self._log.exception("broker link failed")
        with self._gate:
            self._over = True
        gone = self.failure or BrokerError(f"the connection to {self._url} is closed")
        if not self._opened.done():
            self._opened.set_exception(gone)
        while job := self._next_job():
            if job.future:
                job.future.set_exception(gone)
        self._ended()

    def _live(self) -> None:
        """Connect, serve, and again after each loss, until ``close`` or a time limit."""
        while self._connect(self._outage_timeout if self._opened.done() else self._first_timeout):
            since = time.monotonic()
            if not self._opened.done():
                self._opened.set_result(None)
            try:
                self._serve()
                return
            except (AMQPError, OSError) as error:
                self._log.warning("broker connection lost", error=_text(error))
            finally:
                self._disconnect()
            self._lost()
            if time.monotonic() - since > STEADY_S:
                self._pause = PAUSE_S[0]
            self._rest()

    def _connect(self, timeout: float) -> bool:
        """Connect and prepare a channel; False once the link was closed."""
        until = time.monotonic() + timeout
        while not self._stop.is_set():
            try:
                self._connection = pika.BlockingConnection(self._parameters)
                self._open_channel()
                if self._opened.done():
                    self._log.info("broker connected again")
                return True
            except (AMQPError, OSError) as error:
                self._disconnect()
                if not self._opened.done():
                    self._refuse(error)
                if time.monotonic() > until:
                    raise BrokerError(
                        f"no RabbitMQ at {self._url} within {timeout:g} s ({_text(error)}): "
                        "start one, or name another by --broker or GLIAFLOW_BROKER"
                    ) from None
                self._log.debug("broker not there yet", error=_text(error))
            self._rest()
        return False

    def _refuse(self, error: Exception) -> None:
        """Raise where another attempt would not help."""
        if isinstance(error, ChannelClosedByBroker):
            self._opened.set_exception(error)
            raise BrokerError(_text(error)) from None
        denied = (AuthenticationError, ProbableAuthenticationError, ProbableAccessDeniedError)
        if isinstance(error, denied) or getattr(error, "reply_code", 0) in (403, 530):
            raise BrokerError(
                f"RabbitMQ at {self._url} refuses the access ({_text(error)}): "
                "check user, password and virtual host of the URL"
            ) from None

    def _rest(self) -> None:
        self._stop.wait(self._pause * random.uniform(0.5, 1))
        self._pause = min(PAUSE_S[1], 2 * self._pause)

    def _open_channel(self) -> None:
        self._renew = ""
        self._channel = self._connection.channel()
        self._prepare(self._channel)

    def _serve(self) -> None:
        """Do jobs and attend to the connection until the link is closed. Raises when the connection is lost."""
        while True:
            if job := self._next_job():
                self._do(job)
            elif self._stop.is_set():
                return
            else:
                self._connection.process_data_events(time_limit=1)
            if self._renew:
                raise AMQPConnectionError(self._renew)
            if self._channel.is_closed:  # by the broker: an acknowledgement came too late, or the like
                raise ChannelWrongStateError("the broker closed the channel")

    def _do(self, job: _Job) -> None:
        try:
            result = job.action(self._channel)
        except (AMQPConnectionError, ChannelWrongStateError) as error:
            at_fault = isinstance(error, ConnectionClosedByBroker) and error.reply_code in FRAME_FAULTS
            if job.future and at_fault:
                job.future.set_exception(error)
            elif job.future:
                self._again = job
            raise
        except Exception as error:
            if not job.future:
                raise
            if self._channel.is_closed:
                self._open_channel()
            job.future.set_exception(error)
        else:
            if job.future:
                job.future.set_result(result)

    def _next_job(self) -> _Job | None:
        job, self._again = self._again, None
        if job is None:
            with contextlib.suppress(queues.Empty):
                job = self._jobs.get_nowait()
        return job

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and connection.is_open:
            with contextlib.suppress(AMQPError, OSError):
                connection.close()


def _declare_exchanges(channel: Channel) -> None:
    channel.exchange_declare(EXCHANGE, "topic", durable=True)
    channel.exchange_declare(DEAD_EXCHANGE, "direct", durable=True)


def _declare(channel: Channel, queue: Queue) -> None:
    """The queue with its bindings and dead letters. Limits are not said here: they are the broker's policies."""
    _declare_exchanges(channel)
    arguments: dict[str, Any] = {"x-queue-type": "quorum"}
    if queue.expires_s is None:
        channel.queue_declare(queue.dead, durable=True, arguments=arguments)
        channel.queue_bind(queue.dead, DEAD_EXCHANGE, queue.name)
    else:
        arguments = arguments | {"x-expires": queue.expires_s * 1000}
    if queue.single_active:
        arguments = arguments | {"x-single-active-consumer": True}
    channel.queue_declare(queue.name, durable=True, arguments=arguments)
    for key in queue.keys:
        channel.queue_bind(queue.name, EXCHANGE, key)


def _texts(headers: Mapping[str, Any]) -> dict[str, str]:
    """The text headers; for what the broker's delivery limit gave up, also those that ``dead_letter`` would add."""
    texts = {name: value for name, value in headers.items() if isinstance(value, str)}
    if "x-first-death-reason" in texts and REASON not in texts:
        death = (headers.get("x-death") or [{}])[0]
        texts[REASON] = f"{texts['x-first-death-reason']}: the broker gave it up"
        texts[DIED_IN] = texts.get("x-first-death-queue", "")
        texts[ROUTING_KEY] = next(iter(death.get("routing-keys") or ()), "")
        if isinstance(death.get("time"), datetime):
            texts[DIED_AT] = death["time"].replace(tzinfo=UTC).isoformat()
    return texts


def _parameters(url: str, name: str) -> Any:
    try:
        parameters = pika.URLParameters(url)
    except Exception as error:  # pika raises what its parsing happens to raise
        raise ValueError(f"broker URL {_without_password(url)}: {error or type(error).__name__}") from None
    if parameters.heartbeat is None:
        parameters.heartbeat = HEARTBEAT_S
    if parameters.blocked_connection_timeout is None:
        parameters.blocked_connection_timeout = BLOCKED_S
    parameters.client_properties = {"connection_name": f"gliaflow {name}"}
    return parameters


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{user.partition(':')[0]}{at}{host}{parts.path}"


def _text(error: Exception) -> str:
    """A pika error in words. Many have none of their own; one of connecting wraps what the system said."""
    inner = getattr(error.args[0], "exception", None) if error.args else None
    return getattr(error, "reply_text", "") or str(inner or error) or type(error).__name__

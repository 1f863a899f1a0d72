"""``memory://``: a broker inside this process. It gives the same guarantees as RabbitMQ, without a server."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import structlog
from gliaflow_proto import Queue
from gliaflow_proto.routing import ASSEMBLERS, BALANCER, STAGE_QUEUES, exchange_of

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
    Headers,
    NoQueue,
    QueueState,
    Refused,
    Unroutable,
)
from gliaflow_runtime.broker.letter_folder import LetterFolder, StoredLetter, read_letter

log = structlog.get_logger()


@dataclass(frozen=True)
class Limit:
    """How many messages may wait in a queue. When it is full, the newest is refused or the oldest are dropped.

    ``size``: how many bytes may wait, where the oldest are dropped; None: any number.
    """

    length: int
    overflow: Literal["refuse", "drop-oldest"] = "refuse"
    size: int | None = None

    def is_exceeded(self, waiting: Collection[_Message]) -> bool:
        """Whether more wait."""
        if len(waiting) > self.length:
            return True
        return self.size is not None and sum(len(message.body) for message in waiting) > self.size


# A message may have 8 MiB, and here all are in memory. The balancer only needs a sample of the features, so its queue
# may drop some. An assembler publishes to its own queue: a limit there would refuse its answers, since here a message
# goes to all of its queues or to none.
STAGE_LIMITS: dict[str, Limit] = {
    **{queue.name: Limit(16) for queue in STAGE_QUEUES if queue not in (*ASSEMBLERS, BALANCER)},
    BALANCER.name: Limit(16, "drop-oldest"),
}
OBSERVED_AT_ONCE = 4  # deliveries that an observer may hold
DELIVERY_LIMIT = 20  # as in deploy/rabbitmq/definitions.json


@dataclass
class _Message:
    """A message in a queue. If it has a ``file``, everything else is there, and is read when the message is taken."""

    key: str = ""
    body: bytes = b""
    message_id: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    exchange: str = ""
    attempts: int = 0
    file: Path | None = None


@dataclass
class _StoredQueue:
    """A queue with its waiting messages and its consumers."""

    declared: Queue
    waiting: deque[_Message] = field(default_factory=deque)
    consumers: list[MemoryConsumer] = field(default_factory=list)
    used: float = field(default_factory=time.monotonic)


class MemoryBroker(Broker):
    """A connection to an in-process broker; its queues outlive the connection (see ``attach``). Threads may share it.

    Parameters
    ----------
    dead_letters: a folder that keeps the latest dead letters (``LetterFolder``); those that it has are in their queues.
    limits: the limits of queues, by name.
    delivery_limit: a message that was returned more often becomes a dead letter.
    """

    def __init__(
        self,
        dead_letters: Path | None = None,
        limits: Mapping[str, Limit] | None = None,
        delivery_limit: int = DELIVERY_LIMIT,
    ) -> None:
        folder = LetterFolder(dead_letters) if dead_letters else None
        self._state = _State(folder, dict(limits or {}), delivery_limit)
        self._consumers: list[MemoryConsumer] = []
        self._open = True

    def attach(self) -> MemoryBroker:
        """Another connection to the same queues; each is closed separately."""
        other = MemoryBroker()
        other._state = self._state
        return other

    def declare(self, queue: Queue) -> None:
        with self._state.changed:
            self._check_open()
            self._state.declare(queue)
            if queue.expires_s is None:
                self._state.declare(Queue(queue.dead))

    def publish(
        self, key: str, body: bytes, *, message_id: str = "", headers: Headers = None, mandatory: bool = True
    ) -> None:
        with self._state.changed:
            self._check_open()
            targets = [q for q in self._state.queues.values() if any(matches(bound, key) for bound in q.declared.keys)]
            if not targets and mandatory:
                raise Unroutable(f"no queue is bound to the key {key!r}")
            self._state.put(targets, _Message(key, bytes(body), message_id, dict(headers or {}), exchange_of(key)))

    def send(self, queue: str, body: bytes, *, message_id: str = "", headers: Headers = None) -> None:
        with self._state.changed:
            self._check_open()
            if queue not in self._state.queues:
                raise Unroutable(f"there is no queue {queue!r}")
            self._state.put([self._state.queues[queue]], _Message(queue, bytes(body), message_id, dict(headers or {})))

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        with self._state.changed:
            self._check_open()
            headers = dict(delivery.headers)
            message = _Message(delivery.key, delivery.body, delivery.message_id, headers, delivery.exchange)
            if not self._state.bury(delivery.queue, message, reason):
                raise Unroutable(f"the queue {delivery.queue!r} has no dead letters")

    def consume(self, queue: Queue, prefetch: int) -> MemoryConsumer:
        with self._state.changed:
            self._check_open()
            stored = self._state.queues.get(queue.name)
            if stored is None:
                raise NoQueue(f"there is no queue {queue.name!r}")
            consumer = MemoryConsumer(self._state, queue.name, prefetch)
            stored.consumers.append(consumer)
            self._consumers.append(consumer)
            return consumer

    def observe(self, keys: tuple[str, ...], *, length: int, size: int) -> MemoryConsumer:
        queue = Queue(f"gliaflow.console.{secrets.token_hex(8)}", keys)
        with self._state.changed:
            self._check_open()
            self._state.limits[queue.name] = Limit(length, "drop-oldest", size)
            self._state.declare(queue)
            consumer = self.consume(queue, OBSERVED_AT_ONCE)
            consumer.owns_queue = True
            return consumer

    def delete(self, queue: str) -> None:
        with self._state.changed:
            self._check_open()
            stored = self._state.queues.pop(queue, None)
            for message in stored.waiting if stored else ():
                self._state.forget(message)
            for consumer in stored.consumers if stored else ():
                consumer.close()

    def queue_state(self, queue: str) -> QueueState | None:
        with self._state.changed:
            self._check_open()
            stored = self._state.queues.get(queue)
            return QueueState(len(stored.waiting), len(stored.consumers)) if stored else None

    @property
    def connected(self) -> bool:
        return self._open

    def close(self) -> None:
        self._open = False
        for consumer in self._consumers:
            consumer.close()

    def _check_open(self) -> None:
        if not self._open:
            raise BrokerError("this connection to memory:// is closed")


class MemoryConsumer(Consumer):
    """Receives the deliveries of one queue of a ``MemoryBroker``. ``owns_queue``: the queue ends with this consumer."""

    owns_queue = False

    def __init__(self, state: _State, queue: str, prefetch: int) -> None:
        self._state = state
        self._queue = queue
        self._prefetch = prefetch
        self._held: dict[int, _Message] = {}
        self._tag = 0
        self._open = True

    def next(self, timeout: float) -> Delivery | None:
        with self._state.changed:
            while True:
                self._state.changed.wait_for(lambda: not self._open or self._may_take(), timeout)
                if not self._open:
                    raise BrokerError(f"the consumer of {self._queue!r} is closed, or its queue deleted")
                if not self._may_take():
                    return None
                message = self._state.queues[self._queue].waiting.popleft()
                try:
                    content = message if message.file is None else read_letter(message.file)
                except BrokerError as error:  # another process has deleted this dead letter
                    log.warning("passed over", error=str(error))
                    continue
                self._tag += 1
                self._held[self._tag] = message
                return Delivery(
                    self._queue,
                    content.key,
                    content.body,
                    content.message_id,
                    dict(content.headers),
                    message.attempts,
                    self._tag,
                    message.exchange,
                )

    def ack(self, delivery: Delivery) -> None:
        with self._state.changed:
            message = self._held.pop(delivery.tag, None)
            if message:
                self._state.forget(message)

    def requeue(self, delivery: Delivery) -> None:
        with self._state.changed:
            message = self._held.pop(delivery.tag, None)
            if message:
                self._state.give_back(self._queue, [message])

    def close(self) -> None:
        with self._state.changed:
            if not self._open:
                return
            self._open = False
            stored = self._state.queues.get(self._queue)
            if stored and self in stored.consumers:
                stored.consumers.remove(self)
                stored.used = time.monotonic()
                self._state.give_back(self._queue, list(self._held.values()))
                if self.owns_queue:
                    del self._state.queues[self._queue], self._state.limits[self._queue]
            self._held.clear()
            self._state.changed.notify_all()

    def _may_take(self) -> bool:
        stored = self._state.queues[self._queue]
        active = not stored.declared.single_active or stored.consumers[0] is self
        return active and bool(stored.waiting) and len(self._held) < self._prefetch


class _State:
    """The queues of one in-process broker. Callers of its methods must hold ``changed``."""

    def __init__(self, folder: LetterFolder | None, limits: dict[str, Limit], delivery_limit: int) -> None:
        self.changed = threading.Condition()
        self.queues: dict[str, _StoredQueue] = {}
        self._folder = folder
        self.limits = limits
        self._delivery_limit = delivery_limit
        for queue, file in folder.list() if folder else ():
            self.declare(Queue(queue))
            self.queues[queue].waiting.append(_Message(file=file, exchange=queue))

    def declare(self, queue: Queue) -> None:
        self._expire()
        stored = self.queues.setdefault(queue.name, _StoredQueue(queue))
        stored.declared, stored.used = queue, time.monotonic()

    def put(self, targets: list[_StoredQueue], message: _Message) -> None:
        """Add the message to all of these queues, or to none if one of them is full."""
        limits = [(stored, self.limits.get(stored.declared.name)) for stored in targets]
        for stored, limit in limits:
            if limit and limit.overflow == "refuse" and len(stored.waiting) >= limit.length:
                raise Refused(f"the queue {stored.declared.name!r} is full ({limit.length} messages)")
        for stored, limit in limits:
            stored.waiting.append(replace(message))
            while limit and limit.overflow == "drop-oldest" and limit.is_exceeded(stored.waiting):
                stored.waiting.popleft()
        self.changed.notify_all()

    def give_back(self, name: str, messages: list[_Message]) -> None:
        """Return messages to the front of the queue, in order, each with one more attempt."""
        stored = self.queues.get(name)
        for message in reversed(messages):
            message.attempts += 1
            if message.attempts > self._delivery_limit and f"{name}.dead" in self.queues:
                self.bury(name, message, f"delivery_limit: given up after {message.attempts} attempts")
            elif stored:
                stored.waiting.appendleft(message)
        self.changed.notify_all()

    def bury(self, name: str, message: _Message, reason: str) -> bool:
        """Put a copy into the dead letters of a queue; False if it has none."""
        stored = self.queues.get(f"{name}.dead")
        if stored is None:
            return False
        exchange, key = Delivery(name, message.key, b"", headers=message.headers, exchange=message.exchange).route
        headers = {
            **message.headers,
            SENT_TO: exchange,
            SENT_WITH: key,
            REASON: reason,
            DIED_IN: name,
            DIED_AT: datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        letter = _Message(key, message.body, message.message_id, headers, Queue(name).dead)
        if self._folder:
            try:
                content = StoredLetter(letter.key, letter.body, letter.message_id, headers)
                letter = _Message(file=self._folder.write(stored.declared.name, content), exchange=letter.exchange)
                self._keep_only(self._folder.prune())
            except OSError as error:  # a full disk: keep it in memory instead
                log.error("dead letter not kept on disk", error=str(error))
        stored.waiting.append(letter)
        self.changed.notify_all()
        return True

    def _keep_only(self, files: Collection[Path] | None) -> None:
        """Drop the dead letters whose files were deleted to make room for others."""
        if files is not None:
            log.warning("old dead letters deleted", left=len(files))
            for stored in self.queues.values():
                stored.waiting = deque(m for m in stored.waiting if m.file is None or m.file in files)

    def forget(self, message: _Message) -> None:
        """Delete the file of a dead letter that is settled."""
        if message.file:
            message.file.unlink(missing_ok=True)

    def _expire(self) -> None:
        now = time.monotonic()
        for name, stored in list(self.queues.items()):
            expires = stored.declared.expires_s
            if expires is not None and not stored.consumers and now - stored.used > expires:
                del self.queues[name]


def matches(pattern: str, key: str) -> bool:
    """Whether a topic binding matches a routing key: ``*`` matches one word, ``#`` any number of words."""
    return _matches(pattern.split("."), key.split("."))


def _matches(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_matches(pattern[1:], words[start:]) for start in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _matches(pattern[1:], words[1:])

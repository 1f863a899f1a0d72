"""``memory://``: the broker that lives in this process. The same promises as RabbitMQ's, and no server."""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgpack
import structlog
from gliaflow_proto import Queue
from gliaflow_proto.routing import ASSEMBLER, BALANCER, STAGE_QUEUES

from gliaflow_runtime.broker.interface import (
    DIED_AT,
    DIED_IN,
    REASON,
    ROUTING_KEY,
    Broker,
    BrokerError,
    Consumer,
    Delivery,
    NoQueue,
    QueueState,
    Refused,
    Unroutable,
)

log = structlog.get_logger()


@dataclass(frozen=True)
class Limit:
    """How many messages may wait in a queue, and whether the newest is refused or the oldest dropped then."""

    length: int
    overflow: Literal["refuse", "drop-oldest"] = "refuse"


# A message may weigh 8 MiB, and here all of them are in memory. Features to balance with are a sample, so losing some
# is no harm; the assembler is its own producer's only way out, so it has no limit (as in deploy/rabbitmq).
STAGE_LIMITS: dict[str, Limit] = {
    **{queue.name: Limit(16) for queue in STAGE_QUEUES if queue not in (ASSEMBLER, BALANCER)},
    BALANCER.name: Limit(16, "drop-oldest"),
}
DELIVERY_LIMIT = 20  # as in deploy/rabbitmq/definitions.json


@dataclass
class _Message:
    key: str
    body: bytes  # empty where ``file`` holds it
    message_id: str
    headers: dict[str, str]
    attempts: int = 0
    file: Path | None = None


@dataclass
class _Line:
    """A queue: what waits in it and who reads it."""

    queue: Queue
    waiting: deque[_Message] = field(default_factory=deque)
    consumers: list[MemoryConsumer] = field(default_factory=list)
    used: float = field(default_factory=time.monotonic)


class MemoryBroker(Broker):
    """A connection to an embedded broker; queues and messages outlive it (see ``attach``). Threads may share it.

    Parameters
    ----------
    dead_letters: a folder in which dead letters are kept as files as well, so that a later process can read them;
        those that lie there already are in their queues from the start.
    limits: queues that may fill up, by name.
    delivery_limit: a message that came back more often is a dead letter.
    """

    def __init__(
        self,
        dead_letters: Path | None = None,
        limits: Mapping[str, Limit] | None = None,
        delivery_limit: int = DELIVERY_LIMIT,
    ) -> None:
        self._state = _State(_Folder(dead_letters) if dead_letters else None, dict(limits or {}), delivery_limit)
        self._consumers: list[MemoryConsumer] = []
        self._open = True

    def attach(self) -> MemoryBroker:
        """Another connection to the same queues, to be closed by itself."""
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
        self,
        key: str,
        body: bytes,
        *,
        message_id: str = "",
        headers: Mapping[str, str] | None = None,
        mandatory: bool = True,
    ) -> None:
        with self._state.changed:
            self._check_open()
            lines = [line for line in self._state.lines.values() if any(matches(p, key) for p in line.queue.keys)]
            if not lines and mandatory:
                raise Unroutable(f"no queue is bound to the key {key!r}")
            self._state.put(lines, _Message(key, bytes(body), message_id, dict(headers or {})))

    def send(self, queue: str, body: bytes, *, message_id: str = "", headers: Mapping[str, str] | None = None) -> None:
        with self._state.changed:
            self._check_open()
            if queue not in self._state.lines:
                raise Unroutable(f"there is no queue {queue!r}")
            self._state.put([self._state.lines[queue]], _Message(queue, bytes(body), message_id, dict(headers or {})))

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        with self._state.changed:
            self._check_open()
            message = _Message(delivery.key, delivery.body, delivery.message_id, dict(delivery.headers))
            if not self._state.bury(delivery.queue, message, reason):
                raise Unroutable(f"the queue {delivery.queue!r} has no dead letters")

    def consume(self, queue: Queue, prefetch: int) -> MemoryConsumer:
        with self._state.changed:
            self._check_open()
            line = self._state.lines.get(queue.name)
            if line is None:
                raise NoQueue(f"there is no queue {queue.name!r}")
            consumer = MemoryConsumer(self._state, queue.name, prefetch)
            line.consumers.append(consumer)
            self._consumers.append(consumer)
            return consumer

    def delete(self, queue: str) -> None:
        with self._state.changed:
            self._check_open()
            line = self._state.lines.pop(queue, None)
            for message in line.waiting if line else ():
                self._state.forget(message)
            for consumer in line.consumers if line else ():
                consumer.close()

    def look(self, queue: str) -> QueueState | None:
        with self._state.changed:
            self._check_open()
            line = self._state.lines.get(queue)
            return QueueState(len(line.waiting), len(line.consumers)) if line else None

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
    """Deliveries of one queue of a ``MemoryBroker``."""

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
                message = self._state.lines[self._queue].waiting.popleft()
                try:
                    body = message.body if message.file is None else _Folder.read(message.file)["body"]
                except BrokerError as error:  # another process was done with this dead letter
                    log.warning("passed over", error=str(error))
                    continue
                self._tag += 1
                self._held[self._tag] = message
                headers = dict(message.headers)
                return Delivery(
                    self._queue, message.key, body, message.message_id, headers, message.attempts, self._tag
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
            line = self._state.lines.get(self._queue)
            if line and self in line.consumers:
                line.consumers.remove(self)
                line.used = time.monotonic()
                self._state.give_back(self._queue, list(self._held.values()))
            self._held.clear()
            self._state.changed.notify_all()

    def _may_take(self) -> bool:
        line = self._state.lines[self._queue]
        taking_turns = not line.queue.single_active or line.consumers[0] is self
        return bool(line.waiting) and len(self._held) < self._prefetch and taking_turns


class _State:
    """The queues of one embedded broker. Whoever calls a method holds ``changed``."""

    def __init__(self, folder: _Folder | None, limits: dict[str, Limit], delivery_limit: int) -> None:
        self.changed = threading.Condition()
        self.lines: dict[str, _Line] = {}
        self._folder = folder
        self._limits = limits
        self._delivery_limit = delivery_limit
        for queue, message in folder.load() if folder else ():
            self.declare(Queue(queue))
            self.lines[queue].waiting.append(message)

    def declare(self, queue: Queue) -> None:
        self._expire()
        line = self.lines.setdefault(queue.name, _Line(queue))
        line.queue, line.used = queue, time.monotonic()

    def put(self, lines: list[_Line], message: _Message) -> None:
        """Into all of these queues, or, where one of them is full, into none."""
        limits = [(line, self._limits.get(line.queue.name)) for line in lines]
        for line, limit in limits:
            if limit and limit.overflow == "refuse" and len(line.waiting) >= limit.length:
                raise Refused(f"the queue {line.queue.name!r} is full ({limit.length} messages)")
        for line, limit in limits:
            if limit and limit.overflow == "drop-oldest" and len(line.waiting) >= limit.length:
                line.waiting.popleft()
            line.waiting.append(_Message(message.key, message.body, message.message_id, message.headers))
        self.changed.notify_all()

    def give_back(self, name: str, messages: list[_Message]) -> None:
        """To the front of the queue, in their order, as one more attempt each."""
        line = self.lines.get(name)
        for message in reversed(messages):
            message.attempts += 1
            if message.attempts > self._delivery_limit and f"{name}.dead" in self.lines:
                self.bury(name, message, f"delivery_limit: given up after {message.attempts} attempts")
            elif line:
                line.waiting.appendleft(message)
        self.changed.notify_all()

    def bury(self, name: str, message: _Message, reason: str) -> bool:
        """Put a copy into the dead letters of a queue; False where it has none."""
        line = self.lines.get(f"{name}.dead")
        if line is None:
            return False
        headers = {
            **message.headers,
            REASON: reason,
            DIED_IN: name,
            DIED_AT: datetime.now(UTC).isoformat(timespec="milliseconds"),
            ROUTING_KEY: message.key,
        }
        letter = _Message(Queue(name).dead_key, message.body, message.message_id, headers)
        if self._folder:
            try:
                letter.file, letter.body = self._folder.write(line.queue.name, letter), b""
            except OSError as error:  # a full disk is no reason to stop: it is kept as long as this process lives
                log.error("dead letter not kept on disk", error=str(error))
        line.waiting.append(letter)
        self.changed.notify_all()
        return True

    def forget(self, message: _Message) -> None:
        """The message is done with: a dead letter's file goes."""
        if message.file:
            message.file.unlink(missing_ok=True)

    def _expire(self) -> None:
        now = time.monotonic()
        for name, line in list(self.lines.items()):
            expires = line.queue.expires_s
            if expires is not None and not line.consumers and now - line.used > expires:
                del self.lines[name]


class _Folder:
    """Dead letters as files: one msgpack map each, written whole and renamed into place, named by time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, queue: str, letter: _Message) -> Path:
        self._path.mkdir(parents=True, exist_ok=True)
        file = self._path / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.msgpack"
        part = file.with_suffix(".part")
        document = {
            "queue": queue,
            "key": letter.key,
            "id": letter.message_id,
            "headers": letter.headers,
            "body": letter.body,
        }
        part.write_bytes(msgpack.packb(document))
        return part.replace(file)

    @staticmethod
    def read(file: Path) -> dict[str, Any]:
        """One dead letter.

        Raises
        ------
        BrokerError: the file went, or is none of ours.
        """
        try:
            document = msgpack.unpackb(file.read_bytes())
        except (OSError, ValueError, msgpack.UnpackException) as error:
            raise BrokerError(f"dead letter {file}: {error or type(error).__name__}") from None
        if not isinstance(document, dict) or document.keys() != {"queue", "key", "id", "headers", "body"}:
            raise BrokerError(f"dead letter {file}: not one that gliaflow wrote")
        return document

    def load(self) -> list[tuple[str, _Message]]:
        """All that lie in the folder, oldest first, each with its queue. Bodies stay on disk."""
        found = []
        for file in sorted(self._path.glob("*.msgpack")):
            try:
                letter = self.read(file)
            except BrokerError as error:
                log.warning("passed over", error=str(error))
                continue
            found.append((letter["queue"], _Message(letter["key"], b"", letter["id"], letter["headers"], file=file)))
        return found


def matches(pattern: str, key: str) -> bool:
    """Whether a topic binding takes a routing key: ``*`` is one word, ``#`` any number of them."""
    return _matches(pattern.split("."), key.split("."))


def _matches(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_matches(pattern[1:], words[start:]) for start in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _matches(pattern[1:], words[1:])

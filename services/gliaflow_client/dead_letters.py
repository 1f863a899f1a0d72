"""Dead letters: messages that a stage could not work on, kept by the broker with the reason."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property

import numpy as np
from gliaflow_proto import Message, MessageOrigin, ProtocolError, Queue, decode, encode, read_origin
from gliaflow_proto.fragments import outline
from gliaflow_proto.routing import ALL_QUEUES, check_route
from gliaflow_runtime.broker.interface import (
    DIED_AT,
    REASON,
    SENT_TO,
    SENT_WITH,
    AccessDenied,
    Broker,
    Consumer,
    Delivery,
)
from gliaflow_runtime.errors import UsageError

AT_ONCE = 200  # each may weigh 8 MiB, and all are held while the command runs


@dataclass(frozen=True)
class DeadLetter:
    """A dead letter of a queue, as its consumer holds it."""

    queue: Queue
    consumer: Consumer
    delivery: Delivery

    @property
    def id(self) -> str:
        """The message's id: the AMQP property, or else the field, or else a digest of the bytes."""
        return self.delivery.message_id or self.origin.id or hashlib.sha256(self.delivery.body).hexdigest()[:32]

    @cached_property
    def origin(self) -> MessageOrigin:
        """What can be read of the message, also if it is not valid."""
        return read_origin(self.delivery.body)

    @property
    def reason(self) -> str:
        """Why it died: as the stage said, or as the broker did."""
        headers = self.delivery.headers
        return headers.get(REASON) or headers.get("x-first-death-reason") or "not known"

    @property
    def died(self) -> str:
        """When it died, to the second."""
        return self.delivery.headers.get(DIED_AT, "?")[:19]

    @property
    def message(self) -> Message | None:
        """The message, or None if it cannot be read."""
        try:
            return decode(self.delivery.body)
        except ProtocolError:
            return None

    @cached_property
    def head(self) -> Message | None:
        """The message without the content of its tensors, or None if it cannot be read."""
        try:
            return decode(self.delivery.body, contents=False)
        except ProtocolError:
            return None

    @property
    def scan(self) -> str:
        """The name of its scan, or else the scan's id."""
        return (self.head.scan.name if self.head else "") or self.origin.scan

    def content(self) -> list[str]:
        """The message as indented lines. Of one that is not valid, what can be read."""
        if self.head is not None:
            return described(self.head)
        return ["not a valid message; what can be read:", *outline(self.delivery.body)]

    def delete(self) -> None:
        """Delete it for good."""
        self.consumer.ack(self.delivery)

    def replay(self, broker: Broker) -> None:
        """Send it back to its queue. A new attempt, so that the end of the last one does not count for it.

        Its route goes with it: if this gliaflow cannot read the message, the stage checks the route.

        Raises
        ------
        ProtocolError: its sender had no right to send such a message.
        """
        message, body = self.message, self.delivery.body
        exchange, key = self.delivery.route
        if message is not None:
            check_route(message, exchange, key)
            scan = replace(message.scan, attempt=message.scan.attempt + 1, replayed=True)
            body = encode(replace(message, scan=scan), "lz4")
        broker.send(self.queue.name, body, message_id=self.id, headers={SENT_TO: exchange, SENT_WITH: key})
        self.consumer.ack(self.delivery)


@contextmanager
def dead_letters(broker: Broker) -> Iterator[list[DeadLetter]]:
    """The first AT_ONCE dead letters. Those that are not acknowledged stay with the broker."""
    with held_letters(broker, AT_ONCE) as letters:
        yield list(letters)


@contextmanager
def held_letters(broker: Broker, at_once: int) -> Iterator[Iterator[DeadLetter]]:
    """As ``dead_letters``, one after the other, so that the caller need not have all of them in memory.

    The broker holds them for this process until the ``with`` block ends.
    """
    with ExitStack() as consumers:

        def letters() -> Iterator[DeadLetter]:
            for queue, room in _rooms(broker, at_once).items():
                try:
                    consumer = consumers.enter_context(broker.consume(Queue(queue.dead), room))
                except AccessDenied as error:
                    raise AccessDenied(
                        f"{error}: only the users operator and console may read dead letters (docker compose run --rm "
                        "--no-deps operator dead list; docs/security.md)"
                    ) from None
                for _ in range(room):
                    if (delivery := consumer.next(timeout=1.0)) is None:  # another process holds the rest
                        break
                    yield DeadLetter(queue, consumer, delivery)

        yield letters()


def _rooms(broker: Broker, at_once: int) -> dict[Queue, int]:
    """How many letters of each queue are read: ``at_once`` in all, and a fair share of each queue."""
    depths = {queue: depth for queue in ALL_QUEUES if (depth := broker.depth(queue.dead))}
    rooms: dict[Queue, int] = {}
    for queue in sorted(depths, key=lambda queue: depths[queue]):
        rooms[queue] = min(depths[queue], (at_once - sum(rooms.values())) // (len(depths) - len(rooms)))
    return {queue: rooms[queue] for queue in depths}


def count_waiting(broker: Broker, queues: Sequence[Queue] = ALL_QUEUES) -> int:
    """How many dead letters of these queues no consumer holds."""
    return sum(broker.depth(queue.dead) for queue in queues)


def delete_all(broker: Broker, queues: Sequence[Queue]) -> int:
    """Delete the dead letters that these queues have now; returns how many."""
    deleted = 0
    for queue in queues:
        count = broker.depth(queue.dead)
        if not count:
            continue
        with broker.consume(Queue(queue.dead), AT_ONCE) as consumer:
            for _ in range(count):
                if (delivery := consumer.next(timeout=5.0)) is None:  # another process has deleted the rest
                    break
                consumer.ack(delivery)
                deleted += 1
    return deleted


def queues_of(stage: str) -> list[Queue]:
    """The queue of this name without ``gliaflow.``. Raises UsageError: there is none."""
    names = {queue.name.removeprefix("gliaflow."): queue for queue in ALL_QUEUES}
    if stage not in names:
        raise UsageError(f"--stage: {stage!r} is not one of {', '.join(names)}")
    return [names[stage]]


def choose(letters: Sequence[DeadLetter], starts: Sequence[str]) -> list[DeadLetter]:
    """The letters whose ids start with one of these. Raises UsageError if a start matches none."""
    for start in starts:
        if not any(letter.id.startswith(start) for letter in letters):
            raise UsageError(f"no dead letter's id starts with {start!r} (see `gliaflow dead list`)")
    return [letter for letter in letters if letter.id.startswith(tuple(starts))]


def described(value: object, indent: str = "") -> list[str]:
    """A message as indented lines: tensors by dtype and shape, bytes by length."""
    lines = []
    for item in fields(value):  # type: ignore[arg-type]
        content = getattr(value, item.name)
        if is_dataclass(content):
            lines += [f"{indent}{item.name}:", *described(content, indent + "  ")]
        elif isinstance(content, np.ndarray):
            lines.append(f"{indent}{item.name}: {content.dtype} {list(content.shape)}")
        elif isinstance(content, bytes):
            lines.append(f"{indent}{item.name}: {len(content)} bytes")
        else:
            lines.append(f"{indent}{item.name}: {content}")
    return lines

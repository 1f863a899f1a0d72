"""The interface of a message broker. Two implementations: ``amqp://`` (RabbitMQ) and ``memory://`` (this process).

Guarantees, which one test suite checks on both (``tests/integration/test_broker_contract.py``):

- ``publish`` returns once the broker has taken responsibility for the message (publisher confirm).
- A delivery that is still open when its consumer closes is delivered again, with ``attempts`` one higher.
- A consumer has at most ``prefetch`` open deliveries.
- A dead letter keeps the message's bytes, id and routing key; its headers have the reason (``REASON``) and the exchange
  (``SENT_TO``), whatever the sender wrote there.
- An observer (``observe``) that is slow or stopped holds up no publisher.
- A delivery names the exchange at which its sender published it. The sender cannot forge it (``check_route``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from gliaflow_proto import Queue
from gliaflow_proto.routing import exchange_of

REASON = "x-gliaflow-reason"
DIED_IN = "x-gliaflow-queue"
DIED_AT = "x-gliaflow-time"  # ISO 8601, UTC
SENT_TO = "x-gliaflow-exchange"  # of a dead letter, and of a replayed one: where its sender published it,
SENT_WITH = "x-gliaflow-key"  # and with which key

Headers = Mapping[str, str] | None


class BrokerError(Exception):
    """The broker is unreachable, denies access, or refused the request."""


class Unroutable(BrokerError):
    """No queue is bound to the message's routing key: the stage that declares it has not started yet."""


class NoExchange(Unroutable):
    """The exchange of the routing key does not exist: no stage has started yet, or the broker's definitions are old."""


class NoQueue(BrokerError):
    """The queue does not exist (any more)."""


class AccessDenied(BrokerError):
    """This user may not publish with the key or receive from the queue, or another connection has it exclusively."""


class Refused(BrokerError):
    """The broker refused the message because a queue is full. Temporary: try again later."""


@dataclass(frozen=True)
class Delivery:
    """One message received from a queue. ``attempts`` counts its earlier deliveries.

    ``exchange`` and ``key`` are those at which it was published; the exchange is ``""`` for a message to the queue by
    its name, and the exchange of the dead letters for a dead letter.
    """

    queue: str
    key: str
    body: bytes
    message_id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    attempts: int = 0
    tag: int = 0
    exchange: str = ""

    @property
    def route(self) -> tuple[str, str]:
        """Exchange and key with which its first sender published it, also for a dead letter and a replayed message.

        Only stages and operators can write those, so only there the headers that name the route are believed. A dead
        letter of version 0.1 has none; its key decides.
        """
        if self.queue.endswith(".dead"):
            key = self.headers.get(SENT_WITH, self.key)
            return self.headers.get(SENT_TO, exchange_of(key)), key
        if self.exchange == "":
            return self.headers.get(SENT_TO, ""), self.headers.get(SENT_WITH, self.key)
        return self.exchange, self.key


@dataclass(frozen=True)
class QueueState:
    """The number of messages that wait in a queue, and of its consumers."""

    waiting: int
    consumers: int


class _Closable(ABC):
    """Closed at the end of a ``with`` block."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Consumer(_Closable):
    """Receives the deliveries of one queue. Use it from one thread; any time may pass between calls.

    ``lost`` is the highest delivery tag of connections that were lost. Deliveries up to it are delivered again,
    possibly to another consumer; those with a higher tag belong to the present connection.
    """

    lost: int = 0

    @abstractmethod
    def next(self, timeout: float) -> Delivery | None:
        """The next delivery, or None after ``timeout`` seconds. Raises BrokerError if the broker is lost for good."""

    @abstractmethod
    def ack(self, delivery: Delivery) -> None:
        """Acknowledge a delivery. Ignored if its connection was lost: the message is delivered again."""

    @abstractmethod
    def requeue(self, delivery: Delivery) -> None:
        """Return a delivery to its queue for another attempt (``basic.reject`` with requeue, which counts it)."""

    @abstractmethod
    def close(self) -> None:
        """Stop receiving; open deliveries return to the queue."""


class Broker(_Closable):
    """A connection to a broker. Threads may share it.

    ``hurried``: set it when the process ends. Then a call that waits for the broker raises BrokerError after a few
    seconds. Otherwise it waits until the broker is back.
    """

    hurried: bool = False

    @abstractmethod
    def declare(self, queue: Queue) -> None:
        """Create the queue, its bindings and (unless it expires) its dead-letter queue, where they are missing.

        A queue that exists with its dead letters is left as it is: stages have no right to declare or bind.
        """

    @abstractmethod
    def publish(
        self, key: str, body: bytes, *, message_id: str = "", headers: Headers = None, mandatory: bool = True
    ) -> None:
        """Publish to the key's exchange (``exchange_of``) and wait for the confirm.

        Raises
        ------
        Unroutable: no queue is bound to ``key``, and ``mandatory`` is set.
        AccessDenied: this user may not publish with this key.
        Refused: a queue is full (reject-publish).
        BrokerError: the broker is unreachable, or the message is over its size limit.
        """

    @abstractmethod
    def send(self, queue: str, body: bytes, *, message_id: str = "", headers: Headers = None) -> None:
        """Publish directly to a queue by name, and wait for the confirm. Raises as ``publish`` does."""

    @abstractmethod
    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        """Copy a delivery to its queue's dead letters, with the reason. The caller then acknowledges it."""

    @abstractmethod
    def consume(self, queue: Queue, prefetch: int) -> Consumer:
        """Start to receive from a declared queue.

        Raises
        ------
        NoQueue: the queue does not exist.
        AccessDenied: this user may not receive from it.
        """

    @abstractmethod
    def observe(self, keys: tuple[str, ...], *, length: int, size: int) -> Consumer:
        """Start to receive copies of the messages with these keys, beside their queues.

        The copies wait in a queue that this consumer alone reads, and that ends with it. If more than ``length``
        messages or ``size`` bytes wait, the oldest are dropped. So an observer that is slow or stopped holds up no
        publisher. Copies are lost while the broker is away.

        Raises
        ------
        AccessDenied: this user may not receive messages with such keys.
        """

    @abstractmethod
    def delete(self, queue: str) -> None:
        """Delete a queue and its messages; a missing queue is not an error."""

    @abstractmethod
    def queue_state(self, queue: str) -> QueueState | None:
        """The messages and consumers of a queue; None if it does not exist."""

    def depth(self, queue: str) -> int:
        """The number of messages that wait in a queue (0 if it does not exist)."""
        state = self.queue_state(queue)
        return state.waiting if state else 0

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether the connection is open now."""

    @property
    def trouble(self) -> str:
        """Why calls wait for the broker now, with the remedy; empty if the broker serves."""
        return ""

    @abstractmethod
    def close(self) -> None:
        """Close the connection and its consumers. If the broker does not answer, that takes a few seconds."""

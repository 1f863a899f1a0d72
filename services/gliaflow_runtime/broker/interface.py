"""What a stage needs of a message broker. Two homes: ``amqp://`` (RabbitMQ) and ``memory://`` (this process).

The promises, which one contract suite checks on both (``tests/integration/test_broker_contract.py``):

- ``publish`` returns once the broker has taken responsibility for the message (publisher confirm).
- A delivery that is neither acknowledged, requeued nor dead-lettered when its consumer goes comes again, and
  ``attempts`` counts that it did.
- At most ``prefetch`` deliveries of a consumer are open at a time.
- A dead letter keeps the message's bytes, id and routing key, and says the reason in the header ``REASON``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from gliaflow_proto import Queue

REASON = "x-gliaflow-reason"
DIED_IN = "x-gliaflow-queue"
DIED_AT = "x-gliaflow-time"  # ISO 8601, UTC
ROUTING_KEY = "x-gliaflow-key"


class BrokerError(Exception):
    """The broker cannot be used: unreachable, access refused, or it refused the request."""


class Unroutable(BrokerError):
    """A message for which there is no queue: no stage has declared one for this routing key."""


class NoQueue(BrokerError):
    """A queue that does not exist, or no longer."""


class NotOurs(BrokerError):
    """A queue that the broker does not let us receive from: no permission, or it is another connection's alone."""


class Refused(BrokerError):
    """The broker would not take the message now: its queue is full. Passing: try again later."""


def without_password(url: str) -> str:
    """A broker's URL as it may be shown."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{user.partition(':')[0]}{at}{host}{parts.path}"


@dataclass(frozen=True)
class Delivery:
    """One message as it came from a queue. ``attempts`` counts earlier deliveries of it."""

    queue: str
    key: str
    body: bytes
    message_id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    attempts: int = 0
    tag: int = 0


@dataclass(frozen=True)
class QueueState:
    """How many messages wait in a queue, and how many consumers it has."""

    waiting: int
    consumers: int


class Consumer(ABC):
    """Deliveries of one queue. Used from one thread; compute as long as you like between calls.

    ``lost`` is the highest tag of a delivery that went with its connection: all up to it come again, perhaps to
    another consumer. What has a higher tag came by a later connection.
    """

    lost: int = 0

    @abstractmethod
    def next(self, timeout: float) -> Delivery | None:
        """The next delivery, or None when ``timeout`` seconds brought none.

        Raises
        ------
        BrokerError: the connection is lost for good.
        """

    @abstractmethod
    def ack(self, delivery: Delivery) -> None:
        """The message is done with. A delivery of a connection since lost is passed over: it comes again."""

    @abstractmethod
    def requeue(self, delivery: Delivery) -> None:
        """Back to the queue for another attempt (``basic.reject`` with requeue, which counts as one)."""

    @abstractmethod
    def close(self) -> None:
        """Take no more; everything still open goes back to the queue."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Broker(ABC):
    """A connection to a broker. One thread uses one at a time; ``memory://`` brokers may be shared."""

    @abstractmethod
    def declare(self, queue: Queue) -> None:
        """Make sure that the queue, its bindings and (unless it expires) its dead-letter queue exist."""

    @abstractmethod
    def publish(
        self,
        key: str,
        body: bytes,
        *,
        message_id: str = "",
        headers: Mapping[str, str] | None = None,
        mandatory: bool = True,
    ) -> None:
        """Publish to the exchange ``gliaflow`` and wait for the confirm.

        Raises
        ------
        Unroutable: ``mandatory``, and no queue is bound to ``key``.
        Refused: a queue is full (reject-publish).
        BrokerError: unreachable, or the message is over the broker's size limit.
        """

    @abstractmethod
    def send(self, queue: str, body: bytes, *, message_id: str = "", headers: Mapping[str, str] | None = None) -> None:
        """Publish straight into a queue by name, and wait for the confirm. Raises as ``publish`` does."""

    @abstractmethod
    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        """Put a copy of the delivery into its queue's dead letters, with the reason; the caller then acks it."""

    @abstractmethod
    def consume(self, queue: Queue, prefetch: int) -> Consumer:
        """Start to receive from a queue that was declared.

        Raises
        ------
        NoQueue: there is none of this name.
        """

    @abstractmethod
    def delete(self, queue: str) -> None:
        """Delete a queue with all that is in it; one that does not exist is no error."""

    @abstractmethod
    def look(self, queue: str) -> QueueState | None:
        """How a queue stands; None if there is no such queue."""

    def depth(self, queue: str) -> int:
        """How many messages wait in a queue (0 if there is no such queue)."""
        state = self.look(queue)
        return state.waiting if state else 0

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether the broker can be reached now."""

    @abstractmethod
    def close(self) -> None:
        """Leave. Consumers of this broker are closed with it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

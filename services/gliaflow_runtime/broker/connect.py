"""Connect to the broker that a URL names."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gliaflow_runtime.broker.interface import Broker
from gliaflow_runtime.broker.memory import STAGE_LIMITS, MemoryBroker
from gliaflow_runtime.errors import UsageError

if TYPE_CHECKING:
    from gliaflow_runtime.broker.credentials import Credentials

_embedded: dict[str, MemoryBroker] = {}
_lock = threading.Lock()


def connect(
    url: str,
    *,
    credentials: Credentials | None = None,
    connect_timeout: float = 60,
    outage_timeout: float = 300,
    dead_letters: Path | None = None,
    about: Mapping[str, str] | None = None,
    waiting: Callable[[str], None] = lambda reason: None,
) -> Broker:
    """A new connection to the broker at ``url``.

    Parameters
    ----------
    url: ``amqp://user:password@host:port/vhost`` or ``amqps://…`` (RabbitMQ); ``memory://`` (this process: all
        connections to the same URL share its queues; ``memory://name`` has queues of its own).
    credentials: password and certificates for RabbitMQ that the URL does not have.
    connect_timeout: seconds to wait until RabbitMQ answers.
    outage_timeout: seconds to wait for RabbitMQ after a connection was lost; ``math.inf``: for ever. Then a broker that
        is away at the start is no error either: after ``connect_timeout`` the connection is there, and its calls wait.
    dead_letters: the folder in which ``memory://`` keeps dead letters; the first connection to a URL sets it.
    about: what RabbitMQ shows about this client (its "client properties").
    waiting: called while a call waits for RabbitMQ, with the reason (``AmqpBroker``).

    Raises
    ------
    UsageError: the URL is malformed or its scheme is unknown.
    BrokerError: the broker cannot be reached, or denies access.
    """
    scheme = url.partition("://")[0]
    if scheme == "memory":
        with _lock:
            if url not in _embedded:
                _embedded[url] = MemoryBroker(dead_letters, STAGE_LIMITS)
            return _embedded[url].attach()
    if scheme in ("amqp", "amqps"):
        from gliaflow_runtime.broker.rabbitmq import AmqpBroker  # so that memory:// does not load pika

        return AmqpBroker(
            url,
            credentials=credentials,
            connect_timeout=connect_timeout,
            outage_timeout=outage_timeout,
            about=about,
            waiting=waiting,
        )
    raise UsageError(f"broker URL {scheme}://: expected memory://, amqp:// or amqps://")


def forget(url: str) -> None:
    """Drop the queues of a ``memory://`` URL; open connections keep them until they are closed."""
    with _lock:
        _embedded.pop(url, None)

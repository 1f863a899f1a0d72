"""From a URL to a broker."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gliaflow_runtime.broker.interface import Broker
from gliaflow_runtime.broker.memory import STAGE_LIMITS, MemoryBroker

if TYPE_CHECKING:
    from gliaflow_runtime.broker.credentials import Access

_embedded: dict[str, MemoryBroker] = {}
_lock = threading.Lock()


def connect(
    url: str,
    *,
    access: Access | None = None,
    connect_timeout: float = 60,
    dead_letters: Path | None = None,
    about: Mapping[str, str] | None = None,
) -> Broker:
    """A connection of one's own to the broker that ``url`` names.

    Parameters
    ----------
    url: ``amqp://user:password@host:port/vhost`` or ``amqps://…`` (RabbitMQ); ``memory://`` (this process: every
        connection to the same URL meets the same queues; ``memory://name`` is another set of them).
    access: password and certificates for RabbitMQ, where the URL does not say all.
    connect_timeout: how many seconds to wait for a RabbitMQ that is not there yet.
    dead_letters: the folder in which ``memory://`` keeps dead letters; the first connection to a URL decides.
    about: what RabbitMQ shows of the client (its "client properties").

    Raises
    ------
    ValueError: the URL is of no kind that is known, or not well formed.
    BrokerError: the broker cannot be reached, or refuses the access.
    """
    scheme = url.partition("://")[0]
    if scheme == "memory":
        with _lock:
            if url not in _embedded:
                _embedded[url] = MemoryBroker(dead_letters, STAGE_LIMITS)
            return _embedded[url].attach()
    if scheme in ("amqp", "amqps"):
        from gliaflow_runtime.broker.rabbitmq import AmqpBroker  # so that memory:// does not load pika

        return AmqpBroker(url, access=access, connect_timeout=connect_timeout, about=about)
    raise ValueError(f"broker URL {scheme}://: expected memory://, amqp:// or amqps://")

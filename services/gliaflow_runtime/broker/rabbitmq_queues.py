"""Declare queues, exchanges and bindings in RabbitMQ."""

from __future__ import annotations

import secrets
from typing import Any, Literal

from gliaflow_proto import Queue
from gliaflow_proto.routing import exchange_of
from pika.exceptions import ChannelClosedByBroker

from gliaflow_runtime.broker.connection_thread import Channel


def declare(channel: Channel, queue: Queue) -> None:
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
    _bind(channel, queue.name, queue.keys)
    if keeps_dead_letters and not complete:  # last, since its existence says that all is declared
        channel.exchange_declare(queue.dead, "fanout", durable=True)
        channel.queue_bind(queue.dead, queue.dead)


def declare_observing(channel: Channel, keys: tuple[str, ...], length: int, size: int) -> str:
    """Declare a queue for ``Broker.observe``; returns its name.

    RabbitMQ deletes it when the connection ends. Each connection has a queue with a new name, since the queue of a
    lost connection may still exist for a while.
    """
    name = f"gliaflow.console.{secrets.token_hex(8)}"
    arguments: dict[str, Any] = {
        "x-queue-type": "classic",
        "x-max-length": length,
        "x-max-length-bytes": size,
        "x-overflow": "drop-head",
    }
    channel.queue_declare(name, exclusive=True, auto_delete=True, arguments=arguments)
    _bind(channel, name, keys)
    return name


def _bind(channel: Channel, queue: str, keys: tuple[str, ...]) -> None:
    """Bind a queue to each key at the key's exchange, which is declared if it is missing."""
    for key in keys:
        exchange = exchange_of(key)
        if not _exists(channel, "exchange", exchange):
            channel.exchange_declare(exchange, "topic", durable=True)
        channel.queue_bind(queue, exchange, key)


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

"""A connection to the broker that the settings name."""

from __future__ import annotations

from collections.abc import Callable

from gliaflow_runtime.broker.connect import connect
from gliaflow_runtime.broker.interface import Broker
from gliaflow_runtime.settings import Settings
from gliaflow_runtime.version import VERSION

LETTERS = "dead-letters"  # memory://'s, in the folder of the setting ``state``


def open_broker(
    settings: Settings,
    bundle: str = "",
    connect_timeout: float = 60,
    outage_timeout: float = 300,
    waiting: Callable[[str], None] = lambda reason: None,
    killed: str = "",
) -> Broker:
    """A connection to the broker of the settings.

    Parameters
    ----------
    bundle: the id of the bundle that the client serves; the broker shows it beside the connection.
    killed: how the stage's predecessors were killed; the broker shows it too.
    connect_timeout, outage_timeout: as for ``connect``.
    waiting: called while a call waits for the broker, with the reason.

    Raises
    ------
    ValueError, BrokerError: as ``connect`` does.
    """
    credentials = None
    if not settings.broker.startswith("memory:"):
        from gliaflow_runtime.broker.credentials import Credentials  # which loads pika

        credentials = Credentials(
            settings.broker_password_file, settings.broker_ca, settings.broker_cert, settings.broker_key
        )
    return connect(
        settings.broker,
        credentials=credentials,
        connect_timeout=connect_timeout,
        outage_timeout=outage_timeout,
        dead_letters=settings.state / LETTERS,
        about={"product": "gliaflow", "version": VERSION, "bundle": bundle, "killed": killed},
        waiting=waiting,
    )

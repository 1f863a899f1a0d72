"""The text of pika's errors, as a person reads it."""

from __future__ import annotations

import pytest
from gliaflow_runtime.broker.connection_thread import text
from pika.exceptions import (
    AMQPConnectionError,
    ConnectionClosedByBroker,
    IncompatibleProtocolError,
    ProbableAuthenticationError,
    StreamLostError,
)

RESET = "Stream connection lost: ConnectionResetError(104, 'Connection reset by peer')"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (StreamLostError(RESET), RESET),
        (IncompatibleProtocolError(repr(StreamLostError(RESET))), RESET),  # pika puts an error into a text
        (ConnectionClosedByBroker(320, "CONNECTION_FORCED"), "CONNECTION_FORCED"),
        (AMQPConnectionError(), "AMQPConnectionError"),
        (ProbableAuthenticationError("a (usual) text: ('no repr')"), "a (usual) text: ('no repr')"),
    ],
)
def test_an_error_that_wraps_another_shows_the_inner_text(error: Exception, shown: str) -> None:
    assert text(error) == shown

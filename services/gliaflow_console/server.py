"""The HTTP server: uvicorn, with bounds for slow clients and for the end of the process."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from types import FrameType

import h11
import uvicorn
from gliaflow_runtime.ending import end_soon
from gliaflow_runtime.errors import UsageError
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0  # the longest wait for the whole head of a request
CONNECTIONS = 400  # at a time; more get 503. A process may usually have 1024 open files
OPEN_S = 2  # after a signal: how long answers may still be sent
END_S = 8.0  # after a signal: the longest orderly end


class _Protocol(H11Protocol):
    """uvicorn's, which also ends a connection without a request: one that sends nothing, or sends it very slowly."""

    _impatience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()

    def _wait_for_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._impatience is None:
            self._impatience = asyncio.get_running_loop().call_later(HEAD_S, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None


class ConsoleServer(uvicorn.Server):
    """Answers requests until SIGTERM or SIGINT. Then it sets ``stopping``, which ends all streams.

    The process ends within END_S of the signal, whatever still hangs in it.
    """

    def __init__(self, app: ASGIApp, stopping: threading.Event) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=CONNECTIONS,
                timeout_graceful_shutdown=OPEN_S,
            )
        )
        self._stopping = stopping
        for name in ("uvicorn.error", "asyncio"):  # their texts may have addresses and names; the guard logs errors
            logging.getLogger(name).setLevel(logging.CRITICAL)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As uvicorn: note the signal. The server ends in order, and then the signal is raised again."""
        if not self._stopping.is_set():
            self._stopping.set()
            end_soon(0, within_s=END_S)
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises
    ------
    UsageError: the address is not one of this machine, or the port is in use or not allowed. The text has the remedy.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        unknown_name = isinstance(error, socket.gaierror)
        reason = error.strerror if unknown_name or error.errno is None else os.strerror(error.errno)
        raise UsageError(
            f"--host {host} --port {port}: cannot listen there ({reason}): another program or console "
            "may use the port: name another one, or --port 0 for a free one"
        ) from None


def is_loopback(listener: socket.socket) -> bool:
    """Whether only programs of this machine can reach the socket."""
    address = str(listener.getsockname()[0])
    return address == "::1" or address.startswith("127.")

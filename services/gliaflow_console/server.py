"""The HTTP server: uvicorn, with bounds for slow clients and for the end of the process."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from types import FrameType

import h11
import uvicorn
from gliaflow_runtime.ending import end_soon
from gliaflow_runtime.errors import UsageError
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0  # the longest wait for the whole head of a request
CONNECTIONS = 400  # at a time; for another one, the oldest without a request ends. A process may have 1024 open files
NEW_S = 0.2  # a connection that is younger may have sent a request that is not read yet
OPEN_S = 2  # after a signal: how long answers may still be sent
END_S = 8.0  # after a signal: the longest orderly end


class _Protocol(H11Protocol):
    """uvicorn's, which also ends a connection without a request: one that sends nothing, or sends it very slowly.

    If there are CONNECTIONS, it ends the oldest of these at once. So those who have no token cannot keep others out.
    """

    _impatience: asyncio.TimerHandle | None = None
    _made = 0.0  # when the connection was made
    _heard = False  # whether bytes of it were read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._made = time.monotonic()
        self._wait_for_head()
        self._make_room(spare_new=True)

    def data_received(self, data: bytes) -> None:
        self._make_room(spare_new=False)  # or else uvicorn answers 503
        super().data_received(data)
        self._heard = True
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()

    def _make_room(self, *, spare_new: bool) -> None:
        """End connections that are in no request, until there are less than CONNECTIONS: the oldest first.

        New ones from which nothing was read may have sent a request. They stay with ``spare_new``, and else end last.
        """
        if (excess := len(self.connections) + 1 - CONNECTIONS) <= 0:
            return
        until = time.monotonic() - NEW_S
        others = [each for each in self.connections if isinstance(each, _Protocol) and each is not self]
        idle = [each for each in others if each.conn.their_state is h11.IDLE]
        known = [each for each in idle if each._heard or each._made <= until]
        ended = sorted(known, key=lambda each: each._made)
        if not spare_new and len(known) < excess:
            ended += sorted(set(idle).difference(known), key=lambda each: each._made)
        for each in ended[:excess]:
            self.connections.discard(each)  # now: uvicorn counts them
            each.transport.abort()

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

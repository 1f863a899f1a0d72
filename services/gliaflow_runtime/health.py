"""``/livez``, ``/readyz`` and ``/metrics`` over HTTP."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import structlog
from prometheus_client import generate_latest

from gliaflow_runtime.settings import Settings

MAX_CONNECTIONS = 16
WAIT_S = 5.0  # for the next bytes of a request, and for a client that reads its answer

log = structlog.get_logger()
Report = Callable[[], dict[str, bool]]


class HealthServer:
    """Answers HTTP requests while its context is open.

    Parameters
    ----------
    ready: returns named conditions; the process is ready if all are true. An exception means that it is not.
    host, port: the address to listen on; port 0: a free one (see ``port``).
    """

    def __init__(self, ready: Report, host: str, port: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = WAIT_S

            def do_GET(self) -> None:
                match self.path.split("?")[0]:
                    case "/livez":
                        self._answer(200, b"ok\n", "text/plain")
                    case "/readyz":
                        state = _state(ready)
                        status = 200 if all(state.values()) else 503
                        self._answer(status, json.dumps(state).encode() + b"\n", "application/json")
                    case "/metrics":
                        _state(ready)  # it sets gliaflow_ready
                        self._answer(200, generate_latest(), "text/plain; version=0.0.4")
                    case _:
                        self._answer(404, b"try /livez, /readyz or /metrics\n", "text/plain")

            def _answer(self, status: int, body: bytes, content_type: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing: probes come every few seconds."""

        self._server = _Server((host, port), Handler)
        self.port = self._server.server_address[1]

    def __enter__(self) -> HealthServer:
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """A thread for each connection, and few connections: a new one closes the oldest, which is idle or slow."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self._open: deque[socket.socket] = deque()
        self._changed = threading.Condition()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            if len(self._open) >= MAX_CONNECTIONS:
                with contextlib.suppress(OSError):  # its thread is closing it
                    self._open[0].shutdown(socket.SHUT_RDWR)
            if not self._changed.wait_for(lambda: len(self._open) < MAX_CONNECTIONS, WAIT_S):
                raise TimeoutError("the threads of the other connections do not end")
            self._open.append(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, at the end of its thread."""
        super().shutdown_request(request)
        with self._changed, contextlib.suppress(ValueError):  # a connection that got no thread
            self._open.remove(request)
            self._changed.notify()

    def handle_error(self, *_: object) -> None:
        """Log an error, unless the client just went away."""
        if not isinstance(sys.exc_info()[1], OSError):
            log.exception("health request failed")


def _state(ready: Report) -> dict[str, bool]:
    try:
        return ready()
    except Exception:
        log.exception("readiness check failed")
        return {"check": False}


def serve_health(settings: Settings, ready: Report) -> AbstractContextManager[object]:
    """The server for the address in the settings; none if the port is 0. Raises OSError if the port is in use."""
    if not settings.health_port:
        return nullcontext()
    return HealthServer(ready, settings.health_host, settings.health_port)

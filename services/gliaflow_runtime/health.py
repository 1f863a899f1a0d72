"""``/livez``, ``/readyz`` and ``/metrics`` over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import generate_latest

from gliaflow_runtime.settings import Settings

Report = Callable[[], dict[str, bool]]


class HealthServer:
    """Answers HTTP requests while its context is open.

    Parameters
    ----------
    ready: returns named conditions; the process is ready if all are true.
    host, port: the address to listen on; port 0: a free one (see ``port``).
    """

    def __init__(self, ready: Report, host: str, port: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                match self.path.split("?")[0]:
                    case "/livez":
                        self._answer(200, b"ok\n", "text/plain")
                    case "/readyz":
                        state = ready()
                        status = 200 if all(state.values()) else 503
                        self._answer(status, json.dumps(state).encode() + b"\n", "application/json")
                    case "/metrics":
                        ready()  # it sets gliaflow_ready
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

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]

    def __enter__(self) -> HealthServer:
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def serve_health(settings: Settings, ready: Report) -> AbstractContextManager[object]:
    """The server for the address in the settings; none if the port is 0. Raises OSError if the port is in use."""
    if not settings.health_port:
        return nullcontext()
    return HealthServer(ready, settings.health_host, settings.health_port)

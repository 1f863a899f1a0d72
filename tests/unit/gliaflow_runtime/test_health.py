"""The health server: what it answers, and that no client can keep it from answering."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPConnection

import pytest
from gliaflow_runtime import health
from gliaflow_runtime.health import MAX_CONNECTIONS, HealthServer

State = dict[str, bool]


@pytest.fixture
def state() -> State:
    return {"bundle": True}


@pytest.fixture
def server(state: State) -> Iterator[HealthServer]:
    def ready() -> State:
        if "error" in state:
            raise RuntimeError("the check itself fails")
        return state

    with HealthServer(ready, "127.0.0.1", 0) as server:
        yield server


def get(server: HealthServer, path: str) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


def connect(server: HealthServer, sent: bytes = b"") -> socket.socket:
    link = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    link.sendall(sent)
    return link


def test_ready_is_200_if_all_conditions_hold_and_else_503(server: HealthServer, state: State) -> None:
    assert get(server, "/readyz?verbose") == (200, b'{"bundle": true}\n')
    state["broker"] = False
    status, body = get(server, "/readyz")
    assert (status, json.loads(body)) == (503, {"bundle": True, "broker": False})
    state["error"] = True
    assert get(server, "/readyz") == (503, b'{"check": false}\n')
    assert get(server, "/metrics")[0] == 200
    assert get(server, "/livez") == (200, b"ok\n")
    assert get(server, "/")[0] == 404


@pytest.mark.parametrize("sent", [b"", b"GET /readyz HTTP/1.1\r\nX: "], ids=["idle", "unfinished"])
def test_idle_connections_take_few_threads_and_probes_are_answered(server: HealthServer, sent: bytes) -> None:
    before = threading.active_count()
    with ExitStack() as stack:
        for number in range(200):
            stack.enter_context(connect(server, sent))
            if number % 50 == 49:
                assert get(server, "/readyz")[0] == 200
        assert threading.active_count() - before <= MAX_CONNECTIONS + 2


def test_a_connection_that_sends_nothing_is_closed(server: HealthServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server._server.RequestHandlerClass, "timeout", 0.1)
    with connect(server) as idle:
        assert idle.recv(1) == b""


def test_each_answer_ends_its_connection(server: HealthServer) -> None:
    with connect(server, b"GET /livez HTTP/1.1\r\nConnection: keep-alive\r\n\r\n") as link, link.makefile("rb") as file:
        assert file.read().endswith(b"ok\n")


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\x00\r\n\r\n",
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"GET " + b"x" * 70_000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"POST /livez HTTP/1.1\r\n\r\n",
    ],
    ids=["no HTTP", "version", "long line", "many headers", "method"],
)
def test_a_malformed_request_is_refused(server: HealthServer, sent: bytes) -> None:
    with connect(server, sent) as link, contextlib.suppress(ConnectionResetError):
        assert link.recv(100).split()[1:2] != [b"200"]
    assert get(server, "/livez")[0] == 200


def test_a_client_that_goes_away_leaves_no_traceback(
    server: HealthServer, monkeypatch: pytest.MonkeyPatch, printed: Callable[[], str]
) -> None:
    gone, answered = threading.Event(), threading.Event()
    monkeypatch.setattr(health, "generate_latest", lambda: gone.wait(10) and b"x" * 10_000_000)
    close = server._server.shutdown_request
    monkeypatch.setattr(server._server, "shutdown_request", lambda request: (close(request), answered.set()))
    with connect(server, b"GET /metrics HTTP/1.0\r\n\r\n"):
        pass
    gone.set()
    assert answered.wait(10)
    assert printed() == ""


def test_a_hung_check_does_not_collect_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connections beyond the limit are closed, and the server still ends."""
    monkeypatch.setattr(health, "WAIT_S", 0.1)
    free, before = threading.Event(), threading.active_count()

    def hang() -> State:
        free.wait(10)
        return {}

    with HealthServer(hang, "127.0.0.1", 0) as server, ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            stack.enter_context(connect(server, b"GET /readyz HTTP/1.0\r\n\r\n"))
        with connect(server) as beyond, contextlib.suppress(ConnectionResetError):
            assert beyond.recv(1) == b""
        assert threading.active_count() - before <= MAX_CONNECTIONS + 2
        free.set()

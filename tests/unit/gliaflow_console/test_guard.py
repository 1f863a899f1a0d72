"""The guard of the console answers hostile requests before any other code sees them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from gliaflow_console import guard
from gliaflow_console.app import refused
from gliaflow_console.guard import Access, Guard
from gliaflow_console.server import ConsoleServer, listen
from http_client import RawClient, Reply, read_reply
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from structlog.testing import capture_logs

TOKEN = "correct-horse-battery-staple"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
UPLOAD = 3 * 2**20  # the largest file
seen: list[str] = []  # requests that came past the guard


async def take(request: Request) -> Response:
    seen.append(request.url.path)
    size = 0
    async for part in request.stream():
        size += len(part)
    return JSONResponse({"size": size})


async def fails(_: Request) -> Response:
    raise RuntimeError("no file /uploads/Jane Doe.nii.gz")


async def waits(_: Request) -> Response:
    seen.append("/waits")
    await asyncio.sleep(60)
    raise AssertionError


@pytest.fixture(scope="module")
def client() -> Iterator[RawClient]:
    with served() as client:
        yield client


@contextmanager
def served() -> Iterator[RawClient]:
    """A small application behind the guard, served as the console is, and a client of it."""
    everything = ["GET", "POST", "PUT", "DELETE", "OPTIONS"]
    routes = [Route("/fails", fails), Route("/waits", waits), Route("/{path:path}", take, methods=everything)]
    app = Starlette(routes=routes, exception_handlers={HTTPException: refused, Exception: refused})
    with listen("127.0.0.1", 0) as listener:
        access = Access(TOKEN, ("console.example", "proxy.example:8443"), UPLOAD)
        server = ConsoleServer(Guard(app, access), threading.Event())
        thread = threading.Thread(target=server.run, args=[[listener]])
        thread.start()
        yield RawClient(listener.getsockname()[1])
        server.should_exit = True
        thread.join()


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    seen.clear()


def error(reply: Reply) -> str:
    return str(json.loads(reply.body)["error"])


class TestToken:
    @pytest.mark.parametrize("line", ["GET /style.css", "GET /api/events", "POST /api/scans", "DELETE /x", "OPTIONS /"])
    def test_every_path_and_method_needs_it(self, client: RawClient, line: str) -> None:
        reply = client.ask(line)
        assert reply.status == 401
        assert reply.headers["www-authenticate"] == "Bearer"
        assert seen == []

    @pytest.mark.parametrize(
        "value", ["", "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer ä"]
    )
    def test_a_wrong_one_is_refused(self, client: RawClient, value: str) -> None:
        assert client.ask("GET /api/status", {"Authorization": value}).status == 401

    def test_a_program_sends_it_as_bearer(self, client: RawClient) -> None:
        assert client.ask("GET /api/status", {"Authorization": f"bearer {TOKEN}"}).status == 200

    def test_a_browser_exchanges_it_for_a_cookie(self, client: RawClient) -> None:
        reply = client.ask(f"GET /?token={TOKEN}")
        assert (reply.status, reply.headers["location"]) == (303, "/")
        cookie, *flags = reply.headers["set-cookie"].split("; ")
        assert {flag.lower() for flag in flags} == {"httponly", "samesite=strict", "path=/"}
        assert TOKEN not in cookie
        assert client.ask("GET /", {"Cookie": f"other=1; {cookie}"}).status == 200
        assert client.ask("GET /", {"Cookie": cookie + "0"}).status == 401

    def test_a_link_of_another_site_opens_the_page_without_a_redirection(self, client: RawClient) -> None:
        """A browser would send no strict cookie with it."""
        by_link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}
        reply = client.ask(f"GET /?token={TOKEN}", by_link)
        assert (reply.status, reply.headers["refresh"]) == (200, "0; url=/")
        assert "set-cookie" in reply.headers

    def test_two_consoles_on_one_host_have_cookies_of_their_own(self) -> None:
        assert Access(TOKEN, (), 1).cookie[0] != Access(TOKEN + "2", (), 1).cookie[0]

    def test_without_it_a_page_says_what_to_do(self, client: RawClient) -> None:
        reply = client.ask("GET /?token=wrong")
        assert reply.status == 401
        assert b"gliaflow console" in reply.body
        assert "form-action 'self'" in reply.headers["content-security-policy"]
        assert "set-cookie" not in reply.headers

    def test_a_wrong_one_in_the_address_is_named(self, client: RawClient) -> None:
        assert b'id="wrong" hidden' in client.ask("GET /").body
        page = client.ask("GET /?token=0123456789abcdef").body
        assert b'<p id="wrong" role="alert"><strong>This token is not the console\'s' in page

    def test_an_old_address_is_cleaned_if_the_browser_has_the_cookie(self, client: RawClient) -> None:
        name, value = Access(TOKEN, (), 1).cookie
        assert client.ask("GET /?token=old", {"Cookie": f"{name}={value}"}).status == 303


class TestPlace:
    @pytest.mark.parametrize(
        "host",
        ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "[::2]", "", "console.example.evil",
         "proxy.example", "proxy.example:80", "127.0.0.1@evil.example", "[::1", "evil.example:127.0.0.1",
         "localhost:@evil.example", "127.0.0.1:abc", "[::1]evil.example", "localhost:80/.."],
    )  # fmt: skip
    def test_another_host_name_is_refused(self, client: RawClient, host: str) -> None:
        reply = client.ask("GET /api/status", {**BEARER, "Host": host})
        assert reply.status == 403
        assert "GLIAFLOW_CONSOLE_NAMES" in error(reply)
        assert seen == []

    @pytest.mark.parametrize(
        "host", ["localhost", "LOCALHOST:1234", "127.0.0.1", "[::1]:8765", "console.example:9", "Proxy.example:8443"]
    )
    def test_its_own_names_are_accepted(self, client: RawClient, host: str) -> None:
        assert client.ask("GET /api/status", {**BEARER, "Host": host}).status == 200

    def test_a_request_without_a_host_name_is_refused(self, client: RawClient) -> None:
        reply = client.send(f"GET /api/status HTTP/1.0\nAuthorization: Bearer {TOKEN}\n\n")
        assert reply.status == 403
        assert client.send(f"GET / HTTP/1.1\nAuthorization: Bearer {TOKEN}\n\n").status == 400

    def test_two_host_names_are_refused(self, client: RawClient) -> None:
        assert client.send("GET / HTTP/1.1\nHost: localhost\nHost: evil.example\n\n").status == 400

    def test_the_address_in_the_request_line_does_not_count(self, client: RawClient) -> None:
        reply = client.ask("GET http://localhost/api/status", {**BEARER, "Host": "evil.example"})
        assert reply.status == 403

    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
    @pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:3000", "http://127.0.0.1", ""])
    def test_another_origin_is_refused_for_all_methods(self, client: RawClient, method: str, origin: str) -> None:
        reply = client.ask(f"{method} /api/status", {**BEARER, "Origin": origin})
        assert reply.status == 403
        assert seen == []

    def test_its_own_origin_is_accepted(self, client: RawClient) -> None:
        own = {"Origin": f"http://127.0.0.1:{client.port}", "Sec-Fetch-Site": "same-origin"}
        assert client.ask("POST /api/scans", BEARER | own).status == 200
        behind_tls = {"Host": "proxy.example:8443", "Origin": "https://proxy.example:8443"}
        assert client.ask("POST /api/scans", BEARER | behind_tls).status == 200

    @pytest.mark.parametrize("site", ["cross-site", "same-site"])
    def test_another_site_may_load_nothing(self, client: RawClient, site: str) -> None:
        """An image or a script of another site, or of another port of this host, comes without Origin."""
        assert client.ask("GET /api/scans", {**BEARER, "Sec-Fetch-Site": site}).status == 403
        for line, kind in (
            ("GET /api/scans", "document"),
            ("GET /", "iframe"),
            ("GET /", "image"),
            ("POST /", "document"),
        ):
            assert client.ask(line, {**BEARER, "Sec-Fetch-Site": site, "Sec-Fetch-Dest": kind}).status == 403

    def test_no_upgrade_to_websockets(self, client: RawClient) -> None:
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        assert client.ask("GET /api/events", upgrade).status == 401


class TestBody:
    def test_a_file_is_taken_up_to_the_limit(self, client: RawClient) -> None:
        assert client.ask("POST /api/scans?name=a.nii.gz", BEARER, b"x" * UPLOAD).body == b'{"size":3145728}'
        assert client.ask("PUT /api/folders/1?name=IM1", BEARER, b"x" * UPLOAD).status == 200

    @pytest.mark.parametrize(
        ("line", "length"),
        [("POST /api/scans", UPLOAD + 1), ("PUT /api/folders/1", 10**18), ("POST /api/folders/1", 2**20 + 1),
         ("POST /api/generate", UPLOAD), ("GET /api/scans", UPLOAD), ("DELETE /api/scans/1", UPLOAD)],
    )  # fmt: skip
    def test_a_longer_one_is_refused_before_it_is_read(self, client: RawClient, line: str, length: int) -> None:
        reply = client.ask(line, {**BEARER, "Content-Length": str(length)})
        assert reply.status == 413
        assert "MiB" in error(reply)
        assert seen == []

    def test_the_client_that_waits_for_leave_sends_nothing(self, client: RawClient) -> None:
        waits = {**BEARER, "Content-Length": str(10**12), "Expect": "100-continue"}
        assert client.ask("POST /api/scans", waits).status == 413

    def test_a_client_that_sends_first_reads_the_answer_all_the_same(self, client: RawClient) -> None:
        assert client.ask("POST /api/scans", BEARER, b"x" * (UPLOAD + 2**20)).status == 413
        assert client.ask("POST /api/scans", {}, b"x" * UPLOAD).status == 401

    def test_chunks_are_counted(self, client: RawClient) -> None:
        chunk = b"%x\r\n%b\r\n" % (2**20, b"x" * 2**20)
        assert client.send(self._head(client), chunk * 3 + b"0\r\n\r\n").body == b'{"size":3145728}'
        assert client.send(self._head(client), chunk * 4).status == 413

    def _head(self, client: RawClient) -> str:
        return (
            f"POST /api/scans HTTP/1.1\nHost: localhost:{client.port}\nAuthorization: Bearer {TOKEN}\n"
            "Transfer-Encoding: chunked\n\n"
        )

    def test_lengths_that_contradict_are_refused(self, client: RawClient) -> None:
        """A proxy and the console might otherwise see different requests (request smuggling)."""
        two = "POST /x HTTP/1.1\nHost: localhost\nContent-Length: 5\nContent-Length: 6\n\n"
        assert client.send(two, b"hello!").status == 400
        assert client.ask("POST /x", {**BEARER, "Content-Length": "-1"}).status == 400
        assert client.ask("POST /x", {**BEARER, "Content-Length": "1e3"}).status == 400

    def test_a_slow_body_ends(self, client: RawClient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(guard, "SILENT_S", 0.2)
        monkeypatch.setattr(guard, "DRAIN_S", 0.1)
        reply = client.ask("POST /api/scans", {**BEARER, "Content-Length": "1000"})
        assert reply.status == 408
        assert "bytes" in error(reply)

    def test_a_slow_head_ends(self, client: RawClient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gliaflow_console.server.HEAD_S", 0.3)
        with client.connect("GET / HTTP/1.1\nHost: loc") as slow, client.connect() as silent:
            slow.sendall(b"alh")
            assert (slow.recv(1), silent.recv(1)) == (b"", b"")


class TestCrowd:
    @pytest.fixture
    def crowded(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[RawClient]:
        """A server that takes 8 connections at a time."""
        monkeypatch.setattr("gliaflow_console.server.CONNECTIONS", 8)
        with served() as client:
            yield client

    def test_connections_without_a_request_keep_nobody_out(self, crowded: RawClient) -> None:
        heads = ["", "GET / HT", "GET / HTTP/1.1\nHost: localhost\n"]  # none is complete
        with ExitStack() as stack:
            idle = [stack.enter_context(crowded.connect(heads[n % 3])) for n in range(20)]
            for _ in range(3):
                assert crowded.ask("GET /x", BEARER).status == 200
            assert idle[0].recv(1) == b"", "the oldest has ended"

    @pytest.mark.parametrize(("host", "status"), [("localhost", 401), ("evil.example", 403)])
    def test_who_is_refused_holds_no_connection_by_a_body_that_does_not_come(
        self, client: RawClient, monkeypatch: pytest.MonkeyPatch, host: str, status: int
    ) -> None:
        monkeypatch.setattr(guard, "DRAIN_S", 60)
        with client.connect(f"POST /x HTTP/1.1\nHost: {host}\nContent-Length: 1000\n\n") as refused:
            refused.settimeout(5)
            assert read_reply(refused).status == status
            assert refused.recv(1) == b""

    def test_a_new_one_stays_while_others_can_end(self, crowded: RawClient, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its request may have come, and not be read yet."""
        monkeypatch.setattr("gliaflow_console.server.NEW_S", 60)
        with ExitStack() as stack:
            new = stack.enter_context(crowded.connect())
            for _ in range(10):
                other = stack.enter_context(
                    crowded.connect(f"GET /x HTTP/1.1\nHost: localhost\nAuthorization: Bearer {TOKEN}\n\n")
                )
                assert read_reply(other).status == 200
            new.sendall(f"GET /x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
            assert read_reply(new).status == 200

    def test_one_that_sends_its_body_is_not_ended_for_others(self, crowded: RawClient) -> None:
        head = f"POST /api/scans HTTP/1.1\nHost: localhost\nAuthorization: Bearer {TOKEN}\nContent-Length: 2\n\n"
        with ExitStack() as stack:
            upload = stack.enter_context(crowded.connect(head, b"a"))
            for _ in range(20):
                stack.enter_context(crowded.connect())
            assert crowded.ask("GET /x", BEARER).status == 200
            upload.sendall(b"b")
            assert read_reply(upload).status == 200


class TestEnd:
    def test_a_request_that_is_not_done_says_that_the_console_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gliaflow_console.server.OPEN_S", 0.1)
        with served() as client:
            waiting = client.connect(f"GET /waits HTTP/1.1\nHost: localhost\nAuthorization: Bearer {TOKEN}\n\n")
            while "/waits" not in seen:
                time.sleep(0.01)
        with waiting:
            reply = read_reply(waiting)
        assert reply.status == 503
        assert error(reply) == "the console is ending: look for the scan in the list after it has started again"


class TestAnswer:
    def test_each_has_the_headers_that_bind_the_browser(self, client: RawClient) -> None:
        for reply in (client.ask("GET /api/x", BEARER), client.ask("GET /"), client.ask("GET /", {"Host": "evil"})):
            policy = reply.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.headers["referrer-policy"] == "no-referrer"
            assert reply.headers["cross-origin-resource-policy"] == "same-origin"
            assert reply.headers["cache-control"] == "no-store"
            assert "server" not in reply.headers
            assert "access-control-allow-origin" not in reply.headers

    def test_a_page_is_checked_again_each_time(self, client: RawClient) -> None:
        assert client.ask("GET /style.css", BEARER).headers["cache-control"] == "no-cache"

    def test_a_fault_is_logged_without_its_text(self, client: RawClient) -> None:
        """The text may have a patient's name. So may the address of the request."""
        with capture_logs() as logged:
            reply = client.ask("GET /fails?name=Jane%20Doe", BEARER)
            until = time.monotonic() + 20
            while not logged and time.monotonic() < until:  # it is written after the answer
                time.sleep(0.01)
        assert (reply.status, error(reply)) == (500, guard.FAULT)
        assert "RuntimeError at test_guard.py" in str(logged)
        assert "Jane" not in str(logged)

    def test_requests_are_not_logged(self, client: RawClient, capfd: pytest.CaptureFixture[str]) -> None:
        client.ask("POST /api/scans?name=Jane%20Doe.nii.gz", BEARER, b"x")
        client.send("nonsense Jane\n\n")
        assert "".join(capfd.readouterr()) == ""

    def test_a_client_that_leaves_in_the_middle_is_no_fault(
        self, client: RawClient, capfd: pytest.CaptureFixture[str]
    ) -> None:
        head = f"POST /api/scans HTTP/1.1\nHost: localhost\nAuthorization: Bearer {TOKEN}\nContent-Length: 100\n\n"
        client.connect(head, b"x").close()
        assert client.ask("GET /api/status", BEARER).status == 200
        assert "".join(capfd.readouterr()) == ""

    def test_a_connection_serves_several_requests(self, client: RawClient) -> None:
        head = f"GET /a HTTP/1.1\nHost: localhost\nAuthorization: Bearer {TOKEN}\n\n"
        with client.connect(head + head) as connection:
            assert [read_reply(connection).status] == [200]

"""The console as a process, and clients that are no browsers: programs, and those that mean harm."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from browser import ConsoleProcess
from gliaflow_console.app import PAGES, api_routes
from gliaflow_runtime.settings import Settings
from http_client import RawClient, Reply
from sample_scans import good_scan

ENDS_WITHIN_S = 10
TOKEN = "a token of the operator".replace(" ", "-")
BEARER = {"Authorization": f"Bearer {TOKEN}"}
NAME = "Jane_Doe_1970"  # of a patient


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleProcess]:
    """A console with the stages inside, an operator's token, and every message in its log."""
    folder = tmp_path_factory.mktemp("console")
    settings = {"GLIAFLOW_CONSOLE_TOKEN": TOKEN, "GLIAFLOW_LOG_LEVEL": "debug", "GLIAFLOW_CONSOLE_UPLOAD_MIB": "4"}
    process = ConsoleProcess(folder, settings=settings)
    process.start()
    yield process
    if process.process and process.process.poll() is None:
        process.stop()


@pytest.fixture(scope="module")
def client(console: ConsoleProcess) -> RawClient:
    return RawClient(urlsplit(console.url).port or 0)


def error(reply: Reply) -> str:
    return str(json.loads(reply.body)["error"])


def test_the_operators_token_is_not_printed(console: ConsoleProcess) -> None:
    assert console.address == f"{console.url}?token=(your token)"
    assert TOKEN not in console.log


def test_a_scan_is_uploaded_and_answered(client: RawClient, console: ConsoleProcess, tmp_path: Path) -> None:
    scan = good_scan(tmp_path / "a.nii.gz")
    reply = client.ask(f"POST /api/scans?name={NAME}.nii.gz", BEARER, Path(scan).read_bytes())
    assert reply.status == 202
    row = console.wait_row(NAME)
    assert row["id"] == json.loads(reply.body)["id"]
    assert row["status"] in ("ok", "no tumour")
    assert client.ask(f"GET /api/scans/{row['id']}/mask.nii.gz", BEARER).body[:2] == b"\x1f\x8b"


def test_a_name_is_a_text_and_nothing_else(client: RawClient, console: ConsoleProcess) -> None:
    name = "<img src=x onerror=alert(1)>"
    reply = client.ask(f"POST /api/scans?name={quote(name)}", BEARER, b"no scan")
    assert reply.status == 202
    assert console.wait_row(name)["status"] == "failed"
    row = client.ask(f"GET /api/scans/{json.loads(reply.body)['id']}", BEARER)
    assert row.headers["content-type"] == "application/json"
    assert row.headers["x-content-type-options"] == "nosniff"


def test_logs_have_no_names(client: RawClient, console: ConsoleProcess) -> None:
    """Neither of a good scan, nor of one that cannot be read, nor of an address that does not exist."""
    for line in (f"POST /api/scans?name={NAME}.nii.gz", f"POST /api/scans?name=../{NAME}", f"GET /{NAME}"):
        client.ask(line, BEARER, b"no scan")
    assert console.log
    assert NAME not in console.log


class Anything:
    """Stands for the parts of a console, of which only the addresses matter here."""

    settings = Settings()

    def __getattr__(self, name: str) -> Anything:
        return Anything()


LINES = sorted(
    f"{method} {route.path.replace('{', '').replace('}', '')}"
    for route in api_routes(Anything())  # type: ignore[arg-type]
    for method in (route.methods or set()) - {"HEAD"}
)
FILES = sorted(f"GET /{path.relative_to(PAGES).as_posix()}" for path in PAGES.rglob("*.*"))


@pytest.mark.parametrize("line", [*LINES, *FILES, "GET /", "GET /favicon.ico", "GET /no/such", "POST /", "TRACE /x"])
def test_every_address_needs_the_token_and_the_right_place(client: RawClient, line: str) -> None:
    assert client.ask(line).status == 401
    assert client.ask(line, {**BEARER, "Host": "evil.example"}).status == 403
    assert client.ask(line, {**BEARER, "Origin": "https://evil.example"}).status == 403
    assert client.ask(line, {**BEARER, "Content-Length": str(10**12)}).status == 413


@pytest.mark.parametrize("line", FILES)
def test_each_file_of_the_page_has_its_type(client: RawClient, line: str) -> None:
    kinds = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
    reply = client.ask(line, BEARER)
    assert reply.status == 200
    kind = kinds.get(Path(line).suffix)
    assert kind is None or reply.headers["content-type"].startswith(kind)


@pytest.mark.parametrize(
    "path",
    [
        "/../app.py", "/..%2fapp.py", "/%2e%2e/app.py", "/%2e%2e%2fapp.py", "/js/../../app.py", "/js/..%2f..%2fapp.py",
        "//etc/passwd", "/%2fetc/passwd", "/..\\app.py", "/%5c..%5capp.py", "/%00", "/index.html%00.js",
        "/" + "a" * 5000, "/js", "/js/", "/.", "/..", "/%ff%fe", "/api/scans/../../app.py",
        "/api/reports/..%2f..%2fapp.py", "/api/scans/%2e%2e/mask.nii.gz", "/api/scans/" + "a" * 300, "/index.html/..",
        "/static/../../../../etc/passwd",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_pages(client: RawClient, path: str) -> None:
    reply = client.ask(f"GET {path}", BEARER)
    assert reply.status in (307, 404) or b"<!doctype html>" in reply.body
    assert b"import" not in reply.body
    assert b"root:" not in reply.body


@pytest.mark.parametrize(
    ("line", "body"),
    [
        ("POST /api/generate", b"\xff"), ("POST /api/generate", b"[" * 10**5), ("POST /api/generate", b'{"grade": 1}'),
        ("POST /api/generate", b'{"grade": "HGG", "count": 1e400}'), ("POST /api/phantoms", b"null"),
        ("POST /api/phantoms", b'{"grade": "\\ud800"}'), ("POST /api/dead/replay", b'{"ids": [1]}'),
        ("POST /api/dead/delete", b"{}"), ("POST /api/folders/1", b"[]"), ("POST /api/scans", b"x"),
        ("POST /api/scans?name=%00", b"x"), ("POST /api/scans?name=..%2f..%2fx", b"x"), ("DELETE /api/scans/1", b""),
        ("PUT /api/folders/1?name=x", b"x"),
        ("PATCH /api/scans", b""), ("GET /api/scans?limit=-1", b""), ("GET /api/scans?before=%ff", b""),
        ("GET /api/scans?limit=" + "9" * 5000, b""), ("GET /api/dead/x", b""), ("GET /api/reports/x", b""),
        ("GET /api/scans/1/maps?slice=1e9", b""), ("GET /api/nothing", b""),
    ],
)  # fmt: skip
def test_a_malformed_request_is_refused_in_a_sentence(
    client: RawClient, console: ConsoleProcess, line: str, body: bytes
) -> None:
    reply = client.ask(line, BEARER, body)
    assert reply.status in (200, 400, 404, 405, 422)
    assert reply.status == 200 or len(error(reply).split()) > 3
    assert "a request failed" not in console.log
    assert "Traceback" not in console.log


def test_events_come_with_the_token(client: RawClient) -> None:
    with client.connect(f"GET /api/events HTTP/1.1\nHost: localhost\nAuthorization: Bearer {TOKEN}\n\n") as stream:
        text = b""
        while b"event: scans" not in text:
            text += stream.recv(65536)
    assert b"text/event-stream" in text
    assert b"event: status" in text


def test_an_upload_over_the_limit_in_chunks_leaves_nothing(client: RawClient, console: ConsoleProcess) -> None:
    head = (
        "POST /api/scans?name=big.nii.gz HTTP/1.1\nHost: localhost\n"
        f"Authorization: Bearer {TOKEN}\nTransfer-Encoding: chunked\n\n"
    )
    total = console.get("api/scans")["total"]
    assert client.send(head, (b"100000\r\n" + bytes(2**20) + b"\r\n") * 5).status == 413
    assert console.get("api/scans")["total"] == total


def test_it_ends_in_time_with_streams_and_uploads_open(client: RawClient, console: ConsoleProcess) -> None:
    """The last test with this console. Some clients read nothing, and some send nothing more."""
    head = f"HTTP/1.1\nHost: localhost\nAuthorization: Bearer {TOKEN}\n"
    upload = f"POST /api/scans?name=a.nii.gz {head}Content-Length: 1000\n\n"
    heads = [f"GET /api/events {head}\n"] * 3 + [upload, "GET / HT", f"GET /niivue/niivue.umd.js {head}\n"]
    connections = [client.connect(each) for each in heads]
    assert read_head(connections[0]).startswith(b"HTTP/1.1 200")
    before = time.monotonic()
    assert console.stop() == 0
    assert time.monotonic() - before < ENDS_WITHIN_S
    for connection in connections:
        connection.close()
    assert "Traceback" not in console.log


def read_head(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(1024)
    return data


class TestBrokerAway:
    """The page comes up all the same, says what is wrong, and the console ends in time."""

    @pytest.fixture
    def silent(self) -> Iterator[int]:
        """The port of a broker that accepts connections and says nothing, as if it were stopped by SIGSTOP."""
        with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
            yield listener.getsockname()[1]

    @pytest.mark.parametrize("kind", ["refused", "silent"])
    def test_it_says_so(self, tmp_path: Path, silent: int, kind: str) -> None:
        port = 1 if kind == "refused" else silent
        process = ConsoleProcess(tmp_path, broker=f"amqp://user:s3cret@127.0.0.1:{port}/")
        process.start()
        try:
            until = time.monotonic() + 20
            while not (status := process.get("api/status"))["problem"]:
                assert time.monotonic() < until
                time.sleep(0.2)
            assert f"127.0.0.1:{port}" in status["problem"]
            assert "s3cret" not in json.dumps(status)
            assert process.get("api/scans")["total"] == 0
        finally:
            before = time.monotonic()
            code = process.stop()
        assert (code, time.monotonic() - before < ENDS_WITHIN_S) == (0, True)
        assert "Traceback" not in process.log
        assert "s3cret" not in process.log

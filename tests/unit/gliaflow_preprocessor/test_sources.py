"""A scan's source: bytes, a URI or an upload. No sender can hold the preprocessor, or learn which files it can see."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import structlog
from gliaflow_preprocessor import sources
from gliaflow_preprocessor.preprocessor import Preprocessor
from gliaflow_preprocessor.sources import MAX_CHUNKS, SourceError, UploadGone, read_source
from gliaflow_proto import Queue, Scan, ScanMessage, Source
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.broker.memory import MemoryBroker, MemoryConsumer
from gliaflow_runtime.bundle.load import load_bundle
from gliaflow_runtime.stage import InvalidInput, Outcome, TemporarilyUnavailable

UNREADABLE = "^source.uri: no readable scan under an allowed root$"
UPLOAD = Queue("gliaflow.upload.0123456789abcdef", ("upload.0123456789abcdef",), expires_s=3600)
Send = Callable[..., None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "folder" / "sub" / "file").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"outside")
    return tmp_path / "folder"


def read_uri(uri: str, *roots: object) -> bytes:
    return read_source(Source(uri=uri), [str(root) for root in roots], MemoryBroker())


@pytest.mark.parametrize(
    "uri",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "{root}/../secret",
        "file://{root}/../secret",
        "file://{root}/%2e%2e/secret",
        "file://{root}/sub/..%2f..%2fsecret",
        "{root}-sibling/secret",
        "{root}/link",
        "FILE:///etc/passwd",
        "s3://bucket-other/scan",
        "s3://bucket/../other/scan",
        "s3://bucket/%2e%2e/other",
        "memory://x/y",
        "http://169.254.169.254/latest",
        "zip://a.nii::s3://bucket/scan.zip",
        "s3://bucket/a::file:///etc/passwd",
    ],
)
def test_a_uri_outside_the_roots_is_refused(folder: Path, tmp_path: Path, uri: str) -> None:
    (tmp_path / "folder-sibling").mkdir()
    (tmp_path / "folder-sibling" / "secret").write_bytes(b"outside")
    (folder / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(SourceError, match=UNREADABLE) as caught:
        read_uri(uri.format(root=folder), folder, "s3://bucket")
    assert caught.value.detail == "not under an allowed root"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "uri",
    [
        "{root}/missing",
        "{root}/sub",
        "{root}",
        "{root}/loop",
        "{root}/pipe",
        "{root}/denied/file",
        "{root}/large",
        "{root}/sub/file/below",
        "{root}/../missing",
        "/nowhere/missing",
        "file://{root}/a\0b",
        "{root}/" + "x" * 300,
        "{root}/" + "x/" * 3000,
        "{root}/\udcff",
        "http://[",
        "nosuch://{root}/file",
        "",
    ],
)
def test_the_reason_does_not_say_which_files_exist(folder: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    (folder / "large").write_bytes(bytes(100))
    (folder / "denied").mkdir(mode=0)
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 99)
    with pytest.raises(SourceError, match=UNREADABLE) as caught:
        read_uri(uri.format(root=folder), folder)
    assert caught.value.detail
    assert "folder" not in caught.value.detail.replace("out of the folder", ""), "the log names no file"


def test_without_a_root_no_uri_is_read(folder: Path) -> None:
    """This is the default, also of docker-compose.yml: a client cannot read the scans of others."""
    for uri in (folder / "sub" / "file").as_uri(), "/inbox/missing.nii", "http://[":
        with pytest.raises(SourceError, match="GLIAFLOW_ROOTS is not set"):
            read_uri(uri)


def test_an_empty_root_is_not_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``GLIAFLOW_ROOTS=/data,`` has one."""
    monkeypatch.chdir(folder)
    with pytest.raises(SourceError, match=UNREADABLE):
        read_uri(str(folder / "sub" / "file"), "/data", "")


def test_a_scan_under_a_root_is_read_by_path_or_uri(folder: Path) -> None:
    for uri in (str(folder / "sub" / "file"), (folder / "sub" / "file").as_uri(), f"file://{folder}/sub/%66ile"):
        assert read_uri(uri, "/nowhere", folder) == b"inside"


def test_the_log_says_why_a_source_was_not_read(folder: Path) -> None:
    stage = Preprocessor(load_bundle(None), MemoryBroker(), [str(folder)])
    message = ScanMessage(id="m", scan=Scan(id="s"), source=Source(uri=str(folder / "Jane Doe.nii")))
    with structlog.testing.capture_logs() as logs, pytest.raises(InvalidInput, match=UNREADABLE):
        stage.handle(message, Delivery("gliaflow.preprocessor", "scan", b""))
    assert [(line["scan"], line["reason"]) for line in logs] == [("s", "No such file or directory")]


class SlowStore:
    """A file in a store that answers each request, but slowly."""

    size = None

    def __init__(self, clock: list[float], error: Exception | None = None) -> None:
        self._clock, self._error = clock, error

    def open(self) -> SlowStore:
        return self

    def read(self, _: int) -> bytes:
        self._clock[0] += 50
        if self._error and self._clock[0] > 120:
            raise self._error
        return b"a few bytes"

    def __enter__(self) -> SlowStore:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize(("error", "kind"), [(None, SourceError), (TimeoutError(), TemporarilyUnavailable)])
def test_a_slow_store_has_one_limit_in_all(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, kind: type[Exception]
) -> None:
    """After it there is no other attempt, which would multiply the wait; but there is if the store hangs at the end."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sources.fsspec, "open", lambda *_, **__: SlowStore(clock, error))
    with pytest.raises(kind, match=r"^source\.uri: "):
        read_uri("s3://bucket/scan.nii", "s3://bucket")
    assert clock[0] == 150


def test_a_store_has_no_more_time_than_is_left_for_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sources.fsspec, "open", lambda *_, **__: SlowStore(clock))
    with pytest.raises(SourceError, match=UNREADABLE) as caught:
        read_source(Source(uri="s3://bucket/scan.nii"), ["s3://bucket"], MemoryBroker(), until=60)
    assert "300 s for all files of the scan" in caught.value.detail
    assert clock[0] == 100


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a store that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("protocol", ["http", "s3"])
def test_a_store_that_hangs_is_tried_again_later(monkeypatch: pytest.MonkeyPatch, silent: int, protocol: str) -> None:
    monkeypatch.setattr(sources, "STORE_WAIT_S", 0.5)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent}",
    }.items():
        monkeypatch.setenv(name, value)
    root = f"http://127.0.0.1:{silent}" if protocol == "http" else "s3://bucket"
    with pytest.raises(TemporarilyUnavailable, match="the store does not answer"):
        read_uri(f"{root}/scan.nii", root)


def test_the_store_s_client_does_not_multiply_the_retries_of_s3fs() -> None:
    assert sources._client_options("s3") == {"config_kwargs": {"retries": {"max_attempts": 0}}}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("answer", "kind"),
    [("503 Unavailable", TemporarilyUnavailable), ("404 Not Found", SourceError), (None, TemporarilyUnavailable)],
)
def test_only_a_web_server_that_does_not_answer_is_tried_again(answer: str | None, kind: type[Exception]) -> None:
    """fsspec raises FileNotFoundError for each of them. Without an answer, no process listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        root = f"http://127.0.0.1:{server.getsockname()[1]}"

        def serve() -> None:
            with suppress(OSError):  # the server is closed
                while True:
                    with server.accept()[0] as connection:
                        connection.recv(2**16)
                        connection.sendall(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n".encode())

        if answer:
            threading.Thread(target=serve, daemon=True).start()
        else:
            server.close()
        with pytest.raises(kind):
            read_uri(f"{root}/scan.nii", root)


@pytest.mark.parametrize(("status", "kind"), [(403, SourceError), (404, SourceError), (503, TemporarilyUnavailable)])
def test_a_web_server_that_refuses_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, status: int, kind: type[Exception]
) -> None:
    error = OSError()
    error.status = status  # type: ignore[attr-defined]  # as of aiohttp.ClientResponseError
    clock = [100.0]
    monkeypatch.setattr(sources.fsspec, "open", lambda *_, **__: SlowStore(clock, error))
    with pytest.raises(kind):
        read_uri("https://host/scan.nii", "https://host")


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> MemoryBroker:
    monkeypatch.setattr(sources, "UPLOAD_WAIT_S", 0.3)
    broker = MemoryBroker()
    broker.declare(UPLOAD)
    return broker


@pytest.fixture
def send(broker: MemoryBroker) -> Send:
    """Publishes chunks to the upload queue, with the given bodies by ``message_id``."""

    def send(*chunks: tuple[object, bytes]) -> None:
        for number, body in chunks:
            broker.publish(UPLOAD.keys[0], body, message_id=str(number))

    return send


def read_upload(broker: MemoryBroker, chunks: int, name: str = UPLOAD.name) -> bytes:
    return read_source(Source(upload=name, chunks=chunks), [], broker)


def test_chunks_may_arrive_in_any_order_and_stay_for_another_attempt(broker: MemoryBroker, send: Send) -> None:
    send((1, b"sc"), (0, b"a "), (2, b"an"))
    for _ in range(3):
        assert read_upload(broker, 3) == b"a scan"
    assert broker.depth(UPLOAD.name) == 3


def test_a_chunk_that_was_published_again_is_read_once(broker: MemoryBroker, send: Send) -> None:
    """A client that missed the confirm publishes the same message again."""
    send((0, b"a "), (0, b"a "), (1, b"scan"), (1, b"scan"))
    assert read_upload(broker, 2) == b"a scan"


@pytest.mark.parametrize(
    ("chunks", "sent", "reason"),
    [
        (60, [(0, b"")] * 60, "is empty"),
        (2, [(0, b"a"), (1, b"")], "is empty"),
        (2, [(0, b"a"), (2, b"b")], "not from 0 to 1"),
        (2, [(0, b"a"), (-1, b"b")], "not from 0 to 1"),
        (2, [(0, b"a"), ("01", b"b")], "not from 0 to 1"),
        (2, [(0, b"a"), ("١", b"b")], "not from 0 to 1"),
        (2, [("", b"a"), (1, b"b")], "not from 0 to 1"),
        (2, [(0, b"a"), (0, b"b")], "two different chunks 0"),
        (2, [(0, b"a")] * 3, "1 of 2 chunks arrived"),
        (2, [(0, b"a")] * 5, "5 messages for 2 chunks"),
        (1, [(0, b"a"), (1, b"b"), (2, b"c")], "3 messages for 1 chunks"),
        (2, [(0, bytes(60)), (1, bytes(60))], "over the limit of 100 bytes"),
    ],
)
def test_wrong_chunks_are_refused_without_a_wait(
    broker: MemoryBroker, send: Send, monkeypatch: pytest.MonkeyPatch, chunks: int, sent: Any, reason: str
) -> None:
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 100)
    monkeypatch.setattr(sources, "UPLOAD_WAIT_S", 1000)
    send(*sent)
    with pytest.raises(SourceError, match=reason):
        read_upload(broker, chunks)


@pytest.mark.parametrize("chunks", [-1, 0, MAX_CHUNKS + 1, 4096, 2**62])
def test_the_number_of_chunks_is_one_that_a_quorum_queue_can_deliver(broker: MemoryBroker, chunks: int) -> None:
    """RabbitMQ ends the connection of a consumer with a prefetch over 2,000."""
    with pytest.raises(SourceError, match=rf"source.chunks: {chunks}, expected 1 to 1000"):
        read_upload(broker, chunks)


@pytest.mark.parametrize(
    "name", ["gliaflow.extractor", "gliaflow.upload.", "gliaflow.upload." + "x" * 65, "gliaflow.upload.a\nb", ""]
)
def test_an_upload_needs_the_valid_name_of_an_upload_queue(broker: MemoryBroker, name: str) -> None:
    with pytest.raises(SourceError, match="not the name of an upload queue"):
        read_upload(broker, 1, name)


def test_chunks_that_are_missing_are_not_awaited_for_long(broker: MemoryBroker, send: Send) -> None:
    """The sender published all of them before it sent the scan."""
    send((0, b"a"))
    with pytest.raises(SourceError, match="1 of 3 chunks arrived; submit the scan again"):
        read_upload(broker, 3)


def test_chunks_that_another_process_held_when_it_ended_are_awaited(
    broker: MemoryBroker, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    send((0, b"a "), (1, b"scan"))
    other = broker.consume(UPLOAD, 1)
    assert other.next(1)
    monkeypatch.setattr(sources.time, "sleep", lambda _: other.close())
    assert read_upload(broker, 2) == b"a scan"


def test_an_upload_that_is_deleted_while_it_is_read_ends_no_stage(
    broker: MemoryBroker, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    send((0, b"a "), (1, b"scan"))
    read = MemoryConsumer.next

    def delete_after_the_first(self: MemoryConsumer, timeout: float) -> Delivery | None:
        delivery = read(self, timeout)
        broker.delete(UPLOAD.name)
        return delivery

    monkeypatch.setattr(MemoryConsumer, "next", delete_after_the_first)
    with pytest.raises(UploadGone, match="its sender deleted it"):
        read_upload(broker, 2)


def test_a_slow_trickle_of_chunks_is_cut_off(broker: MemoryBroker, send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time to read grows with the bytes received, not with the number of messages."""
    send(*((number, b"a") for number in range(500)))
    clock, read = [0.0], MemoryConsumer.next
    monkeypatch.setattr(sources.time, "monotonic", lambda: clock[0])

    def one_a_second(self: MemoryConsumer, timeout: float) -> Delivery | None:
        clock[0] += min(timeout, 0.1)
        return read(self, 0) if timeout > 0.1 else None

    monkeypatch.setattr(MemoryConsumer, "next", one_a_second)
    with pytest.raises(SourceError, match="of 500 chunks arrived"):
        read_upload(broker, 500)
    assert clock[0] < 0.5


def test_a_deleted_upload_fails_the_scan_only_at_its_first_delivery() -> None:
    """At a redelivery, the sender has deleted the upload since it has an answer from the earlier delivery."""
    stage = Preprocessor(load_bundle(None), MemoryBroker(), [])
    message = ScanMessage(id="m", scan=Scan(id="s"), source=Source(upload="gliaflow.upload.x", chunks=1))
    with pytest.raises(InvalidInput, match="its sender deleted it, or it expired"):
        stage.handle(message, Delivery("gliaflow.preprocessor", "scan", b""))
    assert stage.handle(message, Delivery("gliaflow.preprocessor", "scan", b"", attempts=1)) == Outcome()

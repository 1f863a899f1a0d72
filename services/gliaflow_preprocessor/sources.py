"""Read a scan's bytes from the message, from a URI under an allowed root, or from an upload queue."""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
from gliaflow_plugins.nifti_bytes import MAX_FILE_BYTES
from gliaflow_proto import Queue, Source
from gliaflow_runtime.broker.interface import Broker, BrokerError, Consumer
from gliaflow_runtime.errors import describe_error, is_temporary
from gliaflow_runtime.files import UnsafeFile, read_within
from gliaflow_runtime.stage import TemporarilyUnavailable

# All sources of one message. A worker ends the process after the setting deadline_s, by default 600 s.
SOURCES_S = 300.0

# A file of a store is read in pieces, so that a slow store, which gets no second attempt, differs from one that hangs.
STORE_WAIT_S = 120.0
SLOW_S = 105.0  # a file whose pieces still arrive after so long
PIECE = 2**24  # bytes

# All chunks are in the queue before the scan is sent. The short wait is for chunks that another process held when it
# ended. The time to read chunks grows with the bytes received, so that no sender can hold a preprocessor with a few
# bytes; the largest file has 261 s.
UPLOAD = re.compile(r"gliaflow\.upload\.[A-Za-z0-9_-]{1,64}")
UPLOAD_WAIT_S = 5.0
UPLOAD_RATE = 4 * 2**20  # bytes in a second
MAX_CHUNKS = 1000  # each may be there twice, and a quorum queue delivers at most 2,000 messages ahead


class SourceError(ValueError):
    """The source is not allowed, missing or too large. ``detail``: more for the log; the text is for the sender."""

    def __init__(self, text: str, detail: str = "") -> None:
        super().__init__(text)
        self.detail = detail


class UploadGone(SourceError):
    """The upload has expired, or its sender deleted it after an answer or a timeout."""

    def __init__(self) -> None:
        super().__init__("source.upload: its sender deleted it, or it expired; submit the scan again")


def read_source(source: Source, roots: Sequence[str], broker: Broker, until: float = math.inf) -> bytes:
    """The NIfTI bytes of a scan.

    Parameters
    ----------
    roots: allowed folders and URL prefixes of a URI (``/data``, ``s3://bucket/scans``).
    broker: has the upload queue.
    until: by ``time.monotonic``, when the time for all sources of the message is over (``SOURCES_S``).

    Raises
    ------
    SourceError: the file is outside the roots, missing or too large, the upload is incomplete, or the time is over.
    UploadGone: the upload no longer exists.
    TemporarilyUnavailable: the store does not answer now.
    """
    if source.data is not None:
        return source.data
    if time.monotonic() > until:
        raise SourceError(f"source: the files of this scan take more than {SOURCES_S:g} s to read; send smaller ones")
    if source.uri is not None:
        return _read_uri(source.uri, roots, until)
    return _read_upload(str(source.upload), source.chunks, broker, until)


def _read_uri(uri: str, roots: Sequence[str], until: float) -> bytes:
    """The sender gets the same reason whatever is wrong: a more exact one would say which files exist.

    No text names the file, since a path may have a patient's name in it.
    """
    if not roots:
        raise SourceError("source.uri: this pipeline reads no URIs (GLIAFLOW_ROOTS is not set); send the bytes")
    url = False
    try:
        parts = urlsplit(uri)
        url = parts.scheme not in ("", "file")
        return _within(STORE_WAIT_S, lambda: _read_url(uri, roots, until)) if url else _read_file(parts.path, roots)
    except Exception as error:  # each store raises its own types
        if url and is_temporary(error):
            raise TemporarilyUnavailable(f"source.uri: {describe_error(error)}") from None
        text = str(error) if isinstance(error, UnsafeFile) else describe_error(error)
        detail = getattr(error, "strerror", None) or text
        raise SourceError("source.uri: no readable scan under an allowed root", detail) from None


def _read_file(quoted: str, roots: Sequence[str]) -> bytes:
    path = Path(os.path.realpath(unquote(quoted, errors="surrogateescape")))  # a link may not lead out
    for root in roots:
        if root and "://" not in root and path.is_relative_to(os.path.realpath(root)):
            return read_within(Path(root), path, MAX_FILE_BYTES)
    raise UnsafeFile("not under an allowed root")


def _within(seconds: float, read: Callable[[], bytes]) -> bytes:
    """What ``read`` returns. Raises TimeoutError after ``seconds``: the clients of stores may wait for longer."""
    result: Future[bytes] = Future()

    def run() -> None:
        try:
            result.set_result(read())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="gliaflow store", daemon=True).start()
    return result.result(seconds)


def _client_options(scheme: str) -> dict[str, Any]:
    """Options of the store's client, so that a request that hangs ends although nobody waits for it any longer."""
    if scheme in ("http", "https"):
        from aiohttp import ClientTimeout

        # a redirect could lead anywhere
        return {"allow_redirects": False, "client_kwargs": {"timeout": ClientTimeout(total=STORE_WAIT_S)}}
    if scheme in ("s3", "s3a"):
        return {"config_kwargs": {"retries": {"max_attempts": 0}}}  # s3fs itself tries five times, 15 s each
    return {}


def _read_url(uri: str, roots: Sequence[str], until: float) -> bytes:
    until = min(until, time.monotonic() + SLOW_S)
    parts = urlsplit(uri)
    escapes = ".." in unquote(parts.path).split("/") or "::" in uri or parts.query or parts.fragment
    if escapes or not any(uri.startswith(root.rstrip("/") + "/") for root in roots if "://" in root):
        raise UnsafeFile("not under an allowed root")
    too_large = UnsafeFile(f"over the limit of {MAX_FILE_BYTES} bytes")
    file: Any = fsspec.open(uri, "rb", **_client_options(parts.scheme)).open()
    data = bytearray()
    with file:
        if (getattr(file, "size", None) or 0) > MAX_FILE_BYTES:
            raise too_large
        while piece := file.read(PIECE):
            data += piece
            if len(data) > MAX_FILE_BYTES:
                raise too_large
            if time.monotonic() > until:
                raise UnsafeFile(
                    f"the store needs more than {SLOW_S:g} s for it, or {SOURCES_S:g} s for all files of the scan"
                )
    return bytes(data)


def _read_upload(name: str, chunks: int, broker: Broker, until: float) -> bytes:
    """The bytes in an upload queue. No chunk is acknowledged, so that a retry finds them again."""
    if not UPLOAD.fullmatch(name):
        raise SourceError("source.upload: not the name of an upload queue")
    if not 0 < chunks <= MAX_CHUNKS:
        raise SourceError(f"source.chunks: {chunks}, expected 1 to {MAX_CHUNKS}")
    try:
        waiting = _await_chunks(name, chunks, broker, until)
        with broker.consume(Queue(name, expires_s=24 * 3600), prefetch=waiting) as consumer:
            parts = _receive(consumer, waiting, chunks, until)
    except BrokerError as error:  # if the broker itself is lost, the stage's next call raises this again
        if _is_gone(name, broker):
            raise UploadGone from None
        raise SourceError(f"source.upload: {error}") from None
    return b"".join(parts[index] for index in range(chunks))


def _await_chunks(name: str, chunks: int, broker: Broker, until: float) -> int:
    """The number of messages in the queue: at least ``chunks``."""
    until = min(until, time.monotonic() + UPLOAD_WAIT_S)
    while (state := broker.queue_state(name)) is not None:
        if state.waiting > 2 * chunks:
            raise SourceError(f"source.upload: {state.waiting} messages for {chunks} chunks")
        if state.waiting >= chunks:
            return state.waiting
        if time.monotonic() > until:
            raise BrokerError(f"{state.waiting} of {chunks} chunks arrived; submit the scan again")
        time.sleep(0.1)
    raise UploadGone


def _receive(consumer: Consumer, waiting: int, chunks: int, until: float) -> dict[int, bytes]:
    """The chunks by number. One may come twice: a client that missed a confirm publishes it again."""
    numbers = {str(number): number for number in range(chunks)}
    parts: dict[int, bytes] = {}
    size = arrived = lost = 0
    started = time.monotonic()
    while len(parts) < chunks and arrived < waiting:
        left = min(until, started + UPLOAD_WAIT_S + size / UPLOAD_RATE) - time.monotonic()
        delivery = consumer.next(timeout=max(0.0, left))
        if consumer.lost > lost:  # a new connection, on which all of them come again
            lost, arrived = consumer.lost, 0
        if delivery is None:
            break
        arrived += 1
        number = numbers.get(delivery.message_id)
        if number is None or not delivery.body:
            raise SourceError(f"source.upload: a chunk is empty, or its message_id is not from 0 to {chunks - 1}")
        if number not in parts:
            size += len(delivery.body)
            parts[number] = delivery.body
        elif parts[number] != delivery.body:
            raise SourceError(f"source.upload: two different chunks {number}")
        if size > MAX_FILE_BYTES:
            raise SourceError(f"source.upload: over the limit of {MAX_FILE_BYTES} bytes")
    if len(parts) < chunks:
        raise BrokerError(f"{len(parts)} of {chunks} chunks arrived; submit the scan again")
    return parts


def _is_gone(name: str, broker: Broker) -> bool:
    try:
        return broker.queue_state(name) is None
    except BrokerError:  # a queue that only another connection may use
        return False

"""Where a scan's bytes come from: the message itself, a URI under an allowed root, or an upload queue."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
from gliaflow_proto import Queue, Source
from gliaflow_runtime.broker.interface import Broker, NoQueue, NotOurs
from gliaflow_runtime.files import UnsafeFile, read_within
from gliaflow_runtime.stage import Away
from gliaflow_runtime.storage_errors import in_words, is_passing

MAX_FILE_BYTES = 2**30
MAX_QUEUE_NAME = 255  # bytes, in AMQP
UPLOAD_WAIT_S = 30.0


class SourceError(ValueError):
    """A source that is not allowed, not there, or too large."""


class UploadGone(SourceError):
    """An upload that its sender has deleted, being answered or giving up; or that has expired."""


def read_source(source: Source, roots: Sequence[str], broker: Broker) -> bytes:
    """The NIfTI bytes of a scan.

    Parameters
    ----------
    source: exactly one of its three places is set.
    roots: the folders or URL prefixes (``/data``, ``s3://bucket/scans``) under which a URI may lie.
    broker: holds the upload, if it is one.

    Raises
    ------
    SourceError: outside the roots, missing, too large, or an upload that is not complete.
    UploadGone: an upload that is no longer there.
    Away: the store does not answer now.
    """
    if source.data is not None:
        return source.data
    if source.uri is not None:
        return _read_uri(source.uri, roots)
    return _read_upload(str(source.upload), source.chunks, broker)


def _read_uri(uri: str, roots: Sequence[str]) -> bytes:
    """The reasons name no file: they are logged, and a path may name a patient."""
    outside = SourceError(f"source.uri: not under an allowed root ({', '.join(roots) or 'none is set'})")
    too_large = SourceError(f"source.uri: over the limit of {MAX_FILE_BYTES} bytes")
    try:
        parts = urlsplit(uri)
    except ValueError:
        raise SourceError("source.uri: not a URI") from None
    try:
        if parts.scheme in ("", "file"):
            path = Path(os.path.realpath(unquote(parts.path, errors="surrogateescape")))  # a link may not lead out
            folders = [
                Path(root) for root in roots if "://" not in root and path.is_relative_to(os.path.realpath(root))
            ]
            if not folders:
                raise outside
            data = read_within(folders[0], path, MAX_FILE_BYTES)
        else:
            escapes = ".." in unquote(parts.path).split("/") or "::" in uri or parts.query or parts.fragment
            if escapes or not any(uri.startswith(root.rstrip("/") + "/") for root in roots if "://" in root):
                raise outside
            stay = {"allow_redirects": False} if parts.scheme in ("http", "https") else {}  # one leads anywhere
            file: Any = fsspec.open(uri, "rb", **stay).open()
            with file:
                if (getattr(file, "size", None) or 0) > MAX_FILE_BYTES:
                    raise too_large
                data = file.read(MAX_FILE_BYTES + 1)
    except SourceError:
        raise
    except UnsafeFile as error:
        raise SourceError(f"source.uri: {error}") from None
    except FileNotFoundError:
        raise SourceError("source.uri: no such file") from None
    except Exception as error:  # a folder, no permission, a NUL, a protocol not installed; each store has its own
        if "://" in uri and parts.scheme != "file":
            raise (Away if is_passing(error) else SourceError)(f"source.uri: {in_words(error)}") from None
        raise SourceError(f"source.uri: {getattr(error, 'strerror', None) or type(error).__name__}") from None
    if len(data) > MAX_FILE_BYTES:
        raise too_large
    return data


def _read_upload(name: str, chunks: int, broker: Broker) -> bytes:
    """The bytes that lie in an upload queue. None is acknowledged, so that a retry finds them."""
    named = name.startswith("gliaflow.upload.") and len(name.encode()) <= MAX_QUEUE_NAME
    if not named or not 0 < chunks <= 4096:
        raise SourceError(f"source.upload: no name of an upload queue, or {chunks} chunks")
    found: dict[str, bytes] = {}
    total = 0
    try:
        upload = broker.consume(Queue(name, expires_s=24 * 3600), prefetch=chunks)
    except NoQueue:
        raise UploadGone("source.upload: it is gone: its sender left, or it expired; submit the scan again") from None
    except NotOurs as error:
        raise SourceError(f"source.upload: {error}") from None
    with upload as consumer:
        while len(found) < chunks:
            delivery = consumer.next(timeout=UPLOAD_WAIT_S)
            if delivery is None:
                raise SourceError(f"source.upload: {len(found)} of {chunks} chunks arrived; submit the scan again")
            total += len(delivery.body)
            if total > MAX_FILE_BYTES:
                raise SourceError(f"source.upload: over the limit of {MAX_FILE_BYTES} bytes")
            found[delivery.message_id] = delivery.body
    try:
        return b"".join(found[str(index)] for index in range(chunks))
    except KeyError as error:
        raise SourceError(f"source.upload: chunk {error} is missing; submit the scan again") from None

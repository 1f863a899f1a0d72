"""Read a scan's bytes from the message, from a URI under an allowed root, or from an upload queue."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
from gliaflow_plugins.cohorts.nifti_bytes import MAX_FILE_BYTES
from gliaflow_proto import Queue, Source
from gliaflow_runtime.broker.interface import AccessDenied, Broker, NoQueue
from gliaflow_runtime.errors import describe_error, is_temporary
from gliaflow_runtime.files import UnsafeFile, read_within
from gliaflow_runtime.stage import TemporarilyUnavailable

MAX_QUEUE_NAME = 255  # bytes, in AMQP
UPLOAD_WAIT_S = 30.0


class SourceError(ValueError):
    """The source is not allowed, missing or too large."""


class UploadGone(SourceError):
    """The upload has expired, or its sender deleted it after an answer or a timeout."""


def read_source(source: Source, roots: Sequence[str], broker: Broker) -> bytes:
    """The NIfTI bytes of a scan.

    Parameters
    ----------
    roots: allowed folders and URL prefixes of a URI (``/data``, ``s3://bucket/scans``).
    broker: has the upload queue.

    Raises
    ------
    SourceError: the file is outside the roots, missing or too large, or the upload is incomplete.
    UploadGone: the upload no longer exists.
    TemporarilyUnavailable: the store does not answer now.
    """
    if source.data is not None:
        return source.data
    if source.uri is not None:
        return _read_uri(source.uri, roots)
    return _read_upload(str(source.upload), source.chunks, broker)


def _read_uri(uri: str, roots: Sequence[str]) -> bytes:
    """Errors name no file: they are logged, and a path may have a patient's name in it."""
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
            stay = (
                {"allow_redirects": False} if parts.scheme in ("http", "https") else {}
            )  # a redirect could lead anywhere
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
    except Exception as error:  # each store raises its own types
        if "://" in uri and parts.scheme != "file":
            raise (TemporarilyUnavailable if is_temporary(error) else SourceError)(
                f"source.uri: {describe_error(error)}"
            ) from None
        raise SourceError(f"source.uri: {getattr(error, 'strerror', None) or type(error).__name__}") from None
    if len(data) > MAX_FILE_BYTES:
        raise too_large
    return data


def _read_upload(name: str, chunks: int, broker: Broker) -> bytes:
    """The bytes in an upload queue. No chunk is acknowledged, so that a retry finds them again."""
    valid = name.startswith("gliaflow.upload.") and len(name.encode()) <= MAX_QUEUE_NAME
    if not valid or not 0 < chunks <= 4096:
        raise SourceError(f"source.upload: not the name of an upload queue, or {chunks} chunks")
    parts: dict[str, bytes] = {}
    total = 0
    try:
        upload = broker.consume(Queue(name, expires_s=24 * 3600), prefetch=chunks)
    except NoQueue:
        raise UploadGone("source.upload: its sender deleted it, or it expired; submit the scan again") from None
    except AccessDenied as error:
        raise SourceError(f"source.upload: {error}") from None
    with upload as consumer:
        while len(parts) < chunks:
            delivery = consumer.next(timeout=UPLOAD_WAIT_S)
            if delivery is None:
                raise SourceError(f"source.upload: {len(parts)} of {chunks} chunks arrived; submit the scan again")
            total += len(delivery.body)
            if total > MAX_FILE_BYTES:
                raise SourceError(f"source.upload: over the limit of {MAX_FILE_BYTES} bytes")
            parts[delivery.message_id] = delivery.body
    try:
        return b"".join(parts[str(index)] for index in range(chunks))
    except KeyError as error:
        raise SourceError(f"source.upload: chunk {error} is missing; submit the scan again") from None

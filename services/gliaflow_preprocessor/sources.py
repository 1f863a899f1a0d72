"""Where a scan's bytes come from: the message itself, a URI under an allowed root, or an upload queue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec
from gliaflow_proto import Queue, Source
from gliaflow_runtime.broker import Broker

MAX_FILE_BYTES = 2**30
UPLOAD_WAIT_S = 30.0


class SourceError(ValueError):
    """A source that is not allowed, not there, or too large."""


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
    """
    if source.data is not None:
        return source.data
    if source.uri is not None:
        return _read_uri(source.uri, roots)
    return _read_upload(str(source.upload), source.chunks, broker)


def _read_uri(uri: str, roots: Sequence[str]) -> bytes:
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        path = Path(unquote(parts.path)).resolve()  # a link may not lead out of the root either
        if not any(path.is_relative_to(Path(root).resolve()) for root in roots if "://" not in root):
            raise SourceError(f"source.uri: {uri} is not under an allowed root ({', '.join(roots) or 'none is set'})")
        url = str(path)
    else:
        url = uri
        escapes = ".." in unquote(parts.path).split("/") or parts.query or parts.fragment
        if escapes or not any(uri.startswith(root.rstrip("/") + "/") for root in roots if "://" in root):
            raise SourceError(f"source.uri: {uri} is not under an allowed root ({', '.join(roots) or 'none is set'})")
    try:
        with fsspec.open(url, "rb") as file:
            data: bytes = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise SourceError(f"source.uri: {uri}: no such file") from None
    except (IsADirectoryError, PermissionError) as error:
        raise SourceError(f"source.uri: {uri}: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise SourceError(f"source.uri: {uri} is over the limit of {MAX_FILE_BYTES} bytes")
    return data


def _read_upload(name: str, chunks: int, broker: Broker) -> bytes:
    """The bytes that lie in an upload queue. They stay there until ``drop_upload``, so that a retry finds them."""
    if not name.startswith("gliaflow.upload.") or not 0 < chunks <= 4096:
        raise SourceError(f"source.upload: {name!r} with {chunks} chunks is no upload queue")
    found: dict[str, bytes] = {}
    total = 0
    with broker.consume(Queue(name, expires_s=24 * 3600), prefetch=chunks) as consumer:
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

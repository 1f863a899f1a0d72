"""What can be read of a message that ``decode`` refuses: enough to name the scan, and to answer its sender."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgpack

from gliaflow_proto.messages import KINDS, MAX_ATTEMPTS, MAX_DECODED_BYTES, MAX_TEXT, SUBMISSION

MAX_ENTRIES = 1000  # of a map; a message has about ten
MAX_SCALAR_BYTES = 64 * 2**10
MAX_DEPTH, MAX_LINES, MAX_SHOWN_BYTES = 3, 100, 200  # of an outline
SCALAR = {
    "raw": True,
    "max_array_len": 0,
    "max_map_len": 0,
    "max_ext_len": 0,
    "max_str_len": MAX_SCALAR_BYTES,
    "max_bin_len": MAX_SCALAR_BYTES,
}

Packed = bytes | memoryview  # one value, as msgpack packs it


@dataclass(frozen=True)
class MessageOrigin:
    """The kind and id of a message, and its scan. A field that is missing or cannot be read is empty.

    ``submission``: None if it is invalid, or if it is empty and nothing else names the scan: no answer can reach the
    sender.
    """

    kind: str = ""
    id: str = ""
    scan: str = ""
    submission: str | None = None
    attempt: int = 0


def read_origin(data: bytes) -> MessageOrigin:
    """Read what is intact. An integer counts as its digits, and binary data as text, if it is UTF-8."""
    message = {key: packed for key, packed in entries(data) if key in (b"kind", b"id", b"scan")}
    scan = {key: packed for key, packed in entries(message.get(b"scan", b"")) if isinstance(key, bytes)}
    kind, scan_id = _text(message.get(b"kind")) or "", _text(scan.get(b"id")) or ""
    submission = _text(scan.get(b"submission"))
    valid = submission is not None and SUBMISSION.fullmatch(submission) and (submission or scan_id)
    attempt = _scalar(scan.get(b"attempt"))
    return MessageOrigin(
        kind=kind if kind in KINDS else "",
        id=_text(message.get(b"id")) or "",
        scan=scan_id[:MAX_TEXT],
        submission=submission if valid else None,
        attempt=attempt if type(attempt) is int and 0 <= attempt < MAX_ATTEMPTS else 0,
    )


def entries(data: Packed) -> list[tuple[object, Packed]]:
    """Key and packed value of each entry of a packed map, up to the first that cannot be read. Keys are bytes.

    It holds one copy of the bytes and unpacks only keys, so that no value can take memory.
    """
    found: list[tuple[object, Packed]] = []
    if not data or not (0x80 <= data[0] <= 0x8F or data[0] in (0xDE, 0xDF)):  # not a map
        return found
    view = memoryview(data)[:MAX_DECODED_BYTES]
    unpacker = msgpack.Unpacker(strict_map_key=False, max_buffer_size=len(view), **SCALAR)
    with suppress(ValueError, msgpack.exceptions.UnpackException, RecursionError):
        unpacker.feed(view)
        for _ in range(min(unpacker.read_map_header(), MAX_ENTRIES)):
            key = unpacker.unpack()
            start = unpacker.tell()
            unpacker.skip()
            found.append((key, view[start : unpacker.tell()]))
    return found


def outline(data: Packed, indent: str = "") -> list[str]:
    """The fields that can be read, as indented lines for a person: texts and bytes in quotes, long values by length."""
    lines: list[str] = []
    for key, packed in entries(data):
        name = key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else repr(key)
        inner = outline(packed, indent + "  ") if len(indent) < 2 * MAX_DEPTH else []
        lines += [f"{indent}{name[:80]}:{'' if inner else ' ' + _shown(packed)}", *inner]
        if len(lines) > MAX_LINES:
            return [*lines[:MAX_LINES], f"{indent}…"]
    return lines


def _shown(packed: Packed) -> str:
    """A short value as Python writes it, which shows its type; a long one by its length."""
    with suppress(ValueError, msgpack.exceptions.UnpackException):
        if len(packed) <= MAX_SHOWN_BYTES:
            return repr(msgpack.unpackb(packed, unicode_errors="backslashreplace", max_map_len=0, max_ext_len=0))
    return f"{len(packed)} bytes"


def _scalar(packed: Packed | None) -> Any:
    """The value; None if it is missing, invalid, or an array or a map."""
    if packed is None:
        return None
    with suppress(ValueError, msgpack.exceptions.UnpackException):
        return msgpack.unpackb(packed, **SCALAR)
    return b"\xff"  # as any value that is no text


def _text(packed: Packed | None) -> str | None:
    """The value as text; empty if it is nil or missing; None if it cannot be read as text."""
    value = _scalar(packed)
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            return value.decode()
    if value is None:
        return ""
    return str(value) if type(value) is int else None

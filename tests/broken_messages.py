"""Messages that break the specification as clients in other languages do, and what their senders must learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack
from sample_messages import put

Document = dict[Any, Any]


@dataclass(frozen=True)
class Broken:
    """A message for the stage of ``key``.

    ``reason``: the start of the failure's reason. ``scan``: the scan's id in the failure; None: no failure can reach
    the sender. ``late``: the message can be read, but the stage refuses it.
    """

    name: str
    key: str
    body: bytes
    reason: str
    scan: str | None = "s1"
    late: bool = False


def valid(key: str, submission: str) -> Document:
    """A valid message for the stage of ``key``: ``scan`` or ``generate``."""
    common = {"schema": "gliaflow/1", "kind": key, "id": "m1", "scan": {"id": "s1", "submission": submission}}
    return common | ({"source": {"data": b"\x1f\x8b\xffno scan"}} if key == "scan" else {"label": "HGG", "count": 1})


def broken_messages(submission: str) -> list[Broken]:
    """One message for each mistake."""
    messages: list[Broken] = []

    def add(name: str, key: str, reason: str, body: bytes, scan: str | None = "s1", late: bool = False) -> None:
        messages.append(Broken(f"{key} {name}", key, body, reason, scan, late))

    def change(path: str, value: Any, reason: str, key: str = "scan", **expected: Any) -> None:
        """Set a field, as ``scan.id``; ``...`` deletes it."""
        document = valid(key, submission)
        put(document, path.split("."), value)
        shown = "left out" if value is ... else ascii(value)[:30]
        add(f"{path}: {shown}", key, reason, msgpack.packb(document), **expected)

    change("schema", ..., "schema: missing")
    change("schema", None, "schema: missing")
    change("schema", "gliaflow/2", "schema: 'gliaflow/2', but this gliaflow reads only 'gliaflow/1'")
    change("schema", 1, "schema: 1")
    change("schema", b"gliaflow/1", "schema: b'gliaflow/1'")
    change("kind", ..., "kind: missing")
    change("kind", "scans", "kind: 'scans' is not one of scan, slices")
    change("kind", b"scan", "kind: b'scan'")
    change("kind", 3, "kind: 3")
    change("id", ..., "id: missing")
    change("id", None, "id: missing")
    change("id", 7, "id: expected text, got an integer")
    change("id", b"m1", "id: expected text, got binary data (msgpack bin)")
    change("id", "m" * 5000, "id: text of 5000 characters, over the limit of 4096")
    change("scan", ..., "scan: missing", scan=None)
    change("scan", None, "scan: missing", scan=None)
    change("scan", "s1", "scan: expected a map, got text", scan=None)
    change("scan", ["s1", submission], "scan: expected a map, got an array", scan=None)
    change("scan.id", ..., "scan.id: missing", scan="")
    change("scan.id", None, "scan.id: missing", scan="")
    change("scan.id", 42, "scan.id: expected text, got an integer", scan="42")
    change("scan.id", b"s1", "scan.id: expected text, got binary data (msgpack bin)")
    change("scan.id", b"\xff" * 16, "scan.id: expected text, got binary data", scan="")
    change("scan.id", 1.5, "scan.id: expected text, got a float", scan="")
    change("scan.id", True, "scan.id: expected text, got a boolean", scan="")
    change("scan.id", {"n": 1}, "scan.id: expected text, got a map", scan="")
    change("scan.id", "s" * 5000, "scan.id: text of 5000 characters", scan="s" * 4096)
    change("scan.id", "s" * 70_000, "scan.id: text of over 65536 bytes", scan="")
    change("scan.submission", submission.encode(), "scan.submission: expected text, got binary data")
    change("scan.submission", ["x"], "scan.submission: expected text, got an array", scan=None)
    change("scan.submission", "a.b", "scan.submission: expected at most 64 letters", scan=None)
    change("scan.submission", "x" * 65, "scan.submission: expected at most 64 letters", scan=None)
    change("scan.name", 5, "scan.name: expected text, got an integer")
    change("scan.name", msgpack.Timestamp(1, 2), "scan.name: a msgpack extension type")
    change("scan.patient", b"p", "scan.patient: expected text")
    change("scan.cohort", 1.5, "scan.cohort: expected text")
    change("scan.label", 1, "scan.label: expected text, got an integer")
    change("scan.label", b"HGG", "scan.label: expected text, got binary data")
    change("scan.split", False, "scan.split: expected text, got a boolean")
    change("scan.attempt", 1.0, "scan.attempt: expected an integer, got a float")
    change("scan.attempt", "1", "scan.attempt: expected an integer, got text")
    change("scan.attempt", True, "scan.attempt: expected an integer, got a boolean")
    change("scan.attempt", -1, "scan.attempt: -1 is not from 0")
    change("scan.attempt", 2**40, "scan.attempt: 1099511627776 is not from 0")
    change("scan.sent", "today", "scan.sent: expected a number, got text")
    change("scan.sent", float("nan"), "scan.sent: expected a finite number, got nan")
    change("part", [0], "part: expected [index, count]")
    change("part", [0.0, 1.0], "part[0]: expected an integer, got a float")
    change("part", [0, None], "part[1]: expected an integer, got nil")
    change("part", "0/1", "part: expected an array of integers, got text")
    change("trace", 7, "trace: expected text")
    change("trace", [], "trace: expected text, got an array")
    change("warnings", "far", "warnings: expected an array of texts, got text")
    change("warnings", ["far", None], "warnings[1]: expected text, got nil")
    change("warnings", ["x"] * 33, "warnings: 33 texts, over the limit of 32")
    change("tensors", [], "tensors: expected a map, got an array")
    change("source", ..., "source: missing")
    change("source", None, "source: missing")
    change("source", b"\x1f\x8b", "source: expected a map, got binary data")
    change("source.data", None, "source: expected exactly one of data, uri, upload")
    change("source.uri", "file:///a.nii", "source: expected exactly one of data, uri, upload")
    change("source.data", "text", "source.data: expected binary data (msgpack bin), got text")
    change("source.data", "x" * 70_000, "source.data: text of over 65536 bytes; bytes must be msgpack bin")
    change("source.data", [31, 139], "source.data: expected binary data (msgpack bin), got an array")
    change("source.data", [0] * 9000, "source.data: an array of over 8192 entries")
    change("source.chunks", 3.0, "source.chunks: expected an integer, got a float")
    change("channel", 0, "channel: expected text, got an integer")
    change("future", {7: "x"}, "future: a map key is not text")
    change("future", [[]] * 300, "future: over 256 arrays and maps")
    change("label", ..., "label: missing", "generate")
    change("label", None, "label: missing", "generate")
    change("label", b"HGG", "label: expected text, got binary data", "generate")
    change("count", ..., "count: missing", "generate")
    change("count", None, "count: missing", "generate")
    change("count", 3.0, "count: expected an integer, got a float", "generate")
    change("count", "3", "count: expected an integer, got text", "generate")
    change("count", True, "count: expected an integer, got a boolean", "generate")
    change("seed", 0.5, "seed: expected an integer, got a float", "generate")
    change("generator", 1, "generator: expected text, got an integer", "generate")
    change("label", "", "label: ", "generate", late=True)
    change("label", "XYZ", "label: 'XYZ'", "generate", late=True)
    change("count", 0, "count: 0 is not from 1", "generate", late=True)
    change("count", 10**9, "count: 1000000000 is not from 1", "generate", late=True)
    change("seed", -1, "seed: -1 is below 0", "generate", late=True)
    for key in ("scan", "generate"):
        for name, reason, body, scan in _bodies(valid(key, submission)):
            add(name, key, reason, body, scan)
    return messages


def _bodies(document: Document) -> list[tuple[str, str, bytes, str | None]]:
    """Whole messages that cannot be unpacked."""
    packed = msgpack.packb(document)
    name = {**document, "scan": {**document["scan"], "name": "Åsa"}}
    return [
        ("cut short", "not a msgpack message", packed[:-1], "s1"),
        ("with bytes after it", "not a msgpack message", packed + b"\x00", "s1"),
        ("in Latin-1", "scan.name: text that is not UTF-8", msgpack.packb(name).replace("Å".encode(), b"\xc5 "), "s1"),
        ("with binary keys", "scan: a map key is not text", msgpack.packb(_with_keys(document, str.encode)), "s1"),
        ("with a number as a key", "the message: a map key is not text", msgpack.packb({**document, 1: 2}), "s1"),
        ("of nested maps", "not a msgpack message", b"\x81\xa1x" * 2000 + b"\xc0", None),
        ("in an array", "expected a msgpack map, got an array", msgpack.packb([document]), None),
        ("in JSON", "not a msgpack message", json.dumps(document, default=repr).encode(), None),
        ("empty", "not a msgpack message", b"", None),
    ]


def _with_keys(value: Any, convert: Callable[[str], bytes]) -> Any:
    return {convert(k): _with_keys(v, convert) for k, v in value.items()} if isinstance(value, dict) else value

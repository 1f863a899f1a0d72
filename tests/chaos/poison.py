"""Invalid messages by kind: bytes that no stage and no client can process."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgpack


def _message(**changes: object) -> bytes:
    scan = {"id": "p", "submission": "poison", "name": "poison"}
    packed: bytes = msgpack.packb({"schema": "gliaflow/1", "kind": "slices", "id": "p", "scan": scan} | changes)
    return packed


def _deep(depth: int) -> bytes:
    return b"\x91" * depth + b"\x01"


POISON: dict[str, Callable[[random.Random], bytes]] = {
    "empty": lambda _: b"",
    "garbage": lambda rng: rng.randbytes(rng.randrange(1, 5000)),
    "text": lambda _: b"this is no message",
    "nested": lambda _: _deep(100_000),
    "long-array": lambda _: b"\xdd\xff\xff\xff\xff",
    "schema": lambda _: msgpack.packb({"schema": "gliaflow/9", "kind": "scan"}),
    "kind": lambda _: _message(kind="surprise"),
    "fields": lambda _: _message(kind="scan"),
    "part": lambda _: _message(part=[5, 2]),
    "shape": lambda _: _message(
        geometry={
            "affine": [1.0] * 16,
            "shape": [2**30] * 3,
            "orientation": [0, 1, 1, 1, 2, 1],
            "origin": [0.0, 0.0],
            "step": [1.0, 1.0],
            "size": [2**20, 2**20],
            "slices": list(range(16)),
        },
        tensors={"image": {"dtype": "FP16", "shape": [2**31, 2**31], "encoding": "raw", "data": b"xx"}},
    ),
    "bomb": lambda _: _message(
        tensors={"image": {"dtype": "FP64", "shape": [2**26], "encoding": "lz4", "data": bytes(1000)}}
    ),
    "heavy": lambda _: bytes(15 * 2**20),
    "oversize": lambda _: bytes(17 * 2**20),
}

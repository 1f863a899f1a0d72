"""pika must not fail at the headers of an untrusted message.

pika closes the connection if a header has a timestamp beyond the year 9999, or tables that are nested thousands deep.
RabbitMQ then delivers the message again, to the next process. After ``install``, pika leaves out such a value and reads
the others, above all RabbitMQ's count of deliveries.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

from pika import data
from pika.exceptions import AMQPError

ERRORS = (AMQPError, ArithmeticError, ValueError, OSError, RecursionError, struct.error)
SIZES = {b"T": 8, b"f": 4, b"d": 8, b"D": 5}  # bytes of the values that pika may refuse
WITH_LENGTH = (b"A", b"F")  # four bytes of length, then the content


def decode_table(encoded: bytes, offset: int) -> tuple[dict[str | bytes, Any], int]:
    """As pika's function of this name, but without errors: a value that cannot be read is left out.

    If its length is not known either, the rest of the table is left out too. Of two values with one name the first
    counts, since RabbitMQ replaces only that one by its own.
    """
    offset, end = offset + 4, offset + 4 + int(struct.unpack_from(">I", encoded, offset)[0])
    table: dict[str | bytes, Any] = {}
    with suppress(*ERRORS):
        while offset < end:
            name, start = data.decode_short_string(encoded, offset)
            try:
                value, offset = data.decode_value(encoded, start)
            except ERRORS:
                offset = _end_of_value(encoded, start)
                continue
            if offset <= end:
                table.setdefault(name, value)
    return table, end


def _end_of_value(encoded: bytes, start: int) -> int:
    """Where a value ends that pika refuses. Raises ValueError: its type does not say it."""
    kind = encoded[start : start + 1]
    if kind in WITH_LENGTH:
        return start + 5 + int(struct.unpack_from(">I", encoded, start + 1)[0])
    if kind not in SIZES:
        raise ValueError(f"unknown length of type {kind!r}")
    return start + 1 + SIZES[kind]


def install() -> None:
    """Replace pika's function, for the whole process."""
    data.decode_table = decode_table

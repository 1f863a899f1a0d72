"""pika must not fail at the headers of an untrusted message.

pika closes the connection if a header has a timestamp beyond the year 9999, or tables that are nested thousands deep.
RabbitMQ then delivers the message again, to the next process. After ``install``, pika reads a table with such a value
as an empty one.
"""

from __future__ import annotations

import struct
from typing import Any

from pika import data
from pika.exceptions import AMQPError

_decode = data.decode_table


def decode_table(encoded: bytes, offset: int) -> tuple[dict[str | bytes, Any], int]:
    """As pika's function of this name, but without errors: a table that cannot be read is empty."""
    end = offset + 4 + int(struct.unpack_from(">I", encoded, offset)[0])
    try:
        table, _ = _decode(encoded, offset)
    except (AMQPError, ArithmeticError, ValueError, OSError, RecursionError, struct.error):
        table = {}
    return table, end


def install() -> None:
    """Replace pika's function, for the whole process."""
    data.decode_table = decode_table

"""The headers of an untrusted message, as pika reads them in a stage."""

import struct

import pika
import pytest
from gliaflow_runtime.broker import safe_headers
from pika import data

safe_headers.install()


def field(kind: bytes, content: bytes) -> bytes:
    return b"\x01h" + kind + content


def long(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def nested(kind: bytes, name: bytes, depth: int) -> bytes:
    value = b"V"
    for _ in range(depth):
        value = kind + long(name + value)
    return b"\x01h" + value


@pytest.mark.parametrize(
    "header",
    [
        field(b"T", struct.pack(">Q", 2**63)),  # a timestamp
        field(b"T", struct.pack(">Q", 1_700_000_000_000)),  # in milliseconds
        field(b"f", struct.pack(">f", float("inf"))),
        field(b"d", struct.pack(">d", float("nan"))),
        field(b"?", b""),  # a type that pika does not know
        field(b"I", b"\x00"),  # cut short
        nested(b"A", b"", 5000),
        nested(b"F", b"\x01k", 5000),
    ],
)
def test_a_header_that_pika_cannot_read_is_left_out(header: bytes) -> None:
    """Otherwise pika would close the connection, and RabbitMQ would deliver the message to the next process."""
    table = long(header)
    headers, end = data.decode_table(table + b"rest", 0)
    assert end == len(table)
    assert headers == {} or set(headers) == {"h"}


@pytest.mark.parametrize(
    "header",
    [
        field(b"T", struct.pack(">Q", 2**63)),
        field(b"f", struct.pack(">f", float("inf"))),
        field(b"d", struct.pack(">d", float("nan"))),
        field(b"A", long(b"T" + struct.pack(">Q", 2**63))),
        field(b"F", long(b"\x01kT" + struct.pack(">Q", 2**63))),
        nested(b"A", b"", 5000),
        nested(b"F", b"\x01k", 5000),
    ],
)
def test_the_count_of_deliveries_is_read_among_headers_that_pika_cannot_read(header: bytes) -> None:
    """Otherwise the limit of attempts would not hold for a message that ends its stages."""
    count = b"\x10x-delivery-count"
    table = long(header + count + data_of(7) + header.replace(b"\x01h", b"\x01z", 1) + count + data_of(0))
    headers, end = data.decode_table(table, 0)
    assert (headers["x-delivery-count"], end) == (7, len(table)), "RabbitMQ's count, not the sender's behind it"


def test_the_properties_behind_such_headers_are_read() -> None:
    properties = pika.BasicProperties(headers={"count": 3, "map": {"list": [1, None]}}, message_id="m")
    encoded = b"".join(properties.encode())
    read = pika.BasicProperties().decode(encoded)
    assert (read.headers, read.message_id) == ({"count": 3, "map": {"list": [1, None]}}, "m")
    spoilt = encoded.replace(b"\x05count" + data_of(3), b"\x05count" + b"?" + data_of(3)[1:])
    assert spoilt != encoded
    read = pika.BasicProperties().decode(spoilt)
    assert (read.headers, read.message_id) == ({}, "m")


def data_of(value: int) -> bytes:
    pieces: list[bytes] = []
    data.encode_value(pieces, value)
    return b"".join(pieces)

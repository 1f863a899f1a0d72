"""The error that reading a message raises."""

from __future__ import annotations


class ProtocolError(ValueError):
    """The bytes are not a valid gliaflow message. The text names the field and the expected value."""


TYPES = {
    "str": "text",
    "bytes": "binary data (msgpack bin)",
    "int": "an integer",
    "float": "a float",
    "bool": "a boolean",
    "list": "an array",
    "dict": "a map",
    "NoneType": "nil",
}


def type_name(value: object) -> str:
    """The type of an unpacked value, in the words of msgpack."""
    return TYPES.get(type(value).__name__, type(value).__name__)


def shown(value: object) -> str:
    """A value for an error's text: numbers, the beginning of texts, and only the type of larger values."""
    if isinstance(value, str | bytes):
        return repr(value[:40])
    return repr(value) if isinstance(value, int | float) else type_name(value)

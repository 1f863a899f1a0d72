"""The error that reading a message raises."""

from __future__ import annotations


class ProtocolError(ValueError):
    """The bytes are not a valid gliaflow message. The text names the field and the expected value."""


def shown(value: object) -> str:
    """A value for an error's text: numbers, the beginning of texts, and only the type of larger values."""
    if isinstance(value, str | bytes):
        return repr(value[:40])
    return repr(value) if isinstance(value, int | float | None) else type(value).__name__

"""The one error that reading a message can raise."""

from __future__ import annotations


class ProtocolError(ValueError):
    """Bytes that are no valid gliaflow message. The text names the field and says what was expected."""


def shown(value: object) -> str:
    """What was found, for an error's text: numbers and the beginning of texts; of what may be large, its type."""
    if isinstance(value, str | bytes):
        return repr(value[:40])
    return repr(value) if isinstance(value, int | float | None) else type(value).__name__

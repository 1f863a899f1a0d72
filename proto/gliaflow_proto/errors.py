"""The one error that reading a message can raise."""


class ProtocolError(ValueError):
    """Bytes that are no valid gliaflow message. The text names the field and says what was expected."""

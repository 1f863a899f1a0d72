"""The outcome of a stage, encoded and ready to be published."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gliaflow_proto import MAX_MESSAGE_BYTES, Message, ProtocolError, encode

from gliaflow_runtime.broker.interface import Delivery

if TYPE_CHECKING:
    from gliaflow_runtime.stage import Outcome


@dataclass(frozen=True)
class EncodedOutcome:
    """An outcome that is ready to be carried out: all is computed and encoded, nothing is published yet."""

    publish: list[tuple[Message, bytes]] = field(default_factory=list)
    done: list[Delivery] = field(default_factory=list)
    dead: list[tuple[Delivery, str]] = field(default_factory=list)
    requeue: list[Delivery] = field(default_factory=list)


def encode_outcome(
    outcome: Outcome | None, delivery: Delivery | None = None, traces: tuple[str, str] = ("", "")
) -> EncodedOutcome:
    """Encode the messages of an outcome, or of the one that replaces it if a message is too large.

    Parameters
    ----------
    delivery: the one that was handled.
    traces: the trace of the message in work, and the one for the messages that result from it.

    Raises
    ------
    ProtocolError: a message is too large, and the stage has no other outcome for that.
    """
    if outcome is None:
        return EncodedOutcome()
    done = outcome.done if outcome.done is not None else [delivery] if delivery else []
    own, next_trace = traces
    publish = (replace(m, trace=next_trace) if m.trace in ("", own) else m for m in outcome.publish)
    try:
        result = EncodedOutcome([encode_within_limit(message) for message in publish], done, outcome.dead)
    except _TooLarge:
        if outcome.too_large is None:
            raise
        return encode_outcome(outcome.too_large(), delivery, traces)
    if outcome.encoded:
        outcome.encoded()
    return result


class _TooLarge(ProtocolError):
    """A message is over the limit on a message."""


def encode_within_limit(message: Message) -> tuple[Message, bytes]:
    """The message and its bytes. Raises ProtocolError: they are over the limit on a message."""
    body = encode(message, "lz4")
    if len(body) > MAX_MESSAGE_BYTES:
        raise _TooLarge(f"{message.kind} message of {len(body)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    return message, body

"""A stage that serves, called directly for training: the same code and the same messages, without a broker."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby

from gliaflow_proto import Message, ProtocolError
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.logs import where
from gliaflow_runtime.stage import InvalidInput, Stage, TemporarilyUnavailable

DELIVERY = Delivery("", "", b"")
Record = Callable[[list[Message]], None]


def stream(
    messages: Iterable[Message], stage: Stage, record: Record, answered: Callable[[str, str | None], None]
) -> None:
    """Pass each message to ``stage``, and its results to ``record``.

    Parameters
    ----------
    messages: those of a scan in a row. They are read one by one: a cohort need not fit into memory.
    record: may raise InvalidInput for results that cannot be recorded. Other errors end the stream.
    answered: called with a scan's id when all its results are recorded, or with the reason why they are not.
    """
    for scan, of_scan in groupby(messages, lambda message: message.scan.id):
        reason: str | None = None
        for message in of_scan:
            reason = reason or _process(message, stage, record)
        answered(scan, reason)


def _process(message: Message, stage: Stage, record: Record) -> str | None:
    """The reason why a message gave no results, or why they cannot be recorded; None: they are recorded."""
    try:
        results = list(stage.handle(message, DELIVERY).publish)
    except (InvalidInput, ProtocolError, TemporarilyUnavailable) as error:
        return str(error)
    except Exception as error:
        return f"unexpected {where(error)}"
    try:
        record(results)
    except InvalidInput as error:
        return str(error)
    return None

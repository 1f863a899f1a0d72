"""Why a dead letter cannot be sent back: the scan that it names is not there any more.

A letter of ``memory://`` outlives the console or the command that wrote it, whose uploads are deleted at its end. Sent
back, it would die again, of another reason than the one that somebody has to read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gliaflow_client.dead_letters import DeadLetter
from gliaflow_proto import ScanMessage, Source
from gliaflow_runtime.broker.interface import Broker, BrokerError

GONE = "the scan's file is not there any more: upload the scan again"
ELSEWHERE = "the scan's file is in no folder that this console may read: upload the scan here"


def why_lost(letter: DeadLetter, broker: Broker, roots: Sequence[str] | None) -> str:
    """The reason and the remedy; empty: the scan is there, the message has it, or it is not known.

    Parameters
    ----------
    roots: the folders from which the stages read files; None: they run elsewhere, and may see other files.
    """
    if not isinstance(letter.head, ScanMessage):
        return ""
    source = letter.head.source
    if source.upload is not None:
        return _upload(source, broker)
    parts = urlsplit(source.uri or "")
    if source.uri is None or roots is None or parts.scheme not in ("", "file"):
        return ""
    path = Path(os.path.realpath(unquote(parts.path, errors="surrogateescape")))
    allowed = [os.path.realpath(root) for root in roots if root and "://" not in root]
    if not any(path.is_relative_to(root) for root in allowed):
        return ELSEWHERE  # also where there is no such file: senders must not learn which files there are
    return "" if path.is_file() else GONE


def _upload(source: Source, broker: Broker) -> str:
    try:
        return GONE if broker.queue_state(str(source.upload)) is None else ""
    except BrokerError:  # not this user's to see
        return ""

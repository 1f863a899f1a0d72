"""Dead letters in the console: list, show, send back and delete."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from typing import Any

from gliaflow_client.dead_letters import DeadLetter, count_waiting, held_letters
from gliaflow_proto import ProtocolError, Queue
from gliaflow_proto.routing import ALL_QUEUES
from gliaflow_runtime.broker.interface import DIED_AT, Broker, BrokerError, Refused

from gliaflow_console.lost_scans import why_lost

AT_ONCE = 25  # each may weigh 8 MiB
MOST_HELD = 100  # with those that could not be sent back, which are held so that the ones behind them come
RETURN_POLL_S = 0.02
ROOM_S, POLL_S = 10.0, 0.1  # the longest wait for room in a full queue, which its stage empties
RETURN_S = 2.0  # the longest wait until the broker counts the letters that were given back
TURN_S = 15.0  # the longest wait for the calls before this one


class Letters:
    """The dead letters of a broker. Each call holds AT_ONCE of them at a time (MOST_HELD with refused ones).

    All methods raise BrokerError if the broker is away or another call holds the letters, and AccessDenied if a right
    is missing.

    Parameters
    ----------
    lock: one call at a time has it, while it holds letters.
    roots: as for ``why_lost``.
    """

    def __init__(self, broker: Broker, lock: threading.Lock, roots: Sequence[str] | None = None) -> None:
        self._broker, self._lock, self._roots = broker, lock, roots
        self._taken: Counter[str] = Counter()  # letters that the present call has sent back or deleted, by queue

    def listing(self) -> dict[str, Any]:
        """The body of ``GET /api/dead``."""
        letters: dict[str, dict[str, Any]] = {}
        copies: Counter[str] = Counter()  # of a stage that ended before it acknowledged the message
        with self._held() as held:
            for letter in held:
                id = _id(letter)
                copies[id] += 1
                letters[id] = {
                    "id": id,
                    "queue": letter.queue.name.removeprefix("gliaflow."),
                    "died": _died(letter),
                    "reason": letter.reason,
                    "scan": letter.scan,
                    "scan_id": letter.origin.scan,
                    "submission": letter.origin.submission or "",
                    "bytes": len(letter.delivery.body),
                    "copies": copies[id],
                    "lost": why_lost(letter, self._broker, self._roots),
                }
            more = count_waiting(self._broker)
        return {"letters": list(letters.values()), "more": more, "problem": ""}

    def show(self, letter_id: str) -> list[str] | None:
        """A letter as lines of text; None: there is none with this id."""
        with self._held() as held:
            letter = next((letter for letter in held if _id(letter) == letter_id), None)
            if letter is None:
                return None
            headers = [f"header {name}: {value}" for name, value in letter.delivery.headers.items()]
            return [f"reason: {letter.reason}", f"message: {letter.id}", *headers, *letter.content()]

    def replay(self, ids: set[str] | None) -> dict[str, Any]:
        """Send letters and their copies back to their queues; the body of ``POST /api/dead/replay``.

        ``ids`` None: all that are dead now.
        """
        sent: set[str] = set()
        refused: dict[str, str] = {}
        until = time.monotonic() + ROOM_S
        with closing(self._chosen(ids, refused)) as letters:
            for letter in letters:
                id = _id(letter)
                if id in sent:
                    self._delete(letter)
                    continue
                if lost := why_lost(letter, self._broker, self._roots):
                    refused[id] = lost
                    continue
                try:
                    self._send_back(letter, until)
                    sent.add(id)
                    until = time.monotonic() + ROOM_S
                except (ProtocolError, Refused) as error:
                    refused[id] = _refusal(error)
        missing = (ids or set()) - sent - set(refused)
        reasons = refused | dict.fromkeys(sorted(missing), "it is no longer among the first dead letters")
        return {"sent": len(sent), "refused": [{"id": id, "reason": reason} for id, reason in reasons.items()]}

    def _send_back(self, letter: DeadLetter, until: float) -> None:
        """Send a letter back as soon as its queue has room. Raises Refused: it has none until then."""
        while True:
            try:
                letter.replay(self._broker)
                self._taken[letter.queue.name] += 1
                return
            except Refused:
                if time.monotonic() >= until or self._broker.hurried:
                    raise
            time.sleep(POLL_S)

    def delete(self, ids: set[str] | None) -> int:
        """Delete letters and their copies for good; returns how many letters. ``ids`` None: all that are dead now."""
        deleted: set[str] = set()
        with closing(self._chosen(ids)) as letters:
            for letter in letters:
                self._delete(letter)
                deleted.add(_id(letter))
        return len(deleted)

    def _delete(self, letter: DeadLetter) -> None:
        letter.delete()
        self._taken[letter.queue.name] += 1

    def _chosen(self, ids: set[str] | None, refused: Collection[str] = ()) -> Generator[DeadLetter, None, None]:
        """The letters with these ids, of the first AT_ONCE; None: all that are dead now, AT_ONCE after AT_ONCE.

        A letter that dies again meanwhile is not among them. ``refused``: those that the caller could not send back;
        they are not given again.
        """
        left = Counter({queue.name: self._broker.depth(queue.dead) for queue in ALL_QUEUES} if ids is None else {})
        while True:
            chosen = 0
            with self._held(len(refused)) as held:
                for letter in held:
                    if (id := _id(letter)) in refused:
                        continue
                    if ids is not None and id in ids:
                        yield letter
                    if left[letter.queue.name] > 0:
                        left[letter.queue.name] -= 1
                        chosen += 1
                        yield letter
            if not chosen or self._broker.hurried:
                return

    @contextmanager
    def _held(self, refused: int = 0) -> Iterator[Iterator[DeadLetter]]:
        if self._broker.trouble:
            raise BrokerError(self._broker.trouble)
        if not self._lock.acquire(timeout=TURN_S):
            raise BrokerError("another request reads the dead letters: try again in a moment")
        try:
            self._taken.clear()
            before = {queue: depth for queue in ALL_QUEUES if (depth := self._broker.depth(queue.dead))}
            try:
                with held_letters(self._broker, min(AT_ONCE + refused, MOST_HELD)) as letters:
                    yield letters
            finally:
                self._wait_for_return(before)
        finally:
            self._lock.release()

    def _wait_for_return(self, before: Mapping[Queue, int]) -> None:
        """Wait until the broker counts the letters that were given back: the next call would miss them.

        RabbitMQ returns them a moment after their consumer has ended. Another client may have taken some.
        """
        until = time.monotonic() + RETURN_S
        with suppress(BrokerError):  # the next call reports it
            while any(self._broker.depth(q.dead) < depth - self._taken[q.name] for q, depth in before.items()):
                if time.monotonic() > until or self._broker.hurried:
                    return
                time.sleep(RETURN_POLL_S)


def _refusal(error: Exception) -> str:
    if isinstance(error, Refused):
        return "the queue of its stage is full: try again when the stage has caught up"
    return (
        f"its sender had no right to send such a message ({error}): submit the scan again as a user with the right, or "
        "delete this dead letter"
    )


def _id(letter: DeadLetter) -> str:
    """An id for URLs: the message's own may be anything. Copies of a letter have the same one."""
    parts = (letter.queue.name.encode(), letter.id.encode(), letter.delivery.body)
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def _died(letter: DeadLetter) -> float | None:
    try:
        return datetime.fromisoformat(letter.delivery.headers[DIED_AT]).timestamp()
    except (KeyError, ValueError, OverflowError):
        return None

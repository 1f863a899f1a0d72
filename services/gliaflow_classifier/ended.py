"""The scans that have ended, and their announcements, which tell the next assembler of them."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import replace

from gliaflow_runtime.broker.interface import Delivery

REMEMBERED = 10_000  # ended scans to remember, so that late copies of their parts are ignored
KEPT_ENDINGS = 400  # announcements of ended scans; the rest keeps the queue moving
ENDING_ATTEMPTS = 10  # an announcement delivered so often is acknowledged, before it would become a dead letter
Key = tuple[str, str]  # submission and scan


class EndedScans:
    """Remembers the latest ended scans. ``kept`` are unacknowledged announcements, without their bytes."""

    def __init__(self) -> None:
        self.kept: deque[tuple[float, Delivery]] = deque()  # and when each came
        self._ended: OrderedDict[Key, tuple[int, str]] = OrderedDict()

    def get(self, key: Key) -> tuple[int, str] | None:
        """The attempt that ended last, and why it failed, or "" if it did not."""
        return self._ended.get(key)

    def note(self, key: Key, attempt: int, reason: str) -> None:
        self._ended[key] = attempt, reason
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def keep(self, ending: Delivery, now: float) -> list[Delivery]:
        """Leave an announcement unacknowledged for the next assembler; returns the ones to acknowledge."""
        if ending.attempts >= ENDING_ATTEMPTS:
            return [ending]
        self.kept.append((now, replace(ending, body=b"")))
        return [self.kept.popleft()[1]] if len(self.kept) > KEPT_ENDINGS else []

    def take_older_than(self, when: float) -> list[Delivery]:
        """The announcements that came before. They are kept no longer."""
        old = []
        while self.kept and self.kept[0][0] < when:
            old.append(self.kept.popleft()[1])
        return old

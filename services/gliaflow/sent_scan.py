"""A scan that was sent and not answered yet, and when it is sent again because it met two bundles."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass, field

from gliaflow.scans import Input

PAUSES_S = (1.0, 15.0)  # the first and the longest pause; each is twice as long as the one before


@dataclass
class SentScan:
    """``attempt`` is that of the last message, or of the next one if the scan waits to be sent again."""

    item: Input
    sent_at: float  # by time.monotonic, as ``due_at``
    attempt: int = 0
    due_at: float | None = None
    _pause_s: float = field(default_factory=lambda: PAUSES_S[0])
    _refused_s: float | None = None  # the client's time of waiting at the first refusal

    def refuse(self, attempt: int, waited_s: float, timeout_s: float) -> bool:
        """Plan to send the scan again, since a stage of another bundle has refused an attempt.

        Each part of the scan may be refused, so an attempt that was replaced already is ignored. Returns False if the
        scan has been refused for ``timeout_s``.

        Parameters
        ----------
        waited_s: how long the client has waited for answers in all.
        """
        if attempt < self.attempt:
            return True
        if self._refused_s is None:
            self._refused_s = waited_s
        if waited_s - self._refused_s > timeout_s:
            return False
        self.attempt = attempt + 1
        self.due_at = time.monotonic() + self._pause_s * random.uniform(0.75, 1.25)  # old stages may still run
        self._pause_s = min(PAUSES_S[1], 2 * self._pause_s)
        return True

    def is_replaced(self, attempt: int) -> bool:
        """Whether a later attempt than this one was sent: its answer counts, and not the failure of this one."""
        return attempt < self.attempt - (self.due_at is not None)

    def due_in_s(self) -> float:
        """The seconds until it is sent again; infinite if it is with the stages."""
        return math.inf if self.due_at is None else max(0.0, self.due_at - time.monotonic())

    def is_due(self) -> bool:
        """Whether it is to be sent again now. True once."""
        due = self.due_in_s() == 0.0
        self.due_at = None if due else self.due_at
        return due

"""The classifier's second half: the parts of a scan add up to one prediction.

However many classifiers run, the broker gives the queue of graded parts to one of them at a time (single active
consumer). Parts are kept unacknowledged until their scan is complete, so the broker is the only store: when this
process dies, all the parts go to the next. Order does not matter, and a part that comes twice counts once.

Predictions and failures come to this queue too. The latest of this news are kept unacknowledged as well: whoever is
next learns from it which scans have ended, so that a late copy of a part starts nothing there either.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace

import numpy as np
from gliaflow_proto import (
    MAX_MESSAGE_BYTES,
    FailureMessage,
    GradedMessage,
    Message,
    PredictionMessage,
    ProtocolError,
    decode,
    encode,
    expect,
    message_id,
    restore,
    voxel_ml,
)
from gliaflow_proto.routing import ASSEMBLER
from gliaflow_runtime import metrics
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.stage import Outcome, Stage, failure

REMEMBERED = 10_000  # scans whose end is remembered, so that a late copy of a part starts nothing
PREFETCH = 2000  # the most that RabbitMQ's quorum queues hand out at once: for ...
OPEN_PARTS = 1500  # ... parts of scans that are not complete, ...
KEPT_NEWS = 400  # ... and news of scans that have ended; what is left keeps the queue moving
NEWS_ATTEMPTS = 10  # news that was handed on so often is let go: below ``max_attempts``
TICK_S = 5.0  # between two looks at the clock; what goes beyond was a pause of the process
MAX_LOGIT = 1e6
Key = tuple[str, str]  # submission and scan


@dataclass
class Gathering:
    """A scan that waits for its other parts.

    Deliveries are kept as they came (compressed) and decoded again at the end: thousands may be open.
    """

    attempt: int
    count: int
    frame: tuple[object, ...]  # what all its parts have in common
    since: float  # when the last part came, on the assembler's clock
    parts: dict[int, Delivery] = field(default_factory=dict)
    copies: list[Delivery] = field(default_factory=list)  # of parts that had come before

    @property
    def held(self) -> list[Delivery]:
        return [*self.parts.values(), *self.copies]

    def graded(self) -> list[GradedMessage]:
        """The parts in order."""
        return [expect(decode(self.parts[index].body), GradedMessage) for index in sorted(self.parts)]


class Assembler(Stage):
    """``graded`` → ``prediction``: mean logit, mask on the scan's own grid, tumour volume.

    The score of a scan is the mean logit over the slices whose mask holds tumour, or over all of them where none
    does: a slice without tumour says nothing about the grade.

    Parameters
    ----------
    bundle: names the classes.
    timeout_s: a scan that got no part for so long is given up, each part a dead letter.
    """

    name = "assembler"
    queue = ASSEMBLER
    prefetch = PREFETCH
    max_attempts = 15  # what it holds comes again at each restart, through no fault of its own

    def __init__(self, bundle: Bundle, *, timeout_s: float) -> None:
        self._classes = bundle.manifest.classes
        self._timeout_s = timeout_s
        self._open: dict[Key, Gathering] = {}
        self._ended: OrderedDict[Key, tuple[int, str]] = OrderedDict()  # the attempt, and why it failed or ""
        self._news: deque[tuple[float, Delivery]] = deque()
        self._clock = 0.0  # of the time in which a part could have come: a stopped process is given none
        self._looked = time.monotonic()

    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        key, attempt = (message.scan.submission, message.scan.id), message.scan.attempt
        if isinstance(message, FailureMessage | PredictionMessage):
            reason = message.reason if isinstance(message, FailureMessage) else ""
            dead, done = self._heard(key, attempt, reason)
            return Outcome(done=[*done, *self._keep(delivery)], dead=dead)
        part = expect(message, GradedMessage)
        slices = len(part.geometry.slices)
        if part.logit.shape != (slices,) or part.mask.shape != (slices, *part.geometry.size):
            raise ProtocolError(f"tensors: {part.logit.shape} logits and {part.mask.shape} masks for {slices} slices")
        if not (np.abs(part.logit) <= MAX_LOGIT).all():  # nor a number
            raise ProtocolError(f"tensors.logit: not finite, or beyond ±{MAX_LOGIT:g}")
        if part.mask.max(initial=0) > 1:
            raise ProtocolError("tensors.mask: expected 0 and 1")
        if key in self._ended and attempt <= self._ended[key][0]:
            last, reason = self._ended[key]
            failed = reason and attempt == last
            return Outcome(dead=[(delivery, f"its scan failed: {reason}")], done=[]) if failed else Outcome()
        gathering = self._open.get(key)
        if gathering and attempt < gathering.attempt:
            return Outcome()
        older = []
        if gathering is None or attempt > gathering.attempt:
            older = gathering.held if gathering else []
            gathering = self._open[key] = Gathering(attempt, part.part[1], _frame(part), self._clock)
        if gathering.frame != _frame(part):
            raise ProtocolError("geometry, part, bundle: not those that other parts of this scan have")
        gathering.since = self._clock
        if part.part[0] in gathering.parts:
            gathering.copies.append(gathering.parts[part.part[0]])
        gathering.parts[part.part[0]] = delivery
        if len(gathering.parts) < gathering.count:
            return self._make_room(older) or Outcome(done=older)
        prediction = self._predict(gathering.graded())
        if len(encode(prediction, "lz4")) > MAX_MESSAGE_BYTES:
            return self._end_failed([key], "its mask is over the limit on a message", older)
        self._end(key, attempt, "")
        metrics.SLICES.labels(self.name).inc(prediction.slices)
        if part.scan.sent is not None:
            metrics.SCAN_SECONDS.observe(max(0.0, time.time() - part.scan.sent))
        return Outcome([prediction], done=[*older, *gathering.held])

    def idle(self) -> Outcome | None:
        """Give up scans whose missing parts have not come for too long, and let go of old news."""
        now = time.monotonic()
        self._clock += min(now - self._looked, TICK_S)
        self._looked = now
        self._show()
        late = [key for key, scan in self._open.items() if self._clock - scan.since > self._timeout_s]
        old = []
        while self._news and self._clock - self._news[0][0] > self._timeout_s:
            old.append(self._news.popleft()[1])
        return self._end_failed(late, f"did not come within {self._timeout_s:g} s", old) if late or old else None

    def _show(self) -> None:
        metrics.OPEN_SCANS.set(len(self._open))
        longest = min((scan.since for scan in self._open.values()), default=self._clock)
        metrics.OPEN_SCAN_WAIT.set(self._clock - longest)

    def lost(self) -> None:
        """What was open comes again, perhaps to another assembler. Which scans have ended is still known."""
        self._open.clear()
        self._news.clear()

    def _make_room(self, done: list[Delivery]) -> Outcome | None:
        """Give up the scan that has waited longest when so much is open that the broker would hand out no more."""
        if sum(len(scan.held) for scan in self._open.values()) < OPEN_PARTS:
            return None
        why = f"did not come before {OPEN_PARTS} parts of other scans"
        return self._end_failed([next(iter(self._open))], why, done)

    def _end_failed(self, keys: list[Key], why: str, done: list[Delivery]) -> Outcome:
        news, dead = [], []
        for key in keys:
            gathering = self._open[key]
            missing = [i for i in range(gathering.count) if i not in gathering.parts]
            reason = f"incomplete: parts {missing[:20]} of {gathering.count} {why}" if missing else why
            news.append(failure(gathering.graded()[0], self.name, reason))
            dead += [(held, reason) for held in gathering.held]
            self._end(key, gathering.attempt, reason)
        return Outcome(news, done, dead)

    def _heard(self, key: Key, attempt: int, reason: str) -> tuple[list[tuple[Delivery, str]], list[Delivery]]:
        """A scan has ended: by a prediction, or since a stage failed on a part (``reason``). What is held is over.

        Returns the deliveries that are dead, and those that are done with.
        """
        gathering = self._open.get(key)
        if gathering and attempt < gathering.attempt:
            return [], []
        last, before = self._ended.get(key, (-1, "never"))
        if attempt > last or (attempt == last and before):  # that a scan was answered stays so
            self._end(key, attempt, reason)
        held = gathering.held if gathering else []
        self._open.pop(key, None)
        return ([(part, f"its scan failed: {reason}") for part in held], []) if reason else ([], held)

    def _keep(self, news: Delivery) -> list[Delivery]:
        """Hold news back from the broker, so that the next assembler hears it too; returns what to let go of."""
        if news.attempts >= NEWS_ATTEMPTS:
            return [news]
        self._news.append((self._clock, replace(news, body=b"")))
        return [self._news.popleft()[1]] if len(self._news) > KEPT_NEWS else []

    def _end(self, key: Key, attempt: int, reason: str) -> None:
        self._open.pop(key, None)
        self._ended[key] = attempt, reason
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def _predict(self, parts: list[GradedMessage]) -> PredictionMessage:
        first = parts[0]
        logit = np.concatenate([part.logit for part in parts])
        masks = np.concatenate([part.mask for part in parts])
        geometry = replace(first.geometry, slices=[z for part in parts for z in part.geometry.slices])
        with_tumour = masks.any(axis=(1, 2))
        score = float(logit[with_tumour].mean() if with_tumour.any() else logit.mean())
        p_first = 0.5 * (1 + math.tanh(score / 2))  # the sigmoid, without overflow
        mask = restore(masks, geometry)
        return PredictionMessage(
            id=message_id(first.scan.submission, first.scan.id, "prediction", first.bundle),
            scan=first.scan,
            trace=first.trace,
            bundle=first.bundle,
            grade=self._classes[0] if p_first >= 0.5 else self._classes[1],
            p_hgg=p_first,
            tumour_ml=float(mask.sum(dtype=np.int64)) * voxel_ml(geometry),
            slices=len(logit),
            tumour_slices=int(with_tumour.sum()),
            affine=geometry.affine,
            mask=mask,
        )


def _frame(part: GradedMessage) -> tuple[object, ...]:
    """How many parts there are, which bundle graded them, and the grids: the same in every part of a scan."""
    g = part.geometry
    grids = (*g.affine, *g.shape, *g.orientation, *g.origin, *g.step, *g.size)
    return part.part[1], part.bundle, grids

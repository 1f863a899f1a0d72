"""The classifier's second half: the parts of a scan add up to one prediction.

However many classifiers run, the broker gives the queue of graded parts to one of them at a time (single active
consumer). Parts are kept unacknowledged until their scan is complete, so the broker is the only store: when this
process dies, all the parts go to the next. Order does not matter, and a part that comes twice counts once.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
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
from gliaflow_runtime.broker import Delivery
from gliaflow_runtime.bundle import Bundle
from gliaflow_runtime.stage import Outcome, Stage, failure

REMEMBERED = 10_000  # scans whose end is remembered, so that a late copy of a part starts nothing
OPEN_PARTS = 2000  # deliveries held at a time: the most that RabbitMQ's quorum queues hand out at once
MAX_LOGIT = 1e6
Key = tuple[str, str, int]  # submission, scan, attempt: what a person replays is another attempt


@dataclass
class Gathering:
    """A scan that waits for its other parts.

    Deliveries are kept as they came (compressed) and decoded again at the end: thousands may be open.
    """

    count: int
    frame: tuple[object, ...]  # what all its parts have in common
    parts: dict[int, Delivery] = field(default_factory=dict)
    copies: list[Delivery] = field(default_factory=list)  # of parts that had come before
    since: float = field(default_factory=time.monotonic)

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
    prefetch = OPEN_PARTS
    max_attempts = 15  # what it holds comes again at each restart, through no fault of its own

    def __init__(self, bundle: Bundle, *, timeout_s: float) -> None:
        self._classes = bundle.manifest.classes
        self._timeout_s = timeout_s
        self._open: dict[Key, Gathering] = {}
        self._ended: OrderedDict[Key, str] = OrderedDict()  # the reason why a scan failed, or ""

    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        key = (message.scan.submission, message.scan.id, message.scan.attempt)
        if isinstance(message, FailureMessage):
            return self._give_up(key, delivery, message.reason)
        part = expect(message, GradedMessage)
        slices = len(part.geometry.slices)
        if part.logit.shape != (slices,) or part.mask.shape != (slices, *part.geometry.size):
            raise ProtocolError(f"tensors: {part.logit.shape} logits and {part.mask.shape} masks for {slices} slices")
        if not (np.abs(part.logit) <= MAX_LOGIT).all():  # nor a number
            raise ProtocolError(f"tensors.logit: not finite, or beyond ±{MAX_LOGIT:g}")
        if part.mask.max(initial=0) > 1:
            raise ProtocolError("tensors.mask: expected 0 and 1")
        if key in self._ended:
            reason = self._ended[key]
            return Outcome(dead=[(delivery, f"its scan failed: {reason}")], done=[]) if reason else Outcome()
        gathering = self._open.setdefault(key, Gathering(part.part[1], _frame(part)))
        if gathering.frame != _frame(part):
            raise ProtocolError("geometry, part, bundle: not those that other parts of this scan have")
        gathering.since = time.monotonic()
        if part.part[0] in gathering.parts:
            gathering.copies.append(gathering.parts[part.part[0]])
        gathering.parts[part.part[0]] = delivery
        if len(gathering.parts) < gathering.count:
            return self._make_room() or Outcome(done=[])
        prediction = self._predict(gathering.graded())
        if len(encode(prediction, "lz4")) > MAX_MESSAGE_BYTES:
            return self._end_failed([key], "its mask is over the limit on a message")
        self._end(key, "")
        metrics.SLICES.labels(self.name).inc(prediction.slices)
        if part.scan.sent is not None:
            metrics.SCAN_SECONDS.observe(max(0.0, time.time() - part.scan.sent))
        return Outcome([prediction], done=gathering.held)

    def idle(self) -> Outcome | None:
        """Give up scans whose missing parts have not come for too long."""
        self._show()
        late = [key for key, scan in self._open.items() if time.monotonic() - scan.since > self._timeout_s]
        return self._end_failed(late, f"did not come within {self._timeout_s:g} s") if late else None

    def _show(self) -> None:
        metrics.OPEN_SCANS.set(len(self._open))
        longest = min((scan.since for scan in self._open.values()), default=None)
        metrics.OPEN_SCAN_WAIT.set(0 if longest is None else time.monotonic() - longest)

    def _make_room(self) -> Outcome | None:
        """Give up the scan that has waited longest when so much is open that the broker would hand out no more."""
        if sum(len(scan.held) for scan in self._open.values()) < OPEN_PARTS:
            return None
        return self._end_failed([next(iter(self._open))], f"did not come before {OPEN_PARTS} parts of other scans")

    def _end_failed(self, keys: list[Key], why: str) -> Outcome:
        news, dead = [], []
        for key in keys:
            gathering = self._open[key]
            missing = [i for i in range(gathering.count) if i not in gathering.parts]
            reason = f"incomplete: parts {missing[:20]} of {gathering.count} {why}" if missing else why
            news.append(failure(gathering.graded()[0], self.name, reason))
            dead += [(held, reason) for held in gathering.held]
            self._end(key, reason)
        return Outcome(news, [], dead)

    def _give_up(self, key: Key, news: Delivery, reason: str) -> Outcome:
        """A stage failed on a part of this scan: the others can no longer make a prediction."""
        gathering = self._open.get(key)
        if self._ended.get(key) != "":
            self._end(key, reason)
        held = gathering.held if gathering else []
        return Outcome(done=[news], dead=[(delivery, f"its scan failed: {reason}") for delivery in held])

    def _end(self, key: Key, reason: str) -> None:
        self._open.pop(key, None)
        self._ended[key] = reason
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

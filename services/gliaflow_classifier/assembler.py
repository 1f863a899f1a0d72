"""The second half of the classifier: combines the parts of a scan into one prediction.

Several classifiers may run, but the broker delivers graded parts to only one of them (single active consumer). Parts
stay unacknowledged until their scan is complete. The broker is the only store: when this process dies, all parts are
delivered to the next one. Parts may come in any order, and a part that comes twice counts once.

The queue also receives the announcements of ended scans: predictions and failures. The latest ones stay
unacknowledged too, so that the next assembler knows which scans have ended, and ignores late copies of their parts.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace

import numpy as np
from gliaflow_proto import (
    MAX_MESSAGE_BYTES,
    NO_TUMOUR,
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
from gliaflow_proto.messages import MAX_WARNINGS
from gliaflow_proto.routing import ASSEMBLER
from gliaflow_runtime import metrics
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.stage import Outcome, Stage, failure
from numpy.typing import NDArray
from scipy import ndimage

REMEMBERED = 10_000  # ended scans to remember, so that late copies of their parts are ignored
PREFETCH = 2000  # the largest that RabbitMQ's quorum queues allow, for:
OPEN_PARTS = 1500  # parts of incomplete scans
KEPT_ENDINGS = 400  # announcements of ended scans; the rest keeps the queue moving
ENDING_ATTEMPTS = 10  # an announcement delivered so often is acknowledged; must be below ``max_attempts``
TICK_S = 5.0  # a longer time between two calls of ``idle`` was a pause of the process, and does not count
MAX_LOGIT = 1e6
Key = tuple[str, str]  # submission and scan


@dataclass
class Gathering:
    """A scan that waits for its other parts.

    Deliveries are kept compressed, since thousands may be open, and decoded again at the end.
    """

    attempt: int
    count: int
    frame: tuple[object, ...]  # what all its parts must have in common
    since: float  # when the last part came, by the assembler's clock
    parts: dict[int, Delivery] = field(default_factory=dict)
    copies: list[Delivery] = field(default_factory=list)  # of parts that came before

    @property
    def held(self) -> list[Delivery]:
        return [*self.parts.values(), *self.copies]

    def graded(self) -> list[GradedMessage]:
        """The parts in order."""
        return [expect(decode(self.parts[index].body), GradedMessage) for index in sorted(self.parts)]


class Assembler(Stage):
    """``graded`` → ``prediction``: mean logit, mask on the scan's own grid, tumour volume.

    Spots in the mask that are smaller than the bundle's ``min_tumour_ml`` are removed. The logit of a scan is the mean
    over the slices with tumour, since a slice without tumour says nothing about the grade. A scan without tumour has
    no grade.

    Parameters
    ----------
    bundle: has the classes, and the volume of the smallest tumour.
    timeout_s: a scan that gets no part for so long fails, and its parts become dead letters.
    """

    name = "assembler"
    queue = ASSEMBLER
    prefetch = PREFETCH
    max_attempts = 15  # all that it holds is delivered again at each restart, without any fault of the messages

    def __init__(self, bundle: Bundle, *, timeout_s: float) -> None:
        self._classes, self._min_tumour_ml = bundle.manifest.classes, bundle.manifest.min_tumour_ml
        self._trained_on = bundle.trained_on
        self._timeout_s = timeout_s
        self._open: dict[Key, Gathering] = {}
        self._ended: OrderedDict[Key, tuple[int, str]] = OrderedDict()  # the attempt, and why it failed or ""
        self._endings: deque[tuple[float, Delivery]] = deque()
        self._clock = 0.0  # the time during which parts could come: pauses of the process do not count
        self._ticked = time.monotonic()

    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        key, attempt = (message.scan.submission, message.scan.id), message.scan.attempt
        if isinstance(message, FailureMessage | PredictionMessage):
            reason = message.reason if isinstance(message, FailureMessage) else ""
            dead, done = self._note_end(key, attempt, reason)
            return Outcome(done=[*done, *self._keep(delivery)], dead=dead)
        part = expect(message, GradedMessage)
        slices = len(part.geometry.slices)
        if part.logit.shape != (slices,) or part.mask.shape != (slices, *part.geometry.size):
            raise ProtocolError(f"tensors: {part.logit.shape} logits and {part.mask.shape} masks for {slices} slices")
        if not (np.abs(part.logit) <= MAX_LOGIT).all():  # also if it is NaN
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
            raise ProtocolError("geometry, part, bundle: differ from those of other parts of this scan")
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
        """Fail scans whose missing parts have not come for too long, and acknowledge old announcements."""
        now = time.monotonic()
        self._clock += min(now - self._ticked, TICK_S)
        self._ticked = now
        self._show()
        late = [key for key, scan in self._open.items() if self._clock - scan.since > self._timeout_s]
        old = []
        while self._endings and self._clock - self._endings[0][0] > self._timeout_s:
            old.append(self._endings.popleft()[1])
        return self._end_failed(late, f"did not come within {self._timeout_s:g} s", old) if late or old else None

    def _show(self) -> None:
        metrics.OPEN_SCANS.set(len(self._open))
        longest = min((scan.since for scan in self._open.values()), default=self._clock)
        metrics.OPEN_SCAN_WAIT.set(self._clock - longest)

    def lost(self) -> None:
        """Open parts are delivered again, perhaps to another assembler. The ended scans stay known."""
        self._open.clear()
        self._endings.clear()

    def _make_room(self, done: list[Delivery]) -> Outcome | None:
        """Fail the scan that has waited longest, if so many parts are open that the broker would deliver no more."""
        if sum(len(scan.held) for scan in self._open.values()) < OPEN_PARTS:
            return None
        why = f"did not come before {OPEN_PARTS} parts of other scans"
        return self._end_failed([next(iter(self._open))], why, done)

    def _end_failed(self, keys: list[Key], why: str, done: list[Delivery]) -> Outcome:
        failures, dead = [], []
        for key in keys:
            gathering = self._open[key]
            missing = [i for i in range(gathering.count) if i not in gathering.parts]
            reason = f"incomplete: parts {missing[:20]} of {gathering.count} {why}" if missing else why
            failures.append(failure(gathering.graded()[0], self.name, reason))
            dead += [(held, reason) for held in gathering.held]
            self._end(key, gathering.attempt, reason)
        return Outcome(failures, done, dead)

    def _note_end(self, key: Key, attempt: int, reason: str) -> tuple[list[tuple[Delivery, str]], list[Delivery]]:
        """Record that a scan has ended, with a prediction or a failure (``reason``), and drop its parts.

        Returns the deliveries to dead-letter, and those to acknowledge.
        """
        gathering = self._open.get(key)
        if gathering and attempt < gathering.attempt:
            return [], []
        last, before = self._ended.get(key, (-1, "never"))
        if attempt > last or (attempt == last and before):  # an answered scan stays answered
            self._end(key, attempt, reason)
        held = gathering.held if gathering else []
        self._open.pop(key, None)
        return ([(part, f"its scan failed: {reason}") for part in held], []) if reason else ([], held)

    def _keep(self, ending: Delivery) -> list[Delivery]:
        """Leave an announcement unacknowledged for the next assembler; returns the ones to acknowledge."""
        if ending.attempts >= ENDING_ATTEMPTS:
            return [ending]
        self._endings.append((self._clock, replace(ending, body=b"")))
        return [self._endings.popleft()[1]] if len(self._endings) > KEPT_ENDINGS else []

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
        masks = without_spots(masks, self._min_tumour_ml / (voxel_ml(geometry) * geometry.step[0] * geometry.step[1]))
        with_tumour = masks.any(axis=(1, 2))
        score = float(logit[with_tumour].mean()) if with_tumour.any() else 0.0
        p_first = 0.5 * (1 + math.tanh(score / 2))  # the sigmoid, without overflow
        graded = bool(with_tumour.any())
        grade = self._classes[0 if p_first >= 0.5 else 1] if graded else ""
        mask = restore(masks, geometry)
        metrics.ANSWERS.labels(grade or NO_TUMOUR).inc()
        return PredictionMessage(
            id=message_id(first.scan.submission, first.scan.id, "prediction", first.bundle),
            scan=first.scan,
            trace=first.trace,
            warnings=list(dict.fromkeys(text for part in parts for text in part.warnings))[:MAX_WARNINGS],
            bundle=first.bundle,
            status="ok" if graded else NO_TUMOUR,
            grade=grade,
            p_hgg=p_first,
            tumour_ml=float(mask.sum(dtype=np.int64)) * voxel_ml(geometry),
            slices=len(logit),
            tumour_slices=int(with_tumour.sum()),
            affine=geometry.affine,
            forms=next((part.geometry.forms for part in parts if part.geometry.forms), None),
            trained_on=self._trained_on,
            mask=mask,
        )


def without_spots(masks: NDArray[np.uint8], pixels: float) -> NDArray[np.uint8]:
    """The masks [n, rows, columns] of a scan's slices without the connected parts that have fewer than ``pixels``.

    Pixels that touch at a side, an edge or a corner are connected, also those of neighbouring slices.
    """
    if pixels <= 1 or not masks.any():
        return masks
    inside = [np.flatnonzero(masks.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    box = tuple(slice(each[0], each[-1] + 1) for each in inside)  # far smaller than all slices
    label, count = ndimage.label(masks[box], structure=np.ones((3, 3, 3)))
    large = np.bincount(label.ravel(), minlength=count + 1) >= pixels
    large[0] = False
    kept = np.zeros_like(masks)
    kept[box] = large[label]
    return kept


def _frame(part: GradedMessage) -> tuple[object, ...]:
    """The number of parts, the bundle and the grids, which are the same in all parts of a scan."""
    g = part.geometry
    grids = (*g.affine, *g.shape, *g.orientation, *g.origin, *g.step, *g.size)
    return part.part[1], part.bundle, grids

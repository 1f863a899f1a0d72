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
from collections.abc import Iterator
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
from gliaflow_proto.geometry import MAX_VOXELS
from gliaflow_proto.messages import MAX_WARNINGS
from gliaflow_proto.reading import MAX_LIST
from gliaflow_proto.routing import ASSEMBLER
from gliaflow_runtime import metrics
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.stage import OtherBundle, Outcome, Stage, failure
from numpy.typing import NDArray
from scipy import ndimage

REMEMBERED = 10_000  # ended scans to remember, so that late copies of their parts are ignored
PREFETCH = 2000  # the largest that RabbitMQ's quorum queues allow, for:
OPEN_PARTS = 1500  # parts of incomplete scans
KEPT_ENDINGS = 400  # announcements of ended scans; the rest keeps the queue moving
OPEN_BYTES = 512 * 2**20  # of the open parts: a usual part has some 10 KiB, and a container 4 GiB for everything
MAX_MASKS = MAX_VOXELS  # pixels of a scan's masks: at the end, all are in memory, several times
TEXT_BYTES = 2**20  # room for what a part has besides tensors: its warnings are the most, 32 of 4,096 characters
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
    slices: dict[int, int] = field(default_factory=dict)  # the part of each slice

    @property
    def held(self) -> list[Delivery]:
        return list(self.parts.values())

    @property
    def bytes(self) -> int:
        return sum(len(part.body) for part in self.parts.values())

    def graded(self) -> Iterator[GradedMessage]:
        """The parts in order, decoded one by one."""
        return (expect(decode(self.parts[index].body), GradedMessage) for index in sorted(self.parts))


class Assembler(Stage):
    """``graded`` → ``prediction``: mean logit, mask on the scan's own grid, tumour volume.

    Spots in the mask that are smaller than the bundle's ``min_tumour_ml`` are removed. The logit of a scan is the mean
    over the slices with tumour, since a slice without tumour says nothing about the grade. A scan without tumour has
    no grade.

    Parameters
    ----------
    bundle: has the classes, the volume of the smallest tumour, and the size of a part.
    timeout_s: a scan that gets no part for so long fails, and its parts become dead letters.
    """

    name = "assembler"
    queue = ASSEMBLER
    prefetch = PREFETCH
    max_attempts = 15  # all that it holds is delivered again at each restart, without any fault of the messages

    def __init__(self, bundle: Bundle, *, timeout_s: float) -> None:
        self._classes, self._min_tumour_ml = bundle.manifest.classes, bundle.manifest.min_tumour_ml
        self._bundle, self._trained_on = bundle.id, bundle.trained_on
        self._size = tuple(bundle.manifest.input.size)
        self._slices_per_part = bundle.slices_per_part(MAX_MESSAGE_BYTES)
        self._part_bytes = self._slices_per_part * (math.prod(self._size) + 8) + TEXT_BYTES
        self._timeout_s = timeout_s
        self._open: dict[Key, Gathering] = {}
        self._ended: OrderedDict[Key, tuple[int, str]] = OrderedDict()  # the attempt, and why it failed or ""
        self._endings: deque[tuple[float, Delivery]] = deque()
        self._clock = 0.0  # the time during which parts could come: pauses of the process do not count
        self._ticked = time.monotonic()

    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        key, attempt = (message.scan.submission, message.scan.id), message.scan.attempt
        if isinstance(message, FailureMessage | PredictionMessage):
            dead, done = self._note_end(message)
            return Outcome(done=[*done, *self._keep(delivery)], dead=dead)
        part = expect(message, GradedMessage)
        if key in self._ended and attempt <= self._ended[key][0]:
            last, reason = self._ended[key]
            failed = reason and attempt == last
            return Outcome(dead=[(delivery, f"its scan failed: {reason}")], done=[]) if failed else Outcome()
        gathering = self._open.get(key)
        if gathering and attempt < gathering.attempt:
            return Outcome()
        self._check(part, len(delivery.body))
        older = []
        if gathering is None or attempt > gathering.attempt:
            older = gathering.held if gathering else []
            gathering = Gathering(attempt, part.part[1], _frame(part), self._clock)
        self._check_fit(part, gathering)
        self._open[key] = gathering
        gathering.since = self._clock
        if part.part[0] in gathering.parts:
            older = [gathering.parts[part.part[0]]]  # a copy
        gathering.parts[part.part[0]] = delivery
        gathering.slices |= dict.fromkeys(part.geometry.slices, part.part[0])
        if len(gathering.parts) < gathering.count:
            return self._make_room(older) or Outcome(done=older)
        prediction = self._predict(gathering)
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

    def _check(self, part: GradedMessage, size: int) -> None:
        """Check a part by itself. ``size``: of its message, in bytes.

        Raises
        ------
        OtherBundle: it is graded with another bundle. Its answer would be a mixture of both.
        ProtocolError: it does not have the tensors of a part of this bundle, or it is too large to be kept.
        """
        if part.bundle != self._bundle:
            raise OtherBundle("grades", part.bundle, self.name, self._bundle)
        slices, most = len(part.geometry.slices), self._slices_per_part
        if slices > most or tuple(part.geometry.size) != self._size:
            raise ProtocolError(
                f"geometry.slices, geometry.size: {slices} of {part.geometry.size}, but a part of this bundle has at "
                f"most {most} of {list(self._size)}"
            )
        if size > self._part_bytes:
            raise ProtocolError(f"a message of {size} bytes is over the limit of {self._part_bytes} on a graded part")
        if part.logit.shape != (slices,) or part.mask.shape != (slices, *part.geometry.size):
            raise ProtocolError(f"tensors: {part.logit.shape} logits and {part.mask.shape} masks for {slices} slices")
        if not (np.abs(part.logit) <= MAX_LOGIT).all():  # also if it is NaN
            raise ProtocolError(f"tensors.logit: not finite, or beyond ±{MAX_LOGIT:g}")
        if part.mask.max(initial=0) > 1:
            raise ProtocolError("tensors.mask: expected 0 and 1")

    def _check_fit(self, part: GradedMessage, gathering: Gathering) -> None:
        """Raise ProtocolError if a part does not belong to the other parts, or makes the scan too large."""
        if gathering.frame != _frame(part):
            raise ProtocolError("geometry, part: differ from those of other parts of this scan")
        if any(gathering.slices.get(z, part.part[0]) != part.part[0] for z in part.geometry.slices):
            raise ProtocolError("geometry.slices: another part of this scan has one of them too")
        total = len(gathering.slices.keys() | set(part.geometry.slices)) * math.prod(self._size)
        if total > MAX_MASKS:
            raise ProtocolError(f"geometry.slices: the masks of this scan have over {MAX_MASKS} pixels")

    def _show(self) -> None:
        metrics.OPEN_SCANS.set(len(self._open))
        longest = min((scan.since for scan in self._open.values()), default=self._clock)
        metrics.OPEN_SCAN_WAIT.set(self._clock - longest)

    def lost(self) -> None:
        """Open parts are delivered again, perhaps to another assembler. The ended scans stay known."""
        self._open.clear()
        self._endings.clear()

    def _make_room(self, done: list[Delivery]) -> Outcome | None:
        """Fail the scans that have waited longest, while too many parts or bytes are open.

        With too many parts, the broker would deliver no more. ``done``: deliveries to acknowledge.
        """
        parts = sum(len(scan.parts) for scan in self._open.values())
        size = sum(scan.bytes for scan in self._open.values())
        keys = []
        for key, scan in self._open.items():
            if parts < OPEN_PARTS and size <= OPEN_BYTES:
                break
            parts, size = parts - len(scan.parts), size - scan.bytes
            keys.append(key)
        why = f"did not come before {OPEN_PARTS} parts or {OPEN_BYTES // 2**20} MiB of incomplete scans"
        return self._end_failed(keys, why, done) if keys else None

    def _end_failed(self, keys: list[Key], why: str, done: list[Delivery]) -> Outcome:
        failures, dead = [], []
        for key in keys:
            gathering = self._open[key]
            missing = [i for i in range(gathering.count) if i not in gathering.parts]
            reason = f"incomplete: parts {missing[:20]} of {gathering.count} {why}" if missing else why
            failures.append(failure(next(gathering.graded()), self.name, reason))
            dead += [(held, reason) for held in gathering.held]
            self._end(key, gathering.attempt, reason)
        return Outcome(failures, done, dead)

    def _note_end(
        self, ending: FailureMessage | PredictionMessage
    ) -> tuple[list[tuple[Delivery, str]], list[Delivery]]:
        """Record that an attempt of a scan has ended, and drop its parts.

        If the scan failed, its parts are dead letters. After a prediction, or if the client sends the scan again
        (``retry``), nobody needs them. Returns the deliveries to dead-letter, and those to acknowledge.
        """
        key, attempt = (ending.scan.submission, ending.scan.id), ending.scan.attempt
        retry = isinstance(ending, FailureMessage) and ending.retry
        reason = ending.reason if isinstance(ending, FailureMessage) and not retry else ""
        gathering = self._open.get(key)
        if gathering and attempt < gathering.attempt:
            return [], []
        last, before = self._ended.get(key, (-1, ""))
        if attempt > last or (attempt == last and before and not retry):  # an answered scan stays answered
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

    def _predict(self, scan: Gathering) -> PredictionMessage:
        masks = np.empty((len(scan.slices), *self._size), np.uint8)
        slices, logits, warnings, forms = list[int](), list[NDArray[np.float64]](), list[str](), None
        for part in scan.graded():
            masks[len(slices) : len(slices) + len(part.mask)] = part.mask
            logits.append(part.logit)
            slices += part.geometry.slices
            warnings += part.warnings
            forms = forms or part.geometry.forms
        first, logit, masks = next(scan.graded()), np.concatenate(logits), masks[: len(slices)]
        geometry = replace(first.geometry, slices=slices)
        masks = without_spots(masks, self._min_tumour_ml / (voxel_ml(geometry) * geometry.step[0] * geometry.step[1]))
        with_tumour = masks.any(axis=(1, 2))
        score = float(logit[with_tumour].mean()) if with_tumour.any() else 0.0
        p_first = _probability(score)
        by_slice = sorted((slices[n], _probability(float(logit[n]))) for n in np.flatnonzero(with_tumour))
        graded = bool(by_slice)
        grade = self._classes[0 if p_first >= 0.5 else 1] if graded else ""
        mask = restore(masks, geometry)
        metrics.ANSWERS.labels(grade or NO_TUMOUR).inc()
        return PredictionMessage(
            id=message_id(first.scan.submission, first.scan.id, "prediction", first.bundle),
            scan=first.scan,
            trace=first.trace,
            warnings=list(dict.fromkeys(warnings))[:MAX_WARNINGS],
            bundle=first.bundle,
            status="ok" if graded else NO_TUMOUR,
            grade=grade,
            p_hgg=p_first,
            tumour_ml=float(mask.sum(dtype=np.int64)) * voxel_ml(geometry),
            slices=len(logit),
            tumour_slices=int(with_tumour.sum()),
            affine=geometry.affine,
            forms=forms,
            trained_on=self._trained_on,
            slice_numbers=[z for z, _ in by_slice[:MAX_LIST]],
            slice_p_hgg=[p for _, p in by_slice[:MAX_LIST]],
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


def _probability(logit: float) -> float:
    """The sigmoid, without overflow."""
    return 0.5 * (1 + math.tanh(logit / 2))


def _frame(part: GradedMessage) -> tuple[object, ...]:
    """The number of parts and the grids, which are the same in all parts of a scan."""
    g = part.geometry
    return part.part[1], *g.affine, *g.shape, *g.orientation, *g.origin, *g.step

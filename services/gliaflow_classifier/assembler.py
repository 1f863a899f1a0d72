"""The second half of the classifier: combines the parts of a scan into one prediction.

Several classifiers may run, but the broker delivers the graded parts of a shard to only one of them (single active
consumer). Parts stay unacknowledged until their scan is complete. The broker is the only store: when this process
dies, all parts are delivered to the next one. Parts may come in any order, and a part that comes twice counts once.

The queue of each shard also receives the announcements of all ended scans: predictions and failures. The latest stay
unacknowledged too, so that the next assembler knows which scans have ended, and ignores late copies of their parts.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import replace

from gliaflow_proto import NO_TUMOUR, FailureMessage, GradedMessage, Message, PredictionMessage, decode, expect
from gliaflow_proto.messages import MAX_SHARDS
from gliaflow_proto.routing import ASSEMBLERS, shard_of
from gliaflow_runtime import metrics
from gliaflow_runtime.broker.interface import Broker, Delivery
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.stage import Outcome, Stage, failure

from gliaflow_classifier.ended import ENDING_ATTEMPTS, REMEMBERED, EndedScans, Key
from gliaflow_classifier.gathering import Gathering, PartOfBundle
from gliaflow_classifier.prediction import predict
from gliaflow_classifier.shares import Shares

PREFETCH = 2000  # the largest that RabbitMQ's quorum queues allow, for open parts and kept announcements
OPEN_PARTS = 1500  # parts of incomplete scans
OPEN_BYTES = 512 * 2**20 // MAX_SHARDS  # of them: a usual part has some 10 KiB, and a container 4 GiB for everything
TICK_S = 5.0  # a longer time between two calls of ``idle`` was a pause of the process, and does not count


class Assembler(Stage):
    """``graded`` → ``prediction`` (``predict``), for the scans of one shard.

    Parameters
    ----------
    bundle: has the classes, the volume of the smallest tumour, and the size of a part.
    timeout_s: a scan that gets no part for so long fails, and its parts become dead letters.
    shard: the number of the shard, from 0.
    shares: the shards of this process; None: it never leaves this one to another process.
    """

    prefetch = PREFETCH
    max_attempts = ENDING_ATTEMPTS + 5  # all that it holds is delivered again at each restart, and is not at fault
    contents = frozenset({GradedMessage.kind})  # of an announcement, only the scan matters

    def __init__(self, bundle: Bundle, *, timeout_s: float, shard: int = 0, shares: Shares | None = None) -> None:
        self.queue = ASSEMBLERS[shard]
        self.name = self.queue.name.removeprefix("gliaflow.")
        self._bundle, self._part, self._timeout_s = bundle, PartOfBundle(bundle), timeout_s
        self._shard, self._shares = shard, shares
        self.optional = shares is not None and shard >= shares.in_use  # then it only reads what is left there
        self._open: dict[Key, Gathering] = {}
        self._ended = EndedScans()
        self._moved: OrderedDict[Key, int] = OrderedDict()  # scans that were given to their own shard, and the attempt
        self._clock = 0.0  # the time during which parts could come: pauses of the process do not count
        self._ticked = time.monotonic()

    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        key, attempt = (message.scan.submission, message.scan.id), message.scan.attempt
        if self._shares:
            self._shares.came_back(self._shard)
        if isinstance(message, FailureMessage | PredictionMessage):
            dead, done = self._note_end(message)
            return Outcome(done=[*done, *self._ended.keep(delivery, self._clock)], dead=dead)
        part = expect(message, GradedMessage)
        if self._shares:
            self._shares.note(self._shard)
        last, reason = self._ended.get(key) or (-1, "")
        if attempt <= last:
            failed = reason and attempt == last
            return Outcome(dead=[(delivery, f"its scan failed: {reason}")], done=[]) if failed else Outcome()
        gathering = self._open.get(key)
        if gathering and attempt < gathering.attempt:
            return Outcome()
        self._part.check(part, len(delivery.body), self.name)
        older = []
        if gathering is None or attempt > gathering.attempt:
            older = gathering.held if gathering else []
            gathering = Gathering.of(part, self._clock)
        gathering.check(part)
        self._open[key] = gathering
        older += gathering.add(part, delivery, self._clock)
        if len(gathering.parts) < gathering.count:
            return self._make_room(older) or Outcome(done=older)
        return self._answer(key, gathering, older)

    def idle(self) -> Outcome | None:
        """Move or fail scans whose missing parts have not come for too long, and acknowledge old announcements."""
        now = time.monotonic()
        self._clock += min(now - self._ticked, TICK_S)
        self._ticked = now
        self._show()
        late = {key: scan for key, scan in self._open.items() if self._clock - scan.since > self._timeout_s}
        strays = {key: scan for key, scan in late.items() if self._is_stray(key, scan)}
        if strays:
            return self._move(strays)
        old = self._ended.take_older_than(self._clock - self._timeout_s)
        return self._end_failed(late, f"did not come within {self._timeout_s:g} s", old) if late or old else None

    def lost(self) -> None:
        """Open parts are delivered again, perhaps to another assembler. The ended scans stay known."""
        self._open.clear()
        self._ended.kept.clear()

    def leaves(self, broker: Broker) -> bool:
        return self._shares is not None and self._shares.leaves(self._shard, broker)

    def _answer(self, key: Key, scan: Gathering, older: list[Delivery]) -> Outcome:
        prediction = predict(scan.graded(), self._bundle)

        def encoded() -> None:
            self._end(key, scan.attempt, "")
            metrics.ANSWERS.labels(prediction.grade or NO_TUMOUR).inc()
            metrics.SLICES.labels(self.name).inc(prediction.slices)
            if prediction.scan.sent is not None:
                metrics.SCAN_SECONDS.observe(max(0.0, time.time() - prediction.scan.sent))

        return Outcome(
            [prediction],
            done=[*older, *scan.held],
            too_large=lambda: self._end_failed({key: scan}, "its mask is over the limit on a message", older),
            encoded=encoded,
        )

    def _is_stray(self, key: Key, scan: Gathering) -> bool:
        """Whether new parts of this scan go to another shard, and what is here was not moved there yet."""
        if self._shares is None or self._moved.get(key) == scan.attempt:
            return False
        return shard_of(scan.scan, self._shares.in_use) != self._shard

    def _move(self, scans: dict[Key, Gathering]) -> Outcome:
        """Send the parts of scans to the shard that is theirs by now, and which may have their other parts.

        Once at most: processes with other numbers of shards could send them back.
        """

        def encoded() -> None:
            for key, scan in scans.items():
                del self._open[key]
                self._moved[key] = scan.attempt
                if len(self._moved) > REMEMBERED:
                    self._moved.popitem(last=False)

        parts, held = [], []
        for scan in scans.values():
            shard = shard_of(scan.scan, self._shares.in_use if self._shares else 1)
            held += scan.held
            for delivery in scan.held:
                part = decode(delivery.body)
                parts.append(replace(part, scan=replace(part.scan, shard=shard)))
        return Outcome(parts, done=held, encoded=encoded)

    def _show(self) -> None:
        metrics.OPEN_SCANS.labels(self.name).set(len(self._open))
        longest = min((scan.since for scan in self._open.values()), default=self._clock)
        metrics.OPEN_SCAN_WAIT.labels(self.name).set(self._clock - longest)

    def _make_room(self, done: list[Delivery]) -> Outcome | None:
        """Fail the scans that have waited longest, while too many parts or bytes are open.

        With too many parts, the broker would deliver no more. ``done``: deliveries to acknowledge.
        """
        parts = sum(len(scan.parts) for scan in self._open.values())
        size = sum(scan.bytes for scan in self._open.values())
        oldest = {}
        for key, scan in self._open.items():
            if parts < OPEN_PARTS and size <= OPEN_BYTES:
                break
            parts, size = parts - len(scan.parts), size - scan.bytes
            oldest[key] = scan
        why = f"did not come before {OPEN_PARTS} parts or {OPEN_BYTES // 2**20} MiB of incomplete scans"
        return self._end_failed(oldest, why, done) if oldest else None

    def _end_failed(self, scans: dict[Key, Gathering], why: str, done: list[Delivery]) -> Outcome:
        failures, dead, reasons = [], [], {}
        for key, scan in scans.items():
            reason = f"incomplete: parts {scan.missing[:20]} of {scan.count} {why}" if scan.missing else why
            failures.append(failure(next(scan.graded()), self.name, reason))
            dead += [(held, reason) for held in scan.held]
            reasons[key] = reason

        def encoded() -> None:
            for key, scan in scans.items():
                self._end(key, scan.attempt, reasons[key])

        return Outcome(failures, done, dead, encoded=encoded)

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
        last, before = self._ended.get(key) or (-1, "")
        if attempt > last or (attempt == last and before and not retry):  # an answered scan stays answered
            self._ended.note(key, attempt, reason)
        held = gathering.held if gathering else []
        self._open.pop(key, None)
        return ([(part, f"its scan failed: {reason}") for part in held], []) if reason else ([], held)

    def _end(self, key: Key, attempt: int, reason: str) -> None:
        self._open.pop(key, None)
        self._ended.note(key, attempt, reason)

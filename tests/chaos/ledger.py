"""The outcome of every scan: messages on the wire, dead letters, and the tables of the clients.

docs/faults.md describes the promise that is checked. A scan on the wire is (submission, scan id). A scan of a client is
a row of its table.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from clients import Batch
from gliaflow_client.table import TABLE, ScanRow
from gliaflow_proto import FailureMessage, GradedMessage, PredictionMessage, ProtocolError, Queue, decode
from gliaflow_proto.routing import ALL_QUEUES
from gliaflow_runtime.broker.interface import REASON, Delivery
from gliaflow_runtime.broker.rabbitmq import AmqpBroker

TAP = Queue("gliaflow.chaos", ("prediction.#", "failure.#"), expires_s=24 * 3600)
TWO_BUNDLES = "give all stages the same bundle"  # such a scan is sent again, and there is no dead letter
Scan = tuple[str, str]
Answer = tuple[object, ...]  # grade, p_hgg, tumour_ml, slices, bundle, digest of the mask


def answer_of(row: ScanRow, mask: Path) -> Answer:
    """The part of a client's answer that must be identical in each run."""
    voxels = np.ascontiguousarray(np.asarray(nib.load(mask).dataobj, np.uint8))
    return row.grade, row.p_hgg, row.tumour_ml, row.slices, row.bundle, hashlib.sha256(voxels).hexdigest()


@dataclass
class Verdict:
    """The counts of the final table. ``wrong`` lists violations of the promise, by kind."""

    ok: int = 0
    dead: Counter[str] = field(default_factory=Counter)  # by reason
    redelivered: int = 0
    sent_again: int = 0
    letters: int = 0
    letter_copies: int = 0
    poison: int = 0
    retried: int = 0
    wrong: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


class Ledger:
    """Reads all answers from a queue of its own. Only faults of the broker itself disturb its connection."""

    def __init__(self, url: str) -> None:
        self._broker = AmqpBroker(url)
        self._broker.declare(TAP)
        self._predictions: dict[Scan, list[PredictionMessage]] = defaultdict(list)
        self._failures: dict[Scan, list[FailureMessage]] = defaultdict(list)
        self._names: dict[str, set[Scan]] = defaultdict(set)
        self.redelivered = 0
        self.poison: dict[str, str] = {}  # by message id: the queue that must dead-letter it
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def forget(self) -> None:
        """Discard everything read so far, and all dead letters: they belong to the quiet run."""
        for queue in ALL_QUEUES:
            self._drain(queue.dead)
        for record in (self._predictions, self._failures, self._names):
            record.clear()
        self.redelivered = 0

    def depth(self, queue: str) -> int:
        return self._broker.depth(queue)

    def submissions(self) -> list[str]:
        """The submissions with answers, the latest last."""
        return list(dict.fromkeys(submission for submission, _ in list(self._predictions)))

    def _read(self) -> None:
        with self._broker.consume(TAP, 200) as consumer:
            while (delivery := consumer.next(1.0)) or not self._over.is_set():
                if delivery:
                    self._note(delivery)
                    consumer.ack(delivery)

    def _note(self, delivery: Delivery) -> None:
        try:
            message = decode(delivery.body)
        except ProtocolError:
            return  # an invalid message for a client
        scan = message.scan.submission, message.scan.id
        self._names[message.scan.name].add(scan)
        if isinstance(message, PredictionMessage):
            self.redelivered += bool(self._predictions[scan])
            message.mask.setflags(write=False)
            self._predictions[scan].append(message)
        elif isinstance(message, FailureMessage):
            self._failures[scan].append(message)

    def close(self) -> tuple[list[Delivery], dict[str, list[Delivery]]]:
        """Stop reading. Returns all dead letters, and by queue the messages that the stages have left."""
        letters: list[Delivery] = []
        left: dict[str, list[Delivery]] = {}
        for queue in ALL_QUEUES:
            letters += self._drain(queue.dead)
            left[queue.name] = self._drain(queue.name)
        self._over.set()
        self._thread.join()
        self._broker.delete(TAP.name)
        self._broker.close()
        return letters, left

    def _drain(self, queue: str) -> list[Delivery]:
        deliveries: list[Delivery] = []
        if not self._broker.depth(queue):
            return deliveries
        with self._broker.consume(Queue(queue), 200) as consumer:
            while delivery := consumer.next(1.0):
                deliveries.append(delivery)
                consumer.ack(delivery)
        return deliveries

    def judge(self, batches: list[Batch], quiet: Mapping[tuple[Path, str], Answer | str]) -> Verdict:
        """Compare all outcomes with those of the quiet run (see ``Run.quiet``)."""
        letters, left = self.close()
        verdict = Verdict(redelivered=self.redelivered)
        by_scan: dict[Scan, set[str]] = defaultdict(set)
        seen: set[tuple[str, str]] = set()
        buried: Counter[str] = Counter()
        for letter in letters:
            verdict.letter_copies += (letter.message_id, letter.queue) in seen
            seen.add((letter.message_id, letter.queue))
            if letter.message_id in self.poison:
                buried[letter.message_id] += 1
                continue
            if not letter.headers.get(REASON):
                verdict.wrong["dead letter without a reason"].append(letter.message_id)
            try:
                message = decode(letter.body)
            except ProtocolError as error:
                verdict.wrong["unreadable dead letter"].append(f"{letter.queue} {letter.message_id} {error}")
                continue
            reason = letter.headers.get(REASON, "")
            by_scan[message.scan.submission, message.scan.id].add(reason)
            if TWO_BUNDLES in reason:
                verdict.wrong["a dead letter because of a swapped bundle"].append(f"{message.scan.name}: {reason}")
        verdict.letters = len(seen)
        self._judge_poison(verdict, buried)
        self._judge_wire(verdict, by_scan)
        for batch in batches:
            self._judge_batch(verdict, batch, quiet, by_scan)
        for queue, deliveries in left.items():
            for delivery in deliveries:
                self._judge_left(verdict, queue, delivery)
        return verdict

    def _judge_poison(self, verdict: Verdict, buried: Counter[str]) -> None:
        for message_id, queue in self.poison.items():
            verdict.poison += 1
            if not buried[message_id]:
                verdict.wrong["invalid message without a dead letter"].append(f"{message_id} for {queue}")

    def _judge_wire(self, verdict: Verdict, by_scan: Mapping[Scan, set[str]]) -> None:
        for scan, predictions in self._predictions.items():
            name = f"{predictions[0].scan.name or scan[1]} of {scan[0][:8]}"
            first = predictions[0]
            verdict.sent_again += all(p.scan.attempt for p in predictions)
            for other in predictions[1:]:
                same = (first.id, first.p_hgg, first.tumour_ml) == (other.id, other.p_hgg, other.tumour_ml)
                if not same or not np.array_equal(first.mask, other.mask):
                    verdict.wrong["two different predictions"].append(name)
            failures = [failure for failure in self._failures.get(scan, ()) if not failure.retry]
            verdict.retried += any(failure.retry for failure in self._failures.get(scan, ()))
            if failures:
                verdict.wrong["a prediction and a failure"].append(f"{name}: {failures[0].stage}: {failures[0].reason}")
            elif scan in by_scan:
                verdict.wrong["a prediction and a dead letter"].append(f"{name}: {by_scan[scan]}")
        for scan in by_scan:
            if scan not in self._failures and scan not in self._predictions:
                verdict.wrong["a dead letter without a failure message"].append(f"{scan}: {by_scan[scan]}")

    def _judge_batch(
        self,
        verdict: Verdict,
        batch: Batch,
        quiet: Mapping[tuple[Path, str], Answer | str],
        by_scan: Mapping[Scan, set[str]],
    ) -> None:
        rows = batch.rows()
        text = (batch.out / TABLE).read_text().splitlines() if rows else [""]
        if len(text) != len(rows) + 1:
            verdict.wrong["double"].append(f"batch {batch.number}: {len(text) - 1} rows of {len(rows)} scans")
        for name, source in batch.sources.items():
            row = rows.get(name)
            if row is None or row.error.startswith("no answer"):
                verdict.wrong["lost"].append(name)
            elif row.status != "failed":
                verdict.ok += 1
                expected = quiet.get((source, row.bundle))
                if answer_of(row, batch.out / f"{name}_seg.nii.gz") != expected:
                    verdict.wrong["different from the quiet run"].append(f"{name}: {row}, not {expected}")
            else:
                expected = quiet.get((source, ""))
                verdict.dead["as in the quiet run" if row.error == expected else _without_numbers(row.error)] += 1
                scans = self._names[name]
                if not any(row.error == f"{f.stage}: {f.reason}" for scan in scans for f in self._failures[scan]):
                    verdict.wrong["a reason that no stage gave"].append(f"{name}: {row.error}")
                if not any(by_scan.get(scan) for scan in scans):
                    verdict.wrong["failed without a dead letter"].append(f"{name}: {row.error}")

    def _judge_left(self, verdict: Verdict, queue: str, delivery: Delivery) -> None:
        try:
            message = decode(delivery.body)
        except ProtocolError:
            verdict.wrong["left in a queue"].append(f"{queue}: {delivery.message_id}")
            return
        answered = isinstance(message, FailureMessage | PredictionMessage)
        if not answered:
            kind = "a part that waits for ever" if isinstance(message, GradedMessage) else "left in a queue"
            where = f"{queue}: {message.kind} {message.part} of {message.scan.name}, attempt {message.scan.attempt}"
            verdict.wrong[kind].append(where)


def _without_numbers(error: str) -> str:
    """The reason with its digits replaced, so that reasons of one kind are counted together."""
    words = "".join("N" if c.isdigit() else c for c in error).split()
    return " ".join(words)[:110]

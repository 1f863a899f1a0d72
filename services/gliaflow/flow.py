"""An open pipeline as a Python object: scans and requests go in, answers and features come out."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from gliaflow_proto import FailureMessage, PredictionMessage, Queue, SyntheticMessage
from gliaflow_runtime.broker.interface import Broker, BrokerError
from gliaflow_runtime.errors import UsageError
from numpy.typing import NDArray

from gliaflow.answer import Answer
from gliaflow.scans import Input, ScanPath, ScanRequest, as_inputs, check_grade, find_one
from gliaflow.sent_scan import SentScan
from gliaflow.sequences import UNUSED, GivenSequences, SequenceInput, require_read
from gliaflow.submission import NoStage, Submission
from gliaflow.waiting import FOR_FEATURES, FOR_SCANS, Waiting, cause, warn

if TYPE_CHECKING:
    from gliaflow_runner.running import RunningStages

TIMEOUT_S = 1800.0
RESEND = 6  # after 1/6 of the timeout without any answer, open scans are sent again; then after twice that
POLL_S = 0.1  # between two questions to a stream of scans that has none
IN_FLIGHT = 16  # scans sent and not yet answered: enough to keep all stages busy, and fair to other clients


class Stopped(BrokerError):
    """``Flow.stop`` was called while answers were still to come."""


class Flow:
    """An open pipeline. ``gliaflow.open`` makes one. Use it from one thread, and close it: ``with`` does.

    Parameters
    ----------
    broker: a connection that no worker uses.
    stages: the stages, if they run in this process.
    generator, timeout: as for ``open``.
    waiting: reports what the flow waits for.
    sequences: those that are looked for beside the FLAIR, and sent (``wanted_sequences``).
    """

    def __init__(
        self,
        broker: Broker,
        *,
        stages: RunningStages | None = None,
        generator: str = "",
        timeout: float = TIMEOUT_S,
        waiting: Waiting | None = None,
        sequences: Sequence[str] = (),
    ) -> None:
        self.broker, self.sequences = broker, tuple(sequences)
        self._stages, self._generator, self._timeout = stages, generator, timeout
        self._waiting = waiting or Waiting(warn)
        self._running: weakref.WeakSet[Generator[Answer]] = weakref.WeakSet()
        self._stopped = False
        self._resources = ExitStack()

    def submit(
        self,
        scan: ScanPath,
        *,
        grade: str | None = None,
        channel: str | None = None,
        series: str | None = None,
        sequences: Mapping[str, str | PathLike[str]] | None = None,
    ) -> Answer:
        """Submit one scan and wait for its answer.

        A scan that cannot be graded (a broken file, no answer in time) has an answer too: its ``status`` is
        ``failed``, and its ``reason`` says why.

        Parameters
        ----------
        scan: the path or URL of a FLAIR scan (NIfTI), or a folder with one: of DICOM, the FLAIR series in it.
        grade: its class, HGG or LGG, if known. It does not change the answer: stages that learn use it.
        channel: of a 4-D file, the number of the FLAIR volume, from 0.
        series: the DICOM series to take: its SeriesInstanceUID, its number, or a part of its description.
        sequences: by ``t1``, ``t1ce`` and ``t2``, the file of another sequence, or a DICOM series of the study. Without
            it, the sequences are found that ``self.sequences`` names.

        Raises
        ------
        UsageError: there is no such file, it is a folder with several scans, or stages in this process do not read one
            of ``sequences``.
        BrokerError: no stage takes the scan, or the broker is lost.
        """
        given = GivenSequences.of(sequences or {})
        if sequences and isinstance(scan, Input):
            raise UsageError("sequences: an Input has its own; give it these, or give the scan's path")
        if sequences and self._stages:
            require_read(sequences, self._stages.bundle.manifest.input.channels)
        chosen = () if series is None else (series,)
        request = ScanRequest(grade, channel, chosen, self.sequences, given)
        (answer,) = self._answers([scan if isinstance(scan, Input) else find_one(scan, request)])
        return answer

    def submit_all(
        self,
        scans: ScanPath | Iterable[ScanPath],
        *,
        grade: str | None = None,
        channel: str | None = None,
        series: Sequence[str] = (),
    ) -> Iterator[Answer]:
        """Submit scans and give each answer as it comes, in any order.

        Parameters
        ----------
        scans: paths of files, folders and globs, or URLs of them. Of several files or a folder, the FLAIR scans are
            submitted; a Python warning counts what is left out. Of DICOM, the FLAIR series of each study is one scan.
        grade, channel: as for ``submit``, of all of them.
        series: the DICOM series to take, each as for ``submit``.

        Raises
        ------
        UsageError: a path does not exist, or holds no scan.
        BrokerError: no stage takes the scans, or the broker is lost.
        """
        chosen = [series] if isinstance(series, str) else series
        answers = self._answers(as_inputs(scans, ScanRequest(grade, channel, chosen, self.sequences)))
        self._running.add(answers)
        return answers

    def answer_stream(self, scans: Iterator[Input | None]) -> Iterator[Answer]:
        """Submit scans that come while others are in work, and give each answer as it comes.

        Parameters
        ----------
        scans: gives the next scan, or None if none waits now: then it is asked again a moment later. Its end ends the
            stream, once all answers have come.

        Raises
        ------
        BrokerError: no stage takes the scans, or the broker is lost.
        """
        answers = self._answers(scans)
        self._running.add(answers)
        return answers

    def stop(self) -> None:
        """End the streams of answers within a few seconds, from any thread: they raise Stopped."""
        self._stopped = True
        self.broker.hurried = True

    @property
    def stages(self) -> RunningStages | None:
        """The stages, if they run in this process."""
        return self._stages

    def generate(self, grade: str, count: int, *, seed: int = 0) -> NDArray[np.float32]:
        """Synthetic features [count, C, H, W] of a class, HGG or LGG. The same seed gives the same features.

        Raises
        ------
        UsageError: the generator cannot make them. The text says why.
        BrokerError: no generator answers, or the broker is lost.
        """
        parts = self.generate_parts(grade, count, seed=seed)
        return np.concatenate([part.features for part in parts]).astype(np.float32)

    def generate_parts(
        self, grade: str, count: int, *, seed: int = 0, progress: Callable[[int], None] = lambda done: None
    ) -> list[SyntheticMessage]:
        """As ``generate``, but gives the messages, in order: they name generator, bundle and tap, all the same ones.

        While the generator is replaced, two may answer. The features of the first that answers completely are taken.
        """
        grade = check_grade(grade)
        if count < 1:
            raise UsageError(f"count: {count} is below 1")
        sources: dict[tuple[object, ...], dict[int, SyntheticMessage]] = {}
        parts: dict[int, SyntheticMessage] = {}  # those of one source
        done, waited = 0, 0.0
        with self._submission(FOR_FEATURES) as submission:
            wanted = submission.generate(grade, count, seed, self._generator)
            while done < count:
                self._check()
                answer = submission.answer(timeout=1.0)
                if isinstance(answer, FailureMessage):
                    raise UsageError(f"{answer.stage}: {answer.reason}")
                if isinstance(answer, SyntheticMessage) and answer.scan.id == wanted:
                    source = (answer.bundle, answer.generator, answer.tap, answer.features.shape[1:])
                    parts = sources.setdefault(source, {})
                    parts[answer.part[0]] = answer
                    done, waited = sum(len(part.features) for part in parts.values()), 0.0
                    self._waiting.over()
                    progress(done)
                elif (waited := waited + 1.0) >= self._timeout:
                    why = submission.unreadable or "".join(cause(self.broker, FOR_FEATURES))
                    raise NoStage(f"no answer within {self._timeout:g} s: {why}")
                else:
                    self._why(FOR_FEATURES, waited)
        return [parts[index] for index in sorted(parts)]

    def close(self) -> None:
        """Stop the stages in this process, and leave the broker."""
        try:
            for answers in list(self._running):
                with suppress(ValueError):  # another thread is in it, which the closed broker ends
                    answers.close()
        finally:
            self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _answers(self, inputs: Iterable[Input | None]) -> Generator[Answer]:
        """Keep IN_FLIGHT scans in work, and send again those that seem to be lost, and those that met two bundles."""
        source, ended = iter(inputs), False
        sent: dict[str, SentScan] = {}
        quiet = since_sent = 0.0  # seconds of waiting: since the last answer, and since scans were last sent
        waited = 0.0  # seconds of waiting in all
        answered = 0.0  # when the last answer came
        patience = self._timeout / RESEND
        with self._submission(FOR_SCANS) as submission:
            while sent or not ended:
                while not ended and len(sent) < IN_FLIGHT:
                    try:
                        item = next(source)
                    except StopIteration:
                        ended = True
                        break
                    if item is None:
                        break
                    if self._stages:
                        item = self._for_stages(self._stages, item)
                    try:
                        sent[submission.submit(item)] = SentScan(item, time.monotonic())
                        since_sent = 0.0
                    except (OSError, ValueError) as error:
                        yield _not_sent(item, error)
                for scan_id in [scan_id for scan_id, scan in sent.items() if scan.is_due()]:
                    try:
                        submission.submit_again(sent[scan_id].item, sent[scan_id].attempt)
                        since_sent = 0.0
                    except (OSError, ValueError) as error:
                        yield _not_sent(sent.pop(scan_id).item, error)
                self._check()
                pause = 1.0 if ended else POLL_S  # until the source is asked again
                if not sent:
                    time.sleep(0 if ended else pause)
                    continue
                started = time.monotonic()
                message = submission.answer(timeout=min(pause, *(scan.due_in_s() for scan in sent.values())))
                now = time.monotonic()
                quiet, since_sent, waited = (each + now - started for each in (quiet, since_sent, waited))
                if message is None:
                    self._why(FOR_SCANS, quiet)
                if isinstance(message, PredictionMessage | FailureMessage) and message.scan.id in sent:
                    quiet = since_sent = 0.0
                    scan = sent[message.scan.id]
                    if (
                        isinstance(message, FailureMessage)
                        and message.retry
                        and scan.refuse(message.scan.attempt, waited, self._timeout)
                    ):
                        self._waiting.say(f"{message.stage}: {message.reason}; until then, scans are sent again")
                        continue
                    if isinstance(message, FailureMessage) and scan.is_replaced(message.scan.attempt):
                        continue
                    self._waiting.over()
                    patience = self._timeout / RESEND
                    item = sent.pop(message.scan.id).item
                    seconds = round(now - max(scan.sent_at, answered), 3)  # without the wait behind those before it
                    answered = now
                    if isinstance(message, PredictionMessage):
                        yield Answer.of_prediction(item, message, seconds)
                    else:
                        unused = "".join(f"; {text}" for text in item.warnings if UNUSED in text)
                        yield Answer.failed(item, f"{message.stage}: {message.reason}{unused}", seconds)
                elif quiet > self._timeout:
                    why = "".join(cause(self.broker, FOR_SCANS))
                    reason = f"no answer within {self._timeout:g} s: {why}"
                    if submission.unreadable:
                        reason = f"no readable answer within {self._timeout:g} s: {submission.unreadable}"
                    for scan in sent.values():
                        yield Answer.failed(scan.item, reason, round(now - max(scan.sent_at, answered), 3))
                    sent.clear()
                elif since_sent > patience:
                    patience *= 2
                    for scan in sent.values():
                        attempt = scan.attempt + (scan.due_at is None)
                        with suppress(OSError, ValueError):  # the file is gone; the first message may still be answered
                            submission.submit(scan.item, attempt)
                            scan.attempt, scan.due_at = attempt, None
                    since_sent = 0.0

    def _for_stages(self, stages: RunningStages, item: Input) -> Input:
        """The scan for stages in this process: they may read its files, and get only what their bundle reads."""
        if item.sequences:
            channels = stages.bundle.manifest.input.channels
            item = replace(item, sequences={name: each for name, each in item.sequences.items() if name in channels})
        files: list[Input | SequenceInput] = [item, *item.sequences.values()]
        stages.allow([each.root for each in files if each.volume is None])
        return item

    def _submission(self, queues: Sequence[Queue]) -> Submission:
        by_uri = self._stages is not None and queues is FOR_SCANS
        return Submission(
            self.broker,
            by_uri=by_uri,
            patience_s=self._timeout,
            waiting=lambda waited_s, reason: self._why(queues, waited_s, reason),
        )

    def _why(self, queues: Sequence[Queue], waited_s: float, reason: str = "") -> str:
        """Report why the flow waits: the reason, if known. Stages in this process raise their errors (``_check``)."""
        self._check()
        if reason:
            self._waiting.say(reason)
            return reason
        return "" if self._stages else self._waiting.check(self.broker, queues, waited_s)

    def _check(self) -> None:
        if self._stopped:
            raise Stopped("the flow is stopped")
        if self._stages:
            self._stages.check()


def _not_sent(item: Input, error: OSError | ValueError) -> Answer:
    reason = str(getattr(error, "strerror", None) or error)
    return Answer.failed(item, reason if item.source in reason else f"{item.source}: {reason}")

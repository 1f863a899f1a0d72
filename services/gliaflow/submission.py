"""A client's exchange with the stages: scans and requests go out, answers come back."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import BinaryIO, Self

from gliaflow_plugins.nifti_bytes import MAX_FILE_BYTES
from gliaflow_plugins.regular_files import open_regular
from gliaflow_proto import (
    FailureMessage,
    GenerateMessage,
    Message,
    PredictionMessage,
    ProtocolError,
    Scan,
    ScanMessage,
    SequenceSource,
    Source,
    SyntheticMessage,
    decode,
    encode,
    message_id,
    new_trace,
    routing_key,
    submission_queue,
    upload_queue,
)
from gliaflow_proto.routing import check_route
from gliaflow_runtime import tracing
from gliaflow_runtime.broker.interface import AccessDenied, Broker, BrokerError, NoExchange, Refused, Unroutable

from gliaflow.scans import Input
from gliaflow.sequences import SequenceInput

BY_VALUE_BYTES = 6 * 2**20  # a larger scan is sent through an upload queue, in chunks of this size
ROUTE_WAIT_S = 60.0  # how long stages may take to start
START = "start the stages: gliaflow serve STAGE, or docker compose up"
NO_EXCHANGE = (
    "no stage of this version has run on this broker yet, or the broker's definitions are of another version. Import "
    f"those of this version (docs/upgrading.md), then {START}"
)


class NoStage(BrokerError):
    """No stage takes the message: none has run on this broker, or they are too busy or stopped."""


class Submission:
    """One client's exchange with the pipeline. Its answers come to a queue of its own.

    Parameters
    ----------
    broker: a connection that no worker uses.
    by_uri: send paths instead of bytes. For stages in this process, which see the same files.
    patience_s: how long to wait for room in a full queue.
    waiting: called about once a second while a message waits to be sent, with the seconds and with the reason, if it is
        known; returns the reason.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        by_uri: bool,
        patience_s: float = 600,
        waiting: Callable[[float, str], str] = lambda waited_s, reason: reason,
    ) -> None:
        self.id = uuid.uuid4().hex
        self._broker, self._by_uri, self._patience_s, self._waiting = broker, by_uri, patience_s, waiting
        self._uploads: dict[str, list[str]] = {}  # by scan
        self.unreadable = ""  # why the last message that could not be read was skipped
        self._queue = submission_queue(self.id)
        broker.declare(self._queue)
        self._consumer = broker.consume(self._queue, prefetch=4)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        hurried = self._broker.hurried
        self._broker.hurried = True  # what is not deleted now expires
        with contextlib.suppress(BrokerError):
            self._consumer.close()
            self._broker.delete(self._queue.name)
            for scan in list(self._uploads):
                self._forget_uploads(scan)
        self._broker.hurried = hurried

    def submit(self, item: Input, attempt: int = 0) -> str:
        """Send a scan and return its id. A higher ``attempt`` replaces the earlier ones.

        Raises
        ------
        OSError, ValueError: the file cannot be read, or is not a scan.
        NoStage: no preprocessor has declared its queue.
        """
        scan_id = self._scan_id(item)
        scan = Scan(
            id=scan_id,
            submission=self.id,
            name=item.name,
            patient=item.patient,
            cohort=item.cohort,
            label=item.grade,
            sent=time.time(),
            attempt=attempt,
        )
        source, sequences = self._sources(item, scan_id)
        self._publish(
            ScanMessage(
                id=message_id(self.id, scan_id, "scan"),
                scan=scan,
                source=source,
                channel=item.channel,
                sequences=sequences,
            )
        )
        return scan_id

    def submit_again(self, item: Input, attempt: int) -> None:
        """Send a scan again whose earlier attempts have ended, so that nobody needs their uploads any more.

        Raises as ``submit`` does.
        """
        scan_id = self._scan_id(item)
        uploads = self._uploads.pop(scan_id, [])
        try:
            self.submit(item, attempt)
        finally:
            for queue in uploads:
                self._broker.delete(queue)

    def generate(self, label: str, count: int, seed: int, generator: str = "") -> str:
        """Request synthetic features, of the named generator or of the one that is served; returns the answers' id.

        Raises NoStage as ``submit`` does.
        """
        scan_id = message_id(self.id, label, count, seed)
        self._publish(
            GenerateMessage(
                id=message_id(scan_id, "generate"),
                scan=Scan(id=scan_id, submission=self.id),
                label=label,
                count=count,
                seed=seed,
                generator=generator,
            )
        )
        return scan_id

    def answer(self, timeout: float) -> PredictionMessage | SyntheticMessage | FailureMessage | None:
        """The next answer, or None if no readable one came within ``timeout`` seconds.

        The same answer may come twice.
        """
        until = time.monotonic() + timeout
        while (delivery := self._consumer.next(max(0.0, until - time.monotonic()))) is not None:
            self._consumer.ack(delivery)
            try:
                message = decode(delivery.body)
                check_route(message, delivery.exchange, delivery.key)
                if not isinstance(message, PredictionMessage | SyntheticMessage | FailureMessage):
                    raise ProtocolError(f"kind: a {message.kind} message is not an answer")
            except ProtocolError as error:  # from a stage of another version, or from an untrusted client
                self.unreadable = str(error)
                continue
            with tracing.span("answer", message):
                pass  # where the trace ends
            if not (isinstance(message, FailureMessage) and message.retry):
                self._forget_uploads(message.scan.id)
            return message
        return None

    def _scan_id(self, item: Input) -> str:
        return item.id or message_id(f"cohort {item.cohort}" if item.cohort else self.id, item.name)

    def _forget_uploads(self, scan_id: str) -> None:
        for queue in self._uploads.pop(scan_id, ()):
            self._broker.delete(queue)

    def _sources(self, item: Input, scan_id: str) -> tuple[Source, dict[str, SequenceSource]]:
        """The sources of the FLAIR and of the other sequences. If one cannot be read, no upload of theirs is left."""
        before = len(self._uploads.get(scan_id, ()))
        times = 1 + sum(_is_in_file_of(item, each) for each in item.sequences.values())  # that the message has the file
        try:
            source = self._source(item, scan_id, BY_VALUE_BYTES // times)
            room = BY_VALUE_BYTES - times * len(source.data or b"")  # of the message
            sequences = {}
            for name, each in item.sequences.items():
                own = source
                if not _is_in_file_of(item, each):
                    own = self._sequence_source(name, each, scan_id, room)
                    room -= len(own.data or b"")
                sequences[name] = SequenceSource(source=own, channel=each.channel)
        except (OSError, ValueError):
            uploads = self._uploads.get(scan_id, [])
            while len(uploads) > before:
                self._broker.delete(uploads.pop())
            raise
        return source, sequences

    def _sequence_source(self, name: str, each: SequenceInput, scan_id: str, room: int) -> Source:
        """As ``_source``; errors begin with the name of the sequence."""
        try:
            return self._source(each, scan_id, room)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise ValueError(f"{name}: {why if str(each.path) in why else f'{each.path}: {why}'}") from None

    def _source(self, item: Input | SequenceInput, scan_id: str, room: int) -> Source:
        """The file's path or URI; or its bytes, of which ``room`` fit into the message."""
        if item.uri:
            return Source(uri=item.uri)
        if item.volume is not None:
            data = item.volume.read()
            return self._by_value(io.BytesIO(data), len(data), scan_id, room)
        with open_regular(item.path) as file:
            size = os.fstat(file.fileno()).st_size
            if self._by_uri and size <= MAX_FILE_BYTES:
                return Source(uri=item.path.resolve().as_uri())
            return self._by_value(file, size, scan_id, room)

    def _by_value(self, file: BinaryIO, size: int, scan_id: str, room: int) -> Source:
        if size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"over the limit of {MAX_FILE_BYTES} bytes")
        data = file.read(BY_VALUE_BYTES)
        rest = file.read(1)
        if not rest and len(data) <= room:
            return Source(data=data)
        queue = upload_queue(uuid.uuid4().hex)  # its own: another client, or a retry, may send the same scan
        self._broker.declare(queue)
        self._uploads.setdefault(scan_id, []).append(queue.name)
        chunks = 0
        chunk = data
        while chunk:
            if chunks * BY_VALUE_BYTES > MAX_FILE_BYTES:
                raise OSError(errno.EFBIG, f"grew over the limit of {MAX_FILE_BYTES} bytes")
            self._broker.publish(queue.keys[0], chunk, message_id=str(chunks))
            chunks += 1
            chunk = rest + file.read(BY_VALUE_BYTES - len(rest))
            rest = b""
        return Source(upload=queue.name, chunks=chunks)

    def _publish(self, message: Message) -> None:
        with tracing.span("submit", message, kind="PRODUCER") as trace:
            self._publish_traced(replace(message, trace=trace or new_trace()))

    def _publish_traced(self, message: Message) -> None:
        body, key = encode(message), routing_key(message)
        started, pause = time.monotonic(), 0.02
        while True:
            try:
                self._broker.publish(key, body, message_id=message.id)
                return
            except AccessDenied as error:
                if message.scan.label and isinstance(message, ScanMessage):
                    raise AccessDenied(
                        "labelled scans need a right of their own, since they change what is trained: connect as the "
                        f"user annotator (docs/security.md), or send the scans without their grades ({error})"
                    ) from None
                raise
            except Refused:  # the queue is full: the stages are behind
                waited_s = time.monotonic() - started
                reason = self._waiting(waited_s, "")
                if waited_s > self._patience_s:
                    raise NoStage(
                        f"the queue for {message.kind!r} messages has been full for {self._patience_s:g} s: "
                        f"{reason or 'are its stages running? (gliaflow doctor)'}"
                    ) from None
            except Unroutable as error:
                waited_s = time.monotonic() - started
                missing = f"{error}: {NO_EXCHANGE}" if isinstance(error, NoExchange) else ""
                self._waiting(waited_s, missing)
                if waited_s > ROUTE_WAIT_S:
                    none = f"none that does has run on this broker yet ({START})"
                    raise NoStage(f"no stage takes {message.kind!r} messages: {missing or none}") from None
            time.sleep(pause)
            pause = min(1.0, 2 * pause)


def _is_in_file_of(item: Input, each: SequenceInput) -> bool:
    """Whether a sequence is another volume of the scan's own 4-D file: then both have one path, URI or upload."""
    return (each.path, each.uri, each.volume) == (item.path, item.uri, item.volume)

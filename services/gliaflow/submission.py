"""A submission: scans sent into the pipeline, and the answers to them as they come."""

from __future__ import annotations

import errno
import io
import os
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from gliaflow_plugins.contracts import Volume
from gliaflow_preprocessor.sources import MAX_FILE_BYTES
from gliaflow_proto import (
    FailureMessage,
    GenerateMessage,
    Message,
    PredictionMessage,
    ProtocolError,
    Scan,
    ScanMessage,
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
from gliaflow_runtime import tracing
from gliaflow_runtime.broker.interface import Broker, Refused, Unroutable
from gliaflow_runtime.files import open_ordinary

BY_VALUE_BYTES = 6 * 2**20  # a larger scan travels through an upload queue, in chunks of this size
ROUTE_WAIT_S = 60.0  # how long stages may take to come up


class NoStage(Exception):
    """No stage listens: the message has nowhere to go."""


@dataclass(frozen=True)
class Input:
    """One scan to submit. ``name`` is unique within the submission.

    A scan with a ``uri`` is read by the preprocessor; ``path`` then is its place in the store.
    ``volume`` gives its bytes where ``path`` is no NIfTI file. A scan of a ``cohort`` has the same id whenever it is
    sent, so that a feature store keeps it once.
    """

    path: Path
    name: str
    patient: str
    grade: str | None = None
    channel: str | None = None
    cohort: str = ""
    volume: Volume | None = None
    uri: str = ""

    @property
    def where(self) -> str:
        """Its URI or path, for people."""
        return self.uri or str(self.path)


class Submission:
    """One client's exchange with the pipeline. Its answers come to a queue of its own.

    Parameters
    ----------
    broker: a connection, not shared with a worker.
    by_uri: send paths instead of bytes: for stages in this process, which see the same files.
    patience_s: how long to wait for room in a full queue.
    """

    def __init__(self, broker: Broker, *, by_uri: bool, patience_s: float = 600) -> None:
        self.id = uuid.uuid4().hex
        self._broker, self._by_uri, self._patience_s = broker, by_uri, patience_s
        self._uploads: dict[str, list[str]] = {}  # by scan
        self.unreadable = ""  # why the last answer was passed over that could not be read
        queue = submission_queue(self.id)
        broker.declare(queue)
        self._queue = queue
        self._consumer = broker.consume(queue, prefetch=4)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._consumer.close()
        self._broker.delete(self._queue.name)
        for scan in list(self._uploads):
            self._forget_uploads(scan)

    def submit(self, item: Input, attempt: int = 0) -> str:
        """Send a scan; returns its id. A higher ``attempt`` takes the place of those before it.

        Raises
        ------
        OSError, ValueError: the file cannot be read, or is no scan.
        NoStage: no preprocessor has declared its queue.
        """
        scan_id = message_id(f"cohort {item.cohort}" if item.cohort else self.id, item.name)
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
        if item.uri:
            source = Source(uri=item.uri)
        elif item.volume is not None:
            data = item.volume.read()
            source = self._by_value(io.BytesIO(data), len(data), scan_id)
        elif self._by_uri:
            source = self._by_reference(item.path)
        else:
            with open_ordinary(item.path) as file:
                source = self._by_value(file, os.fstat(file.fileno()).st_size, scan_id)
        self._publish(
            ScanMessage(id=message_id(self.id, scan_id, "scan"), scan=scan, source=source, channel=item.channel)
        )
        return scan_id

    def generate(self, label: str, count: int, seed: int, generator: str = "") -> str:
        """Ask for synthetic features, of one generator or whichever is served; returns the id under which they come.

        Raises NoStage as ``submit`` does.
        """
        scan_id = message_id(self.id, label, count, seed)
        scan = Scan(id=scan_id, submission=self.id)
        self._publish(
            GenerateMessage(
                id=message_id(scan_id, "generate"),
                scan=scan,
                label=label,
                count=count,
                seed=seed,
                generator=generator,
            )
        )
        return scan_id

    def answer(self, timeout: float) -> PredictionMessage | SyntheticMessage | FailureMessage | None:
        """The next answer, or None when ``timeout`` seconds brought none that can be read.

        The same answer may come twice.
        """
        until = time.monotonic() + timeout
        while (delivery := self._consumer.next(max(0.0, until - time.monotonic()))) is not None:
            self._consumer.ack(delivery)
            try:
                message = decode(delivery.body)
                if not isinstance(message, PredictionMessage | SyntheticMessage | FailureMessage):
                    raise ProtocolError(f"kind: a {message.kind} message is no answer")
            except ProtocolError as error:  # of a stage of another version, or of whoever else may publish
                self.unreadable = str(error)
                continue
            with tracing.span("answer", message):
                pass  # where the trace ends
            self._forget_uploads(message.scan.id)
            return message
        return None

    def _forget_uploads(self, scan_id: str) -> None:
        for queue in self._uploads.pop(scan_id, ()):
            self._broker.delete(queue)

    def _by_reference(self, path: Path) -> Source:
        with open_ordinary(path):
            return Source(uri=path.resolve().as_uri())

    def _by_value(self, file: BinaryIO, size: int, scan_id: str) -> Source:
        if size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"over the limit of {MAX_FILE_BYTES} bytes")
        data = file.read(BY_VALUE_BYTES)
        rest = file.read(1)
        if not rest:
            return Source(data=data)
        queue = upload_queue(uuid.uuid4().hex)  # its own: another may be sending the same scan, or we again
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
            except Refused:  # the queue is full: the stages are busy with what is in it
                if time.monotonic() - started > self._patience_s:
                    raise NoStage(
                        f"the queue for {message.kind!r} messages has been full for {self._patience_s:g} s: "
                        "are its stages running? (gliaflow doctor)"
                    ) from None
            except Unroutable:
                if time.monotonic() - started > ROUTE_WAIT_S:
                    raise NoStage(
                        f"nobody takes {message.kind!r} messages: no stage that does has run on this broker yet "
                        "(start the stages: gliaflow serve STAGE, or docker compose up)"
                    ) from None
            time.sleep(pause)
            pause = min(1.0, 2 * pause)

"""The loop of all stages: receive a message, compute, publish with confirm, acknowledge."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog
from gliaflow_proto import (
    FailureMessage,
    Message,
    ProtocolError,
    Queue,
    Scan,
    decode,
    is_announcement,
    message_id,
    read_origin,
    routing_key,
)
from gliaflow_proto.routing import check_route

from gliaflow_runtime import metrics, tracing
from gliaflow_runtime.broker.interface import Broker, BrokerError, Consumer, Delivery, Refused, Unroutable
from gliaflow_runtime.encoded_outcome import EncodedOutcome, encode_outcome, encode_within_limit
from gliaflow_runtime.logs import where

UNAVAILABLE_PAUSE_S = 2.0  # the first pause after TemporarilyUnavailable; each further pause is twice as long
ANNOUNCE_S = 0.5  # how long a stage tries to publish the answers and failures of one delivery to a full queue
EX_SOFTWARE = 70  # sysexits.h: an internal fault; a supervisor restarts the process

log = structlog.get_logger()


class InvalidInput(Exception):
    """The message can never be processed: it becomes a dead letter, with this text as the reason."""


class OtherBundle(Exception):
    """The message belongs to another bundle than the stage's, as while the stages change to another bundle.

    It can never be processed here, but the scan is fine: the stage's ``Worker`` drops the message and announces a
    failure with ``retry``, so that the client sends the scan again. A stage that announces no failures only drops it.

    Parameters
    ----------
    what: the message's content, for example ``slices``.
    theirs, ours: the ids of the bundles of the message and of the stage.
    """

    def __init__(self, what: str, theirs: str, stage: str, ours: str) -> None:
        super().__init__(
            f"bundle: the {what} are of {theirs}, but this {stage} serves {ours}; give all stages the same bundle"
        )


class TemporarilyUnavailable(Exception):
    """A service that the message needs does not answer now: retry with longer pauses. The text names no patient."""


@dataclass(frozen=True)
class Outcome:
    """The result of a delivery: messages to publish, then deliveries to acknowledge or to dead-letter.

    ``done`` is None in the usual case, and means the delivery that was handled. A stage that collects deliveries (the
    assembler) returns an empty list to keep one open, and later lists all that it kept.

    ``too_large`` gives the outcome instead of this one, if a message to publish is over the limit on a message. None:
    the delivery that was handled fails.

    ``encoded`` is called once all messages to publish are encoded. What a stage forgets then must be kept until then:
    if the encoding fails, the delivery that was handled comes again.
    """

    publish: Iterable[Message] = ()
    done: list[Delivery] | None = None
    dead: list[tuple[Delivery, str]] = field(default_factory=list)
    too_large: Callable[[], Outcome] | None = None
    encoded: Callable[[], None] | None = None


class Stage(ABC):
    """One kind of work: the queue of its messages, and how one message is handled."""

    name: str
    queue: Queue
    prefetch: int | None = None  # None: from the settings
    max_attempts: int | None = None  # None: from the settings
    announces_failures: bool = True  # False if scans are answered also without this stage
    contents: bool | Collection[str] = True  # of which kinds of messages it reads the tensors (``decode``)
    optional: bool = False  # its service also runs on a broker that lacks its queue
    fetching: bool = False  # ``handle`` waits for a store or an upload; a process that ends does not wait for that

    @abstractmethod
    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        """Process one message.

        Raises
        ------
        InvalidInput, ProtocolError: the message can never be processed.
        OtherBundle: the message belongs to another bundle; the client sends the scan again.
        TemporarilyUnavailable: the message cannot be processed now.
        Exception: any other error counts as temporary; the message is retried a limited number of times.
        """

    def idle(self) -> Outcome | None:
        """Called about once a second between messages, for work that depends on time."""
        return None

    def lost(self) -> None:
        """Called after a lost connection: all open deliveries are delivered again, possibly to another consumer."""
        return None

    def leaves(self, broker: Broker) -> bool:
        """Whether the stage leaves its queue to another consumer, and then joins again behind the others.

        Called about once a second. If so, all open deliveries are delivered again, and ``lost`` is called.
        """
        return False


class Worker:
    """Runs one stage on one broker connection until ``stop`` is called.

    Parameters
    ----------
    broker: a connection that no other worker uses.
    prefetch: the most open deliveries. If one ends the process, those that wait also count as attempted.
    max_attempts: after so many deliveries, a message becomes a dead letter, since it may be what ends the process.
    deadline_s: a message that takes longer ends the process, so that the broker delivers it to another one.
        None: no limit.
    """

    def __init__(
        self,
        stage: Stage,
        broker: Broker,
        *,
        prefetch: int = 1,
        max_attempts: int = 3,
        deadline_s: float | None = None,
    ) -> None:
        self.stage = stage
        self.broker = broker
        self.prefetch = stage.prefetch or prefetch
        self.max_attempts = stage.max_attempts or max_attempts
        self.deadline_s = deadline_s
        self.consuming = False
        self._stop = threading.Event()
        self._computing = False
        self._taken: float | None = None  # when the message in work was received
        self._show_zeros()
        self._log = log.bind(stage=stage.name)

    def stop(self) -> None:
        """Finish the message in work, return the others to the queue, and end ``run``. Any thread may call this.

        A result that the broker does not take within seconds is dropped: the broker delivers its message again.
        """
        self._stop.set()
        self.broker.hurried = True

    @property
    def busy(self) -> bool:
        """Whether the stage computes now. It is not busy while it waits for the broker or a store."""
        return self._computing and not self.stage.fetching

    def ready(self) -> bool:
        """Whether the broker is connected and the stage consumes."""
        return self.consuming and self.broker.connected

    def run(self) -> None:
        """Process messages until ``stop`` is called. Raises BrokerError if the broker is lost permanently."""
        try:
            self._run()
        except BrokerError as error:
            if not self._stop.is_set():
                raise
            self._log.warning(
                "stopped without the broker; it delivers unacknowledged messages again", reason=str(error)
            )
        else:
            self._log.info("drained")
        finally:
            self.consuming = False

    def _run(self) -> None:
        self.broker.declare(self.stage.queue)
        while not self._stop.is_set():
            with self.broker.consume(self.stage.queue, self.prefetch) as consumer:
                self.consuming = True
                self._log.info("consuming", queue=self.stage.queue.name)
                self._consume(consumer)
            if not self._stop.is_set():
                self._log.info("left to another", queue=self.stage.queue.name)
                self.stage.lost()

    def _consume(self, consumer: Consumer) -> None:
        """Take deliveries until ``stop`` is called, or until the stage leaves its queue to another consumer."""
        last_idle = time.monotonic()
        lost = 0
        while not self._stop.is_set():
            started = time.monotonic()
            delivery = consumer.next(timeout=0.5)
            self._spent("wait", started)
            if consumer.lost != lost:
                lost = consumer.lost
                self.stage.lost()
            if delivery is not None and delivery.tag > lost:
                self._taken = time.monotonic()
                self._carry_out(self._work_on(delivery, consumer), consumer)
                self._taken = None
            if time.monotonic() - last_idle > 1:
                last_idle = time.monotonic()
                self._carry_out(encode_outcome(self.stage.idle()), consumer)
                if self.stage.leaves(self.broker):
                    return

    def _work_on(self, delivery: Delivery, consumer: Consumer) -> EncodedOutcome:
        """Decode, compute and encode; an error leads to a dead letter or another attempt."""
        started = time.monotonic()
        self._computing = True
        message: Message | None = None
        metrics.REDELIVERED.labels(self.stage.name).inc(delivery.attempts > 0)
        try:
            with _deadline(self.deadline_s, self.stage.name, delivery):
                message = decode(delivery.body, contents=self.stage.contents)
                check_route(message, *delivery.route)
                with tracing.span(self.stage.name, message, attempt=delivery.attempts) as trace:
                    if delivery.attempts >= self.max_attempts:
                        raise InvalidInput(
                            f"gave up after {delivery.attempts} attempts: this message may be what ends the process"
                        )
                    return encode_outcome(self.stage.handle(message, delivery), delivery, (message.trace, trace))
        except (InvalidInput, ProtocolError) as error:
            return self._failed(delivery, message, str(error), consumer)
        except OtherBundle as error:
            return self._failed(delivery, message, str(error), consumer, retry=True)
        except BrokerError:
            raise
        except TemporarilyUnavailable as error:
            self._log.warning("unavailable", scan=message.scan.id if message else None, reason=str(error))
            if delivery.attempts + 1 >= self.max_attempts:
                return self._failed(delivery, message, str(error), consumer)
            self._stop.wait(min(30, UNAVAILABLE_PAUSE_S * 2**delivery.attempts))
            return EncodedOutcome(requeue=[delivery])
        except Exception as error:
            self._log.exception("fault", scan=message.scan.id if message else None, attempt=delivery.attempts + 1)
            if delivery.attempts + 1 >= self.max_attempts:
                return self._failed(
                    delivery, message, f"unexpected {where(error)}; the log of the stage has more", consumer
                )
            self._stop.wait(min(2.0, 0.2 * 2**delivery.attempts))
            return EncodedOutcome(requeue=[delivery])
        finally:
            self._computing = False
            self._spent("compute", started)
            metrics.MESSAGE_SECONDS.labels(self.stage.name).observe(time.monotonic() - started)

    def _failed(
        self, delivery: Delivery, message: Message | None, reason: str, consumer: Consumer, retry: bool = False
    ) -> EncodedOutcome:
        """Dead-letter a delivery, and announce the failure to the client that waits for the scan.

        Neither is done if the connection was lost meanwhile: the message is delivered again, and perhaps another
        process has answered it already. With ``retry``, the client sends the scan again, and there is no dead letter;
        except if no client may be waiting: the scan has no submission, or an operator replayed one of its dead letters.
        """
        message = message or _readable_part(delivery)
        scan, trace = (message.scan.id, message.trace[3:35]) if message else (None, None)
        if delivery.tag <= consumer.lost:
            self._log.warning("given to another", scan=scan, trace=trace, reason=reason)
            return EncodedOutcome()
        if retry and message is not None and message.scan.submission and not message.scan.replayed:
            metrics.OTHER_BUNDLE.labels(self.stage.name).inc()
            event = "scan to be sent again" if self.stage.announces_failures else "passed over"
            self._log.warning(event, scan=scan, trace=trace, reason=reason)
            news = [failure(message, self.stage.name, reason, retry=True)] if self.stage.announces_failures else []
            return EncodedOutcome([encode_within_limit(each) for each in news], done=[delivery])
        self._log.warning("dead letter", scan=scan, trace=trace, reason=reason)
        if message is None or is_announcement(message) or not self.stage.announces_failures:
            return EncodedOutcome(dead=[(delivery, reason)])
        return EncodedOutcome(
            [encode_within_limit(failure(message, self.stage.name, reason))], dead=[(delivery, reason)]
        )

    def _carry_out(self, result: EncodedOutcome, consumer: Consumer) -> None:
        """Publish all messages, wait for the confirms, and only then settle the deliveries."""
        started = time.monotonic()
        for letter, reason in result.dead:  # before the announcement, so that its reader finds the dead letter
            self.broker.dead_letter(letter, reason)
        patience_s = ANNOUNCE_S
        for message, body in result.publish:
            patience_s -= self._publish(message, body, patience_s)
        for letter in [*result.done, *(letter for letter, _ in result.dead)]:
            consumer.ack(letter)
        for letter in result.requeue:
            consumer.requeue(letter)
        for outcome, count in (("done", result.done), ("dead", result.dead), ("requeued", result.requeue)):
            metrics.MESSAGES.labels(self.stage.name, outcome).inc(len(count))
        if result.done:
            metrics.LAST_SUCCESS.labels(self.stage.name).set_to_current_time()
        self._spent("publish", started)

    def _publish(self, message: Message, body: bytes, patience_s: float) -> float:
        """Publish one message; while its queue is full or not declared yet, wait and retry. Returns the seconds waited.

        An announcement is retried for ``patience_s`` at most: the full queue may be a client's that refuses messages on
        purpose, or the assembler's own. RabbitMQ has given the announcement to all other queues.
        """
        key = routing_key(message)
        waited, pause = 0.0, 0.05
        while True:
            try:
                self.broker.publish(key, body, message_id=message.id, mandatory=not is_announcement(message))
                break
            except (Refused, Unroutable) as error:
                if self._stop.is_set():
                    raise  # the process ends; the delivery is not acknowledged and comes again
                metrics.FULL.labels(self.stage.name).inc()
                if is_announcement(message) and waited >= patience_s:
                    self._log.error("announcement dropped", key=key, reason=str(error))
                    return waited
                self._log.warning("publish waits", key=key, reason=str(error))
                started = time.monotonic()
                self._stop.wait(pause * random.uniform(0.5, 1.5))
                waited += time.monotonic() - started
                pause = min(5.0, 2 * pause)
        metrics.PUBLISHED.labels(self.stage.name, message.kind).inc()
        metrics.BYTES.labels(self.stage.name).inc(len(body))
        return waited

    def _show_zeros(self) -> None:
        """Start all counters at 0: Prometheus computes no rate from a counter's first sample."""
        name = self.stage.name
        for doing in ("wait", "compute", "publish"):
            metrics.SECONDS.labels(name, doing)
        for outcome in ("done", "dead", "requeued"):
            metrics.MESSAGES.labels(name, outcome)
        for metric in (metrics.REDELIVERED, metrics.FULL, metrics.OTHER_BUNDLE, metrics.MESSAGE_SECONDS):
            metric.labels(name)
        metrics.WORKING.labels(name).set_function(lambda: time.monotonic() - taken if (taken := self._taken) else 0.0)

    def _spent(self, doing: str, started: float) -> None:
        metrics.SECONDS.labels(self.stage.name, doing).inc(time.monotonic() - started)


def failure(message: Message, stage: str, reason: str, *, retry: bool = False) -> FailureMessage:
    """The announcement that a stage gave up on a message. ``retry``: see ``FailureMessage``."""
    return FailureMessage(
        id=message_id(message.id, stage, "failure"),
        scan=message.scan,
        part=message.part,
        trace=message.trace,
        stage=stage,
        reason=reason[:4000].encode("utf-8", "replace").decode(),  # a file's name may not be valid UTF-8
        retry=retry,
    )


def _readable_part(delivery: Delivery) -> Message | None:
    """The id and scan of a message that ``decode`` refuses, for the failure that its sender gets.

    None if the message names no sender, or is an announcement: a failure that answers a failure could make another one.
    """
    origin, announcements = read_origin(delivery.body), ("prediction", "synthetic", "failure")
    if origin.submission is None or origin.kind in announcements or delivery.key.partition(".")[0] in announcements:
        return None
    scan = Scan(id=origin.scan, submission=origin.submission, attempt=origin.attempt)
    return Message(id=hashlib.sha256(delivery.body).hexdigest(), scan=scan)


@contextmanager
def _deadline(seconds: float | None, stage: str, delivery: Delivery) -> Iterator[None]:
    """End the process if the block takes longer: there is no other way to stop a thread that hangs."""

    def end() -> None:
        log.error("deadline passed, ending the process", stage=stage, message=delivery.message_id, seconds=seconds)
        os._exit(EX_SOFTWARE)

    timer = threading.Timer(seconds or 0, end)
    timer.daemon = True
    if seconds:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()

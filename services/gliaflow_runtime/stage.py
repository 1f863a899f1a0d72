"""A stage's life: take a message, compute, publish with confirm, acknowledge. The one loop that all stages run in."""

from __future__ import annotations

import os
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import structlog
from gliaflow_proto import (
    MAX_MESSAGE_BYTES,
    FailureMessage,
    Message,
    ProtocolError,
    Queue,
    decode,
    encode,
    is_announcement,
    message_id,
    routing_key,
)

from gliaflow_runtime import metrics, tracing
from gliaflow_runtime.broker.interface import Broker, BrokerError, Consumer, Delivery, Refused, Unroutable
from gliaflow_runtime.logs import where

AWAY_S = 2.0  # the first pause where something is away; each is twice as long as the one before
EX_SOFTWARE = 70  # sysexits.h: an internal fault, so that a supervisor starts the process again

log = structlog.get_logger()


class InvalidInput(Exception):
    """The message can never be worked on: it goes to the dead letters, with this text as the reason."""


class Away(Exception):
    """What the message needs does not answer now: it is tried again with longer pauses; the text may be shown."""


@dataclass(frozen=True)
class Outcome:
    """What became of a delivery: messages to publish, then deliveries that are done with or dead.

    ``done`` is None for the usual case: the delivery that was handled. A stage that collects (the assembler) leaves
    it empty to keep a delivery open, and later names all that it kept.
    """

    publish: Iterable[Message] = ()
    done: list[Delivery] | None = None
    dead: list[tuple[Delivery, str]] = field(default_factory=list)


class Stage(ABC):
    """One kind of work: the queue it takes messages from, and what it makes of one."""

    name: str
    queue: Queue
    prefetch: int | None = None  # None: as in the settings
    max_attempts: int | None = None  # None: as in the settings
    announces_failures: bool = True  # False for side work, without which a scan is answered all the same

    @abstractmethod
    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        """Work on one message.

        Raises
        ------
        InvalidInput, ProtocolError: it can never be worked on.
        Away: it cannot be worked on now.
        Exception: anything else is taken for a passing fault; the message is tried again, a bounded number of times.
        """

    def idle(self) -> Outcome | None:
        """Called about once a second between messages, for work that is due by time."""
        return None

    def lost(self) -> None:
        """Called when the connection was lost: each delivery that was kept open comes again, perhaps to another."""
        return None


class Worker:
    """Runs one stage on one broker connection until it is told to stop.

    Parameters
    ----------
    stage: what to run.
    broker: the connection, this worker's own.
    prefetch: deliveries held at a time. Those that wait count as attempted when the one in work ends the process.
    max_attempts: deliveries of one message after which it is a dead letter: it may be what kills the process.
    deadline_s: a message in work for longer ends the process, so that the broker gives it to another.
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
        self._taken: float | None = None  # when the message in work was
        self._show_zeros()
        self._log = log.bind(stage=stage.name)

    def stop(self) -> None:
        """Drain: finish the message in work, give back the rest, and return from ``run``. From any thread."""
        self._stop.set()

    def ready(self) -> bool:
        """Whether it is consuming from a broker that is connected."""
        return self.consuming and self.broker.connected

    def run(self) -> None:
        """The loop. Returns once ``stop`` was called.

        Raises
        ------
        BrokerError: the broker is lost for good.
        """
        self.broker.declare(self.stage.queue)
        with self.broker.consume(self.stage.queue, self.prefetch) as consumer:
            self.consuming = True
            self._log.info("consuming", queue=self.stage.queue.name)
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
                    self._carry_out(_plan(self.stage.idle()), consumer)
            self.consuming = False
        self._log.info("drained")

    def _work_on(self, delivery: Delivery, consumer: Consumer) -> _Plan:
        """Decode, compute and encode; a fault becomes a dead letter or another attempt."""
        started = time.monotonic()
        message: Message | None = None
        metrics.REDELIVERED.labels(self.stage.name).inc(delivery.attempts > 0)
        try:
            with _Deadline(self.deadline_s, self.stage.name, delivery):
                message = decode(delivery.body)
                with tracing.span(self.stage.name, message, attempt=delivery.attempts) as trace:
                    if delivery.attempts >= self.max_attempts:
                        raise InvalidInput(
                            f"gave up after {delivery.attempts} attempts: it may be what ends the process"
                        )
                    return _plan(self.stage.handle(message, delivery), delivery, (message.trace, trace))
        except (InvalidInput, ProtocolError) as error:
            return self._failed(delivery, message, str(error), consumer)
        except BrokerError:
            raise
        except Away as error:
            self._log.warning("away", scan=message.scan.id if message else None, reason=str(error))
            if delivery.attempts + 1 >= self.max_attempts:
                return self._failed(delivery, message, str(error), consumer)
            self._stop.wait(min(30, AWAY_S * 2**delivery.attempts))
            return _Plan(requeue=[delivery])
        except Exception as error:
            self._log.exception("fault", scan=message.scan.id if message else None, attempt=delivery.attempts + 1)
            if delivery.attempts + 1 >= self.max_attempts:
                return self._failed(
                    delivery, message, f"unexpected {where(error)}; the log of the stage has more", consumer
                )
            time.sleep(min(2.0, 0.2 * 2**delivery.attempts))
            return _Plan(requeue=[delivery])
        finally:
            self._spent("compute", started)
            metrics.MESSAGE_SECONDS.labels(self.stage.name).observe(time.monotonic() - started)

    def _failed(self, delivery: Delivery, message: Message | None, reason: str, consumer: Consumer) -> _Plan:
        """A dead letter, and the news of it to whoever waits for the scan.

        Not where the delivery was lost meanwhile: it comes again, or another has it, and has perhaps answered.
        """
        scan, trace = (message.scan.id, message.trace[3:35]) if message else (None, None)
        if delivery.tag <= consumer.lost:
            self._log.warning("given to another", scan=scan, trace=trace, reason=reason)
            return _Plan()
        self._log.warning("dead letter", scan=scan, trace=trace, reason=reason)
        if message is None or isinstance(message, FailureMessage) or not self.stage.announces_failures:
            return _Plan(dead=[(delivery, reason)])
        return _Plan([_encoded(failure(message, self.stage.name, reason))], dead=[(delivery, reason)])

    def _carry_out(self, plan: _Plan, consumer: Consumer) -> None:
        """Publish all, wait for the confirms, and only then let go of the deliveries."""
        started = time.monotonic()
        for letter, reason in plan.dead:  # first, so that whoever hears of the failure finds the dead letter
            self.broker.dead_letter(letter, reason)
        for message, body in plan.publish:
            self._publish(message, body)
        for letter in [*plan.done, *(letter for letter, _ in plan.dead)]:
            consumer.ack(letter)
        for letter in plan.requeue:
            consumer.requeue(letter)
        for outcome, count in (("done", plan.done), ("dead", plan.dead), ("requeued", plan.requeue)):
            metrics.MESSAGES.labels(self.stage.name, outcome).inc(len(count))
        if plan.done:
            metrics.LAST_SUCCESS.labels(self.stage.name).set_to_current_time()
        self._spent("publish", started)

    def _publish(self, message: Message, body: bytes) -> None:
        """Publish one message; while a queue is full or nobody has declared one yet, wait and try again."""
        key = routing_key(message)
        pause = 0.05
        while True:
            try:
                self.broker.publish(key, body, message_id=message.id, mandatory=not is_announcement(message))
                break
            except (Refused, Unroutable) as error:
                if self._stop.is_set():
                    raise  # the process ends; the message that led here is not acknowledged and comes again
                metrics.FULL.labels(self.stage.name).inc()
                self._log.warning("publish waits", key=key, reason=str(error))
                time.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(5.0, 2 * pause)
        metrics.PUBLISHED.labels(self.stage.name, message.kind).inc()
        metrics.BYTES.labels(self.stage.name).inc(len(body))

    def _show_zeros(self) -> None:
        """An idle stage shows 0 and not nothing: a rate does not see a counter's first value."""
        name = self.stage.name
        for doing in ("wait", "compute", "publish"):
            metrics.SECONDS.labels(name, doing)
        for outcome in ("done", "dead", "requeued"):
            metrics.MESSAGES.labels(name, outcome)
        for metric in (metrics.REDELIVERED, metrics.FULL, metrics.MESSAGE_SECONDS):
            metric.labels(name)
        metrics.WORKING.labels(name).set_function(lambda: time.monotonic() - taken if (taken := self._taken) else 0.0)

    def _spent(self, doing: str, started: float) -> None:
        metrics.SECONDS.labels(self.stage.name, doing).inc(time.monotonic() - started)


def failure(message: Message, stage: str, reason: str) -> FailureMessage:
    """The news that a stage gave up on a message."""
    return FailureMessage(
        id=message_id(message.id, stage, "failure"),
        scan=message.scan,
        part=message.part,
        trace=message.trace,
        stage=stage,
        reason=reason[:4000].encode("utf-8", "replace").decode(),  # a file's name may hold what is no text
    )


@dataclass(frozen=True)
class _Plan:
    """An outcome made ready: everything computed and encoded, nothing published yet."""

    publish: list[tuple[Message, bytes]] = field(default_factory=list)
    done: list[Delivery] = field(default_factory=list)
    dead: list[tuple[Delivery, str]] = field(default_factory=list)
    requeue: list[Delivery] = field(default_factory=list)


def _plan(outcome: Outcome | None, delivery: Delivery | None = None, traces: tuple[str, str] = ("", "")) -> _Plan:
    """``traces``: that of the message in work, and the one that goes on in what comes of it."""
    if outcome is None:
        return _Plan()
    done = outcome.done if outcome.done is not None else [delivery] if delivery else []
    came, on = traces
    publish = (replace(m, trace=on) if m.trace in ("", came) else m for m in outcome.publish)
    return _Plan([_encoded(message) for message in publish], done, outcome.dead)


def _encoded(message: Message) -> tuple[Message, bytes]:
    body = encode(message, "lz4")
    if len(body) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"{message.kind} message of {len(body)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    return message, body


class _Deadline:
    """Ends the process when a message is in work for too long: a hung thread cannot be stopped in any other way."""

    def __init__(self, seconds: float | None, stage: str, delivery: Delivery) -> None:
        self._timer = threading.Timer(seconds, self._end, [seconds, stage, delivery]) if seconds else None

    def __enter__(self) -> None:
        if self._timer:
            self._timer.daemon = True
            self._timer.start()

    def __exit__(self, *_: object) -> None:
        if self._timer:
            self._timer.cancel()

    @staticmethod
    def _end(seconds: float, stage: str, delivery: Delivery) -> None:
        log.error("deadline passed, ending the process", stage=stage, message=delivery.message_id, seconds=seconds)
        os._exit(EX_SOFTWARE)

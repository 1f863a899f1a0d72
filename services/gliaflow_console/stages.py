"""The strip of stages: what waits, what is in work, and which stage is gone."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import structlog
from gliaflow.flow import Flow
from gliaflow.waiting import SERVICES
from gliaflow_client.management import WINDOW_S, Management, ManagementError
from gliaflow_client.queues import QueueLine, queue_lines, time_left
from gliaflow_proto.routing import ASSEMBLERS, BALANCER, RECORDER, STAGE_QUEUES
from gliaflow_runtime import metrics
from gliaflow_runtime.broker.interface import BrokerError
from gliaflow_runtime.logs import where
from gliaflow_runtime.settings import Settings

INTERVAL_S = 3.0  # between two readings of the queues: each has two requests a queue
SILENT_S = 6.0  # a reading that takes longer: the broker does not answer
DETAILS_S = 5.0  # between two readings of the management API: RabbitMQ counts every 5 seconds
AGAIN_S = 30.0  # until the management API is tried again, and between two readings of the stages' bundles
STUCK_S = 60.0  # no message of a stage was completed for so long
OK, GONE, STUCK, UNKNOWN = "ok", "gone", "stuck", "unknown"
SERVICE = {queue.name.removeprefix("gliaflow."): name for queue, name in SERVICES.items()} | {
    BALANCER.name.removeprefix("gliaflow."): "generator",
    RECORDER.name.removeprefix("gliaflow."): "trainer",
}

log = structlog.get_logger()


class StageStrip:
    """Reads the queues and the stages. ``run`` is its thread: only that one waits for the broker.

    Raises
    ------
    ValueError, OSError: as ``Management`` does.

    ``letters_lock``: a thread that holds dead letters has it. They are not counted then, since the broker would not
    count those that are held.
    """

    def __init__(self, settings: Settings, flow: Flow, stopping: threading.Event) -> None:
        self.letters_lock = threading.Lock()
        self.bundles: tuple[str, ...] = ()  # of the stages that run, as far as they are known
        self._flow, self._stopping = flow, stopping
        self._api: _Api | None = None
        self._embedded: _Embedded | None = None
        if flow.stages is None:
            self._api = _Api(Management(settings.broker, settings.management, settings.broker_password_file))
        else:
            self._embedded, self.bundles = _Embedded(), (flow.stages.bundle.id,)
        self._lines: list[QueueLine] = []
        self._moved: dict[str, tuple[QueueLine, float]] = {}  # each queue as it was when it last changed, and when
        # the last two counts of dead letters: the higher one is shown, since letters that were held return one by one
        self._dead: list[dict[str, int]] = [{}]
        # shards that new scans do not go to: they are shown if they have dead letters
        self._spare = {queue.name.removeprefix("gliaflow.") for queue in ASSEMBLERS[settings.assembler_shards :]}
        self._error = ""
        self._started: float | None = None  # when the reading that is not complete yet began, by time.monotonic

    def run(self) -> None:
        """Read until ``stopping`` is set."""
        while not self._stopping.is_set():
            self.read()
            self._stopping.wait(INTERVAL_S)

    def read(self) -> None:
        """Read once, unless the broker is away."""
        if self._flow.broker.trouble:
            return
        self._started = time.monotonic()
        try:
            self._read()
            self._error = ""
        except BrokerError as error:
            self._error = str(error)
        except Exception as error:  # the next reading may succeed
            self._error = f"the queues cannot be read: {where(error)}"
            log.exception("queues not read")
        self._started = None

    def snapshot(self) -> dict[str, Any]:
        """The fields ``stages``, ``left_s``, ``dead`` and ``problem`` of ``GET /api/status``. It never waits."""
        lines, trouble = self._lines, self._trouble()
        known = not trouble and (self._embedded is not None or bool(self._api and self._api.details))
        left_s = time_left(lines) if known else None
        problem = trouble or (self._api.problem if self._api else "")
        if len(self.bundles) > 1:
            problem = problem or f"the stages have different bundles: {', '.join(self.bundles)} (gliaflow doctor)"
        return {
            "stages": [self._stage(line, known, trouble) for line in lines],
            "left_s": None if left_s is None else round(left_s),
            "dead": None if trouble else sum(line.dead for line in lines),
            "problem": problem,
        }

    def _trouble(self) -> str:
        """Why the queues are not known now, with the remedy."""
        started = self._started
        if trouble := self._flow.broker.trouble or self._error:
            return trouble
        if started is not None and time.monotonic() - started > SILENT_S:
            return f"RabbitMQ has not answered for over {SILENT_S:g} s: it hangs, or the network is slow"
        return ""

    def _stage(self, line: QueueLine, known: bool, trouble: str) -> dict[str, Any]:
        if trouble:  # ``problem`` says why
            unknown = dict.fromkeys(("waiting", "in_work", "rate", "consumers", "dead"))
            return {"name": line.queue, **unknown, "state": UNKNOWN, "reason": ""}
        state, reason = self._state(line, known)
        return {
            "name": line.queue,
            "waiting": line.waiting,
            "in_work": line.in_work if known else None,
            "rate": round(line.rate_out, 2) if known else None,
            "consumers": line.consumers,
            "dead": line.dead,
            "state": state,
            "reason": reason,
        }

    def _state(self, line: QueueLine, known: bool) -> tuple[str, str]:
        service = SERVICE[line.queue]
        if not line.consumers:
            if self._flow.stages is not None:
                error = self._flow.stages.error
                return GONE, f"the stage has ended{f' ({error})' if error else ''}: start the console again"
            return GONE, (
                f"no {service} runs: wait for a replacement, or start one (docker compose up -d {service}, or gliaflow "
                f"serve {service}); docker compose ps and gliaflow doctor show why none runs"
            )
        _, moved = self._moved.get(line.queue, (line, time.monotonic()))
        if known and line.held and time.monotonic() - moved > STUCK_S:
            return STUCK, (
                f"no message was completed for over {STUCK_S:g} s, and {line.held} are there: gliaflow doctor and the "
                f"log of the {service} show the reason"
            )
        return OK, ""

    def _read(self) -> None:
        broker = self._flow.broker
        details = self._api.read() if self._api else {}
        countable = self.letters_lock.acquire(blocking=False)
        try:
            lines = queue_lines(broker, details)
        finally:
            if countable:
                self.letters_lock.release()
        if self._api:
            self.bundles = self._api.bundles
            there = {line.queue for line in lines}
            names = [queue.name.removeprefix("gliaflow.") for queue in STAGE_QUEUES if queue not in ASSEMBLERS[1:]]
            never = [QueueLine(name, 0, None, None, 0, 0, 0.0, 0.0) for name in names if name not in there]
            lines = sorted([*lines, *never], key=lambda line: list(SERVICE).index(line.queue))
        if self._embedded:
            lines = self._embedded.measured(lines)
        lines = [line for line in lines if line.queue not in self._spare or line.dead]
        if countable:
            self._dead = [*self._dead[-1:], {line.queue: line.dead for line in lines}]
        lines = [replace(line, dead=max(dead.get(line.queue, 0) for dead in self._dead)) for line in lines]
        now = time.monotonic()
        for line in lines:
            before, _ = self._moved.get(line.queue, (None, 0.0))
            if before is None or line.rate_out or not line.held or line.waiting != before.waiting:
                self._moved[line.queue] = (line, now)
        self._lines = lines


class _Api:
    """What the management API says: the details of the queues, alarms, and the bundles of the stages."""

    def __init__(self, management: Management) -> None:
        self.details: dict[str, dict[str, Any]] = {}
        self.problem = ""
        self.bundles: tuple[str, ...] = ()
        self._management = management
        self._due = self._bundles_due = 0.0  # by time.monotonic

    def read(self) -> dict[str, dict[str, Any]]:
        """The details of the queues; nothing if the API is not available."""
        if (now := time.monotonic()) < self._due:
            return self.details
        try:
            self.details = self._management.queues()
            alarms = self._management.alarms()
            if now >= self._bundles_due:
                self.bundles = tuple(sorted({client.bundle for client in self._management.clients() if client.bundle}))
                self._bundles_due = now + AGAIN_S
            self.problem = (
                f"RabbitMQ takes no messages now, because of an alarm ({', '.join(alarms)}): free memory or disk space "
                "there (rabbitmq-diagnostics alarms)"
                if alarms
                else ""
            )
            self._due = now + DETAILS_S
        except ManagementError as error:
            self.details, self.problem = {}, f"rates and messages in work are not known: {error}"
            self._due = time.monotonic() + AGAIN_S
        return self.details


class _Embedded:
    """Measures the stages of this process by their metrics."""

    def __init__(self) -> None:
        self._counts: deque[tuple[float, dict[str, float]]] = deque()  # completed messages of each stage, by time

    def measured(self, lines: Sequence[QueueLine]) -> list[QueueLine]:
        """The lines with the messages in work and the rates."""
        now = time.monotonic()
        self._counts.append((now, _samples(metrics.MESSAGES, "gliaflow_messages_total")))
        while now - self._counts[0][0] > WINDOW_S:
            self._counts.popleft()
        working = _samples(metrics.WORKING, "gliaflow_working_seconds")
        return [
            replace(line, in_work=int(working.get(line.queue, 0) > 0), rate_out=self._rate(line.queue))
            for line in lines
        ]

    def _rate(self, stage: str) -> float:
        """Messages a second, since the count began to rise within the window."""
        newest, oldest = self._counts[-1], self._counts[0]
        counted = [(at, counts.get(stage, 0)) for at, counts in self._counts]
        since = [at for at, count in counted if count == oldest[1].get(stage, 0)][-1]
        rise = newest[1].get(stage, 0) - oldest[1].get(stage, 0)
        return rise / (newest[0] - since) if rise else 0.0


def _samples(metric: Any, name: str) -> dict[str, float]:
    """The value of a metric by stage, over all other labels."""
    values: dict[str, float] = {}
    for sample in metric.collect()[0].samples:
        if sample.name == name:
            values[sample.labels["stage"]] = values.get(sample.labels["stage"], 0) + sample.value
    return values

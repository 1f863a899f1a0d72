"""The state of the queues: messages, rates, time left, and the stages that read them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gliaflow_proto.routing import ALL_QUEUES, ASSEMBLERS, CLASSIFIER, EXTRACTOR, PREPROCESSOR
from gliaflow_runtime.broker.interface import Broker

from gliaflow_client.management import CLIENT_SERVICES, WINDOW_S, Client, Management, ManagementError

SCAN_PATH = (PREPROCESSOR.name, EXTRACTOR.name, CLASSIFIER.name, *(queue.name for queue in ASSEMBLERS))
EMBEDDED = (
    "a broker inside each gliaflow command, with stages that run as long as the command does: it cannot be seen from "
    "outside; for a RabbitMQ, gliaflow status --broker amqp://user:password@host/"
)
KEPT = "kept: ended scans that the assemblers remember, and parts of incomplete scans"
INTERVAL_S = 3.0  # between two counts of the messages, where the management API gives no rates


@dataclass(frozen=True)
class QueueLine:
    """A queue. Rates are messages a second; without the management API they are net. None: not known.

    ``kept``: what the assembler keeps in its queue, with or without a consumer: the latest ended scans, and the parts
    of incomplete scans (ADR 1). Neither waits for work: the missing parts of a scan are in other queues.
    """

    queue: str
    waiting: int
    in_work: int | None
    kept: int | None
    consumers: int
    dead: int
    rate_in: float
    rate_out: float

    @property
    def on_scan_path(self) -> bool:
        """Whether each scan passes through this queue."""
        return f"gliaflow.{self.queue}" in SCAN_PATH

    @property
    def held(self) -> int:
        """Messages still to be worked on."""
        return self.waiting + (self.in_work or 0)


@dataclass(frozen=True)
class StageGroup:
    """The consumers of one queue that have the same version and bundle."""

    queue: str
    count: int
    version: str
    bundle: str


@dataclass(frozen=True)
class Status:
    """All queues and stages of a broker."""

    broker: str
    queues: list[QueueLine]
    stages: list[StageGroup]
    left_s: float | None  # 0: idle; None: not known, or nothing moves
    missing: str = ""  # why some of it is not known
    services: Mapping[str, Sequence[str]] = field(default_factory=dict)  # versions of DICOM nodes and consoles, by user


def read_status(broker: Broker, management: Management | None, name: str) -> Status:
    """Read the state of all queues. Without the management API, in_work is None, and two counts give net rates."""
    if management is None:
        dead = sum(broker.depth(queue.dead) for queue in ALL_QUEUES)
        letters = f"; {dead} dead letters are kept (gliaflow dead list)" if dead else ""
        return Status(name, [], [], None, EMBEDDED + letters)
    details: dict[str, dict[str, Any]] = {}
    clients: list[Client] = []
    services: dict[str, list[str]] = {}
    missing = ""
    before: dict[str, int] = {}
    try:
        details, clients = management.queues(), management.clients()
        services = management.client_services()
    except ManagementError as error:
        missing = str(error)
        before = {queue.name: broker.depth(queue.name) for queue in ALL_QUEUES}
        time.sleep(INTERVAL_S)
    lines = queue_lines(broker, details, before)
    names = {queue.name: queue.name.removeprefix("gliaflow.") for queue in ALL_QUEUES}
    count = Counter((names[c.queue], c.version, c.bundle) for c in clients if c.queue in names)
    stages = [StageGroup(queue, number, version, bundle) for (queue, version, bundle), number in sorted(count.items())]
    return Status(name, lines, stages, time_left(lines), missing, services)


def queue_lines(
    broker: Broker, details: Mapping[str, Mapping[str, Any]], before: Mapping[str, int] | None = None
) -> list[QueueLine]:
    """The state of each queue that exists.

    Parameters
    ----------
    details: as ``Management.queues`` gives them; empty: not known.
    before: without details, the messages that waited in each queue INTERVAL_S ago, for net rates.
    """
    before = before or {}
    lines = []
    for queue in ALL_QUEUES:
        state = broker.queue_state(queue.name)
        if state is None:
            continue
        detail: Mapping[str, Any] = details.get(queue.name, {})
        stats = detail.get("message_stats", {})
        net = (state.waiting - before.get(queue.name, state.waiting)) / INTERVAL_S
        waiting: int = state.waiting
        in_work: int | None = detail.get("messages_unacknowledged", 0) if details else None
        kept: int | None = 0
        if queue in ASSEMBLERS:
            returned = 0 if state.consumers else waiting  # what an assembler kept that has ended
            kept = None if in_work is None else in_work + returned
            waiting, in_work = waiting - returned, 0
        lines.append(
            QueueLine(
                queue=queue.name.removeprefix("gliaflow."),
                waiting=waiting,
                in_work=in_work,
                kept=kept,
                consumers=state.consumers,
                dead=broker.depth(queue.dead),
                rate_in=_rate(stats, "publish") if details else max(0.0, net),
                rate_out=_rate(stats, "ack") if details else max(0.0, -net),
            )
        )
    return lines


def time_left(lines: list[QueueLine]) -> float | None:
    """Seconds until the scans that are under way are answered; None if a queue holds some and none leaves it.

    The last scan waits in each queue for the messages before it, which leave at the queue's rate. Of the assemblers'
    queues, it passes through one.
    """
    left: dict[str, float] = {}
    for line in lines:
        if line.on_scan_path and line.held:
            if not line.rate_out:
                return None
            stage = line.queue.partition(".")[0]
            left[stage] = max(left.get(stage, 0.0), line.held / line.rate_out)
    return sum(left.values())


def as_lines(status: Status) -> list[str]:
    """The status in columns, for a terminal and for a pipe."""
    if not status.queues and status.missing:
        return [f"{status.broker}: {status.missing}"]
    if not status.queues:
        return [f"{status.broker}: no stage has run on this broker yet (gliaflow serve STAGE, or docker compose up)"]
    rows = [("queue", "waiting", "in work", "kept", "consumers", "dead", "in/s", "out/s")]
    for line in status.queues:
        in_work, kept = ("?" if count is None else str(count) for count in (line.in_work, line.kept))
        rates = f"{line.rate_in:.1f}", f"{line.rate_out:.1f}"
        rows.append((line.queue, str(line.waiting), in_work, kept, str(line.consumers), str(line.dead), *rates))
    text = [f"{row[0]:13}" + "".join(f"{cell:>9}" for cell in row[1:4]) + f"{row[4]:>11}" for row in rows]
    text = [left + "".join(f"{cell:>8}" for cell in row[5:]) for left, row in zip(text, rows, strict=True)]
    if any(line.kept for line in status.queues):
        text.append(KEPT)
    text += ["", _progress(status)]
    text += [f"{s.queue:13}{s.count} running, gliaflow {s.version}, {s.bundle or 'no bundle'}" for s in status.stages]
    text += [
        f"{CLIENT_SERVICES[user]:13}{count} connected, gliaflow {version}"
        for user, versions in status.services.items()
        for version, count in sorted(Counter(versions).items())
    ]
    if len({(s.version, s.bundle) for s in status.stages}) > 1:
        text.append("stages differ in version or bundle (gliaflow doctor)")
    if status.missing:
        text.append(f"rates are net, over {INTERVAL_S:g} s; work and versions are not known: {status.missing}")
    return text


def _progress(status: Status) -> str:
    """Whether the pipeline is idle, the time left, or why it is not known."""
    busy = [line for line in status.queues if line.held]
    if not busy:
        alone = [line.queue for line in status.queues if not line.consumers]
        note = f"; no consumer: {', '.join(alone)} (gliaflow doctor)" if alone else ""
        return ("no message is waiting" if status.missing else "idle: no message waits or is in work") + note
    if status.left_s:
        return f"time left: about {_duration(status.left_s)}"
    if status.left_s == 0:  # only queues that are not on a scan's path hold messages
        return "no scan is under way"
    still = [line for line in busy if line.on_scan_path and not line.rate_out]
    if alone := [line.queue for line in still if not line.consumers]:
        cause = f"messages wait, and no consumer reads them: {', '.join(alone)}"
    else:
        cause = f"no message was completed in {WINDOW_S} s: {', '.join(line.queue for line in still)}"
    return f"time left: not known, as {cause} (gliaflow doctor finds the reason)"


def _rate(stats: Mapping[str, Any], kind: str) -> float:
    """The mean since the count began to move within the window; over the whole window it is too low after a start."""
    samples = stats.get(f"{kind}_details", {}).get("samples") or [{"sample": 0, "timestamp": 0}]
    newest, still = samples[0], next(s for s in samples if s["sample"] == samples[-1]["sample"])
    moved = newest["sample"] - still["sample"]
    return float(moved / (newest["timestamp"] - still["timestamp"]) * 1000) if moved > 0 else 0.0


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"

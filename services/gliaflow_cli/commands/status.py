"""``gliaflow status``: what waits where, how fast it goes, how long it will take, and who works on it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from gliaflow_proto.routing import ALL_QUEUES, ASSEMBLER, CLASSIFIER, EXTRACTOR, PREPROCESSOR
from gliaflow_runner.pipeline import open_broker
from gliaflow_runtime.broker.interface import Broker
from gliaflow_runtime.settings import Settings
from rich.console import Console
from rich.live import Live

from gliaflow_cli.client.management import Client, Management, ManagementError

SCAN_PATH = (PREPROCESSOR.name, EXTRACTOR.name, CLASSIFIER.name, ASSEMBLER.name)
INSIDE = (
    "a broker inside each gliaflow command, whose stages run while it does, so there is nothing to look at from "
    "outside; for a RabbitMQ, gliaflow status --broker amqp://user:password@host/"
)
REFRESH_S = 2.0
APART_S = 3.0  # two looks at the queues, where nothing tells rates


@dataclass(frozen=True)
class Line:
    """A queue. Rates are messages a second; None: not known. Without the management API they are net."""

    queue: str
    waiting: int
    in_work: int | None
    consumers: int
    dead: int
    rate_in: float
    rate_out: float


@dataclass(frozen=True)
class Running:
    """Consumers of one queue that are of one version and bundle."""

    queue: str
    count: int
    version: str
    bundle: str


@dataclass(frozen=True)
class Status:
    broker: str
    queues: list[Line]
    stages: list[Running]
    left_s: float | None  # None: nothing is known, or nothing moves
    missing: str = ""  # why some of it is not known


def show_status(settings: Settings, console: Console, *, as_json: bool = False, watch: bool = False) -> int:
    """``gliaflow status``: 0 once it could look."""
    memory = settings.broker.startswith("memory:")
    management = None if memory else Management(settings.broker, settings.management, settings.broker_password_file)
    with open_broker(settings, connect_timeout=5) as broker:

        def look() -> str:
            status = read_status(broker, management, settings.broker.split("@")[-1])
            return json.dumps(asdict(status), indent=2) if as_json else as_text(status)

        if not watch:
            console.print(look(), soft_wrap=True)
        else:
            _keep_looking(look, console)
    return 0


def read_status(broker: Broker, management: Management | None, name: str) -> Status:
    """How all queues stand. Without the management API, in work is None, and two looks tell net rates."""
    details: dict[str, dict[str, Any]] = {}
    clients: list[Client] = []
    missing = ""
    if management is None:
        dead = sum(broker.depth(queue.dead) for queue in ALL_QUEUES)
        return Status(
            name, [], [], None, INSIDE + (f"; {dead} dead letters are kept (gliaflow dead list)" if dead else "")
        )
    try:
        details, clients = management.queues(), management.clients()
    except ManagementError as error:
        missing = str(error)
    before = {queue: broker.depth(queue.name) for queue in ALL_QUEUES} if missing else {}
    if missing:
        time.sleep(APART_S)
    lines = []
    for queue in ALL_QUEUES:
        state = broker.look(queue.name)
        if state is None:
            continue
        found = details.get(queue.name, {})
        stats = found.get("message_stats", {})
        come = (state.waiting - before.get(queue, state.waiting)) / APART_S
        lines.append(
            Line(
                queue=queue.name.removeprefix("gliaflow."),
                waiting=state.waiting,
                in_work=found.get("messages_unacknowledged", 0) if details else None,
                consumers=state.consumers,
                dead=broker.depth(queue.dead),
                rate_in=_rate(stats, "publish") if details else max(0.0, come),
                rate_out=_rate(stats, "ack") if details else max(0.0, -come),
            )
        )
    names = {queue.name: queue.name.removeprefix("gliaflow.") for queue in ALL_QUEUES}
    count = Counter((names[c.queue], c.version, c.bundle) for c in clients if c.queue in names)
    stages = [Running(queue, number, version, bundle) for (queue, version, bundle), number in sorted(count.items())]
    return Status(name, lines, stages, time_left(lines), missing)


def time_left(lines: list[Line]) -> float | None:
    """Seconds until the scans that are under way now are answered; None where a queue holds some and none leaves it.

    The last of them waits in each queue for what is before it there, and that goes at the rate at which messages leave.
    """
    left = 0.0
    for line in lines:
        if f"gliaflow.{line.queue}" not in SCAN_PATH:
            continue
        held = _held(line)
        if held and not line.rate_out:
            return None
        left += held / line.rate_out if held else 0
    return left


def _held(line: Line) -> int:
    """Messages that are still to be worked on; what the assembler has in work is mostly news that it keeps (ADR 1)."""
    return line.waiting + (0 if f"gliaflow.{line.queue}" == ASSEMBLER.name else line.in_work or 0)


def as_text(status: Status) -> str:
    """The status in columns, for a terminal and for a pipe."""
    if not status.queues and status.missing:
        return f"{status.broker}: {status.missing}"
    if not status.queues:
        return f"{status.broker}: no stage has run on this broker yet (gliaflow serve STAGE, or docker compose up)"
    rows = [("queue", "waiting", "in work", "consumers", "dead", "in/s", "out/s")]
    for line in status.queues:
        in_work = "?" if line.in_work is None else str(line.in_work)
        rates = f"{line.rate_in:.1f}", f"{line.rate_out:.1f}"
        rows.append((line.queue, str(line.waiting), in_work, str(line.consumers), str(line.dead), *rates))
    text = [f"{row[0]:13}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in rows]
    text.append("")
    under_way = sum(_held(line) for line in status.queues if f"gliaflow.{line.queue}" in SCAN_PATH)
    if not under_way:
        text.append("nothing waits" if status.missing else "nothing is under way")
    elif status.left_s is not None:
        text.append(f"time left: about {_duration(status.left_s)}")
    else:
        text.append("time left: not known, as messages wait and none is done with (gliaflow doctor tells why)")
    text += [f"{s.queue:13}{s.count} running, gliaflow {s.version}, {s.bundle or 'no bundle'}" for s in status.stages]
    if len({(s.version, s.bundle) for s in status.stages}) > 1:
        text.append("stages differ in version or bundle (gliaflow doctor)")
    if status.missing:
        text.append(f"rates are net, over {APART_S:g} s; work and versions are not known: {status.missing}")
    return "\n".join(text)


def _keep_looking(look: Callable[[], str], console: Console) -> None:
    """Until Ctrl-C: in place on a terminal, else one look below the other."""
    while not console.is_terminal:
        console.print(look(), soft_wrap=True, end="\n\n")
        time.sleep(REFRESH_S)
    with Live(look(), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(REFRESH_S)
            live.update(look(), refresh=True)


def _rate(stats: dict[str, Any], what: str) -> float:
    """The mean since it began to move within the window: of what has just started, a mean over all of it is too low."""
    samples = stats.get(f"{what}_details", {}).get("samples") or [{"sample": 0, "timestamp": 0}]
    newest, still = samples[0], next(s for s in samples if s["sample"] == samples[-1]["sample"])
    moved = newest["sample"] - still["sample"]
    return float(moved / (newest["timestamp"] - still["timestamp"]) * 1000) if moved > 0 else 0.0


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"

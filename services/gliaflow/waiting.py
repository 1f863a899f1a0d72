"""What a client waits for, in one sentence with the remedy."""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence

from gliaflow_proto import Queue
from gliaflow_proto.routing import ASSEMBLERS, CLASSIFIER, EXTRACTOR, GENERATOR, PREPROCESSOR
from gliaflow_runtime.broker.interface import Broker, BrokerError

CHECK_S = 5.0  # of waiting until the queues are checked for the first time, and between two checks
SLOW_S = 30.0  # of waiting until it is reported that the stages are at work
AGAIN_S = 60.0  # until a reason that was over, and is back, is reported again

SERVICES = {  # that read each queue
    PREPROCESSOR: "preprocessor",
    EXTRACTOR: "extractor",
    CLASSIFIER: "classifier",
    **dict.fromkeys(ASSEMBLERS, "classifier"),
    GENERATOR: "generator",
}
FOR_SCANS = (PREPROCESSOR, EXTRACTOR, CLASSIFIER, *ASSEMBLERS)
FOR_FEATURES = (GENERATOR,)


def warn(reason: str) -> None:
    """Say by a Python warning what a flow waits for."""
    warnings.warn(f"waiting: {reason}", stacklevel=2)


class Waiting:
    """Reports why a client waits: each reason once, until the client has waited for something else.

    Parameters
    ----------
    report: gets the sentence.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self.reason = ""  # why the client waits now
        self._report = report
        self._reported: dict[str, float] = {}  # when each reason was reported
        self._next_check_s = CHECK_S

    def say(self, reason: str, numbers: str = "") -> None:
        """The client waits for this. ``numbers`` changes all the time, and is no reason to report it again."""
        changed, self.reason = reason not in self.reason, f"{reason}{numbers}"
        now = time.monotonic()
        if changed and now - self._reported.get(reason, -AGAIN_S) >= AGAIN_S:
            self._reported[reason] = now
            self._report(self.reason)

    def over(self) -> None:
        """The client has got what it waited for."""
        self.reason = ""

    def check(self, broker: Broker, queues: Sequence[Queue], waited_s: float) -> str:
        """Find out why the client waits, and say it. Called about once a second; returns the reason.

        Parameters
        ----------
        queues: those through which the messages pass.
        waited_s: how long the client has waited.
        """
        if broker.trouble:
            self.say(broker.trouble)
        elif waited_s < CHECK_S:
            self._next_check_s = CHECK_S
        elif waited_s >= self._next_check_s:
            self._next_check_s = waited_s + CHECK_S
            reason, numbers = cause(broker, queues, waited_s)
            if reason:
                self.say(reason, numbers)
            else:
                self.over()
        return self.reason


def cause(broker: Broker, queues: Sequence[Queue], waited_s: float = math.inf) -> tuple[str, str]:
    """Why messages through these queues wait, and numbers that change all the time; empty if they pass."""
    if broker.trouble:
        return broker.trouble, ""
    try:
        states = {queue: broker.queue_state(queue.name) for queue in queues}
    except BrokerError as error:
        return str(error), ""
    for shard in ASSEMBLERS[1:]:
        if states.get(shard) is None:  # as on a broker of an earlier version, or inside one process: it is not used
            states.pop(shard, None)
    missing = dict.fromkeys(SERVICES[queue] for queue, state in states.items() if not (state and state.consumers))
    waiting: Counter[str] = Counter()
    for queue, state in states.items():
        waiting[SERVICES[queue]] += state.waiting if state else 0
    counts = [f"{count} for the {service}" for service, count in waiting.items() if count]
    if missing:
        return (
            f"no {' and no '.join(missing)} runs: wait for a replacement, or start one (docker compose up -d "
            f"{' '.join(missing)}, or gliaflow serve …); docker compose ps and gliaflow doctor show why none runs"
        ), ""
    if waited_s < SLOW_S:
        return "", ""
    if counts:
        return "the stages are behind (gliaflow status shows their progress): ", f"scans wait, {', '.join(counts)}"
    return (
        "all stages run and no message waits: a stage is at work, or an alarm of the broker blocks it (gliaflow status "
        "and gliaflow doctor show which)"
    ), ""

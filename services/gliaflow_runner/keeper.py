"""A stage in a container runs in a child process, which is started again when it is killed.

The kernel kills the process that takes too much memory, and leaves no other trace in the container. The small parent
process survives, so it knows how often that happened and why. It is a property of the stage's connections to RabbitMQ,
where ``gliaflow doctor`` reads it. While the stage is killed again and again, another process holds such a connection.
"""

from __future__ import annotations

import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import structlog
from gliaflow_runtime.ending import SIGNALS
from gliaflow_runtime.settings import Settings

PAUSE_S = (1.0, 30.0)  # before another start: doubled after each kill, as long as the stage does not run for STEADY_S
STEADY_S = 60.0
FOREVER_S = 1e6
CGROUP = Path("/sys/fs/cgroup")
NO_LIMIT = 2**60  # a memory limit over this means none

log = structlog.get_logger()


def outlive_kills(service: str, settings: Settings) -> str:
    """Fork. In the child, return how its predecessors were killed, empty for the first. The parent does not return.

    SIGTERM and SIGINT pass to the child. The parent ends with the child's exit code unless that was killed.
    """
    stopping, kills, killed, pause, reporter = False, 0, "", PAUSE_S[0], 0
    signals = {*SIGNALS, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # they wait for sigwait
    while True:
        memory_kills, started = _memory_kills(), time.monotonic()
        child = os.fork()
        if child == 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            return killed
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            waiting = started + STEADY_S - time.monotonic() if reporter else FOREVER_S
            received = signal.sigtimedwait(signals, max(0, waiting))
            if received is None:
                reporter = _end(reporter)
            elif received.si_signo != signal.SIGCHLD:
                stopping = True
                os.kill(child, received.si_signo)
        reporter = _end(reporter)
        code = os.waitstatus_to_exitcode(ended[1])
        if code != -signal.SIGKILL or stopping:
            os._exit(code if code >= 0 else 128 - code)
        kills += 1
        reason = _why(_memory_kills() > memory_kills)
        killed = f"killed {kills} times, last at {datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {reason}"
        log.error("stage killed", service=service, times=kills, reason=reason)
        pause = PAUSE_S[0] if time.monotonic() - started > STEADY_S else min(PAUSE_S[1], 2 * pause)
        reporter = _report(settings, killed)
        if signal.sigtimedwait(SIGNALS, pause):
            os._exit(0)


def _report(settings: Settings, killed: str) -> int:
    """Start a process that only holds a connection to the broker with this property; return its number."""
    reporter = os.fork()
    if reporter:
        return reporter
    try:
        from gliaflow_runner.broker import open_broker

        with open_broker(settings, killed=killed):
            time.sleep(FOREVER_S)
    finally:
        os._exit(0)


def _end(reporter: int) -> int:
    """End that process, if there is one. Returns 0."""
    if reporter:
        os.kill(reporter, signal.SIGKILL)
        os.waitpid(reporter, 0)
    return 0


def _why(out_of_memory: bool) -> str:
    if not out_of_memory:
        return "by SIGKILL, from outside its container"
    limit = _read("memory.max", "memory/memory.limit_in_bytes")
    size = f" than its limit of {int(limit) / 2**20:.0f} MiB" if limit.isdecimal() and int(limit) < NO_LIMIT else ""
    return f"it needed more memory{size}; give it more (GLIAFLOW_MEMORY; in Kubernetes: resources.limits.memory)"


def _memory_kills() -> int:
    """How many processes of this container the kernel has killed for memory."""
    for line in _read("memory.events", "memory/memory.oom_control").splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill":
            return int(count)
    return 0


def _read(*names: str) -> str:
    """The first of these files of the control group (version 2, then 1) that exists."""
    for name in names:
        try:
            return (CGROUP / name).read_text().strip()
        except OSError:
            continue
    return ""

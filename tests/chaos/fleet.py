"""The stages as processes under a supervisor, which restarts them as compose does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

SERVICES = ("preprocessor", "extractor", "classifier", "generator")
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
GLIAFLOW = [sys.executable, "-m", "gliaflow_cli"]


def clean(**settings: object) -> dict[str, str]:
    """An environment with these settings of gliaflow and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GLIAFLOW_")}
    return kept | {f"GLIAFLOW_{name.upper()}": str(value) for name, value in settings.items()}


class Replica:
    """One ``gliaflow serve`` process. It uses ``bundle`` and ``settings`` from its next start on."""

    def __init__(self, service: str, number: int, logs: Path, environment: dict[str, str]) -> None:
        self.service, self.name = service, f"{service}-{number}"
        self.bundle: Path | None = None
        self.log, self.clock = logs / f"{self.name}.log", logs / f"{self.name}.clock"
        self.starts = 0
        self.settings = dict(environment)
        self.set_clock("+0")
        self.start()

    def set_clock(self, offset: str) -> None:
        """Shift the time of this process by an offset in seconds."""
        self.clock.write_text(offset + "\n")

    def start(self) -> None:
        environment = dict(self.settings)
        if self.bundle:
            environment["GLIAFLOW_BUNDLE"] = str(self.bundle)
        if FAKETIME:
            environment |= {
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME_TIMESTAMP_FILE": str(self.clock),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*GLIAFLOW, "serve", self.service], env=environment, stdout=log, stderr=log)
        self.starts += 1

    def signal(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)


class Fleet:
    """Runs ``replicas`` processes of each service. Records peak memory by service, and ends by exit code."""

    def __init__(self, replicas: int, logs: Path, environment: dict[str, str]) -> None:
        self.peak_mb: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.replicas = [Replica(s, n, logs, environment) for s in SERVICES for n in range(replicas)]
        self._over = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._supervisor.start()

    def of(self, service: str) -> list[Replica]:
        return [replica for replica in self.replicas if replica.service == service]

    def stop(self) -> None:
        """Send SIGTERM to all, and SIGKILL to those that still run after a minute."""
        self._over.set()
        self._supervisor.join()
        for number, seconds in ((signal.SIGCONT, 0.0), (signal.SIGTERM, 60.0), (signal.SIGKILL, 10.0)):
            for replica in self.replicas:
                replica.signal(number)
            until = time.monotonic() + seconds
            while time.monotonic() < until and any(r.process.poll() is None for r in self.replicas):
                time.sleep(0.1)
                self._measure()

    def kill(self) -> None:
        """Kill all processes that still run."""
        self._over.set()
        self._supervisor.join()
        for replica in self.replicas:
            replica.signal(signal.SIGKILL)
            replica.process.wait()

    def _supervise(self) -> None:
        while not self._over.wait(0.25):
            self._measure()
            for replica in self.replicas:
                if replica.process.poll() is not None:
                    self.ends[f"{replica.service} {replica.process.returncode}"] += 1
                    replica.start()

    def _measure(self) -> None:
        for replica in self.replicas:
            self.peak_mb[replica.service] = max(self.peak_mb[replica.service], peak_mb(replica.process.pid))


def peak_mb(pid: int) -> int:
    """The most memory that a process has held (VmHWM), in MiB. Returns 0 if the process is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) // 1024
    except (OSError, IndexError):
        return 0

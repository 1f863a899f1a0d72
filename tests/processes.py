"""The command and the stages as processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

GLIAFLOW = [sys.executable, "-m", "gliaflow_cli"]


Command = Callable[..., subprocess.CompletedProcess[str]]


def environment(state: Path, broker: str) -> dict[str, str]:
    """A clean environment for the command: nothing of the person's own settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GLIAFLOW_")}
    return {**kept, "GLIAFLOW_BROKER": broker, "XDG_STATE_HOME": str(state / "state"), "COLUMNS": "200"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def as_user(user: str, broker: str) -> dict[str, str]:
    """The environment of a broker's user, who may only do what a deployed one may. Where the broker was not started
    by ``tests/rabbitmq.py`` there are no such users: then whom the URL names."""
    secrets = os.environ.get("GLIAFLOW_TEST_SECRETS")
    if not secrets:
        return {"GLIAFLOW_BROKER": broker}
    parts = urlsplit(broker)
    url = parts._replace(netloc=f"{user}@{parts.netloc.rpartition('@')[2]}").geturl()
    return {"GLIAFLOW_BROKER": url, "GLIAFLOW_BROKER_PASSWORD_FILE": f"{secrets}/{user}/password"}


class Stage:
    """One ``gliaflow serve`` process, which is to the broker the user of its name."""

    def __init__(self, name: str, broker: str, folder: Path, settings: dict[str, object]) -> None:
        self.broker = broker
        self.port = free_port()
        self.log = folder / f"{name}-{self.port}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*GLIAFLOW, "serve", name, "--health-port", str(self.port), "--threads", "1"],
                env=environment(folder, broker)
                | as_user(name, broker)
                | {f"GLIAFLOW_{k.upper()}": str(v) for k, v in settings.items()},
                stdout=log,
                stderr=log,
            )

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def wait_ready(self, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while self.get("/readyz")[0] != 200:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def rss_mb(self) -> float:
        """The most memory it has held (VmHWM)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def stop(self, how: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(60)

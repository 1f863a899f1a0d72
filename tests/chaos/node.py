"""The RabbitMQ node that ``tests/rabbitmq.py`` started, controlled with ``rabbitmqctl``."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from rabbitmq import answers

SETTLED_S = 3  # RabbitMQ 3.10 deletes a queue only half, and keeps its name, if its dead-lettering has not started yet


class Node:
    """Runs ``rabbitmqctl``, and can kill and restart a private server.

    A fault that makes the node unavailable holds ``lock``, so that no second fault interferes.
    """

    def __init__(self, folder: Path) -> None:
        if "GLIAFLOW_TEST_RABBITMQCTL" not in os.environ:
            sys.exit("tests/chaos needs a RabbitMQ of its own: python tests/rabbitmq.py python tests/chaos")
        self.url = os.environ["GLIAFLOW_TEST_BROKER"]
        parts = urlsplit(self.url)
        self.address = (parts.hostname or "127.0.0.1", parts.port or 5672)
        self.lock = threading.Lock()
        self._ctl = shlex.split(os.environ["GLIAFLOW_TEST_RABBITMQCTL"])
        self._folder = folder
        self._server: subprocess.Popen[bytes] | None = None
        self.private = self._ctl[0] == "env"
        self.pid = self._pid() if self.private else 0

    def ctl(self, *arguments: str, within_s: float = 90) -> str:
        """Run ``rabbitmqctl`` with these arguments, again and again while the node is unavailable."""
        until = time.monotonic() + within_s
        while True:
            done = subprocess.run([*self._ctl, "--quiet", *arguments], capture_output=True, text=True, timeout=600)
            if done.returncode == 0:
                return done.stdout
            if time.monotonic() > until:
                raise RuntimeError(f"rabbitmqctl {shlex.join(arguments)}: {done.stdout}{done.stderr}")
            time.sleep(0.5)

    def kill(self, down_s: float) -> None:
        """kill -9 of the server, and a restart from its disk after ``down_s`` seconds."""
        os.kill(self.pid, signal.SIGKILL)
        if self._server:
            self._server.wait()
        time.sleep(down_s)
        command = [*self._ctl[:-1], str(Path(self._ctl[-1]).with_name("rabbitmq-server"))]
        with (self._folder / "rabbitmq-server.log").open("ab") as out:
            self._server = subprocess.Popen(command, stdout=out, stderr=out, cwd=self._folder, start_new_session=True)
        self.await_answer()
        self.pid = self._pid()

    def await_answer(self) -> None:
        """Return once the node answers AMQP again."""
        until = time.monotonic() + 120
        while not answers(*self.address):
            if time.monotonic() > until:
                raise RuntimeError("RabbitMQ did not come back")
            time.sleep(0.25)
        time.sleep(SETTLED_S)

    def close(self) -> None:
        """End the server if ``kill`` started it."""
        if self._server and self._server.poll() is None:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()

    def _pid(self) -> int:
        return int(self.ctl("eval", "list_to_integer(os:getpid()).").strip())

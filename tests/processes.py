"""The ``gliaflow`` command and its stages as processes."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pika
from gliaflow_proto.routing import RECORDER, STAGE_QUEUES
from gliaflow_runtime.broker.rabbitmq import AmqpBroker
from pika.exceptions import ChannelClosedByBroker

GLIAFLOW = [sys.executable, "-m", "gliaflow_cli"]
Command = Callable[..., subprocess.CompletedProcess[str]]
_GIVEN: set[int] = set()  # by free_port


def environment(folder: Path, broker: str) -> dict[str, str]:
    """An environment for the command without the developer's own settings. ``folder`` holds its state."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GLIAFLOW_")}
    return {**kept, "GLIAFLOW_BROKER": broker, "XDG_STATE_HOME": str(folder / "state"), "COLUMNS": "200"}


def as_user(user: str, broker: str) -> dict[str, str]:
    """Settings that connect as one of the broker's users, with the permissions of a deployed one.

    A broker that ``tests/rabbitmq.py`` did not start lacks these users. The URL's own user is kept there.
    """
    secrets = os.environ.get("GLIAFLOW_TEST_SECRETS")
    if not secrets:
        return {"GLIAFLOW_BROKER": broker}
    parts = urlsplit(broker)
    url = parts._replace(netloc=f"{user}@{parts.netloc.rpartition('@')[2]}").geturl()
    return {"GLIAFLOW_BROKER": url, "GLIAFLOW_BROKER_PASSWORD_FILE": f"{secrets}/{user}/password"}


def renew_stage_queues(broker: str) -> None:
    """Delete the stages' queues that a test used, and declare them again, since no stage has the right to."""
    with (
        AmqpBroker(broker, connect_timeout=5) as connection,
        pika.BlockingConnection(pika.URLParameters(broker)) as bare,
    ):
        for queue in STAGE_QUEUES:
            if not (_as_new(bare, queue.name, queue.single_active) and _as_new(bare, queue.dead)):
                connection.delete(queue.name)
                connection.delete(queue.dead)
                connection.declare(queue)
        if not _as_new(bare, RECORDER.dead):
            connection.delete(RECORDER.dead)
            connection.declare(RECORDER)
        connection.delete(RECORDER.name)  # its trainer declares it; its dead letters are in the definitions


def _as_new(connection: pika.BlockingConnection, queue: str, single_active: bool = False) -> bool:
    """Whether the queue exists with its own arguments, without messages and consumers."""
    arguments = {"x-queue-type": "quorum"} | ({"x-single-active-consumer": True} if single_active else {})
    try:
        with connection.channel() as channel:
            state = channel.queue_declare(queue, passive=True).method
            channel.queue_declare(queue, durable=True, arguments=arguments)  # an error if it has others
            return state.message_count == state.consumer_count == 0
    except ChannelClosedByBroker:
        return False


def free_port() -> int:
    """A port that nobody listens on, and that no connection of another test takes before it is used.

    Linux takes the ports of connections from 32768 on, macOS and Windows from 49152 on.
    """
    while True:
        port = random.SystemRandom().randrange(12_000, 32_000)
        if port in _GIVEN:
            continue
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("", port))
            _GIVEN.add(port)
            return port


class Stage:
    """One ``gliaflow serve`` process. It connects as the broker's user of its name."""

    def __init__(self, name: str, broker: str, folder: Path, settings: dict[str, object]) -> None:
        self.broker = broker
        self.port = free_port()
        self.log = folder / f"{name}-{self.port}.log"
        chosen = {f"GLIAFLOW_{key.upper()}": str(value) for key, value in settings.items()}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*GLIAFLOW, "serve", name, "--health-port", str(self.port), "--threads", "1"],
                env=environment(folder, broker) | as_user(name, broker) | chosen,
                stdout=log,
                stderr=log,
            )

    def get(self, path: str) -> tuple[int, str]:
        """The status and the text of an HTTP answer of the stage. The status is 0 where nothing listens."""
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

    def peak_rss_mb(self) -> float:
        """The most memory that the process has held (VmHWM)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """Send the signal and wait for the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        return self.process.wait(60)

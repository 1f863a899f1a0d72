"""The peers: BentoML, LitServe and Ray Serve, each a server over HTTP (``servers``)."""

from __future__ import annotations

import http.client
import os
import queue
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from bare_loop import batches
from contenders import HERE, Contender, Turn, Work, end
from cpu_seconds import cpu_seconds, family, send_signal
from gliaflow_runtime.settings import available_cores
from random_network import SIDE

START_S = 180  # the longest start of a server


class Peer(Contender):
    """A server over HTTP. It gets slices that are prepared, and returns tap and mask.

    ``command`` starts it, in the environment of the peers. Between its turns it is stopped, so that what it does when
    idle costs the others nothing.
    """

    command: Sequence[str]
    variables: Mapping[str, str] = MappingProxyType({})

    def __init__(self, work: Work, programs: Path) -> None:
        super().__init__(work)
        self._programs = programs
        self._bodies = [batch.tobytes() for batch in batches(work.image)]

    def start(self) -> None:
        self._port = free_port()
        log = self.work.folder / f"{type(self).__name__}.log"
        program, *arguments = self.command
        with log.open("w") as file:
            self._server = subprocess.Popen(
                [str(self._programs / program), *arguments],
                cwd=HERE / "servers",
                env={
                    **os.environ,
                    **self.variables,
                    "BENCH_PORT": str(self._port),
                    "BENCH_REPLICAS": str(available_cores()),
                    "BENCH_UNET": str(self.work.bundle.folder / "unet.onnx"),
                },
                stdout=file,
                stderr=file,
            )
        self.resources.callback(self._stop)
        until = time.monotonic() + START_S
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{self.name} did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.5)

    def turn(self) -> Turn:
        send_signal(family([self._server.pid]), signal.SIGCONT)
        self._segment(self._bodies[:4])  # all of its processes have woken up
        own, before = time.process_time(), cpu_seconds([self._server.pid])
        started = time.perf_counter()
        answers = self._segment(self._bodies)
        seconds = time.perf_counter() - started
        spent = time.process_time() - own + cpu_seconds([self._server.pid]) - before
        send_signal(family([self._server.pid]), signal.SIGSTOP)
        pixels = [len(body) // 4 for body in self._bodies]
        masks = [np.frombuffer(answer[-n:], np.bool_) for answer, n in zip(answers, pixels, strict=True)]
        return Turn(seconds, spent, np.concatenate(masks).reshape(-1, SIDE, SIDE))

    def _segment(self, bodies: list[bytes]) -> list[bytes]:
        """Send batches over two connections a core, so that the next one always waits, and return the answers."""
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(len(bodies)):
            todo.put(index)
        answers: list[Any] = [None] * len(bodies)

        def send() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self._port)
            while True:
                try:
                    index = todo.get_nowait()
                except queue.Empty:
                    break
                answers[index] = _post(connection, bodies[index])
            connection.close()

        threads = [threading.Thread(target=send) for _ in range(2 * available_cores())]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if None in answers:
            raise RuntimeError(f"{self.name}: a request failed")
        return answers

    def _answers(self) -> bool:
        try:
            _post(http.client.HTTPConnection("127.0.0.1", self._port), self._bodies[0])
        except (OSError, http.client.HTTPException):
            return False
        return True

    def _stop(self) -> None:
        pids = family([self._server.pid])
        send_signal(pids, signal.SIGCONT)
        end(self._server)
        send_signal(pids, signal.SIGKILL)  # LitServe leaves processes behind


class BentoML(Peer):
    name = "BentoML"
    command = ("bentoml", "serve", "bentoml_service:UNet")


class LitServe(Peer):
    name = "LitServe"
    command = ("python", "litserve_server.py")


class RayServe(Peer):
    name = "Ray Serve"
    command = ("python", "ray_server.py")
    variables = MappingProxyType({"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_USAGE_STATS_ENABLED": "0"})


PEERS: dict[str, type[Peer]] = {"bentoml": BentoML, "litserve": LitServe, "ray": RayServe}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _post(connection: http.client.HTTPConnection, body: bytes) -> bytes:
    connection.request("POST", "/predict", body, {"Content-Type": "application/octet-stream"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise http.client.HTTPException(f"status {answer.status}: {content[:300]!r}")
    return content

"""A pipeline of real processes on a real RabbitMQ, and the command as a person runs it."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import GLIAFLOW, Command, Stage, environment


@pytest.fixture
def gliaflow(tmp_path: Path) -> Command:
    """Runs the command in a folder of its own, with a state folder of its own."""

    def run(
        *arguments: object, broker: str = "memory://", check: bool = True, settings: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*GLIAFLOW, *map(str, arguments)],
            cwd=tmp_path,
            env=environment(tmp_path, broker) | (settings or {}),
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def stages(rabbitmq_url: str, tmp_path: Path) -> Iterator[Callable[..., list[Stage]]]:
    """Starts stages by name, with settings of their own, and stops what is left of them."""
    running: list[Stage] = []

    def start(*names: str, **settings: object) -> list[Stage]:
        started = [Stage(name, rabbitmq_url, tmp_path, settings) for name in names]
        running.extend(started)
        for stage in started:
            stage.wait_ready()
        return started

    yield start
    for stage in running:
        stage.stop(signal.SIGKILL)

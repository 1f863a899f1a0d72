"""A pipeline of real processes on a real RabbitMQ, and the ``gliaflow`` command as a process."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import GLIAFLOW, Command, Stage, environment, renew_stage_queues

StartStages = Callable[..., list[Stage]]


@pytest.fixture
def gliaflow(tmp_path: Path) -> Command:
    """Runs the command in the test's folder, with its own state."""

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
def stages(rabbitmq_url: str, tmp_path: Path) -> Iterator[StartStages]:
    """Starts stages by name with the given settings, and kills those that still run after the test."""
    with _stages(rabbitmq_url, tmp_path) as start:
        yield start


@pytest.fixture(scope="class")
def pipeline(rabbitmq_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Stage]]:
    """One process of each stage, by name. They serve all tests of a class, which saves their start."""
    renew_stage_queues(rabbitmq_server)
    names = ("preprocessor", "extractor", "generator", "classifier")
    with _stages(rabbitmq_server, tmp_path_factory.mktemp("pipeline")) as start:
        yield dict(zip(names, start(*names), strict=True))
    renew_stage_queues(rabbitmq_server)


@contextmanager
def _stages(broker: str, folder: Path) -> Iterator[StartStages]:
    running: list[Stage] = []

    def start(*names: str, **settings: object) -> list[Stage]:
        started = [Stage(name, broker, folder, settings) for name in names]
        running.extend(started)
        for stage in started:
            stage.wait_ready()
        return started

    yield start
    for stage in running:
        stage.stop(signal.SIGKILL)

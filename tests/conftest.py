"""What several tests need."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from gliaflow_proto.routing import STAGE_QUEUES
from gliaflow_runtime.broker.interface import BrokerError
from requirements import unavailable


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run side by side, those of the broker stay together, and those that share the fixtures of a file."""
    for item in items:
        broker = item.path.parent.name == "integration" or item.get_closest_marker("rabbitmq")
        item.add_marker(pytest.mark.xdist_group("rabbitmq" if broker else item.path.name))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their argument: an id must be the same in each process, and fit on a line."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def rabbitmq_server() -> str:
    """The URL of a RabbitMQ to test against. Run the tests by ``python tests/rabbitmq.py pytest`` to have one."""
    from gliaflow_runtime.broker.rabbitmq import AmqpBroker

    url = os.environ.get("GLIAFLOW_TEST_BROKER", "")
    if not url:
        unavailable("GLIAFLOW_TEST_BROKER names no RabbitMQ (python tests/rabbitmq.py starts one)")
    try:
        AmqpBroker(url, connect_timeout=5).close()
    except BrokerError as error:
        unavailable(str(error))
    return url


@pytest.fixture
def rabbitmq_url(rabbitmq_server: str) -> Iterator[str]:
    """The same, with the stages' queues gone before and after the test: never name a broker that is in use."""
    _sweep(rabbitmq_server)
    yield rabbitmq_server
    _sweep(rabbitmq_server)


@pytest.fixture
def rabbitmqctl(rabbitmq_server: str) -> Callable[..., str]:
    """Runs ``rabbitmqctl`` on that broker."""
    command = shlex.split(os.environ.get("GLIAFLOW_TEST_RABBITMQCTL", ""))
    if not command:
        unavailable("GLIAFLOW_TEST_RABBITMQCTL does not say how to run rabbitmqctl on the broker")
    return lambda *arguments: (
        subprocess.run([*command, "--quiet", *arguments], check=True, capture_output=True, text=True, timeout=60).stdout
    )


@pytest.fixture
def secrets(rabbitmq_url: str) -> Path:
    """The passwords and certificates of that broker's users, by user."""
    folder = os.environ.get("GLIAFLOW_TEST_SECRETS", "")
    if not folder:
        unavailable("GLIAFLOW_TEST_SECRETS does not say where they are (python tests/rabbitmq.py does)")
    return Path(folder)


@pytest.fixture
def printed(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What this process has printed, and logged once ``configure_logging`` was called."""
    yield lambda: "".join(capfd.readouterr())
    structlog.reset_defaults()


def _sweep(url: str) -> None:
    from gliaflow_runtime.broker.rabbitmq import AmqpBroker

    with AmqpBroker(url, connect_timeout=5) as broker:
        for queue in STAGE_QUEUES:
            broker.delete(queue.name)
            broker.delete(queue.dead)

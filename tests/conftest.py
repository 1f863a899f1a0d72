"""Fixtures for all tests, and how pytest-xdist groups the tests."""

from __future__ import annotations

import gc
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import structlog
from gliaflow_runtime.broker.interface import BrokerError
from gliaflow_runtime.broker.rabbitmq import AmqpBroker
from processes import renew_stage_queues
from requirements import skip_or_fail

TESTS = Path(__file__).parent

_brokers = json.loads(os.environ.get("GLIAFLOW_TEST_BROKERS", "[]"))
SHARE_BROKER = len(_brokers) < int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
"""Whether the workers have only one broker. Otherwise each has a broker of its own."""
if not SHARE_BROKER:
    _worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.environ.update(_brokers[_worker % len(_brokers)])


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests of each file for xdist, so that they share its fixtures; all on RabbitMQ if there is only one.

    The longest groups start first, so that no worker ends long after the others.
    """
    for item in items:
        group = "rabbitmq" if SHARE_BROKER and _on_rabbitmq(item) else item.path.relative_to(TESTS).as_posix()
        item.add_marker(pytest.mark.xdist_group(group))
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: 0 if _on_rabbitmq(item) else 1 if item.get_closest_marker("slow") else 2)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported here stays: the garbage collector need not look at it again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def _on_rabbitmq(item: pytest.Item) -> bool:
    return item.path.parent.name == "integration" or item.get_closest_marker("rabbitmq") is not None


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: an id must be the same in each process, and fit on a line."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def rabbitmq_server() -> str:
    """The URL of a RabbitMQ for the tests. ``python tests/rabbitmq.py pytest`` starts one."""
    url = os.environ.get("GLIAFLOW_TEST_BROKER", "")
    if not url:
        skip_or_fail("GLIAFLOW_TEST_BROKER names no RabbitMQ (python tests/rabbitmq.py starts one)")
    try:
        AmqpBroker(url, connect_timeout=5).close()
    except BrokerError as error:
        skip_or_fail(str(error))
    return url


@pytest.fixture
def rabbitmq_url(rabbitmq_server: str) -> Iterator[str]:
    """The same URL. The stages' queues are emptied before and after the test, so never name a broker that is in use."""
    renew_stage_queues(rabbitmq_server)
    yield rabbitmq_server
    renew_stage_queues(rabbitmq_server)


@pytest.fixture
def rabbitmqctl(rabbitmq_server: str) -> Callable[..., str]:
    """Runs ``rabbitmqctl`` on that broker and returns its output."""
    command = shlex.split(os.environ.get("GLIAFLOW_TEST_RABBITMQCTL", ""))
    if not command:
        skip_or_fail("GLIAFLOW_TEST_RABBITMQCTL does not say how to run rabbitmqctl on the broker")
    return lambda *arguments: (
        subprocess.run([*command, "--quiet", *arguments], check=True, capture_output=True, text=True, timeout=60).stdout
    )


@pytest.fixture
def secrets(rabbitmq_url: str) -> Path:
    """The folder with a password and certificates for each user of that broker."""
    folder = os.environ.get("GLIAFLOW_TEST_SECRETS", "")
    if not folder:
        skip_or_fail("GLIAFLOW_TEST_SECRETS does not name their folder (python tests/rabbitmq.py sets it)")
    return Path(folder)


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    """No test sees the log level, signal handlers or environment that another test, or a command in it, has set."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell starts with it ignored
    yield
    structlog.reset_defaults()
    os.environ.pop("PYTHONSAFEPATH", None)  # main() sets it for the processes that a command starts


@pytest.fixture
def printed(capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Returns what this process has printed, and logged after ``configure_logging``."""
    return lambda: "".join(capfd.readouterr())

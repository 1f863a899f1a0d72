"""A client says what it waits for, with the permissions of a client on the RabbitMQ of ``deploy/rabbitmq``."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import gliaflow
import pytest
from chaos.proxy import proxied
from gliaflow.flow import Flow
from gliaflow_proto.routing import PREPROCESSOR
from gliaflow_runtime.broker.interface import BrokerError
from gliaflow_runtime.broker.rabbitmq import AmqpBroker
from processes import as_user
from sample_scans import good_scan

pytestmark = pytest.mark.rabbitmq
WITHIN_S = 60


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    good_scan(tmp_path / "P1_flair.nii.gz")
    return tmp_path / "P1_flair.nii.gz"


def client(monkeypatch: pytest.MonkeyPatch, broker: str, said: list[str], timeout: float) -> Flow:
    """A flow as the user ``gliaflow``."""
    for name, value in as_user("gliaflow", broker).items():
        monkeypatch.setenv(name, value)
    return gliaflow.open(timeout=timeout, waiting=said.append)


def eventually(said: list[str], text: str) -> None:
    until = time.monotonic() + WITHIN_S
    while not any(text in each for each in said):
        assert time.monotonic() < until, said
        time.sleep(0.1)


def test_a_client_may_read_which_stages_run(
    monkeypatch: pytest.MonkeyPatch, rabbitmq_url: str, said: list[str], scan: Path
) -> None:
    with (
        AmqpBroker(rabbitmq_url, connect_timeout=10) as broker,
        broker.consume(PREPROCESSOR, 1),  # a preprocessor that hangs
        client(monkeypatch, rabbitmq_url, said, timeout=8) as flow,
    ):
        answer = flow.submit(scan)
    assert len(said) == 1
    assert said[0].startswith("no extractor and no classifier runs")
    assert answer.reason == f"no answer within 8 s: {said[0]}"


def test_an_alarm_of_the_broker_is_reported_while_a_scan_cannot_be_sent(
    monkeypatch: pytest.MonkeyPatch, rabbitmq_url: str, rabbitmqctl: Callable[..., str], said: list[str], scan: Path
) -> None:
    with client(monkeypatch, rabbitmq_url, said, timeout=3) as flow:
        rabbitmqctl("set_disk_free_limit", "900000GB")
        try:
            thread = threading.Thread(target=flow.submit, args=[scan], daemon=True)
            thread.start()
            eventually(said, "takes no messages now, because of an alarm")
        finally:
            rabbitmqctl("set_disk_free_limit", "1GB")
        thread.join(WITHIN_S)
        assert not thread.is_alive(), "it sends the scan when the alarm is over"
    assert "low on disk" in said[0]
    assert sum("alarm (" in each for each in said) == 1


def test_a_lost_connection_is_reported_without_the_password(
    monkeypatch: pytest.MonkeyPatch, rabbitmq_url: str, said: list[str], scan: Path
) -> None:
    proxy, url = proxied(rabbitmq_url)
    with client(monkeypatch, url, said, timeout=600) as flow:

        def submit() -> None:
            with contextlib.suppress(BrokerError):  # the flow is closed meanwhile
                flow.submit(scan)

        thread = threading.Thread(target=submit)
        thread.start()
        time.sleep(1)
        proxy.stall(True)
        proxy.cut()
        eventually(said, "no connection to RabbitMQ at amqp://gliaflow@127.0.0.1")
    thread.join(WITHIN_S)
    assert not thread.is_alive()

"""A console beside a pipeline on RabbitMQ: what it sees, what it survives, and that it holds nothing up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from gliaflow_proto import GradedMessage, PredictionMessage, Scan, encode, routing_key
from gliaflow_proto.routing import CLIENT_EXCHANGE, EXTRACTOR, PREPROCESSOR
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.broker.rabbitmq import AmqpBroker
from processes import GLIAFLOW, Stage, as_user, environment, renew_stage_queues
from sample_messages import ONE_OF_EACH, SCAN_MESSAGE

pytestmark = pytest.mark.rabbitmq
[PREDICTION] = [message for message in ONE_OF_EACH if isinstance(message, PredictionMessage)]
[GRADED] = [message for message in ONE_OF_EACH if isinstance(message, GradedMessage)]
TOKEN = "the-token-of-this-test"
NAMES = ["preprocessor", "extractor", "classifier", "assembler", "generator", "balancer"]


class ConsoleProcess:
    """``gliaflow console``, connected as the broker's user ``console``."""

    def __init__(self, broker: str, folder: Path) -> None:
        management = os.environ.get("GLIAFLOW_TEST_MANAGEMENT", "").rpartition("@")[2]
        settings = {
            "GLIAFLOW_CONSOLE_TOKEN": TOKEN,
            "GLIAFLOW_MANAGEMENT": f"http://{management}" if management else "",
        }
        self.log = folder / "console.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*GLIAFLOW, "console", "--port", "0"],
                env=environment(folder, broker) | as_user("console", broker) | settings,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert "http://" in line, self.log.read_text()
        self._url = line[line.index("http://") :].partition("/?")[0]

    def __call__(self, path: str, body: object = None) -> Any:
        """The JSON of an answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._url}/api/{path}", data, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def states(self) -> dict[str, str]:
        return {stage["name"]: stage["state"] for stage in self("status")["stages"]}

    def names(self) -> list[str]:
        """The names of the newest scans."""
        return [scan["name"] for scan in self("scans?limit=20")["scans"]]

    def rss_mb(self) -> float:
        """The most memory that the process has held."""
        return int(Path(f"/proc/{self.process.pid}/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


@pytest.fixture(scope="module")
def console(rabbitmq_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleProcess]:
    renew_stage_queues(rabbitmq_server)
    console = ConsoleProcess(rabbitmq_server, tmp_path_factory.mktemp("console"))
    with console.process:  # closes its output
        yield console
        console.process.send_signal(signal.SIGTERM)
    renew_stage_queues(rabbitmq_server)


@pytest.fixture
def broker(rabbitmq_server: str) -> Iterator[AmqpBroker]:
    with AmqpBroker(rabbitmq_server, connect_timeout=5) as broker:
        yield broker


def answer(broker: AmqpBroker, name: str, mask: Any = PREDICTION.mask) -> None:
    """Publish the answer to a scan of another client, as the assembler does."""
    scan = Scan(id=uuid4().hex, submission=uuid4().hex, name=name)
    message = replace(PREDICTION, scan=scan, mask=mask)
    broker.publish(routing_key(message), encode(message), mandatory=False)


def eventually(condition: Callable[[], bool], within_s: float = 30) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_stage_that_is_killed_is_gone_within_ten_seconds(
    console: ConsoleProcess, stages: Callable[..., list[Stage]]
) -> None:
    [preprocessor] = stages("preprocessor")
    others = dict.fromkeys(NAMES[1:], "gone")
    eventually(lambda: console.states() == {"preprocessor": "ok"} | others)
    preprocessor.stop(signal.SIGKILL)
    eventually(lambda: console.states() == {"preprocessor": "gone"} | others, within_s=10)
    assert console("status")["problem"] == ""


def test_scans_of_other_clients_appear(console: ConsoleProcess, broker: AmqpBroker) -> None:
    answer(broker, "theirs")
    eventually(lambda: console.names()[:1] == ["theirs"])
    [scan] = console("scans?limit=1")["scans"]
    assert (scan["own"], scan["status"], scan["trained_on"]) == (False, "no tumour", "phantoms")
    assert console("status")["trained_on"] == "phantoms"


def test_dead_letters_are_sent_back_and_deleted(console: ConsoleProcess, broker: AmqpBroker) -> None:
    scan = replace(SCAN_MESSAGE, scan=Scan(id=uuid4().hex, submission=uuid4().hex, name="tired"))
    for queue, body in ((PREPROCESSOR, encode(scan)), (EXTRACTOR, b"no message")):
        broker.dead_letter(Delivery(queue.name, queue.keys[0], body, exchange=CLIENT_EXCHANGE), "no reason")
    eventually(lambda: bool(console("status")["dead"] == 2))
    letters = {letter["queue"]: letter for letter in console("dead")["letters"]}
    assert letters["preprocessor"]["scan"] == "tired"
    assert "reason: no reason" in console(f"dead/{letters['extractor']['id']}")["lines"]
    assert console("dead/replay", {"ids": [letters["preprocessor"]["id"]]}) == {"sent": 1, "refused": []}
    assert console("dead/delete", {"ids": [letters["extractor"]["id"]]}) == {"deleted": 1}
    assert console("dead")["letters"] == []
    assert broker.depth(PREPROCESSOR.name) == 1
    for wrong in ({}, {"ids": "all"}, {"ids": []}, ["ids"]):
        with pytest.raises(urllib.error.HTTPError, match="422"):
            console("dead/delete", wrong)


def test_each_call_finds_all_letters_that_the_call_before_it_gave_back(
    console: ConsoleProcess, broker: AmqpBroker
) -> None:
    """RabbitMQ returns them a moment after the consumer has ended."""
    for number in range(5):
        queue = PREPROCESSOR
        broker.dead_letter(Delivery(queue.name, queue.keys[0], b"%d" % number, exchange=CLIENT_EXCHANGE), "no reason")
    for _ in range(8):
        listed = console("dead")
        assert (len(listed["letters"]), listed["more"]) == (5, 0)
        assert console(f"dead/{listed['letters'][-1]['id']}")["lines"]
    assert console("dead/delete", {"all": True}) == {"deleted": 5}


def test_a_stopped_console_holds_up_no_publisher_and_then_shows_the_newest(
    console: ConsoleProcess, broker: AmqpBroker
) -> None:
    """More bytes come than its queue may hold, and more messages."""
    mask = np.ones((80, 80, 80), np.uint8)
    console.process.send_signal(signal.SIGSTOP)
    try:
        for number in range(300):
            answer(broker, f"stopped-{number}", mask)
    finally:
        console.process.send_signal(signal.SIGCONT)
    eventually(lambda: console.names()[:1] == ["stopped-299"])
    assert console.rss_mb() < 400


def test_the_console_outlives_a_restart_of_the_broker(
    console: ConsoleProcess, rabbitmq_server: str, rabbitmqctl: Callable[..., str]
) -> None:
    rabbitmqctl("stop_app")
    try:
        eventually(lambda: "no connection to RabbitMQ" in console("status")["problem"], within_s=10)
        assert set(console.states().values()) == {"unknown"}
        with pytest.raises(urllib.error.HTTPError, match="503"):
            console("dead")
    finally:
        rabbitmqctl("start_app")
    eventually(lambda: set(console.states().values()) == {"gone"})
    with AmqpBroker(rabbitmq_server, connect_timeout=30) as broker:
        eventually(lambda: not answer(broker, "after") and "after" in console.names())
    assert console("status")["problem"] == ""


def test_the_progress_of_an_own_scan_is_the_share_of_its_graded_parts(
    console: ConsoleProcess, broker: AmqpBroker
) -> None:
    scan_id = console("phantoms", {"grade": "HGG"})["id"]
    eventually(lambda: console(f"scans/{scan_id}")["status"] == "working")

    def grade_and_read() -> bool:
        graded = replace(GRADED, scan=Scan(id=scan_id, submission=uuid4().hex), part=[1, 4])
        broker.publish(routing_key(graded), encode(graded))
        return bool(console(f"scans/{scan_id}")["progress"] == 0.25)

    eventually(grade_and_read)

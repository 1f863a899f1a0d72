"""SIGTERM and Ctrl-C end every process within seconds, whatever does not answer. Nothing is lost."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chaos.proxy import proxied
from gliaflow.submission import Submission
from gliaflow_proto import FailureMessage, GenerateMessage, Message, Queue, Scan, encode
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.broker.rabbitmq import AmqpBroker
from gliaflow_runtime.stage import Outcome, Stage, Worker
from processes import GLIAFLOW, environment
from sample_scans import good_scan

ENDS_WITHIN_S = 30  # an orderly end takes less than 10 s on an idle machine; a supervisor kills after 60 s


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never sends a byte, like a broker that was stopped by SIGSTOP."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener.getsockname()[1]


@pytest.fixture(params=["silent", "silent TLS", "refused", "no such name"])
def away(request: pytest.FixtureRequest, silent_port: int) -> str:
    """The URL of a broker that does not answer."""
    return {
        "silent": f"amqp://user:secret@127.0.0.1:{silent_port}/",
        "silent TLS": f"amqps://user:secret@127.0.0.1:{silent_port}/",
        "refused": "amqp://user:secret@127.0.0.1:1/",
        "no such name": "amqp://user:secret@rabbitmq.invalid/",
    }[str(request.param)]


@contextmanager
def started(folder: Path, broker: str, *arguments: object) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The command as a process, and the file with all that it prints."""
    printed = folder / "printed.txt"
    with printed.open("wb") as file:
        process = subprocess.Popen(
            [*GLIAFLOW, *map(str, arguments)], cwd=folder, env=environment(folder, broker), stdout=file, stderr=file
        )
    try:
        yield process, printed
    finally:
        process.kill()
        process.wait()


def await_text(printed: Path, text: str) -> None:
    until = time.monotonic() + 60
    while text not in printed.read_text():
        assert time.monotonic() < until, printed.read_text()
        time.sleep(0.1)


class TestBrokerAway:
    def test_a_stage_that_connects_for_the_first_time_ends(self, tmp_path: Path, away: str) -> None:
        with started(tmp_path, away, "serve", "generator") as (process, printed):
            await_text(printed, "starting")
            time.sleep(1)
            process.terminate()
            assert process.wait(ENDS_WITHIN_S) == 0, printed.read_text()
        assert "Traceback" not in printed.read_text()

    def test_submit_says_what_it_waits_for_and_ends(self, tmp_path: Path, away: str) -> None:
        good_scan(tmp_path / "P1_flair.nii.gz")
        with started(tmp_path, away, "submit", "P1_flair.nii.gz", "--out", "out") as (process, printed):
            await_text(printed, "no connection to RabbitMQ at")
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)  # a second one changes nothing
            assert process.wait(ENDS_WITHIN_S) == 130, printed.read_text()
        text = printed.read_text()
        assert "interrupted: " in text
        assert "--resume" in text
        assert text.count("waiting ") == 1, "once, not every second"
        assert "secret" not in text
        assert "Traceback" not in text

    @pytest.mark.parametrize("away", ["silent"], indirect=True)
    def test_generate_ends(self, tmp_path: Path, away: str) -> None:
        arguments = ("generate", "--grade", "HGG", "--count", "3", "--out", "features.npz")
        with started(tmp_path, away, *arguments) as (process, printed):
            await_text(printed, "no connection to RabbitMQ at")
            process.send_signal(signal.SIGINT)
            assert process.wait(ENDS_WITHIN_S) == 130, printed.read_text()
        assert "run the same command again" in printed.read_text()
        assert "Traceback" not in printed.read_text()
        assert not list(tmp_path.glob("*features*"))

    @pytest.mark.parametrize("away", ["silent TLS"], indirect=True)
    def test_watch_says_what_it_waits_for_and_ends(self, tmp_path: Path, away: str) -> None:
        (tmp_path / "in").mkdir()
        with started(tmp_path, away, "watch", "in", "--out", "out") as (process, printed):
            await_text(printed, "no connection to RabbitMQ at")
            process.terminate()
            assert process.wait(ENDS_WITHIN_S) == 0, printed.read_text()
        assert printed.read_text().count('"waiting"') == 1
        assert "Traceback" not in printed.read_text()


def test_submit_ends_while_a_stage_in_its_process_computes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(40):
        good_scan(tmp_path / "in" / f"P{number}_flair.nii.gz")
    with started(tmp_path, "memory://", "submit", "in", "--out", "out") as (process, printed):
        until = time.monotonic() + 60
        while not list((tmp_path / "out").glob("*_seg.nii.gz")):
            assert time.monotonic() < until, printed.read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(ENDS_WITHIN_S) == 130, printed.read_text()
    assert "of 40 scans answered; the same command with --resume continues" in printed.read_text()
    assert (tmp_path / "out" / "predictions.csv").exists()
    assert not list((tmp_path / "out").glob(".*.part*")), "no file is left half written"


class Interrupted(Stage):
    """A stage whose broker fails while it computes, and which is stopped then."""

    name = "interrupted"

    def __init__(self, queue: Queue, during: Callable[[], None]) -> None:
        self.queue, self._during = queue, during
        self.worker: Worker | None = None

    def handle(self, message: Message, delivery: Delivery) -> Outcome:
        self._during()
        assert self.worker
        self.worker.stop()
        return Outcome([FailureMessage(id="answer", scan=message.scan, stage=self.name, reason="an answer")])


@pytest.mark.rabbitmq
class TestMessageInWork:
    """The result of the message in work cannot be published. It is not acknowledged, so it comes again."""

    @pytest.fixture
    def queue(self, rabbitmq_url: str) -> Iterator[Queue]:
        name = f"gliaflow.test-{uuid.uuid4().hex[:12]}"
        queue = Queue(name, ("generate",))
        with AmqpBroker(rabbitmq_url, connect_timeout=5) as broker:
            broker.declare(Queue(name))
            message = GenerateMessage(id="a", scan=Scan(id="a", submission="s"), label="HGG", count=1)
            broker.send(name, encode(message), message_id="a")
            yield queue
            broker.delete(name)
            broker.delete(queue.dead)

    def test_worker_ends_while_the_broker_hangs(self, rabbitmq_url: str, queue: Queue) -> None:
        proxy, url = proxied(rabbitmq_url)
        self.stopped(url, queue, lambda: proxy.stall(True))
        proxy.cut()
        self.comes_again(rabbitmq_url, queue)

    def test_worker_ends_while_its_connection_is_cut_and_the_broker_gone(self, rabbitmq_url: str, queue: Queue) -> None:
        proxy, url = proxied(rabbitmq_url)

        def cut() -> None:
            proxy.stall(True)
            proxy.cut()

        self.stopped(url, queue, cut)
        self.comes_again(rabbitmq_url, queue)

    def test_worker_ends_while_an_alarm_blocks_publishers(
        self, rabbitmq_url: str, queue: Queue, rabbitmqctl: Callable[..., str]
    ) -> None:
        try:
            self.stopped(rabbitmq_url, queue, lambda: rabbitmqctl("set_disk_free_limit", "900000GB") and None)
        finally:
            rabbitmqctl("set_disk_free_limit", "1GB")
        self.comes_again(rabbitmq_url, queue)

    def stopped(self, url: str, queue: Queue, during: Callable[[], None]) -> None:
        stage = Interrupted(queue, during)
        broker = AmqpBroker(url, connect_timeout=10)
        stage.worker = Worker(stage, broker)
        stage.queue = Queue(queue.name)
        thread = threading.Thread(target=stage.worker.run, daemon=True)
        thread.start()
        thread.join(ENDS_WITHIN_S)
        assert not thread.is_alive(), "the stage waits for the broker"
        started = time.monotonic()
        broker.close()
        assert time.monotonic() - started < ENDS_WITHIN_S

    def comes_again(self, url: str, queue: Queue) -> None:
        until = time.monotonic() + 100  # two heartbeats, if the broker has not noticed that its client is gone
        with AmqpBroker(url, connect_timeout=30) as broker, broker.consume(queue, 1) as consumer:
            while (delivery := consumer.next(timeout=1)) is None:
                assert time.monotonic() < until, "the message was lost"
            assert (delivery.message_id, delivery.attempts) == ("a", 1)
            consumer.ack(delivery)


@pytest.mark.rabbitmq
def test_a_client_leaves_a_hanging_broker_and_can_come_back(rabbitmq_url: str) -> None:
    proxy, url = proxied(rabbitmq_url)
    with AmqpBroker(url, connect_timeout=10) as broker:
        left = threading.Event()

        def leave() -> None:
            with Submission(broker, by_uri=False):
                proxy.stall(True)
            left.set()

        threading.Thread(target=leave, daemon=True).start()
        assert left.wait(ENDS_WITHIN_S)
        proxy.stall(False)
        assert broker.queue_state("gliaflow.no-such-queue") is None, "it waits again as long as an outage takes"

"""Three RabbitMQ nodes (``deploy/compose.cluster.yml``) lose no scan when nodes die. Run by ``make test-compose``."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from compose.stack import Stack, clone
from gliaflow.scans import Input
from gliaflow.submission import Submission
from gliaflow_proto import PredictionMessage
from gliaflow_proto.routing import STAGE_QUEUES
from gliaflow_runtime.broker.connect import connect
from sample_scans import good_scan

NODES = ("rabbitmq", "rabbitmq-2", "rabbitmq-3")
PORTS = (25682, 25683, 25684)
BROKER = f"amqp://gliaflow:gliaflow@{','.join(f'localhost:{port}' for port in PORTS)}/"
IN_FLIGHT = 6

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]


class Cluster(Stack):
    def queues(self, node: str = "rabbitmq") -> dict[str, dict[str, object]]:
        """Each queue with its ``leader``, its ``members`` and the members that are ``online``.

        The console's view of the traffic is left out: it is on one node, and opened anew on another.
        """
        rabbitmqctl = ("exec", "-T", "-u", "rabbitmq", node, "rabbitmqctl", "-q", "--formatter", "json")
        listed = json.loads(self.compose(*rabbitmqctl, "list_queues", "name", "leader", "members", "online"))
        return {queue["name"]: queue for queue in listed if not queue["name"].startswith("gliaflow.console.")}

    def kill(self, *nodes: str) -> None:
        self.compose("kill", "--signal", "KILL", *nodes)

    def revive(self, *nodes: str) -> None:
        """Start the nodes and wait until each queue is on all three again."""
        self.compose("up", "--no-deps", "--no-recreate", "--wait", "--detach", *nodes)
        wait_until(lambda: all(len(queue["online"]) == 3 for queue in self.queues().values()))  # type: ignore[arg-type]


def wait_until(condition: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(
        clone(tmp_path_factory),
        "deploy/compose.cluster.yml",
        COMPOSE_PROJECT_NAME="gliaflow-cluster-test",
        GLIAFLOW_AMQP_PORT=str(PORTS[0]),
        GLIAFLOW_AMQP_PORT_2=str(PORTS[1]),
        GLIAFLOW_AMQP_PORT_3=str(PORTS[2]),
        GLIAFLOW_MANAGEMENT_PORT="25685",
        GLIAFLOW_CONSOLE_PORT="25686",
    )
    try:
        cluster.compose("up", "--build", "--wait", "--detach")
        yield cluster
    finally:
        cluster.compose("down", "--volumes", "--timeout", "20")


class Stream:
    """A thread that sends scans, a few at a time, and collects the answers until ``finish`` is called."""

    def __init__(self, scan: Path) -> None:
        self.sent: dict[str, float] = {}
        self.answers: dict[str, set[str]] = {}  # by scan: the ids of its answers
        self.copies = 0
        self.longest = 0.0
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=[scan], daemon=True)
        self._thread.start()

    def _run(self, scan: Path) -> None:
        try:
            with connect(BROKER, connect_timeout=30) as broker, Submission(broker, by_uri=False) as submission:
                while not self._stop.is_set() or len(self.answers) < len(self.sent):
                    while not self._stop.is_set() and len(self.sent) - len(self.answers) < IN_FLIGHT:
                        name = f"s{len(self.sent)}"
                        self.sent[submission.submit(Input(scan, name, name))] = time.monotonic()
                    answer = submission.answer(timeout=1)
                    if answer is not None:
                        assert isinstance(answer, PredictionMessage), answer
                        self.copies += answer.scan.id in self.answers
                        self.answers.setdefault(answer.scan.id, set()).add(answer.id)
                        self.longest = max(self.longest, time.monotonic() - self.sent[answer.scan.id])
        except BaseException as error:
            self.failure = error

    def finish(self) -> None:
        """Stop sending, wait for the answers, and check that each scan has exactly one."""
        self._stop.set()
        self._thread.join(timeout=240)
        assert self.failure is None, self.failure
        assert not self._thread.is_alive(), f"{len(self.sent) - len(self.answers)} scans without an answer"
        assert set(self.answers) == set(self.sent)
        assert all(len(ids) == 1 for ids in self.answers.values())
        print(f"{len(self.sent)} scans, {self.copies} copies of answers, slowest {self.longest:.1f} s")


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    good_scan(tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def assert_no_dead_letters() -> None:
    with connect(BROKER) as broker:
        assert {queue.dead: broker.depth(queue.dead) for queue in STAGE_QUEUES if broker.depth(queue.dead)} == {}


def test_each_queue_is_on_three_nodes_and_the_leaders_are_spread(cluster: Cluster) -> None:
    queues = cluster.queues()
    assert {f"gliaflow.{stage}" for stage in ("preprocessor", "extractor", "classifier", "assembler")} <= set(queues)
    assert {name: len(queue["members"]) for name, queue in queues.items()} == dict.fromkeys(queues, 3)  # type: ignore[arg-type]
    wait_until(lambda: len({queue["leader"] for queue in cluster.queues().values()}) == 3)


def test_killing_each_node_in_turn_loses_no_scan(cluster: Cluster, scan: Path) -> None:
    """The leader of the extractor's queue goes first."""
    stream = Stream(scan)
    leader = str(cluster.queues()["gliaflow.extractor"]["leader"]).removeprefix("rabbit@")
    for node in (leader, *(other for other in NODES if other != leader)):
        time.sleep(random.uniform(1, 4))
        cluster.kill(node)
        answered = len(stream.answers)
        wait_until(lambda answered=answered: len(stream.answers) > answered + IN_FLIGHT)  # two nodes are enough
        cluster.revive(node)
    stream.finish()
    assert_no_dead_letters()


def test_with_two_of_three_nodes_down_all_clients_wait_and_then_resume(cluster: Cluster, scan: Path) -> None:
    stream = Stream(scan)
    wait_until(lambda: len(stream.answers) > 2)
    cluster.kill("rabbitmq", "rabbitmq-2")
    time.sleep(15)
    answered = len(stream.answers)
    time.sleep(10)
    assert len(stream.answers) == answered, "one node of three must not confirm messages"
    cluster.revive("rabbitmq", "rabbitmq-2")
    wait_until(lambda: len(stream.answers) > answered + IN_FLIGHT)
    stream.finish()
    assert_no_dead_letters()

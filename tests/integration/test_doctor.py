"""``gliaflow doctor`` and ``gliaflow status`` on a real RabbitMQ, with real stages and real mistakes."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import pytest
from broken import good_scan
from gliaflow_cli.client.management import Management, ManagementError
from gliaflow_cli.commands import doctor
from gliaflow_cli.commands.status import read_status
from gliaflow_proto.routing import ALL_QUEUES, EXTRACTOR, GENERATOR, STAGE_QUEUES, Queue
from gliaflow_runtime.broker.connect import connect
from gliaflow_runtime.broker.rabbitmq import AmqpBroker
from gliaflow_runtime.bundle.load import demo_bundle
from gliaflow_runtime.settings import Settings
from gliaflow_runtime.version import VERSION
from processes import free_port
from rich.console import Console

DEFINITIONS = Path(__file__).parents[2] / "deploy" / "rabbitmq" / "definitions.json"


@pytest.fixture
def management(rabbitmq_url: str) -> str:
    url = os.environ.get("GLIAFLOW_TEST_MANAGEMENT")
    if not url:
        pytest.skip("GLIAFLOW_TEST_MANAGEMENT names no management API (tests/rabbitmq.py starts one)")
    return url


@pytest.fixture
def consumers(rabbitmq_url: str) -> Iterator[Callable[..., None]]:
    """Something of a version and bundle that reads a stage's queue: all that the broker sees of a stage."""
    brokers = []

    def start(*queues, version=VERSION, bundle="demo@1"):
        about = {"product": "gliaflow", "version": version, "bundle": bundle}
        broker = connect(rabbitmq_url, about=about)
        brokers.append(broker)
        for queue in queues:
            broker.declare(queue)
            broker.consume(queue, 1)

    yield start
    for broker in brokers:
        broker.close()


@pytest.fixture
def examine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs the doctor in this process; gives its exit code and what it said."""

    def run(inbox=None, out=None, **settings):
        chosen = Settings(**{"state": tmp_path / "state", **settings})
        code = doctor.run_doctor(chosen, Console(markup=False, width=500), inbox=inbox, out=out)
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the bundle out, which takes seconds, where the broker is what is looked at."""
    monkeypatch.setattr(doctor, "_bundle", lambda settings: "left out")


def eventually(look: Callable[[], bool], within_s: float = 60) -> None:
    """The management API learns of connections and queues a few seconds late."""
    deadline = time.monotonic() + within_s
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_all_is_well_in_one_process(examine):
    code, said = examine()
    assert code == 0, said
    assert "wrong" not in said
    assert "all digests match and all networks run" in said


def test_a_changed_file_of_the_bundle_is_named(examine, tmp_path):
    bundle = shutil.copytree(demo_bundle(), tmp_path / "bundle")
    with (bundle / "classifier.onnx").open("ab") as file:
        file.write(b"x")
    code, said = examine(bundle=bundle)
    assert code == 1
    assert "wrong  bundle" in said
    assert f"{bundle / 'classifier.onnx'}: its sha256 is" in said
    assert "copy the bundle again" in said


def test_cuda_without_a_gpu(examine, quick, monkeypatch, tmp_path):
    code, said = examine(device="cuda")
    assert code == 1
    assert "wrong  device: this onnxruntime has no CUDA" in said
    assert "pip install 'gliaflow[serve-gpu]'" in said
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'; exit 18\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert (
        "Driver/library version mismatch: the driver was updated under the running kernel module; reboot"
        in (examine(device="cuda")[1])
    )


def test_folders_that_cannot_be_read_or_written(examine, quick, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    inbox = tmp_path / "inbox"
    inbox.mkdir(mode=0o755)
    inbox.chmod(0o755)
    (inbox / "scan.nii.gz").touch(mode=0o600)
    code, said = examine(inbox=inbox, out=tmp_path / "file")
    assert code == 1
    assert f"{inbox / 'scan.nii.gz'}: the containers' user cannot read it: chmod -R o+rX {inbox}" in said
    assert f"{tmp_path / 'file'} cannot be written" in said
    monkeypatch.setattr(doctor, "NEEDS_BYTES", 2**60)
    assert "free on its disk: make room" in examine()[1]


def test_no_broker_and_how_to_start_one(examine, quick, monkeypatch):
    monkeypatch.setattr(doctor, "open_broker", lambda s, connect_timeout: connect(s.broker, connect_timeout=0.2))
    code, said = examine(broker=f"amqp://guest:guest@127.0.0.1:{free_port()}/")
    assert code == 1
    assert "no RabbitMQ at amqp://guest@127.0.0.1" in said
    assert "docker compose up --wait rabbitmq" in said
    assert "rabbitmqctl import_definitions" in said


@pytest.mark.rabbitmq
def test_a_refused_password(examine, quick, rabbitmq_url):
    wrong = rabbitmq_url.replace("//", "//nobody:").replace(":guest@", "@").replace("nobody:guest", "nobody:x")
    code, said = examine(broker=wrong)
    assert code == 1
    assert "refuses the access" in said


def test_the_expected_policies_are_those_of_the_definitions():
    policies = {p["name"]: p["definition"] for p in json.loads(DEFINITIONS.read_text())["policies"]}
    policies.pop("gliaflow.dead-letters")
    assert policies == {queue.name: doctor.expected_policy(queue) for queue in ALL_QUEUES}


@pytest.mark.rabbitmq
def test_a_broker_on_which_no_stage_has_run(examine, quick, rabbitmq_url):
    code, said = examine(broker=rabbitmq_url)
    assert code == 1
    assert "no stage has run on this broker yet" in said


@pytest.mark.rabbitmq
def test_queues_nobody_reads_and_queues_of_another_kind(examine, quick, consumers, rabbitmq_url):
    channel = pika.BlockingConnection(pika.URLParameters(rabbitmq_url)).channel()
    channel.queue_declare(GENERATOR.name, durable=True)  # a classic queue
    consumers(*(q for q in STAGE_QUEUES if q not in (EXTRACTOR, GENERATOR)))
    with AmqpBroker(rabbitmq_url) as broker:
        broker.declare(EXTRACTOR)
        code, said = examine(broker=rabbitmq_url)
    channel.connection.close()
    assert code == 1
    assert "extractor has no consumer, 0 messages wait: gliaflow serve extractor" in said
    assert "generator: declared by something else than gliaflow (cannot declare 'gliaflow.generator'" in said
    assert "rabbitmqctl delete_queue gliaflow.generator" in said


@pytest.mark.rabbitmq
def test_wrong_and_missing_policies(examine, quick, consumers, management, rabbitmq_url):
    consumers(*STAGE_QUEUES)
    api = Management(rabbitmq_url, management)

    def policy(name: str, queue: Queue, definition: dict[str, object] | None, priority: int = 30) -> None:
        """Sets a policy of a queue; None: takes it away."""
        pattern = f"^{re.escape(queue.name)}$"
        body = {"pattern": pattern, "apply-to": "queues", "priority": priority, "definition": definition}
        headers = {"Authorization": f"Basic {api._key}", "Content-Type": "application/json"}
        method = "DELETE" if definition is None else "PUT"
        url = f"{api.url}/api/policies/%2F/{name}"
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers, method=method)):
            pass

    try:
        policy("mine", EXTRACTOR, doctor.expected_policy(EXTRACTOR) | {"max-length": 7})
        code, said = examine(broker=rabbitmq_url, management=management)
        assert code == 0, said
        assert "ok     policies: those of deploy/rabbitmq, but for extractor max-length 7 instead of 128" in said
        policy("mine", EXTRACTOR, {"max-length": 7, "delivery-limit": 20, "overflow": "drop-head"})
        policy(GENERATOR.name, GENERATOR, None)
        code, said = examine(broker=rabbitmq_url, management=management)
        assert code == 1
        assert "extractor: overflow is 'drop-head', not 'reject-publish', by policy 'mine'" in said
        assert "extractor: dead-letter-exchange is missing" in said
        assert "no policy for generator: queues grow without limit" in said
    finally:
        policy("mine", EXTRACTOR, None)
        policy(GENERATOR.name, GENERATOR, doctor.expected_policy(GENERATOR), priority=10)


@pytest.mark.rabbitmq
def test_stages_of_other_versions_and_bundles(examine, quick, consumers, management, rabbitmq_url):
    consumers(*(q for q in STAGE_QUEUES if q not in (EXTRACTOR, GENERATOR)))
    consumers(GENERATOR, version="0.0.1")
    consumers(EXTRACTOR, bundle="mine@2")
    api = Management(rabbitmq_url, management)
    eventually(lambda: len(api.clients()) == len(STAGE_QUEUES))
    code, said = examine(broker=rabbitmq_url, management=management)
    assert code == 1
    assert f"gliaflow 0.0.1 runs generator, but this is {VERSION}" in said
    assert "the stages serve different bundles (demo@1: " in said
    assert "mine@2: extractor" in said


@pytest.mark.rabbitmq
def test_a_broker_that_blocks_its_publishers(management, rabbitmqctl, rabbitmq_url):
    api = Management(rabbitmq_url, management)
    limit = "1GB"
    rabbitmqctl("set_disk_free_limit", "900000GB")
    try:
        eventually(lambda: bool(api.alarms()))
        with pytest.raises(doctor.Wrong, match=r"blocks all publishers, being short of disk .*make room"):
            doctor._alarms(api)
    finally:
        rabbitmqctl("set_disk_free_limit", limit)
    eventually(lambda: not api.alarms())
    api_of_another_day = Management(rabbitmq_url, management)
    api_of_another_day.alarms = lambda: setattr(api_of_another_day, "clock", time.time() - 60) or []
    with pytest.raises(doctor.Wrong, match="60 s apart"):
        doctor._alarms(api_of_another_day)


@pytest.mark.rabbitmq
def test_without_the_management_api_the_doctor_says_what_it_could_not_see(examine, quick, consumers, rabbitmq_url):
    consumers(*STAGE_QUEUES)
    code, said = examine(broker=rabbitmq_url, management=f"http://127.0.0.1:{free_port()}")
    assert code == 0, said
    assert said.count("not looked at: no management API at http://127.0.0.1") == 3
    assert "GLIAFLOW_MANAGEMENT" in said


@pytest.mark.rabbitmq
def test_a_user_who_may_not_look(management, rabbitmq_url, rabbitmqctl):
    rabbitmqctl("add_user", "plain", "plain")
    try:
        with pytest.raises(ManagementError, match="answers 401: the user needs the tag monitoring"):
            Management(rabbitmq_url, management.replace("tests:tests", "plain:plain")).clients()
    finally:
        rabbitmqctl("delete_user", "plain")


@pytest.mark.rabbitmq
def test_status_of_a_pipeline_at_work(gliaflow, stages, management, rabbitmq_url, tmp_path):
    def status() -> str:
        return gliaflow("status", "--management", management, broker=rabbitmq_url).stdout

    extractor, *_ = stages("extractor", "preprocessor", "classifier", "generator")
    extractor.stop()
    for number in range(3):
        good_scan(tmp_path / f"p{number}.nii.gz", seed=number)
    submit = {"args": ("submit", ".", "--out", "out"), "kwargs": {"broker": rabbitmq_url, "check": False}}
    client = threading.Thread(target=gliaflow, daemon=True, **submit)
    client.start()
    api = Management(rabbitmq_url, management)
    with connect(rabbitmq_url) as broker:
        eventually(lambda: broker.depth(EXTRACTOR.name) >= 3)
        eventually(lambda: len(api.clients()) >= 5)
        said = status()
        extractor = next(line for line in said.splitlines() if line.startswith("extractor"))
        assert int(extractor.split()[1]) >= 3
        assert extractor.split()[3] == "0", "nobody reads it"
        assert "time left: not known, as messages wait" in said
        assert f"classifier   1 running, gliaflow {VERSION}, gliaflow-demo@" in said
        stages("extractor")
        client.join(60)

        def moved() -> bool:
            read = read_status(broker, api, "")
            lines = {line.queue: line for line in read.queues}
            return lines["extractor"].rate_out > 0 and lines["assembler"].rate_in > 0

        eventually(moved)
    told = json.loads(gliaflow("status", "--json", "--management", management, broker=rabbitmq_url).stdout)
    assert told["left_s"] == 0
    assert {stage["queue"] for stage in told["stages"]} == {q.name.removeprefix("gliaflow.") for q in STAGE_QUEUES}


@pytest.mark.rabbitmq
def test_status_without_the_management_api_looks_twice(gliaflow, consumers, rabbitmq_url):
    consumers(EXTRACTOR)
    nowhere = f"http://127.0.0.1:{free_port()}"
    said = gliaflow("status", "--management", nowhere, broker=rabbitmq_url).stdout
    assert "rates are net, over 3 s; work and versions are not known: no management API" in said


def test_status_of_memory_says_what_that_means(gliaflow):
    assert "a broker inside each gliaflow command" in gliaflow("status").stdout

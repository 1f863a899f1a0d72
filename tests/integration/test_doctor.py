"""``gliaflow doctor`` and ``gliaflow status`` on a real RabbitMQ, with real stages and typical mistakes."""

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
from typing import Any
from urllib.parse import quote

import pika
import pytest
from gliaflow_cli.checks import machine
from gliaflow_cli.checks.broker import check_alarms, expected_policy
from gliaflow_cli.checks.outcome import Wrong
from gliaflow_cli.checks.stages import check_client_service
from gliaflow_cli.commands import doctor
from gliaflow_client.management import Management, ManagementError
from gliaflow_client.queues import read_status
from gliaflow_proto.routing import ALL_QUEUES, EXTRACTOR, GENERATOR, STAGE_QUEUES, Queue
from gliaflow_runtime.broker.connect import connect
from gliaflow_runtime.broker.credentials import Credentials
from gliaflow_runtime.bundle.load import demo_bundle
from gliaflow_runtime.settings import Settings
from gliaflow_runtime.version import VERSION
from processes import free_port
from sample_scans import good_scan

DEFINITIONS = Path(__file__).parents[2] / "deploy" / "rabbitmq" / "definitions.json"


@pytest.fixture
def management(rabbitmq_url: str) -> str:
    url = os.environ.get("GLIAFLOW_TEST_MANAGEMENT")
    if not url:
        pytest.skip("GLIAFLOW_TEST_MANAGEMENT names no management API (tests/rabbitmq.py starts one)")
    return url


@pytest.fixture
def consumers(rabbitmq_url: str) -> Iterator[Callable[..., None]]:
    """Starts consumers that look to the broker like stages of some version with some bundle."""
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
    """Runs the doctor in this process. Returns its exit code and its output."""

    def run(inbox=None, out=None, **settings):
        chosen = Settings(**{"state": tmp_path / "state", **settings})
        code = 1 if doctor.examine(chosen, inbox, out) else 0
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def no_bundle_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips the check of the bundle, which takes seconds, in tests of other checks."""
    monkeypatch.setattr(machine, "check_bundle", lambda settings: "skipped")


def eventually(condition: Callable[[], bool], within_s: float = 60) -> None:
    """Wait for the condition: the management API learns of connections and queues a few seconds late."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_no_problem_in_one_process(examine):
    code, output = examine()
    assert code == 0, output
    assert "wrong" not in output
    assert "all digests match and all networks run" in output


def test_changed_file_of_the_bundle_is_reported_by_name(examine, tmp_path):
    bundle = shutil.copytree(demo_bundle(), tmp_path / "bundle")
    with (bundle / "classifier.onnx").open("ab") as file:
        file.write(b"x")
    code, output = examine(bundle=bundle)
    assert code == 1
    assert "wrong  bundle" in output
    assert f"{bundle / 'classifier.onnx'}: its sha256 is" in output
    assert "copy the bundle again" in output


def test_cuda_without_a_gpu_is_reported(examine, no_bundle_check, monkeypatch, tmp_path):
    code, output = examine(device="cuda")
    assert code == 1
    assert "wrong  device: device cuda: this onnxruntime has only" in output
    assert "pip install 'gliaflow[serve-gpu]'" in output
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'; exit 18\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert (
        "Driver/library version mismatch: the driver was updated under the running kernel module; reboot"
        in (examine(device="cuda")[1])
    )


def test_unreadable_and_unwritable_folders_are_reported(examine, no_bundle_check, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    inbox = tmp_path / "inbox"
    inbox.mkdir(mode=0o755)
    inbox.chmod(0o755)
    (inbox / "scan.nii.gz").touch(mode=0o600)
    code, output = examine(inbox=inbox, out=tmp_path / "file")
    assert code == 1
    assert f"{inbox / 'scan.nii.gz'}: the containers' user cannot read it: chmod -R o+rX {inbox}" in output
    assert f"{tmp_path / 'file'} cannot be written" in output
    monkeypatch.setattr(machine, "NEEDS_BYTES", 2**60)
    assert "free on its disk: make room" in examine()[1]


def test_missing_broker_is_reported_with_how_to_start_one(examine, no_bundle_check, monkeypatch):
    monkeypatch.setattr(
        "gliaflow_runner.broker.open_broker", lambda s, connect_timeout: connect(s.broker, connect_timeout=0.2)
    )
    code, output = examine(broker=f"amqp://guest:guest@127.0.0.1:{free_port()}/")
    assert code == 1
    assert "no RabbitMQ at amqp://guest@127.0.0.1" in output
    assert "docker compose up --wait rabbitmq" in output
    assert "rabbitmqctl import_definitions" in output


@pytest.mark.rabbitmq
def test_refused_password_is_reported(examine, no_bundle_check, rabbitmq_url):
    wrong = rabbitmq_url.replace("//", "//nobody:").replace(":guest@", "@").replace("nobody:guest", "nobody:x")
    code, output = examine(broker=wrong)
    assert code == 1
    assert "refuses the access" in output


def test_expected_policies_are_those_of_the_definitions():
    policies = {p["name"]: p["definition"] for p in json.loads(DEFINITIONS.read_text())["policies"]}
    for name in ("gliaflow.dead-letters", "gliaflow.uploads", "gliaflow.answers", "gliaflow.streams"):
        policies.pop(name)
    assert policies == {queue.name: expected_policy(queue) for queue in ALL_QUEUES}


@pytest.mark.rabbitmq
def test_broker_on_which_no_stage_has_run_is_reported(examine, no_bundle_check, rabbitmq_url):
    code, output = examine(broker=rabbitmq_url)
    assert code == 1
    assert "no stage runs on this broker" in output


@pytest.mark.rabbitmq
def test_queues_without_consumer_and_queues_of_another_type_are_reported(
    examine, no_bundle_check, consumers, management, rabbitmq_url
):
    channel = pika.BlockingConnection(pika.URLParameters(rabbitmq_url)).channel()
    channel.queue_delete(GENERATOR.name)
    channel.queue_declare(GENERATOR.name, durable=True)  # a classic queue
    consumers(*(q for q in STAGE_QUEUES if q != EXTRACTOR))
    code, output = examine(broker=rabbitmq_url, management=management)
    channel.connection.close()
    assert code == 1
    assert "extractor has no consumer, 0 messages wait: gliaflow serve extractor" in output
    assert "generator: not declared by gliaflow" in output
    assert "rabbitmqctl delete_queue gliaflow.generator" in output
    assert "generator: not bound to the exchange gliaflow.client with the key generate" in output


@pytest.mark.rabbitmq
def test_wrong_and_missing_policies_are_reported(examine, no_bundle_check, consumers, management, rabbitmq_url):
    consumers(*STAGE_QUEUES)
    api = Management(rabbitmq_url, management)

    def policy(name: str, queue: Queue, definition: dict[str, object] | None, priority: int = 30) -> None:
        """Set a policy of a queue, or delete it where the definition is None."""
        pattern = f"^{re.escape(queue.name)}$"
        body = {"pattern": pattern, "apply-to": "queues", "priority": priority, "definition": definition}
        headers = {"Authorization": f"Basic {api._key}", "Content-Type": "application/json"}
        method = "DELETE" if definition is None else "PUT"
        url = f"{api.url}/api/policies/%2F/{name}"
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers, method=method)):
            pass

    try:
        policy("mine", EXTRACTOR, expected_policy(EXTRACTOR) | {"max-length": 7})
        code, output = examine(broker=rabbitmq_url, management=management)
        assert code == 0, output
        assert "ok     policies: those of deploy/rabbitmq, but for extractor max-length 7 instead of 128" in output
        policy("mine", EXTRACTOR, {"max-length": 7, "delivery-limit": 20, "overflow": "drop-head"})
        policy(GENERATOR.name, GENERATOR, None)
        code, output = examine(broker=rabbitmq_url, management=management)
        assert code == 1
        assert "extractor: overflow is 'drop-head', not 'reject-publish', by policy 'mine'" in output
        assert "extractor: dead-letter-exchange is missing" in output
        assert "no policy for generator: queues grow without limit" in output
    finally:
        policy("mine", EXTRACTOR, None)
        policy(GENERATOR.name, GENERATOR, expected_policy(GENERATOR), priority=10)


@pytest.mark.rabbitmq
def test_stages_of_other_versions_and_bundles_are_reported(
    examine, no_bundle_check, consumers, management, rabbitmq_url
):
    consumers(*(q for q in STAGE_QUEUES if q not in (EXTRACTOR, GENERATOR)))
    consumers(GENERATOR, version="0.0.1")
    consumers(EXTRACTOR, bundle="mine@2")
    api = Management(rabbitmq_url, management)
    eventually(lambda: len(api.clients()) == len(STAGE_QUEUES))
    code, output = examine(broker=rabbitmq_url, management=management)
    assert code == 1
    assert f"gliaflow 0.0.1 runs generator, but this is {VERSION}" in output
    assert "the stages serve different bundles (demo@1: " in output
    assert "mine@2: extractor" in output


@pytest.mark.rabbitmq
def test_alarm_that_blocks_publishers_and_a_wrong_clock_are_reported(management, rabbitmqctl, rabbitmq_url):
    api = Management(rabbitmq_url, management)
    limit = "1GB"
    rabbitmqctl("set_disk_free_limit", "900000GB")
    try:
        eventually(lambda: bool(api.alarms()))
        with pytest.raises(Wrong, match=r"blocks all publishers, being short of disk .*make room"):
            check_alarms(api)
    finally:
        rabbitmqctl("set_disk_free_limit", limit)
    eventually(lambda: not api.alarms())
    slow_clock = Management(rabbitmq_url, management)
    slow_clock.alarms = lambda: setattr(slow_clock, "clock", time.time() - 60) or []
    with pytest.raises(Wrong, match="60 s apart"):
        check_alarms(slow_clock)


@pytest.mark.rabbitmq
def test_checks_that_need_the_management_api_are_reported_as_skipped_without_it(
    examine, no_bundle_check, consumers, rabbitmq_url
):
    consumers(*STAGE_QUEUES)
    code, output = examine(broker=rabbitmq_url, management=f"http://127.0.0.1:{free_port()}")
    assert code == 0, output
    assert output.count("not checked: no management API at http://127.0.0.1") == 7
    assert "GLIAFLOW_MANAGEMENT" in output


@pytest.mark.rabbitmq
def test_a_password_with_special_characters_is_percent_encoded(gliaflow, management, rabbitmq_url, rabbitmqctl):
    password = "p#/?@%: é"
    rabbitmqctl("add_user", "special", password)
    try:
        rabbitmqctl("set_user_tags", "special", "monitoring")
        rabbitmqctl("set_permissions", "special", "", "", ".*")
        node = rabbitmq_url.rpartition("@")[2]
        gliaflow("status", broker=f"amqp://special:{quote(password, safe='')}@{node}")  # raises if it fails
        api = Management(f"amqp://special:{quote(password, safe='')}@{node}", management.replace("tests:tests@", ""))
        assert api.clients() == []
        refused = gliaflow("status", broker=f"amqp://special:{password}@{node}", check=False)
        assert refused.returncode == 2
        assert refused.stderr.startswith("gliaflow: GLIAFLOW_BROKER: special characters of user and password must be")
        assert "p#" not in refused.stderr
    finally:
        rabbitmqctl("delete_user", "special")


@pytest.mark.rabbitmq
def test_user_without_the_monitoring_tag_is_reported(management, rabbitmq_url, rabbitmqctl):
    rabbitmqctl("add_user", "plain", "plain")
    try:
        with pytest.raises(ManagementError, match="answers 401: the user needs the tag monitoring"):
            Management(rabbitmq_url, management.replace("tests:tests", "plain:plain")).clients()
    finally:
        rabbitmqctl("delete_user", "plain")


@pytest.mark.rabbitmq
def test_status_of_a_working_pipeline(gliaflow, stages, management, rabbitmq_url, tmp_path):
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
    submits = 1
    with connect(rabbitmq_url) as broker:
        eventually(lambda: broker.depth(EXTRACTOR.name) >= 3)
        eventually(lambda: len(api.clients()) >= 5)
        output = ""

        def names_the_queue_without_consumer() -> bool:
            nonlocal output
            output = status()
            return "time left: not known, as messages wait, and no consumer reads them: extractor" in output

        eventually(names_the_queue_without_consumer)  # the management API's numbers are some seconds old
        extractor = next(line for line in output.splitlines() if line.startswith("extractor"))
        assert int(extractor.split()[1]) >= 3
        assert extractor.split()[3] == "0", "it has no consumer"
        assert f"classifier   1 running, gliaflow {VERSION}, gliaflow-demo@" in output
        stages("extractor")
        client.join(60)

        def messages_flow() -> bool:
            nonlocal submits
            gliaflow("submit", ".", "--out", f"out{submits}", broker=rabbitmq_url)
            submits += 1
            read = read_status(broker, api, "")
            lines = {line.queue: line for line in read.queues}
            return lines["extractor"].rate_out > 0 and lines["assembler"].rate_in > 0

        # A rate needs messages between two samples of RabbitMQ, which takes one every 5 seconds.
        eventually(messages_flow)

    def remembers_the_ended_scans() -> bool:
        nonlocal report
        report = json.loads(gliaflow("status", "--json", "--management", management, broker=rabbitmq_url).stdout)
        assembler = next(line for line in report["queues"] if line["queue"] == "assembler")
        kept = assembler["waiting"], assembler["in_work"], assembler["kept"]
        return kept == (0, 0, 3 * submits) and bool(report["left_s"] == 0)

    report: dict[str, Any] = {}
    eventually(remembers_the_ended_scans)  # the management API's numbers are some seconds old
    assert "idle: no message waits or is in work" in status()
    assert {stage["queue"] for stage in report["stages"]} == {q.name.removeprefix("gliaflow.") for q in STAGE_QUEUES}


@pytest.mark.rabbitmq
@pytest.mark.parametrize(
    ("user", "start"), [("dicom", "docker compose --profile dicom up"), ("console", "docker compose up --wait console")]
)
def test_status_and_doctor_show_a_connected_dicom_node_and_console(management, rabbitmq_url, secrets, user, start):
    api = Management(rabbitmq_url, management)
    assert f"none connected as the user {user}; to start one: {start}" in check_client_service(api, user)
    url = f"amqp://{user}@" + rabbitmq_url.rpartition("@")[2]
    about = {"product": "gliaflow", "version": VERSION}
    with connect(url, credentials=Credentials(secrets / user / "password"), about=about) as broker:
        eventually(lambda: api.client_services()[user] == [VERSION])
        assert read_status(broker, api, "").services[user] == [VERSION]
        assert check_client_service(api, user) == f"1 connected, gliaflow {VERSION}"
    about["version"] = "0.0.9"
    with connect(url, credentials=Credentials(secrets / user / "password"), about=about):
        eventually(lambda: api.client_services()[user] == ["0.0.9"])
        with pytest.raises(Wrong, match=r"it is gliaflow 0\.0\.9, but this is"):
            check_client_service(api, user)


@pytest.mark.rabbitmq
def test_status_without_the_management_api_measures_rates_from_two_readings(gliaflow, consumers, rabbitmq_url):
    consumers(EXTRACTOR)
    nowhere = f"http://127.0.0.1:{free_port()}"
    output = gliaflow("status", "--management", nowhere, broker=rabbitmq_url).stdout
    assert "rates are net, over 3 s; work and versions are not known: no management API" in output


def test_status_of_a_memory_broker_explains_that_each_command_has_its_own(gliaflow):
    assert "a broker inside each gliaflow command" in gliaflow("status").stdout

"""Messages of older and later versions of gliaflow, and limits that change while stages run: docs/upgrading.md."""

import json
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import msgpack
import pytest
from gliaflow_proto import Queue, decode, submission_queue
from gliaflow_proto.routing import EXTRACTOR, PREPROCESSOR
from gliaflow_runtime.broker.connect import connect
from gliaflow_runtime.broker.interface import REASON
from processes import environment
from sample_scans import good_scan

pytestmark = pytest.mark.rabbitmq
DEFINITIONS = Path(__file__).parents[2] / "deploy" / "rabbitmq" / "definitions.json"


@pytest.fixture
def broker(rabbitmq_url):
    with connect(rabbitmq_url) as broker:
        yield broker


@pytest.fixture
def scan(tmp_path):
    return good_scan(tmp_path / "scan.nii.gz").read_bytes()


def eventually(condition, within_s=60):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def take(broker, queue):
    """The next message of the queue, acknowledged."""
    with broker.consume(queue, 1) as consumer:
        delivery = consumer.next(60)
        assert delivery is not None, f"nothing in {queue.name}"
        consumer.ack(delivery)
    return delivery


def test_old_and_new_messages_of_one_schema_get_the_same_answer(broker, stages, scan):
    """The oldest message has only the required fields. The newest has fields that this version does not know."""
    stages("preprocessor", "extractor", "classifier")
    answers = submission_queue(uuid.uuid4().hex)
    broker.declare(answers)
    submission = answers.keys[0].removeprefix("prediction.")
    oldest = {"schema": "gliaflow/1", "kind": "scan", "id": "m1", "scan": {"id": "old", "submission": submission}}
    newest = {
        **oldest,
        "id": "m2",
        "scan": {"id": "new", "submission": submission, "ward": "7"},
        "urgent": True,
        "tensors": {"thumbnail": {"dtype": "FP8", "shape": "unknown"}},
    }
    for message, source in ((oldest, {"data": scan}), (newest, {"data": scan, "sha256": "of the file"})):
        broker.publish("scan", msgpack.packb({**message, "source": source}), message_id=message["id"])
    bodies = [take(broker, answers).body for _ in range(2)]
    broker.delete(answers.name)
    old, new = sorted((decode(body) for body in bodies), key=lambda answer: answer.scan.id != "old")
    assert (old.scan.id, new.scan.id) == ("old", "new")
    assert (old.kind, old.p_hgg) == (new.kind, new.p_hgg)
    assert (old.mask == new.mask).all()
    assert not any(b"ward" in body for body in bodies), "stages do not pass on unknown fields"


def test_message_of_a_later_schema_is_kept_until_the_stage_is_upgraded(
    broker, stages, scan, gliaflow, tmp_path, rabbitmq_url
):
    (old,) = stages("preprocessor")
    slices = Queue("gliaflow.test-upgrade", ("slices",), expires_s=600)
    broker.declare(slices)
    message = {"schema": "gliaflow/1", "kind": "scan", "id": "m", "scan": {"id": "s"}, "source": {"data": scan}}
    later = msgpack.packb({**message, "schema": "gliaflow/2", "id": "later"})
    broker.publish("scan", later, message_id="later")
    broker.publish(
        "scan", msgpack.packb({**message, "kind": "scan-with-two-channels", "id": "kind"}), message_id="kind"
    )
    broker.publish("scan", msgpack.packb(message), message_id="m")
    assert decode(take(broker, slices).body).scan.id == "s", "messages behind it are processed"
    letters = {}
    with broker.consume(Queue(PREPROCESSOR.dead), 10) as consumer:
        for _ in range(2):
            letter = consumer.next(30)
            letters[letter.message_id] = letter
    assert letters["later"].body == later, "the dead letter is the whole message"
    assert "'gliaflow/2', but this gliaflow reads only 'gliaflow/1'" in letters["later"].headers[REASON]
    assert "kind: 'scan-with-two-channels' is not one of" in letters["kind"].headers[REASON]
    eventually(lambda: broker.depth(PREPROCESSOR.dead) == 2)

    assert old.stop() == 0
    upgraded = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import gliaflow_proto.messages as m, gliaflow_proto.reading as r; m.SCHEMA = r.SCHEMA = 'gliaflow/2'; "
            "from gliaflow_cli.main import main; main()",
            *("serve", "preprocessor", "--threads", "1"),
        ],
        env=environment(tmp_path, rabbitmq_url),
    )
    try:
        gliaflow("dead", "replay", "later", broker=rabbitmq_url)
        message = msgpack.unpackb(take(broker, slices).body)
    finally:
        upgraded.send_signal(signal.SIGTERM)
        assert upgraded.wait(60) == 0
    assert (message["schema"], message["kind"], message["scan"]["id"]) == ("gliaflow/2", "slices", "s")
    assert broker.depth(PREPROCESSOR.dead) == 1, "the other dead letter stays"
    broker.delete(slices.name)


def test_changed_policy_applies_at_once_without_restarts(broker, stages, scan, rabbitmqctl):
    policies = {policy["name"]: policy for policy in json.loads(DEFINITIONS.read_text())["policies"]}
    policy = policies[EXTRACTOR.name]

    def set_max_length(length):
        definition = json.dumps({**policy["definition"], "max-length": length})
        options = ("--priority", str(policy["priority"]), "--apply-to", policy["apply-to"])
        rabbitmqctl("set_policy", *options, policy["name"], policy["pattern"], definition)

    (preprocessor,) = stages("preprocessor")
    broker.declare(EXTRACTOR)  # without a consumer
    try:
        set_max_length(2)
        for number in range(8):
            message = {"schema": "gliaflow/1", "kind": "scan", "id": f"m{number}", "scan": {"id": f"s{number}"}}
            broker.publish("scan", msgpack.packb({**message, "source": {"data": scan}}), message_id=f"m{number}")
        eventually(lambda: 'gliaflow_full_queue_total{stage="preprocessor"}' in preprocessor.get("/metrics")[1])
        assert broker.depth(EXTRACTOR.name) < 8, "the stage waits"
        set_max_length(128)
        eventually(lambda: broker.depth(EXTRACTOR.name) == 8)
        assert preprocessor.process.poll() is None
        assert preprocessor.log.read_text().count('"consuming"') == 1, "the stage did not reconnect"
    finally:
        set_max_length(policy["definition"]["max-length"])

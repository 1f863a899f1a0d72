"""Messages of an older and of a later gliaflow before stages of this one, and limits that change while they run.

What is seen here is what docs/upgrading.md says.
"""

import json
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import msgpack
import pytest
from broken import good_scan
from gliaflow_proto import Queue, decode, submission_queue
from gliaflow_proto.routing import EXTRACTOR, PREPROCESSOR
from gliaflow_runtime.broker.connect import connect
from gliaflow_runtime.broker.interface import REASON
from processes import environment

pytestmark = pytest.mark.rabbitmq
DEFINITIONS = Path(__file__).parents[2] / "deploy" / "rabbitmq" / "definitions.json"


@pytest.fixture
def broker(rabbitmq_url):
    with connect(rabbitmq_url) as broker:
        yield broker


@pytest.fixture
def scan(tmp_path):
    return good_scan(tmp_path / "scan.nii.gz").read_bytes()


def eventually(check, within_s=60):
    until = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.1)


def take(broker, queue):
    with broker.consume(queue, 1) as consumer:
        delivery = consumer.next(60)
        assert delivery is not None, f"nothing in {queue.name}"
        consumer.ack(delivery)
    return delivery


def test_old_and_new_messages_of_one_schema_are_answered_alike(broker, stages, scan):
    """The oldest has the required fields and no more; the newest has fields that nobody here knows."""
    stages("preprocessor", "extractor", "classifier")
    mine = submission_queue(uuid.uuid4().hex)
    broker.declare(mine)
    me = mine.keys[0].removeprefix("prediction.")
    oldest = {"schema": "gliaflow/1", "kind": "scan", "id": "m1", "scan": {"id": "old", "submission": me}}
    newest = {
        **oldest,
        "id": "m2",
        "scan": {"id": "new", "submission": me, "ward": "7"},
        "urgent": True,
        "tensors": {"thumbnail": {"dtype": "FP8", "shape": "none that is known"}},
    }
    for message, source in ((oldest, {"data": scan}), (newest, {"data": scan, "sha256": "of the file"})):
        broker.publish("scan", msgpack.packb({**message, "source": source}), message_id=message["id"])
    bodies = [take(broker, mine).body for _ in range(2)]
    broker.delete(mine.name)
    old, new = sorted((decode(body) for body in bodies), key=lambda answer: answer.scan.id != "old")
    assert (old.scan.id, new.scan.id) == ("old", "new")
    assert (old.kind, old.p_hgg) == (new.kind, new.p_hgg)
    assert (old.mask == new.mask).all()
    assert not any(b"ward" in body for body in bodies), "a stage does not pass on what it does not know"


def test_a_message_of_a_later_schema_keeps_until_the_stage_is_upgraded(
    broker, stages, scan, gliaflow, tmp_path, rabbitmq_url
):
    (old,) = stages("preprocessor")
    seen = Queue("gliaflow.test-upgrade", ("slices",), expires_s=600)
    broker.declare(seen)
    message = {"schema": "gliaflow/1", "kind": "scan", "id": "m", "scan": {"id": "s"}, "source": {"data": scan}}
    later = msgpack.packb({**message, "schema": "gliaflow/2", "id": "later"})
    broker.publish("scan", later, message_id="later")
    broker.publish(
        "scan", msgpack.packb({**message, "kind": "scan-with-two-channels", "id": "kind"}), message_id="kind"
    )
    broker.publish("scan", msgpack.packb(message), message_id="m")
    assert decode(take(broker, seen).body).scan.id == "s", "what is behind it goes on"
    letters = {}
    with broker.consume(Queue(PREPROCESSOR.dead), 10) as consumer:
        for _ in range(2):
            letter = consumer.next(30)
            letters[letter.message_id] = letter
    assert letters["later"].body == later, "nothing of it is lost"
    assert "'gliaflow/2', but this reader knows 'gliaflow/1' only" in letters["later"].headers[REASON]
    assert "kind: 'scan-with-two-channels' is not one of" in letters["kind"].headers[REASON]
    eventually(lambda: broker.depth(PREPROCESSOR.dead) == 2)

    assert old.stop() == 0
    upgraded = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import gliaflow_proto.messages as m; m.SCHEMA = 'gliaflow/2'; from gliaflow_cli.main import main; main()",
            *("serve", "preprocessor", "--threads", "1"),
        ],
        env=environment(tmp_path, rabbitmq_url),
    )
    try:
        gliaflow("dead", "replay", "later", broker=rabbitmq_url)
        made = msgpack.unpackb(take(broker, seen).body)
    finally:
        upgraded.send_signal(signal.SIGTERM)
        assert upgraded.wait(60) == 0
    assert (made["schema"], made["kind"], made["scan"]["id"]) == ("gliaflow/2", "slices", "s")
    assert broker.depth(PREPROCESSOR.dead) == 1, "the other kind stays where it is"
    broker.delete(seen.name)


def test_a_policy_that_is_changed_holds_at_once_and_no_stage_starts_again(broker, stages, scan, rabbitmqctl):
    policies = {policy["name"]: policy for policy in json.loads(DEFINITIONS.read_text())["policies"]}
    policy = policies[EXTRACTOR.name]

    def set_most(most):
        definition = json.dumps({**policy["definition"], "max-length": most})
        options = ("--priority", str(policy["priority"]), "--apply-to", policy["apply-to"])
        rabbitmqctl("set_policy", *options, policy["name"], policy["pattern"], definition)

    (preprocessor,) = stages("preprocessor")
    broker.declare(EXTRACTOR)  # and nobody takes from it
    try:
        set_most(2)
        for number in range(8):
            message = {"schema": "gliaflow/1", "kind": "scan", "id": f"m{number}", "scan": {"id": f"s{number}"}}
            broker.publish("scan", msgpack.packb({**message, "source": {"data": scan}}), message_id=f"m{number}")
        eventually(lambda: 'gliaflow_full_queue_total{stage="preprocessor"}' in preprocessor.get("/metrics")[1])
        assert broker.depth(EXTRACTOR.name) < 8, "the stage is held up"
        set_most(128)
        eventually(lambda: broker.depth(EXTRACTOR.name) == 8)
        assert preprocessor.process.poll() is None
        assert preprocessor.log.read_text().count('"consuming"') == 1, "nor did it connect again"
    finally:
        set_most(policy["definition"]["max-length"])

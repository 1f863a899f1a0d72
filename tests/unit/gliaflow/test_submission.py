"""Whoever waits for answers believes none that cannot be read, and goes on waiting for those that can."""

import os
import time

import msgpack
import pytest
from broken import good_scan
from gliaflow.submission import Input, Submission
from gliaflow_cli.client.table import submit
from gliaflow_proto import FailureMessage, Scan, encode
from gliaflow_runtime.broker.connect import connect
from sample_messages import ONE_OF_EACH, changed

PREDICTION = ONE_OF_EACH[4]
ODD = [
    b"not msgpack",
    changed(PREDICTION, schema="gliaflow/2"),
    changed(PREDICTION, affine=[0.0] * 16),
    changed(PREDICTION, tensors__mask__shape=[120]),
    changed(PREDICTION, tensors__mask={"dtype": "FP64", "shape": [1, 1, 1], "data": bytes(8)}),
    encode(ONE_OF_EACH[0]),
]


@pytest.fixture
def broker(request):
    with connect(f"memory://{request.node.name}") as broker:
        yield broker


def test_an_answer_that_cannot_be_read_is_passed_over_and_the_next_one_given(broker):
    with Submission(broker, by_uri=False) as submission:
        key = f"prediction.{submission.id}"
        for body in ODD:
            broker.publish(key, body)
        news = FailureMessage(id="f", scan=Scan(id="s", submission=submission.id), stage="extractor", reason="because")
        broker.publish(key, encode(news))
        assert submission.answer(5) == news
        assert "a scan message is no answer" in submission.unreadable
        started = time.monotonic()
        assert submission.answer(0.2) is None
        assert time.monotonic() - started < 2


def test_a_scan_whose_answer_cannot_be_read_fails_with_the_reason(broker, tmp_path):
    from gliaflow_proto.routing import PREPROCESSOR

    broker.declare(PREPROCESSOR)
    path = good_scan(tmp_path / "scan.nii.gz")

    def answer():
        with broker.consume(PREPROCESSOR, 1) as consumer:
            if (delivery := consumer.next(0.1)) is not None:
                consumer.ack(delivery)
                submission = msgpack.unpackb(delivery.body)["scan"]["submission"]
                broker.publish(f"prediction.{submission}", changed(PREDICTION, schema="gliaflow/2"))

    (row,) = submit([Input(path, "scan", "p")], tmp_path / "out", broker, by_uri=False, timeout_s=1, alive=answer)
    assert row.status == "failed"
    assert (
        "no answer that can be read within 1 s: schema: 'gliaflow/2', but this reader knows 'gliaflow/1'" in row.error
    )


@pytest.mark.timeout(60)
@pytest.mark.parametrize("by_uri", [True, False])
def test_a_pipe_among_the_scans_is_not_waited_for(broker, tmp_path, by_uri):
    os.mkfifo(tmp_path / "scan.nii")
    item = Input(tmp_path / "scan.nii", "scan", "p")
    (row,) = submit([item], tmp_path / "out", broker, by_uri=by_uri, timeout_s=1)
    assert row.status == "failed"
    assert "is no ordinary file" in row.error

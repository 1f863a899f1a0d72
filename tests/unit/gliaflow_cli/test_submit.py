"""A client goes on through what befalls its messages and its answers."""

import threading
import time
from pathlib import Path

import pytest
from gliaflow.submission import Input
from gliaflow_cli.client.table import PATIENCE, Row, submit
from gliaflow_cli.commands import watch
from gliaflow_proto import FailureMessage, Queue, ScanMessage, decode, encode, message_id, routing_key
from gliaflow_proto.routing import PREPROCESSOR
from gliaflow_runtime.broker.memory import MemoryBroker


class Pipeline:
    """Stands where the stages do: takes scans, and answers them as ``answer`` says."""

    def __init__(self, answer):
        self.broker, self.seen, self._answer = MemoryBroker(), [], answer
        self.broker.declare(PREPROCESSOR)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _run(self):
        with self.broker.attach() as broker, broker.consume(PREPROCESSOR, 10) as consumer:
            while not self._over.is_set():
                if delivery := consumer.next(0.05):
                    message = decode(delivery.body)
                    self.seen.append(message)
                    self._answer(broker, message)
                    consumer.ack(delivery)


def answered(broker, message, reason="an answer"):
    news = FailureMessage(id=message_id(message.id, "f"), scan=message.scan, stage="test", reason=reason)
    broker.publish(routing_key(news), encode(news), message_id=news.id, mandatory=False)


@pytest.fixture
def scans(tmp_path):
    paths = [tmp_path / f"s{number}.nii" for number in range(3)]
    for path in paths:
        path.write_bytes(b"a scan")
    return [Input(path, path.stem, path.stem) for path in paths]


def test_a_scan_that_got_lost_is_sent_again_when_nothing_comes_any_more(scans, tmp_path):
    """The queue that it was in was deleted, say."""

    def forgetful(broker, message):
        if message.scan.name != "s1" or message.scan.attempt:
            answered(broker, message)

    with Pipeline(forgetful) as pipeline:
        rows = submit(scans, tmp_path / "out", pipeline.broker.attach(), by_uri=False, timeout_s=PATIENCE * 0.3)
    assert [row.error for row in rows] == ["test: an answer"] * 3
    assert [(m.scan.name, m.scan.attempt) for m in pipeline.seen] == [("s0", 0), ("s1", 0), ("s2", 0), ("s1", 1)]
    first, again = (m for m in pipeline.seen if m.scan.name == "s1")
    assert first.id == again.id


def test_what_is_too_large_for_a_message_is_uploaded_again_too(scans, tmp_path, monkeypatch):
    monkeypatch.setattr("gliaflow.submission.BY_VALUE_BYTES", 4)
    uploads = []

    def forgetful(broker, message):
        with broker.consume(Queue(message.source.upload), 10) as chunks:
            uploads.append(b"".join(chunks.next(1).body for _ in range(message.source.chunks)))
        if message.scan.attempt:
            answered(broker, message)

    with Pipeline(forgetful) as pipeline:
        submit(scans[:1], tmp_path / "out", pipeline.broker.attach(), by_uri=False, timeout_s=PATIENCE * 0.3)
        assert uploads == [b"a scan"] * 2
        assert [pipeline.broker.depth(m.source.upload) for m in pipeline.seen] == [0, 0], "and both are cleared away"


def test_what_is_no_answer_does_not_end_the_client(scans, tmp_path):
    def poisonous(broker, message):
        for body in (b"garbage", encode(ScanMessage(id="x", scan=message.scan, source=message.source))):
            broker.publish(f"prediction.{message.scan.submission}", body, mandatory=False)
        answered(broker, message)

    with Pipeline(poisonous) as pipeline:
        rows = submit(scans, tmp_path / "out", pipeline.broker.attach(), by_uri=False, timeout_s=30)
    assert [row.error for row in rows] == ["test: an answer"] * 3


@pytest.mark.parametrize("jump_s", [-86400, 86400])
def test_an_inbox_is_answered_once_though_the_clock_jumps(scans, tmp_path, monkeypatch, jump_s):
    (tmp_path / "out").mkdir()
    jumped = time.time_ns() + jump_s * 10**9
    monkeypatch.setattr("gliaflow_cli.commands.watch.time.time_ns", lambda: jumped)
    found = watch._new(tmp_path, tmp_path / "out")
    assert [item.name for item, _ in found] == ["s0", "s1", "s2"]
    time.sleep(0.01)
    scans[2].path.write_bytes(b"another scan, while the first is in work")
    for item, changed in found:
        watch._write_answer(tmp_path / "out", item, Row(item.name, item.patient), changed)
    assert [item.name for item, _ in watch._new(tmp_path, tmp_path / "out")] == ["s2"]
    time.sleep(0.01)
    scans[1].path.write_bytes(b"another scan, after the answer")
    assert [item.name for item, _ in watch._new(tmp_path, tmp_path / "out")] == ["s1", "s2"]


def test_an_answer_that_could_not_be_written_whole_is_none(scans, tmp_path, monkeypatch):
    def full(self, *_, **__):
        self.touch()
        raise OSError("no space left on device")

    (tmp_path / "out").mkdir()
    later = time.time_ns() + 10**11
    monkeypatch.setattr("gliaflow_cli.commands.watch.time.time_ns", lambda: later)
    (found, *_) = watch._new(tmp_path, tmp_path / "out")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        watch._write_answer(tmp_path / "out", found[0], Row(found[0].name, "p"), found[1])
    assert found in watch._new(tmp_path, tmp_path / "out")

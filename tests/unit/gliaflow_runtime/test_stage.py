"""The loop of all stages, on ``memory://``: what happens to a message in each case."""

import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from gliaflow_proto import FailureMessage, GenerateMessage, Queue, Scan, SyntheticMessage, decode, encode
from gliaflow_runtime.broker.interface import REASON
from gliaflow_runtime.broker.memory import Limit, MemoryBroker
from gliaflow_runtime.encoded_outcome import EncodedOutcome
from gliaflow_runtime.logs import configure_logging
from gliaflow_runtime.stage import (
    ANNOUNCE_S,
    EX_SOFTWARE,
    InvalidInput,
    OtherBundle,
    Outcome,
    Stage,
    TemporarilyUnavailable,
    Worker,
)
from prometheus_client import REGISTRY

IN, OUT = Queue("in", ("generate",)), Queue("out", ("failure.*", "synthetic.*"))


def message(name="a"):
    return GenerateMessage(id=name, scan=Scan(id=name, submission="sub"), label="HGG", count=1)


@dataclass
class Echo(Stage):
    """Calls ``behave``, then answers the message."""

    behave: object = None
    seen: list = field(default_factory=list)
    name = "echo"
    queue = IN

    def handle(self, message, delivery):
        self.seen.append(message.id)
        if callable(self.behave):
            self.behave()
        return Outcome([FailureMessage(id=message.id + "!", scan=message.scan, stage="echo", reason="an answer")])


class Running:
    """A worker in a thread, on ``memory://``, and access to its queues."""

    def __init__(self, stage, limits=None, **options):
        self.broker = MemoryBroker(limits=limits)
        self.broker.declare(IN)
        self.broker.declare(OUT)
        self.worker = Worker(stage, self.broker.attach(), **options)
        self.thread = threading.Thread(target=self.worker.run)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.worker.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()

    def send(self, body, key="generate"):
        self.broker.publish(key, body, message_id="m")

    def take(self, queue, timeout=5.0):
        consumer = self.broker.consume(queue, 100)
        delivery = consumer.next(timeout)
        if delivery:
            consumer.ack(delivery)
        consumer.close()
        return delivery

    def dead_reason(self):
        letter = self.take(Queue(IN.dead))
        assert letter is not None
        return letter.headers[REASON]


def test_a_message_is_answered_and_acknowledged():
    with Running(Echo()) as running:
        running.send(encode(message()))
        assert decode(running.take(OUT).body).reason == "an answer"
    assert running.broker.depth(IN.name) == 0


def test_invalid_bytes_become_a_dead_letter_and_the_next_message_is_answered():
    with Running(Echo()) as running:
        running.send(b"garbage")
        running.send(encode(message()))
        assert decode(running.take(OUT).body).id == "a!"
        assert "not a msgpack message" in running.dead_reason()


def test_invalid_input_becomes_a_dead_letter_and_is_announced_to_the_submission():
    def refuse():
        raise InvalidInput("the affine is singular")

    with Running(Echo(refuse)) as running:
        running.send(encode(message()))
        announced = decode(running.take(OUT).body)
        assert (announced.kind, announced.stage, announced.reason) == ("failure", "echo", "the affine is singular")
        assert running.dead_reason() == "the affine is singular"


def test_a_temporary_fault_is_retried():
    faults = iter([OSError("the disk is busy")])

    def stumble():
        for fault in faults:
            raise fault

    stage = Echo(stumble)
    with Running(stage) as running:
        running.send(encode(message()))
        assert decode(running.take(OUT).body).reason == "an answer"
    assert stage.seen == ["a", "a"]


def test_an_unavailable_service_is_retried_with_longer_pauses_and_its_reason_kept(monkeypatch):
    monkeypatch.setattr("gliaflow_runtime.stage.UNAVAILABLE_PAUSE_S", 0.05)

    def call():
        raise TemporarilyUnavailable("the store does not answer")

    stage = Echo(call)
    started = time.monotonic()
    with Running(stage, max_attempts=4) as running:
        running.send(encode(message()))
        assert running.dead_reason() == "the store does not answer"
    assert len(stage.seen) == 4
    assert time.monotonic() - started > 0.05 + 0.1 + 0.2


def test_a_permanent_fault_becomes_a_dead_letter_after_max_attempts(printed):
    patient = "Doe" + "^Jane"  # split, so that the traceback's lines of code do not contain it

    def fail():
        raise ZeroDivisionError(patient) from OSError(f"/scans/{patient}.nii")

    stage = Echo(fail)
    configure_logging("debug", "json")
    with Running(stage, max_attempts=2) as running:
        running.send(encode(message()))
        assert re.match(r"unexpected ZeroDivisionError at test_stage.py:\d+", running.dead_reason()), (
            "the type and place, not the text"
        )
    assert len(stage.seen) == 2
    logged = printed()
    assert "in fail" in logged
    assert "OSError" in logged
    assert patient not in logged


def test_a_message_that_ended_the_process_too_often_is_not_processed_again():
    stage = Echo()
    running = Running(stage, max_attempts=2)
    running.send(encode(message()))
    for _ in range(2):  # two processes die while they have it
        consumer = running.broker.consume(IN, 1)
        assert consumer.next(1)
        consumer.close()
    with running:
        assert "gave up after 2 attempts" in running.dead_reason()
    assert stage.seen == []


def test_a_stage_waits_for_a_full_queue_and_loses_nothing():
    with Running(Echo(), limits={"out": Limit(1)}) as running:
        running.broker.publish("failure.x", b"in the way")
        running.send(encode(message()))
        time.sleep(0.3)
        assert running.take(OUT).body == b"in the way"
        assert decode(running.take(OUT).body).reason == "an answer"


def test_an_answer_without_a_queue_is_not_an_error():
    with Running(Echo()) as running:
        running.broker.delete("out")
        running.send(encode(message()))
        deadline = time.monotonic() + 5
        while running.broker.depth(IN.name) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert running.broker.depth(IN.dead) == 0


def test_stop_finishes_the_message_in_work_and_returns_the_others():
    started, finish = threading.Event(), threading.Event()

    def slowly():
        started.set()
        finish.wait(5)

    stage = Echo(slowly)
    with Running(stage, prefetch=2) as running:
        running.send(encode(message("a")))
        running.send(encode(message("b")))
        started.wait(5)
        running.worker.stop()
        finish.set()
        running.thread.join(5)
        assert decode(running.take(OUT).body).id == "a!"
    assert stage.seen == ["a"]
    assert running.broker.depth(IN.name) == 1


def test_an_answer_over_the_size_limit_makes_a_dead_letter():
    import numpy as np

    class Verbose(Echo):
        def handle(self, message, delivery):
            noise = np.random.default_rng(0).integers(0, 2**16, 5 * 2**20, dtype=np.uint32).astype(np.float32)
            return Outcome(
                [
                    SyntheticMessage(
                        id="s", scan=message.scan, bundle="", generator="", tap="", label="", seed=0, features=noise
                    )
                ]
            )

    with Running(Verbose()) as running:
        running.send(encode(message()))
        assert "over the limit" in running.dead_reason()


HANGS = """
import time
from test_stage import Echo, Running, encode, message
with Running(Echo(lambda: time.sleep(60)), deadline_s=0.2) as running:
    running.send(encode(message()))
    time.sleep(30)
"""


def test_a_message_that_hangs_ends_the_process():
    started = time.monotonic()
    here = Path(__file__).parent  # where the code finds test_stage
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, cwd=here, timeout=60)
    assert done.returncode == EX_SOFTWARE
    assert "deadline passed" in done.stdout + done.stderr
    assert time.monotonic() - started < 25


@pytest.mark.parametrize("announces", [True, False])
def test_only_a_stage_that_announces_failures_fails_the_scan(announces):
    def refuse():
        raise InvalidInput("no")

    stage = Echo(refuse)
    stage.announces_failures = announces
    with Running(stage) as running:
        running.send(encode(message()))
        assert running.dead_reason() == "no"
        assert (running.take(OUT, timeout=0.3) is not None) is announces


def sample(metric, **labels):
    return REGISTRY.get_sample_value(metric, labels)


def test_metrics_start_at_zero_and_count_the_outcomes():
    @dataclass
    class Counted(Echo):
        name = "counted"

    holds, proceed = threading.Event(), threading.Event()
    faults = iter([OSError("busy")])

    def stumble_once():
        holds.set()
        assert proceed.wait(5)
        for fault in faults:
            raise fault

    with Running(Counted(stumble_once)) as running:
        for outcome in ("done", "dead", "requeued"):
            assert sample("gliaflow_messages_total", stage="counted", outcome=outcome) == 0
        assert sample("gliaflow_working_seconds", stage="counted") == 0
        running.send(encode(message()))
        assert holds.wait(5)
        time.sleep(0.05)
        assert sample("gliaflow_working_seconds", stage="counted") > 0.04
        proceed.set()
        assert running.take(OUT)
        running.send(b"garbage")
        assert running.dead_reason()
    assert sample("gliaflow_messages_total", stage="counted", outcome="requeued") == 1
    assert sample("gliaflow_messages_total", stage="counted", outcome="done") == 1
    assert sample("gliaflow_messages_total", stage="counted", outcome="dead") == 1
    assert sample("gliaflow_redelivered_total", stage="counted") == 1
    assert sample("gliaflow_message_seconds_count", stage="counted") == 3
    assert time.time() - sample("gliaflow_last_success_timestamp_seconds", stage="counted") < 60


def test_results_keep_the_trace_of_their_message():
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with Running(Echo()) as running:  # its answers have no trace
        running.send(encode(replace(message(), trace=trace)))
        assert decode(running.take(OUT).body).trace == trace


class Losing(MemoryBroker):
    """A broker whose consumer loses its connection at ``lose``: open messages are delivered again."""

    def consume(self, queue, prefetch):
        self.consumer = super().consume(queue, prefetch)
        return self.consumer

    def lose(self):
        consumer = self.consumer
        with consumer._state.changed:
            held, consumer.lost = list(consumer._held.values()), consumer._tag
            consumer._held.clear()
            consumer._state.give_back(IN.name, held)


def test_lost_is_called_before_lost_deliveries_come_again():
    kept, lost = [], threading.Event()

    class Keeper(Echo):
        def handle(self, message, delivery):
            kept.append(delivery.tag)
            return Outcome(done=[])

        def lost(self):
            lost.set()

    broker = Losing()
    broker.declare(IN)
    worker = Worker(Keeper(), broker, prefetch=5)
    thread = threading.Thread(target=worker.run)
    thread.start()
    broker.publish("generate", encode(message()))
    while not kept:
        time.sleep(0.01)
    assert not lost.is_set()
    broker.lose()
    while len(kept) < 2:
        time.sleep(0.01)
    assert lost.is_set(), "before the message is delivered again"
    worker.stop()
    thread.join(10)


def test_a_lost_delivery_is_not_dead_lettered():
    """A paused process resumes with a message that another process has answered, and whose upload is deleted."""
    attempts = []

    def behave():
        attempts.append(1)
        if len(attempts) == 1:
            broker.lose()
        raise InvalidInput("the upload is gone")

    broker = Losing()
    broker.declare(IN)
    broker.declare(OUT)
    worker = Worker(Echo(behave), broker)
    thread = threading.Thread(target=worker.run)
    thread.start()
    broker.publish("generate", encode(message()), message_id="m")
    while len(attempts) < 2 or not broker.depth(IN.dead):
        time.sleep(0.01)
    worker.stop()
    thread.join(10)
    assert broker.depth(IN.dead) == 1, "of the second delivery"
    assert broker.depth(OUT.name) == 1


class TestOtherBundle:
    """A message of another bundle than the stage's: the client sends its scan again."""

    @staticmethod
    def refuse():
        raise OtherBundle("slices", "old@1", "echo", "new@2")

    def test_the_failure_asks_for_another_attempt_and_there_is_no_dead_letter(self):
        with Running(Echo(self.refuse)) as running:
            running.send(encode(message()))
            announced = decode(running.take(OUT).body)
        assert (announced.kind, announced.stage, announced.retry) == ("failure", "echo", True)
        assert announced.reason == (
            "bundle: the slices are of old@1, but this echo serves new@2; give all stages the same bundle"
        )
        assert running.broker.depth(IN.name) == running.broker.depth(IN.dead) == 0

    def test_a_message_that_an_operator_replayed_becomes_a_dead_letter_again(self):
        """Its submission may have ended long ago. The messages that earlier stages made of a replayed one count too."""
        with Running(Echo(self.refuse)) as running:
            running.send(encode(replace(message(), scan=replace(message().scan, replayed=True))))
            assert "give all stages the same bundle" in running.dead_reason()
            assert not decode(running.take(OUT).body).retry

    def test_a_scan_without_a_submission_becomes_a_dead_letter(self):
        with Running(Echo(self.refuse)) as running:
            running.send(encode(replace(message(), scan=Scan(id="a"))))
            assert "give all stages the same bundle" in running.dead_reason()


def test_all_answers_of_one_message_wait_for_a_full_queue_only_once(monkeypatch):
    """A client may declare a queue that refuses every answer, and request thousands of them."""
    waits = []
    monkeypatch.setattr(threading.Event, "wait", lambda _, seconds=None: waits.append(seconds) or time.sleep(0.1))
    worker = Worker(Echo(), MemoryBroker(limits={OUT.name: Limit(0)}))
    worker.broker.declare(OUT)
    news = FailureMessage(id="n", scan=message().scan, stage="echo", reason="an answer")
    worker._carry_out(EncodedOutcome(publish=[(news, encode(news))] * 1000), consumer=None)
    assert 0 < len(waits) <= ANNOUNCE_S / 0.1 + 1


def test_a_full_queue_of_answers_does_not_block_a_stage_for_ever(monkeypatch):
    """The assembler reads its own answers: if its queue is full, only the assembler can make room."""
    monkeypatch.setattr("gliaflow_runtime.stage.ANNOUNCE_S", 0.1)
    stage = Echo()
    with Running(stage, limits={OUT.name: Limit(1)}) as running:
        for name in ("a", "b", "c"):
            running.send(encode(message(name)))
        while len(stage.seen) < 3 or running.broker.depth(IN.name):
            time.sleep(0.01)
        assert decode(running.take(OUT).body).id == "a!"

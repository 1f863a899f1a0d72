"""The assembler: one prediction per scan, for any order and repetition of parts and any change of assemblers."""

import dataclasses
import itertools
import threading
import time

import numpy as np
import pytest
from assembler_by_hand import assembler, changed, deliver, part, predictions, run
from gliaflow_classifier.ended import ENDING_ATTEMPTS
from gliaflow_proto import FailureMessage, Queue, Scan, decode, encode
from gliaflow_proto.routing import ASSEMBLERS
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.broker.memory import MemoryBroker
from gliaflow_runtime.encoded_outcome import encode_outcome
from gliaflow_runtime.stage import OtherBundle, Outcome, Worker
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY


@given(st.lists(st.integers(0, 2), max_size=6), st.permutations([0, 1, 2]))
def test_any_order_and_repetition_of_parts_gives_the_same_single_prediction(extra, order):
    """Copies may come before, between and after the parts; every delivery is acknowledged."""
    (expected,) = predictions(run(assembler(), [0, 1, 2]))
    sequence = [*extra[:3], *order, *extra[3:]]
    outcomes = run(assembler(), sequence)
    (prediction,) = predictions(outcomes)
    assert prediction.p_hgg == expected.p_hgg
    np.testing.assert_array_equal(prediction.mask, expected.mask)
    by_default = sum(outcome.done is None for outcome in outcomes)  # None: the delivery that was handled
    assert by_default + sum(len(outcome.done or []) for outcome in outcomes) == len(sequence)


def test_nothing_is_acknowledged_before_the_prediction():
    """If this process dies, the broker delivers all parts to another."""
    stage = assembler()
    first, outcome = deliver(stage, part(0), 0)
    assert outcome.done == []
    second, outcome = deliver(stage, part(2), 1)
    assert outcome.done == []
    third, outcome = deliver(stage, part(1), 2)
    assert {d.tag for d in outcome.done} == {first.tag, second.tag, third.tag}


def test_interleaved_scans_are_separate():
    stage = assembler()
    outcomes = [
        deliver(stage, part(index, scan=scan, submission=submission))[1]
        for index, (scan, submission) in itertools.product(range(3), [("s", "x"), ("t", "x"), ("s", "y")])
    ]
    assert [(p.scan.id, p.scan.submission) for p in predictions(outcomes)] == [("s", "x"), ("t", "x"), ("s", "y")]


def failure(reason="the U-Net failed"):
    return FailureMessage(id="f", scan=Scan(id="s", submission="sub"), stage="extractor", reason=reason)


@pytest.mark.parametrize("before", [0, 1, 2])
def test_if_a_stage_fails_on_one_part_the_others_become_dead_letters(before):
    stage = assembler()
    outcomes = [deliver(stage, part(index))[1] for index in range(before)]
    outcomes.append(deliver(stage, failure())[1])
    outcomes += [deliver(stage, part(index))[1] for index in range(before, 2)]
    reasons = [reason for outcome in outcomes for _, reason in outcome.dead]
    assert reasons == ["its scan failed: the U-Net failed"] * 2
    assert predictions(outcomes) == []


def test_replayed_dead_letters_are_a_new_attempt():
    stage = assembler()
    deliver(stage, failure())
    outcomes = run(stage, [0]) + [deliver(stage, part(index, attempt=1))[1] for index in (0, 1, 1, 2, 2)]
    assert len(predictions(outcomes)) == 1, "a copy of a replayed part is ignored"
    assert stage.idle() is None


def test_a_scan_with_missing_parts_fails_after_the_timeout_and_names_them():
    stage = assembler(timeout_s=0.01)
    deliver(stage, part(0))
    time.sleep(0.02)
    outcome = stage.idle()
    encode_outcome(outcome)
    assert [m.reason for m in outcome.publish] == ["incomplete: parts [1, 2] of 3 did not come within 0.01 s"]
    assert len(outcome.dead) == 1
    assert stage.idle() is None


def test_incomplete_scans_fail_before_the_broker_stops_delivering(monkeypatch):
    monkeypatch.setattr("gliaflow_classifier.assembler.OPEN_PARTS", 5)
    stage = assembler()
    outcomes = [deliver(stage, part(0, scan=f"forged{n}"))[1] for n in range(5)]
    assert [reason[:10] for _, reason in outcomes[-1].dead] == ["incomplete"]
    assert len(predictions(run(stage, [0, 1, 2]))) == 1


def test_metrics_count_open_scans_their_wait_and_the_time_of_a_scan():
    def sample(name):
        return REGISTRY.get_sample_value(name, {"stage": "assembler"} if "open" in name else {})

    stage = assembler()
    before = sample("gliaflow_scan_seconds_count")
    scan = Scan(id="s", submission="sub", sent=time.time() - 40)
    sent = [dataclasses.replace(part(index), scan=scan) for index in range(3)]
    deliver(stage, sent[0])
    deliver(stage, part(0, scan="other"))
    time.sleep(0.02)
    stage.idle()
    assert sample("gliaflow_open_scans") == 2
    assert 0.02 <= sample("gliaflow_open_scan_wait_seconds") < 5
    took = sample("gliaflow_scan_seconds_sum")
    deliver(stage, sent[1])
    deliver(stage, sent[2])
    for index in range(3):
        deliver(stage, part(index, scan="without the time of sending"))
    stage.idle()
    assert sample("gliaflow_open_scans") == 1
    assert sample("gliaflow_scan_seconds_count") == before + 1
    assert 40 <= sample("gliaflow_scan_seconds_sum") - took < 45


def prediction_of(stage, **about):
    """The answer to a complete scan."""
    return predictions([deliver(stage, part(index, **about))[1] for index in range(3)])[0]


def test_a_new_assembler_learns_from_announcements_which_scans_have_ended():
    """After a takeover, a late copy of a part of an answered scan is ignored."""
    stage = assembler(timeout_s=0.01)
    announcement, outcome = deliver(stage, prediction_of(assembler()), 1)
    assert outcome.done == [], "it stays with the broker for the next assembler"
    assert deliver(stage, part(1), 2)[1] == Outcome()
    time.sleep(0.02)
    assert [d.tag for d in stage.idle().done] == [announcement.tag], "acknowledged after the timeout"
    assert stage.idle() is None


def test_open_parts_are_acknowledged_when_another_assembler_has_answered():
    stage = assembler()
    held, _ = deliver(stage, part(0), 1)
    assert deliver(stage, prediction_of(assembler()), 2)[1].done == [held]
    assert stage.idle() is None


def test_only_the_latest_announcements_are_kept(monkeypatch):
    monkeypatch.setattr("gliaflow_classifier.ended.KEPT_ENDINGS", 2)
    stage = assembler()
    outcomes = [deliver(stage, prediction_of(assembler(), scan=f"s{n}"), n)[1] for n in range(4)]
    assert [[d.tag for d in outcome.done] for outcome in outcomes] == [[], [], [0], [1]]


def test_an_announcement_that_was_delivered_too_often_is_acknowledged():
    stage = assembler()
    announcement = failure()
    delivery = dataclasses.replace(Delivery("q", "failure.sub", encode(announcement)), attempts=ENDING_ATTEMPTS)
    assert stage.max_attempts > ENDING_ATTEMPTS, "before it would become a dead letter"
    assert stage.handle(announcement, delivery).done == [delivery]


def test_parts_of_a_lost_connection_do_not_time_out():
    """They are delivered again, perhaps to another assembler, which answers."""
    stage = assembler(timeout_s=0.01)
    deliver(stage, part(0))
    deliver(stage, failure(), 1)
    stage.lost()
    time.sleep(0.02)
    assert stage.idle() is None
    assert deliver(stage, part(0), 2)[1].dead, "the failed scan is remembered"


def test_the_time_of_a_paused_process_does_not_count(monkeypatch):
    monkeypatch.setattr("gliaflow_classifier.assembler.TICK_S", 0.01)
    stage = assembler(timeout_s=0.05)
    deliver(stage, part(0))
    time.sleep(0.1)  # the process is paused
    assert stage.idle() is None
    given_up = []
    while not given_up:
        time.sleep(0.005)
        given_up = (stage.idle() or Outcome()).dead
    assert "did not come" in given_up[0][1]


def test_a_resent_scan_replaces_the_parts_of_the_earlier_attempt():
    """The client resends a scan if parts of the first attempt were lost with a deleted queue."""
    stage = assembler()
    old, _ = deliver(stage, part(0), 1)
    first, outcome = deliver(stage, part(0, attempt=1), 2)
    assert outcome.done == [old]
    assert deliver(stage, part(1), 3)[1] == Outcome(), "a late part of the first attempt is ignored"
    outcomes = [deliver(stage, part(index, attempt=1), 4 + index)[1] for index in (1, 2)]
    assert len(predictions(outcomes)) == 1
    assert first in outcomes[-1].done


def test_a_resent_scan_is_answered_again():
    """The client resends a scan if the answer was lost with its queue."""
    stage = assembler()
    first, again = prediction_of(stage), prediction_of(stage, attempt=1)
    assert (first.id, first.p_hgg) == (again.id, again.p_hgg)
    assert prediction_of(assembler()).id == first.id


def test_after_a_takeover_on_a_broker_a_late_copy_of_a_part_is_ignored():
    """Two assemblers: the first answers and stops; then a part of that scan comes again."""
    answers = Queue("answers", ("prediction.*", "failure.*"))
    with MemoryBroker() as broker:
        broker.declare(ASSEMBLERS[0])
        broker.declare(answers)
        workers = [Worker(assembler(timeout_s=5.0), broker.attach()) for _ in range(2)]
        threads = [threading.Thread(target=worker.run) for worker in workers]

        def send(index):
            broker.publish("graded", encode(part(index)))

        threads[0].start()
        for index in range(3):
            send(index)
        with broker.consume(answers, 10) as consumer:
            assert consumer.next(10) is not None
            workers[0].stop()
            threads[0].join()
            assert broker.depth(ASSEMBLERS[0].name) == 1, "the announcement of the answer"
            threads[1].start()
            send(1)
            while broker.depth(ASSEMBLERS[0].name):
                time.sleep(0.01)
            workers[1].stop()
            threads[1].join()
            assert consumer.next(0.1) is None, "no second announcement"
        assert broker.depth(ASSEMBLERS[0].name) == 1, "only the announcement is left"
        assert broker.depth(ASSEMBLERS[0].dead) == 0


class TestTwoBundles:
    """While the stages change to another bundle, the client sends a scan again that met both."""

    @staticmethod
    def refusal(attempt=0):
        return dataclasses.replace(failure(), scan=Scan(id="s", submission="sub", attempt=attempt), retry=True)

    @pytest.mark.parametrize("before", [0, 1, 2])
    def test_parts_of_the_refused_attempt_are_acknowledged_and_the_next_attempt_is_answered(self, before):
        stage = assembler()
        held = [deliver(stage, part(index), index)[0] for index in range(before)]
        outcome = deliver(stage, self.refusal(), 9)[1]
        assert (outcome.done, outcome.dead) == (held, [])
        assert [deliver(stage, part(index), 10 + index)[1] for index in range(before, 3)] == [Outcome()] * (3 - before)
        assert prediction_of(stage, attempt=1).scan.attempt == 1

    def test_a_refusal_does_not_end_a_later_attempt(self):
        stage = assembler()
        deliver(stage, part(0, attempt=1))
        deliver(stage, self.refusal())
        outcomes = [deliver(stage, part(index, attempt=1))[1] for index in (1, 2)]
        assert len(predictions(outcomes)) == 1

    def test_an_answered_scan_stays_answered_and_a_failed_one_failed(self):
        answered, failed = assembler(), assembler()
        prediction_of(answered)
        deliver(failed, failure())
        for stage in (answered, failed):
            deliver(stage, self.refusal())
        assert deliver(answered, part(0))[1] == Outcome()
        assert deliver(failed, part(0))[1].dead

    def test_parts_that_another_bundle_graded_are_refused(self):
        """The assembler's bundle says which spots are too small to be a tumour."""
        stage = assembler()
        deliver(stage, part(0))
        with pytest.raises(OtherBundle, match="the grades are of another@0, but this assembler serves b; give all"):
            deliver(stage, changed(part(1), bundle="another@0"))

    def test_late_parts_of_an_answered_scan_are_acknowledged_whatever_their_bundle(self):
        stage = assembler()
        prediction_of(stage)
        assert deliver(stage, changed(part(1), bundle="another@0"))[1] == Outcome()


def test_a_scan_whose_answer_is_over_the_limit_on_a_message_fails_with_all_its_parts(monkeypatch):
    monkeypatch.setattr("gliaflow_runtime.encoded_outcome.MAX_MESSAGE_BYTES", 400)
    stage = assembler()
    outcomes = run(stage, [0, 1, 2])
    result = encode_outcome(outcomes[-1])
    assert [(message.kind, message.reason) for message, _ in result.publish] == [
        ("failure", "its mask is over the limit on a message")
    ]
    assert len(result.dead) == 3
    assert run(stage, [1])[0].dead, "it is known to have failed"


@pytest.mark.parametrize("fault", ["answer", "failure"])
def test_a_scan_whose_answer_could_not_be_encoded_is_answered_when_its_part_comes_again(fault, monkeypatch):
    """As when memory is short for a moment."""
    if fault == "failure":  # of the scan that gives way
        monkeypatch.setattr("gliaflow_classifier.assembler.OPEN_PARTS", 3)
    stage, faults = assembler(), [MemoryError()]

    def encode_or_fail(message, encoding):
        if faults:
            raise faults.pop()
        return encode(message, encoding)

    monkeypatch.setattr("gliaflow_runtime.encoded_outcome.encode", encode_or_fail)
    answers = Queue("answers", ("prediction.*", "failure.*"))
    scans = REGISTRY.get_sample_value("gliaflow_slices_total", {"stage": "assembler"}) or 0
    with MemoryBroker() as broker:
        broker.declare(ASSEMBLERS[0])
        broker.declare(answers)
        worker = Worker(stage, broker.attach())
        thread = threading.Thread(target=worker.run)
        thread.start()
        for index in range(3):
            scan = f"s{index}" if fault == "failure" else "s"
            broker.publish("graded", encode(part(index, scan=scan)))
        with broker.consume(answers, 10) as consumer:
            found = [decode(consumer.next(10).body).kind, consumer.next(0.2)]
        worker.stop()
        thread.join()
        kind, slices, waiting = ("prediction", 6, 1) if fault == "answer" else ("failure", 0, 3)
        assert found == [kind, None]
        assert not faults
        assert broker.depth(ASSEMBLERS[0].name) == waiting, "the announcement, and the parts of open scans"
    assert (REGISTRY.get_sample_value("gliaflow_slices_total", {"stage": "assembler"}) or 0) == scans + slices

"""The parts of a scan add up to one prediction, in whatever order, however often and through whomever they come."""

import dataclasses
import itertools
import threading
import time

import numpy as np
import pytest
from gliaflow_classifier.assembler import NEWS_ATTEMPTS, Assembler
from gliaflow_proto import (
    FailureMessage,
    Geometry,
    GradedMessage,
    PredictionMessage,
    ProtocolError,
    Queue,
    Scan,
    encode,
)
from gliaflow_proto.routing import ASSEMBLER
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.broker.memory import MemoryBroker
from gliaflow_runtime.stage import Outcome, Worker
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

SHAPE = [8, 8, 6]
LOGITS = [[1.0, -3.0], [2.0, 5.0], [0.5, -9.0]]
TUMOUR = [[1, 0], [1, 1], [0, 0]]  # whether a slice's mask holds tumour


class FakeBundle:
    class manifest:  # all that an assembler asks of a bundle
        classes = ("HGG", "LGG")


def assembler(timeout_s=60.0):
    return Assembler(FakeBundle, timeout_s=timeout_s)


def part(index, count=3, scan="s", submission="sub", attempt=0):
    """A graded part of two slices, with a 2×2 square of tumour where TUMOUR says."""
    geometry = Geometry(
        affine=[2.0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 5, 0, 0, 0, 0, 1],
        shape=SHAPE,
        orientation=[0, 1, 1, 1, 2, 1],
        origin=[0.0, 0.0],
        step=[1.0, 1.0],
        size=[8, 8],
        slices=[2 * index, 2 * index + 1],
    )
    mask = np.zeros((2, 8, 8), np.uint8)
    mask[:, 3:5, 3:5] = np.array(TUMOUR[index])[:, None, None]
    scan = Scan(id=scan, submission=submission, attempt=attempt)
    return GradedMessage(
        id=f"{scan}{index}", scan=scan, part=[index, count], bundle="b", geometry=geometry,
        logit=np.array(LOGITS[index]), mask=mask,
    )  # fmt: skip


def deliver(stage, message, tag=0):
    delivery = Delivery("q", "graded", encode(message), message.id, tag=tag)
    return delivery, stage.handle(message, delivery)


def run(stage, indices):
    """Deliver these parts; returns every outcome."""
    return [deliver(stage, part(index), tag)[1] for tag, index in enumerate(indices)]


def predictions(outcomes):
    return [m for o in outcomes for m in o.publish if isinstance(m, PredictionMessage)]


def test_mean_logit_of_the_slices_with_tumour_and_the_mask_on_the_scans_grid():
    (prediction,) = predictions(run(assembler(), [0, 1, 2]))
    assert prediction.p_hgg == pytest.approx(1 / (1 + np.exp(-(1.0 + 2.0 + 5.0) / 3)))
    assert prediction.grade == "HGG"
    assert (prediction.slices, prediction.tumour_slices) == (6, 3)
    assert prediction.mask.shape == tuple(SHAPE)
    assert prediction.mask.sum(axis=(0, 1)).tolist() == [4, 0, 4, 4, 0, 0]
    assert prediction.tumour_ml == pytest.approx(12 * 2 * 2 * 5 / 1000)


def test_without_tumour_all_slices_count():
    stage = assembler()
    plain = changed(part(2), part=[0, 1])
    (prediction,) = deliver(stage, plain)[1].publish
    assert prediction.p_hgg == pytest.approx(1 / (1 + np.exp(4.25)))
    assert prediction.grade == "LGG"


@given(st.lists(st.integers(0, 2), max_size=6), st.permutations([0, 1, 2]))
def test_any_order_and_any_repetition_give_the_same_one_prediction(extra, order):
    """Copies may come before, between and after; there is one prediction, and every delivery is let go of."""
    (expected,) = predictions(run(assembler(), [0, 1, 2]))
    sequence = [*extra[:3], *order, *extra[3:]]
    outcomes = run(assembler(), sequence)
    (found,) = predictions(outcomes)
    assert found.p_hgg == expected.p_hgg
    np.testing.assert_array_equal(found.mask, expected.mask)
    by_default = sum(outcome.done is None for outcome in outcomes)  # None: the delivery that was handled
    assert by_default + sum(len(outcome.done or []) for outcome in outcomes) == len(sequence)


def test_nothing_is_acknowledged_before_the_prediction():
    """So that, when this process dies, the broker gives all the parts to another."""
    stage = assembler()
    first, outcome = deliver(stage, part(0), 0)
    assert outcome.done == []
    second, outcome = deliver(stage, part(2), 1)
    assert outcome.done == []
    third, outcome = deliver(stage, part(1), 2)
    assert {d.tag for d in outcome.done} == {first.tag, second.tag, third.tag}


def test_scans_that_interleave_are_kept_apart():
    stage = assembler()
    outcomes = [
        deliver(stage, part(index, scan=scan, submission=submission))[1]
        for index, (scan, submission) in itertools.product(range(3), [("s", "x"), ("t", "x"), ("s", "y")])
    ]
    found = predictions(outcomes)
    assert [(p.scan.id, p.scan.submission) for p in found] == [("s", "x"), ("t", "x"), ("s", "y")]


def failure(reason="the U-Net failed"):
    return FailureMessage(id="f", scan=Scan(id="s", submission="sub"), stage="extractor", reason=reason)


@pytest.mark.parametrize("before", [0, 1, 2])
def test_when_a_stage_fails_on_one_part_the_others_are_dead_letters_too(before):
    stage = assembler()
    outcomes = [deliver(stage, part(index))[1] for index in range(before)]
    outcomes.append(deliver(stage, failure())[1])
    outcomes += [deliver(stage, part(index))[1] for index in range(before, 2)]
    reasons = [reason for outcome in outcomes for _, reason in outcome.dead]
    assert reasons == ["its scan failed: the U-Net failed"] * 2
    assert predictions(outcomes) == []


def test_dead_letters_that_a_person_replays_get_another_chance():
    stage = assembler()
    deliver(stage, failure())
    outcomes = run(stage, [0]) + [deliver(stage, part(index, attempt=1))[1] for index in (0, 1, 1, 2, 2)]
    assert len(predictions(outcomes)) == 1, "and a copy of a replayed part starts nothing anew"
    assert stage.idle() is None


def test_a_scan_whose_parts_do_not_come_is_given_up_with_the_missing_ones_named():
    stage = assembler(timeout_s=0.01)
    deliver(stage, part(0))
    time.sleep(0.02)
    outcome = stage.idle()
    assert [m.reason for m in outcome.publish] == ["incomplete: parts [1, 2] of 3 did not come within 0.01 s"]
    assert len(outcome.dead) == 1
    assert stage.idle() is None


def changed(message, **values):
    return dataclasses.replace(message, **values)


@pytest.mark.parametrize(
    "odd",
    [
        part(1, count=4),
        changed(part(1), bundle="another"),
        changed(part(1), geometry=changed(part(1).geometry, shape=[9, 8, 6])),
        changed(part(1), geometry=changed(part(1).geometry, size=[4, 4]), mask=np.zeros((2, 4, 4), np.uint8)),
    ],
    ids=["count", "bundle", "shape", "size"],
)
def test_a_part_that_does_not_fit_the_others_is_refused(odd):
    stage = assembler()
    deliver(stage, part(0))
    with pytest.raises(ProtocolError, match="other parts of this scan"):
        deliver(stage, odd)


def test_a_logit_that_is_not_finite_is_refused():
    with pytest.raises(ProtocolError, match="finite"):
        deliver(assembler(), changed(part(0), logit=np.array([np.nan, 0])))


def test_scans_that_never_end_give_way_before_the_broker_stops_delivering(monkeypatch):
    monkeypatch.setattr("gliaflow_classifier.assembler.OPEN_PARTS", 5)
    stage = assembler()
    outcomes = [deliver(stage, part(0, scan=f"forged{n}"))[1] for n in range(5)]
    assert [reason[:10] for _, reason in outcomes[-1].dead] == ["incomplete"]
    assert len(predictions(run(stage, [0, 1, 2]))) == 1


def test_logits_and_masks_that_do_not_fit_the_slices():
    odd = part(0)
    with pytest.raises(ProtocolError, match="logits"):
        deliver(assembler(), changed(odd, logit=np.zeros(3)))


def test_metrics_tell_how_many_scans_are_open_how_long_one_waits_and_how_long_a_scan_took():
    def told(name):
        return REGISTRY.get_sample_value(name)

    stage = assembler()
    before = told("gliaflow_scan_seconds_count")
    scan = Scan(id="s", submission="sub", sent=time.time() - 40)
    sent = [dataclasses.replace(part(index), scan=scan) for index in range(3)]
    deliver(stage, sent[0])
    deliver(stage, part(0, scan="other"))
    time.sleep(0.02)
    stage.idle()
    assert told("gliaflow_open_scans") == 2
    assert 0.02 <= told("gliaflow_open_scan_wait_seconds") < 5
    took = told("gliaflow_scan_seconds_sum")
    deliver(stage, sent[1])
    deliver(stage, sent[2])
    for index in range(3):
        deliver(stage, part(index, scan="of a sender who does not say when"))
    stage.idle()
    assert told("gliaflow_open_scans") == 1
    assert told("gliaflow_scan_seconds_count") == before + 1
    assert 40 <= told("gliaflow_scan_seconds_sum") - took < 45


def prediction_of(stage, **about):
    """What a complete scan is answered."""
    return predictions([deliver(stage, part(index, **about))[1] for index in range(3)])[0]


def test_a_later_assembler_knows_from_the_news_which_scans_have_ended():
    """One that took over: of a scan that another has answered, a late copy of a part waits for nothing."""
    stage = assembler(timeout_s=0.01)
    news, outcome = deliver(stage, prediction_of(assembler()), 1)
    assert outcome.done == [], "the news stays with the broker, for whoever is next"
    assert deliver(stage, part(1), 2)[1] == Outcome()
    time.sleep(0.02)
    assert [d.tag for d in stage.idle().done] == [news.tag], "it is let go of in time"
    assert stage.idle() is None


def test_parts_that_were_held_when_another_answered_are_copies():
    stage = assembler()
    held, _ = deliver(stage, part(0), 1)
    assert deliver(stage, prediction_of(assembler()), 2)[1].done == [held]
    assert stage.idle() is None


def test_of_the_news_only_the_latest_is_kept(monkeypatch):
    monkeypatch.setattr("gliaflow_classifier.assembler.KEPT_NEWS", 2)
    stage = assembler()
    outcomes = [deliver(stage, prediction_of(assembler(), scan=f"s{n}"), n)[1] for n in range(4)]
    assert [[d.tag for d in outcome.done] for outcome in outcomes] == [[], [], [0], [1]]


def test_news_that_went_from_hand_to_hand_too_often_is_let_go_before_it_is_a_dead_letter():
    stage = assembler()
    news = failure()
    delivery = dataclasses.replace(Delivery("q", "failure.sub", encode(news)), attempts=NEWS_ATTEMPTS)
    assert stage.max_attempts > NEWS_ATTEMPTS
    assert stage.handle(news, delivery).done == [delivery]


def test_what_went_with_a_lost_connection_is_nobodys_to_give_up():
    """Its parts come again, perhaps to another assembler, which answers: no failure is told here."""
    stage = assembler(timeout_s=0.01)
    deliver(stage, part(0))
    deliver(stage, failure(), 1)
    stage.lost()
    time.sleep(0.02)
    assert stage.idle() is None
    assert deliver(stage, part(0), 2)[1].dead, "but that a scan has failed is remembered"


def test_a_process_that_was_stopped_gives_up_nothing_when_it_goes_on(monkeypatch):
    monkeypatch.setattr("gliaflow_classifier.assembler.TICK_S", 0.01)
    stage = assembler(timeout_s=0.05)
    deliver(stage, part(0))
    time.sleep(0.1)  # stopped: nothing looked at the time
    assert stage.idle() is None
    given_up = []
    while not given_up:
        time.sleep(0.005)
        given_up = (stage.idle() or Outcome()).dead
    assert "did not come" in given_up[0][1]


def test_a_scan_that_is_sent_again_takes_the_place_of_what_was_there():
    """The client asked again, since parts of the first attempt went with a queue that was deleted."""
    stage = assembler()
    old, _ = deliver(stage, part(0), 1)
    first, outcome = deliver(stage, part(0, attempt=1), 2)
    assert outcome.done == [old]
    assert deliver(stage, part(1), 3)[1] == Outcome(), "what still comes of the first is a copy"
    outcomes = [deliver(stage, part(index, attempt=1), 4 + index)[1] for index in (1, 2)]
    assert len(predictions(outcomes)) == 1
    assert first in outcomes[-1].done


def test_a_scan_that_was_answered_is_answered_again_when_it_is_sent_again():
    """The client asked again, since the answer went with its queue."""
    stage = assembler()
    first, again = prediction_of(stage), prediction_of(stage, attempt=1)
    assert (first.id, first.p_hgg) == (again.id, again.p_hgg)
    assert prediction_of(assembler()).id == first.id


def test_when_another_takes_over_a_late_copy_of_a_part_waits_for_nothing():
    """Two assemblers on a broker: the first answers and leaves; then a part of that scan comes once more."""
    answers = Queue("answers", ("prediction.*", "failure.*"))
    with MemoryBroker() as broker:
        broker.declare(ASSEMBLER)
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
            assert broker.depth(ASSEMBLER.name) == 1, "the news of the answer"
            threads[1].start()
            send(1)
            while broker.depth(ASSEMBLER.name):
                time.sleep(0.01)
            workers[1].stop()
            threads[1].join()
            assert consumer.next(0.1) is None, "nothing more is told"
        assert broker.depth(ASSEMBLER.name) == 1, "and only the news is left again"
        assert broker.depth(ASSEMBLER.dead) == 0

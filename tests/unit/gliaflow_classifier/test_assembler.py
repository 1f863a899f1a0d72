"""The assembler: one prediction per scan, for any order and repetition of parts and any change of assemblers."""

import dataclasses
import itertools
import threading
import time

import numpy as np
import pytest
from gliaflow_classifier.assembler import ENDING_ATTEMPTS, Assembler, without_spots
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
from sample_messages import FORMS

SHAPE = [8, 8, 6]
LOGITS = [[1.0, -3.0], [2.0, 5.0], [0.5, -9.0]]
TUMOUR = [[1, 0], [1, 1], [0, 0]]  # whether a slice's mask has tumour


class FakeBundle:
    """All that an assembler uses of a bundle."""

    trained_on = "phantoms"

    class manifest:
        classes = ("HGG", "LGG")
        min_tumour_ml = 0.0


def assembler(timeout_s=60.0):
    return Assembler(FakeBundle, timeout_s=timeout_s)


def part(index, count=3, scan="s", submission="sub", attempt=0):
    """A graded part of two slices, with a 2×2 square of tumour according to TUMOUR."""
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
    """Deliver these parts; returns the outcomes."""
    return [deliver(stage, part(index), tag)[1] for tag, index in enumerate(indices)]


def predictions(outcomes):
    return [m for o in outcomes for m in o.publish if isinstance(m, PredictionMessage)]


def test_the_prediction_has_the_mean_logit_of_slices_with_tumour_and_the_mask_on_the_scans_grid():
    (prediction,) = predictions(run(assembler(), [0, 1, 2]))
    assert prediction.p_hgg == pytest.approx(1 / (1 + np.exp(-(1.0 + 2.0 + 5.0) / 3)))
    assert prediction.grade == "HGG"
    assert (prediction.slices, prediction.tumour_slices) == (6, 3)
    assert prediction.mask.shape == tuple(SHAPE)
    assert prediction.mask.sum(axis=(0, 1)).tolist() == [4, 0, 4, 4, 0, 0]
    assert prediction.tumour_ml == pytest.approx(12 * 2 * 2 * 5 / 1000)


def test_a_scan_without_tumour_has_no_grade_and_no_probability():
    before = REGISTRY.get_sample_value("gliaflow_answers_total", {"answer": "no tumour"}) or 0
    (prediction,) = deliver(assembler(), changed(part(2), part=[0, 1]))[1].publish
    assert (prediction.status, prediction.grade, prediction.tumour_ml) == ("no tumour", "", 0.0)
    assert prediction.p_hgg == 0.5, "a number, for readers of earlier versions"
    assert REGISTRY.get_sample_value("gliaflow_answers_total", {"answer": "no tumour"}) == before + 1


def test_spots_smaller_than_the_bundles_smallest_tumour_are_removed(monkeypatch):
    """The parts have a spot of 4 voxels (80 µl) in slice 0, and one of 8 in slices 2 and 3."""
    monkeypatch.setattr(FakeBundle.manifest, "min_tumour_ml", 0.1)
    (prediction,) = predictions(run(assembler(), [0, 1, 2]))
    assert prediction.mask.sum(axis=(0, 1)).tolist() == [0, 0, 4, 4, 0, 0]
    assert (prediction.tumour_slices, prediction.tumour_ml) == (2, pytest.approx(0.16))
    assert prediction.p_hgg == pytest.approx(1 / (1 + np.exp(-(2.0 + 5.0) / 2))), "slice 0 has no tumour now"
    monkeypatch.setattr(FakeBundle.manifest, "min_tumour_ml", 0.2)
    (prediction,) = predictions(run(assembler(), [0, 1, 2]))
    assert (prediction.status, int(prediction.mask.sum())) == ("no tumour", 0)


def test_pixels_that_touch_at_a_corner_are_one_tumour():
    masks = np.zeros((5, 5, 5), np.uint8)
    masks[0, 0, 0] = masks[1, 1, 1] = masks[4, 4, 4] = 1
    assert np.argwhere(without_spots(masks, pixels=2)).tolist() == [[0, 0, 0], [1, 1, 1]]


def test_parts_that_came_through_a_stage_of_an_earlier_version_lack_the_forms():
    stage, first, second = assembler(), part(0, count=2), part(1, count=2)
    first = changed(first, geometry=dataclasses.replace(first.geometry, forms=FORMS))
    (prediction,) = predictions([deliver(stage, each)[1] for each in (second, first)])
    assert prediction.forms == FORMS


def test_the_prediction_hands_on_the_warnings_of_all_parts_and_what_the_bundle_learned_from():
    stage = assembler()
    parts = [changed(part(0, count=2), warnings=["a", "b"]), changed(part(1, count=2), warnings=["b", "c"])]
    (prediction,) = predictions([deliver(stage, each)[1] for each in parts])
    assert prediction.warnings == ["a", "b", "c"]
    assert prediction.trained_on == "phantoms"


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
    assert [m.reason for m in outcome.publish] == ["incomplete: parts [1, 2] of 3 did not come within 0.01 s"]
    assert len(outcome.dead) == 1
    assert stage.idle() is None


def changed(message, **values):
    return dataclasses.replace(message, **values)


@pytest.mark.parametrize(
    "other",
    [
        part(1, count=4),
        changed(part(1), bundle="another"),
        changed(part(1), geometry=changed(part(1).geometry, shape=[9, 8, 6])),
        changed(part(1), geometry=changed(part(1).geometry, size=[4, 4]), mask=np.zeros((2, 4, 4), np.uint8)),
    ],
    ids=["count", "bundle", "shape", "size"],
)
def test_a_part_that_does_not_fit_the_others_is_refused(other):
    stage = assembler()
    deliver(stage, part(0))
    with pytest.raises(ProtocolError, match="other parts of this scan"):
        deliver(stage, other)


def test_a_logit_that_is_not_finite_is_refused():
    with pytest.raises(ProtocolError, match="finite"):
        deliver(assembler(), changed(part(0), logit=np.array([np.nan, 0])))


def test_incomplete_scans_fail_before_the_broker_stops_delivering(monkeypatch):
    monkeypatch.setattr("gliaflow_classifier.assembler.OPEN_PARTS", 5)
    stage = assembler()
    outcomes = [deliver(stage, part(0, scan=f"forged{n}"))[1] for n in range(5)]
    assert [reason[:10] for _, reason in outcomes[-1].dead] == ["incomplete"]
    assert len(predictions(run(stage, [0, 1, 2]))) == 1


def test_logits_that_do_not_match_the_slices_are_refused():
    with pytest.raises(ProtocolError, match="logits"):
        deliver(assembler(), changed(part(0), logit=np.zeros(3)))


def test_metrics_count_open_scans_their_wait_and_the_time_of_a_scan():
    def sample(name):
        return REGISTRY.get_sample_value(name)

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
    monkeypatch.setattr("gliaflow_classifier.assembler.KEPT_ENDINGS", 2)
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
            assert broker.depth(ASSEMBLER.name) == 1, "the announcement of the answer"
            threads[1].start()
            send(1)
            while broker.depth(ASSEMBLER.name):
                time.sleep(0.01)
            workers[1].stop()
            threads[1].join()
            assert consumer.next(0.1) is None, "no second announcement"
        assert broker.depth(ASSEMBLER.name) == 1, "only the announcement is left"
        assert broker.depth(ASSEMBLER.dead) == 0

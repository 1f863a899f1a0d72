"""A flow sends scans, waits for their answers, sends lost scans again, and reports failures as answers."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import gliaflow
import numpy as np
import pytest
from gliaflow.answer import Answer
from gliaflow.flow import RESEND, Flow, Stopped
from gliaflow.scans import Input
from gliaflow.waiting import Waiting
from gliaflow_proto import (
    FailureMessage,
    GenerateMessage,
    Queue,
    ScanMessage,
    SyntheticMessage,
    decode,
    encode,
    expect,
    routing_key,
    submission_queue,
)
from gliaflow_proto.routing import GENERATOR
from gliaflow_runtime.broker import connect
from gliaflow_runtime.broker.interface import Broker, BrokerError
from gliaflow_runtime.broker.memory import MemoryBroker
from gliaflow_runtime.errors import UsageError
from sample_messages import ONE_OF_EACH, changed
from stand_in import StandIn, fail

PREDICTION = ONE_OF_EACH[4]


@pytest.fixture
def scans(tmp_path: Path) -> list[Input]:
    paths = [tmp_path / f"s{number}.nii" for number in range(3)]
    for path in paths:
        path.write_bytes(b"a scan")
    return [Input(path, path.stem, path.stem) for path in paths]


def test_a_lost_scan_is_sent_again_when_no_more_answers_come(scans: list[Input]) -> None:
    """A scan is lost if, for example, its queue is deleted."""

    def forget_one(broker: Broker, message: ScanMessage) -> None:
        if message.scan.name != "s1" or message.scan.attempt:
            fail(broker, message)

    with StandIn(forget_one) as stages:
        answers = list(Flow(stages.broker.attach(), timeout=RESEND * 0.3).submit_all(scans))
    assert {answer.scan: answer.reason for answer in answers} == dict.fromkeys(("s0", "s1", "s2"), "test: an answer")
    assert [(m.scan.name, m.scan.attempt) for m in stages.seen] == [("s0", 0), ("s1", 0), ("s2", 0), ("s1", 1)]
    first, again = (m for m in stages.seen if m.scan.name == "s1")
    assert first.id == again.id


def test_a_scan_too_large_for_a_message_is_uploaded_again(scans: list[Input], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gliaflow.submission.BY_VALUE_BYTES", 4)
    uploads = []

    def forget_the_first(broker: Broker, message: ScanMessage) -> None:
        with broker.consume(Queue(str(message.source.upload)), 10) as chunks:
            bodies = [chunks.next(1) for _ in range(message.source.chunks)]
        uploads.append(b"".join(delivery.body for delivery in bodies if delivery))
        if message.scan.attempt:
            fail(broker, message)

    with StandIn(forget_the_first) as stages:
        Flow(stages.broker.attach(), timeout=RESEND * 0.3).submit(scans[0])
        assert uploads == [b"a scan"] * 2
        depths = [stages.broker.depth(str(m.source.upload)) for m in stages.seen]
        assert depths == [0, 0], "both upload queues are deleted"


def test_messages_that_are_not_answers_do_not_end_the_client(scans: list[Input]) -> None:
    def poison(broker: Broker, message: ScanMessage) -> None:
        for body in (b"garbage", encode(ScanMessage(id="x", scan=message.scan, source=message.source))):
            broker.publish(f"prediction.{message.scan.submission}", body, mandatory=False)
        fail(broker, message)

    with StandIn(poison) as stages:
        answers = list(Flow(stages.broker.attach(), timeout=30).submit_all(scans))
    assert [answer.reason for answer in answers] == ["test: an answer"] * 3


def test_a_scan_with_an_unreadable_answer_fails_with_the_reason(scans: list[Input]) -> None:
    def answer(broker: Broker, message: ScanMessage) -> None:
        key = f"prediction.{message.scan.submission}"
        broker.publish(key, changed(PREDICTION, schema="gliaflow/2"), mandatory=False)

    with StandIn(answer) as stages:
        failed = Flow(stages.broker.attach(), timeout=1).submit(scans[0])
    assert failed.status == "failed"
    assert (
        "no readable answer within 1 s: schema: 'gliaflow/2', but this gliaflow reads only 'gliaflow/1'"
        in failed.reason
    )


def test_a_scan_without_an_answer_in_time_fails(scans: list[Input]) -> None:
    with StandIn(lambda broker, message: None) as stages:
        failed = Flow(stages.broker.attach(), timeout=0.5).submit(scans[0])
    assert failed.reason.startswith("no answer within 0.5 s: no extractor and no classifier runs: wait")
    assert failed.seconds is not None
    assert failed.seconds >= 0.5


def test_time_that_the_caller_spends_between_answers_does_not_count(scans: list[Input]) -> None:
    held: list[ScanMessage] = []

    def hold_the_second(broker: Broker, message: ScanMessage) -> None:
        held.append(message)
        if len(held) != 2:
            fail(broker, message)

    with StandIn(hold_the_second) as stages:
        answers = Flow(stages.broker.attach(), timeout=3).submit_all(scans[:2])
        assert next(answers).reason == "test: an answer"
        time.sleep(3.5)
        fail(stages.broker, held[1])
        assert next(answers).reason == "test: an answer"


@pytest.mark.timeout(60)
def test_scans_may_come_while_others_are_in_work(scans: list[Input]) -> None:
    """None means that no scan waits now. Each answer comes before the end of the stream."""
    answers: list[str] = []

    def source() -> Iterator[Input | None]:
        for scan in scans:
            yield scan
            while scan.name not in answers:
                yield None

    with StandIn(fail) as stages:
        for answer in Flow(stages.broker.attach()).answer_stream(source()):
            answers.append(answer.scan)  # noqa: PERF401 - the source reads the list
    assert answers == ["s0", "s1", "s2"]


def test_a_scan_may_have_an_id_of_its_own_so_that_two_may_share_a_name(scans: list[Input]) -> None:
    ids: list[str] = []

    def note(broker: Broker, message: ScanMessage) -> None:
        ids.append(message.scan.id)
        fail(broker, message)

    twins = [replace(scans[0], id="first"), replace(scans[0], id="second")]
    with StandIn(note) as stages:
        answers = list(Flow(stages.broker.attach()).submit_all(twins))
    assert (sorted(ids), [answer.scan for answer in answers]) == (["first", "second"], ["s0", "s0"])


@pytest.mark.timeout(60)
def test_another_thread_can_stop_it_while_answers_are_still_to_come(scans: list[Input]) -> None:
    with StandIn(lambda broker, message: None) as stages:
        flow = Flow(stages.broker.attach())
        stopping = threading.Timer(0.2, flow.stop)
        stopping.start()
        with pytest.raises(Stopped):
            list(flow.answer_stream(iter([*scans, None])))
        stopping.join()
        flow.close()


def test_a_pipe_among_the_scans_is_reported_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "scan.nii")
    with StandIn(fail) as stages:
        failed = Flow(stages.broker.attach(), timeout=1).submit(tmp_path / "scan.nii")
    assert failed.status == "failed"
    assert "is not a regular file" in failed.reason


def test_paths_that_do_not_exist_are_usage_errors(tmp_path: Path, scans: list[Input]) -> None:
    with StandIn(fail) as stages:
        flow = Flow(stages.broker.attach(), timeout=1)
        with pytest.raises(UsageError, match="no such file"):
            flow.submit(tmp_path / "none.nii")
        with pytest.raises(UsageError, match="no such file"):
            flow.submit_all([tmp_path / "none.nii"])
        with pytest.raises(UsageError, match="3 scans, where one is expected"):
            flow.submit(tmp_path)
        with pytest.raises(UsageError, match="grade: 'IV' is not one of HGG, LGG"):
            flow.submit(scans[0].path, grade="IV")
    assert not stages.seen


def test_submit_all_takes_a_folder_a_list_and_inputs(tmp_path: Path, scans: list[Input]) -> None:
    with StandIn(fail) as stages:
        flow = Flow(stages.broker.attach(), timeout=10)
        for argument in (str(tmp_path), [scan.path for scan in scans], scans):
            assert {answer.scan for answer in flow.submit_all(argument)} == {"s0", "s1", "s2"}
        assert list(flow.submit_all([])) == []


def test_a_stage_that_ends_in_this_process_ends_the_wait(scans: list[Input]) -> None:
    class Ended:
        def allow(self, roots: Iterable[str]) -> None: ...

        def check(self) -> None:
            raise BrokerError("a stage ended")

    with StandIn(lambda broker, message: None) as stages:
        flow = Flow(stages.broker.attach(), stages=Ended(), timeout=30)  # type: ignore[arg-type]
        with pytest.raises(BrokerError, match="a stage ended"):
            flow.submit(scans[0])
        with pytest.raises(BrokerError, match="a stage ended"):
            flow.submit_all(scans).__next__()


def test_an_iteration_can_be_broken_off(scans: list[Input]) -> None:
    with StandIn(fail) as stages, stages.broker.attach() as broker:
        with Flow(broker, timeout=10) as flow:
            answers = flow.submit_all(scans)
            next(answers)
            queue = submission_queue(stages.seen[0].scan.submission).name
            assert stages.broker.queue_state(queue)
        assert stages.broker.queue_state(queue) is None, "its queue is deleted"
        assert list(answers) == []


def test_closing_a_flow_closes_its_connection_even_if_an_open_loop_cannot_clean_up(scans: list[Input]) -> None:
    closed = []
    with StandIn(lambda *_: None) as stages:
        flow = Flow(stages.broker.attach(), timeout=60)
        flow._resources.callback(closed.append, "connection")
        answers = flow.submit_all([*scans, scans[0], Input(scans[0].path.with_name("missing.nii"), "m", "m")])
        assert next(answers).status == "failed"  # the loop is left while scans are in work
        flow.broker.close()
        flow.close()
    assert closed == ["connection"]


def test_paths_and_inputs_are_not_mixed(scans: list[Input]) -> None:
    with StandIn(fail) as stages, pytest.raises(UsageError, match="give paths or Inputs, not both"):
        Flow(stages.broker.attach()).submit_all([scans[0], str(scans[1].path)])  # type: ignore[list-item]


def test_an_answer_keeps_its_mask_compressed() -> None:
    mask = np.zeros((240, 240, 155), np.uint8)
    mask[100:130, 100:130, 60:80] = 1
    answer = Answer.of_prediction(Input(Path("s.nii"), "s", "p"), replace(PREDICTION, mask=mask), 1.0)
    assert len(pickle.dumps(answer)) < mask.nbytes / 50
    np.testing.assert_array_equal(np.asarray(answer.mask.dataobj), mask)


def test_an_answer_without_tumour_has_no_grade_and_no_probability() -> None:
    answer = Answer.of_prediction(Input(Path("s.nii"), "s", "p"), replace(PREDICTION, status="no tumour"), 1.0)
    assert (answer.status, answer.grade, answer.p_hgg) == ("no tumour", None, None)


def test_an_answer_has_the_warnings_of_the_client_and_of_the_stages() -> None:
    item = Input(Path("s_t1.nii"), "s_t1", "s", warnings=("its name says T1",))
    message = replace(PREDICTION, warnings=["sform and qform differ"], trained_on="phantoms")
    answer = Answer.of_prediction(item, message, 1.0)
    assert answer.warnings == ("its name says T1", "sform and qform differ")
    assert answer.trained_on == "phantoms"


def test_a_malformed_broker_url_is_a_usage_error_without_its_password() -> None:
    for url in ("amqp://user:secret@h:x/", "amqp://user:secret@a,,b/", "ftp://h/"):
        with pytest.raises(UsageError, match="broker") as error:
            gliaflow.open(url)
        assert "secret" not in str(error.value)


def test_an_embedded_flow_leaves_no_broker_behind() -> None:
    before = dict(connect._embedded)
    gliaflow.open("memory://", threads=1).close()
    assert connect._embedded == before


def test_seconds_are_the_scans_own_without_the_wait_behind_others(scans: list[Input]) -> None:
    """All scans are sent at once. Their seconds add up to the time of the submission, and not to a multiple of it."""

    def slowly(broker: Broker, message: ScanMessage) -> None:
        time.sleep(0.1)
        fail(broker, message)

    with StandIn(slowly) as stages:
        started = time.monotonic()
        seconds = [answer.seconds for answer in Flow(stages.broker.attach(), timeout=30).submit_all(scans)]
        passed = time.monotonic() - started
    assert sum(each for each in seconds if each is not None) < 1.5 * passed


def test_features_are_all_of_one_bundle_and_generator_while_the_generator_is_replaced() -> None:
    """The request is redelivered to the new generator while parts of the old one still arrive."""
    broker = MemoryBroker()
    broker.declare(GENERATOR)

    def answer() -> None:
        with broker.attach() as other, other.consume(GENERATOR, 1) as consumer:
            delivery = consumer.next(20)
            assert delivery is not None
            request = expect(decode(delivery.body), GenerateMessage)
            old, new, other_generator = ("b@1", "infogan"), ("b@2", "infogan"), ("b@1", "acgan")
            for (bundle, generator), index in [(old, 0), (new, 0), (old, 1), (other_generator, 0), (new, 2), (new, 1)]:
                part = SyntheticMessage(
                    id=f"{bundle} {generator} {index}",
                    scan=request.scan,
                    part=[index, 3],
                    bundle=bundle,
                    generator=generator,
                    tap="enc5",
                    label="LGG",
                    seed=0,
                    features=np.full((2, 1, 2, 2), index, np.float16),
                )
                other.publish(routing_key(part), encode(part), mandatory=False)
            consumer.ack(delivery)

    thread = threading.Thread(target=answer)
    thread.start()
    parts = Flow(broker.attach(), timeout=20).generate_parts("LGG", 6)
    thread.join()
    assert [(part.bundle, part.generator, part.part) for part in parts] == [
        ("b@2", "infogan", [n, 3]) for n in range(3)
    ]


class TestTwoBundles:
    """While the stages change to another bundle, a stage may refuse a scan that the other bundle has worked on."""

    @pytest.fixture(autouse=True)
    def short_pauses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gliaflow.sent_scan.PAUSES_S", (0.05, 0.1))

    def test_a_refused_scan_is_sent_again_once_per_attempt_and_has_one_answer(self, scans: list[Input]) -> None:
        def refuse_twice(broker: Broker, message: ScanMessage) -> None:
            if message.scan.attempt == 2:
                fail(broker, message)
            for _ in range(3):  # each part of the scan is refused
                fail(broker, message, "give all stages the same bundle", retry=True)

        with StandIn(refuse_twice) as stages:
            said: list[str] = []
            flow = Flow(stages.broker.attach(), timeout=30, waiting=Waiting(said.append))
            answers = list(flow.submit_all(scans))
        assert {answer.scan: answer.reason for answer in answers} == dict.fromkeys(
            ("s0", "s1", "s2"), "test: an answer"
        )
        assert len(answers) == 3
        for name in ("s0", "s1", "s2"):
            assert [m.scan.attempt for m in stages.seen if m.scan.name == name] == [0, 1, 2]
        assert said == ["test: give all stages the same bundle; until then, scans are sent again"]

    def test_a_scan_that_is_refused_for_the_whole_timeout_fails_with_the_stages_reason(
        self, scans: list[Input]
    ) -> None:
        with StandIn(lambda broker, message: fail(broker, message, "the same bundle, please", retry=True)) as stages:
            answer = Flow(stages.broker.attach(), timeout=0.5, waiting=Waiting(lambda _: None)).submit(scans[0])
        assert (answer.status, answer.reason) == ("failed", "test: the same bundle, please")
        assert len(stages.seen) > 2

    def test_the_prediction_of_an_earlier_attempt_is_the_answer(self, scans: list[Input]) -> None:
        """It may be on its way while a copy of a part is refused."""

        def refuse_a_copy(broker: Broker, message: ScanMessage) -> None:
            fail(broker, message, retry=True)
            answer = replace(PREDICTION, scan=message.scan)
            broker.publish(routing_key(answer), encode(answer), mandatory=False)

        with StandIn(refuse_a_copy) as stages:
            answer = Flow(stages.broker.attach(), timeout=30, waiting=Waiting(lambda _: None)).submit(scans[0])
        assert answer.status == "no tumour"

    def test_the_upload_of_the_refused_attempt_is_kept_until_the_scan_is_sent_again(
        self, scans: list[Input], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gliaflow.submission.BY_VALUE_BYTES", 4)
        uploads: list[list[bool]] = []

        def refuse_once(broker: Broker, message: ScanMessage) -> None:
            time.sleep(0.2 * message.scan.attempt)  # the client deletes the first upload after the second message
            uploads.append([broker.queue_state(str(m.source.upload)) is not None for m in stages.seen])
            fail(broker, message, retry=not message.scan.attempt)

        with StandIn(refuse_once) as stages:
            flow = Flow(stages.broker.attach(), timeout=30, waiting=Waiting(lambda _: None))
            assert flow.submit(scans[0]).reason == "test: an answer"
            left = [stages.broker.queue_state(str(m.source.upload)) for m in stages.seen]
        assert uploads == [[True], [False, True]]
        assert left == [None, None]

    def test_a_scan_whose_file_is_gone_fails(self, scans: list[Input]) -> None:
        def refuse(broker: Broker, message: ScanMessage) -> None:
            scans[0].path.unlink()
            fail(broker, message, retry=True)

        with StandIn(refuse) as stages:
            answer = Flow(stages.broker.attach(), timeout=30, waiting=Waiting(lambda _: None)).submit(scans[0])
        assert answer.status == "failed"
        assert "No such file" in answer.reason


def test_the_failure_of_an_attempt_that_was_sent_again_is_not_the_answer(scans: list[Input]) -> None:
    """The client had no answer for long and sent the scan again: the later attempt may succeed."""

    def late(broker: Broker, message: ScanMessage) -> None:
        if message.scan.attempt:
            first = replace(message, scan=replace(message.scan, attempt=0))
            fail(broker, first, "the first attempt")
            fail(broker, message, "the second attempt")

    with StandIn(late) as stages:
        answer = Flow(stages.broker.attach(), timeout=RESEND * 0.3).submit(scans[0])
    assert answer.reason == "test: the second attempt"


def test_a_failure_counts_while_no_later_attempt_was_sent(scans: list[Input]) -> None:
    """A part met another bundle, so the scan is due to be sent again; then another part fails for good."""

    def two_parts(broker: Broker, message: ScanMessage) -> None:
        fail(broker, message, retry=True)
        news = FailureMessage(id="final", scan=message.scan, stage="test", reason="broken")
        broker.publish(routing_key(news), encode(news), mandatory=False)

    with StandIn(two_parts) as stages:
        flow = Flow(stages.broker.attach(), timeout=60, waiting=Waiting(lambda reason: None))
        answer = flow.submit(scans[0])
    assert (answer.reason, len(stages.seen)) == ("test: broken", 1)

"""What a client says while it waits: each reason once, with the stage and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from gliaflow import waiting
from gliaflow.flow import Flow
from gliaflow.scans import Input
from gliaflow.waiting import CHECK_S, FOR_FEATURES, FOR_SCANS, SLOW_S, Waiting
from gliaflow_proto.routing import CLASSIFIER, EXTRACTOR, STAGE_QUEUES
from gliaflow_runtime.broker.memory import MemoryBroker


class Troubled(MemoryBroker):
    """A broker in trouble that is set."""

    problem = ""

    @property
    def trouble(self) -> str:
        return self.problem


@pytest.fixture
def broker() -> Troubled:
    broker = Troubled()
    for queue in STAGE_QUEUES:
        broker.declare(queue)
    return broker


@pytest.fixture
def said() -> list[str]:
    return []


def test_stages_that_do_not_run_are_named_with_the_command_that_starts_them(broker: Troubled, said: list[str]) -> None:
    readers = [broker.consume(queue, 1) for queue in FOR_SCANS if queue not in (EXTRACTOR, CLASSIFIER)]
    waits = Waiting(said.append)
    for seconds in range(20):
        waits.check(broker, FOR_SCANS, float(seconds))
    (text,) = said
    assert text.startswith("no extractor and no classifier runs: wait for a replacement, or start one (docker")
    assert "gliaflow doctor" in text
    readers += [broker.consume(queue, 1) for queue in (EXTRACTOR, CLASSIFIER)]
    waits.check(broker, FOR_SCANS, 25.0)
    assert waits.reason == "", "they run now"


def test_a_queue_that_was_never_declared_means_that_its_stage_does_not_run(said: list[str]) -> None:
    Waiting(said.append).check(MemoryBroker(), FOR_FEATURES, CHECK_S)
    assert said[0].startswith("no generator runs")


def test_a_slow_pipeline_is_reported_once_although_its_numbers_change(broker: Troubled, said: list[str]) -> None:
    readers = [broker.consume(queue, 1) for queue in FOR_SCANS]
    waits = Waiting(said.append)
    for seconds in range(120):
        broker.send(EXTRACTOR.name, b"slices")
        waits.check(broker, FOR_SCANS, float(seconds))
        assert bool(said) == (seconds >= SLOW_S)
    assert len(said) == 1
    assert "for the extractor" in said[0]
    assert waits.reason.endswith("for the extractor"), "a failed row has the latest numbers"
    assert len(readers) == len(FOR_SCANS)


def test_the_brokers_trouble_is_said_once_per_change(
    broker: Troubled, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "AGAIN_S", 0.0)
    waits = Waiting(said.append)
    for problem in ("low on disk", "low on disk", "gone", "gone", "low on disk"):
        broker.problem = problem
        waits.check(broker, FOR_SCANS, 1.0)
    assert said == ["low on disk", "gone", "low on disk"]


def test_a_reason_that_comes_and_goes_is_not_said_every_second(broker: Troubled, said: list[str]) -> None:
    waits = Waiting(said.append)
    for _ in range(50):
        waits.say("the queue is full")
        waits.over()
    assert said == ["the queue is full"]


def test_a_scan_without_an_answer_fails_with_what_the_flow_waited_for(broker: Troubled, tmp_path: Path) -> None:
    (tmp_path / "P1.nii").write_bytes(b"a scan")
    flow = Flow(broker, timeout=2.5, waiting=Waiting(lambda _: None))
    answer = flow.submit(Input(tmp_path / "P1.nii", "P1", "P1"))
    assert answer.reason.startswith("no answer within 2.5 s: no preprocessor and no extractor and no classifier runs")

"""Stages that run in this process: they start together, and a stage that ends is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
from gliaflow_proto.routing import ASSEMBLERS, STAGE_QUEUES
from gliaflow_runner import running
from gliaflow_runner.broker import open_broker
from gliaflow_runner.running import RunningStages
from gliaflow_runner.services import PIPELINE, SERVICES, TRAINER
from gliaflow_runtime.broker.interface import BrokerError
from gliaflow_runtime.settings import Settings


def settings(name: str, state: Path) -> Settings:
    return Settings(broker=f"memory://{name}", state=state, threads=1)


def test_the_pipeline_is_all_services_but_the_trainer() -> None:
    assert {*PIPELINE, TRAINER} == set(SERVICES)


def test_all_stages_consume_once_they_are_entered(tmp_path: Path) -> None:
    chosen = settings("consume", tmp_path)
    with RunningStages(PIPELINE, chosen) as stages, open_broker(chosen) as broker:
        assert set(stages.ready()) == {"preprocessor", "extractor", "generator", "balancer", "classifier", "assembler"}
        assert all(stages.ready().values())
        for queue in set(STAGE_QUEUES) - set(ASSEMBLERS[1:]):
            state = broker.queue_state(queue.name)
            assert state is not None
            assert state.consumers == 1
        stages.check()
    assert not any(stages.ready().values())


def test_an_error_that_ends_a_stage_is_raised_by_check(tmp_path: Path) -> None:
    with RunningStages(["generator"], settings("ends", tmp_path)) as stages:
        stages._workers[0].broker.close()
        assert stages.failed.wait(10)
        with pytest.raises(BrokerError):
            stages.check()


def test_a_start_that_fails_closes_what_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def open_twice(*arguments: object, **named: object) -> object:
        if len(opened) == 2:
            raise BrokerError("no third connection")
        opened.append(open_broker(*arguments, **named))  # type: ignore[arg-type]
        return opened[-1]

    monkeypatch.setattr(running, "open_broker", open_twice)
    with pytest.raises(BrokerError, match="no third"), RunningStages(PIPELINE, settings("fails", tmp_path)):
        pass
    assert [broker.connected for broker in opened] == [False, False]


def test_roots_are_allowed_for_these_stages_alone(tmp_path: Path) -> None:
    chosen = settings("roots", tmp_path).model_copy(update={"roots": ["/data"]})
    stages = RunningStages(["preprocessor"], chosen)
    stages.allow(["/scans", "/data"])
    assert stages._settings.roots == ["/data", "/scans"]
    assert chosen.roots == ["/data"]

"""Several assemblers on RabbitMQ: they spread over processes, and their number changes while scans stream."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import gliaflow
import pytest
from gliaflow_classifier import shares
from gliaflow_classifier.assembler import Assembler
from gliaflow_classifier.shares import Shares
from gliaflow_proto import decode
from gliaflow_proto.routing import ALL_QUEUES, CLASSIFIER
from gliaflow_runtime.broker.rabbitmq import AmqpBroker
from processes import Stage
from sample_parts import ANSWERS, BUNDLE, bodies, part, running, send
from sample_scans import good_scan

pytestmark = pytest.mark.rabbitmq


def dead(broker: AmqpBroker) -> dict[str, int]:
    return {queue.name: depth for queue in ALL_QUEUES if (depth := broker.depth(queue.dead))}


def test_a_second_process_takes_over_a_shard_with_its_open_scans(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ had made the first process the active consumer of both shards. Two classifiers run."""
    monkeypatch.setattr(shares, "STAY_S", 0.0)
    processes = [Shares(2), Shares(2)]
    first, second = (
        [Assembler(BUNDLE, timeout_s=60, shard=shard, shares=each) for shard in (0, 1)] for each in processes
    )
    with AmqpBroker(rabbitmq_url) as broker:
        for queue in (CLASSIFIER, ANSWERS):
            broker.declare(queue)
        with (
            broker.consume(CLASSIFIER, 1),
            broker.consume(CLASSIFIER, 1),
            running(first, lambda: AmqpBroker(rabbitmq_url)),
            broker.consume(ANSWERS, 10) as answers,
        ):
            for shard in (0, 1):
                send(broker, part(0, scan=f"scan{shard}", shard=shard))
            with running(second, lambda: AmqpBroker(rabbitmq_url)):
                until = time.monotonic() + 30
                while [each.busy() for each in processes] != [[0], [1]]:
                    assert time.monotonic() < until, [each.busy() for each in processes]
                    time.sleep(0.05)
                for shard in (0, 1):
                    for index in (1, 2):
                        send(broker, part(index, scan=f"scan{shard}", shard=shard))
                assert sorted(decode(body).scan.id for body in bodies(answers, 2)) == ["scan0", "scan1"]
        assert dead(broker) == {}
        broker.delete(ANSWERS.name)


def test_the_number_of_shards_changes_while_scans_stream(
    rabbitmq_url: str, stages: Callable[..., list[Stage]], tmp_path: Path
) -> None:
    """Only the preprocessor is told. Each scan is answered once, whatever number was in force on its way."""
    paths = []
    for number in range(20):
        (tmp_path / f"p{number}").mkdir()
        paths.append(good_scan(tmp_path / f"p{number}" / "flair.nii.gz", seed=number % 3))
    preprocessor, _, classifier = stages("preprocessor", "extractor", "classifier")
    answered = []
    with gliaflow.open(rabbitmq_url) as flow:
        for answer in flow.submit_all(paths):
            answered.append((answer.patient, answer.status))
            if len(answered) in (3, 11):
                assert preprocessor.stop() == 0
                (preprocessor,) = stages("preprocessor", assembler_shards=4 if len(answered) == 3 else 1)
    assert sorted(answered) == sorted((f"p{number}", "ok") for number in range(20))
    slices = dict(re.findall(r'gliaflow_slices_total{stage="(assembler\S*)"} (\S+)', classifier.get("/metrics")[1]))
    assert len(slices) > 1, "those of other shards have worked"
    with AmqpBroker(rabbitmq_url) as broker:
        assert dead(broker) == {}

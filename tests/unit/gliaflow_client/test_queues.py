"""``gliaflow status``: what waits, what is in work, what the assembler keeps, and when it will be done."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from gliaflow_client.management import Client
from gliaflow_client.queues import as_lines, read_status
from gliaflow_proto import Queue
from gliaflow_proto.routing import ASSEMBLERS, CLASSIFIER, EXTRACTOR, STAGE_QUEUES
from gliaflow_runtime.broker.memory import MemoryBroker


class Api:
    """The answers of a management API: a queue's unacknowledged messages, and how many leave each second."""

    def __init__(self, in_work: Mapping[Queue, int], leave: Mapping[Queue, float]) -> None:
        self._in_work, self._leave = in_work, leave

    def queues(self) -> dict[str, dict[str, Any]]:
        def samples(rate: float) -> list[dict[str, float]]:
            return [{"sample": 10 * rate, "timestamp": 10_000}, {"sample": 0, "timestamp": 0}]

        return {
            queue.name: {
                "messages_unacknowledged": self._in_work.get(queue, 0),
                "message_stats": {"ack_details": {"samples": samples(self._leave.get(queue, 0))}},
            }
            for queue in STAGE_QUEUES
        }

    def clients(self) -> list[Client]:
        return []

    def client_services(self) -> dict[str, list[str]]:
        return {"dicom": ["0.1.0"], "console": ["0.1.0"]}


def shown(
    waiting: Mapping[Queue, int] = {},
    in_work: Mapping[Queue, int] = {},
    leave: Mapping[Queue, float] = {},
    stopped: tuple[Queue, ...] = (),
) -> tuple[str, dict[str, list[str]]]:
    """What ``gliaflow status`` prints for these queues: all of it, and the cells of each queue."""
    with MemoryBroker() as broker, ExitStack() as running:
        for queue in STAGE_QUEUES:
            broker.declare(queue)
            for _ in range(waiting.get(queue, 0)):
                broker.send(queue.name, b"")
            if queue not in stopped:
                running.enter_context(broker.consume(queue, 1))
        text = "\n".join(as_lines(read_status(broker, Api(in_work, leave), "host/")))  # type: ignore[arg-type]
    return text, {cells[0]: cells[1:] for line in text.splitlines() if (cells := line.split())}


def test_an_idle_pipeline_is_idle_though_the_assembler_remembers_ended_scans() -> None:
    text, cells = shown(in_work={ASSEMBLERS[0]: 45})
    assert cells["queue"][:4] == ["waiting", "in", "work", "kept"]
    assert cells["assembler"][:3] == ["0", "0", "45"]
    assert "kept: ended scans that the assemblers remember" in text
    assert "idle: no message waits or is in work\n" in text + "\n"
    assert "dicom node   1 connected, gliaflow 0.1.0" in text
    assert "console      1 connected, gliaflow 0.1.0" in text
    assert "not known" not in text


def test_while_the_classifier_is_stopped_its_ended_scans_wait_for_no_work() -> None:
    text, cells = shown(waiting={ASSEMBLERS[0]: 45}, stopped=(CLASSIFIER, ASSEMBLERS[0]))
    assert cells["assembler"][:4] == ["0", "0", "45", "0"]
    assert "idle: no message waits or is in work; no consumer: classifier, assembler" in text


def test_messages_without_a_consumer_are_the_cause_of_an_unknown_time() -> None:
    text, cells = shown(waiting={EXTRACTOR: 16}, in_work={ASSEMBLERS[0]: 6}, stopped=(EXTRACTOR,))
    assert cells["extractor"][:4] == ["16", "0", "0", "0"]
    assert "time left: not known, as messages wait, and no consumer reads them: extractor (gliaflow doctor" in text


def test_a_queue_from_which_nothing_leaves_is_named() -> None:
    text, _ = shown(in_work={EXTRACTOR: 1})
    assert "time left: not known, as no message was completed in 30 s: extractor" in text


def test_the_time_left_counts_waiting_messages_and_those_in_work() -> None:
    text, _ = shown(
        waiting={EXTRACTOR: 19},
        in_work={EXTRACTOR: 1, CLASSIFIER: 1, ASSEMBLERS[0]: 400},
        leave={EXTRACTOR: 2, CLASSIFIER: 1},
    )
    assert "time left: about 11 s" in text


def test_every_line_fits_into_80_columns() -> None:
    text, _ = shown(in_work={ASSEMBLERS[0]: 45})
    assert max(map(len, text.splitlines()[:8])) <= 80

"""The strip of stages: which stage is gone or stuck, what waits, and what is said when the broker is away."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from gliaflow_client.management import Client, ManagementError
from gliaflow_console import stages
from gliaflow_console.stages import StageStrip
from gliaflow_proto import Queue
from gliaflow_proto.routing import ASSEMBLERS, CLASSIFIER, EXTRACTOR, PREPROCESSOR, RECORDER, STAGE_QUEUES
from gliaflow_runtime import metrics
from gliaflow_runtime.broker.interface import BrokerError, Delivery
from gliaflow_runtime.broker.memory import MemoryBroker
from gliaflow_runtime.settings import Settings

NAMES = ["preprocessor", "extractor", "classifier", "assembler", "generator", "balancer"]


class Away(MemoryBroker):
    """A broker that is away while ``trouble`` says so."""

    trouble = ""


@pytest.fixture
def broker() -> Away:
    broker = Away()
    for queue in STAGE_QUEUES:
        broker.declare(queue)
    return broker


@pytest.fixture
def inside(broker: Away) -> StageStrip:
    """The strip of a console with the stages inside."""
    running = SimpleNamespace(bundle=SimpleNamespace(id="demo@1"), error=None)
    return strip(broker, running)


def strip(broker: MemoryBroker, running: Any = None, shards: int = 1) -> StageStrip:
    url = "http://127.0.0.1:1"
    settings = Settings(broker="amqp://user:secret@127.0.0.1:1/", management=url, assembler_shards=shards)
    flow: Any = SimpleNamespace(broker=broker, stages=running)
    return StageStrip(settings, flow, threading.Event())


def read(strip: StageStrip) -> dict[str, dict[str, Any]]:
    """The stages by name, after a new reading."""
    strip.read()
    return {stage["name"]: stage for stage in strip.snapshot()["stages"]}


def api(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
    """A management API with these answers."""
    monkeypatch.setattr(stages, "DETAILS_S", 0)
    for name, answer in {"queues": {"any": {}}, "alarms": [], "clients": [], **answers}.items():
        monkeypatch.setattr(f"gliaflow_client.management.Management.{name}", lambda self, answer=answer: answer)


def test_a_stage_without_a_process_is_gone_and_the_reason_says_what_to_do(broker: Away) -> None:
    outside = strip(broker)
    consumers = {queue.name: broker.consume(queue, 1) for queue in STAGE_QUEUES}
    assert {stage["state"] for stage in read(outside).values()} == {"ok"}
    consumers[EXTRACTOR.name].close()
    consumers[ASSEMBLERS[0].name].close()
    now = read(outside)
    assert list(now) == NAMES
    assert [name for name, stage in now.items() if stage["state"] == "gone"] == ["extractor", "assembler"]
    assert "docker compose up -d extractor, or gliaflow serve extractor" in now["extractor"]["reason"]
    assert "gliaflow serve classifier" in now["assembler"]["reason"], "its process runs the assembler too"


def test_further_shards_of_the_assembler_are_shown_if_scans_go_there_or_they_have_dead_letters(broker: Away) -> None:
    assert [name for name in read(strip(broker, shards=2)) if "." in name] == ["assembler.1"]
    shard = ASSEMBLERS[3]
    broker.dead_letter(Delivery(shard.name, shard.keys[0], b"late"), "incomplete")
    assert [name for name in read(strip(broker)) if "." in name] == ["assembler.3"]


def test_a_stage_whose_queue_was_never_declared_is_gone_too() -> None:
    now = read(strip(MemoryBroker()))
    assert list(now) == NAMES, "without those that one shard does not need"
    assert {stage["state"] for stage in now.values()} == {"gone"}


def test_the_recorder_is_shown_if_it_has_a_queue(broker: Away) -> None:
    broker.declare(RECORDER)
    assert list(read(strip(broker))) == [*NAMES, "recorder"]


def test_a_stage_in_this_process_that_has_ended_is_gone_with_its_error(broker: Away) -> None:
    running = SimpleNamespace(bundle=SimpleNamespace(id="demo@1"), error=BrokerError("the disk is full"))
    stage = read(strip(broker, running))["preprocessor"]
    assert (stage["state"], stage["reason"]) == (
        "gone",
        "the stage has ended (the disk is full): start the console again",
    )


def test_messages_that_wait_and_dead_letters_are_counted(inside: StageStrip, broker: Away) -> None:
    broker.send(EXTRACTOR.name, b"")
    broker.send(EXTRACTOR.name, b"")
    broker.dead_letter(Delivery(CLASSIFIER.name, "features.unlabelled", b""), "no reason")
    now = read(inside)
    assert (now["extractor"]["waiting"], now["classifier"]["dead"]) == (2, 1)
    assert inside.snapshot()["dead"] == 1


def test_dead_letters_that_a_request_holds_are_still_counted(inside: StageStrip, broker: Away) -> None:
    broker.dead_letter(Delivery(CLASSIFIER.name, "features.unlabelled", b""), "no reason")
    assert read(inside)["classifier"]["dead"] == 1
    with inside.letters_lock, broker.consume(Queue(CLASSIFIER.dead), 1) as consumer:
        assert consumer.next(timeout=1)
        assert read(inside)["classifier"]["dead"] == 1


def test_dead_letters_that_are_on_their_way_back_are_still_counted(inside: StageStrip, broker: Away) -> None:
    """So that no page loads them again and again because their number changes."""
    broker.dead_letter(Delivery(CLASSIFIER.name, "features.unlabelled", b""), "no reason")
    assert read(inside)["classifier"]["dead"] == 1
    with broker.consume(Queue(CLASSIFIER.dead), 1) as consumer:
        assert consumer.next(timeout=1)
        assert read(inside)["classifier"]["dead"] == 1
    assert read(inside)["classifier"]["dead"] == 1
    broker.delete(CLASSIFIER.dead)
    assert [read(inside)["classifier"]["dead"] for _ in range(2)] == [1, 0]


def test_rates_and_work_of_the_stages_in_this_process_come_from_their_metrics(
    inside: StageStrip, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(stages.time, "monotonic", lambda: now)
    assert read(inside)["extractor"]["rate"] == 0
    metrics.MESSAGES.labels("extractor", "done").inc(10)
    metrics.WORKING.labels("extractor").set_function(lambda: 2.5)
    now += 5
    stage = read(inside)["extractor"]
    assert (stage["rate"], stage["in_work"]) == (2.0, 1)
    now += 2 * stages.WINDOW_S
    metrics.WORKING.labels("extractor").set_function(lambda: 0.0)
    stage = read(inside)["extractor"]
    assert (stage["rate"], stage["in_work"]) == (0.0, 0)


def test_a_stage_that_completes_nothing_for_long_is_stuck(
    inside: StageStrip, broker: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(stages.time, "monotonic", lambda: now)
    consumer = broker.consume(EXTRACTOR, 1)
    broker.send(EXTRACTOR.name, b"")
    assert read(inside)["extractor"]["state"] == "ok"
    now += stages.STUCK_S + 1
    assert read(inside)["extractor"]["state"] == "stuck"
    assert "gliaflow doctor" in read(inside)["extractor"]["reason"]
    delivery = consumer.next(timeout=1)
    assert delivery
    consumer.ack(delivery)
    assert read(inside)["extractor"]["state"] == "ok"


def test_without_the_management_api_rates_are_not_known_and_the_problem_says_why(broker: Away) -> None:
    outside = strip(broker)
    stage = read(outside)["extractor"]
    assert (stage["rate"], stage["in_work"], outside.snapshot()["left_s"]) == (None, None, None)
    assert "no management API at http://127.0.0.1:1" in outside.snapshot()["problem"]
    assert "GLIAFLOW_MANAGEMENT" in outside.snapshot()["problem"]


def test_the_management_api_gives_rates_alarms_and_bundles(broker: Away, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [{"sample": 20, "timestamp": 10_000}, {"sample": 0, "timestamp": 0}]
    detail = {"messages_unacknowledged": 3, "message_stats": {"ack_details": {"samples": samples}}}
    clients = [Client("gliaflow.extractor", "1", bundle, "") for bundle in ("a@1", "b@2", "b@2", "")]
    api(monkeypatch, queues={PREPROCESSOR.name: detail}, clients=clients)
    outside = strip(broker)
    stage = read(outside)["preprocessor"]
    assert (stage["rate"], stage["in_work"]) == (2.0, 3)
    assert outside.bundles == ("a@1", "b@2")
    assert outside.snapshot()["problem"] == "the stages have different bundles: a@1, b@2 (gliaflow doctor)"
    api(monkeypatch, alarms=["rabbit@one: memory"])
    read(outside)
    assert "takes no messages now, because of an alarm (rabbit@one: memory)" in outside.snapshot()["problem"]


def test_a_management_api_that_is_away_is_not_tried_at_each_reading(
    broker: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take seconds to time out, and a stage that is gone must be seen within ten."""
    tries = []

    def fail(_: Any) -> Any:
        tries.append(1)
        raise ManagementError("away")

    monkeypatch.setattr("gliaflow_client.management.Management.queues", fail)
    outside = strip(broker)
    for _ in range(3):
        read(outside)
    assert len(tries) == 1


def test_while_the_broker_is_away_no_stage_counts_as_running(inside: StageStrip, broker: Away) -> None:
    consumers = [broker.consume(queue, 1) for queue in STAGE_QUEUES]
    assert {stage["state"] for stage in read(inside).values()} == {"ok"}
    broker.trouble = "no connection to RabbitMQ: is it running?"
    stage = read(inside)["extractor"]
    assert (stage.pop("name"), stage.pop("state"), stage.pop("reason")) == ("extractor", "unknown", "")
    assert stage == dict.fromkeys(("waiting", "in_work", "rate", "consumers", "dead")), "old counts are not shown"
    assert inside.snapshot()["dead"] is None
    assert inside.snapshot()["problem"] == broker.trouble
    broker.trouble = ""
    assert {stage["state"] for stage in read(inside).values()} == {"ok"}
    for consumer in consumers:
        consumer.close()


def test_a_broker_that_does_not_answer_holds_up_no_reader(
    inside: StageStrip, broker: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(inside)
    reading, answered = threading.Event(), threading.Event()

    def hang(_: str) -> int:
        reading.set()
        assert answered.wait(30)
        return 0

    monkeypatch.setattr(broker, "depth", hang)
    thread = threading.Thread(target=inside.read)
    thread.start()
    assert reading.wait(30)
    assert inside.snapshot()["problem"] == ""
    monkeypatch.setattr(stages, "SILENT_S", 0)
    assert "RabbitMQ has not answered for over" in inside.snapshot()["problem"]
    assert {stage["state"] for stage in inside.snapshot()["stages"]} == {"unknown"}
    answered.set()
    thread.join()
    assert inside.snapshot()["problem"] == ""


def test_an_error_of_a_reading_is_shown_until_the_next_one_succeeds(
    inside: StageStrip, broker: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, text in ((BrokerError("closed"), "closed"), (KeyError("x"), "the queues cannot be read: KeyError at ")):
        with monkeypatch.context() as patched:
            patched.setattr(broker, "depth", lambda _, error=error: (_ for _ in ()).throw(error))
            read(inside)
        assert text in inside.snapshot()["problem"]
        read(inside)
        assert inside.snapshot()["problem"] == ""

"""Dead letters in the console: list, show, send back and delete."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from gliaflow_console import letters as module
from gliaflow_console.api.dead import _ids
from gliaflow_console.letters import Letters
from gliaflow_proto import Source, decode, encode
from gliaflow_proto.routing import CLASSIFIER, CLIENT_EXCHANGE, EXTRACTOR, PREPROCESSOR, STAGE_QUEUES
from gliaflow_runtime.broker.interface import SENT_TO, AccessDenied, BrokerError, Delivery
from gliaflow_runtime.broker.memory import Limit, MemoryBroker
from sample_messages import SCAN, SCAN_MESSAGE
from starlette.exceptions import HTTPException
from starlette.requests import Request

UNLABELLED = replace(SCAN_MESSAGE, scan=replace(SCAN, label=None))


@pytest.fixture
def broker() -> Iterator[MemoryBroker]:
    with MemoryBroker(limits={PREPROCESSOR.name: Limit(1)}) as broker:
        for queue in STAGE_QUEUES:
            broker.declare(queue)
        yield broker


@pytest.fixture
def letters(broker: MemoryBroker) -> Letters:
    return Letters(broker, threading.Lock())


def bury(broker: MemoryBroker, body: bytes, number: object = 1, queue: Any = PREPROCESSOR) -> None:
    broker.dead_letter(
        Delivery(queue.name, queue.keys[0], body, f"id-{number}", exchange=CLIENT_EXCHANGE), f"reason {number}"
    )


def test_a_letter_is_listed_with_its_reason_its_scan_and_when_it_died(broker: MemoryBroker, letters: Letters) -> None:
    body = encode(UNLABELLED)
    bury(broker, body)
    assert letters.listing()["problem"] == ""
    [letter] = letters.listing()["letters"]
    assert letter["died"] > 1.7e9
    assert (letter["queue"], letter["reason"], letter["scan"]) == ("preprocessor", "reason 1", "brain")
    assert (letter["submission"], letter["bytes"], letter["copies"]) == ("sub", len(body), 1)
    assert broker.depth(PREPROCESSOR.dead) == 1, "the letter is back with the broker"


def test_a_letter_that_is_no_message_is_listed_and_shown_too(broker: MemoryBroker, letters: Letters) -> None:
    broker.send(EXTRACTOR.dead, b"\xff<img onerror=alert(1)>", message_id="../../<b>")
    [letter] = letters.listing()["letters"]
    assert (letter["scan"], letter["died"], letter["reason"]) == ("", None, "not known")
    assert re.fullmatch("[0-9a-f]{32}", letter["id"]), "an id for URLs, whatever the message's own is"
    assert "not a valid message; what can be read:" in (letters.show(letter["id"]) or [])


def test_copies_of_a_letter_are_one(broker: MemoryBroker, letters: Letters) -> None:
    """A stage that ends after it wrote a dead letter writes it again."""
    for _ in range(3):
        bury(broker, encode(UNLABELLED))
    [letter] = letters.listing()["letters"]
    assert letter["copies"] == 3
    assert letters.replay({letter["id"]}) == {"sent": 1, "refused": []}
    assert (broker.depth(PREPROCESSOR.name), broker.depth(PREPROCESSOR.dead)) == (1, 0)


def test_a_letter_is_shown_without_the_content_of_its_tensors(broker: MemoryBroker, letters: Letters) -> None:
    bury(broker, encode(replace(UNLABELLED, source=Source(data=b"12345"))))
    [letter] = letters.listing()["letters"]
    lines = letters.show(letter["id"]) or []
    assert "reason: reason 1" in lines
    assert "  data: 5 bytes" in lines
    assert letters.show("0" * 32) is None


def test_a_letter_is_sent_back_to_its_queue_as_a_new_attempt(broker: MemoryBroker, letters: Letters) -> None:
    bury(broker, encode(UNLABELLED))
    [letter] = letters.listing()["letters"]
    assert letters.replay({letter["id"], "unknown"}) == {
        "sent": 1,
        "refused": [{"id": "unknown", "reason": "it is no longer among the first dead letters"}],
    }
    assert letters.listing()["letters"] == []
    delivery = broker.consume(PREPROCESSOR, 1).next(timeout=1)
    assert delivery
    assert (decode(delivery.body).scan.attempt, decode(delivery.body).scan.replayed) == (1, True)
    assert delivery.headers[SENT_TO] == CLIENT_EXCHANGE


def test_a_letter_that_its_queue_has_no_room_for_stays_and_the_reason_says_so(
    broker: MemoryBroker, letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROOM_S", 0.2)
    bury(broker, encode(UNLABELLED))
    broker.send(PREPROCESSOR.name, b"")
    [letter] = letters.listing()["letters"]
    [refused] = letters.replay({letter["id"]})["refused"]
    assert "full: try again" in refused["reason"]
    assert [each["id"] for each in letters.listing()["letters"]] == [letter["id"]]


def test_letters_wait_for_room_in_the_queue_of_their_stage(broker: MemoryBroker, letters: Letters) -> None:
    """Its limit is one message here: more letters than that are sent back while the stage works."""
    for number in range(4):
        bury(broker, encode(replace(UNLABELLED, id=f"m{number}")), number)
    with broker.consume(PREPROCESSOR, 9) as stage:
        thread = threading.Thread(target=lambda: [stage.ack(delivery) for delivery in deliveries(stage, 4)])
        thread.start()
        assert letters.replay(None) == {"sent": 4, "refused": []}
        thread.join()


def deliveries(consumer: Any, count: int) -> Iterator[Delivery]:
    for _ in range(count):
        delivery = consumer.next(timeout=5)
        assert delivery
        yield delivery


def test_a_labelled_scan_of_a_client_without_the_right_is_refused(broker: MemoryBroker, letters: Letters) -> None:
    bury(broker, encode(SCAN_MESSAGE))
    [letter] = letters.listing()["letters"]
    [refused] = letters.replay({letter["id"]})["refused"]
    assert "no right" in refused["reason"]
    assert "gliaflow.labelled" in refused["reason"]
    assert broker.depth(PREPROCESSOR.dead) == 1


def test_letters_behind_many_that_are_refused_are_sent_back_too(
    broker: MemoryBroker, letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 3)
    monkeypatch.setattr(broker._state, "limits", {})
    for number in range(5):
        bury(broker, encode(replace(SCAN_MESSAGE, id=f"bad{number}")), number)
    for number in range(4):
        bury(broker, encode(replace(UNLABELLED, id=f"good{number}")), f"good {number}")
    answer = letters.replay(None)
    assert (answer["sent"], len(answer["refused"])) == (4, 5)
    assert broker.depth(PREPROCESSOR.dead) == 5


def test_letters_are_deleted_by_id(broker: MemoryBroker, letters: Letters) -> None:
    for number in range(3):
        bury(broker, b"%d" % number, number)
    ids = {letter["reason"]: letter["id"] for letter in letters.listing()["letters"]}
    assert letters.delete({ids["reason 0"], ids["reason 2"], "unknown"}) == 2
    assert [letter["reason"] for letter in letters.listing()["letters"]] == ["reason 1"]


def test_a_call_holds_few_letters_and_a_share_of_each_queue(
    broker: MemoryBroker, letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that one queue with thousands hides no other, and memory is bounded."""
    monkeypatch.setattr(module, "AT_ONCE", 5)
    for number in range(9):
        bury(broker, b"%d" % number, number)
    bury(broker, b"x", "x", EXTRACTOR)
    listing = letters.listing()
    assert [letter["reason"] for letter in listing["letters"]] == [*(f"reason {n}" for n in range(4)), "reason x"]
    assert listing["more"] == 5


@pytest.mark.parametrize("act", ["replay", "delete"])
def test_all_letters_are_sent_back_or_deleted_a_few_at_a_time(
    broker: MemoryBroker, letters: Letters, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """Also those that are not listed. One that dies again meanwhile is left for the next time."""
    monkeypatch.setattr(module, "AT_ONCE", 4)
    for number in range(21):
        bury(broker, b"%d" % number, number, EXTRACTOR)
    bury(broker, b"x", "x", CLASSIFIER)
    send = broker.send

    def send_and_die(queue: str, body: bytes, **options: Any) -> None:
        send(queue, body, **options)
        send(f"{queue}.dead", body, message_id="again")

    monkeypatch.setattr(broker, "send", send_and_die)
    if act == "replay":
        assert letters.replay(None) == {"sent": 22, "refused": []}
        assert broker.depth(EXTRACTOR.name) == 21
        assert broker.depth(EXTRACTOR.dead) + broker.depth(CLASSIFIER.dead) == 22
    else:
        assert letters.delete(None) == 22
        assert broker.depth(EXTRACTOR.dead) + broker.depth(CLASSIFIER.dead) == 0


def test_while_the_broker_is_away_or_the_letters_are_held_a_call_fails_and_waits_for_nothing(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TURN_S", 0.01)
    lock = threading.Lock()
    with lock, pytest.raises(BrokerError, match="another request reads the dead letters"):
        Letters(broker, lock).listing()
    monkeypatch.setattr(MemoryBroker, "trouble", "no connection to RabbitMQ")
    with pytest.raises(BrokerError, match="no connection to RabbitMQ"):
        Letters(broker, lock).listing()
    assert not lock.locked()


def test_a_missing_right_is_named(broker: MemoryBroker, letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AccessDenied("cannot receive from 'gliaflow.preprocessor.dead': read access refused for user 'x'")

    bury(broker, b"")
    monkeypatch.setattr(broker, "consume", refuse)
    with pytest.raises(AccessDenied, match=r"read access refused for user 'x': only the users operator"):
        letters.listing()


@pytest.mark.parametrize("body", [b"", b"[]", b'{"ids": []}', b'{"ids": [7]}', b'{"ids": ["\\ud800"]}', b'{"all": 1}'])
def test_a_request_without_usable_ids_is_refused_with_an_example(body: bytes) -> None:
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body}

    with pytest.raises(HTTPException, match=r'expected a JSON body \{"ids": \["…"\]\}'):
        asyncio.run(_ids(Request({"type": "http", "headers": []}, receive)))

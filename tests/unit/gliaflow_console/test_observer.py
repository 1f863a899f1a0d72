"""The observer: which messages of the pipeline reach the store, and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from gliaflow_console import observer as module
from gliaflow_console.observer import Observer
from gliaflow_proto import FailureMessage, GradedMessage, Message, PredictionMessage, encode, routing_key
from gliaflow_proto.routing import ASSEMBLERS
from gliaflow_runtime.broker.interface import AccessDenied
from gliaflow_runtime.broker.memory import MemoryBroker
from sample_messages import COMMON, ONE_OF_EACH

[PREDICTION] = [message for message in ONE_OF_EACH if isinstance(message, PredictionMessage)]
[GRADED] = [message for message in ONE_OF_EACH if isinstance(message, GradedMessage)]
FAILURE = FailureMessage(**COMMON, stage="extractor", reason="too dark")


@dataclass
class FakeStore:
    """Keeps what it gets."""

    working: bool = False
    answers: list[tuple[Message, bytes]] = field(default_factory=list)
    parts: list[tuple[str, list[int]]] = field(default_factory=list)

    def in_work(self) -> bool:
        return self.working

    def graded(self, id: str, part: list[int]) -> None:
        self.parts.append((id, part))

    def observed(self, message: Message, body: bytes) -> None:
        if message.id == "fault":
            raise RuntimeError("a fault")
        self.answers.append((message, body))


@pytest.fixture
def broker() -> Iterator[MemoryBroker]:
    with MemoryBroker() as broker:
        broker.declare(ASSEMBLERS[0])
        yield broker


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def observer(broker: MemoryBroker, store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Observer]:
    """One that runs."""
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    monkeypatch.setattr(module, "POLL_S", 0.01)
    monkeypatch.setattr(module, "LINGER_S", 0.0)
    stopping = threading.Event()
    observer = Observer(broker, store, stopping)  # type: ignore[arg-type]
    thread = threading.Thread(target=observer.run)
    thread.start()
    eventually(lambda: observed(broker) >= 1)
    yield observer
    stopping.set()
    thread.join()


def observed(broker: MemoryBroker) -> int:
    """How many queues observers have now."""
    return sum(name.startswith("gliaflow.console.") for name in list(broker._state.queues))


def publish(broker: MemoryBroker, message: Message) -> bytes:
    body = encode(message, "lz4")
    broker.publish(routing_key(message), body)
    return body


def eventually(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.usefixtures("observer")
def test_answers_to_every_client_reach_the_store_without_their_masks(broker: MemoryBroker, store: FakeStore) -> None:
    body = publish(broker, replace(PREDICTION, scan=replace(PREDICTION.scan, submission="of-another-client")))
    publish(broker, FAILURE)
    eventually(lambda: len(store.answers) == 2)
    [(prediction, received), (failure, _)] = store.answers
    assert isinstance(prediction, PredictionMessage)
    assert (prediction.p_hgg, prediction.scan.submission) == (PREDICTION.p_hgg, "of-another-client")
    assert prediction.mask.shape == PREDICTION.mask.shape
    assert prediction.mask.strides == (0, 0, 0), "it takes no memory"
    assert received == body, "which still has the mask"
    assert failure == FAILURE


@pytest.mark.usefixtures("observer")
def test_what_is_no_answer_to_a_scan_does_not_reach_the_store(broker: MemoryBroker, store: FakeStore) -> None:
    publish(broker, replace(FAILURE, retry=True))  # its client sends the scan again
    publish(broker, replace(FAILURE, stage="generator"))  # the answer to a request for features
    broker.publish("failure.sub", b"no message")
    broker.publish("prediction.sub", encode(GRADED))  # by a sender that has no right to send it
    publish(broker, replace(FAILURE, id="fault"))
    publish(broker, FAILURE)
    eventually(lambda: store.answers)
    assert [message for message, _ in store.answers] == [FAILURE]


@pytest.mark.usefixtures("observer")
def test_progress_is_received_only_while_own_scans_are_in_work(broker: MemoryBroker, store: FakeStore) -> None:
    publish(broker, GRADED)
    store.working = True
    eventually(lambda: observed(broker) == 2)
    publish(broker, GRADED)
    eventually(lambda: store.parts)
    assert store.parts == [("s1", [1, 3])]
    store.working = False
    eventually(lambda: observed(broker) == 1)


def test_its_problem_says_why_answers_do_not_appear_until_they_do(
    observer: Observer, broker: MemoryBroker, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AccessDenied("read access to topic 'graded' refused for user 'x'")

    assert observer.problem == ""
    with monkeypatch.context() as patched:
        patched.setattr(broker, "observe", refuse)
        store.working = True
        eventually(lambda: "refused for user 'x': give this user the rights" in observer.problem)
    eventually(lambda: not observer.problem)
    publish(broker, FAILURE)
    eventually(lambda: store.answers)


def test_it_leaves_no_queue_behind(broker: MemoryBroker, store: FakeStore) -> None:
    stopping = threading.Event()
    thread = threading.Thread(target=Observer(broker, store, stopping).run)  # type: ignore[arg-type]
    thread.start()
    eventually(lambda: observed(broker))
    stopping.set()
    thread.join()
    assert observed(broker) == 0

"""The thread that sends scans: what it does with answers, with errors, and at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from gliaflow.answer import Answer
from gliaflow.scans import Input
from gliaflow_console import sender as module
from gliaflow_console.sender import ScanSender
from gliaflow_console.store import ScanStore
from gliaflow_runtime.broker.interface import BrokerError
from gliaflow_runtime.settings import Settings

Reply = Callable[[Input], Answer]


class FakeFlow:
    """Answers each scan with what ``reply`` returns or raises."""

    stages = None

    def __init__(self, reply: Reply) -> None:
        self.reply, self.stopped = reply, False
        self.broker = SimpleNamespace(trouble="")

    def answer_stream(self, scans: Iterator[Input | None]) -> Iterator[Answer]:
        for item in scans:
            if self.stopped:
                raise BrokerError("the flow is stopped")
            if item is None:
                time.sleep(0.01)
            else:
                yield self.reply(item)

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScanStore]:
    monkeypatch.setattr(module, "RETRY_S", 0.05)
    with ScanStore(Settings()) as store:
        yield store


def send(store: ScanStore, name: str) -> str:
    upload = store.new_upload()
    upload.place(name).write_bytes(b"scan")
    return store.take(upload, alone=True).ids[0]


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def run(store: ScanStore, reply: Reply, then: Callable[[ScanSender], None]) -> None:
    sender = ScanSender(FakeFlow(reply), store, threading.Event())  # type: ignore[arg-type]
    thread = threading.Thread(target=sender.run, daemon=True)
    thread.start()
    try:
        then(sender)
    finally:
        sender.stop()
        thread.join(10)
    assert not thread.is_alive()


def status(store: ScanStore, scan: str) -> str:
    stored = store.get(scan)
    assert stored is not None
    return stored.status


def no_tumour(item: Input) -> Answer:
    return Answer(item.name, item.patient, item.source, "no tumour", _input=item)


def test_scans_that_come_while_it_runs_are_answered(store: ScanStore) -> None:
    def then(_: ScanSender) -> None:
        for name in ("P1.nii", "P2.nii", "P1.nii"):  # two of one name are two scans
            scan = send(store, name)
            until(lambda scan=scan: status(store, scan) == "no tumour")

    run(store, no_tumour, then)


def test_while_the_broker_is_away_a_scan_stays_queued(store: ScanStore) -> None:
    flow = FakeFlow(lambda item: Answer.failed(item, "done"))
    flow.broker.trouble = "no connection to RabbitMQ"
    sender: Any = ScanSender(flow, store, threading.Event())  # type: ignore[arg-type]
    scans = sender._scans()
    id = send(store, "a.nii")
    assert next(scans) is None
    assert store.get(id).status == "queued"  # type: ignore[union-attr]
    flow.broker.trouble = ""
    assert next(scans).id == id
    assert store.get(id).status == "working"  # type: ignore[union-attr]


def test_without_a_broker_scans_wait_and_the_reason_is_known(store: ScanStore) -> None:
    away = True

    def reply(item: Input) -> Answer:
        if away:
            raise BrokerError("no stage takes 'scan' messages (start the stages)")
        return no_tumour(item)

    def then(sender: ScanSender) -> None:
        nonlocal away
        scan = send(store, "P1.nii")
        until(lambda: sender.problem)
        assert sender.problem == "scans wait: no stage takes 'scan' messages (start the stages)"
        assert status(store, scan) in ("queued", "working")
        away = False
        until(lambda: status(store, scan) == "no tumour" and not sender.problem)

    run(store, reply, then)


def test_one_scan_that_cannot_be_sent_does_not_hold_up_the_others(
    store: ScanStore, capsys: pytest.CaptureFixture[str]
) -> None:
    def reply(item: Input) -> Answer:
        if "bad" in item.name:
            raise RuntimeError(f"a library quotes {item.name}")
        return no_tumour(item)

    def then(_: ScanSender) -> None:
        bad, good = send(store, "bad.nii"), send(store, "good.nii")
        until(lambda: status(store, good) == "no tumour")
        failed = store.get(bad)
        assert failed is not None
        assert failed.reason == "the scan cannot be sent: its file cannot be read (RuntimeError)"

    run(store, reply, then)
    assert "bad.nii" not in "".join(capsys.readouterr())


def test_an_error_fails_the_scan_that_it_concerns_and_no_other(
    store: ScanStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    item, answered = store.item, store.answered

    def unreadable(scan: str) -> Input | None:
        stored = store.get(scan)
        if stored is not None and stored.name == "unreadable":
            raise MemoryError
        return item(scan)

    def not_stored(scan: str, answer: Answer) -> None:
        if answer.scan == "lost" and answer.status != "failed":
            raise ValueError("the mask has a problem")
        answered(scan, answer)

    def then(_: ScanSender) -> None:
        scans = [send(store, f"{name}.nii") for name in ("first", "lost", "unreadable", "last")]
        until(lambda: all(status(store, scan) in ("no tumour", "failed") for scan in scans))
        stored = [store.get(scan) for scan in scans]
        assert [(scan.status, scan.reason) for scan in stored if scan] == [
            ("no tumour", ""),
            ("failed", "the answer cannot be stored (ValueError): send the scan again"),
            ("failed", "the scan cannot be sent: its file cannot be read (MemoryError)"),
            ("no tumour", ""),
        ]

    monkeypatch.setattr(store, "item", unreadable)
    monkeypatch.setattr(store, "answered", not_stored)
    run(store, no_tumour, then)


def test_a_fault_that_concerns_no_scan_is_a_problem_and_scans_are_sent_again(store: ScanStore) -> None:
    broken = True

    class Flow(FakeFlow):
        def answer_stream(self, scans: Iterator[Input | None]) -> Iterator[Answer]:
            sent = [next(scans), next(scans)]  # the second is None: the first is sent
            if broken:
                raise RuntimeError("a fault of the stream")
            yield from map(no_tumour, filter(None, sent))
            yield from super().answer_stream(scans)

    scan = send(store, "P1.nii")
    sender = ScanSender(Flow(no_tumour), store, threading.Event())  # type: ignore[arg-type]
    thread = threading.Thread(target=sender.run, daemon=True)
    thread.start()
    until(lambda: sender.problem)
    assert "the console has a fault (RuntimeError): see its log" in sender.problem
    assert status(store, scan) in ("queued", "working")
    broken = False
    until(lambda: status(store, scan) == "no tumour" and not sender.problem)
    sender.stop()
    thread.join(10)


def test_a_scan_whose_file_is_gone_fails(store: ScanStore) -> None:
    scan = send(store, "P1.nii")
    store._items.clear()
    item = store.item(scan)
    assert item is not None
    item.path.unlink()
    store._items.clear()
    run(store, no_tumour, lambda _: until(lambda: status(store, scan) == "failed"))
    failed = store.get(scan)
    assert failed is not None
    assert "its file is no longer there: upload it again" in failed.reason

"""What only ``memory://`` has: its own limits, and dead letters that a later process can read."""

from __future__ import annotations

import stat
from pathlib import Path

import msgpack
import pytest
from gliaflow_proto import Queue
from gliaflow_runtime.broker import letter_folder
from gliaflow_runtime.broker.interface import REASON, Delivery, Refused
from gliaflow_runtime.broker.memory import Limit, MemoryBroker, matches

SCANS = Queue("scans", ("scan",))
SAMPLE = Queue("sample", ("scan",))


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("scan", "scan", True),
        ("scan", "scans", False),
        ("features.*", "features.labelled", True),
        ("features.*", "features", False),
        ("features.*", "features.a.b", False),
        ("*.b", "a.b", True),
        ("#", "a.b.c", True),
        ("a.#", "a", True),
        ("a.#.c", "a.b.b.c", True),
        ("a.#.c", "a.b", False),
    ],
)
def test_topic_patterns_match_as_in_amqp(pattern: str, key: str, expected: bool) -> None:
    assert matches(pattern, key) is expected


def test_if_one_queue_is_full_no_queue_gets_the_message() -> None:
    broker = MemoryBroker(limits={SCANS.name: Limit(2)})
    broker.declare(SCANS)
    broker.declare(SAMPLE)
    broker.publish("scan", b"")
    broker.publish("scan", b"")
    with pytest.raises(Refused, match="scans"):
        broker.publish("scan", b"")
    assert (broker.depth(SCANS.name), broker.depth(SAMPLE.name)) == (2, 2)


def test_a_full_queue_may_drop_its_oldest_message() -> None:
    broker = MemoryBroker(limits={SAMPLE.name: Limit(2, "drop-oldest")})
    broker.declare(SAMPLE)
    for body in (b"1", b"2", b"3"):
        broker.publish("scan", body)
    with broker.consume(SAMPLE, 2) as consumer:
        kept = [consumer.next(0), consumer.next(0)]
    assert [delivery.body for delivery in kept if delivery] == [b"2", b"3"]


def test_a_message_that_is_returned_too_often_becomes_a_dead_letter() -> None:
    broker = MemoryBroker(delivery_limit=2)
    broker.declare(SCANS)
    broker.publish("scan", b"poison")
    with broker.consume(SCANS, 1) as consumer:
        while delivery := consumer.next(0):
            consumer.requeue(delivery)
    with broker.consume(Queue(SCANS.dead), 1) as dead:
        letter = dead.next(0)
    assert letter is not None
    assert "delivery_limit" in letter.headers[REASON]


def test_an_unused_queue_expires() -> None:
    broker = MemoryBroker()
    broker.declare(Queue("answers", ("answer",), expires_s=0))
    broker.publish("answer", b"")
    broker.declare(SCANS)
    assert broker.depth("answers") == 0


def test_a_later_process_reads_the_dead_letters(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "dead"
    first = MemoryBroker(folder)
    first.declare(SCANS)
    for number in range(3):
        first.dead_letter(Delivery(SCANS.name, "scan", b"%d" % number, f"id-{number}"), f"reason {number}")

    later = MemoryBroker(folder)
    assert later.depth(SCANS.dead) == 3
    with later.consume(Queue(SCANS.dead), 10) as dead:
        letters = [letter for _ in range(3) if (letter := dead.next(0))]
        assert [(letter.body, letter.message_id) for letter in letters] == [
            (b"0", "id-0"),
            (b"1", "id-1"),
            (b"2", "id-2"),
        ]
        assert letters[1].headers[REASON] == "reason 1"
        dead.ack(letters[1])

    assert MemoryBroker(folder).depth(SCANS.dead) == 2
    assert {file.suffix for file in folder.iterdir()} == {".msgpack"}


def test_a_start_reads_no_dead_letter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = MemoryBroker(tmp_path)
    writer.declare(SCANS)
    writer.dead_letter(Delivery(SCANS.name, "scan", b"1"), "reason")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
        assert MemoryBroker(tmp_path).depth(SCANS.dead) == 1


def test_a_dead_letter_of_version_0_1_which_names_its_queue_inside_is_read(tmp_path: Path) -> None:
    def old(queue: str) -> bytes:
        return bytes(msgpack.packb({"queue": queue, "key": "scan", "id": "7", "headers": {}, "body": b"scan"}))

    (tmp_path / f"{1:020d}-{2:08x}.msgpack").write_bytes(old(SCANS.dead))
    (tmp_path / f"{1:020d}-{3:08x}.msgpack").write_bytes(old("../x.dead"))
    (tmp_path / "of-another-program.msgpack").write_bytes(b"")
    with MemoryBroker(tmp_path).consume(Queue(SCANS.dead), 10) as dead:
        letter = dead.next(0)
        assert letter is not None
        assert (letter.message_id, letter.body) == ("7", b"scan")
        assert dead.next(0) is None
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(("limit", "value"), [("KEPT_LETTERS", 10), ("KEPT_BYTES", 1000)])
def test_the_oldest_dead_letters_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(letter_folder, limit, value)
    for _ in range(4):
        broker = MemoryBroker(tmp_path)  # as each command does
        broker.declare(SCANS)
        for number in range(10):
            broker.dead_letter(Delivery(SCANS.name, "scan", b"", f"id-{number}"), "reason")
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert {"KEPT_LETTERS": len(sizes), "KEPT_BYTES": sum(sizes)}[limit] <= value
    assert broker.depth(SCANS.dead) == len(sizes)
    with MemoryBroker(tmp_path).consume(Queue(SCANS.dead), 100) as dead:
        kept = [letter.message_id for letter in iter(lambda: dead.next(0), None) if letter]
    assert kept == [f"id-{number}" for number in range(10 - len(kept), 10)], "the latest are kept"


def test_missing_and_invalid_dead_letters_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "0.msgpack").write_bytes(b"nonsense")
    (tmp_path / f"{0:020d}-{0:08x}-{SCANS.dead}.msgpack").write_bytes(b"nonsense")
    writer = MemoryBroker(tmp_path)
    writer.declare(SCANS)
    for body in (b"1", b"2"):
        writer.dead_letter(Delivery(SCANS.name, "scan", body), "reason")
    reader = MemoryBroker(tmp_path)
    assert reader.depth(SCANS.dead) == 3
    sorted(tmp_path.iterdir())[2].unlink()  # as another process does when it replays it
    with reader.consume(Queue(SCANS.dead), 10) as dead:
        letter = dead.next(0)
        assert letter is not None
        assert letter.body == b"2"
        assert dead.next(0) is None


def test_dead_letters_which_hold_whole_scans_are_for_their_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "dead-letters"
    folder.mkdir(parents=True)
    folder.chmod(0o755)  # as an older version left it
    folder.parent.chmod(0o775)  # the user may share it
    broker = MemoryBroker(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700, "closed by the start alone"
    broker.declare(SCANS)
    broker.dead_letter(Delivery(SCANS.name, "scan", b"scan"), "reason")
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o775

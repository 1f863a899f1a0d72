"""``gliaflow dead`` on ``memory://``: dead letters of earlier commands are listed, shown and deleted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from gliaflow_cli.main import app, main
from gliaflow_client import dead_letters
from gliaflow_proto.routing import EXTRACTOR, PREPROCESSOR
from gliaflow_runtime.broker.connect import forget
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.broker.memory import MemoryBroker
from sample_messages import SCAN_MESSAGE, changed
from typer.testing import CliRunner


@pytest.fixture(autouse=True)
def letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two dead letters of the preprocessor and one of the extractor."""
    monkeypatch.setenv("GLIAFLOW_BROKER", "memory://")
    monkeypatch.setenv("GLIAFLOW_STATE", str(tmp_path))
    with MemoryBroker(tmp_path / "dead-letters") as broker:
        for queue, number in ((PREPROCESSOR, 1), (PREPROCESSOR, 2), (EXTRACTOR, 3)):
            broker.declare(queue)
            broker.dead_letter(Delivery(queue.name, queue.keys[0], b"", f"id-{number}"), f"reason {number}")


def dead(*arguments: str) -> str:
    """The output of the command in a process of its own: it forgets the broker."""
    forget("memory://")
    done = CliRunner().invoke(app, ["dead", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def listed() -> list[str]:
    return [line.split()[0] for line in dead("list").splitlines()[:-1]]


def test_the_dead_letters_of_earlier_commands_are_listed() -> None:
    assert listed() == ["id-1", "id-2", "id-3"]
    assert "3 dead letters on memory://" in dead("list")
    assert "reason: reason 2" in dead("show", "id-2")


@pytest.mark.parametrize(
    ("which", "left"),
    [
        (["id-1"], ["id-2", "id-3"]),
        (["id-1", "id-3"], ["id-2"]),
        (["--stage", "preprocessor"], ["id-3"]),
        (["--all"], []),
    ],
)
def test_dead_letters_are_deleted_by_id_by_stage_or_all(which: Sequence[str], left: list[str]) -> None:
    assert dead("delete", *which, "--yes") == f"{3 - len(left)} dead letters deleted\n"
    assert listed() == left


def test_all_are_deleted_though_only_some_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "AT_ONCE", 2)
    assert "and 1 more" in dead("list")
    assert dead("delete", "--all", "--yes") == "3 dead letters deleted\n"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "name the dead letters to delete"),
        (["id-1", "--all", "--yes"], "name the dead letters to delete"),
        (["--stage", "x", "--yes"], "--stage: 'x' is not one of preprocessor, extractor"),
        (["id-9", "--yes"], "no dead letter's id starts with 'id-9'"),
        (["--all"], "this deletes 3 dead letters for good: add --yes"),
    ],
)
def test_a_doubtful_request_deletes_nothing(
    arguments: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gliaflow", "dead", "delete", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err
    assert listed() == ["id-1", "id-2", "id-3"]


def test_on_a_terminal_the_command_asks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gliaflow_cli.commands.dead.is_interactive", lambda: True)
    forget("memory://")
    done = CliRunner().invoke(app, ["dead", "delete", "--all"], input="n\n")
    assert done.exit_code == 1
    assert "Delete 3 dead letters for good?" in done.output
    assert len(listed()) == 3


def test_what_a_client_wrote_into_a_message_cannot_command_the_terminal(tmp_path: Path) -> None:
    hostile, shown = "x\x1b[2J\n0 dead letters\u202e", r"x\x1b[2J\n0 dead letters\u202e"
    forget("memory://")
    with MemoryBroker(tmp_path / "dead-letters") as broker:
        broker.declare(EXTRACTOR)
        delivery = Delivery(EXTRACTOR.name, EXTRACTOR.keys[0], b"", hostile, {"x-note": hostile})
        broker.dead_letter(delivery, hostile)
    assert shown[:11] in dead("list")
    assert f"?: {shown}\n" in dead("list")
    details = dead("show", hostile)
    for line in (f"{shown} in gliaflow.extractor", f"reason: {shown}", f"header x-note: {shown}"):
        assert line in details.splitlines()


def dead_letter(folder: Path, body: bytes, message_id: str = "", reason: str = "broken") -> None:
    forget("memory://")
    with MemoryBroker(folder / "dead-letters") as broker:
        broker.declare(PREPROCESSOR)
        broker.dead_letter(Delivery(PREPROCESSOR.name, PREPROCESSOR.keys[0], body, message_id), reason)


def test_a_message_that_breaks_the_schema_is_listed_with_its_scan_and_submission_and_shown_as_far_as_it_can_be_read(
    tmp_path: Path,
) -> None:
    data, row = bytes(5000), "id-4          .*  preprocessor  7 of sub: broken"
    dead_letter(tmp_path, changed(SCAN_MESSAGE, scan__id=7, source={"data": data}, part=[0, None]), "id-4")
    assert re.search(row, dead("list"))
    shown = dead("show", "id-4").splitlines()
    start = shown.index("not a valid message; what can be read:")
    for line in ("kind: 'scan'", "scan:", "  id: 7", "  submission: 'sub'", "source:", "  data: 5003 bytes"):
        assert line in shown[start:]
    assert "part: [0, None]" in shown[start:]


def test_the_fields_before_the_end_of_a_message_that_was_cut_short_are_shown(tmp_path: Path) -> None:
    dead_letter(tmp_path, changed(SCAN_MESSAGE)[:-3])
    assert re.search("m1            .*  s1 of sub: broken", dead("list"))
    assert "  submission: 'sub'" in dead("show", "m1")


def test_a_message_without_any_id_is_named_by_a_digest_so_that_it_can_be_shown_and_deleted(tmp_path: Path) -> None:
    dead_letter(tmp_path, b"garbage")
    (name,) = {*listed()} - {"id-1", "id-2", "id-3"}
    assert re.fullmatch("[0-9a-f]{12}", name)
    assert "not a valid message" in dead("show", name)
    dead("delete", name, "--yes")
    assert listed() == ["id-1", "id-2", "id-3"]


def test_copies_of_one_message_are_one_row_and_two_messages_of_one_id_are_two(tmp_path: Path) -> None:
    """Clients without an AMQP message id may use the same id in each submission."""
    for submission in ("one", "one", "two"):
        dead_letter(tmp_path, changed(SCAN_MESSAGE, scan__submission=submission, trace=""))
    assert listed() == ["id-1", "id-2", "m1", "m1", "id-3"]
    assert "brain of one: broken (2 copies)" in dead("list")

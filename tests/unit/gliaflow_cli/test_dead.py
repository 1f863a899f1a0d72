"""``gliaflow dead`` on ``memory://``: dead letters of earlier commands are listed, shown and deleted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from gliaflow_cli.client import dead_letters
from gliaflow_cli.main import app, main
from gliaflow_proto.routing import EXTRACTOR, PREPROCESSOR
from gliaflow_runtime.broker.connect import forget
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.broker.memory import MemoryBroker
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

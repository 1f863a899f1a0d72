"""Messages and a progress bar: a message has a line of its own, and goes where its stream goes.

Names and texts of files and messages are printed as they are, but for what would command the terminal.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import gliaflow_cli
import pytest
from gliaflow_cli.main import app
from gliaflow_cli.terminal import Terminal, print_error, progress_bar
from rich.table import Table
from typer.testing import CliRunner

pty = pytest.importorskip("pty", reason="a terminal on Unix")
CODE = """
import sys
from gliaflow_cli.terminal import console, progress_bar
with progress_bar() as bar:
    task = bar.add_task("scans", total=3)
    for number in range(3):
        bar.advance(task)
        bar.refresh()
        console.print(f"result {number}")
        print(f"warning {number}", file=sys.stderr)
"""


def run(folder: Path, *files: str) -> dict[str, list[str]]:
    """Run the code on a terminal, with ``stdout`` or ``stderr`` in a file. Returns the lines on each of them."""
    ours, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with ExitStack() as opened:
        streams = {
            name: opened.enter_context((folder / name).open("w")) if name in files else terminal
            for name in ("stdout", "stderr")
        }
        process = subprocess.Popen([sys.executable, "-c", CODE], **streams, env=environment)
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    lines = {"terminal": re.split(r"[\r\n]+", text)}
    return lines | {name: (folder / name).read_text().splitlines() for name in files}


RESULTS, WARNINGS = ([f"{kind} {number}" for number in range(3)] for kind in ("result", "warning"))


def messages(lines: list[str]) -> list[str]:
    """The lines that have a message; the bar is in none of them."""
    return [line.rstrip() for line in lines if re.search("result|warning", line)]


def test_on_a_terminal_each_message_has_its_own_line(tmp_path: Path) -> None:
    shown = messages(run(tmp_path)["terminal"])
    assert [line for line in shown if line in RESULTS] == RESULTS
    assert [line for line in shown if line in WARNINGS] == WARNINGS
    assert len(shown) == 6


def test_results_go_to_a_file_and_the_bar_stays_on_the_terminal(tmp_path: Path) -> None:
    lines = run(tmp_path, "stdout")
    assert lines["stdout"] == RESULTS
    assert messages(lines["terminal"]) == WARNINGS
    assert any("3/3" in line for line in lines["terminal"])


def test_warnings_go_to_a_file_and_the_bar_stays_on_the_terminal(tmp_path: Path) -> None:
    lines = run(tmp_path, "stderr")
    assert lines["stderr"] == WARNINGS
    assert messages(lines["terminal"]) == RESULTS
    assert any("3/3" in line for line in lines["terminal"])


HOSTILE = "P1\x1b[2J\n12 of 12 scans answered\u202e\x9b\udcff"
SHOWN = r"P1\x1b[2J\n12 of 12 scans answered\u202e\x9b\udcff"


def printed(*things: object, **options: object) -> str:
    terminal = Terminal()
    terminal.file = io.StringIO()
    terminal.print(*things, soft_wrap=True, **options)  # type: ignore[arg-type]
    return terminal.file.getvalue()


def test_a_name_cannot_command_the_terminal_or_forge_a_line() -> None:
    assert printed(f"failed {HOSTILE}") == f"failed {SHOWN}\n"
    assert printed(HOSTILE, "next", sep="\n") == f"{SHOWN}\nnext\n"
    table = Table("patient", box=None)
    table.add_row(HOSTILE)
    assert printed(table).splitlines()[1].strip() == SHOWN


@pytest.mark.parametrize("name", ["Müller", "患者", "e\u0301", "😀", "[bold]a[/bold]", "a:smile:b", r"a\b"])
def test_a_usual_name_is_printed_as_it_is(name: str) -> None:
    assert printed(name) == f"{name}\n"


def test_a_hostile_name_in_the_progress_bar() -> None:
    bar = progress_bar()
    bar.add_task(HOSTILE + "[red]", total=1)
    assert SHOWN + "[red]" in printed(bar.get_renderable(), width=200)


def test_each_line_of_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    error = ValueError()
    error.add_note(f"  leak: {HOSTILE}")
    print_error(error, HOSTILE)
    assert capsys.readouterr().err == f"gliaflow: {SHOWN}\n  leak: {SHOWN}\n"


@pytest.mark.parametrize("arguments", [["submit", f"--{HOSTILE[:-1]}"], [HOSTILE[:-1]], ["dead", HOSTILE[:-1]]])
def test_a_hostile_name_on_the_command_line(arguments: list[str]) -> None:
    """The shell puts names of files there: ``gliaflow submit *``."""
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    assert done.exit_code == 2
    assert SHOWN[:-6] in done.output.replace(r"\x0a", r"\n")  # typer's own escape of a line end


def test_commands_print_through_this_console_alone() -> None:
    """So no command can forget to escape. Errors and warnings are printed by main.py and terminal.py, escaped."""
    prints = re.compile(r"(?<![\w.])(?:print|Console|typer\.secho)\((?!visible\()")
    services = Path(gliaflow_cli.__path__[0]).parent
    files = [*Path(gliaflow_cli.__path__[0]).rglob("*.py"), *(services / "gliaflow_trainer").rglob("*.py")]
    lines = [f"{file.name}: {line}" for file in files for line in file.read_text().splitlines() if prints.search(line)]
    assert lines == []

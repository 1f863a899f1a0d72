"""Messages and a progress bar: a message has a line of its own, and goes where its stream goes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

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

"""A stage that is killed is started again, and the next one knows how its predecessors ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gliaflow_runner import keeper

STAGE = """
import os, signal, sys, time
from gliaflow_runner import keeper
from gliaflow_runtime.settings import Settings
keeper.PAUSE_S = (0.01, 0.01)
killed = keeper.outlive_kills("extractor", Settings(broker="memory://"))
{do}
"""


def run(do: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", STAGE.format(do=do)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload,no-any-return]


def test_a_killed_stage_is_started_again_and_knows_it() -> None:
    kill = "if 'killed 2' not in killed: os.kill(os.getpid(), signal.SIGKILL)"
    done = run(f"print('starts:', killed, flush=True)\n{kill}")
    first, second, third = (line for line in done.stdout.splitlines() if line.startswith("starts:"))
    assert (done.returncode, first) == (0, "starts: ")
    assert second.startswith("starts: killed 1 times, last at ")
    assert third.startswith("starts: killed 2 times, last at ")
    assert "by SIGKILL" in third


@pytest.mark.parametrize("code", [0, 1, 70])
def test_any_other_end_of_the_stage_ends_the_container_with_its_exit_code(code: int) -> None:
    assert run(f"sys.exit({code})").returncode == code


def test_sigterm_passes_to_the_stage() -> None:
    do = (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\nos.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(30)\nsys.exit(1)"
    )
    assert run(do).returncode == 7


def test_a_stage_that_is_killed_while_it_stops_is_not_started_again() -> None:
    """``docker stop`` kills the container after its time for stopping."""
    do = (
        "signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(30)"
    )
    assert run(do).returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        ({"memory.events": "low 0\noom 4\noom_kill 3\n"}, 3),  # control groups, version 2
        ({"memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"}, 2),
        ({}, 0),
    ],
)
def test_kills_for_memory_are_read_from_the_control_group(
    files: dict[str, str], kills: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(keeper, "CGROUP", tmp_path)
    assert keeper._memory_kills() == kills


def test_the_reason_names_the_limit_and_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{300 * 2**20}\n")
    assert "more memory than its limit of 300 MiB" in keeper._why(True)
    assert "GLIAFLOW_MEMORY" in keeper._why(True)
    (tmp_path / "memory.max").write_text("max\n")
    assert "its limit" not in keeper._why(True)

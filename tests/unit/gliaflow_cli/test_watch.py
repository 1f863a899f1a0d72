"""``gliaflow watch`` waits while its folders cannot be used, says why once, and continues without a restart."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import GLIAFLOW, environment
from sample_scans import good_scan


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.timeout(200)
def test_watch_waits_for_its_inbox_and_answers_when_it_is_there(tmp_path: Path) -> None:
    inbox, out, log = tmp_path / "inbox", tmp_path / "out", tmp_path / "log"
    command = [*GLIAFLOW, "watch", str(inbox), "--out", str(out)]
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment(tmp_path, "memory://"), stdout=file, stderr=file)
    try:
        wait_for(lambda: "the folders can be used" in log.read_text())
        assert f"{inbox}: No such file or directory: create it, mount it" in log.read_text()
        time.sleep(3)
        assert process.poll() is None
        assert log.read_text().count("waits until the folders can be used") == 1
        inbox.mkdir()
        good_scan(inbox / "p0.nii.gz")
        wait_for((out / "p0.json").exists)
        wait_for(lambda: "the folders can be used again" in log.read_text())
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0

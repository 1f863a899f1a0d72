"""A process ends after a signal although something in it hangs, but not while it computes."""

import subprocess
import sys

import pytest

HANGS = """
import signal, threading, time
from gliaflow_runtime import ending
ending.END_S = 0.5
work = {work}
if {service}:
    until = time.monotonic() + work
    ending.end_soon(0, lambda: time.monotonic() < until)
    print("computes", flush=True)
    time.sleep(work)
    print("done", flush=True)
    threading.Event().wait()  # a store that never answers
else:
    ending.interrupt_on_signals()
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    signal.raise_signal(signal.SIGINT)  # ignored
    threading.Event().wait()
"""


def ended(**values: object) -> tuple[int, str]:
    code = HANGS.format(**values)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout


def test_a_service_finishes_its_work_and_then_does_not_wait_for_what_hangs() -> None:
    assert ended(service=True, work=1.5) == (0, "computes\ndone\n")


def test_an_interrupted_command_does_not_wait_for_what_hangs() -> None:
    assert ended(service=False, work=0) == (130, "interrupted\n")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("reader", ["gone", "hangs"])
def test_a_process_ends_although_nobody_reads_its_output(reader: str) -> None:
    code = """
import contextlib, signal, sys, threading
import structlog
from gliaflow_runtime import ending
ending.END_S = 0.1
ending.interrupt_on_signals()
print("started", flush=True)
sys.stdin.read()
try:
    signal.raise_signal(signal.SIGTERM)
except KeyboardInterrupt:
    with contextlib.suppress(BrokenPipeError):
        print("more than a pipe holds" * 10_000)
    threading.Event().wait()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"started\n"
        if reader == "gone":
            process.stdout.close()
        process.stdin.close()
        assert process.wait() == 130

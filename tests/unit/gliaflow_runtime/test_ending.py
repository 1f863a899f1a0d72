"""A process ends after a signal although something in it hangs, but not while it computes."""

import subprocess
import sys

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

"""How a process ends after a signal: in order if that is quick, else at once.

Nothing is lost either way: the broker delivers an unacknowledged message again, and files are written whole or not at
all (``files.whole_file``).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

END_S = 10.0  # the longest orderly end; less than any supervisor grants
WRITE_S = 1.0  # the longest wait for the last output
SIGNALS = (signal.SIGTERM, signal.SIGINT)
INTERRUPTED = 130  # the exit code after Ctrl-C, as of a shell


def interrupt_on_signals(code: int = INTERRUPTED) -> None:
    """Let the first SIGINT or SIGTERM raise KeyboardInterrupt, and ignore the later ones: the process is ending then.

    If a connection or a store hangs, the process ends after END_S all the same, with the exit code ``code``.
    """

    def interrupt(*_: object) -> None:
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)  # Python reports a signal that waits if SIG_IGN replaces its handler
        end_soon(code)
        raise KeyboardInterrupt

    for number in SIGNALS:
        signal.signal(number, interrupt)


def end_soon(code: int, busy: Callable[[], bool] = lambda: False, within_s: float = 0) -> None:
    """End the process ``within_s`` (0: END_S) after it was last ``busy``, whatever hangs in it. Returns at once."""
    within_s = within_s or END_S

    def end() -> None:
        left = within_s
        while left > 0:
            time.sleep(0.1)
            left = within_s if busy() else left - 0.1
        end_now(code, f"the broker or a store did not answer for {within_s:g} s")

    threading.Thread(target=end, name="gliaflow end", daemon=True).start()


def end_now(code: int, reason: str = "") -> None:
    """End the process without waiting for its threads. A reader of its output that is gone, or hangs, does not matter.

    reason: for the log.
    """

    def write() -> None:
        structlog = sys.modules.get("structlog")  # an import could wait for a thread that hangs
        with contextlib.suppress(OSError, ValueError):  # of a closed pipe or a closed stream
            if structlog and reason:
                structlog.get_logger().warning("ended at once", reason=reason)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # None without a stream
                stream.flush()

    try:
        writer = threading.Thread(target=write, name="gliaflow last words", daemon=True)
        writer.start()
        writer.join(WRITE_S)
    finally:
        os._exit(code)

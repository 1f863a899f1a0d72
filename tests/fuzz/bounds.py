"""What no input may take: a second of CPU, or more memory than its target grants."""

from __future__ import annotations

import time
import tracemalloc
import zlib
from collections.abc import Callable

SECONDS = 1.0
TRACED = 64  # tracing is slow, so one input in so many


def bounded(run: Callable[[bytes], None], data: bytes, peak_bytes: int) -> None:
    """``run(data)``, with an AssertionError where it takes more."""
    trace = zlib.crc32(data) % TRACED == 0
    if trace:
        tracemalloc.start()
    started = time.process_time()
    try:
        run(data)
    finally:
        seconds = time.process_time() - started
        if trace:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak <= peak_bytes, f"{len(data)} bytes took {peak} bytes of memory"
    assert seconds <= SECONDS * (1 + trace), f"{len(data)} bytes took {seconds:.1f} s"


def readable(error: Exception) -> None:
    """A reason is read by people: it is there, and no page long."""
    assert 0 < len(str(error)) < 1000, str(error)[:2000]

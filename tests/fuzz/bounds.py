"""The limits for every input: a second of CPU, and the memory limit of its target."""

from __future__ import annotations

import time
import tracemalloc
import zlib
from collections.abc import Callable

SECONDS = 1.0
TRACED = 64  # tracing memory is slow: one input of this many


def bounded(run: Callable[[bytes], None], data: bytes, peak_bytes: int) -> None:
    """Call ``run(data)``. Raises AssertionError if it takes more than the limits."""
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
    """Assert that an error's text exists and is short enough to read."""
    assert 0 < len(str(error)) < 1000, str(error)[:2000]

"""Work that several threads share."""

from __future__ import annotations

import threading

import pytest
from gliaflow_runtime.in_threads import in_threads


@pytest.mark.parametrize("threads", [1, 3, 20])
def test_each_item_is_worked_on_once(threads: int) -> None:
    seen: list[int] = []
    in_threads(seen.append, range(10), threads)
    assert sorted(seen) == list(range(10))


def test_the_threads_work_at_the_same_time() -> None:
    """Each call waits for the others, so in turn they would wait for ever."""
    together = threading.Barrier(3, timeout=10)
    in_threads(lambda _: together.wait(), range(3), 3)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_any_thread_is_raised_and_what_is_not_begun_is_left_out(threads: int) -> None:
    begun: list[int] = []

    def call(item: int) -> None:
        begun.append(item)
        raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        in_threads(call, range(1000), threads)
    assert len(begun) <= threads

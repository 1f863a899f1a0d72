"""Heavy requests are computed one after another, and not too many wait."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from gliaflow_console import turn
from gliaflow_console.turn import Turn
from starlette.exceptions import HTTPException


def test_one_computation_at_a_time() -> None:
    running, most = 0, 0

    def compute(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.01)
        running -= 1
        return number

    async def run() -> list[int]:
        own = Turn()
        return await asyncio.gather(*(own.run(compute, number) for number in range(5)))

    assert asyncio.run(run()) == [0, 1, 2, 3, 4]
    assert most == 1


def test_one_more_than_may_wait_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "MAX_WAITING", 1)
    end = threading.Event()

    async def run() -> None:
        own = Turn()
        tasks = [asyncio.create_task(own.run(end.wait, 20)) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(HTTPException, match="503: the console computes for other requests"):
            await own.run(end.wait, 20)
        end.set()
        assert await asyncio.gather(*tasks) == [True, True]

    asyncio.run(run())

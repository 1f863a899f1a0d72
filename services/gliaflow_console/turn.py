"""One computation of a kind at a time, so that memory is bounded whatever browsers request."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import anyio
import anyio.to_thread
from starlette.exceptions import HTTPException

MAX_WAITING = 16  # requests

P = ParamSpec("P")
T = TypeVar("T")


class Turn:
    """Runs functions in a thread, one after another, in the order in which they are requested."""

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(1)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function when its turn has come. Raises HTTPException 503: too many others wait."""
        if self._limiter.statistics().tasks_waiting >= MAX_WAITING:
            raise HTTPException(503, "the console computes for other requests: try again in a minute")
        return await anyio.to_thread.run_sync(
            lambda: function(*args, **kwargs),
            limiter=self._limiter,
            abandon_on_cancel=True,  # so that the console ends without delay
        )

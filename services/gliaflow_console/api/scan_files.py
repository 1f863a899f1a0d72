"""What the handlers of one scan share: the scan of the address, and reading its files."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

from gliaflow_console.context import Console
from gliaflow_console.stored_scan import StoredScan

P = ParamSpec("P")
T = TypeVar("T")


def scan_of(console: Console, request: Request) -> StoredScan:
    """The scan in the address. Raises HTTPException 404: there is none."""
    scan = console.store.get(request.path_params["id"])
    if scan is None:
        raise HTTPException(404)
    return scan


async def read(console: Console, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that unpacks a scan or a mask, when its turn has come.

    Raises
    ------
    HTTPException: 404: the scan was deleted meanwhile; 503: too many others wait.
    """
    try:
        return await console.reading.run(function, *args, **kwargs)
    except FileNotFoundError:
        raise HTTPException(404) from None

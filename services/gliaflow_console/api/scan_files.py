"""What the handlers of one scan share: the scan of the address, and reading its files."""

from __future__ import annotations

import math
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


def too_large(console: Console, scan: StoredScan) -> str:
    """Why the mask of another client's scan is not unpacked here, and the remedy; empty: it is.

    Its few bytes may stand for 2²⁸ voxels. A console beside a broker is to stay small.
    """
    voxels, most = math.prod(scan.grid.shape) if scan.grid else 0, console.networks.bounds.voxels
    if scan.own or voxels <= most:
        return ""
    return (
        f"the mask has {voxels} voxels, and this console unpacks at most {most} of another client's scan: that client "
        "has the whole answer; or send the scan with gliaflow submit"
    )


def check_size(console: Console, scan: StoredScan) -> None:
    """Raises HTTPException 413: ``too_large``."""
    if why := too_large(console, scan):
        raise HTTPException(413, why)


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

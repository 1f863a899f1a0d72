"""``GET /api/status``: the console, its limits, and the stages."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from gliaflow_runtime.broker.url import parse_server_url
from gliaflow_runtime.version import VERSION
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gliaflow_console.context import Console


def routes(console: Console) -> list[Route]:
    """The route of the status."""

    async def status(_: Request) -> JSONResponse:
        return JSONResponse(await run_in_threadpool(read_status, console))

    return [Route("/api/status", status)]


def read_status(console: Console) -> dict[str, Any]:
    """The body of ``GET /api/status``. It never waits for the broker."""
    settings = console.settings
    stages = console.stages.snapshot()
    served = console.served.read()
    problems = [stages["problem"]]
    if not console.flow.broker.trouble:  # or else the threads report the same
        problems += [console.sender.problem, console.observer.problem]
    return {
        "version": VERSION,
        "broker": _address(settings.broker),
        "bundle": served.bundle,
        "trained_on": served.trained_on,
        "notice": served.notice,
        "dicom": find_spec("pydicom") is not None,
        "phantoms": True,
        "sequences": list(console.store.sequences),
        "kept": settings.console_folder is not None,
        "limits": {
            "upload_bytes": int(settings.console_upload_mib * 2**20),
            "scans": settings.console_scans,
            "bytes": int(settings.console_gib * 2**30),
            "hours": settings.console_hours,
        },
        **stages,
        "problem": "; ".join(dict.fromkeys(text for text in problems if text)),
    }


def _address(broker: str) -> str:
    """The broker's URL without scheme, user and password."""
    return broker if broker.startswith("memory:") else ",".join(parse_server_url(broker).nodes)

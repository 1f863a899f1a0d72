"""``GET /api/status``: the console, its limits, and the stages."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from gliaflow_client.summary import ON_PHANTOMS, PHANTOMS
from gliaflow_runtime.broker.url import parse_server_url
from gliaflow_runtime.version import VERSION
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gliaflow_console.context import Console

LATEST = 20  # answers among which the present bundle is searched


def routes(console: Console) -> list[Route]:
    """The route of the status."""

    async def status(_: Request) -> JSONResponse:
        return JSONResponse(await run_in_threadpool(read_status, console))

    return [Route("/api/status", status)]


def read_status(console: Console) -> dict[str, Any]:
    """The body of ``GET /api/status``. It never waits for the broker."""
    settings = console.settings
    stages = console.stages.snapshot()
    bundle, trained_on = _served(console)
    problems = dict.fromkeys(
        text for text in (stages["problem"], console.sender.problem, console.observer.problem) if text
    )
    return {
        "version": VERSION,
        "broker": _address(settings.broker),
        "bundle": bundle,
        "trained_on": trained_on,
        "notice": ON_PHANTOMS if trained_on == PHANTOMS else "",
        "dicom": find_spec("pydicom") is not None,
        "phantoms": True,
        "limits": {
            "upload_bytes": int(settings.console_upload_mib * 2**20),
            "scans": settings.console_scans,
            "bytes": int(settings.console_gib * 2**30),
            "hours": settings.console_hours,
        },
        **stages,
        "problem": "; ".join(problems),
    }


def _address(broker: str) -> str:
    """The broker's URL without scheme, user and password."""
    return broker if broker.startswith("memory:") else ",".join(parse_server_url(broker).nodes)


def _served(console: Console) -> tuple[str, str]:
    """The id of the bundle that the stages serve, and what it was trained on; empty: not known."""
    if (stages := console.flow.stages) is not None:
        return stages.bundle.id, stages.bundle.trained_on
    for scan in console.store.newest(LATEST):
        if scan.bundle:
            return scan.bundle, scan.trained_on
    return next(iter(console.stages.bundles), ""), ""

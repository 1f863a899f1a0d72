"""``/api/reports``: the pages that gliaflow wrote into the operator's folder."""

from __future__ import annotations

from typing import Any

from gliaflow_runtime.visible import visible
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from gliaflow_console.context import Console
from gliaflow_console.reports import find_reports, why_no_reports

SANDBOX = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'self'"


def routes(console: Console) -> list[Route]:
    """The list of the reports, and each page."""
    folder = console.settings.console_reports

    def read() -> dict[str, Any]:
        problem = why_no_reports(folder)
        reports = [] if folder is None or problem else find_reports(folder)
        return {
            "folder": None if folder is None else visible(str(folder)),
            "reports": [
                {
                    "id": report.id,
                    "kind": report.kind,
                    "name": visible(report.name),
                    "modified": report.modified,
                    "summary": visible(report.summary()),
                }
                for report in reports
            ],
            "problem": visible(problem),
        }

    def read_page(id: str) -> bytes:
        reports = [] if folder is None else find_reports(folder)
        report = next((report for report in reports if report.id == id), None)
        try:
            if report is not None:
                return report.page()
        except OSError:
            pass
        raise HTTPException(404, "this report is not in the folder any more: load the list again")

    async def listed(_: Request) -> Response:
        return JSONResponse(await run_in_threadpool(read))

    async def page(request: Request) -> Response:
        text = await run_in_threadpool(read_page, request.path_params["id"])
        return HTMLResponse(text, headers={"Content-Security-Policy": SANDBOX})

    return [Route("/api/reports", listed), Route("/api/reports/{id}", page)]

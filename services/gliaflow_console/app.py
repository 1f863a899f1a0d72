"""The application: all routes of the API, and the static pages."""

from __future__ import annotations

import mimetypes
from http import HTTPStatus
from pathlib import Path

from gliaflow_plugins.contracts import PluginError
from gliaflow_runtime.broker.interface import BrokerError
from gliaflow_runtime.errors import UsageError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from gliaflow_console.api import dead, events, generate, phantoms, reports, scans, status, view
from gliaflow_console.bounds import DISK_FULL, NO_SPACE, StoreFull
from gliaflow_console.context import Console
from gliaflow_console.guard import FAULT, Access, Guard, error_response
from gliaflow_console.uploads import BadName

PAGES = Path(__file__).with_name("pages")
NIIVUE = "niivue/niivue.umd.js"  # kept and sent compressed: 0.8 MB, not 2.3
UNKNOWN = "there is no such page, scan or method: docs/console-api.md lists the addresses; old scans are deleted"
STATUS: dict[type[Exception], int] = {  # of errors whose text is for the client
    UsageError: 422,
    PluginError: 422,
    BadName: 422,
    BrokerError: 503,
    StoreFull: 507,
}
mimetypes.add_type("text/javascript", ".js")  # a browser runs no module of another type, whatever the system's table


def api_routes(console: Console) -> list[Route]:
    """All routes of the API (docs/console-api.md)."""
    modules = (status, scans, view, phantoms, generate, dead, reports, events)
    return [route for module in modules for route in module.routes(console)]


def build_app(console: Console, access: Access) -> ASGIApp:
    """The whole application, behind its guard."""
    app = Starlette(
        routes=[
            *api_routes(console),
            Route("/", lambda _: FileResponse(PAGES / "index.html")),
            Route(f"/{NIIVUE}", niivue),
            Mount("/", StaticFiles(directory=PAGES)),
        ],
        exception_handlers={**dict.fromkeys((HTTPException, *STATUS, Exception), refused), OSError: disk_full},
    )
    return Guard(app, access)


async def niivue(_: Request) -> Response:
    """The viewer's script. All browsers unpack gzip."""
    return FileResponse(PAGES / f"{NIIVUE}.gz", media_type="text/javascript", headers={"Content-Encoding": "gzip"})


async def refused(_: Request, error: Exception) -> Response:
    """An error as the API gives it. The texts of faults, which may have paths, stay here."""
    if isinstance(error, HTTPException):
        text = UNKNOWN if error.detail == HTTPStatus(error.status_code).phrase else error.detail
        return error_response(error.status_code, text)
    code = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
    return error_response(code, FAULT if code == 500 else str(error))


async def disk_full(_: Request, error: Exception) -> Response:
    """A full disk is no fault of the console. Any other OSError is."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return error_response(507, DISK_FULL)
    raise error

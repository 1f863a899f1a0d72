"""``/api/dead``: dead letters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gliaflow_proto import message_id
from gliaflow_runner.broker import LETTERS
from gliaflow_runtime.broker.interface import AccessDenied
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gliaflow_console.context import Console
from gliaflow_console.letters import Letters

MOST_IDS = 1000

Result = TypeVar("Result")


def routes(console: Console) -> list[Route]:
    """The routes of dead letters."""
    settings = console.settings
    embedded = settings.broker.startswith("memory:")
    folder = str(settings.state / LETTERS) if embedded else ""
    roots = [*settings.roots, str(console.store.uploads)] if embedded else None
    letters = Letters(console.flow.broker, console.stages.letters_lock, roots)

    async def list_letters(_: Request) -> JSONResponse:
        try:
            listing = await run_in_threadpool(letters.listing)
        except AccessDenied as error:
            return JSONResponse({"letters": [], "more": 0, "folder": folder, "problem": str(error)})
        for letter in listing["letters"]:
            letter["scan_id"] = _row_id(console, letter["scan_id"], letter["submission"])
        return JSONResponse({**listing, "folder": folder})

    async def show_letter(request: Request) -> JSONResponse:
        lines = await _permitted(lambda: letters.show(request.path_params["id"]))
        if lines is None:
            raise HTTPException(404, "this dead letter is not there any more, or not among the first: load the list")
        return JSONResponse({"lines": lines})

    async def replay_letters(request: Request) -> JSONResponse:
        ids = await _ids(request)
        return JSONResponse(await _permitted(lambda: letters.replay(ids)))

    async def delete_letters(request: Request) -> JSONResponse:
        ids = await _ids(request)
        return JSONResponse({"deleted": await _permitted(lambda: letters.delete(ids))})

    return [
        Route("/api/dead", list_letters),
        Route("/api/dead/replay", replay_letters, methods=["POST"]),
        Route("/api/dead/delete", delete_letters, methods=["POST"]),
        Route("/api/dead/{id}", show_letter),
    ]


def _row_id(console: Console, scan: str, submission: str) -> str:
    """The id of a scan in the console's list, own or of another client; empty: it is not there."""
    ids = (scan, message_id("observed", submission, scan))
    return next((id for id in ids if console.store.get(id) is not None), "")


async def _permitted(call: Callable[[], Result]) -> Result:
    """The result of a blocking call. Raises HTTPException: the broker's user lacks a right."""
    try:
        return await run_in_threadpool(call)
    except AccessDenied as error:
        raise HTTPException(403, str(error)) from None


async def _ids(request: Request) -> set[str] | None:
    """The field ``ids`` of the body; None: ``all`` is true. Raises HTTPException: both are missing or invalid."""
    try:
        body = dict(await request.json())
    except (ValueError, TypeError, RecursionError):
        body = {}
    if body == {"all": True} and body["all"] is True:
        return None
    ids = body.get("ids")
    if not isinstance(ids, list) or not 0 < len(ids) <= MOST_IDS or not all(_is_id(id) for id in ids):
        raise HTTPException(
            422,
            f'ids: expected a JSON body {{"ids": ["…"]}} with 1 to {MOST_IDS} ids of GET /api/dead, or {{"all": true}}',
        )
    return set(ids)


def _is_id(value: object) -> bool:
    """Whether it may be an id: text that is not UTF-8 cannot be sent back."""
    return isinstance(value, str) and value.isascii()

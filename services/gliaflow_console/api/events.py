"""``GET /api/events``: what changes, as server-sent events."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from gliaflow_console.api.status import read_status
from gliaflow_console.context import Console
from gliaflow_console.events import Events


def routes(console: Console) -> list[Route]:
    """The route of the stream."""
    events = Events(console, lambda: read_status(console))

    async def stream(_: Request) -> Response:
        return StreamingResponse(events.stream(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    return [Route("/api/events", stream)]

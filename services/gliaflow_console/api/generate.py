"""``GET /api/generators`` and ``POST /api/generate``: synthetic features, beside real ones or as a file."""

from __future__ import annotations

import json

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gliaflow_console.context import Console
from gliaflow_console.real_features import RealFeatures
from gliaflow_console.synthetic import GenerateRequest, generate, generators, npz

FILE = "application/octet-stream"


def routes(console: Console) -> list[Route]:
    """The routes of the generators."""
    networks = console.networks
    real = RealFeatures(networks, console.store)

    async def listed(_: Request) -> Response:
        return JSONResponse(await run_in_threadpool(generators, networks))

    async def drawn(request: Request) -> Response:
        try:
            body = json.loads(await request.body())
        except (ValueError, RecursionError):
            raise HTTPException(400, 'the body is not JSON: send {"grade": "HGG", "count": 16}') from None
        wanted = await run_in_threadpool(GenerateRequest.of, body, networks)
        if FILE not in request.headers.get("accept", ""):
            return JSONResponse(await networks.turn.run(generate, networks, real, wanted))
        name = f"{wanted.grade}-{wanted.generator}-seed{wanted.seed}.npz"
        data = await networks.turn.run(npz, networks, wanted)
        return Response(data, media_type=FILE, headers={"Content-Disposition": f'attachment; filename="{name}"'})

    return [Route("/api/generators", listed), Route("/api/generate", drawn, methods=["POST"])]

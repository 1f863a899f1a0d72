"""``GET /api/scans/{id}/view/…`` and ``/maps``: a scan, its mask and its feature maps, for the browser."""

from __future__ import annotations

from typing import Any

from gliaflow_proto import SEQUENCES
from gliaflow_runtime.errors import UsageError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gliaflow_console.api.scan_files import check_size, read, scan_of
from gliaflow_console.context import Console
from gliaflow_console.maps import COUNT, MapsRequest, scan_maps
from gliaflow_console.stored_scan import StoredScan
from gliaflow_console.view import read_image, read_on_flair, shown_step, view_image, view_mask

FLAIR = SEQUENCES[0]


def routes(console: Console) -> list[Route]:
    """The routes of the viewer."""
    store, networks = console.store, console.networks

    async def image(request: Request) -> Response:
        sequence = request.query_params.get("sequence", FLAIR)
        return await read(console, _image, console, scan_of(console, request), sequence)

    async def mask(request: Request) -> Response:
        scan = scan_of(console, request)
        check_size(console, scan)
        return await read(console, _mask, console, scan)

    async def maps(request: Request) -> Response:
        scan, query = scan_of(console, request), request.query_params
        wanted = MapsRequest(query.get("tap", ""), _whole(query, "slice", None), _whole(query, "count", COUNT) or 0)
        return JSONResponse(await networks.turn.run(scan_maps, networks, store, scan, wanted))

    return [
        Route("/api/scans/{id}/view/image.nii.gz", image),
        Route("/api/scans/{id}/view/mask.nii.gz", mask),
        Route("/api/scans/{id}/maps", maps),
    ]


def _image(console: Console, scan: StoredScan, sequence: str) -> Response:
    item = console.store.item(scan.id)
    if item is None:
        raise HTTPException(404, "the console has no image of this scan: it was sent by another client")
    if sequence not in (FLAIR, *item.sequences):
        there = ", ".join((FLAIR, *item.sequences))
        raise HTTPException(404, f"sequence: {sequence[:40]!r} is not one of this scan's: {there}")
    bounds = console.networks.bounds
    scan_file = read_image(item, bounds) if sequence == FLAIR else read_on_flair(item, sequence, bounds)
    return _file(view_image(scan_file), scan_file.volume.shape)


def _mask(console: Console, scan: StoredScan) -> Response:
    """The mask, placed as the scan is. Where the scan cannot be read, as its own header says."""
    mask = console.store.mask(scan.id)
    if mask is None:
        raise HTTPException(404, "this scan has no mask: it has no answer yet, or it failed")
    item, affine = console.store.item(scan.id), None
    if item is not None:
        try:
            affine = read_image(item, console.networks.bounds).affine
        except UsageError:
            affine = None
    return _file(view_mask(mask, affine), mask.shape)


def _file(data: bytes, shape: tuple[int, ...]) -> Response:
    """``Gliaflow-Step``: every how many pixels along x and y one is shown."""
    return Response(data, media_type="application/gzip", headers={"Gliaflow-Step": str(shown_step(shape))})


def _whole(query: Any, name: str, default: int | None) -> int | None:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 7):
        raise HTTPException(400, f"{name}: expected a whole number")
    return int(text)

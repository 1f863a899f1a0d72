"""``/api/scans`` and ``/api/folders``: upload scans, list them, and get their answers."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from io import RawIOBase
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
from gliaflow_client.out_folder import MASK, SEGMENTATION
from gliaflow_plugins.cohorts.dicom_scans import as_series
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gliaflow_console.api.scan_files import check_size, read, scan_of, too_large
from gliaflow_console.bounds import DISK_FULL, NO_SPACE, StoreFull
from gliaflow_console.context import Console
from gliaflow_console.found_scans import NotTaken
from gliaflow_console.store import ScanStore
from gliaflow_console.stored_scan import ScanGrid, StoredScan
from gliaflow_console.uploads import BadName, Upload, clean_name

WRITE_BYTES = 2**16  # many slow uploads may hold so much each
LISTED, MOST_LISTED = 50, 1000
GONE = "there is no such upload: it was finished, or it was not finished within an hour; start a new one"


def routes(console: Console) -> list[Route]:
    """The routes of the scans."""
    store = console.store

    def upload_of(request: Request) -> Upload:
        upload = store.open_upload(request.path_params["folder"])
        if upload is None:
            raise HTTPException(404, GONE)
        return upload

    async def listed(request: Request) -> Response:
        limit, before = _limit(request), request.query_params.get("before", "")
        return JSONResponse(await run_in_threadpool(_listed, store, limit, before))

    async def sent(request: Request) -> Response:
        name = _name(request)
        upload = await run_in_threadpool(store.new_upload)
        try:
            await _receive(request, store, upload, name)
            taken = await run_in_threadpool(_take, store, upload, alone=True)
            if "ids" not in taken:
                await run_in_threadpool(store.discard, upload)
                return JSONResponse(taken, 422)
        except BaseException:
            await _clean_up(store.discard, upload)
            raise
        return JSONResponse({"id": taken["ids"][0]}, 202)

    async def folder(_: Request) -> Response:
        upload = await run_in_threadpool(store.new_upload)
        return JSONResponse({"folder": upload.id}, 201)

    async def file(request: Request) -> Response:
        await _receive(request, store, upload_of(request), _name(request))
        return Response(status_code=204)

    async def cancelled(request: Request) -> Response:
        if not await run_in_threadpool(store.discard, upload_of(request)):
            raise HTTPException(404, GONE)  # it was taken, or its time was over, just before
        return Response(status_code=204)

    async def complete(request: Request) -> Response:
        upload, series = upload_of(request), _series(await request.body())
        taken = await run_in_threadpool(_take, store, upload, alone=False, series=series)
        return JSONResponse(taken, 202 if "ids" in taken else 422)

    async def details(request: Request) -> Response:
        scan = scan_of(console, request)
        grid = scan.grid
        # another client's mask is unpacked for it once
        if grid is not None and grid.slice_ml is None and not too_large(console, scan):
            grid = await read(console, store.grid, scan.id)
        return JSONResponse(await run_in_threadpool(_details, console, scan, grid))

    async def deleted(request: Request) -> Response:
        if not await run_in_threadpool(store.delete, request.path_params["id"]):
            raise HTTPException(404)
        return Response(status_code=204)

    async def mask(request: Request) -> Response:
        scan = scan_of(console, request)
        check_size(console, scan)
        return _file(await read(console, _mask, store, scan), "application/gzip", scan.name + MASK)

    async def segmentation(request: Request) -> Response:
        scan = scan_of(console, request)
        return _file(await read(console, _segmentation, store, scan), "application/dicom", scan.name + SEGMENTATION)

    async def row(request: Request) -> Response:
        scan = scan_of(console, request)
        values = await run_in_threadpool(store.table_row, scan.id)
        if values is None:
            raise HTTPException(404, "this scan has no answer yet")
        return _file(json.dumps(values, indent=2).encode() + b"\n", "application/json", f"{scan.name}.json")

    return [
        Route("/api/scans", listed),
        Route("/api/scans", sent, methods=["POST"]),
        Route("/api/folders", folder, methods=["POST"]),
        Route("/api/folders/{folder}", file, methods=["PUT"]),
        Route("/api/folders/{folder}", complete, methods=["POST"]),
        Route("/api/folders/{folder}", cancelled, methods=["DELETE"]),
        Route("/api/scans/{id}", details),
        Route("/api/scans/{id}", deleted, methods=["DELETE"]),
        Route("/api/scans/{id}/mask.nii.gz", mask),
        Route("/api/scans/{id}/mask.dcm", segmentation),
        Route("/api/scans/{id}/row.json", row),
    ]


def _listed(store: ScanStore, limit: int, before: str) -> dict[str, Any]:
    version = store.version  # first: what changes meanwhile comes again as an event
    rows = [scan.row() for scan in store.newest(limit, before)]
    return {"scans": rows, "total": len(store), "version": version}


async def _clean_up(function: Callable[..., object], *args: object) -> None:
    """Delete files in a thread, also if the request was cancelled."""
    with anyio.CancelScope(shield=True):
        await run_in_threadpool(function, *args)


def _write(file: RawIOBase, data: bytes) -> None:
    """Write all of it: one write may be short if the disk is nearly full. Raises StoreFull: the disk is full."""
    left = memoryview(data)
    try:
        while left:
            left = left[file.write(left) or 0 :]
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise StoreFull(DISK_FULL) from None


async def _receive(request: Request, store: ScanStore, upload: Upload, name: str) -> None:
    """Write the body into the file of this name, once it is complete."""
    size = 0
    try:
        part = await run_in_threadpool(upload.part)
    except FileNotFoundError:
        raise HTTPException(404, GONE) from None
    try:
        await _with_room(store.make_room, int(request.headers.get("content-length", "0")), upload)
        with part.open("xb", buffering=0) as file:
            waiting = bytearray()
            async for chunk in request.stream():
                waiting += chunk
                if len(waiting) >= WRITE_BYTES or not chunk:
                    upload.count(len(waiting))  # first: another upload must not take the same room
                    size += len(waiting)
                    await _with_room(store.make_room, 0, upload)
                    await _with_room(_write, file, bytes(waiting))
                    waiting.clear()
        upload.add(part, name)
    except BaseException as error:
        upload.count(-size)
        await _clean_up(part.unlink, True)
        if isinstance(error, BadName):
            raise HTTPException(400, str(error)) from None
        if isinstance(error, FileNotFoundError):  # complete or discarded while the file was received
            raise HTTPException(404, GONE) from None
        raise


async def _with_room(function: Any, *args: Any) -> None:
    try:
        await run_in_threadpool(function, *args)
    except StoreFull as error:
        raise HTTPException(507, str(error)) from None


def _take(store: ScanStore, upload: Upload, *, alone: bool, series: Sequence[str] = ()) -> dict[str, Any]:
    """The body of the answer: with ``ids``, or with ``error``."""
    try:
        taken = store.take(upload, alone=alone, series=series)
    except KeyError:
        raise HTTPException(404, GONE) from None
    except StoreFull as error:
        raise HTTPException(507, str(error)) from None
    except NotTaken as error:
        return {"error": str(error), "left_out": _left_out(error.left_out)}
    return {"ids": taken.ids, "left_out": _left_out(taken.left_out)}


def _left_out(files: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"name": name, "why": why} for name, why in files]


def _details(console: Console, scan: StoredScan, grid: ScanGrid | None) -> dict[str, Any]:
    store, networks = console.store, console.networks
    has_image, has_mask = store.has_image(scan.id), store.has_mask(scan.id)
    return {
        **scan.row(),
        "slice_p": [list(each) for each in scan.slice_p_hgg],
        "slice_ml": [list(each) for each in grid.slice_ml or ()] if grid else [],
        "depth": grid.shape[2] if grid else None,
        "shape": list(grid.shape) if grid else None,
        "spacing": list(grid.spacing) if grid else None,
        "has_image": has_image,
        "has_mask": has_mask,
        "has_dicom": scan.dicom and has_image and has_mask,
        "tap": networks.tap,
        "taps": networks.taps,
        "maps_problem": networks.maps_problem(scan, has_image),
    }


def _mask(store: ScanStore, scan: StoredScan) -> bytes:
    """The file that ``submit`` writes as ``<scan>_seg.nii.gz``."""
    if (file := store.mask_file(scan.id)) is not None:
        return file.read_bytes()
    image = store.mask(scan.id)
    if image is None:
        raise HTTPException(
            404, "this scan has no mask: it has no answer yet, it failed, or the console has dropped it"
        )
    return gzip.compress(image.to_bytes(), 1, mtime=0)


def _segmentation(store: ScanStore, scan: StoredScan) -> bytes:
    """The DICOM SEG that ``submit`` writes as ``<scan>_seg.dcm``."""
    item, image = store.item(scan.id), store.mask(scan.id)
    series = as_series(item.volume) if item else None
    file = store.mask_file(scan.id)
    if item is None or series is None or image is None or file is None:
        raise HTTPException(404, "a DICOM SEG exists only of an answered scan that was uploaded as a DICOM series")
    from gliaflow_dicom.objects.make import make_objects
    from gliaflow_plugins.dicom.headers import quiet

    answer = scan.answer(item, image)
    data = io.BytesIO()
    try:
        objects = make_objects(series, answer, made_at=datetime.fromtimestamp(file.stat().st_mtime))
        with quiet():
            objects[SEGMENTATION].save_as(data, enforce_file_format=True)
    except ValueError as error:
        raise HTTPException(422, f"no DICOM SEG: {error}") from None
    except Exception as error:  # the DICOM libraries raise many types; their texts quote headers
        raise HTTPException(422, f"no DICOM SEG: a header cannot be written ({type(error).__name__})") from None
    return data.getvalue()


def _file(data: bytes, kind: str, name: str) -> Response:
    """A file to save under this name, which is the sender's."""
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(Path(name).name, safe='')}"}
    return Response(data, media_type=kind, headers=headers)


def _name(request: Request) -> str:
    name = request.query_params.get("name", "")
    try:
        clean_name(name)
    except BadName as error:
        raise HTTPException(400, str(error)) from None
    return name


def _limit(request: Request) -> int:
    text = request.query_params.get("limit", str(LISTED))
    if not (text.isascii() and text.isdecimal() and len(text) < 5 and 1 <= int(text) <= MOST_LISTED):
        raise HTTPException(400, f"limit: expected a whole number from 1 to {MOST_LISTED}")
    return int(text)


def _series(body: bytes) -> list[str]:
    """The DICOM series to take: ``{"series": "3"}``, or nothing."""
    try:
        series = json.loads(body or b"{}").get("series")
    except (ValueError, RecursionError, AttributeError):
        series = 0
    if not (series is None or isinstance(series, str)):
        raise HTTPException(400, 'the body is not a request: send nothing, or {"series": "NUMBER, UID or description"}')
    return [series] if series else []

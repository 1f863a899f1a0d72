"""``POST /api/phantoms``: draws a scan and sends it, for someone who has none at hand."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from gliaflow.scans import check_grade
from gliaflow_proto import SEQUENCES
from gliaflow_runtime.errors import UsageError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gliaflow_console.context import Console
from gliaflow_console.store import ScanStore
from gliaflow_console.turn import Turn

NAME = "phantom_{grade}_{seed}"
SIZE = 2**24  # bytes, more than any image of a phantom has
TIMEOUT_S = 120.0
POLL_S = 0.1


def routes(console: Console) -> list[Route]:
    """The route of the phantoms."""
    drawing = Turn()

    async def phantom(request: Request) -> Response:
        try:
            body = json.loads(await request.body())
            grade = check_grade(body["grade"])
        except UsageError:
            raise
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            raise HTTPException(400, 'the body is not a request: send {"grade": "HGG"} or {"grade": "LGG"}') from None
        return JSONResponse({"id": await drawing.run(_send, console.store, grade, console.stopping)}, 202)

    return [Route("/api/phantoms", phantom, methods=["POST"])]


def _send(store: ScanStore, grade: str, stopping: threading.Event) -> str:
    """Draw a phantom and queue it for the pipeline; returns its id."""
    kinds = [SEQUENCES[0], *store.sequences]
    store.make_room(SIZE * len(kinds))
    name = NAME.format(grade=grade, seed=(seed := secrets.randbelow(10**6)))
    upload = store.new_upload()
    try:
        folder = upload.part()
        _draw(folder, grade, seed, kinds, stopping)
        for kind in kinds:
            (drawn,) = folder.glob(f"{grade}/*/*_{kind}.nii.gz")
            upload.add(drawn, f"{name}_{kind}.nii.gz" if store.sequences else f"{name}.nii.gz")
        shutil.rmtree(folder)
        (scan,) = store.take(upload, alone=not store.sequences, drawn=grade).ids
        return scan
    except BaseException:
        store.discard(upload)
        raise


def _draw(folder: Path, grade: str, seed: int, kinds: Sequence[str], stopping: threading.Event) -> None:
    """In a process of its own: it takes up to 1 GB, and the console is to stay small.

    Raises
    ------
    HTTPException: 503: it was not drawn, or the console ends, and the process with it: it must write nothing more.
    """
    share = "1" if grade == "HGG" else "0"
    command = [sys.executable, "-P", "-m", "gliaflow_cli", "phantom", str(folder), "--patients", "1"]
    command += ["--seed", str(seed), "--hgg-share", share]
    command += ["--sequences", ",".join(kinds)] if kinds[1:] else []
    quiet = subprocess.DEVNULL
    failed = HTTPException(503, "the phantom was not drawn: free some memory and disk, and try again")
    try:
        with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet) as process:
            until = time.monotonic() + TIMEOUT_S
            while process.poll() is None:
                if stopping.wait(POLL_S) or time.monotonic() > until:
                    process.kill()
                    process.wait()
    except OSError:
        raise failed from None
    if stopping.is_set():
        raise HTTPException(503, "the console is ending, and has not sent the phantom: send one after it has started")
    if process.returncode != 0:
        raise failed

"""The API's view of a scan, its synthetic features and its phantoms, over HTTP."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from gliaflow_console.api import generate, phantoms, view
from gliaflow_console.app import STATUS, refused
from gliaflow_console.networks import Networks
from gliaflow_console.store import ScanStore
from gliaflow_console.stored_scan import StoredScan
from gliaflow_console.turn import Turn
from gliaflow_console.view import ALONE
from gliaflow_runtime.settings import Settings
from sample_console import answer, send, stored
from sample_scans import GOOD_SHAPE, good_scan
from sample_store import of_others
from starlette.applications import Starlette
from starlette.exceptions import HTTPException


class App:
    """The routes of these three modules, without the guard."""

    def __init__(self, store: ScanStore) -> None:
        self.store, self.networks = store, Networks(Settings())
        self.stopping = threading.Event()
        console: Any = SimpleNamespace(store=store, networks=self.networks, reading=Turn(), stopping=self.stopping)
        routes = [route for module in (view, generate, phantoms) for route in module.routes(console)]
        handlers = dict.fromkeys((HTTPException, *STATUS), refused)
        self._app = Starlette(routes=routes, exception_handlers=handlers)  # type: ignore[arg-type]

    def get(self, path: str) -> tuple[int, dict[str, str], bytes]:
        return asyncio.run(self._call("GET", path, b"", {}))

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, str], bytes]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return asyncio.run(self._call("POST", path, data, headers))

    async def _call(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def keep(message: Any) -> None:
            sent.append(message)

        path, _, query = path.partition("?")
        lines = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": lines}
        await self._app(scope, receive, keep)
        answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], answered, b"".join(each.get("body", b"") for each in sent[1:])


@pytest.fixture
def app() -> Iterator[App]:
    with ScanStore(Settings()) as store:
        yield App(store)


@pytest.fixture
def scan(app: App, tmp_path: Path) -> StoredScan:
    return answer(app.store, send(app.store, good_scan(tmp_path / "a.nii.gz")), app.networks.bundle.id)


def test_image_and_mask_of_a_scan(app: App, scan: StoredScan, tmp_path: Path) -> None:
    shapes = []
    for name in ("image", "mask"):
        status, headers, body = app.get(f"/api/scans/{scan.id}/view/{name}.nii.gz")
        assert (status, headers["content-type"], headers["gliaflow-step"]) == (200, "application/gzip", "1")
        shapes.append(nib.Nifti1Image.from_bytes(gzip.decompress(body)))
    image, mask = shapes
    assert image.shape == mask.shape == GOOD_SHAPE
    assert (image.affine == mask.affine).all()
    original = np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj)
    assert (np.asarray(image.dataobj) == original).all()
    assert np.flatnonzero(np.asarray(mask.dataobj).any(axis=(0, 1))).tolist() == [4, 5, 6]


def test_a_mask_is_shown_also_where_the_image_can_no_longer_be_read(app: App, scan: StoredScan) -> None:
    item = app.store.item(scan.id)
    assert item is not None
    item.path.write_bytes(b"no scan")
    status, _, body = app.get(f"/api/scans/{scan.id}/view/image.nii.gz")
    assert status == 422
    assert "not a NIfTI file" in json.loads(body)["error"]
    assert app.get(f"/api/scans/{scan.id}/view/mask.nii.gz")[0] == 200


def test_a_scan_without_answer_has_an_image_and_no_mask(app: App, tmp_path: Path) -> None:
    scan = send(app.store, good_scan(tmp_path / "a.nii.gz"))
    assert app.get(f"/api/scans/{scan.id}/view/image.nii.gz")[0] == 200
    status, _, body = app.get(f"/api/scans/{scan.id}/view/mask.nii.gz")
    assert (status, "has no mask" in json.loads(body)["error"]) == (404, True)
    status, _, body = app.get(f"/api/scans/{scan.id}/maps")
    assert (status, "once it is answered" in json.loads(body)["error"]) == (422, True)


def test_feature_maps_of_a_slice(app: App, scan: StoredScan) -> None:
    status, _, body = app.get(f"/api/scans/{scan.id}/maps?tap=enc4&slice=6&count=4")
    maps = json.loads(body)
    assert (status, maps["tap"], maps["slice"]) == (200, "enc4", 6)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        *((query, 400) for query in ("slice=-1", "slice=1e3", "slice=٣", "slice=", "count=x")),
        *((query, 422) for query in ("count=0", "tap=%3Cimg%3E")),
    ],
)
def test_a_wrong_parameter_is_refused(query: str, code: int, app: App, scan: StoredScan) -> None:
    status, _, body = app.get(f"/api/scans/{scan.id}/maps?{query}")
    assert status == code
    assert query.partition("=")[0] in json.loads(body)["error"]


@pytest.mark.parametrize("place", ["view/image.nii.gz", "view/mask.nii.gz", "maps"])
def test_an_unknown_scan_is_not_found(place: str, app: App) -> None:
    assert app.get(f"/api/scans/{'0' * 32}/{place}")[0] == 404


def test_synthetic_features_beside_those_of_a_scan(app: App, scan: StoredScan) -> None:
    status, _, body = app.post("/api/generate", {"grade": "HGG", "count": 4, "generator": "reacgan"})
    made = json.loads(body)
    assert (status, made["generator"], made["real"]["scan"]) == (200, "reacgan", scan.id)
    assert made["real"]["maps"]["channels"] == made["maps"]["channels"]
    assert made["real"]["maps"]["white"] == made["maps"]["white"]
    assert "its true grade is not known here" in made["real"]["note"]
    status, headers, body = app.post("/api/generate", {"grade": "HGG", "count": 4}, accept="application/octet-stream")
    assert (status, body[:2]) == (200, b"PK")
    assert headers["content-disposition"] == 'attachment; filename="HGG-infogan-seed0.npz"'
    assert json.loads(app.get("/api/generators")[2])["served"] == "infogan"


@pytest.mark.parametrize("body", [b"", b"[", b"\xff", b"[" * 100_000, b"null", b'{"grade": ["HGG"]}', b"{}"])
def test_a_body_that_is_no_request_is_refused(body: bytes, app: App) -> None:
    for path in ("/api/generate", "/api/phantoms"):
        status, _, answered = app.post(path, body)
        assert status == 400
        assert json.loads(answered)["error"]


def test_a_grade_that_does_not_exist_is_refused(app: App) -> None:
    for path in ("/api/generate", "/api/phantoms"):
        assert app.post(path, b'{"grade": "X"}')[0] == 422


def test_a_phantom_is_queued_like_an_upload(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(folder: Path, grade: str, seed: int, kinds: list[str], stopping: threading.Event) -> None:
        (folder / grade / "p").mkdir(parents=True)
        good_scan(folder / grade / "p" / "p_flair.nii.gz", seed)

    monkeypatch.setattr(phantoms, "_draw", draw)
    status, _, body = app.post("/api/phantoms", {"grade": "lgg"})
    scan = stored(app.store, json.loads(body)["id"])
    assert (status, scan.status, scan.warnings) == (202, "queued", ())
    assert scan.name.startswith("phantom_LGG_")
    assert scan.drawn == "LGG"


def test_a_phantom_that_is_not_drawn_leaves_nothing(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phantoms.sys, "executable", "/bin/false")
    status, _, body = app.post("/api/phantoms", {"grade": "HGG"})
    assert (status, "free some memory" in json.loads(body)["error"]) == (503, True)
    assert (len(app.store), app.store.size) == (0, 0)


def test_a_phantom_that_is_being_drawn_at_the_end_leaves_nothing(app: App) -> None:
    """The process that draws ends before the console deletes its folder."""
    threading.Timer(0.3, app.stopping.set).start()
    before = time.monotonic()
    status, _, body = app.post("/api/phantoms", {"grade": "HGG"})
    assert (status, "the console is ending" in json.loads(body)["error"]) == (503, True)
    assert time.monotonic() - before < 5
    assert (len(app.store), app.store.size) == (0, 0)
    assert list(app.store.uploads.glob("*/*")) == []


def test_a_huge_mask_of_another_client_is_not_unpacked_beside_a_broker(app: App) -> None:
    message, body = of_others(1)
    app.store.observed(message, body)
    (scan,) = app.store.newest(1)
    path = f"/api/scans/{scan.id}/view/mask.nii.gz"
    assert app.get(path)[0] == 200
    app.networks.bounds = replace(ALONE, voxels=message.mask.size - 1)
    status, _, answered = app.get(path)
    assert (status, "send the scan with gliaflow submit" in json.loads(answered)["error"]) == (413, True)


@pytest.mark.slow
def test_a_phantom_is_drawn_with_the_grade(tmp_path: Path) -> None:
    phantoms._draw(tmp_path, "LGG", 7, ["flair"], threading.Event())
    (file,) = tmp_path.glob("LGG/*/*_flair.nii.gz")
    assert nib.load(file).ndim == 3

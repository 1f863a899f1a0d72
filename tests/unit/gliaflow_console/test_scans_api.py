"""The HTTP API of the scans, without the guard: uploads, folders, lists, answers and errors."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import nibabel as nib
import numpy as np
import pytest
from gliaflow.answer import Answer, write_image
from gliaflow_console.api.scans import routes
from gliaflow_console.store import ScanStore
from gliaflow_console.turn import Turn
from gliaflow_console.view import WITH_STAGES
from gliaflow_proto import PredictionMessage, Scan, encode
from gliaflow_runtime.settings import Settings
from sample_messages import ONE_OF_EACH
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect

PREDICTION = replace(
    next(message for message in ONE_OF_EACH if isinstance(message, PredictionMessage)),
    status="ok",
    mask=np.pad(np.ones((2, 2, 2), np.uint8), 1),
)
NETWORKS = SimpleNamespace(
    tap="enc5",
    taps=["enc5"],
    maps_problem=lambda scan, has_image: "" if has_image else "none",
    bounds=replace(WITH_STAGES, voxels=100),
)


class Client:
    """Calls the application (ASGI)."""

    def __init__(self, store: ScanStore) -> None:
        self.store, self.reading = store, Turn()
        console = SimpleNamespace(store=store, networks=NETWORKS, reading=self.reading)
        self.app = Starlette(routes=routes(console))  # type: ignore[arg-type]
        self.headers: dict[str, str] = {}

    def ask(self, method: str, path: str, *body: bytes, gone: bool = False) -> tuple[int, Any]:
        """The status and the body, as JSON if it is. The parts of ``body`` come one by one; ``gone``: and then none."""
        path, _, query = path.partition("?")
        parts: list[dict[str, Any]] = [{"type": "http.request", "body": part, "more_body": True} for part in body]
        parts.append({"type": "http.disconnect"} if gone else {"type": "http.request", "body": b""})
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return parts.pop(0)

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        length = str(sum(map(len, body))).encode()
        scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "root_path": ""}
        asyncio.run(self.app({**scope, "headers": [(b"content-length", length)]}, receive, send))  # type: ignore[arg-type]
        self.headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        data = b"".join(message.get("body", b"") for message in sent[1:])
        is_json = self.headers.get("content-type") == "application/json"
        return sent[0]["status"], json.loads(data) if is_json else data

    def answer(self, scan: str) -> None:
        item = self.store.item(scan)
        assert item is not None
        self.store.answered(scan, Answer.of_prediction(item, PREDICTION, 1.5))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with ScanStore(Settings(console_folder=tmp_path / "out", console_scans=3, console_gib=3000 / 2**30)) as store:
        yield Client(store)


def files(client: Client) -> list[str]:
    """The files of all uploads."""
    folder = client.store.folder / "uploads"
    return [path.name for path in folder.rglob("*") if path.is_file() and path.parent != folder]


class TestOneFile:
    def test_is_queued_under_its_name(self, client: Client) -> None:
        status, reply = client.ask("POST", "/api/scans?name=P1_flair.nii.gz", b"first ", b"second")
        assert status == 202
        item = client.store.item(reply["id"])
        assert item is not None
        assert (item.name, item.path.read_bytes()) == ("P1_flair", b"first second")

    @pytest.mark.parametrize("name", ["", "../x.nii", "a\0.nii", "a\n.nii", "..\\x.nii", "x" * 300])
    def test_of_a_hostile_name_is_refused_before_its_body_is_read(self, name: str, client: Client) -> None:
        status, reply = client.ask("POST", f"/api/scans?name={quote(name)}")
        assert status == 400
        assert b"name: " in reply
        assert files(client) == []

    def test_that_cannot_be_a_scan_is_refused_with_the_remedy(self, client: Client) -> None:
        status, reply = client.ask("POST", "/api/scans?name=DICOMDIR", b"index")
        assert status == 422
        assert "submit its folder" in reply["error"]
        assert files(client) == []

    def test_whose_client_leaves_is_deleted(self, client: Client) -> None:
        with pytest.raises(ClientDisconnect):  # the guard handles it
            client.ask("POST", "/api/scans?name=a.nii", b"half", gone=True)
        assert files(client) == []
        assert (client.store.size, len(client.store)) == (0, 0)

    def test_for_which_there_is_no_room_is_refused(self, client: Client) -> None:
        status, reply = client.ask("POST", "/api/scans?name=a.nii", b"x" * 4000)
        assert (status, files(client)) == (507, [])
        assert b"GLIAFLOW_CONSOLE_GIB" in reply
        for _ in range(3):
            assert client.ask("POST", "/api/scans?name=a.nii", b"x")[0] == 202
        status, reply = client.ask("POST", "/api/scans?name=a.nii", b"x")
        assert status == 507
        assert b"GLIAFLOW_CONSOLE_SCANS" in reply
        assert len(client.store) == len([name for name in files(client) if name == "a.nii"]) == 3


class TestAFolder:
    def test_is_complete_when_its_client_says_so(self, client: Client) -> None:
        folder = client.ask("POST", "/api/folders")[1]["folder"]
        for name in ("P1/P1_flair.nii", "P1/P1_t1.nii"):
            assert client.ask("PUT", f"/api/folders/{folder}?name={name}", b"data") == (204, b"")
        status, reply = client.ask("POST", f"/api/folders/{folder}")
        assert status == 202
        assert len(reply["ids"]) == 1
        assert reply["left_out"][0]["name"] == "P1/P1_t1.nii"
        assert client.ask("POST", f"/api/folders/{folder}")[0] == 404
        assert client.ask("PUT", f"/api/folders/{folder}?name=P1/late_flair.nii", b"data")[0] == 404
        assert client.ask("PUT", "/api/folders/unknown?name=a.nii", b"data")[0] == 404

    def test_without_a_scan_gives_the_reason_and_can_be_completed_again(self, client: Client) -> None:
        folder = client.ask("POST", "/api/folders")[1]["folder"]
        client.ask("PUT", f"/api/folders/{folder}?name=P1/P1_t1.nii", b"data")
        status, reply = client.ask("POST", f"/api/folders/{folder}", b'{"series": "7"}')
        assert status == 422
        assert "P1/P1_t1.nii" in reply["error"]
        assert reply["left_out"][0]["name"] == "P1/P1_t1.nii"
        client.ask("PUT", f"/api/folders/{folder}?name=P1/P1_flair.nii", b"data")
        assert client.ask("POST", f"/api/folders/{folder}")[0] == 202

    def test_that_is_cancelled_leaves_nothing(self, client: Client) -> None:
        folder = client.ask("POST", "/api/folders")[1]["folder"]
        client.ask("PUT", f"/api/folders/{folder}?name=P1_flair.nii", b"x" * 1000)
        assert client.store.size == 1000
        assert client.ask("DELETE", f"/api/folders/{folder}") == (204, b"")
        assert (files(client), client.store.size) == ([], 0)
        for method in ("DELETE", "POST"):
            assert client.ask(method, f"/api/folders/{folder}")[0] == 404

    def test_for_which_there_is_no_room_is_refused_with_a_remedy_that_helps(self, client: Client) -> None:
        folder = client.ask("POST", "/api/folders")[1]["folder"]
        assert client.ask("PUT", f"/api/folders/{folder}?name=P1_flair.nii", b"x" * 2000)[0] == 204
        status, reply = client.ask("PUT", f"/api/folders/{folder}?name=P2_flair.nii", b"x" * 2000)
        assert (status, client.store.size) == (507, 2000)
        assert b"this upload is larger: upload fewer files at once" in reply  # to wait would not help

    def test_of_which_a_file_is_also_a_folder_is_refused(self, client: Client) -> None:
        folder = client.ask("POST", "/api/folders")[1]["folder"]
        client.ask("PUT", f"/api/folders/{folder}?name=P1", b"data")
        status, reply = client.ask("PUT", f"/api/folders/{folder}?name=P1/a.nii", b"data")
        assert (status, b"rename one of them" in reply) == (400, True)

    @pytest.mark.parametrize("body", [b"[]", b"{", b'{"series": 7}', b'{"series": ["a"]}', b"\xff", b"[" * 10_000])
    def test_with_an_unusable_request_is_refused_with_an_example(self, body: bytes, client: Client) -> None:
        folder = client.ask("POST", "/api/folders")[1]["folder"]
        status, reply = client.ask("POST", f"/api/folders/{folder}", body)
        assert (status, b'{"series": "' in reply) == (400, True)


class TestTheList:
    def test_is_paged_from_the_newest(self, client: Client) -> None:
        ids = [client.ask("POST", "/api/scans?name=a.nii", b"x")[1]["id"] for _ in range(3)][::-1]
        reply = client.ask("GET", "/api/scans?limit=2")[1]
        assert ([row["id"] for row in reply["scans"]], reply["total"]) == (ids[:2], 3)
        assert [row["id"] for row in client.ask("GET", f"/api/scans?before={ids[1]}")[1]["scans"]] == ids[2:]

    @pytest.mark.parametrize("limit", ["0", "1001", "-1", "a", "", "9" * 5000, "0001009", "１"])
    def test_has_a_bounded_length(self, limit: str, client: Client) -> None:
        assert client.ask("GET", f"/api/scans?limit={quote(limit)}")[0] == 400


class TestAnAnswer:
    def test_has_the_mask_and_the_row_as_files(self, client: Client, tmp_path: Path) -> None:
        scan = client.ask("POST", f"/api/scans?name={quote('Ü <b>.nii')}", b"x")[1]["id"]
        for path in ("mask.nii.gz", "mask.dcm", "row.json"):
            assert client.ask("GET", f"/api/scans/{scan}/{path}")[0] == 404
        client.answer(scan)
        row = client.ask("GET", f"/api/scans/{scan}")[1]
        assert (row["name"], row["status"], row["depth"], row["shape"]) == ("Ü <b>", "ok", 4, [4, 4, 4])
        assert row["slice_ml"] == [[1, 0.004], [2, 0.004]]
        assert (row["slice_p"], row["has_image"], row["has_mask"], row["has_dicom"]) == ([[2, 0.75]], True, True, False)
        status, mask = client.ask("GET", f"/api/scans/{scan}/mask.nii.gz")
        assert client.headers["content-disposition"].endswith("''%C3%9C%20%3Cb%3E_seg.nii.gz")
        [submitted] = client.store.folder.glob("*_seg.nii.gz")
        assert (status, gzip.decompress(mask)) == (200, gzip.decompress(submitted.read_bytes()))
        assert client.ask("GET", f"/api/scans/{scan}/row.json")[1]["scan"] == "Ü <b>"
        assert client.ask("GET", f"/api/scans/{scan}/mask.dcm")[0] == 404  # it is no DICOM series
        assert client.ask("DELETE", f"/api/scans/{scan}") == (204, b"")
        for method, path in (("GET", ""), ("GET", "/mask.nii.gz"), ("GET", "/row.json"), ("DELETE", "")):
            assert client.ask(method, f"/api/scans/{scan}{path}")[0] == 404

    def test_of_another_client_has_the_mask_of_the_message(self, client: Client, tmp_path: Path) -> None:
        message = replace(PREDICTION, scan=Scan(id="s", submission="theirs", name="theirs"))
        client.store.observed(message, encode(message, "lz4"))
        [scan] = client.store.newest(1)
        status, mask = client.ask("GET", f"/api/scans/{scan.id}/mask.nii.gz")
        (tmp_path / "mask.nii.gz").write_bytes(mask)
        image: Any = nib.load(tmp_path / "mask.nii.gz")
        write_image(tmp_path / "as_submitted.nii.gz", Answer.of_prediction(_item(client), message, 1).mask)
        assert status == 200
        assert np.asarray(image.dataobj).sum() == 8
        assert gzip.decompress(mask) == gzip.decompress((tmp_path / "as_submitted.nii.gz").read_bytes())
        row = client.ask("GET", f"/api/scans/{scan.id}")[1]
        assert (row["has_image"], row["has_mask"], row["depth"], row["maps_problem"]) == (False, True, 4, "none")
        assert row["slice_ml"] == [[1, 0.004], [2, 0.004]]

    def test_of_another_client_with_a_large_mask_is_not_unpacked(self, client: Client) -> None:
        """A few bytes may stand for a mask that takes a GiB."""
        scan, mask = Scan(id="s", submission="theirs"), np.zeros((5, 5, 5), np.uint8)
        message = replace(PREDICTION, scan=scan, mask=mask, slice_numbers=[], slice_p_hgg=[])
        client.store.observed(message, encode(message, "lz4"))
        [row] = client.ask("GET", "/api/scans")[1]["scans"]
        code, details = client.ask("GET", f"/api/scans/{row['id']}")
        assert (code, details["shape"]) == (200, [5, 5, 5])
        code, refused = client.ask("GET", f"/api/scans/{row['id']}/mask.nii.gz")
        assert code == 413
        assert "125 voxels" in str(refused)

    def test_of_another_client_whose_mask_was_dropped_has_its_slices(self, client: Client) -> None:
        message = replace(PREDICTION, scan=Scan(id="s", submission="theirs", name="theirs"))
        client.store.observed(message, encode(message, "lz4"))
        [scan] = client.store.newest(1)
        client.store._packed.drop(scan.id)
        row = client.ask("GET", f"/api/scans/{scan.id}")[1]
        assert (row["depth"], row["shape"], row["slice_ml"], row["has_mask"]) == (4, [4, 4, 4], [], False)

    def test_that_is_deleted_while_its_mask_is_read_is_not_found(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scan = client.ask("POST", "/api/scans?name=a.nii", b"x")[1]["id"]
        client.answer(scan)
        file = client.store.mask_file(scan)
        assert file is not None
        file.unlink()
        monkeypatch.setattr(client.store, "mask_file", lambda _: file)
        assert client.ask("GET", f"/api/scans/{scan}/mask.nii.gz")[0] == 404

    @pytest.mark.parametrize("path", ["", "/mask.nii.gz", "/mask.dcm"])
    def test_is_unpacked_for_one_request_at_a_time(
        self, path: str, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        message = replace(PREDICTION, scan=Scan(id="s", submission="theirs", name="theirs"))
        client.store.observed(message, encode(message, "lz4"))
        turns: list[object] = []

        async def run(function: Any, *args: Any) -> Any:
            turns.append(function)
            return function(*args)

        monkeypatch.setattr(client.reading, "run", run)
        client.ask("GET", f"/api/scans/{client.store.newest(1)[0].id}{path}")
        assert len(turns) == 1


def _item(client: Client) -> Any:
    return client.store.item(client.ask("POST", "/api/scans?name=a.nii", b"x")[1]["id"])

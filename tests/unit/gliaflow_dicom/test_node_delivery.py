"""Answers in the spool are sent to each destination until it accepts them."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from gliaflow_dicom.node import delivery
from gliaflow_dicom.node.answers import KeptAnswer, Origin, delete_old, keep_answer, kept_answers
from gliaflow_dicom.node.delivery import Sender
from gliaflow_dicom.node.peers import listening_tls, parse_destination
from gliaflow_dicom.node.spool import Spool
from gliaflow_runtime.errors import UsageError
from pydicom.dataset import FileDataset
from sample_dicom import head, single_frames
from sample_node import Archive, certificate, node_settings, open_spool, wait_until

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning")  # pynetdicom's, of refused connections
SEG, SR = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.34"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "POLL_S", 0.01)
    monkeypatch.setattr(delivery, "AWAY_S", (0.05, 0.1))
    monkeypatch.setattr(delivery, "REFUSED_S", (0.05, 0.1))


def objects(series: str = "s") -> dict[str, FileDataset]:
    """Stand-ins with the SOP classes of a segmentation and a report."""
    seg, report = single_frames(head((4, 4, 2)), series=series)
    seg.SOPClassUID = seg.file_meta.MediaStorageSOPClassUID = SEG
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = SR
    return {"_seg.dcm": seg, "_sr.dcm": report}


def keep(spool: Spool, series: str = "s", made: float = 1e9) -> KeptAnswer:
    return keep_answer(spool, Origin("study", series, ["a.dcm"], {}, made), objects(series))


@contextmanager
def sending(spool: Spool, folder: Path, to: str, **values: Any) -> Iterator[Sender]:
    sender = Sender(node_settings(folder, **values), spool, parse_destination(to))
    yield sender
    sender.close()


def test_the_objects_arrive_in_order_and_once(tmp_path: Path) -> None:
    archive = Archive()
    with open_spool(tmp_path) as spool, archive.running(), sending(spool, tmp_path, archive.peer):
        answer = keep(spool)
        wait_until(lambda: answer.is_delivered([archive.peer]))
    assert [uid for uid, _ in archive.got] == [each.SOPInstanceUID for each in objects().values()]


def test_a_destination_that_is_away_gets_them_when_it_is_back(tmp_path: Path) -> None:
    archive = Archive()
    with open_spool(tmp_path) as spool, sending(spool, tmp_path, archive.peer) as sender:
        answer = keep(spool)
        wait_until(lambda: sender._away is not None)
        assert not sender.stuck
        with archive.running():
            wait_until(lambda: answer.is_delivered([archive.peer]))


def test_with_tls_both_sides_show_a_certificate(tmp_path: Path) -> None:
    ca, own = certificate(tmp_path, "ca"), certificate(tmp_path, "node", "ca")
    settings = node_settings(tmp_path, cert=own, ca=ca)
    archive = Archive()
    with open_spool(tmp_path) as spool, archive.running(listening_tls(settings)):
        with sending(spool, tmp_path, archive.peer, cert=own, ca=ca) as plain:
            answer = keep(spool)
            wait_until(lambda: plain._away is not None)
        with sending(spool, tmp_path, f"tls://{archive.peer}", cert=own, ca=ca) as sender:
            wait_until(lambda: answer.is_delivered([sender.name]))


def test_each_destination_has_a_state_of_its_own(tmp_path: Path) -> None:
    here, away = Archive(), Archive()
    with (
        open_spool(tmp_path) as spool,
        here.running(),
        sending(spool, tmp_path, here.peer),
        sending(spool, tmp_path, away.peer),
    ):
        answer = keep(spool)
        wait_until(lambda: answer.is_delivered([here.peer]))
        assert not answer.is_delivered([here.peer, away.peer])


def test_a_warning_counts_as_accepted(tmp_path: Path) -> None:
    archive = Archive(status=0xB000)
    with open_spool(tmp_path) as spool, archive.running(), sending(spool, tmp_path, archive.peer):
        answer = keep(spool)
        wait_until(lambda: answer.is_delivered([archive.peer]))
    assert len(archive.got) == 2


def test_a_refused_answer_is_stuck_and_does_not_hold_up_others(tmp_path: Path) -> None:
    archive = Archive(contexts=[SEG])  # as an archive that knows no reports
    with open_spool(tmp_path) as spool, archive.running(), sending(spool, tmp_path, archive.peer) as sender:
        keep(spool, "first")
        keep(spool, "second")
        wait_until(lambda: len(sender.stuck) == 2)
    assert len(archive.got) == 2  # the segmentations, once each


def test_an_archive_without_room_is_as_if_it_were_away(tmp_path: Path) -> None:
    archive = Archive(status=0xA700)
    with open_spool(tmp_path) as spool, archive.running(), sending(spool, tmp_path, archive.peer) as sender:
        answer = keep(spool)
        wait_until(lambda: sender._away is not None)
        archive.status = 0
        wait_until(lambda: answer.is_delivered([archive.peer]))


def test_the_same_answer_again_has_the_same_bytes(tmp_path: Path) -> None:
    archive = Archive()
    with open_spool(tmp_path) as spool, archive.running(), sending(spool, tmp_path, archive.peer):
        answer = keep(spool)
        wait_until(lambda: answer.is_delivered([archive.peer]))
        again = objects()
        again["_seg.dcm"].ContentTime = "235959"  # what makes two objects with the same UIDs differ
        keep_answer(spool, Origin("study", "s", ["a.dcm"], {}, 1e9), again)
        wait_until(lambda: len(archive.got) == 4)
    assert archive.got[:2] == archive.got[2:]


def test_what_was_accepted_before_a_kill_is_not_sent_again(tmp_path: Path) -> None:
    archive = Archive()
    with open_spool(tmp_path) as spool:
        keep(spool).accept(archive.peer, "1_seg.dcm")
    with open_spool(tmp_path) as spool, archive.running(), sending(spool, tmp_path, archive.peer):
        (answer,) = kept_answers(spool)
        wait_until(lambda: answer.is_delivered([archive.peer]))
    assert [uid for uid, _ in archive.got] == [objects()["_sr.dcm"].SOPInstanceUID]


def test_delivered_answers_are_kept_for_some_days(tmp_path: Path) -> None:
    with open_spool(tmp_path) as spool:
        answer = keep(spool, made=1.0)
        delete_old(spool, ["P"], keep_s=0)
        assert kept_answers(spool)  # never before it is delivered
        for path in answer.objects:
            answer.accept("P", path.name)
        delete_old(spool, ["P"], keep_s=1e12)
        assert kept_answers(spool)
        delete_old(spool, ["P"], keep_s=86400)
        assert not kept_answers(spool)
        assert not any(spool.answers.iterdir())


@dataclass
class WebArchive:
    """A DICOMweb server that keeps the bodies it gets. ``status``: its answer."""

    status: int = 200
    answer: str = ""
    got: list[tuple[str, bytes]] = field(default_factory=list)  # Authorization and body

    @contextmanager
    def running(self) -> Iterator[str]:
        archive = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                archive.got.append((self.headers.get("Authorization", ""), data))
                body = archive.answer.encode()
                self.send_response(archive.status)
                self.send_header("Content-Type", "application/dicom+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        with HTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}/dicom-web"
            server.shutdown()
            thread.join()


def test_stow_sends_each_object_with_the_password_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("ward:secret\n")
    archive = WebArchive()
    settings = {"credentials": tmp_path / "password"}
    with open_spool(tmp_path) as spool, archive.running() as url, sending(spool, tmp_path, url, **settings):
        answer = keep(spool)
        wait_until(lambda: answer.is_delivered([url]))
    assert [login for login, _ in archive.got] == [f"Basic {base64.b64encode(b'ward:secret').decode()}"] * 2
    assert objects()["_seg.dcm"].SOPInstanceUID.encode() in archive.got[0][1]


@pytest.mark.parametrize(
    ("status", "answer", "stuck"),
    [
        (409, "", True),
        (200, '{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [272]}}]}}', True),
        (503, "", False),
        (401, "", False),
    ],
)
def test_stow_is_tried_again_until_it_is_accepted(tmp_path: Path, status: int, answer: str, stuck: bool) -> None:
    archive = WebArchive(status, answer)
    with open_spool(tmp_path) as spool, archive.running() as url, sending(spool, tmp_path, url) as sender:
        kept = keep(spool)
        wait_until(lambda: bool(sender.stuck) if stuck else sender._away is not None)
        archive.status, archive.answer = 200, ""
        wait_until(lambda: kept.is_delivered([url]))


def test_a_file_of_another_kind_holds_no_credentials(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    with open_spool(tmp_path) as spool, pytest.raises(UsageError, match="user:password, or Bearer TOKEN") as error:
        Sender(node_settings(tmp_path, credentials=tmp_path / "password"), spool, parse_destination("https://h/d"))
    assert "secret" not in str(error.value)

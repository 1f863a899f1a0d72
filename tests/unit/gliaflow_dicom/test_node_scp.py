"""The listener with real associations: what it accepts, what it refuses, and what a hostile peer cannot do."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sample_dicom
from gliaflow_dicom.node import guard
from gliaflow_dicom.node.completeness import Arrivals
from gliaflow_dicom.node.peers import calling_tls, keep_libraries_quiet
from gliaflow_dicom.node.scp import Listener
from gliaflow_dicom.node.spool import Spool, hashed
from gliaflow_plugins.dicom.compression import ENCAPSULATED, NATIVE
from gliaflow_runtime.errors import UsageError
from pydicom.dataset import FileDataset
from pynetdicom import AE
from pynetdicom.pdu import A_ASSOCIATE_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import P_DATA
from sample_dicom import head, single_frames, uid
from sample_node import NODE, SENDER, associated, certificate, node_settings, open_spool, send, wait_until

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning")  # pynetdicom's, of refused connections
FULL, MISMATCH, UNREADABLE = 0xA700, 0xA900, 0xC000
STUDY, SERIES = hashed(uid("study")), hashed(uid("study", "flair"))


def images(count: int = 3, **options: Any) -> list[FileDataset]:
    return single_frames(head((8, 8, count)), **options)


@contextmanager
def listening(folder: Path, *, total: int = 2**30, one: int = 2**30, **values: Any) -> Iterator[tuple[Listener, Spool]]:
    keep_libraries_quiet()
    with open_spool(folder, total=total, one=one) as spool:
        listener = Listener(node_settings(folder, **values), spool, Arrivals(0.1, []))
        yield listener, spool
        listener.close()


def stored(spool: Spool) -> list[Path]:
    return sorted(spool.studies.rglob("*.dcm"))


def test_an_image_is_on_the_disk_before_it_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(at: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{at}").readlink()))
        real(at)

    with listening(tmp_path) as (listener, spool):
        monkeypatch.setattr(os, "fsync", fsync)
        (image,) = images(1)
        assert send(listener.port, [image]) == [0]
        (path,) = stored(spool)
        assert str(spool.incoming) in synced[0]  # the file, then the names, from the file's folder upward
        assert {str(spool.studies), str(path.parent.parent), str(path.parent)} <= {*synced[1:]}
        assert not any(spool.incoming.iterdir())


def test_names_in_the_spool_are_hashes(tmp_path: Path) -> None:
    with listening(tmp_path) as (listener, spool):
        (image,) = images(1)
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        assert send(listener.port, [image]) == [0]
        assert stored(spool) == [spool.studies / STUDY / SERIES / f"{hashed('1.2.3')}.dcm"]
        assert spool.folder.stat().st_mode & 0o777 == 0o700
        assert stored(spool)[0].stat().st_mode & 0o777 == 0o600


def test_the_file_can_be_read_and_has_the_same_data(tmp_path: Path) -> None:
    from pydicom import dcmread

    with listening(tmp_path) as (listener, spool):
        (image,) = images(1)
        send(listener.port, [image])
        assert dcmread(stored(spool)[0]) == image


def test_an_image_that_comes_twice_is_there_once(tmp_path: Path) -> None:
    with listening(tmp_path) as (listener, spool):
        assert send(listener.port, [*images(2), *images(2)]) == [0, 0, 0, 0]
        assert len(stored(spool)) == 2
        before = spool._bytes
        spool.count()
        assert spool._bytes == before  # replaced bytes are not counted twice


def test_every_transfer_syntax_that_can_be_read_is_accepted(tmp_path: Path) -> None:
    with listening(tmp_path) as (listener, _):
        offered = []
        for syntax in sorted(NATIVE | ENCAPSULATED):
            (image,) = images(1)
            image.file_meta.TransferSyntaxUID = syntax
            offered.append(image)
        with associated(listener.port, offered) as association:
            accepted = {syntax for each in association.accepted_contexts for syntax in each.transfer_syntax}
            assert accepted >= NATIVE | ENCAPSULATED


@pytest.mark.parametrize("make", [lambda: images(1)[0], lambda: sample_dicom.enhanced(head((8, 8, 3)))])
def test_single_frames_and_enhanced_images_are_accepted(tmp_path: Path, make: Callable[[], FileDataset]) -> None:
    with listening(tmp_path) as (listener, _):
        assert send(listener.port, [make()]) == [0]


def test_our_own_answers_are_not_accepted(tmp_path: Path) -> None:
    """An archive that sends a study on, with the segmentation in it, makes no loop."""
    others = images(3)
    for image, name in zip(others, ("66.4", "88.34", "2"), strict=True):  # SEG, SR, CT
        image.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.{name}"
    with listening(tmp_path) as (listener, _), associated(listener.port, others) as association:
        assert [each.abstract_syntax for each in association.accepted_contexts] == ["1.2.840.10008.1.1"]


@pytest.mark.parametrize(("title", "called"), [("OTHER", NODE), (SENDER, "OTHER")])
def test_other_ae_titles_are_rejected(tmp_path: Path, title: str, called: str, printed: Callable[[], str]) -> None:
    from gliaflow_runtime.logs import configure_logging

    configure_logging("info", "json")
    with listening(tmp_path) as (listener, _), associated(listener.port, images(1), title=title, called=called) as each:
        assert each.is_rejected
        wait_until(lambda: "association rejected" in printed())


def test_any_sender_is_accepted_only_on_purpose(tmp_path: Path) -> None:
    with listening(tmp_path, allow=["any"]) as (listener, _):
        assert send(listener.port, images(1), title="OTHER") == [0]
    with (
        pytest.raises(UsageError, match="name the AE titles"),
        listening(tmp_path, allow=[]),
    ):
        pass


def test_more_associations_than_allowed_are_rejected(tmp_path: Path) -> None:
    with (
        listening(tmp_path, associations=1) as (listener, _),
        associated(listener.port, images(1)) as first,
        associated(listener.port, images(1)) as second,
    ):
        assert first.is_established
        assert second.is_rejected


def test_a_full_spool_refuses_and_keeps_nothing_of_the_image(tmp_path: Path) -> None:
    one = len(images(1)[0].PixelData)
    with listening(tmp_path, total=4000 + 2 * one) as (listener, spool):
        statuses = send(listener.port, images(9))
        assert statuses[0] == 0
        assert statuses[-1] == FULL
        assert len(stored(spool)) == statuses.count(0)
        assert "the spool is full" in spool.why_full()
        assert not any(spool.incoming.iterdir())


def test_an_object_over_the_limit_is_not_kept_while_it_comes(tmp_path: Path) -> None:
    (image,) = images(1)
    image.PixelData = bytes(2**22)
    with listening(tmp_path, one=2**20) as (listener, spool):
        assert send(listener.port, [image]) == [FULL]
        assert spool._bytes == 0
        assert not any(spool.incoming.iterdir())


def change_sop(image: FileDataset) -> None:
    image.SOPInstanceUID = "1.2.9"


def no_series(image: FileDataset) -> None:
    del image.SeriesInstanceUID


def no_uid(image: FileDataset) -> None:
    image.StudyInstanceUID = "1.2.x"


@pytest.mark.parametrize(("change", "status"), [(change_sop, MISMATCH), (no_series, UNREADABLE), (no_uid, UNREADABLE)])
def test_a_data_set_that_is_not_the_requested_image_is_refused(
    tmp_path: Path, change: Callable[[FileDataset], None], status: int
) -> None:
    (image,) = images(1)
    with listening(tmp_path) as (listener, spool), associated(listener.port, [image]) as association:
        instance = image.SOPInstanceUID
        change(image)
        assert store_as(association, image, instance) == status
        assert stored(spool) == []
        assert association.send_c_store(images(2)[1]).Status == 0
        association.release()
        wait_until(lambda: not listener._server.connections)
        assert spool.ending(STUDY, SERIES) != "clean"  # the image may be one of this series


def store_as(association: Any, image: FileDataset, instance: str) -> int:
    """Send an image under another SOP instance UID than its own."""
    from io import BytesIO

    from pynetdicom.dimse_primitives import C_STORE
    from pynetdicom.dsutils import encode

    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = image.SOPClassUID, instance
    request.DataSet = BytesIO(encode(image, False, True) or b"")
    (context,) = [each for each in association.accepted_contexts if each.abstract_syntax == image.SOPClassUID]
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(request, context.context_id)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return int(response.Status)


def test_an_association_that_is_aborted_leaves_its_series_incomplete(tmp_path: Path) -> None:
    with listening(tmp_path) as (listener, spool):
        with associated(listener.port, images(3)) as association:
            assert [association.send_c_store(image).Status for image in images(3)] == [0, 0, 0]
            association.abort()
        wait_until(lambda: spool.ending(STUDY, SERIES) != "clean")
        assert send(listener.port, images(3)) == [0, 0, 0]  # a resend that is released
        wait_until(lambda: spool.ending(STUDY, SERIES) == "clean")


def test_a_series_is_clean_when_all_associations_that_store_into_it_are_released(tmp_path: Path) -> None:
    with listening(tmp_path) as (listener, spool), associated(listener.port, images(3)) as first:
        assert first.send_c_store(images(3)[0]).Status == 0
        assert send(listener.port, images(3)[1:2]) == [0]
        assert spool.ending(STUDY, SERIES) != "clean"
        assert first.send_c_store(images(3)[2]).Status == 0
        first.release()
        assert spool.ending(STUDY, SERIES) == "clean"


def test_an_abort_beside_another_association_leaves_the_series_incomplete(tmp_path: Path) -> None:
    with listening(tmp_path) as (listener, spool), associated(listener.port, images(3)) as first:
        assert first.send_c_store(images(3)[0]).Status == 0
        with associated(listener.port, images(3)) as second:
            assert second.send_c_store(images(3)[1]).Status == 0
            second.abort()
        wait_until(lambda: len(listener._server.connections) == 1)
        first.release()
        assert spool.ending(STUDY, SERIES) != "clean"


def test_a_release_is_confirmed_when_the_series_is_marked(tmp_path: Path) -> None:
    """A sender with a confirmed release has done all it can: a node that is killed then knows that too."""
    with listening(tmp_path) as (listener, spool), associated(listener.port, images(1)) as association:
        assert association.send_c_store(images(1)[0]).Status == 0
        association.release()
        assert spool.ending(STUDY, SERIES) == "clean"


def test_a_series_that_cannot_be_marked_is_incomplete_and_its_connection_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with listening(tmp_path) as (listener, spool):
        with monkeypatch.context() as patch:
            patch.setattr(spool, "mark", full)
            assert send(listener.port, images(3)) == [0, 0, 0]
            wait_until(lambda: not listener._server.connections)
        assert spool.ending(STUDY, SERIES) != "clean"
        assert not listener._arrivals._open
        assert send(listener.port, images(3)) == [0, 0, 0]
        assert spool.ending(STUDY, SERIES) == "clean"
    assert "Traceback" not in capfd.readouterr().err


def test_a_connection_ends_even_if_the_node_fails_to_note_it(raw: tuple[Listener, Spool]) -> None:
    listener, _ = raw

    def broken(_: object) -> None:
        raise OSError

    object.__setattr__(listener._server.bounds, "ended", broken)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda _: None)
        send(listener.port, images(1))
        wait_until(lambda: not listener._server.connections)


@pytest.mark.parametrize(
    ("disk", "text"),
    [
        ({"f_bavail": 0}, "the spool's disk is full: make room"),
        ({"f_files": 100, "f_favail": 0}, "the spool's disk has no free inodes: delete files there"),
    ],
)
def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: dict[str, int], text: str) -> None:
    values = {"f_bavail": 2**20, "f_frsize": 4096, "f_files": 0, "f_favail": 0, **disk}
    with listening(tmp_path) as (listener, spool):
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**values))
        assert spool.why_full() == text
        assert listener._why_refused("full") == text
        assert send(listener.port, images(1)) == [FULL]


def test_images_are_received_while_the_bytes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.walk

    def walk(folder: Path) -> Iterator[Any]:
        thread = threading.Thread(target=spool.add_bytes, args=(5,), daemon=True)
        thread.start()
        thread.join(5)
        assert not thread.is_alive()
        yield from real(folder)

    with open_spool(tmp_path) as spool:
        monkeypatch.setattr(os, "walk", walk)
        spool.count()
        assert spool._bytes == 5


def test_an_association_with_a_refused_image_leaves_its_series_incomplete(tmp_path: Path) -> None:
    (large,) = images(1)
    large.PixelData = bytes(2**20)
    with listening(tmp_path, one=2**18) as (listener, spool):
        assert send(listener.port, [*images(2)[1:], large]) == [0, FULL]
        wait_until(lambda: spool.ending(STUDY, SERIES) != "clean")


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[tuple[Listener, Spool]]:
    with listening(tmp_path, idle_s=0.5, associations=2) as both:
        yield both


def connect(listener: Listener) -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", listener.port))
    peer.settimeout(20)
    return peer


def is_closed(peer: socket.socket) -> bool:
    try:
        while peer.recv(4096):
            pass
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize(
    "data",
    [
        b"",  # nothing
        b"\1\0\0\0",  # half the head of a PDU
        b"\1\0\0\0\0\xff" + b"\0" * 100,  # half a PDU
        b"\1\0\xff\xff\xff\xff" + b"\0" * 100,  # a PDU of 4 GiB
        b"GET / HTTP/1.1\r\n\r\n",
        b"\1\0\0\0\0\4\0\1\0\0",  # an A-ASSOCIATE-RQ that is cut off
        b"\4\0\0\0\0\6\0\0\0\2\1\3",  # data without an association
    ],
)
def test_a_peer_that_does_not_speak_dicom_is_cut_off(
    raw: tuple[Listener, Spool], data: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    listener, _ = raw
    with connect(listener) as peer:
        peer.sendall(data)
        assert is_closed(peer)
    wait_until(lambda: not listener._server.connections)
    assert send(listener.port, images(1)) == [0]
    assert "Traceback" not in capfd.readouterr().err


def test_single_bytes_do_not_hold_a_connection(raw: tuple[Listener, Spool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "LATE_S", 0.1)
    listener, _ = raw
    with connect(listener) as peer:
        peer.sendall(b"\1\0\0\0\xff\xff")
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.1):
                try:
                    peer.sendall(b"\0")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        assert is_closed(peer)
        stop.set()
        thread.join()


def test_silent_connections_do_not_keep_others_out(tmp_path: Path) -> None:
    with listening(tmp_path, associations=1, idle_s=60) as (listener, _):
        silent = [connect(listener) for _ in range(30)]
        wait_until(lambda: send_established(listener))
        for peer in silent:
            peer.close()


def send_established(listener: Listener) -> bool:
    with associated(listener.port, images(1)) as association:
        return bool(association.is_established)


def request_association(peer: socket.socket) -> None:
    """Negotiate an association for MR images by hand."""
    ae = AE(ae_title=SENDER)
    ae.add_requested_context("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.2")
    from pynetdicom.association import Association

    association = Association(ae, "requestor")
    association.requestor.ae_title, association.acceptor.ae_title = SENDER, NODE
    association.requestor.requested_contexts = ae.requested_contexts
    association.requestor.requested_contexts[0].context_id = 1
    association.requestor.maximum_length = 16382
    sent: list[Any] = []
    association.dul.send_pdu = sent.append  # type: ignore[method-assign]
    association.requestor.implementation_class_uid = ae.implementation_class_uid
    from pynetdicom.transport import AddressInformation

    association.requestor.address_info = AddressInformation("127.0.0.1", 0)
    association.acceptor.address_info = AddressInformation("127.0.0.1", 104)
    association.acse.send_request()
    peer.sendall(A_ASSOCIATE_RQ(sent[0]).encode())
    assert peer.recv(4096)[0] == 2  # accepted


def pdv(data: bytes, header: int) -> bytes:
    primitive = P_DATA()
    primitive.presentation_data_value_list = [[1, bytes([header]) + data]]  # type: ignore[list-item]
    return P_DATA_TF(primitive).encode()


def command(field: int, *, data_set: bool = True, instance: bytes = b"1.2.840.99999999") -> bytes:
    from pydicom import Dataset
    from pynetdicom.dsutils import encode

    request = Dataset()
    request.AffectedSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    request.CommandField, request.MessageID, request.Priority = field, 1, 0
    request.CommandDataSetType = 0 if data_set else 0x0101
    request.AffectedSOPInstanceUID = "1.2.840.99999999"
    return (encode(request, True, True) or b"").replace(b"1.2.840.99999999", instance)


HOSTILE = {
    "a data set without a request": [pdv(b"\0" * 100, 0)],
    "a command set without an end": [pdv(b"\0" * 4000, 1)] * 10,
    "a command that is no command": [pdv(b"\xff" * 100, 3)],
    "an empty part": [b"\4\0\0\0\0\6\0\0\0\2\1\3"],
    "an event report, for which pynetdicom starts a thread": [pdv(command(0x0100, data_set=False), 3)] * 3,
    "a query": [pdv(command(0x0020), 3)],
    "a data set for an echo": [pdv(command(0x0030), 3), pdv(b"\0" * 100, 0)],
    "two command sets": [pdv(command(1), 3), pdv(command(1), 3)],
    "a UID that is a path": [pdv(command(1, instance=b"../../etc/passwd"), 3)],
    "a PDU of another kind": [b"\3\0\0\0\0\4\0\1\1\1"],
    "requests without waiting": [pdv(command(1), 3), pdv(b"\0" * 8, 2)] * 200,
}


@pytest.mark.parametrize("parts", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_association_is_aborted(
    raw: tuple[Listener, Spool], parts: list[bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    listener, spool = raw
    threads = threading.active_count()
    with connect(listener) as peer:
        request_association(peer)
        try:
            for part in parts:
                peer.sendall(part)
        except ConnectionError:
            pass
        assert is_closed(peer)
    wait_until(lambda: not listener._server.connections)
    wait_until(lambda: threading.active_count() <= threads)
    assert not any(spool.incoming.iterdir())
    assert stored(spool) == []
    assert spool._bytes == 0
    assert send(listener.port, images(1)) == [0]
    assert "Traceback" not in capfd.readouterr().err


def test_half_an_image_leaves_nothing(raw: tuple[Listener, Spool]) -> None:
    listener, spool = raw
    with connect(listener) as peer:
        request_association(peer)
        peer.sendall(pdv(command(1), 3) + pdv(b"\0" * 1000, 0))
        wait_until(lambda: any(spool.incoming.iterdir()))
    wait_until(lambda: not any(spool.incoming.iterdir()))
    assert spool._bytes == 0


def test_with_tls_a_peer_needs_a_certificate_of_the_authority(tmp_path: Path) -> None:
    ca, own = certificate(tmp_path, "ca"), certificate(tmp_path, "node", "ca")
    other = certificate(tmp_path, "other")
    tls = {"cert": own, "ca": ca}
    with listening(tmp_path, **tls, idle_s=1) as (listener, _):
        ae = AE(ae_title=SENDER)
        ae.add_requested_context("1.2.840.10008.1.1")
        with connect(listener):  # silence does not keep others out
            right = ae.associate(
                "127.0.0.1",
                listener.port,
                ae_title=NODE,
                tls_args=(calling_tls(node_settings(tmp_path, **tls)), "127.0.0.1"),
            )
            assert right.send_c_echo().Status == 0
            right.release()
        wrong = ssl.create_default_context(cafile=ca)
        wrong.load_cert_chain(other)
        for context in (wrong, None):
            options: Any = {"tls_args": (context, "127.0.0.1")} if context else {}
            assert not ae.associate("127.0.0.1", listener.port, ae_title=NODE, **options).is_established


def test_at_the_end_an_open_association_gets_time_to_finish(tmp_path: Path) -> None:
    with open_spool(tmp_path) as spool:
        listener = Listener(node_settings(tmp_path), spool, Arrivals(0.1, []))
        with associated(listener.port, images(2)) as association:
            assert association.send_c_store(images(2)[0]).Status == 0
            thread = threading.Thread(target=listener.close)
            thread.start()
            wait_until(lambda: not listener.listens)
            assert association.send_c_store(images(2)[1]).Status == 0
        thread.join(10)
        assert len(stored(spool)) == 2
        assert spool.ending(STUDY, SERIES) == "clean"

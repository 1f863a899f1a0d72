"""What the tests of the DICOM node share, all in this process: settings, a spool, a sender, an archive, a pipeline."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import nibabel as nib
from gliaflow.answer import Answer
from gliaflow.flow import Flow
from gliaflow.scans import Input
from gliaflow_dicom.node.answers import kept_answers
from gliaflow_dicom.node.node import Node
from gliaflow_dicom.node.peers import keep_libraries_quiet
from gliaflow_dicom.node.spool import Spool, SpoolLimits
from gliaflow_runtime.settings import Settings
from processes import free_port
from pydicom.dataset import FileDataset
from pynetdicom import AE, evt
from pynetdicom.association import Association
from sample_dicom import head, single_frames

SENDER, NODE, ARCHIVE = "SENDER", "GLIAFLOW", "ARCHIVE"
GIB = 2**30


def node_settings(folder: Path, **values: Any) -> Settings:
    """Settings of a node on a free port, whose spool is in ``folder``. Names without ``dicom_``."""
    defaults: dict[str, Any] = {
        "allow": [SENDER],
        "to": [f"{ARCHIVE}@127.0.0.1:9"],
        "port": 0,
        "spool": folder / "spool",
        "settle_s": 0.1,
        "free_gib": 0,
        "idle_s": 5,
    }
    return Settings(**{f"dicom_{name}": value for name, value in {**defaults, **values}.items()})


@contextmanager
def open_spool(folder: Path, total: int = GIB, free: int = 0, one: int = GIB) -> Iterator[Spool]:
    spool = Spool(folder / "spool", SpoolLimits(total, free, one))
    try:
        yield spool
    finally:
        spool.close()


@contextmanager
def associated(
    port: int, images: list[FileDataset], *, title: str = SENDER, called: str = NODE
) -> Iterator[Association]:
    """An association with the node for these images. It is released at the end, unless it has ended."""
    keep_libraries_quiet()
    ae = AE(ae_title=title)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    for sop_class, syntax in {(image.SOPClassUID, image.file_meta.TransferSyntaxUID) for image in images}:
        ae.add_requested_context(sop_class, syntax)
    ae.add_requested_context("1.2.840.10008.1.1")
    association = ae.associate("127.0.0.1", port, ae_title=called)
    raw = association.dul.socket and association.dul.socket.socket
    yield association
    association.release()
    if raw is not None:
        raw.close()


def send(port: int, images: list[FileDataset], **options: Any) -> list[int | None]:
    """Send images in one association; return the statuses."""
    with associated(port, images, **options) as association:
        return [association.send_c_store(image).get("Status") for image in images]


@dataclass
class Archive:
    """A storage SCP that keeps what it gets, and answers queries.

    ``status``: its answer to C-STORE; ``status_of``: the same, from pynetdicom's event.
    """

    port: int = field(default_factory=free_port)
    status: int = 0
    status_of: Callable[[Any], int] | None = None
    counts: dict[str, int] = field(default_factory=dict)  # images by series UID
    says_count: bool = True  # whether its answers have NumberOfSeriesRelatedInstances
    got: list[tuple[str, bytes]] = field(default_factory=list)  # SOP instance UID and bytes
    contexts: list[str] = field(
        default_factory=lambda: [
            "1.2.840.10008.5.1.4.1.1.66.4",
            "1.2.840.10008.5.1.4.1.1.88.34",
            "1.2.840.10008.5.1.4.1.1.88.22",
            "1.2.840.10008.5.1.4.1.1.7",
        ]
    )

    @property
    def peer(self) -> str:
        return f"{ARCHIVE}@127.0.0.1:{self.port}"

    @contextmanager
    def running(self, tls: Any = None) -> Iterator[Archive]:
        keep_libraries_quiet()
        ae = AE(ae_title=ARCHIVE)
        for context in self.contexts:
            ae.add_supported_context(context)
        ae.add_supported_context("1.2.840.10008.5.1.4.1.2.2.1")
        ae.add_supported_context("1.2.840.10008.1.1")
        handlers: list[Any] = [(evt.EVT_C_STORE, self._store), (evt.EVT_C_FIND, self._find)]
        server = ae.start_server(("127.0.0.1", self.port), block=False, ssl_context=tls, evt_handlers=handlers)
        assert server is not None
        yield self
        server.shutdown()

    def _store(self, event: Any) -> int:
        status = self.status_of(event) if self.status_of else self.status
        if status < 0x0100 or status & 0xF000 == 0xB000:
            self.got.append((event.request.AffectedSOPInstanceUID, event.request.DataSet.getvalue()))
        return status

    def _find(self, event: Any) -> Iterator[tuple[int, Any]]:
        from pydicom import Dataset

        query = event.identifier
        count = self.counts.get(query.SeriesInstanceUID, 0)
        answer = Dataset()
        answer.QueryRetrieveLevel, answer.SeriesInstanceUID = query.QueryRetrieveLevel, query.SeriesInstanceUID
        answer.StudyInstanceUID = query.StudyInstanceUID
        if query.QueryRetrieveLevel == "IMAGE":
            for number in range(count):
                answer.SOPInstanceUID = f"2.25.{number + 1}"
                yield 0xFF00, answer
        elif count:
            if self.says_count:
                answer.NumberOfSeriesRelatedInstances = count
            yield 0xFF00, answer


def wait_until(holds: Callable[[], Any], within_s: float = 20.0) -> None:
    until = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < until, "it does not come"
        time.sleep(0.02)


def certificate(folder: Path, name: str, ca: str = "") -> Path:
    """A certificate with its key in one PEM file, signed by ``ca`` or by itself."""
    path = folder / f"{name}.pem"
    signer = f"-CA {folder}/{ca}.pem -CAkey {folder}/{ca}.pem" if ca else ""
    command = (
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -addext subjectAltName=IP:127.0.0.1 "
        f"{signer} -keyout {folder}/{name}.key -out {folder}/{name}.crt"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    path.write_bytes((folder / f"{name}.crt").read_bytes() + (folder / f"{name}.key").read_bytes())
    return path


class Pipeline:
    """Answers each scan; ``reason``: all fail for it. It keeps what it was sent."""

    def __init__(self) -> None:
        self.sent: list[Input] = []
        self.images: list[Any] = []
        self.reason = ""

    def submit_all(self, scans: Sequence[Input]) -> Iterator[Answer]:
        for item in scans:
            self.sent.append(item)
            assert item.volume is not None
            self.images.append(nib.Nifti1Image.from_bytes(item.volume.read()))
            if self.reason:
                yield Answer.failed(item, self.reason)
            else:
                yield Answer(item.name, item.patient, item.source, "ok", "HGG", 0.9, 1.0, 12, 1, "demo", seconds=1.0)


def stand_in(series: Any, answer: Answer, *, capture: bool = False) -> dict[str, FileDataset]:
    """An object whose UID depends on the series alone, and whose bytes depend on the time."""
    (image,) = single_frames(head((4, 4, 1)), series=series.uid)
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    image.PatientComments = str(time.time_ns())
    return {"_seg.dcm": image}


@contextmanager
def running(folder: Path, **values: Any) -> Iterator[Node]:
    node = Node(node_settings(folder, **values))
    try:
        yield node
    finally:
        node.close()


def answer_all(node: Node, pipeline: Pipeline, until: Callable[[], Any]) -> None:
    """Let the node work until something holds."""

    def holds() -> Any:
        node.round(cast(Flow, pipeline))
        return until()

    wait_until(holds)


def settle(node: Node, pipeline: Pipeline, seconds: float = 0.6) -> None:
    """Let the node work for some times of ``settle_s``."""
    end = time.monotonic() + seconds
    answer_all(node, pipeline, lambda: time.monotonic() > end)


def answers(node: Node) -> int:
    return len(kept_answers(node.spool))

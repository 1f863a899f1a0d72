"""``gliaflow dicom`` as a process between real peers: dcmtk's ``storescu`` and ``storescp``, and Orthanc."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from processes import GLIAFLOW, as_user, environment, free_port
from requirements import require_program
from sample_dicom import CANARY, uid, write_flair

SEG = "1.2.840.10008.5.1.4.1.1.66.4"


class Peers:
    """Processes of one test: the node, and an archive that stores what it gets in ``got``."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.port, self.health, self.archive_port = free_port(), free_port(), free_port()
        self.got, self.spool, self.log = folder / "got", folder / "spool", folder / "node.log"
        self.got.mkdir()
        self.series = write_flair(folder / "series")

    def start(self, *arguments: object, name: str = "archive", environ: dict[str, str] | None = None) -> Any:
        with (self.folder / f"{name}.log").open("a") as log:
            process = subprocess.Popen([*map(str, arguments)], cwd=self.folder, env=environ, stdout=log, stderr=log)
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process

    def start_archive(self) -> Any:
        return self.start(require_program("storescp"), "-aet", "ARCHIVE", "-od", self.got, self.archive_port)

    def start_node(self, *options: object, broker: str = "memory://") -> Any:
        destination = f"ARCHIVE@127.0.0.1:{self.archive_port}"
        settings = environment(self.folder, broker)
        if broker != "memory://":
            settings |= as_user("dicom", broker)
        node = self.start(
            *(*GLIAFLOW, "dicom", "--allow", "SENDER,ORTHANC", "--to", destination, "--spool", self.spool),
            *("--port", self.port, "--health-port", self.health, "--settle", 2, *options),
            name="node",
            environ=settings,
        )
        self.wait(lambda: self.get("/readyz")[1].count("true") == 3)
        return node

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except OSError:
            return 0, ""

    def send(self, *options: object, files: list[Path] | None = None, title: str = "SENDER") -> int:
        command = [require_program("storescu"), "-aet", title, "-aec", "GLIAFLOW", *options, "127.0.0.1", self.port]
        done = subprocess.run([*map(str, command), *map(str, files or self.series)], capture_output=True, timeout=60)
        return done.returncode

    def answers(self) -> dict[str, bytes]:
        """The objects that the archive has, by file name (kind and UID)."""
        return {path.name: path.read_bytes() for path in self.got.iterdir()}

    def wait(self, holds: Callable[[], Any], within_s: float = 90) -> None:
        until = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < until, "\n".join(log.read_text() for log in self.folder.glob("*.log"))
            time.sleep(0.2)


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Peers]:
    with ExitStack() as stack:
        yield Peers(tmp_path, stack)


def test_a_killed_node_an_absent_archive_and_a_resend_give_one_segmentation(peers: Peers) -> None:
    node = peers.start_node()
    echo = [require_program("echoscu"), "-aec", "GLIAFLOW", "127.0.0.1", str(peers.port), "-aet"]
    assert subprocess.run([*echo, "SENDER"], capture_output=True, timeout=30).returncode == 0
    assert subprocess.run([*echo, "OTHER"], capture_output=True, timeout=30).returncode != 0
    assert peers.send(title="OTHER") != 0
    peers.send("--abort", files=peers.series[:7])  # an abort, and then a resend, one association an image
    for path in peers.series:
        assert peers.send(files=[path]) == 0
    node.send_signal(signal.SIGKILL)
    node.wait()
    peers.start_node()  # the archive is away
    peers.wait(lambda: "a destination is away" in peers.log.read_text())
    peers.start_archive()
    peers.wait(lambda: '"object": "2_sr"' in peers.log.read_text())
    first = peers.answers()
    assert [name.split(".")[0] for name in sorted(first)] == ["SG", "SRc"]
    for path in peers.got.iterdir():
        path.unlink()
    assert peers.send() == 0  # a resend of the whole series
    peers.wait(lambda: peers.log.read_text().count('"object": "2_sr"') == 2)
    assert peers.answers() == first
    time.sleep(3)
    assert peers.log.read_text().count('"object": "1_seg"') == 2
    assert not any((peers.spool / "studies").iterdir())
    log = peers.log.read_text() + peers.get("/metrics")[1] + " ".join(map(str, peers.spool.rglob("*")))
    assert CANARY not in log
    assert uid("study", "flair") not in log


@pytest.mark.rabbitmq
def test_on_rabbitmq_orthanc_gets_the_segmentation_into_the_study(
    peers: Peers, rabbitmq_url: str, stages: Callable[..., Any]
) -> None:
    stages("preprocessor", "extractor", "generator", "classifier")
    web = free_port()
    (peers.folder / "orthanc.json").write_text(
        json.dumps(
            {
                "Name": "ARCHIVE",
                "StorageDirectory": str(peers.folder / "orthanc"),
                "HttpPort": web,
                "DicomPort": peers.archive_port,
                "DicomAet": "ARCHIVE",
                "AuthenticationEnabled": False,
                "RemoteAccessAllowed": False,
                "DicomModalities": {"node": ["GLIAFLOW", "127.0.0.1", peers.port], "s": ["SENDER", "127.0.0.1", 1]},
            }
        )
    )

    def orthanc(path: str, data: bytes | None = None) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{web}{path}", data=data, timeout=30) as answer:
            return json.loads(answer.read())

    def is_up() -> bool:
        try:
            return bool(orthanc("/system"))
        except OSError:
            return False

    peers.start(require_program("Orthanc"), peers.folder / "orthanc.json")
    peers.wait(is_up)
    peers.start_node("--allow", "ARCHIVE", "--pacs", f"ARCHIVE@127.0.0.1:{peers.archive_port}", broker=rabbitmq_url)
    for path in peers.series:
        orthanc("/instances", path.read_bytes())
    (study,) = orthanc("/studies")
    orthanc("/modalities/node/store", json.dumps({"Resources": [study], "Synchronous": True}).encode())
    peers.wait(lambda: len(orthanc(f"/studies/{study}/series")) == 3)
    kinds = {each["MainDicomTags"]["Modality"] for each in orthanc(f"/studies/{study}/series")}
    assert kinds == {"MR", "SEG", "SR"}
    (segmentation,) = orthanc("/tools/find", json.dumps({"Level": "Series", "Query": {"Modality": "SEG"}}).encode())
    (instance,) = orthanc(f"/series/{segmentation}")["Instances"]
    tags = orthanc(f"/instances/{instance}/simplified-tags")
    assert tags["SOPClassUID"] == SEG
    assert tags["PatientName"] == CANARY
    assert CANARY not in peers.log.read_text()

"""The DICOM node in its container: the answers to series of the host's ``storescu`` reach its ``storescp``.

Run by ``make test-compose``.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from compose.stack import PORT, Stack, clone
from pydicom import Dataset, dcmread
from requirements import require_program
from sample_dicom import CANARY, write_flair

SEGMENTATION, REPORT = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.33"
NODE_PORT, ARCHIVE_PORT = str(PORT + 20), str(PORT + 21)
PROFILE = ("--profile", "dicom")

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]


class Archive:
    """A ``storescp`` on the host, which keeps what the node sends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        command = [require_program("storescp"), "--aetitle", "ARCHIVE", "--output-directory", str(folder), ARCHIVE_PORT]
        self._process = subprocess.Popen(command)

    def objects(self, count: int) -> dict[str, Dataset]:
        """The objects by their SOP class, once there are ``count`` of them."""
        deadline = time.monotonic() + 120
        while len(files := list(self.folder.iterdir())) < count:
            assert time.monotonic() < deadline, files
            time.sleep(0.5)
        time.sleep(2)  # for more than that, and for the last one to be whole
        return {dataset.SOPClassUID: dataset for dataset in map(dcmread, self.folder.iterdir())}

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(20)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    archive = Archive(tmp_path_factory.mktemp("host") / "archive")
    yield archive
    archive.stop()


@pytest.fixture(scope="module")
def stack(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The pipeline with the node, which sends to the host's address on Docker's bridge."""
    folder = clone(tmp_path_factory)
    gateway = ["docker", "network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}"]
    host = subprocess.run(gateway, capture_output=True, text=True, check=True).stdout.strip()
    stack = Stack(
        folder,
        COMPOSE_PROJECT_NAME=f"gliaflow-dicom-test-{PORT}",
        GLIAFLOW_AMQP_PORT=str(PORT + 22),
        GLIAFLOW_MANAGEMENT_PORT=str(PORT + 23),
        GLIAFLOW_CONSOLE_PORT=str(PORT + 24),
        GLIAFLOW_DICOM_PORT=NODE_PORT,
        GLIAFLOW_DICOM_ALLOW="SCANNER",
        GLIAFLOW_DICOM_TO=f"ARCHIVE@{host}:{ARCHIVE_PORT}",
        GLIAFLOW_DICOM_SETTLE_S="2",
        GLIAFLOW_DICOM_CAPTURE="true",
    )
    try:
        stack.compose(*PROFILE, "up", "--build", "--wait", "--detach")
        yield stack
    finally:
        stack.compose(*PROFILE, "down", "--volumes", "--timeout", "20")


def send(folder: Path, title: str = "SCANNER") -> subprocess.CompletedProcess[str]:
    """Send a folder's images with ``storescu``, under this AE title."""
    command = [require_program("storescu"), "--aetitle", title, "--call", "GLIAFLOW", "--scan-directories"]
    command += ["127.0.0.1", NODE_PORT, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_series_comes_back_as_segmentation_report_and_picture_and_again_as_the_same_objects(
    stack: Stack, archive: Archive, tmp_path: Path
) -> None:
    write_flair(tmp_path / "series")
    done = send(tmp_path / "series")
    assert done.returncode == 0, done.stderr
    objects = archive.objects(3)
    source = dcmread(next((tmp_path / "series").iterdir()))
    for each in objects.values():
        assert (each.PatientName, each.StudyInstanceUID) == (CANARY, source.StudyInstanceUID)
    assert objects[SEGMENTATION].pixel_array.any()
    assert objects[REPORT].VerificationFlag == "UNVERIFIED"
    stack.compose(*PROFILE, "restart", "dicom")
    stack.compose(*PROFILE, "up", "--wait", "--detach")
    assert send(tmp_path / "series").returncode == 0
    uids = {each.SOPInstanceUID for each in objects.values()}
    assert {each.SOPInstanceUID for each in archive.objects(3).values()} == uids
    assert "connected, gliaflow" in stack.compose("run", "--rm", "--no-deps", "-T", "operator", "status")


def test_a_peer_that_is_not_allowed_is_rejected(stack: Stack, tmp_path: Path) -> None:
    write_flair(tmp_path / "series", series="other")
    done = send(tmp_path / "series", title="STRANGER")
    assert done.returncode != 0
    assert "Calling AE Title Not Recognized" in done.stdout + done.stderr


def test_names_of_patients_are_in_the_spool_and_the_archive_only(stack: Stack) -> None:
    metrics = "import urllib.request as u; print(u.urlopen('http://localhost:8080/metrics').read().decode())"
    text = stack.compose(*PROFILE, "logs") + stack.compose(*PROFILE, "exec", "-T", "dicom", "python3", "-c", metrics)
    text += stack.compose(*PROFILE, "exec", "-T", "dicom", "find", "/spool", "/tmp")
    assert "gliaflow_dicom_images_total" in text
    assert "_seg.dcm" in text
    assert CANARY.split("^")[0] not in text


def test_the_node_writes_only_its_spool_and_has_no_network_to_run(stack: Stack) -> None:
    (config,) = [
        service
        for name, service in json.loads(stack.compose(*PROFILE, "config", "--format", "json"))["services"].items()
        if name == "dicom"
    ]
    assert {volume["target"] for volume in config["volumes"] if not volume.get("read_only")} == {"/spool"}
    code = "import os, importlib.util as u; print(os.getuid(), os.stat('/spool').st_mode, u.find_spec('onnxruntime'))"
    assert stack.compose(*PROFILE, "exec", "-T", "dicom", "python3", "-c", code).split() == [
        "10001",
        str(0o40700),
        "None",
    ]
    inspect = ["docker", "image", "inspect", "gliaflow:test-dicom", "--format", "{{.Size}}"]
    size = int(subprocess.run(inspect, capture_output=True, text=True, check=True).stdout)
    assert size < 700e6

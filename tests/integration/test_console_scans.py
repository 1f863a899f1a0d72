"""The answers of the console are those of ``submit``, and they are still there after it was killed."""

from __future__ import annotations

import csv
import gzip
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pydicom
import pytest
from browser import ConsoleProcess
from gliaflow.opening import open_flow
from gliaflow.scans import find_inputs
from gliaflow_client.out_folder import OutFolder
from gliaflow_runtime.settings import Settings
from sample_dicom import write_flair
from sample_scans import good_scan

SAME = ("patient", "source", "grade", "p_hgg", "tumour_ml", "slices", "status", "warnings", "bundle", "trained_on")
HOSTILE = "<img src=x onerror=alert(1)>_flair.nii.gz"
TIMES = {"ContentTime", "ContentDate", "InstanceCreationTime", "InstanceCreationDate", "SeriesTime", "SeriesDate"}


@pytest.fixture
def console(tmp_path: Path) -> Iterator[ConsoleProcess]:
    console = ConsoleProcess(tmp_path, ("--out", str(tmp_path / "out")))
    console.start()
    yield console
    if console.process is not None and console.process.poll() is None:
        console.stop(signal.SIGKILL)


def send(console: ConsoleProcess, file: Path, name: str = "") -> str:
    reply = console.request("POST", f"api/scans?name={quote(name or file.name)}", file.read_bytes())
    return str(json.loads(reply)["id"])


def send_folder(console: ConsoleProcess, folder: Path) -> list[str]:
    upload = json.loads(console.request("POST", "api/folders", b""))["folder"]
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = quote(str(path.relative_to(folder.parent)))
            console.request("PUT", f"api/folders/{upload}?name={name}", path.read_bytes())
    return list(json.loads(console.request("POST", f"api/folders/{upload}", b""))["ids"])


def wait(console: ConsoleProcess, scan: str) -> dict[str, Any]:
    deadline = time.monotonic() + 90
    while (row := console.get(f"api/scans/{scan}"))["status"] in ("queued", "working"):
        assert time.monotonic() < deadline, row
        time.sleep(0.2)
    return dict(row)


def submit(paths: dict[str, Path], folder: Path) -> None:
    """Submit each path to the folder of that name, as the command does, with one start of the stages."""
    with open_flow(Settings(state=folder / "state")) as flow:
        for out, path in paths.items():
            with OutFolder(folder / out) as answers:
                answers.answer(flow, answers.assign(find_inputs([path]).inputs))


def test_answers_are_those_of_submit_and_survive_the_console(console: ConsoleProcess, tmp_path: Path) -> None:
    named = good_scan(tmp_path / "P1_flair.nii.gz")
    study = tmp_path / "P5"
    write_flair(study / "flair")
    good_scan(study / "P5_t1.nii.gz")
    submit({"file": named, "folder": study}, tmp_path)
    first = send(console, named)
    [second] = send_folder(console, study)
    hostile = send(console, named, HOSTILE)
    rows = {scan: wait(console, scan) for scan in (first, second, hostile)}

    for scan, out in ((first, "file"), (second, "folder")):
        with (tmp_path / out / "predictions.csv").open() as file:
            [submitted] = csv.DictReader(file)
        with (tmp_path / "out" / "predictions.csv").open() as file:
            [own] = [row for row in csv.DictReader(file) if row["scan"] == submitted["scan"]]
        assert {name: own[name] for name in SAME} == {name: submitted[name] for name in SAME}
        shown = rows[scan]
        assert (shown["name"], shown["status"], shown["patient"]) == (own["scan"], own["status"], own["patient"])
        assert (str(shown["p_hgg"]), str(shown["tumour_ml"])) == (own["p_hgg"], own["tumour_ml"])
        assert " | ".join(shown["warnings"]) == submitted["warnings"]
        expected = gzip.decompress((tmp_path / out / submitted["mask"]).read_bytes())
        assert gzip.decompress(console.request("GET", f"api/scans/{scan}/mask.nii.gz")) == expected
        assert gzip.decompress((tmp_path / "out" / own["mask"]).read_bytes()) == expected
        answer = console.get(f"api/scans/{scan}/row.json")
        assert {name: str(answer[name]) for name in ("scan", "source", "p_hgg", "mask")} == {
            name: own[name] for name in ("scan", "source", "p_hgg", "mask")
        }
    (tmp_path / "mask.dcm").write_bytes(console.request("GET", f"api/scans/{second}/mask.dcm"))
    ours, theirs = (pydicom.dcmread(path) for path in (tmp_path / "mask.dcm", *tmp_path.glob("folder/*_seg.dcm")))
    different = {each.keyword for each in ours if theirs[each.tag].value != each.value}
    assert different - TIMES <= {"ContributingEquipmentSequence"}

    waiting = send(console, named, "P7_flair.nii.gz")
    console.stop(signal.SIGKILL)
    assert "onerror" not in console.log
    assert "P1" not in console.log
    console.start()
    again = wait(console, waiting)
    assert (again["name"], again["p_hgg"]) == ("P7_flair", rows[first]["p_hgg"])
    assert {scan: wait(console, scan) for scan in rows} == rows
    assert len(list((tmp_path / "out").glob("*_seg.nii.gz"))) == 4

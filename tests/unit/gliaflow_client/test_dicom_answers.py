"""Answers to DICOM series: the objects beside the mask, the record of a series, and studies that are being copied."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from gliaflow.flow import Flow
from gliaflow.scans import ScanRequest, find_inputs
from gliaflow_client.inbox import Inbox, write_answer
from gliaflow_client.out_folder import OutFolder, Target
from gliaflow_proto import PredictionMessage, ScanMessage, encode, routing_key
from gliaflow_runtime.broker.interface import Broker
from pydicom import dcmread
from sample_dicom import CANARY, single_frames, uid, write, write_flair
from stand_in import StandIn

VOXELS = np.arange(8 * 10 * 12, dtype=np.int16).reshape(8, 10, 12)
FILES = ("_seg.dcm", "_seg.nii.gz", "_sr.dcm")


def predict(broker: Broker, message: ScanMessage) -> None:
    """Answer with a mask on the scan's own grid."""
    assert message.source.data is not None
    image: Any = nib.Nifti1Image.from_bytes(message.source.data)
    mask = np.zeros(image.shape, np.uint8)
    mask[2:5, 3:6, 4:7] = 1
    answer = PredictionMessage(
        id=message.id,
        scan=message.scan,
        bundle="demo@0123456789ab",
        grade="HGG",
        p_hgg=0.75,
        tumour_ml=1.0,
        slices=12,
        tumour_slices=3,
        affine=[float(x) for x in image.affine.ravel()],
        mask=mask,
        status="ok",
        trained_on="phantoms",
    )
    broker.publish(routing_key(answer), encode(answer), message_id=answer.id)


@pytest.fixture
def flow() -> Iterator[Flow]:
    with StandIn(predict) as stages:
        yield Flow(stages.broker.attach(), timeout=30)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write_flair(tmp_path / "study/P1/flair", VOXELS)
    return tmp_path / "study"


def submit(
    out: Path, flow: Flow, *paths: Path, capture: bool = False, resume: bool = True, series: str = ""
) -> list[Target]:
    """``gliaflow submit --resume``: the targets that were sent."""
    with OutFolder(out, capture=capture) as folder:
        targets = folder.assign(find_inputs(paths, ScanRequest(series=[series] if series else [])).inputs)
        todo = [each for each in targets if not (resume and folder.is_answered(each))]
        folder.keep(each for each in targets if each not in todo)
        if todo:
            folder.answer(flow, todo)
    return todo


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if not path.name.startswith(".") and path.suffix != ".csv")


def test_a_series_has_a_mask_and_dicom_objects_named_after_its_folder(study: Path, tmp_path: Path, flow: Flow) -> None:
    out = tmp_path / "out"
    submit(out, flow, study)
    assert names(out) == [f"P1_flair{ending}" for ending in FILES]
    [row] = rows(out)
    assert (row["scan"], row["patient"], row["source"]) == ("P1_flair", "P1", "P1/flair")
    assert (row["mask"], row["series"], row["warnings"]) == ("P1_flair_seg.nii.gz", uid("study", "flair"), "")
    segmentation = dcmread(out / "P1_flair_seg.dcm")
    assert (segmentation.Modality, segmentation.StudyInstanceUID) == ("SEG", uid("study"))
    assert CANARY in str(segmentation.PatientName)
    for path in out.iterdir():
        assert path.suffix == ".dcm" or CANARY.encode() not in path.read_bytes(), path.name


def test_a_capture_is_written_on_request_and_removed_with_the_answer_that_it_shows(
    study: Path, tmp_path: Path, flow: Flow
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    submit(out, flow, study)
    assert submit(out, flow, study) == []
    assert submit(out, flow, study, capture=True) != [], "the capture is missing"
    assert "P1_flair_sc.dcm" in names(out)
    submit(out, flow, study, resume=False)
    assert names(out) == [f"P1_flair{ending}" for ending in FILES]


def test_resume_answers_a_series_again_if_it_changed_or_a_file_of_its_answer_is_missing(
    study: Path, tmp_path: Path, flow: Flow
) -> None:
    out = tmp_path / "out"
    assert len(submit(out, flow, study)) == 1
    for ending in FILES:
        (out / f"P1_flair{ending}").unlink()
        assert len(submit(out, flow, study)) == 1, ending
    os.utime(study / "P1/flair/IM0003.dcm", (1, 1))
    assert submit(out, flow, study) == [], "new times, and the same bytes"
    image = dcmread(study / "P1/flair/IM0003.dcm")
    image.PixelData = bytes(len(image.PixelData))
    image.save_as(study / "P1/flair/IM0003.dcm")
    assert len(submit(out, flow, study)) == 1
    assert len(rows(out)) == 1


def test_a_series_that_grew_keeps_its_name_also_if_the_new_files_are_in_another_folder(
    tmp_path: Path, flow: Flow
) -> None:
    images, out, study = single_frames(VOXELS), tmp_path / "out", tmp_path / "study"
    write(images[:10], study / "P1/flair/a")
    [first] = submit(out, flow, study)
    write(images[10:], study / "P1/flair/b")
    [second] = submit(out, flow, study)
    assert first.scan == second.scan
    assert [row["source"] for row in rows(out)] == ["P1/flair"]
    assert nib.load(out / f"{first.scan}_seg.nii.gz").shape == VOXELS.shape


def test_a_series_in_a_folder_that_was_moved_is_known(study: Path, tmp_path: Path, flow: Flow) -> None:
    out = tmp_path / "out"
    submit(out, flow, study)
    before = rows(out)
    study.rename(tmp_path / "moved")
    assert submit(out, flow, tmp_path / "moved") == []
    assert rows(out) == before


def test_two_series_in_one_folder_are_two_scans(tmp_path: Path, flow: Flow) -> None:
    out, folder = tmp_path / "out", tmp_path / "P1"
    for study in ("1", "2"):
        write_flair(folder, VOXELS, study=study, patient="P1")
        for path in folder.glob("IM*"):
            path.rename(folder / f"{study}-{path.name.removeprefix('IM')}")
    assert [each.scan for each in submit(out, flow, folder)] == ["P1", "P1-2"]
    assert submit(out, flow, folder) == []
    assert [(row["scan"], row["patient"]) for row in rows(out)] == [("P1", "P1"), ("P1-2", "P1")]
    assert {row["series"] for row in rows(out)} == {uid(study, "flair") for study in ("1", "2")}


def test_a_file_of_the_user_is_kept_and_the_object_has_another_name(study: Path, tmp_path: Path, flow: Flow) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "P1_flair_seg.dcm").write_text("by hand")
    submit(out, flow, study)
    assert (out / "P1_flair_seg.dcm").read_text() == "by hand"
    assert dcmread(out / "P1_flair_gliaflow_seg.dcm").Modality == "SEG"
    assert "that of this answer is P1_flair_gliaflow_seg.dcm" in rows(out)[0]["warnings"]
    assert submit(out, flow, study) == []


def test_if_the_objects_cannot_be_made_the_row_says_why_and_the_mask_is_kept(
    study: Path, tmp_path: Path, flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object, **options: object) -> None:
        raise ValueError("IM0001.dcm: no StudyDate")

    monkeypatch.setattr("gliaflow_dicom.objects.make.make_objects", refuse)
    out = tmp_path / "out"
    submit(out, flow, study)
    [row] = rows(out)
    assert (row["status"], row["warnings"]) == ("ok", "no DICOM answer: IM0001.dcm: no StudyDate")
    assert names(out) == ["P1_flair_seg.nii.gz"]
    assert submit(out, flow, study) == [], "the next run could not make them either"


def test_a_refused_series_is_a_failed_row_and_the_others_are_answered(study: Path, tmp_path: Path, flow: Flow) -> None:
    out = tmp_path / "out"
    images = single_frames(VOXELS, study="2", patient="P2")
    write(images[:5] + images[6:], study / "P2")
    submit(out, flow, study)
    found = {row["scan"]: row for row in rows(out)}
    assert found["P1_flair"]["status"] == "ok"
    assert found["P2"]["status"] == "failed"
    assert "IM0005.dcm" in found["P2"]["error"]
    assert found["P2"]["series"] == uid("2", "flair")


def test_the_row_of_a_study_without_a_choice_goes_once_a_series_is_chosen(tmp_path: Path, flow: Flow) -> None:
    for name in ("a", "b"):
        write_flair(tmp_path / "study/P1" / name, VOXELS, series=name)
    study, out = tmp_path / "study", tmp_path / "out"
    submit(out, flow, study)
    assert [(row["scan"], row["status"]) for row in rows(out)] == [("a", "failed")]
    submit(out, flow, study, series=uid("study", "b"))
    assert [(row["scan"], row["status"]) for row in rows(out)] == [("b", "ok")]
    submit(out, flow, study)
    assert len(rows(out)) == 2, "without --series, several may be FLAIR again"
    assert submit(out, flow, study, series=uid("study", "b")) == []
    assert [(row["scan"], row["status"]) for row in rows(out)] == [("b", "ok")]


def test_a_table_of_nifti_scans_has_no_column_series(tmp_path: Path, flow: Flow) -> None:
    nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "P1_flair.nii")
    submit(tmp_path / "out", flow, tmp_path / "P1_flair.nii")
    assert "series" not in rows(tmp_path / "out")[0]


# a study that is being copied into the inbox of ``gliaflow watch``


class Clock:
    """The time since a file was written, as watch sees it."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def time_ns(self) -> int:
        return int((time.time() + self.ahead_s) * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("gliaflow_client.inbox.time.time_ns", clock.time_ns)
    return clock


def poll(scans: Inbox, folder: OutFolder, flow: Flow) -> list[str]:
    """One round of ``gliaflow watch``: the scans that it answers."""
    new = scans.new_scans()
    folder.answer(flow, new.targets, lambda target, answer, row: write_answer(folder, row))
    return [target.scan for target in new.targets]


def test_a_half_copied_series_is_not_answered(tmp_path: Path, flow: Flow, clock: Clock) -> None:
    inbox, images = tmp_path / "inbox", single_frames(VOXELS)
    write(images[:10], inbox / "P1/flair")
    with OutFolder(tmp_path / "out") as folder:
        scans = Inbox(inbox, folder)
        assert poll(scans, folder, flow) == []
        clock.ahead_s = 10  # a file that is no DICOM would be complete
        assert poll(scans, folder, flow) == []
        clock.ahead_s = 31
        assert poll(scans, folder, flow) == ["P1_flair"], "nothing came for the settle time"
        clock.ahead_s = 0
        write(images, inbox / "P1/flair")
        assert poll(scans, folder, flow) == [], "it grows again"
        clock.ahead_s = 31
        assert poll(scans, folder, flow) == ["P1_flair"]
        assert poll(scans, folder, flow) == []
    assert nib.load(tmp_path / "out/P1_flair_seg.nii.gz").shape == VOXELS.shape
    assert json.loads((tmp_path / "out/P1_flair.json").read_text())["series"] == uid("study", "flair")


def test_a_series_waits_for_the_rest_of_its_study(tmp_path: Path, flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which series is FLAIR, and whether there are two, depends on the others."""
    inbox = tmp_path / "inbox"
    write_flair(inbox / "P1/flair", VOXELS)
    write_flair(inbox / "P2/flair", VOXELS, study="2", patient="P2")
    copied = write(single_frames(VOXELS, series="another flair")[:4], inbox / "P1/other")
    fresh = {path.stat().st_ino for path in copied}
    monkeypatch.setattr("gliaflow_client.inbox._is_settled", lambda status, settle_s: status.st_ino not in fresh)
    with OutFolder(tmp_path / "out") as folder:
        scans = Inbox(inbox, folder)
        assert poll(scans, folder, flow) == ["P2_flair"]
        assert scans.list_left_out() == "", "what is still being copied is not listed"
        fresh.clear()
        assert poll(scans, folder, flow) == ["P1_flair"]
        assert scans.list_left_out() == "left_out.txt"


def test_an_inbox_that_is_also_out_does_not_list_the_answers(tmp_path: Path, flow: Flow, clock: Clock) -> None:
    inbox = tmp_path / "inbox"
    write_flair(inbox / "P1/flair", VOXELS)
    clock.ahead_s = 31
    with OutFolder(inbox) as folder:
        scans = Inbox(inbox, folder)
        assert poll(scans, folder, flow) == ["P1_flair"]
        assert poll(scans, folder, flow) == []
        assert scans.list_left_out() == ""


def test_left_out_txt_has_no_text_of_a_header(tmp_path: Path, flow: Flow, clock: Clock) -> None:
    write(single_frames(VOXELS, series=CANARY, change=_no_flair), tmp_path / "inbox/P1")
    clock.ahead_s = 31
    with OutFolder(tmp_path / "out") as folder:
        scans = Inbox(tmp_path / "inbox", folder)
        assert poll(scans, folder, flow) == []
        scans.list_left_out()
    text = (tmp_path / "out/left_out.txt").read_text()
    assert "series 4, 12 images: not FLAIR" in text
    assert CANARY not in text


def _no_flair(image: Any, number: int) -> None:
    image.ScanningSequence, image.InversionTime, image.EchoTime = "SE", None, 10


def test_a_folder_that_was_removed_leaves_its_answers(study: Path, tmp_path: Path, flow: Flow) -> None:
    submit(tmp_path / "out", flow, study)
    shutil.rmtree(study)
    with OutFolder(tmp_path / "out") as folder:
        assert folder.recorded_input("P1_flair") is None


def test_the_report_finds_the_series_of_an_earlier_submission(study: Path, tmp_path: Path, flow: Flow) -> None:
    submit(tmp_path / "out", flow, study)
    with OutFolder(tmp_path / "out") as folder:
        item = folder.recorded_input("P1_flair")
        assert item is not None
        assert item.volume is not None
        assert nib.Nifti1Image.from_bytes(item.volume.read()).shape == VOXELS.shape


def test_watch_reads_only_the_files_that_are_new(
    tmp_path: Path, flow: Flow, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gliaflow_plugins.dicom import choose

    inbox, seen = tmp_path / "inbox", list[str]()
    read_image = choose.read_image
    monkeypatch.setattr(choose, "read_image", lambda path: seen.append(path.parent.name) or read_image(path))
    write_flair(inbox / "P1", VOXELS)
    clock.ahead_s = 31
    with OutFolder(tmp_path / "out") as folder:
        scans = Inbox(inbox, folder)
        assert poll(scans, folder, flow) == ["P1"]
        write_flair(inbox / "P2", VOXELS, study="2", patient="P2")
        assert poll(scans, folder, flow) == ["P2"]
        assert poll(scans, folder, flow) == []
        assert seen == ["P1"] * 12 + ["P2"] * 12
        image = dcmread(inbox / "P1/IM0001.dcm")
        image.PixelData = bytes(len(image.PixelData))
        image.save_as(inbox / "P1/IM0001.dcm")
        assert poll(scans, folder, flow) == ["P1"]
        assert seen[24:] == ["P1"], "a file that was changed is read again"

"""Objects of series whose headers break DICOM's rules, or lack what is optional."""

from __future__ import annotations

import logging
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gliaflow_dicom.objects.make import make_objects
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.tag import Tag
from requirements import require_program
from sample_answers import answer_to, flair_series, voxels
from sample_dicom import write_flair

Change = Callable[[FileDataset, int], None]
KANJI = b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"


def with_values(**values: Any) -> Change:
    """Set these fields. Bytes are written as they are, also if they break the rules."""

    def change(image: FileDataset, number: int) -> None:
        for keyword, value in values.items():
            number_of_tag = tag_for_keyword(keyword)
            assert number_of_tag is not None
            tag = Tag(number_of_tag)
            if isinstance(value, bytes):
                image._dict[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)
            else:
                setattr(image, keyword, value)

    return change


def without(*keywords: str) -> Change:
    def change(image: FileDataset, number: int) -> None:
        for keyword in keywords:
            delattr(image, keyword)

    return change


def with_private_tags(image: FileDataset, number: int) -> None:
    image.private_block(0x11, "SCANNER", create=True).add_new(1, "LO", "private text")


def objects(change: Change, folder: Path, *, capture: bool = False) -> dict[str, Dataset]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about what the tests write
        paths = write_flair(folder, voxels(), change=change)
    series = flair_series(paths)
    return make_objects(series, answer_to(series), capture=capture)


def warnings_in(report: Dataset) -> list[str]:
    items = report.ContentSequence[-1].ContentSequence
    return [each.TextValue for each in items if each.ConceptNameCodeSequence[0].CodeValue == "WARNING"]


HEADERS: dict[str, Change] = {
    "plain": with_values(),
    "optional fields missing": without(
        *("PatientSex", "PatientBirthDate", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "SeriesNumber"),
        *("ReferringPhysicianName", "Manufacturer", "PositionReferenceIndicator", "SpecificCharacterSet", "Modality"),
    ),
    "no patient": without("PatientName", "PatientID"),
    "anonymised": with_values(
        PatientName="",
        PatientBirthDate="",
        StudyDate="",
        StudyTime="",
        AccessionNumber="",
        PatientIdentityRemoved="YES",
    ),
    "age": with_values(PatientAge="045Y"),
    "private tags": with_private_tags,
    "long UIDs": with_values(StudyInstanceUID="1." + "2" * 62, FrameOfReferenceUID="1." + "3" * 62),
    "long description": with_values(StudyDescription=b"x" * 90, Manufacturer=b"y" * 70),
    "long number": with_values(SliceThickness=b"5.0000000000000001"),
    "bad dates": with_values(StudyDate=b"20200231", PatientBirthDate=b"UNKNOWN ", StudyTime=b"99:99 "),
    "bad codes": with_values(PatientSex=b"male", PatientAge=b"45  "),
    "control characters": with_values(StudyDescription=b"a\x07b\r\n"),
    "lossy": with_values(LossyImageCompression="01"),
    "Latin-1": with_values(SpecificCharacterSet="ISO_IR 100", PatientName=b"M\xfcller^J\xfcrgen "),
    "Japanese": with_values(SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=KANJI),
    "large series number": with_values(SeriesNumber=b"2147483647"),
    "negative series number": with_values(SeriesNumber=b"-3"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_dciodvfy_finds_no_error(name: str, tmp_path: Path) -> None:
    program = require_program("dciodvfy")
    for ending, made in objects(
        HEADERS[name], tmp_path / "in", capture=name in ("plain", "anonymised", "lossy")
    ).items():
        made.save_as(tmp_path / ending, enforce_file_format=True)
        done = subprocess.run([program, "-new", tmp_path / ending], capture_output=True, text=True, errors="replace")
        assert [line for line in done.stderr.splitlines() if "Error" in line] == []


@pytest.mark.parametrize(
    ("charset", "name", "text"),
    [
        ("ISO_IR 100", b"M\xfcller^J\xfcrgen ", "Müller^Jürgen"),
        (["", "ISO 2022 IR 87"], KANJI, "Yamada^Tarou=山田^太郎"),
        ("GB18030", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab ", "Wang^XiaoDong=王^小东"),
        ("ISO_IR 144", b"\xbb\xee\xda^X ", "Люк^X"),
    ],
)
def test_names_are_converted_to_utf_8(charset: Any, name: bytes, text: str, tmp_path: Path) -> None:
    for made in objects(with_values(SpecificCharacterSet=charset, PatientName=name), tmp_path).values():
        assert made.SpecificCharacterSet == "ISO_IR 192"
        assert str(made.PatientName) == text
        assert made.Modality == "SEG" or warnings_in(made) == []


@pytest.mark.parametrize("charset", ["", "ISO_IR 999"])
def test_an_unknown_character_set_is_a_doubt(charset: str, tmp_path: Path) -> None:
    made = objects(with_values(SpecificCharacterSet=charset, PatientName=b"M\xfcller^J\xfcrgen "), tmp_path)
    assert str(made["_seg.dcm"].PatientName) == "Müller^Jürgen"
    assert warnings_in(made["_sr.dcm"]) == [
        "the images state no known character set, so these are read as Latin-1: PatientName"
    ]


def test_a_codec_of_python_is_no_character_set(tmp_path: Path) -> None:
    """pydicom would decode the values with it, and PatientID would become another one."""
    paths = write_flair(tmp_path, voxels(), change=with_values(SpecificCharacterSet="ISO_IR 100"))
    for path in paths:
        path.write_bytes(path.read_bytes().replace(b"ISO_IR 100", b"utf-16    "))
    series = flair_series(paths)
    assert make_objects(series, answer_to(series))["_seg.dcm"].PatientID == "ID-CANARYNAME^PATIENT-P1"


def test_what_breaks_the_rules_is_left_empty_and_named(tmp_path: Path) -> None:
    made = objects(with_values(StudyDate=b"20201345", PatientSex=b"male", PatientAge=b"45  "), tmp_path)
    assert (made["_seg.dcm"].StudyDate, made["_seg.dcm"].PatientSex) == ("", "")
    assert "PatientAge" not in made["_seg.dcm"]
    (warning,) = warnings_in(made["_sr.dcm"])
    assert "PatientSex, StudyDate, PatientAge" in warning
    assert "20201345" not in warning


def test_old_forms_of_dates_and_times_are_converted(tmp_path: Path) -> None:
    made = objects(with_values(PatientBirthDate=b"1970.01.02", StudyTime=b"10:11:12", PatientSex=b"f "), tmp_path)
    segmentation = made["_seg.dcm"]
    assert (segmentation.PatientBirthDate, segmentation.StudyTime, segmentation.PatientSex) == (
        "19700102",
        "101112",
        "F",
    )


def test_identifiers_are_kept_at_any_length(tmp_path: Path) -> None:
    made = objects(with_values(PatientID=b"7" * 70, AccessionNumber=b"8" * 20), tmp_path)
    assert {(each.PatientID, each.AccessionNumber) for each in made.values()} == {("7" * 70, "8" * 20)}


def test_a_lossy_source_is_stated(tmp_path: Path) -> None:
    made = objects(with_values(LossyImageCompression="01"), tmp_path, capture=True)
    assert made["_seg.dcm"].LossyImageCompression == made["_sc.dcm"].LossyImageCompression == "01"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (with_values(FrameOfReferenceUID=b"not-a-uid "), "IM0001.dcm: FrameOfReferenceUID is not a UID"),
        (with_values(PatientID=b"one\\two"), "IM0001.dcm: PatientID has several values"),
        (
            lambda image, number: setattr(image, "PatientName", f"N{number == 5}"),
            "IM0006.dcm: its PatientName differs from that of .*IM0001.dcm",
        ),
    ],
    ids=["UID", "two identifiers", "two patients"],
)
def test_a_header_that_leaves_the_patient_or_the_place_open_is_refused(
    change: Change, why: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=why):
        objects(change, tmp_path)


def test_nothing_of_the_headers_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        objects(with_values(PatientName=b"CANARY" * 20), tmp_path, capture=True)
    assert "CANARY" not in caplog.text

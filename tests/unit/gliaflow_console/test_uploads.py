"""The untrusted names of uploaded files, and the places of these files."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from gliaflow_console.uploads import BadName, Upload, clean_name


@pytest.fixture
def upload(tmp_path: Path) -> Upload:
    return Upload("0" * 32, tmp_path / "upload")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("scan.nii.gz", "scan.nii.gz"),
        ("P1/flair/IM0001", "P1/flair/IM0001"),
        ("/P1/./flair//IM0001", "P1/flair/IM0001"),  # as a browser gives the path of a dropped folder
        ("P1\\flair\\IM0001", "P1/flair/IM0001"),  # as programs on Windows do
        ("<img src=x onerror=alert(1)>.nii.gz", "<img src=x onerror=alert(1)>.nii.gz"),  # only a page could run it
        ("Müller 脑.nii.gz", "Müller 脑.nii.gz"),
        ("..nii", "..nii"),
    ],
)
def test_a_file_keeps_its_name(name: str, path: str) -> None:
    assert str(clean_name(name)) == path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "name: missing: name the file"),
        ("/", "name: missing"),
        ("../scan.nii.gz", "leads out of its folder"),
        ("P1/../../scan.nii.gz", "leads out of its folder"),
        ("..\\..\\scan.nii.gz", "leads out of its folder"),
        ("a\0b.nii.gz", "control character"),
        ("a\nb.nii.gz", "control character"),
        ("a\x1b[2Jb.nii.gz", "control character"),
        ("a\udcffb.nii.gz", "control character"),
        ("x" * 256, "too long"),
        ("ü" * 128, "too long"),  # 256 bytes
        ("/".join(["x" * 200] * 6), "too long"),
        ("x/" * 17 + "y", "too long"),
    ],
)
def test_a_name_under_which_no_file_can_be_stored_is_refused_without_quoting_it(name: str, reason: str) -> None:
    with pytest.raises(BadName, match=reason) as caught:
        clean_name(name)
    assert len(name) < 2 or name not in str(caught.value)


def test_files_are_inside_the_upload(upload: Upload) -> None:
    part = upload.part()
    part.write_bytes(b"data")
    upload.add(part, "/etc/passwd")
    assert (upload.folder / "files" / "etc" / "passwd").read_bytes() == b"data"
    assert not part.exists()


def test_a_second_file_of_the_same_name_replaces_the_first(upload: Upload) -> None:
    for data in (b"first", b"second"):
        part = upload.part()
        part.write_bytes(data)
        upload.size += len(data)
        upload.add(part, "a.nii")
    assert upload.place("a.nii").read_bytes() == b"second"
    assert upload.size == len(b"second")


def test_a_file_is_not_a_folder_as_well(upload: Upload) -> None:
    upload.place("P1").write_bytes(b"")
    with pytest.raises(BadName, match="rename one of them"):
        upload.place("P1/scan.nii")
    upload.place("P2/scan.nii")
    with pytest.raises(BadName, match="rename one of them"):
        upload.place("P2")


def test_a_name_that_the_disk_does_not_take_is_refused(upload: Upload, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")  # as a Windows share for a name with ?

    part = upload.part()
    part.write_bytes(b"data")
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(BadName, match="rename the file"):
        upload.add(part, "what?.nii")


def test_no_file_is_added_to_a_closed_upload(upload: Upload) -> None:
    part = upload.part()
    part.write_bytes(b"late")
    upload.close()
    with pytest.raises(FileNotFoundError):
        upload.add(part, "late.nii")
    upload.reopen()
    upload.add(part, "late.nii")
    assert (upload.files / "late.nii").read_bytes() == b"late"


def test_a_late_file_creates_no_folder_of_a_discarded_upload(upload: Upload) -> None:
    upload.discard()
    for late in (upload.part, lambda: upload.place("patient/scan.nii.gz")):
        with pytest.raises(FileNotFoundError):
            late()
    assert not upload.folder.exists()


def test_the_named_root_is_the_folder_that_was_uploaded(upload: Upload) -> None:
    upload.place("P1/a.nii").write_bytes(b"")
    assert upload.named_root() == upload.files / "P1"
    upload.place("b.nii").write_bytes(b"")
    assert upload.named_root() == upload.files


def test_the_number_of_files_is_bounded(upload: Upload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gliaflow_console.uploads.MAX_FILES", 1)
    upload.place("a.nii")
    upload.place("a.nii")
    with pytest.raises(BadName, match="more than 1 files"):
        upload.place("b.nii")

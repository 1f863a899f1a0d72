"""Which files of a folder are FLAIR scans, and why the others are left out."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gliaflow_plugins.cohorts.scan_files import Chooser, summary
from gliaflow_plugins.cohorts.walk import unusable, walk

FREESURFER = ["orig", "nu", "norm", "brain", "brainmask", "aseg", "wm", "rawavg", "orig/001", "T1"]

# the files, those that are scans, and for some of the others the reason
FOLDERS: dict[str, tuple[list[str], list[str], dict[str, str]]] = {
    "sequences by name alone": (
        ["P1/FLAIR.nii.gz", "P1/T1.nii.gz", "P1/T1CE.nii.gz", "P1/T2.nii.gz", "P1/seg.nii.gz"],
        ["P1/FLAIR.nii.gz"],
        {"P1/T2.nii.gz": "its name says T2: another sequence", "P1/seg.nii.gz": "its name says seg: a mask"},
    ),
    "any case": (["P1_FLAIR.NII.GZ", "P1_SEG.NII.GZ", "P1_T1.Nii"], ["P1_FLAIR.NII.GZ"], {}),
    "names that say nothing": (["P1.nii.gz", "P2.nii", "P2_seg.nii"], ["P1.nii.gz", "P2.nii"], {}),
    "an unknown file beside a FLAIR scan": (
        ["P1_flair.nii.gz", "P1_survey.nii.gz"],
        ["P1_flair.nii.gz"],
        {"P1_survey.nii.gz": "P1_flair.nii.gz beside it is the FLAIR scan"},
    ),
    "an unknown series of the same patient": (
        ["P1/3_AX_FLAIR/P1_3.nii.gz", "P1/4_Survey/P1_4.nii.gz", "P2/P2.nii.gz"],
        ["P1/3_AX_FLAIR/P1_3.nii.gz", "P2/P2.nii.gz"],
        {"P1/4_Survey/P1_4.nii.gz": "P1_3.nii.gz in 3_AX_FLAIR is the FLAIR scan"},
    ),
    "a name that continues another": (
        ["P1.nii.gz", "P1_brain.nii.gz", "P1_2.nii.gz"],
        ["P1.nii.gz", "P1_2.nii.gz"],
        {"P1_brain.nii.gz": "its name does not say FLAIR, and P1.nii.gz is beside it"},
    ),
    "nothing says which": (
        ["P1/a.nii.gz", "P1/b.nii.gz", "P1/mask.nii.gz", "P2/scan.nii.gz", "P2/image.nii.gz"],
        [],
        {"P1/a.nii.gz": "nothing says which of 2 files is the FLAIR scan (a.nii.gz, b.nii.gz)"},
    ),
    "unknown files beside named sequences": (
        [f"bert/mri/{name}.mgz" for name in FREESURFER],
        [],
        {"bert/mri/orig/001.mgz": "the files beside it are called T1"},
    ),
    "versions of one scan": (
        ["P1/flair.nii.gz", "P1/flair.nii", "P1/flair_brain.nii.gz", "P1/flair (1).nii.gz", "P1/orig/FLAIRraw.mgz"],
        ["P1/flair.nii.gz"],
        {
            "P1/flair.nii": "the same image: flair.nii.gz is taken",
            "P1/flair_brain.nii.gz": "another version of the same scan: flair.nii.gz is taken",
        },
    ),
    "a further word in the name": (
        ["P1/flair.nii.gz", "P1/flair_overlay.nii.gz", "P1_flair.nii", "P1_flair_anna.nii", "P1_flair_2.nii"],
        ["P1/flair.nii.gz", "P1_flair.nii", "P1_flair_2.nii"],
        {"P1_flair_anna.nii": "another version of the same scan: P1_flair.nii is taken"},
    ),
    "visits in the name": (
        ["P1_pre_flair.nii", "P1_post_flair.nii", "P1_T1_FLAIR.nii"],
        ["P1_pre_flair.nii", "P1_post_flair.nii"],
        {"P1_T1_FLAIR.nii": "its name says T1 and FLAIR: a visit or another sequence?"},
    ),
    "two visits": (
        ["P1/baseline/FLAIR.nii.gz", "P1/followup/FLAIR.nii.gz"],
        ["P1/baseline/FLAIR.nii.gz", "P1/followup/FLAIR.nii.gz"],
        {},
    ),
    "two runs": (
        ["sub-01/anat/sub-01_run-2_FLAIR.nii.gz", "sub-01/anat/sub-01_run-1_FLAIR.nii.gz"],
        ["sub-01/anat/sub-01_run-1_FLAIR.nii.gz"],
        {"sub-01/anat/sub-01_run-2_FLAIR.nii.gz": "another version"},
    ),
    "folders of images and labels": (
        ["images/P1.nii.gz", "labels/P1.nii.gz", "labels/P2_flair.nii.gz"],
        ["images/P1.nii.gz"],
        {"labels/P1.nii.gz": "it is in labels: a mask", "labels/P2_flair.nii.gz": "it is in labels: a mask"},
    ),
    "folders of label maps": (
        [
            *("images/P1.nii.gz", "GT/P1.nii.gz", "truth/P1.nii.gz", "manual/P1.nii.gz", "output/P1.nii.gz"),
            *("pred/P1.nii.gz", "annotations/P1.nii.gz", "results/fold_0/validation/P1.nii.gz"),
            *("P2.nii.gz", "P2/P2_trans.nii.gz"),
        ],
        ["P2.nii.gz", "images/P1.nii.gz"],
        {
            "GT/P1.nii.gz": "it is in GT: a mask",
            "output/P1.nii.gz": "it is in output: a mask",
            "results/fold_0/validation/P1.nii.gz": "nnU-Net's predictions",
            "P2/P2_trans.nii.gz": "named as MONAI names its results",
        },
    ),
    "the phase of a scan": (
        ["sub-04_part-mag_FLAIR.nii.gz", "sub-04_part-phase_FLAIR.nii.gz"],
        ["sub-04_part-mag_FLAIR.nii.gz"],
        {"sub-04_part-phase_FLAIR.nii.gz": "its name says part-phase: another sequence"},
    ),
    "folders of sequences": (["FLAIR/P1.nii.gz", "T1/P1.nii.gz"], ["FLAIR/P1.nii.gz"], {}),
    "a header and its voxels": (["P1.hdr", "P1.img"], ["P1.hdr"], {}),
    "channels without dataset.json": (
        ["B_001_0000.nii.gz", "B_001_0001.nii.gz", "B_002_0000.nii.gz", "B_002_0001.nii.gz"],
        [],
        {"B_001_0000.nii.gz": "no dataset.json says which is FLAIR"},
    ),
    "hidden and derived": (
        [
            "sub-01/anat/sub-01_FLAIR.nii.gz",
            ".git/annex/objects/aa/MD5E-s1--1.nii.gz",
            ".datalad/x.nii",
            "sub-01/._sub-01_FLAIR.nii.gz",
            "__MACOSX/P1.nii.gz",
            "derivatives/x/sub-01_FLAIR.nii.gz",
            "sourcedata/sub-01/flair.nii.gz",
        ],
        ["sub-01/anat/sub-01_FLAIR.nii.gz"],
        {"derivatives": "what a pipeline derived", "sourcedata": "or their source"},
    ),
    "other formats": (
        ["P1/cut.npz", "P1/notes.txt", "P1/plan.json", "P2/P2.mnc"],
        [],
        {"P2/P2.mnc": "convert it to NIfTI"},
    ),
}


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


def choose(folder: Path) -> tuple[list[str], dict[str, str]]:
    chooser = Chooser()
    scans = [str(Path(scan.path).relative_to(folder)) for scan in chooser.folder(folder)]
    return scans, {str(Path(each.path).relative_to(folder)): each.why for each in chooser.left_out}


@pytest.mark.parametrize("name", FOLDERS)
def test_of_a_folder_the_flair_scans_are_taken_and_the_rest_is_left_out_with_a_reason(
    tmp_path: Path, name: str
) -> None:
    files, expected, reasons = FOLDERS[name]
    scans, left_out = choose(write(tmp_path / "study", *files))
    assert scans == sorted(expected)
    for path, why in reasons.items():
        assert why in left_out[path]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    study = write(tmp_path / "study", "P2/flair.nii.gz")
    store = write(tmp_path / "store", "P1/flair.nii.gz")
    (study / "P1").symlink_to(store / "P1")
    (study / "again").symlink_to(study / "P2")
    (study / "loop").symlink_to(study)
    (study / "up").symlink_to(tmp_path)
    scans, left_out = choose(study)
    assert scans == ["P1/flair.nii.gz", "P2/flair.nii.gz"]
    assert set(left_out) == {"again", "loop", "up"}


def test_one_file_under_two_names_is_one_scan(tmp_path: Path) -> None:
    study = write(tmp_path, "P1/flair.nii.gz", "P2/notes.txt")
    (study / "P2/flair.nii.gz").symlink_to(study / "P1/flair.nii.gz")
    (study / "P3_flair.nii.gz").hardlink_to(study / "P1/flair.nii.gz")
    scans, left_out = choose(study)
    assert scans == ["P1/flair.nii.gz"]
    assert left_out["P2/flair.nii.gz"] == f"the same file as {study / 'P1/flair.nii.gz'}"
    assert "P3_flair.nii.gz" in left_out


def test_a_file_that_was_not_fetched_is_named_with_the_command(tmp_path: Path) -> None:
    for name in ("sub-1_FLAIR.nii.gz", "sub-1_seg.nii.gz"):
        (tmp_path / name).symlink_to(".git/annex/objects/aa/bb/MD5E-s1--1.nii.gz/MD5E-s1--1.nii.gz")
    (tmp_path / "sub-2_FLAIR.nii.gz").write_text("/annex/objects/MD5E-s1--1.nii.gz\n")
    (tmp_path / "sub-3_FLAIR.nii.gz").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "sub-4_FLAIR.nii.gz").symlink_to("gone.nii.gz")
    scans, left_out = choose(tmp_path)
    assert scans == []
    assert f"datalad get {tmp_path}/sub-1_FLAIR.nii.gz" in left_out["sub-1_FLAIR.nii.gz"]
    assert left_out["sub-1_seg.nii.gz"] == "its name says seg: a mask"
    assert f"git annex get {tmp_path}/sub-2_FLAIR.nii.gz" in left_out["sub-2_FLAIR.nii.gz"]
    assert "git lfs pull" in left_out["sub-3_FLAIR.nii.gz"]
    assert left_out["sub-4_FLAIR.nii.gz"] == f"a broken link: {tmp_path}/gone.nii.gz does not exist"


def test_dicom_is_known_by_its_ending_or_else_by_its_first_bytes(tmp_path: Path) -> None:
    write(tmp_path, "P1/notes", "P1/1.2.840.113", "P1/a.dcm", "P1/b.IMA", "P1/P1_seg.dcm")
    for name in ("IM0001", "1.2.840.114.5", "flair.nii", "DICOMDIR", "report.pdf"):
        (tmp_path / "P1" / name).write_bytes(bytes(128) + b"DICM")
    (tmp_path / "P1/lfs.dcm").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "P1/annex.dcm").symlink_to(".git/annex/objects/aa/bb/MD5E-s1--1.dcm/MD5E-s1--1.dcm")
    chooser = Chooser()
    assert [scan.path.name for scan in chooser.folder(tmp_path)] == ["flair.nii"], "by its ending, it is NIfTI"
    assert [path.name for path in chooser.dicom] == ["1.2.840.114.5", "IM0001", "P1_seg.dcm", "a.dcm", "b.IMA"]
    assert [(each.path.name, each.kind) for each in chooser.left_out] == [
        ("annex.dcm", "unfetched file"),
        ("lfs.dcm", "unfetched file"),
    ]


def test_an_unreadable_folder_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "P1/flair.nii.gz", "P2/flair.nii.gz")
    monkeypatch.setattr("os.scandir", _refuse(tmp_path / "P1", os.scandir))
    assert choose(tmp_path) == (["P2/flair.nii.gz"], {"P1": "cannot be opened: Permission denied"})


def _refuse(folder: Path, scandir: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def refused(path: Any) -> Any:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    return refused


def test_a_summary_counts_by_kind_and_names_what_the_user_can_change(tmp_path: Path) -> None:
    names = ["P1_flair", "P1_t1", "P1_t2", "P1_seg", "P1_survey", "P2_flair", "P2_survey", "P2_mask", "P2_roi"]
    write(tmp_path, *(f"{name}.nii.gz" for name in names))
    chooser = Chooser()
    chooser.folder(tmp_path)
    counts, doubtful = summary(chooser.left_out)
    assert counts == (
        "3 masks (seg, mask, roi), 2 other sequences (t1, t2), 2 doubtful files (P1_survey.nii.gz, P2_survey.nii.gz)"
    )
    assert doubtful.startswith(f"{tmp_path}/P1_survey.nii.gz: its name does not say FLAIR")
    assert doubtful.endswith("(and 1 more)")
    assert summary([]) == []


@pytest.mark.parametrize("loop", ["a", "P2_flair.nii.gz"])
def test_a_link_to_itself_is_left_out_and_the_rest_is_read(tmp_path: Path, loop: str) -> None:
    (tmp_path / "P1_flair.nii.gz").touch()
    (tmp_path / loop).symlink_to(loop)
    chooser = Chooser()
    assert [scan.path.name for scan in chooser.folder(tmp_path)] == ["P1_flair.nii.gz"]
    assert [(each.path.name, each.why) for each in chooser.left_out] == [
        (loop, f"a link that leads nowhere: {os.strerror(errno.ELOOP)}")
    ]


def test_a_file_that_is_removed_during_the_search_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        (tmp_path / f"P{number}_flair.nii.gz").touch()

    def scandir(folder: Path) -> list[os.DirEntry[str]]:
        entries = list(real(folder))
        (tmp_path / "P0_flair.nii.gz").unlink()  # as rsync or an archive does
        return entries

    real = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    chooser, left_out = Chooser(), list[Any]()
    files = walk(tmp_path, left_out)
    assert [path.name for path in files] == ["P1_flair.nii.gz", "P2_flair.nii.gz"]
    (tmp_path / "P1_flair.nii.gz").unlink()
    assert tmp_path / "P2_flair.nii.gz" in chooser.usable(files)
    assert chooser.left_out == left_out == []


def test_a_file_whose_status_cannot_be_read_is_unusable(tmp_path: Path) -> None:
    reason = unusable(tmp_path / f"{'a' * 300}_flair.nii.gz")
    assert reason is not None
    assert reason.why == f"cannot be opened: {os.strerror(errno.ENAMETOOLONG)}"

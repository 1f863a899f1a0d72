"""The scans that files, folders, globs and URLs stand for: their names, patients and sources."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pytest
from gliaflow.places import StoreFiles
from gliaflow.scans import Input, ScanRequest, as_inputs, find_inputs, find_one
from gliaflow_runtime.errors import UsageError


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(
        tmp_path / "study",
        "a/p1_flair.nii.gz",
        "a/p1_seg.nii.gz",
        "a/p1_t1ce.nii.gz",
        "b/p2_FLAIR.nii",
        "b/UCSF-PDGM-0004_tumor_segmentation.nii.gz",
        "c/BraTS-GLI-00001-000-t2f.nii.gz",
        "c/BraTS-GLI-00001-000-t1n.nii.gz",
        "d/plain.nii",
        "d/notes.txt",
        "d/.hidden.nii",
        "d/broken.dcm",
    )


def inputs(*paths: object, **said: Any) -> list[Input]:
    return find_inputs([str(path) for path in paths], ScanRequest(**said)).inputs


def names(*paths: object) -> list[str]:
    return [item.name for item in inputs(*paths)]


def test_masks_other_sequences_and_dicom_in_a_folder_are_left_out_with_a_reason(folder: Path) -> None:
    found = find_inputs([folder])
    assert [item.name for item in found.inputs] == ["p1_flair", "p2_FLAIR", "BraTS-GLI-00001-000-t2f", "plain"]
    assert {each.path.name: each.kind for each in found.left_out} == {
        "p1_seg.nii.gz": "mask",
        "p1_t1ce.nii.gz": "other sequence",
        "UCSF-PDGM-0004_tumor_segmentation.nii.gz": "mask",
        "BraTS-GLI-00001-000-t1n.nii.gz": "other sequence",
        "broken.dcm": "DICOM file",
    }


def test_a_file_that_is_named_alone_is_always_submitted_with_a_warning_if_its_name_says_otherwise(folder: Path) -> None:
    assert inputs(folder / "a/p1_flair.nii.gz")[0].warnings == ()
    assert inputs(folder / "d/plain.nii")[0].warnings == ()
    assert inputs(folder / "a/p1_seg.nii.gz")[0].warnings == ("its name says seg: a mask; is it a FLAIR scan?",)
    assert "another sequence" in find_one(folder / "a/p1_t1ce.nii.gz").warnings[0]
    assert names(folder / "d/notes.txt") == ["notes.txt"]


@pytest.mark.parametrize(
    "paths", [["a/*"], ["a/p1_seg.nii.gz", "a/p1_flair.nii.gz", "a/p1_t1ce.nii.gz"], ["a", "a/p*"]]
)
def test_several_files_or_a_glob_are_treated_like_a_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, paths: list[str]
) -> None:
    monkeypatch.chdir(folder)
    found = find_inputs(paths)
    assert [(item.name, str(item.path)) for item in found.inputs] == [("p1_flair", "a/p1_flair.nii.gz")]
    assert [each.path.name for each in found.left_out] == ["p1_seg.nii.gz", "p1_t1ce.nii.gz"]


def test_a_glob_of_everything_passes_over_what_a_pipeline_derived(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, "derivatives/x/p9_flair.nii.gz")
    monkeypatch.chdir(folder)
    assert names("*") == names("a", "b", "c", "d", "derivatives") == names(folder)


def test_a_scan_given_twice_is_submitted_once(folder: Path) -> None:
    found = find_inputs([str(folder / "*/*flair*"), str(folder / "a/p1_flair.nii.gz")])
    assert [item.name for item in found.inputs] == ["p1_flair", "p2_FLAIR"][: len(found.inputs)]
    assert found.left_out == []


def test_nothing_but_other_files_is_an_error_that_says_what_they_are(folder: Path) -> None:
    for path in (folder / "a/p1_[st]*", folder / "a/p1_seg.nii.gz"):
        paths = [path] if "*" in path.name else [path, folder / "a/p1_t1ce.nii.gz"]
        with pytest.raises(UsageError, match=r"no FLAIR scan in .*p1_seg.nii.gz: its name says seg: a mask; .*alone"):
            find_inputs(paths)


# Names: a file's name is that of its answers, and must not change when other files are added


def test_a_name_depends_on_the_scans_own_path_and_not_on_the_others(tmp_path: Path) -> None:
    study = write(tmp_path / "study", "P1/baseline/FLAIR.nii.gz")
    first = inputs(study)[0]
    assert (first.name, first.patient, first.relative) == ("P1_baseline_FLAIR", "P1", "P1/baseline/FLAIR.nii.gz")
    write(study, "P0/baseline/FLAIR.nii.gz", "P1/followup/FLAIR.nii.gz")
    found = {item.relative: item for item in inputs(study)}
    assert len(found) == 3
    assert found[first.relative] == first


def test_the_patients_folder_names_a_scan_also_above_what_was_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = write(tmp_path / "study", "P1/ses-1/flair.nii.gz")
    same = [inputs(study)[0], inputs(study / "P1")[0], inputs(study / "P1/ses-1/flair.nii.gz")[0]]
    monkeypatch.chdir(study / "P1/ses-1")
    same += [inputs(".")[0], inputs("flair.nii.gz")[0], inputs("../ses-1/*")[0], inputs((study / "P1").as_uri())[0]]
    assert {(item.name, item.patient) for item in same} == {("P1_ses-1_flair", "P1")}


@pytest.mark.parametrize("name", ["flair.nii.gz", "P1/flair.nii.gz"])
def test_the_folders_of_gliaflow_itself_name_no_patient(name: str, tmp_path: Path) -> None:
    root = tmp_path / "P7" / "uploads" / "0b0bbd3df872"
    [found] = find_inputs([write(root, name)], root=root).inputs
    assert (found.name, found.patient) == (("P1_flair", "P1") if "P1" in name else ("flair", "flair"))


def test_equal_names_get_the_folders_in_front(tmp_path: Path) -> None:
    study = write(
        tmp_path / "study", "x/P1_flair.nii.gz", "y/P1_flair.nii.gz", "P2/5_flair.nii.gz", "P3/5_flair.nii.gz"
    )
    assert [(item.name, item.patient) for item in inputs(study)] == [
        ("P2_5_flair", "P2"),
        ("P3_5_flair", "P3"),
        ("x_P1_flair", "P1"),
        ("y_P1_flair", "P1"),
    ]


def test_an_empty_path_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(tmp_path, "P1_flair.nii.gz"))
    for paths in ([""], [" "], ["P1_flair.nii.gz", ""]):
        with pytest.raises(UsageError, match="PATH is empty"):
            find_inputs(paths)


def test_a_doubt_about_the_patient_is_a_warning(tmp_path: Path) -> None:
    study = write(tmp_path / "study", "x/P1_flair.nii.gz", "y/P1_flair.nii.gz")
    text = "patient: x/P1_flair.nii.gz and y/P1_flair.nii.gz count as scans of one patient, P1"
    assert [item.warnings for item in inputs(study)] == [(text,), (text,)]


def test_every_name_is_unique_short_and_utf8(tmp_path: Path) -> None:
    awkward = ["foo.nii", "D_foo-2.nii", "FOO.nii", "x" * 240 + ".nii", "with space::and.nii"]
    folder = write(tmp_path / "D", *awkward)
    (folder / b"bad\xff.nii".decode("utf-8", "surrogateescape")).touch()
    found = inputs(folder)
    assert len({item.name.casefold() for item in found}) == len(awkward) + 1
    for item in found:
        assert len(item.name.encode("utf-8")) < 200
        item.relative.encode("utf-8")


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["."], ["P1/v1/flair.nii", "P2/flair.nii"]),
        (["P1"], ["v1/flair.nii"]),
        (["P1", "P2"], ["P1/v1/flair.nii", "P2/flair.nii"]),
        (["P2/flair.nii"], ["flair.nii"]),
        (["P2/flair.nii", "P1/v1/flair.nii"], ["P1/v1/flair.nii", "P2/flair.nii"]),
        (["*/flair.nii"], ["P2/flair.nii"]),
    ],
)
@pytest.mark.parametrize("url", [False, True], ids=["paths", "URLs"])
def test_the_source_is_the_path_relative_to_what_was_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: list[str], expected: list[str], url: bool
) -> None:
    monkeypatch.chdir(write(tmp_path, "P1/v1/flair.nii", "P2/flair.nii"))
    texts = [f"file://{tmp_path / path}" for path in paths] if url else paths
    assert sorted(item.relative for item in inputs(*texts)) == expected


def test_a_url_is_searched_as_a_folder_is(folder: Path) -> None:
    write(folder, ".git/x.nii", "derivatives/p3_flair.nii", "imagesTr/B_1_0000.nii", "imagesTr/B_1_0001.nii")
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "FLAIR"}}))
    local, remote = find_inputs([folder / "imagesTr"]), find_inputs([(folder / "imagesTr").as_uri()])
    assert [item.name for item in local.inputs] == [item.name for item in remote.inputs] == ["B_1_0001"]
    (folder / "dataset.json").unlink()
    shutil_names = [item.name for item in find_inputs([folder.as_uri()]).inputs]
    assert shutil_names == names(folder)
    assert inputs((folder / "a/p1_seg.nii.gz").as_uri())[0].warnings


@pytest.mark.parametrize("missing", ["nowhere.nii", "*.nothing", "empty"])
def test_a_path_without_a_scan_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=missing.replace("*", r"\*")):
        find_inputs([missing])


def test_a_file_that_was_not_fetched_is_refused_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "P1_flair.nii.gz").symlink_to(".git/annex/objects/aa/MD5E-s1--1.nii.gz")
    for path in (tmp_path / "P1_flair.nii.gz", tmp_path):
        with pytest.raises(UsageError, match=r"P1_flair.nii.gz.*datalad get .*P1_flair.nii.gz"):
            find_inputs([path])


def test_the_flair_channel_of_a_decathlon_folder_is_found(tmp_path: Path) -> None:
    images = write(tmp_path, "imagesTr/BRATS_306.nii.gz") / "imagesTr"
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "T1w", "1": "FLAIR"}}))
    assert inputs(images)[0].channel == "1"
    assert inputs(images, channel="3")[0].channel == "3"
    assert inputs(images, channel="t1w")[0].channel == "0"
    with pytest.raises(UsageError, match="T2"):
        inputs(images, channel="T2")
    with pytest.raises(UsageError, match="T2"):
        inputs(images / "BRATS_306.nii.gz", channel="T2")


def test_a_channel_of_a_4d_file_elsewhere_is_a_number(tmp_path: Path) -> None:
    write(tmp_path, "P1.nii.gz")
    assert inputs(tmp_path, channel="2")[0].channel == "2"
    with pytest.raises(UsageError, match="channel: 'T2' is not a number"):
        inputs(tmp_path, channel="T2")


@pytest.mark.parametrize("grade", ["LGG", "lgg", " Lgg "])
def test_a_grade_is_accepted_in_any_case(tmp_path: Path, grade: str) -> None:
    write(tmp_path, "p1_flair.nii.gz")
    assert [item.grade for item in inputs(tmp_path, grade=grade)] == ["LGG"]
    with pytest.raises(UsageError, match="grade: 'II' is not one of HGG, LGG"):
        inputs(tmp_path, grade="II")


def test_python_warns_of_what_is_left_out(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"left out: 1 mask \(seg\), 1 other sequence \(t1ce\)"):
        assert [item.name for item in as_inputs(folder / "a")] == ["p1_flair"]


@pytest.fixture
def store() -> Iterator[Any]:
    store = fsspec.filesystem("memory")
    yield store
    store.rm("/", recursive=True)


def test_a_store_is_searched_by_the_rules_of_a_disk(tmp_path: Path, store: Any) -> None:
    files = [
        "sub-1/anat/sub-1_FLAIR.nii.gz",
        "sub-1/anat/sub-1_T1w.nii.gz",
        "sub-1/derivatives/sub-1_desc-bet_FLAIR.nii.gz",
        "derivatives/bet/sub-1/sub-1_FLAIR.nii.gz",
        "derivatives/bet/sub-2/sub-2_FLAIR.nii.gz",
        "sourcedata/sub-1/3_FLAIR.nii.gz",
        ".git/annex/sub-1_FLAIR.nii.gz",
        "sub-1/.sub-1_FLAIR.nii.gz",
        "__MACOSX/sub-1_FLAIR.nii.gz",
    ]
    write(tmp_path / "b", *files)
    for name in files:
        store.pipe(f"/b/{name}", b"x")
    on_disk, in_store = find_inputs([tmp_path / "b"]), find_inputs(["memory://b"])
    assert [item.relative for item in in_store.inputs] == [item.relative for item in on_disk.inputs] == files[:1]
    assert sorted((each.path.relative_to("/b").as_posix(), each.why) for each in in_store.left_out) == sorted(
        (each.path.relative_to(tmp_path / "b").as_posix(), each.why) for each in on_disk.left_out
    )
    assert [item.relative for item in find_inputs(["memory://b/sub-*"]).inputs] == files[:1], "a glob of folders"


def test_a_store_is_listed_once_and_dataset_json_is_read_only_where_it_is(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        store.pipe(f"/b/P{number}/flair.nii.gz", b"x")
    requests: list[tuple[str, str]] = []
    for name in ("cat_file", "info", "ls"):
        plain = getattr(store, name)
        note = partial(lambda name, plain, path, *a, **k: requests.append((name, path)) or plain(path, *a, **k), name)
        monkeypatch.setattr(store, name, partial(note, plain))
    assert len(inputs("memory://b")) == 5
    assert not [request for request in requests if request[1].startswith("/b/P") and request[0] != "ls"]
    store.pipe("/b/dataset.json", json.dumps({"modality": {"0": "MRI"}}).encode())
    requests.clear()
    assert len(inputs("memory://b")) == 5
    assert requests.count(("cat_file", "/b/dataset.json")) == 1


def test_no_more_of_a_dataset_json_in_a_store_is_read_than_is_allowed(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gliaflow.places.MAX_JSON_BYTES", 10)
    store.pipe("/b/dataset.json", b" " * 1000)
    assert StoreFiles(store).read(PurePosixPath("/b/dataset.json")) == b" " * 11

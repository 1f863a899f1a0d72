"""The scans that files, folders and globs stand for."""

import json

import pytest
from gliaflow.scans import find_inputs
from gliaflow_runtime.errors import UsageError


@pytest.fixture
def folder(tmp_path):
    for name in (
        "a/p1_flair.nii.gz",
        "a/p1_seg.nii.gz",
        "a/p1_t1ce.nii.gz",
        "b/p2_FLAIR.nii",
        "b/UCSF-PDGM-0004_tumor_segmentation.nii.gz",
        "c/BraTS-GLI-00001-000-t2f.nii.gz",
        "c/BraTS-GLI-00001-000-t1n.nii.gz",
        "c/plain.nii",
        "c/notes.txt",
        "c/.hidden.nii",
        "c/broken.dcm",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def names(paths, **options):
    return [item.name for item in find_inputs([str(p) for p in paths], **options).inputs]


def test_masks_and_other_sequences_in_a_folder_are_skipped(folder):
    assert names([folder]) == ["p1_flair", "p2_FLAIR", "BraTS-GLI-00001-000-t2f", "broken", "plain"]


def test_a_file_given_by_name_is_always_submitted(folder):
    assert names([folder / "a/p1_seg.nii.gz", folder / "c/notes.txt"]) == ["p1_seg", "notes.txt"]


def test_a_scan_given_twice_is_submitted_once(folder):
    assert names([folder / "*/*flair*", folder / "a/p1_flair.nii.gz"]) == ["p1_flair"]


def test_the_patient_is_read_from_the_name(folder):
    assert [i.patient for i in find_inputs([str(folder / "a"), str(folder / "c")]).inputs][:2] == [
        "p1",
        "BraTS-GLI-00001-000",
    ]


def test_scans_with_the_same_file_name_get_different_names(tmp_path):
    for place in ("x/flair.nii.gz", "y/flair.nii.gz", "y/flair.nii"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).touch()
    assert names([tmp_path]) == ["x_flair", "y_flair", "y_flair-2"]


def test_every_name_is_unique_short_and_utf8(tmp_path):
    folder = tmp_path / "D"
    folder.mkdir()
    awkward = ["foo.nii", "foo.nii.gz", "D_foo-2.nii", "FOO.nii", "x" * 240 + ".nii", "with space::and.nii"]
    for name in awkward:
        (folder / name).touch()
    (folder / b"bad\xff.nii".decode("utf-8", "surrogateescape")).touch()
    found = names([folder])
    assert len({name.casefold() for name in found}) == len(awkward) + 1
    for name in found:
        assert len(name.encode("utf-8")) < 200


@pytest.mark.parametrize("missing", ["nowhere.nii", "*.nothing", "empty"])
def test_a_path_without_a_scan_is_an_error(tmp_path, monkeypatch, missing):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=missing.replace("*", r"\*")):
        find_inputs([missing])


def test_the_flair_channel_of_a_decathlon_folder_is_found(tmp_path):
    images = tmp_path / "imagesTr"
    images.mkdir()
    (images / "BRATS_306.nii.gz").touch()
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "T1w", "1": "FLAIR"}}))
    assert find_inputs([str(images)]).inputs[0].channel == "1"
    assert find_inputs([str(images)], channel="3").inputs[0].channel == "3"
    assert find_inputs([str(images)], channel="t1w").inputs[0].channel == "0"
    with pytest.raises(UsageError, match="T2"):
        find_inputs([str(images)], channel="T2")

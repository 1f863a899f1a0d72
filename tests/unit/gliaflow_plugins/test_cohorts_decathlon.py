"""MSD and nnU-Net folders: ``dataset.json`` says which files are FLAIR scans, for all commands alike."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path, PurePath
from typing import Any

import pytest
from gliaflow_plugins.cohorts.decathlon import Datasets
from gliaflow_plugins.cohorts.layouts import Msd
from gliaflow_plugins.cohorts.scan_files import Chooser, LocalFiles

FOUR = {"0": "T1", "1": "T1ce", "2": "T2", "3": "T2-FLAIR"}


def dataset(folder: Path, described: dict[str, Any], *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def scans(folder: Path) -> list[tuple[str, str, str | None]]:
    """Each scan that ``submit`` finds: file, case, channel."""
    return [(scan.path.name, scan.case, scan.channel) for scan in Chooser().folder(folder)]


def cohort(folder: Path) -> list[tuple[str, str, str | None]]:
    """The same for ``cohort``."""
    read = Msd().read(folder)
    assert read is not None
    return [(Path(str(case.scan)).name, case.id, case.channel) for case in read.cases]


@pytest.mark.parametrize(
    ("described", "images", "labels", "expected"),
    [
        pytest.param(
            {"modality": {"0": "FLAIR", "1": "T1w"}},
            ["BRATS_306.nii.gz"],
            ["BRATS_306.nii.gz"],
            [("BRATS_306.nii.gz", "BRATS_306", "0")],
            id="4-D",
        ),
        pytest.param(
            {"modality": {"0": "FLAIR"}},
            ["glioma_0000.nii.gz", "glioma_0001.nii.gz"],
            ["glioma_0000.nii.gz", "glioma_0001.nii.gz"],
            [("glioma_0000.nii.gz", "glioma_0000", "0"), ("glioma_0001.nii.gz", "glioma_0001", "0")],
            id="four-digit cases",
        ),
        pytest.param(
            {"modality": {"0": "T1w", "1": "FLAIR"}},
            ["glioma_0000.nii.gz", "glioma_0001.nii.gz"],
            [],
            [("glioma_0000.nii.gz", "glioma_0000", "1"), ("glioma_0001.nii.gz", "glioma_0001", "1")],
            id="four-digit cases without labels",
        ),
        pytest.param(
            {"channel_names": {"0": "T1", "1": "FLAIR"}},
            ["g_001_0000.nii.gz", "g_001_0001.nii.gz", "g_002_0000.nii.gz", "g_002_0001.nii.gz"],
            ["g_001.nii.gz", "g_002.nii.gz"],
            [("g_001_0001.nii.gz", "g_001", None), ("g_002_0001.nii.gz", "g_002", None)],
            id="one file a channel",
        ),
        pytest.param(
            {"channel_names": FOUR, "file_ending": ".nrrd", "labels": {"background": 0, "whole": [1, 2]}},
            [f"P_7_000{n}.nrrd" for n in range(4)],
            ["P_7.nrrd"],
            [("P_7_0003.nrrd", "P_7", None)],
            id="another ending",
        ),
        pytest.param(
            {"channel_names": {"0": "FLAIR"}},
            ["a_0000.nii.gz", "b_0000.nii.gz"],
            [],
            [("a_0000.nii.gz", "a", None), ("b_0000.nii.gz", "b", None)],
            id="one channel",
        ),
        pytest.param(
            {"modality": ["T1", "FLAIR"]}, ["P1.nii.gz"], [], [("P1.nii.gz", "P1", "1")], id="a list of channels"
        ),
    ],
)
def test_submit_and_cohort_find_the_same_scans(
    tmp_path: Path, described: dict[str, Any], images: list[str], labels: list[str], expected: list[Any]
) -> None:
    names = [*(f"imagesTr/{name}" for name in images), *(f"labelsTr/{name}" for name in labels)]
    folder = dataset(tmp_path / "Dataset005_Glioma", described, *names)
    assert scans(folder) == expected
    assert scans(folder / "imagesTr") == expected
    assert scans(tmp_path) == expected, "the folder of all datasets"
    assert cohort(folder) == expected
    for name, case, channel in expected:
        one = Chooser().one(folder / "imagesTr" / name)
        assert (one.case, one.channel, one.warnings) == (case, channel, ())


def test_what_is_left_out_is_named_by_channel_and_folder(tmp_path: Path) -> None:
    names = [f"images{part}/P_{number}_000{n}.nii.gz" for part, number in (("Tr", 1), ("Ts", 2)) for n in range(4)]
    folder = dataset(tmp_path, {"channel_names": FOUR}, *names, "labelsTr/P_1.nii.gz", "atlas.nii.gz", "preds/P_1.nii")
    chooser = Chooser()
    assert [scan.path.name for scan in chooser.folder(folder)] == ["P_1_0003.nii.gz", "P_2_0003.nii.gz"]
    why = {each.path.name: each.why for each in chooser.left_out}
    assert why["P_1_0000.nii.gz"] == "channel 0 is T1"
    assert why["P_1.nii.gz"] == "a label map, in labelsTr"
    assert "not in an images folder" in why["atlas.nii.gz"]
    assert "not in an images folder" in why["P_1.nii"]


def test_one_file_that_is_no_flair_channel_gets_a_warning(tmp_path: Path) -> None:
    folder = dataset(tmp_path, {"channel_names": FOUR}, "imagesTr/P_1_0000.nii.gz", "labelsTr/P_1.nii.gz")
    assert Chooser().one(folder / "imagesTr/P_1_0000.nii.gz").warnings == ("channel 0 is T1; is it a FLAIR scan?",)
    assert Chooser().one(folder / "labelsTr/P_1.nii.gz").warnings == ("a label map, in labelsTr; is it a FLAIR scan?",)


def test_another_channel_can_be_chosen_by_its_name(tmp_path: Path) -> None:
    folder = dataset(tmp_path, {"channel_names": FOUR}, "imagesTr/P_1_0001.nii.gz", "imagesTr/P_1_0003.nii.gz")
    assert [scan.path.name for scan in Chooser(wanted="t1ce").folder(folder)] == ["P_1_0001.nii.gz"]


def test_a_set_without_flair_is_refused_with_its_channels(tmp_path: Path) -> None:
    folder = dataset(tmp_path, {"channel_names": {"0": "CT", "1": "PET"}}, "imagesTr/P_1_0000.nii.gz")
    chooser = Chooser()
    assert chooser.folder(folder) == []
    assert chooser.left_out[0].why == "dataset.json names no FLAIR among its channels (CT, PET)"
    read = Msd().read(folder)
    assert read is not None
    assert read.problems == ["dataset.json: no FLAIR among its channels (CT, PET)"]


def test_a_case_without_its_flair_file_is_a_problem_of_the_cohort(tmp_path: Path) -> None:
    names = ["imagesTr/P_1_0003.nii.gz", "imagesTr/P_2_0000.nii.gz", "labelsTr/P_1.nii.gz", "labelsTr/P_2.nii.gz"]
    read = Msd().read(dataset(tmp_path, {"channel_names": FOUR}, *names))
    assert read is not None
    assert [case.id for case in read.cases] == ["P_1"]
    assert read.problems == ["P_2: a mask in labelsTr, and no FLAIR scan in imagesTr"]


def test_nnunets_predictions_are_not_scans(tmp_path: Path) -> None:
    folder = dataset(tmp_path, {"channel_names": FOUR}, "plans.json", "fold_0/validation/P_1.nii.gz", "P_2.nii.gz")
    chooser = Chooser()
    assert chooser.folder(folder / "fold_0/validation") == chooser.folder(folder) == []


def test_a_dataset_json_of_another_purpose_says_nothing(tmp_path: Path) -> None:
    folder = dataset(tmp_path, {"name": "ours", "modality": "MR"}, "P1/P1_flair.nii.gz", "P1/P1_t1.nii.gz")
    assert [name for name, _, _ in scans(folder)] == ["P1_flair.nii.gz"]


def test_each_dataset_json_and_folder_is_read_once(tmp_path: Path) -> None:
    class Counted(LocalFiles):
        def names(self, folder: PurePath) -> list[str]:
            counts["listed", folder] += 1
            return super().names(folder)

        def read(self, path: PurePath) -> bytes | None:
            counts["read", path] += 1
            return super().read(path)

    counts = Counter[tuple[str, PurePath]]()
    files = [f"P{number}/flair.nii.gz" for number in range(5)]
    folder = dataset(tmp_path, {"modality": {"0": "MRI"}}, *files)
    datasets = Datasets(Counted())
    assert [datasets.of(folder / name) for name in files] == [None] * 5, "it is beside no images folder"
    assert counts["read", folder / "dataset.json"] == counts["listed", folder] == 1
    assert max(counts.values()) == 1

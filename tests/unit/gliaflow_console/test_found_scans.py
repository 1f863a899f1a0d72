"""The scans of an upload have the names, patients and warnings that ``submit`` gives them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from gliaflow.scans import find_inputs
from gliaflow_console.found_scans import NotTaken, find_scans
from gliaflow_console.uploads import Upload
from sample_dicom import write_flair
from sample_scans import good_scan


def upload_of(files: dict[str, Path], folder: Path) -> Upload:
    upload = Upload("0" * 32, folder / "P9" / "masks" / "uploads" / ("0" * 32))  # folders that would name a patient
    for name, file in files.items():
        shutil.copyfile(file, upload.place(name))
    return upload


@pytest.mark.parametrize("name", ["P1_flair.nii.gz", "flair.nii.gz", "1.nii.gz", "P1_t1.nii.gz", "P1_seg.nii.gz"])
def test_one_file_is_a_scan_as_in_a_folder_that_names_no_patient(name: str, tmp_path: Path) -> None:
    file = good_scan(tmp_path / name)
    [found] = find_scans(upload_of({name: file}, tmp_path), alone=True, series=[]).inputs
    [submitted] = find_inputs([file], root=tmp_path).inputs
    assert (found.name, found.patient, found.relative) == (submitted.name, submitted.patient, submitted.relative)
    assert found.warnings == submitted.warnings
    assert "P9" not in found.patient
    assert "0000" not in found.name


def test_a_folder_has_the_scans_of_submit(tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    for name in ("P1/visit1/flair.nii.gz", "P1/visit2/flair.nii.gz", "P2/t1.nii.gz", "P2/x_flair.nii.gz"):
        (cohort / name).parent.mkdir(parents=True, exist_ok=True)
        good_scan(cohort / name)
    write_flair(cohort / "P3" / "dicom")
    files = {str(path.relative_to(tmp_path)): path for path in cohort.rglob("*") if path.is_file()}
    found = find_scans(upload_of(files, tmp_path), alone=False, series=[])
    submitted = find_inputs([cohort])

    def facts(inputs: list) -> list:  # type: ignore[type-arg]
        return [(each.name, each.patient, each.relative, each.series, each.warnings) for each in inputs]

    assert facts(found.inputs) == facts(submitted.inputs)
    assert [name for name, _ in found.left_out] == [str(each.path.relative_to(tmp_path)) for each in submitted.left_out]


def test_a_series_is_chosen_by_its_number_or_refused_by_name(tmp_path: Path) -> None:
    files = write_flair(tmp_path / "P3" / "dicom")
    upload = upload_of({f"P3/{path.name}": path for path in files}, tmp_path)
    with pytest.raises(NotTaken, match="no such series"):
        find_scans(upload, alone=False, series=["no such series"])


def test_no_text_has_the_path_of_the_store(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    for files in ({"notes.txt": empty}, {"P1/notes.txt": empty}, {"P1/a_t1.nii": empty, "P2/b_t1.nii": empty}):
        upload = upload_of(files, tmp_path)
        with pytest.raises(NotTaken, match="no FLAIR scan in") as caught:
            find_scans(upload, alone=False, series=[])
        texts = [str(caught.value), *(text for pair in caught.value.left_out for text in pair)]
        assert not any(str(tmp_path) in text or upload.id in text for text in texts)
        upload.discard()


def test_the_sequences_of_a_scan_are_found_in_its_upload(tmp_path: Path) -> None:
    file = good_scan(tmp_path / "file.nii")
    upload = upload_of({"P1/P1_flair.nii": file, "P1/P1_t1ce.nii": file}, tmp_path)
    found = find_scans(upload, [], ["t1ce"], alone=False)
    assert [[*item.sequences] for item in found.inputs] == [["t1ce"]]
    assert found.left_out == []

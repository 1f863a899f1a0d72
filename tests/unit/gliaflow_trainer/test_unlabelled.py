"""Scans without labels: they are of other patients, and the work that was made of them belongs to their files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

import small
from gliaflow_plugins.contracts import Case, PluginError
from gliaflow_trainer.leaks import refuse_known
from gliaflow_trainer.slices import CutScan
from gliaflow_trainer.unlabelled import cut_unlabelled, folder_name
from rich.progress import Progress


def test_files_that_changed_are_an_error_that_names_all_of_the_runs_work(tmp_path: Path) -> None:
    """Features and answers of the old files are in other folders of the work than their slices."""
    case = small.cohort(small.write_cohort(tmp_path / "others", 1, 1)).cases[0]
    work = tmp_path / "out.work"
    with Progress(disable=True) as bar:
        (scan,) = cut_unlabelled([case], small.PROFILE, work, bar)
        assert not scan.mask.any(), "no mask is read"
        assert scan.label is None
        again = small.cohort(small.write_cohort(tmp_path / "again", 2, 1)).cases[1]
        with pytest.raises(PluginError, match=f"^{work}: has slices of files that changed .*; remove it"):
            cut_unlabelled([replace(case, scan=again.scan)], small.PROFILE, work, bar)


def test_other_scans_patients_or_sequences_have_another_work_folder_and_a_grade_changes_nothing() -> None:
    case, other = (Case(name, Path(name), None, "P1", None) for name in ("a", "b"))  # type: ignore[arg-type]
    name = folder_name([case, other], small.PROFILE)
    assert name == folder_name([other, replace(case, grade="IV", label="HGG")], small.PROFILE)
    for another in ([case], [case, replace(other, patient="P2")], [case, replace(other, channel="1")]):
        assert folder_name(another, small.PROFILE) != name


def scan_of(patient: str, voxels: str, **headers: str) -> tuple[Case, CutScan]:
    volume: Any = SimpleNamespace(**headers)
    case = Case(f"{patient}_scan", volume, None, patient, None)
    scan: Any = SimpleNamespace(case=case.id, patient=patient, voxels=voxels)
    return case, scan


@pytest.mark.parametrize(
    ("other", "leak"),
    [
        (scan_of("Anonymous", "1"), "'Anonymous_scan' of --unlabelled has the voxels of 'TCGA-CS-4942_scan'"),
        (scan_of("tcga_cs_4942", "9"), "is of a patient with the name of 'TCGA-CS-4942'"),
        (scan_of("TCGA-CS-4942-01A", "9"), "is of a patient with the name of 'TCGA-CS-4942'"),
        (scan_of("Anonymous", "9", patient_id="7"), "one PatientID: .*TCGA-CS-4942.*Anonymous.*are they one patient"),
        (scan_of("Anonymous", "9", study="1.2.3"), "one StudyInstanceUID: .*are they one patient"),
    ],
)
def test_a_scan_of_a_patient_of_the_cohort_is_a_leak_with_its_remedy(other: tuple[Case, CutScan], leak: str) -> None:
    case, scan = scan_of("TCGA-CS-4942", "1", patient_id="7", study="1.2.3")
    cohort, stranger = ([case], [scan]), scan_of("P2", "8", patient_id="8", study="")
    unlabelled = ([stranger[0], other[0]], [stranger[1], other[1]])
    with Progress(disable=True) as bar:
        with pytest.raises(PluginError, match=rf"take these scans out .* --unlabelled, or give --allow\n(?s:.*){leak}"):
            refuse_known(unlabelled, cohort, False, bar, "--unlabelled")
        assert len(refuse_known(unlabelled, cohort, True, bar, "--unlabelled")) == 1
        assert refuse_known(([stranger[0]], [stranger[1]]), cohort, False, bar, "--unlabelled") == []


def test_two_cohorts_that_count_their_patients_are_not_a_leak_by_these_numbers() -> None:
    cohort, other = scan_of("007", "1"), scan_of("7", "9")
    with Progress(disable=True) as bar:
        assert refuse_known(([other[0]], [other[1]]), ([cohort[0]], [cohort[1]]), False, bar, "--source") == []
        with pytest.raises(PluginError, match="--unlabelled"):
            refuse_known(([other[0]], [other[1]]), ([cohort[0]], [cohort[1]]), False, bar, "--unlabelled")

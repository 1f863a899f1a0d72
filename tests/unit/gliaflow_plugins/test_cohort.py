"""``gliaflow cohort``: which reader is taken, which class a grade is, and what is said of a folder."""

from __future__ import annotations

import io
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from gliaflow_cli.commands.cohort import show_cohort
from gliaflow_cli.main import app
from gliaflow_plugins.cohorts.read import read_cohort
from gliaflow_plugins.cohorts.volumes import NiftiFile
from gliaflow_plugins.contracts import Case, Cohort, PluginError
from gliaflow_plugins.registry import Registry, load_registry
from gliaflow_runtime.errors import UsageError
from rich.console import Console
from typer.testing import CliRunner

REAL = Path(os.environ.get("GLIAFLOW_TEST_DATA", Path(__file__).parents[4] / "shared/data"))
REGISTRY = load_registry()


class Mine:
    """A plugin's reader, which knows every folder."""

    name = "mine"

    def __init__(self, *cases: tuple[str, str, str | None], error: Exception | None = None) -> None:
        self.cases, self.error = cases, error

    def read(self, folder: Path) -> Cohort | None:
        if self.error:
            raise self.error
        scan = NiftiFile(folder / "scan.nii")
        return Cohort("mine", [Case(name, scan, scan, patient, grade) for name, patient, grade in self.cases])


def only(*cases: tuple[str, str, str | None]) -> Registry:
    return Registry(readers={"mine": Mine(*cases)})


def folders(folder: Path, grades: dict[str, str]) -> Path:
    """A folder a patient, with grades in participants.tsv."""
    for patient in grades:
        (folder / patient).mkdir()
        for kind in ("flair", "seg"):
            (folder / patient / f"{patient}_{kind}.nii.gz").touch()
    rows = [f"{patient}\t{grade}\n" for patient, grade in grades.items()]
    (folder / "participants.tsv").write_text("participant_id\tgrade\n" + "".join(rows))
    return folder


def labels(cohort: Cohort) -> list[str | None]:
    return [case.label for case in cohort.cases]


def test_which_grades_are_high_is_a_choice(tmp_path: Path) -> None:
    grades = {"a": "1", "b": "II", "c": "3", "d": "IV", "e": "HGG", "f": "LGG", "g": "n/a"}
    folders(tmp_path, grades)
    assert labels(read_cohort(tmp_path, REGISTRY)) == ["LGG", "LGG", "HGG", "HGG", "HGG", "LGG", None]
    brats = read_cohort(tmp_path, REGISTRY, high=["4"])
    assert labels(brats) == ["LGG", "LGG", "LGG", "HGG", "HGG", "LGG", None]
    assert [case.grade for case in brats.cases] == ["I", "II", "III", "IV", "HGG", "LGG", None], "as found"
    assert (brats.layout, brats.reader) == ("one folder a patient", "folders")
    for high in ("V", "LGG", ""):
        with pytest.raises(PluginError, match="high"):
            read_cohort(tmp_path, REGISTRY, high=[high])


def test_a_table_goes_over_what_the_folder_tells(tmp_path: Path) -> None:
    folders(tmp_path, {"HF0001": "II", "HF0002": "II", "HF0003": "IV"})
    table = tmp_path / "clinical.csv"
    table.write_text("Sample,Disease,Stage\nHF0001,GBM,4\nHF2,GBM,?\n")
    cohort = read_cohort(tmp_path, REGISTRY, grades=table, grade_column="Stage")
    assert [case.grade for case in cohort.cases] == ["IV", "II", "IV"]
    assert cohort.problems == ["HF0003: no row in clinical.csv"]
    with pytest.raises(PluginError, match=r"no column is called grade \(columns: Sample.*--grade-column"):
        read_cohort(tmp_path, REGISTRY, grades=table)
    with pytest.raises(OSError, match="gone"):
        read_cohort(tmp_path, REGISTRY, grades=tmp_path / "gone.csv")


def test_what_is_odd_is_told_case_by_case(tmp_path: Path) -> None:
    registry = only(("s1", "p", "II"), ("s2", "p", "IV"), ("s3", "q", "III"), ("s4", "q", "IV"), ("s5", "r", "bad"))
    cohort = read_cohort(tmp_path, registry)
    assert labels(cohort) == [None, None, "HGG", "HGG", None]
    assert cohort.problems == [
        "s5: grade 'bad' is not understood",
        "p: 2 scans",
        "q: 2 scans",
        "p: grades II and IV are both high and low; left out of both",
        "every scan with a class is HGG (high: III, IV)",
        "s5: no grade",
    ]


def test_what_no_scan_has_is_told_once(tmp_path: Path) -> None:
    cohort = read_cohort(tmp_path, only(("a", "a", None), ("b", "b", None)))
    assert cohort.problems == ["no scan has a grade (--grades TABLE gives them)"]


def test_ids_are_unique_and_names_hold_nothing_that_a_terminal_obeys(tmp_path: Path) -> None:
    cohort = read_cohort(
        tmp_path, only(("A", "p", "II"), ("a", "q", "II"), ("a-2", "r", "II"), ("\x1b[2J\udc80", "\n", "II"))
    )
    assert [case.id for case in cohort.cases] == ["A", "a-2", "a-2-2", "?[2J?"]
    assert cohort.cases[3].patient == "?"


def test_an_installed_reader_is_asked_before_those_that_ship_and_a_name_decides(tmp_path: Path) -> None:
    folders(tmp_path, {"a": "II"})
    registry = load_registry()
    registry.readers["mine"] = Mine(("x", "x", "II"))
    assert read_cohort(tmp_path, registry).reader == "mine"
    assert read_cohort(tmp_path, registry, reader="folders").reader == "folders"
    with pytest.raises(PluginError, match="reader brats does not know this layout"):
        read_cohort(tmp_path, registry, reader="brats")
    with pytest.raises(PluginError, match="no usable reader 'none'"):
        read_cohort(tmp_path, registry, reader="none")


def test_a_broken_reader_takes_nothing_down_but_itself(tmp_path: Path) -> None:
    folders(tmp_path, {"a": "II"})
    registry = load_registry()
    registry.readers["mine"] = Mine(error=RuntimeError("oh no"))
    cohort = read_cohort(tmp_path, registry)
    assert cohort.reader == "folders"
    assert "reader mine failed: RuntimeError: oh no" in cohort.problems
    with pytest.raises(PluginError, match=r"reader mine failed on .*oh no"):
        read_cohort(tmp_path, registry, reader="mine")


def test_a_folder_that_nobody_knows_or_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"no reader knows this layout \(readers: csv, brats"):
        read_cohort(tmp_path, REGISTRY)
    with pytest.raises(FileNotFoundError, match="gone: no such folder or table"):
        read_cohort(tmp_path / "gone", REGISTRY)


def shown(folder: Path, **options: object) -> tuple[int, list[str]]:
    console = Console(file=io.StringIO(), record=True, width=200, markup=False, highlight=False)
    code = show_cohort(folder, console, **options)  # type: ignore[arg-type]
    return code, [" ".join(line.split()) for line in console.export_text().splitlines()]


def test_the_command_says_what_it_understood(tmp_path: Path) -> None:
    folders(tmp_path, {"a": "II", "b": "III", "c": "IV", "d": ""})
    assert shown(tmp_path) == (
        0,
        [
            "layout one folder a patient (reader folders)",
            "scans 4",
            "patients 4",
            "grades II 1, III 1, IV 1, not known 1",
            "classes HGG 2 (III, IV → HGG), LGG 1 (II → LGG), none 1",
            "masks 4",
            "problem d: no grade",
        ],
    )
    assert "classes HGG 1 (IV → HGG), LGG 2 (II, III → LGG), none 1" in shown(tmp_path, high="IV")[1]
    with pytest.raises(UsageError, match="--grades"):
        shown(tmp_path, grade_column="Grade")


def test_the_commands_flags_arrive(tmp_path: Path) -> None:
    folders(tmp_path, {"a": "", "b": ""})
    (tmp_path / "t.csv").write_text("who,a,stage\na,9,III\nb,9,GBM\n")
    flags = ["--reader", "folders", "--high", "IV", "--patient-column", "who", "--grade-column", "stage"]
    done = CliRunner().invoke(app, ["cohort", str(tmp_path), "--grades", str(tmp_path / "t.csv"), *flags])
    assert "HGG 1 (IV → HGG), LGG 1 (III → LGG)" in done.output
    assert done.exit_code == 0


def test_nothing_that_can_be_used_is_a_code_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "HGG/A").mkdir(parents=True)
    code, lines = shown(tmp_path)
    assert code == 1
    assert lines[1:4] == ["scans 0", "patients 0", "grades none"]
    assert lines[-1] == "problem HGG/A: no A_flair.nii.gz or .nii"


def test_a_check_opens_every_image(tmp_path: Path) -> None:
    folders(tmp_path, dict.fromkeys("abcde", "II"))

    def save(name: str, voxels: np.ndarray) -> None:
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / name[0] / f"{name}.nii.gz")

    ramp = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    for patient in "abce":
        save(f"{patient}_flair", ramp)
        save(f"{patient}_seg", (ramp > 50).astype(np.uint8))
    save("b_seg", np.zeros((3, 4, 6), np.uint8))
    save("c_flair", np.full((3, 4, 5), 7, np.uint8))
    (tmp_path / "d/d_seg.nii.gz").unlink()
    code, lines = shown(tmp_path, check=True)
    assert code == 0
    bad = [line.removeprefix(f"bad {tmp_path}/") for line in lines if line.startswith("bad")]
    assert bad == [
        "b/b_seg.nii.gz: shape [3, 4, 6], but its scan has [3, 4, 5]",
        "b/b_seg.nii.gz: the mask is empty",
        "c/c_flair.nii.gz: every voxel has the same value",
        "d/d_flair.nii.gz: the file is empty",
    ]
    assert lines[-1] == "checked 2 of 5 scans are well"


def test_a_check_takes_the_flair_of_a_decathlon_file(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    volumes = np.zeros((3, 4, 5, 2), np.uint8)
    volumes[0, 0, 0, 1] = 1
    nib.save(nib.Nifti1Image(volumes, np.eye(4)), tmp_path / "imagesTr/B_1.nii.gz")
    nib.save(nib.Nifti1Image(volumes[..., 1], np.eye(4)), tmp_path / "labelsTr/B_1.nii.gz")
    (tmp_path / "dataset.json").write_text('{"modality": {"0": "T1", "1": "FLAIR"}}')
    assert shown(tmp_path, check=True)[1][-1] == "checked 1 of 1 scans are well"


@pytest.mark.skipif(not REAL.is_dir(), reason="no real scans here (GLIAFLOW_TEST_DATA names their folder)")
def test_real_patients_of_two_grades() -> None:
    cohort = read_cohort(REAL / "tcga-lgg", REGISTRY)
    assert (len(cohort.cases), labels(cohort).count("HGG"), labels(cohort).count("LGG")) == (71, 37, 33)
    assert all(case.mask is not None for case in cohort.cases)
    assert cohort.problems == ["TCGA-HT-A61B: no grade"]
    again = read_cohort(REAL / "tcga-lgg", REGISTRY, grades=REAL / "kaggle_3m/data.csv")
    assert [case.grade for case in again.cases] == [case.grade for case in cohort.cases]

"""``gliaflow cohort``: what it prints about a folder of scans, and what ``--check`` finds in the images."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from gliaflow_cli.main import app
from gliaflow_runtime.errors import UsageError
from typer.testing import CliRunner


def write_folders(folder: Path, grades: dict[str, str]) -> None:
    """One folder per patient with empty files, and the grades in participants.tsv."""
    for patient in grades:
        (folder / patient).mkdir()
        for kind in ("flair", "seg"):
            (folder / patient / f"{patient}_{kind}.nii.gz").touch()
    rows = [f"{patient}\t{grade}\n" for patient, grade in grades.items()]
    (folder / "participants.tsv").write_text("participant_id\tgrade\n" + "".join(rows))


def run(folder: Path, *flags: object) -> tuple[int, list[str]]:
    """Runs the command. Returns its exit code and the lines that it printed."""
    done = CliRunner().invoke(app, ["cohort", str(folder), *map(str, flags)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, [" ".join(line.split()) for line in done.stdout.splitlines()]


def test_the_command_prints_layout_scans_grades_and_problems(tmp_path: Path) -> None:
    write_folders(tmp_path, {"a": "II", "b": "III", "c": "IV", "d": ""})
    assert run(tmp_path) == (
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
    assert "classes HGG 1 (IV → HGG), LGG 2 (II, III → LGG), none 1" in run(tmp_path, "--high", "IV")[1]


def test_a_column_without_a_table_is_refused(tmp_path: Path) -> None:
    write_folders(tmp_path, {"a": "II"})
    done = CliRunner().invoke(app, ["cohort", str(tmp_path), "--grade-column", "Grade"])
    assert isinstance(done.exception, UsageError)
    assert "--grades" in str(done.exception)


def test_all_flags_reach_the_reader(tmp_path: Path) -> None:
    write_folders(tmp_path, {"a": "", "b": ""})
    (tmp_path / "t.csv").write_text("who,a,stage\na,9,III\nb,9,GBM\n")
    flags = ["--reader", "folders", "--high", "IV", "--patient-column", "who", "--grade-column", "stage"]
    code, lines = run(tmp_path, "--grades", tmp_path / "t.csv", *flags)
    assert "classes HGG 1 (IV → HGG), LGG 1 (III → LGG)" in lines
    assert code == 0


def test_a_folder_without_a_usable_scan_has_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "HGG/A").mkdir(parents=True)
    code, lines = run(tmp_path)
    assert code == 1
    assert lines[1:4] == ["scans 0", "patients 0", "grades none"]
    assert lines[-1] == "problem HGG/A: no A_flair.nii.gz or .nii"


def test_check_opens_every_image(tmp_path: Path) -> None:
    write_folders(tmp_path, dict.fromkeys("abcde", "II"))

    def save(name: str, voxels: np.ndarray) -> None:
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / name[0] / f"{name}.nii.gz")

    ramp = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    for patient in "abce":
        save(f"{patient}_flair", ramp)
        save(f"{patient}_seg", (ramp > 50).astype(np.uint8))
    save("b_seg", np.zeros((3, 4, 6), np.uint8))
    save("c_flair", np.full((3, 4, 5), 7, np.uint8))
    (tmp_path / "d/d_seg.nii.gz").unlink()
    code, lines = run(tmp_path, "--check")
    assert code == 0
    bad = [line.removeprefix(f"bad {tmp_path}/") for line in lines if line.startswith("bad")]
    assert bad == [
        "b/b_seg.nii.gz: shape [3, 4, 6], but its scan has [3, 4, 5]",
        "b/b_seg.nii.gz: the mask is empty",
        "c/c_flair.nii.gz: every voxel has the same value",
        "d/d_flair.nii.gz: the file is empty",
    ]
    assert lines[-1] == "checked 2 of 5 scans are good"


def test_check_reads_the_flair_volume_of_a_decathlon_file(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    volumes = np.zeros((3, 4, 5, 2), np.uint8)
    volumes[0, 0, 0, 1] = 1
    nib.save(nib.Nifti1Image(volumes, np.eye(4)), tmp_path / "imagesTr/B_1.nii.gz")
    nib.save(nib.Nifti1Image(volumes[..., 1], np.eye(4)), tmp_path / "labelsTr/B_1.nii.gz")
    (tmp_path / "dataset.json").write_text('{"modality": {"0": "T1", "1": "FLAIR"}}')
    assert run(tmp_path, "--check")[1][-1] == "checked 1 of 1 scans are good"

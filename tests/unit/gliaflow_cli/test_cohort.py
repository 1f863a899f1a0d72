"""``gliaflow cohort``: what it prints about a folder of scans, and what ``--check`` finds in the images."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
from gliaflow_cli.main import app
from gliaflow_plugins.contracts import PluginError
from sample_scans import GOOD_SHAPE, good_scan
from scipy import ndimage
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
            "table participants.tsv: patients by 'participant_id', grades by 'grade'; 4 of 4 patients matched",
            "problem d: no grade",
        ],
    )
    assert "classes HGG 1 (IV → HGG), LGG 2 (II, III → LGG), none 1" in run(tmp_path, "--high", "IV")[1]


def test_the_sequences_of_the_scans_are_counted_and_with_v_listed(tmp_path: Path) -> None:
    write_folders(tmp_path, {"a": "II", "b": "III"})
    for name in ("t1ce", "t2", "t2_tse"):
        (tmp_path / "a" / f"a_{name}.nii.gz").touch()
    _, lines = run(tmp_path, "-v")
    assert "sequences flair 2, t1ce 1, t2 1; without t1ce: b; without t2: b" in lines
    assert lines[lines.index("scan a: flair, t1ce, t2") + 1] == "scan b: flair"
    assert not any("a_t1ce" in line for line in lines), "what is used is not left out"


def test_leaks_are_listed(tmp_path: Path) -> None:
    write_folders(tmp_path, {"p1": "II", "P01": "III"})
    code, lines = run(tmp_path)
    assert lines[-1] == "leak the patients 'P01' and 'p1' may be one: their names differ in spelling only"
    assert code == 0


def test_a_column_without_a_table_is_refused(tmp_path: Path) -> None:
    write_folders(tmp_path, {"a": "II"})
    done = CliRunner().invoke(app, ["cohort", str(tmp_path), "--grade-column", "Grade"])
    assert isinstance(done.exception, PluginError)
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


def save_case(folder: Path, patient: str, mask: np.ndarray | None = None, affine: np.ndarray | None = None) -> None:
    """A scan whose lesion is known, and its mask or another one."""
    scan = nib.load(good_scan(folder / patient / f"{patient}_flair.nii.gz", seed=ord(patient[0])))
    labels = tumour() if mask is None else mask
    nib.save(
        nib.Nifti1Image(labels, scan.affine if affine is None else affine),
        folder / patient / f"{patient}_seg.nii.gz",
    )


def tumour() -> np.ndarray:
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, side) for side in GOOD_SHAPE), indexing="ij")
    return ((i - 0.3) ** 2 + (j + 0.2) ** 2 + k**2 < 0.04).astype(np.uint8)


def test_check_names_every_scan_and_mask_that_training_would_refuse(tmp_path: Path) -> None:
    write_folders(tmp_path, dict.fromkeys("abcdefgh", "II"))
    for patient in "abdefg":
        save_case(tmp_path, patient)
    save_case(tmp_path, "b", mask=tumour()[:-1])
    save_case(tmp_path, "c")
    nib.save(nib.Nifti1Image(np.full(GOOD_SHAPE, 7, np.uint8), np.eye(4)), tmp_path / "c/c_flair.nii.gz")
    (tmp_path / "d/d_seg.nii.gz").unlink()
    save_case(tmp_path, "e", affine=np.eye(4))
    save_case(tmp_path, "f", mask=ndimage.gaussian_filter(tumour().astype(np.float32), 1))
    save_case(tmp_path, "g", mask=np.zeros_like(tumour()))
    code, lines = run(tmp_path, "--check")
    assert code == 1
    named = [line.replace(f"{tmp_path}/", "").split(":")[0] for line in lines if line.startswith(("bad", "doubtful"))]
    assert named == [
        "bad mask b/b_seg.nii.gz",
        "bad c/c_flair.nii.gz",
        "bad mask e/e_seg.nii.gz",
        "bad mask f/f_seg.nii.gz",
        "doubtful mask g/g_seg.nii.gz",
        "bad h/h_flair.nii.gz",
    ]
    assert lines[-1] == "checked 3 of 8 scans are good"


def test_check_of_good_images_has_exit_code_0(tmp_path: Path) -> None:
    write_folders(tmp_path, {"a": "II", "b": "III"})
    save_case(tmp_path, "a")
    save_case(tmp_path, "b")
    code, lines = run(tmp_path, "--check")
    assert lines[-1] == "checked 2 of 2 scans are good"
    assert code == 0


def test_check_cuts_the_sequences_that_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    save_case(tmp_path, "a")
    (tmp_path / "a" / "a_t1ce.nii.gz").write_bytes(b"no image")
    assert run(tmp_path, "--check")[0] == 0
    code, lines = run(tmp_path, "--check", "--channels", "flair,t1ce")
    assert any(line.startswith("bad") and "t1ce: not a NIfTI file" in line for line in lines)
    assert code == 1
    assert run(tmp_path, "--channels", "flair,t1ce")[0] == 2, "without --check, nothing is cut"


def test_check_says_which_scans_lack_a_sequence_that_cannot_be_dropped(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    save_case(tmp_path, "a")
    code, lines = run(tmp_path, "--check", "--channels", "flair,t1ce")
    assert any(line.startswith("bad") and "no scan with a mask has t1ce" in line for line in lines)
    assert code == 1
    code, lines = run(tmp_path, "--check", "--channels", "flair,t1ce", "--drop", "0")
    assert any(line.startswith("bad") and "it has no t1ce, which the U-Net needs" in line for line in lines)
    assert code == 1
    assert run(tmp_path, "--drop", "0")[0] == 2


def test_check_names_patients_with_the_same_scan(tmp_path: Path) -> None:
    write_folders(tmp_path, {"a": "II", "b": "III"})
    save_case(tmp_path, "a")
    for kind in ("flair", "seg"):
        shutil.copy(tmp_path / f"a/a_{kind}.nii.gz", tmp_path / f"b/b_{kind}.nii.gz")
    code, lines = run(tmp_path, "--check")
    assert lines[-2:] == ["leak the same voxels: a and b", "checked 2 of 2 scans are good"]
    assert code == 1


def test_check_names_patients_with_the_same_mask(tmp_path: Path) -> None:
    write_folders(tmp_path, {"a": "II", "b": "III", "c": "II"})
    save_case(tmp_path, "a")
    save_case(tmp_path, "b")  # the same labels in a file of its own
    save_case(tmp_path, "c", mask=np.roll(tumour(), 1, 0) * (np.indices(GOOD_SHAPE)[1] % 2 == 0).astype(np.uint8))
    code, lines = run(tmp_path, "--check")
    assert [line for line in lines if "mask voxels" in line] == [
        "problem the same mask voxels: a and b; one may have the other's mask"
    ]
    assert code == 0


def test_check_reads_the_flair_volume_of_a_decathlon_file(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    scan = nib.load(good_scan(tmp_path / "scan.nii"))
    volumes = np.stack([np.zeros(GOOD_SHAPE, np.int16), np.asarray(scan.dataobj)], axis=-1)
    nib.save(nib.Nifti1Image(volumes, scan.affine), tmp_path / "imagesTr/B_1.nii.gz")
    nib.save(nib.Nifti1Image(tumour(), scan.affine), tmp_path / "labelsTr/B_1.nii.gz")
    (tmp_path / "dataset.json").write_text('{"modality": {"0": "T1", "1": "FLAIR"}}')
    assert run(tmp_path, "--check")[1][-1] == "checked 1 of 1 scans are good"

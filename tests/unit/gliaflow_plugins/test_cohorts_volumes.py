"""Images of a cohort: NIfTI files and stacks of .tif slices become NIfTI bytes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from gliaflow_plugins import nifti_bytes
from gliaflow_plugins.cohorts.layouts import Kaggle
from gliaflow_plugins.cohorts.volumes import NiftiFile, TiffStack
from gliaflow_plugins.nifti_bytes import MAX_FILE_BYTES
from gliaflow_preprocessor import nifti, sources

# Real scans, which are never in the repository: a folder with tcga-lgg and kaggle_3m.
REAL = Path(os.environ.get("GLIAFLOW_TEST_DATA", Path(__file__).parents[4] / "shared/data"))


def test_a_nifti_file_is_read_unchanged(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"bytes")
    assert NiftiFile(tmp_path / "a.nii").read() == b"bytes"
    os.mkfifo(tmp_path / "pipe.nii")
    for name in ("gone.nii", "pipe.nii"):
        with pytest.raises(OSError, match=name):
            NiftiFile(tmp_path / name).read()


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.nii").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # takes no room on the disk
    with pytest.raises(ValueError, match=r"a\.nii.*over the limit"):
        NiftiFile(tmp_path / "a.nii").read()


def test_the_limits_of_conversion_are_those_of_submission() -> None:
    assert sources.MAX_FILE_BYTES == MAX_FILE_BYTES == 2**30
    assert (nifti.MAX_VOXELS, nifti.MAX_SIDE) == (nifti_bytes.MAX_VOXELS, nifti_bytes.MAX_SIDE)
    with pytest.raises(ValueError, match="over the limit of 1073741824 bytes"):
        nifti_bytes.check_bytes((1024, 1024, 128), np.dtype(np.float64))  # with its header the file would be larger


def tiffs(folder: Path, planes: np.ndarray) -> tuple[Path, ...]:
    image = pytest.importorskip("PIL.Image")
    paths = tuple(folder / f"{number}.tif" for number in range(len(planes)))
    for path, plane in zip(paths, planes, strict=True):
        image.fromarray(plane).save(path)
    return paths


def test_slices_become_one_volume_with_the_patients_left_at_the_end_of_a_row(tmp_path: Path) -> None:
    planes = np.random.default_rng(0).integers(0, 255, (4, 6, 5, 3)).astype(np.uint8)
    stack = TiffStack(tiffs(tmp_path, planes), channel=1, spacing=(1, 2, 3))
    image = nib.Nifti1Image.from_bytes(stack.read())
    np.testing.assert_array_equal(np.asarray(image.dataobj), planes[..., 1].transpose(2, 1, 0))
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    assert image.header.get_zooms() == (1, 2, 3)


def test_an_unusable_slice_is_named(tmp_path: Path) -> None:
    grey = tiffs(tmp_path, np.zeros((2, 6, 5), np.uint8))
    with pytest.raises(ValueError, match=r"0\.tif: pixels \(6, 5\), expected a colour image with a channel 1"):
        TiffStack(grey, channel=1).read()
    (tmp_path / "other").mkdir()
    larger = tiffs(tmp_path / "other", np.zeros((1, 7, 5), np.uint8))
    with pytest.raises(ValueError, match=r"other/0\.tif: .*\(5, 7\) pixels; the slices before it have \(5, 6\)"):
        TiffStack((*grey, *larger)).read()
    grey[1].write_bytes(grey[1].read_bytes()[:60])
    with pytest.raises(ValueError, match=r"1\.tif: "):
        TiffStack(grey).read()
    with pytest.raises(ValueError, match="gone"):
        TiffStack((tmp_path / "gone.tif",)).read()


def test_a_decompression_bomb_is_refused_before_it_is_decompressed(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "bomb.tif"
    image.new("1", (5000, 5000)).save(path, compression="group4")
    assert path.stat().st_size < 2**15
    with pytest.raises(ValueError, match=r"bomb\.tif: .*over the limit"):
        TiffStack((path,)).read()


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ValueError, match=r"pip install 'gliaflow\[train\]'"):
        TiffStack((tmp_path / "1.tif",)).read()


@pytest.mark.skipif(not REAL.is_dir(), reason="no real scans here (GLIAFLOW_TEST_DATA names their folder)")
def test_real_slices_become_the_published_volumes() -> None:
    """The grid must agree too, or left and right, or feet and head, could be exchanged."""
    cohort = Kaggle().read(REAL / "kaggle_3m")
    assert cohort is not None
    assert [case.grade for case in cohort.cases] == ["III", "II"]
    for case in cohort.cases:
        patient = case.patient.replace("_", "-")
        for volume, kind in ((case.scan, "flair"), (case.mask, "seg")):
            assert volume is not None
            ours = nib.Nifti1Image.from_bytes(volume.read())
            theirs = nib.load(REAL / "tcga-lgg" / patient / f"{patient}_{kind}.nii.gz")
            np.testing.assert_array_equal(np.asarray(ours.dataobj) > 0, np.asarray(theirs.dataobj) > 0)
            np.testing.assert_array_equal(ours.affine, theirs.affine)

"""Images of other formats are read as their own programs read them; what cannot be read is named, with the remedy."""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from gliaflow_plugins.cohorts.volumes import NiftiFile
from gliaflow_preprocessor.nifti import NiftiScan, read_scan
from nibabel.affines import from_matvec, voxel_sizes
from nibabel.eulerangles import euler2mat

VOXELS = np.random.default_rng(0).integers(0, 500, (40, 48, 12)).astype(np.int16)
AFFINE = from_matvec(euler2mat(0.1, 0.2, 0.05) @ np.diag([-5.0, 5, 8]), [90, -120, -40])


def read(path: Path, channel: str | None = None) -> NiftiScan:
    return read_scan(NiftiFile(path).read(), channel)


def same(scan: NiftiScan) -> None:
    np.testing.assert_array_equal(scan.volume, VOXELS)
    np.testing.assert_allclose(scan.affine, AFFINE, atol=1e-4)
    assert scan.warnings == []


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh", "A.MGZ"])
@pytest.mark.parametrize("dtype", ["i2", "i4", "f4"])
def test_a_freesurfer_file_has_freesurfers_affine(name: str, dtype: str, tmp_path: Path) -> None:
    data = nib.MGHImage(VOXELS.astype(dtype), AFFINE).to_bytes()
    (tmp_path / name).write_bytes(gzip.compress(data) if name == "a.mgz" else data)
    same(read(tmp_path / name))


def test_a_freesurfer_file_without_orientation_is_refused(tmp_path: Path) -> None:
    data = bytearray(nib.MGHImage(VOXELS, AFFINE).to_bytes())
    data[28:30] = bytes(2)
    (tmp_path / "a.mgh").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.mgh: goodRASFlag: 0, .*mri_convert --in_orientation LIA a\.mgh"):
        read(tmp_path / "a.mgh")


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
@pytest.mark.parametrize("ending", [".hdr", ".img", ".HDR", ".hdr.gz"])
def test_a_nifti_pair_is_read_by_either_name(kind: Any, ending: str, tmp_path: Path) -> None:
    image = kind(VOXELS, AFFINE)
    image.set_qform(AFFINE, 1)
    nib.save(image, tmp_path / "a.hdr")
    if ending != ".hdr":
        for path in (tmp_path / "a.hdr", tmp_path / "a.img"):
            other = ending.replace("hdr", "img") if path.suffix == ".img" and ".hdr" in ending else ending
            other = other.replace("HDR", "IMG") if path.suffix == ".img" else other.replace("img", "hdr")
            data = path.read_bytes()
            path.with_name("b" + other).write_bytes(gzip.compress(data) if other.endswith(".gz") else data)
        same(read(tmp_path / f"b{ending}"))
    same(read(tmp_path / "a.hdr"))


@pytest.mark.parametrize("order", ["<", ">"])
def test_an_analyze_image_states_no_orientation(order: str, tmp_path: Path) -> None:
    header = nib.AnalyzeHeader(endianness=order)
    header.set_data_dtype(np.int16)
    nib.save(nib.AnalyzeImage(VOXELS, np.diag([-5.0, 5, 8, 1]), header), tmp_path / "a.hdr")
    scan = read(tmp_path / "a.img")
    np.testing.assert_array_equal(scan.volume, VOXELS)
    assert voxel_sizes(scan.affine).tolist() == [5, 5, 8]
    assert any("does not state its orientation" in warning for warning in scan.warnings)


def test_an_analyze_image_of_spm_has_the_orientation_of_its_mat_file(tmp_path: Path) -> None:
    nib.save(nib.Spm99AnalyzeImage(VOXELS, AFFINE), tmp_path / "a.img")
    assert (tmp_path / "a.mat").is_file()
    same(read(tmp_path / "a.img"))


def test_a_pair_without_its_other_file_is_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(VOXELS, AFFINE), tmp_path / "a.hdr")
    (tmp_path / "a.img").unlink()
    with pytest.raises(ValueError, match=r"a\.hdr: its other file, a\.img, is missing"):
        read(tmp_path / "a.hdr")


def itk_image(dtype: str = "i2") -> Any:
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(VOXELS.astype(dtype).T)
    lps = np.diag([-1, -1, 1, 1]) @ AFFINE
    image.SetSpacing(voxel_sizes(lps).tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / voxel_sizes(lps)).ravel().tolist())
    return image


@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["i2", "i8", "f8"])
def test_nrrd_and_metaimage_have_itks_place(ending: str, packed: bool, dtype: str, tmp_path: Path) -> None:
    image = itk_image(dtype)
    sys.modules["SimpleITK"].WriteImage(image, str(tmp_path / f"a{ending}"), packed)
    same(read(tmp_path / f"a{ending}"))


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_a_file_of_several_channels_is_read_by_the_number_of_the_flair_channel(ending: str, tmp_path: Path) -> None:
    image = itk_image()
    sitk = sys.modules["SimpleITK"]
    sitk.WriteImage(sitk.Compose([image * 2, image]), str(tmp_path / f"a{ending}"))
    same(read(tmp_path / f"a{ending}", "1"))


NRRD = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 40 48 12\nspacings: 5 5 8\nencoding: raw\nendian: little\n"
META = b"ObjectType = Image\nNDims = 3\nDimSize = 40 48 12\nElementType = MET_SHORT\n"


def test_a_nrrd_file_without_a_space_states_no_orientation(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    (tmp_path / "a.nrrd").write_bytes(NRRD + b"\n" + VOXELS.tobytes(order="F"))
    scan = read(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(scan.volume, VOXELS)
    assert any("does not state its orientation" in warning for warning in scan.warnings)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        (
            "a.nhdr",
            NRRD + b"data file: /etc/hostname\n",
            "its data file must be one file beside it, not '/etc/hostname'",
        ),
        ("a.nhdr", NRRD + b"datafile: ../b.raw\n", "its data file must be one file beside it"),
        ("a.nhdr", NRRD + b"data file: LIST\nb.raw\n", "its data file must be one file beside it"),
        ("a.mhd", META + b"ElementDataFile = b%03d.raw 1 12 1\n", "its data file must be one file beside it"),
        ("a.mhd", META + b"ElementDataFile = b.raw\n", r"its data file, b\.raw, is missing"),
        ("a.mha", META + b"ElementDataFile = LOCAL\n", r"damaged or cut short, or not a \.mha file"),
        ("a.nrrd", b"junk" * 100, r"damaged or cut short, or not a NRRD file"),
        ("a.nrrd", NRRD.replace(b"40 48 12", b"4000 4000 4000") + b"\n", "over the limit of 4096 a side or 268435456"),
        ("a.nrrd", NRRD + b"Segment1_Layer:=1\n\n", "a segmentation of several layers .*export it as one label map"),
        ("a.mgz", b"junk" * 100, r"damaged or cut short, or not a \.mgz file"),
        ("a.mgh", nib.MGHImage(VOXELS, AFFINE).to_bytes()[:5000], r"damaged or cut short, or not a \.mgh file"),
        ("a.mgh", b"\0\0\0\1\x7f\xff\xff\xff" + bytes(400), "over the limit|damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name: str, data: bytes, reason: str, tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=reason) as caught:
        NiftiFile(path).read()
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


SECRET = b"TOPSECRET"
BESIDE = "must be one file beside it"


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.nhdr", NRRD + b"# comment\n" * 10_000 + b"data file: ../secret\n", BESIDE),
        ("a.nhdr", NRRD + b"# comment\n" * 200_000 + b"data file: ../secret\n", "no end in the first"),
        ("a.nhdr", (NRRD + b"data file: ../secret\n").replace(b"\n", b"\r"), "not a NRRD file"),
        ("a.nhdr", NRRD + b"# \rdata file: ../secret\r\n", "no data|cut short"),
        ("a.nhdr", NRRD + b"DATA  FILE:\t../secret\r\n", BESIDE),
        ("a.nhdr", NRRD + b"Data File: list 2\n../secret\n", BESIDE),
        ("a.nhdr", NRRD + b"data file: a.nhdr\ndata file: ../secret\n", "two data files"),
        ("a.nhdr", NRRD + b"data file: ..\n", BESIDE),
        ("a.nhdr", NRRD + b"data file: slice%03d.raw 1 12 1\n", BESIDE),
        ("a.nhdr", NRRD + b"data file: link\n", "link, which belongs to it, is a link to another folder"),
        ("a.nhdr", NRRD + b"data file: folder/secret\n", BESIDE),
        ("a.nhdr", NRRD + b"data file: pipe\n", "not a regular file"),
        ("a.nhdr", NRRD + b"my file: ../secret\n", "not known or is there twice"),
        ("a.nhdr", NRRD.replace(b"raw", b"raw\rdata file: ../secret") + b"\n", "control characters"),
        ("a.nrrd", NRRD + b"data file: ../secret\n", BESIDE),
        (
            "a.nrrd",
            NRRD.replace(b"raw", b"gz") + b"byte skip: 99999999999\n\n",
            "byte skip: '99999999999' is not a number",
        ),
        ("a.mhd", META + b"ElementDataFile : ../secret\n", BESIDE),
        ("a.mha", META + b"ElementDataFile : ../secret\n", BESIDE),
        ("a.mhd", META + b"elementdatafile\t=\t../secret\r\n", BESIDE),
        ("a.mhd", META + b"ElementDataFile : LIST\n../secret\n", BESIDE),
        ("a.mhd", META + b"ElementDataFile = LIST 2D\n../secret\n", BESIDE),
        ("a.mhd", META + b"ElementDataFile  ../secret\n", "no ElementDataFile"),
        ("a.mhd", META + b"ElementDataFile = link\n", "is a link to another folder"),
        ("a.mhd", META + b"Comment = c\n" * 100_000 + b"ElementDataFile = ../secret\n", "no ElementDataFile"),
        ("a.mhd", META + b"DimSize = 40 48 13\nElementDataFile = ../secret\n", "the field DimSize twice"),
        ("a.mha", META + b"HeaderSize = 99999\nElementDataFile = LOCAL\n", "HeaderSize: must be 0"),
    ],
)
def test_a_header_makes_no_file_readable_but_one_beside_it(name: str, data: bytes, reason: str, tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    (tmp_path / "secret").write_bytes(SECRET * 10_000)
    folder = tmp_path / "sent"
    (folder / "folder").mkdir(parents=True)
    (folder / "folder/secret").write_bytes(SECRET * 10_000)
    (folder / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe")
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=reason):
        NiftiFile(folder / name).read()


@pytest.mark.parametrize("link", ["other.raw", "../.git/annex/objects/x/KEY"])
def test_a_data_file_may_be_a_link_inside_the_folder_or_to_datalads_store(link: str, tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    folder = tmp_path / "P1"
    folder.mkdir()
    (folder / link).parent.mkdir(parents=True, exist_ok=True)
    (folder / link).write_bytes(VOXELS.tobytes(order="F"))
    (folder / "my scan.raw").symlink_to(link)
    (folder / "a.nhdr").write_bytes(
        NRRD.replace(b"\n", b"\r\n") + b"Patient:=x\r\ncontent: \xb5\ndata file: my scan.raw\r\n"
    )
    np.testing.assert_array_equal(read(folder / "a.nhdr").volume, VOXELS)


def test_the_two_files_of_a_pair_are_in_one_folder(tmp_path: Path) -> None:
    for name in ("real", "links", "sent"):
        (tmp_path / name).mkdir()
    nib.save(nib.Nifti1Pair(VOXELS, AFFINE), tmp_path / "real/a.hdr")
    for name in ("a.hdr", "a.img"):
        (tmp_path / "links" / name).symlink_to(tmp_path / "real" / name)
    np.testing.assert_array_equal(read(tmp_path / "links/a.hdr").volume, VOXELS)
    (tmp_path / "sent/a.hdr").write_bytes((tmp_path / "real/a.hdr").read_bytes())
    (tmp_path / "sent/a.img").symlink_to("../real/a.img")
    with pytest.raises(ValueError, match=r"a\.img, which belongs to it, is a link to another folder"):
        read(tmp_path / "sent/a.hdr")


def test_a_metaimage_with_dicom_tags_and_a_position_of_its_voxels_is_read(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    header = META + b"0008|103e = Ax: FLAIR\nno field\nHeaderSize = -1\nElementDataFile : LOCAL\n"
    (tmp_path / "a.mha").write_bytes(header + VOXELS.tobytes(order="F"))
    np.testing.assert_array_equal(read(tmp_path / "a.mha").volume, VOXELS)
    (tmp_path / "a.raw").write_bytes(bytes(99) + VOXELS.tobytes(order="F"))
    (tmp_path / "a.mhd").write_bytes(META + b"HeaderSize = 99\nElementDataFile = a.raw\n")
    np.testing.assert_array_equal(read(tmp_path / "a.mhd").volume, VOXELS)


def test_a_freesurfer_file_is_not_unpacked_if_its_header_is_over_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = np.array([1, 30_000, 30_000, 30_000, 1, 0, 0], ">i4").tobytes() + b"\0\1" + bytes(254)
    (tmp_path / "a.mgz").write_bytes(gzip.compress(header + bytes(2**20)))
    monkeypatch.setattr(nib.MGHImage, "from_file_map", lambda *_: pytest.fail("nibabel unpacks the file"))
    with pytest.raises(ValueError, match=r"a\.mgz: \(30000, 30000, 30000, 1\) is over the limit"):
        NiftiFile(tmp_path / "a.mgz").read()


def test_a_large_mat_file_beside_an_analyze_image_is_not_read(tmp_path: Path) -> None:
    nib.save(nib.Spm99AnalyzeImage(VOXELS, AFFINE), tmp_path / "a.img")
    with (tmp_path / "a.mat").open("r+b") as file:
        file.truncate(2**16 + 1)
    with pytest.raises(ValueError, match=r"a\.mat: over the limit of 65536 bytes of SPM's matrix; if it is not SPM's"):
        NiftiFile(tmp_path / "a.img").read()


def test_the_position_of_an_analyze_images_voxels_is_limited(tmp_path: Path) -> None:
    nib.save(nib.Spm99AnalyzeImage(VOXELS, AFFINE), tmp_path / "a.img")
    header = bytearray((tmp_path / "a.hdr").read_bytes())
    header[108:112] = np.float32(1e12).tobytes()
    (tmp_path / "a.hdr").write_bytes(header)
    with pytest.raises(ValueError, match=r"vox_offset: 1e\+12 is not a position near the start of a\.img"):
        NiftiFile(tmp_path / "a.hdr").read()


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    (tmp_path / "a.nrrd").write_bytes(NRRD)
    with pytest.raises(ValueError, match=r"a\.nrrd: \.nrrd files need SimpleITK: pip install 'gliaflow\[formats\]'"):
        NiftiFile(tmp_path / "a.nrrd").read()


def test_a_pipe_and_a_missing_file_are_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mgz")
    for name in ("pipe.mgz", "gone.nrrd"):
        with pytest.raises(OSError, match=name):
            NiftiFile(tmp_path / name).read()

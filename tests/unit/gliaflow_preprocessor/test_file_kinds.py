"""A file whose content is not NIfTI is refused by what it is, with the remedy; a wrong ending does not matter."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import nibabel as nib
import numpy as np
import pytest
from gliaflow_preprocessor.nifti import NiftiError, read_nifti

IMAGE = nib.Nifti1Image(np.zeros((20, 20, 20), np.int16), np.diag([-5.0, -5, 5, 1]))


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("scan.nii", IMAGE.to_bytes())
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("scan.nii"))
    return file.getvalue()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros((20, 20, 20)))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (bytes(128) + b"DICM" + bytes(500), "a DICOM file: submit the folder"),
        (gzip.compress(gzip.compress(IMAGE.to_bytes())), "a file gzipped twice: gunzip it once"),
        (nib.MGHImage(np.zeros((20, 20, 20), np.int16), np.eye(4)).to_bytes(), "a FreeSurfer .*: mri_convert"),
        (gzip.compress(nib.MGHImage(np.zeros((20, 20, 20), np.int16), np.eye(4)).to_bytes()), "a FreeSurfer"),
        (bytes(nib.AnalyzeHeader().binaryblock) + bytes(200), r"an Analyze header \(.hdr\): .*fslchfiletype"),
        (b"NRRD0005\ntype: short\n" + bytes(600), "an NRRD file: .*SimpleITK"),
        (b"ObjectType = Image\nNDims = 3\n" + bytes(600), "a MetaImage file: .*SimpleITK"),
        (b"\n<!DOCTYPE html>\n<html>Please log in</html>" + b" " * 600, "a web page: the download failed"),
        (zipped(), "a zip archive: unpack it"),
        (b"PK\5\6" + bytes(18), "a zip archive: unpack it"),
        (tarred(), "a tar archive: unpack it"),
        (bz2.compress(IMAGE.to_bytes()), "a bzip2 file: unpack it"),
        (lzma.compress(IMAGE.to_bytes()), "an xz file: unpack it"),
        (array(), "a NumPy array"),
        (b"\x89PNG\r\n\x1a\n" + bytes(600), "a picture"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a Git LFS pointer, not the file: git lfs pull",
        ),
        (b"/annex/objects/MD5E-s1--0.nii.gz\n", "a git-annex pointer, not the file: git annex get"),
        (bytes(5000), "only zeros: the copy or download was not completed"),
        (b"patient,grade\nP1,4\n" * 50, "a text file"),
        (b"\x05\x06\xfe\xff" * 200, "neither a NIfTI-1 nor a NIfTI-2 header"),
    ],
)
def test_a_file_of_another_kind_is_named(data: bytes, kind: str) -> None:
    with pytest.raises(NiftiError, match=f"not a NIfTI file: {kind}"):
        read_nifti(data)

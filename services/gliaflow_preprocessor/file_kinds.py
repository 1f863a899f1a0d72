"""The kind of a file that is not NIfTI, by its first bytes, and the remedy."""

from __future__ import annotations

SITK = "python -c \"import SimpleITK as s; s.WriteImage(s.ReadImage('scan{0}'), 'scan.nii.gz')\""
KINDS: tuple[tuple[int, bytes, str], ...] = (  # offset, bytes there, kind and remedy
    (128, b"DICM", "a DICOM file: submit the folder of its series, without .nii in the file names"),
    (0, b"\x1f\x8b", "a file gzipped twice: gunzip it once"),
    (0, b"NRRD0", f"an NRRD file: end its name in .nrrd, or convert it: {SITK.format('.nrrd')}"),
    (0, b"ObjectType", f"a MetaImage file: end its name in .mha, or convert it: {SITK.format('.mha')}"),
    (0, b"NDims", f"a MetaImage file: end its name in .mha, or convert it: {SITK.format('.mha')}"),
    (0, b"\0\0\0\x01\0\0", "a FreeSurfer file: end its name in .mgz, or convert it: mri_convert scan.mgz scan.nii.gz"),
    (0, b"\x5c\x01\0\0", "an Analyze header (.hdr): convert the pair: fslchfiletype NIFTI_GZ scan.hdr"),
    (0, b"\0\0\x01\x5c", "an Analyze header (.hdr): convert the pair: fslchfiletype NIFTI_GZ scan.hdr"),
    (0, b"\x89HDF", "an HDF5 file (MINC 2, MATLAB): convert MINC with mnc2nii"),
    (0, b"CDF\x01", "a MINC file: convert it with mnc2nii"),
    (0, b"PK", "a zip archive: unpack it"),
    (257, b"ustar", "a tar archive: unpack it"),
    (0, b"BZh", "a bzip2 file: unpack it"),
    (0, b"\xfd7zXZ", "an xz file: unpack it"),
    (0, b"\x28\xb5\x2f\xfd", "a zstandard file: unpack it"),
    (0, b"7z\xbc\xaf", "a 7-Zip archive: unpack it"),
    (0, b"\x93NUMPY", "a NumPy array, which states no voxel size and no orientation: save it as NIfTI with its affine"),
    (0, b"\x89PNG", "a picture, not a volume"),
    (0, b"\xff\xd8\xff", "a picture, not a volume"),
    (0, b"II*\0", "a TIFF picture, not a volume"),
    (0, b"MM\0*", "a TIFF picture, not a volume"),
    (0, b"%PDF", "a PDF document"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file: git lfs pull"),
    (0, b"/annex/objects/", "a git-annex pointer, not the file: git annex get (or datalad get)"),
)


def name_kind(raw: bytes) -> str:
    """The kind of a file by its first bytes (263 are enough for all kinds), with a remedy where there is one."""
    for offset, magic, kind in KINDS:
        if raw.startswith(magic, offset):
            return kind
    text = raw[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page: the download failed, or needs a login; download the file again"
    if not raw.strip(b"\0"):
        return "only zeros: the copy or download was not completed; copy the file again"
    if raw.isascii() and not set(raw[:256]) & set(range(9)):
        return "a text file"
    return "neither a NIfTI-1 nor a NIfTI-2 header at its start"

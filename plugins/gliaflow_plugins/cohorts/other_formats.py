"""Images in other formats than single-file NIfTI, as NIfTI bytes: FreeSurfer, Analyze, pairs, NRRD and MetaImage.

The files are untrusted: every size is checked before memory is allocated, and a detached header names a file beside it.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path, PurePath
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from gliaflow_plugins.cohorts.nifti_bytes import MAX_FILE_BYTES, as_nifti, check_bytes, check_size

FREESURFER = (".mgz", ".mgh", ".mgh.gz")
PAIRS = (".hdr", ".img", ".hdr.gz", ".img.gz")
ITK = {".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO"}
ENDINGS = (*FREESURFER, *PAIRS, *ITK)
DATA_FILE = re.compile(rb"^\s*(?:data ?file\s*:|ElementDataFile\s*=)\s*(.*?)\s*$", re.MULTILINE | re.IGNORECASE)
ORIENTED = re.compile(rb"^\s*(?:space\s*:|(?:TransformMatrix|Orientation|Rotation)\s*=)", re.MULTILINE)
LAYERS = re.compile(rb"^Segment\d+_Layer:=[1-9]", re.MULTILINE)
HEADER_BYTES = 2**16
MAX_MATRIX_BYTES = 2**20
NIFTI_2_BYTES = 540


def is_other_format(path: PurePath) -> bool:
    """Whether the ending says that it is an image of another format than single-file NIfTI."""
    return path.name.casefold().endswith(ENDINGS)


def convert(path: Path) -> bytes:
    """The image as the bytes of a NIfTI file.

    Raises
    ------
    ValueError: the file is not valid, too large, or a file that belongs to it is missing. The text names the file.
    """
    name = path.name.casefold()
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"over the limit of {MAX_FILE_BYTES} bytes")
        if name.endswith(tuple(ITK)):
            return _by_itk(path)
        return _pair(path) if name.endswith(PAIRS) else _freesurfer(path)
    except MemoryError:
        raise ValueError(f"{path}: too large for this machine's memory") from None
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(_named(path, str(error))) from None
    except Exception as error:  # nibabel raises many types for a broken file
        raise ValueError(_named(path, f"damaged or cut short, or not a {path.suffix} file: {error}")) from None


def _freesurfer(path: Path) -> bytes:
    import nibabel as nib

    with _open(path) as file:
        header = file.read(30)
        file.seek(0)
        image: Any = nib.MGHImage.from_file_map({"image": nib.FileHolder(fileobj=file)})
        _check(image)
        if header[28:] == b"\0\0":
            raise ValueError(
                "goodRASFlag: 0, so the file does not state its orientation; state it: "
                f"mri_convert --in_orientation LIA {path.name} scan.nii.gz"
            )
        return as_nifti(np.asarray(image.dataobj), image.affine)


def _pair(path: Path) -> bytes:
    """A NIfTI or Analyze image in two files. Analyze states no orientation, unless SPM left one in a .mat file."""
    import nibabel as nib

    other = _partner(path)
    if not other.is_file():
        raise FileNotFoundError(f"its other file, {other.name}, is missing: put it beside it")
    matrix = path.with_name(_without_ending(path) + ".mat")
    for part, limit in ((other, MAX_FILE_BYTES), (matrix, MAX_MATRIX_BYTES)):
        if part.is_file() and part.stat().st_size > limit:
            raise ValueError(f"{part.name}: over the limit of {limit} bytes")
    header, data = (path, other) if ".hdr" in path.name.casefold() else (other, path)
    with _open(header) as file:
        block = file.read(HEADER_BYTES)
    for kind in (nib.Nifti1Pair, nib.Nifti2Pair):
        if kind.header_class.may_contain_header(block):
            return _single_file(kind.header_class, block, data)
    image: Any = nib.load(header)
    _check(image)
    return as_nifti(np.asarray(image.dataobj), image.affine, oriented=matrix.is_file())


def _by_itk(path: Path) -> bytes:
    try:
        import SimpleITK as sitk
    except ModuleNotFoundError:
        raise ValueError(f"{path.suffix} files need SimpleITK: pip install 'gliaflow[dicom]'") from None
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    _check_data_file(path, header)
    if LAYERS.search(header):
        raise ValueError(
            "a segmentation of several layers (3D Slicer); export it as one label map (Export to files, .nii.gz)"
        )
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # it would write to the terminal, outside our logs
    reader = sitk.ImageFileReader()
    reader.SetImageIO(ITK[path.suffix.casefold()])
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        channels = reader.GetNumberOfComponents()
        check_size((*reader.GetSize(), channels))
        check_bytes((*reader.GetSize(), channels), np.dtype(np.float64))  # no number is larger
        if reader.GetDimension() not in (3, 4):
            raise ValueError(f"a {reader.GetDimension()}-D image; expected 3-D or 4-D")
        image = reader.Execute()
    except RuntimeError as error:  # most of ITK's text is about its own code
        _, teem, text = str(error).rpartition("[nrrd] ")
        reason = f": {text}" if teem else ""
        raise ValueError(f"damaged or cut short, or not a {path.suffix} file{reason}") from None
    dimensions = image.GetDimension()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (dimensions, dimensions))[:3, :3] * image.GetSpacing()[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    voxels: NDArray[Any] = sitk.GetArrayViewFromImage(image)
    if channels > 1:  # [z, y, x, channel]
        voxels = np.moveaxis(voxels, -1, 0)
    # ITK's x and y run to the left and back, NIfTI's to the right and front
    return as_nifti(voxels.T, np.diag([-1, -1, 1, 1]) @ affine, oriented=ORIENTED.search(header) is not None)


def _check_data_file(path: Path, header: bytes) -> None:
    """Raise ValueError if a detached header's data file is not beside it: it could be any file on this machine."""
    match = DATA_FILE.search(header)
    name = match[1].decode("utf-8", "replace") if match else "LOCAL"
    if name.casefold() == "local":
        return
    if not name or name.split()[0].casefold() == "list" or "%" in name or Path(Path(name).name) != Path(name):
        raise ValueError(f"its data file must be one file beside it, not {name!r}")
    data = path.with_name(name)
    if not data.is_file():
        raise FileNotFoundError(f"its data file, {name}, is missing: put it beside it")
    if data.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{name}: over the limit of {MAX_FILE_BYTES} bytes")


def _open(path: Path) -> IO[bytes]:
    """The file, unpacked if it is gzipped, whatever its ending says."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path)) if packed else path.open("rb")


def _check(image: Any) -> None:
    shape = tuple(map(int, image.shape))
    check_size(shape)
    check_bytes(shape, image.get_data_dtype())


def _single_file(header_class: Any, block: bytes, data: Path) -> bytes:
    """One NIfTI file of a pair: the header as it is, except the fields that say where the voxels are."""
    size = header_class.template_dtype.itemsize
    header = header_class(block[:size], check=False)
    shape, offset = header.get_data_shape(), float(header["vox_offset"])
    check_size(shape)
    count = check_bytes(shape, header.get_data_dtype())
    if not 0 <= offset <= HEADER_BYTES:  # also if it is NaN
        raise ValueError(f"vox_offset: {offset:g} is not a position near the start of {data.name}")
    with _open(data) as file:
        voxels = file.read(int(offset) + count)[int(offset) :]
    header["magic"] = b"n+2\0\r\n\x1a\n" if size == NIFTI_2_BYTES else b"n+1"
    header["vox_offset"] = size + 4
    return bytes(header.binaryblock) + bytes(4) + voxels


def _partner(path: Path) -> Path:
    """The other file of a pair: ``a.img`` of ``a.hdr``."""
    stem, ending = _without_ending(path), path.name[len(_without_ending(path)) :]
    swapped = {"hdr": "img", "img": "hdr", "HDR": "IMG", "IMG": "HDR"}
    return path.with_name(stem + re.sub("|".join(swapped), lambda match: swapped[match[0]], ending))


def _without_ending(path: Path) -> str:
    return re.sub(r"\.(hdr|img)(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def _named(path: Path, text: str) -> str:
    line = " ".join(text.split())
    return line if line.startswith(str(path)) else f"{path}: {line}"

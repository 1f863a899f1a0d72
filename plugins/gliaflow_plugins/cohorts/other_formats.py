"""Images in other formats than single-file NIfTI, as NIfTI bytes: FreeSurfer, Analyze, pairs, NRRD and MetaImage.

The files are untrusted: every size is checked before memory is allocated or a packed file is unpacked.
"""

from __future__ import annotations

import gzip
import re
from io import BytesIO
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from gliaflow_plugins.cohorts.itk_headers import private_copy
from gliaflow_plugins.nifti_bytes import MAX_FILE_BYTES, as_nifti, check_bytes, check_size
from gliaflow_plugins.regular_files import beside, open_regular

FREESURFER = (".mgz", ".mgh", ".mgh.gz")
PAIRS = (".hdr", ".img", ".hdr.gz", ".img.gz")
ITK = {".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO"}
ENDINGS = (*FREESURFER, *PAIRS, *ITK)
HEADER_BYTES = 2**16
MAX_MATRIX_BYTES = 2**16  # SPM's has some 300; a packed one may unpack to a thousand times as much
ANALYZE_BYTES, NIFTI_2_BYTES = 348, 540  # of a header


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
        system = error.strerror if isinstance(error, OSError) else None  # a full disk, say
        raise ValueError(_named(path, system or f"{_damaged(path)}: {error}")) from None


def _freesurfer(path: Path) -> bytes:
    from gliaflow_plugins.nibabel_alone import nib

    with _open(path) as file:
        header = file.read(30)
        if len(header) < 30 or header[:4] != b"\0\0\0\1":
            raise ValueError(_damaged(path))
        # before nibabel, which unpacks the file up to what follows the voxels
        check_bytes([int(side) for side in np.frombuffer(header[4:20], ">i4")], np.dtype(np.float32))  # the largest
        file.seek(0)
        image: Any = nib.MGHImage.from_file_map({"image": nib.FileHolder(fileobj=file)})
        if header[28:] == b"\0\0":
            raise ValueError(
                "goodRASFlag: 0, so the file does not state its orientation; state it: "
                f"mri_convert --in_orientation LIA {path.name} scan.nii.gz"
            )
        return as_nifti(np.asarray(image.dataobj), image.affine)


def _pair(path: Path) -> bytes:
    """A NIfTI or Analyze image in two files. Analyze states no orientation, unless SPM left one in a .mat file."""
    from gliaflow_plugins.nibabel_alone import nib

    name = _partner(path)
    other = beside(path, name)
    if not other.is_file():
        raise FileNotFoundError(f"its other file, {name}, is missing: put it beside it")
    header, data = (path, other) if ".hdr" in path.name.casefold() else (other, path)
    with _open(header) as file:
        block = file.read(HEADER_BYTES)
    for kind in (nib.Nifti1Pair, nib.Nifti2Pair):
        if kind.header_class.may_contain_header(block):
            return _single_file(kind.header_class, block, data)
    kind = nib.Spm2AnalyzeImage
    if not kind.header_class.may_contain_header(block):
        raise ValueError(_damaged(path))
    voxels = _voxels(kind.header_class(block[:ANALYZE_BYTES], check=False), data)
    matrix = _matrix(path)
    parts = {"header": block[:ANALYZE_BYTES], "image": voxels, "mat": matrix}
    image: Any = kind.from_file_map({name: nib.FileHolder(fileobj=BytesIO(part)) for name, part in parts.items()})
    return as_nifti(np.asarray(image.dataobj), image.affine, oriented=matrix != b"")


def _matrix(path: Path) -> bytes:
    """SPM's file with the affine; nothing: there is none."""
    matrix = path.with_name(_without_ending(path) + ".mat")
    try:
        with open_regular(matrix) as file:
            content = file.read(MAX_MATRIX_BYTES + 1)
    except FileNotFoundError:
        return b""
    if len(content) > MAX_MATRIX_BYTES:
        raise ValueError(
            f"{matrix.name}: over the limit of {MAX_MATRIX_BYTES} bytes of SPM's matrix; if it is not SPM's, move it"
        )
    return content


def _by_itk(path: Path) -> bytes:
    try:
        import SimpleITK as sitk
    except ModuleNotFoundError:
        raise ValueError(f"{path.suffix} files need SimpleITK: pip install 'gliaflow[formats]'") from None
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # it would write to the terminal, outside our logs
    reader = sitk.ImageFileReader()
    reader.SetImageIO(ITK[path.suffix.casefold()])
    with TemporaryDirectory(prefix="gliaflow-") as folder:
        copy, oriented = private_copy(path, Path(folder))
        reader.SetFileName(str(copy))
        try:
            reader.ReadImageInformation()
            channels = reader.GetNumberOfComponents()
            check_size((*reader.GetSize(), channels))
            if reader.GetDimension() not in (3, 4):
                raise ValueError(f"a {reader.GetDimension()}-D image; expected 3-D or 4-D")
            one = sitk.Image([1] * reader.GetDimension(), reader.GetPixelID())
            check_bytes((*reader.GetSize(), channels), np.dtype(f"V{one.GetSizeOfPixelComponent()}"))
            image = reader.Execute()
        except RuntimeError as error:  # most of ITK's text is about its own code
            _, teem, text = str(error).rpartition("[nrrd] ")
            raise ValueError(_damaged(path) + (f": {text}" if teem else "")) from None
    dimensions = image.GetDimension()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (dimensions, dimensions))[:3, :3] * image.GetSpacing()[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    voxels: NDArray[Any] = sitk.GetArrayViewFromImage(image)
    if channels > 1:  # [z, y, x, channel]
        voxels = np.moveaxis(voxels, -1, 0)
    # ITK's x and y run to the left and back, NIfTI's to the right and front
    return as_nifti(voxels.T, np.diag([-1, -1, 1, 1]) @ affine, oriented=oriented)


def _open(path: Path) -> IO[bytes]:
    """The file, unpacked if it is gzipped, whatever its ending says."""
    with open_regular(path) as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path)) if packed else open_regular(path)


def _single_file(header_class: Any, block: bytes, data: Path) -> bytes:
    """One NIfTI file of a pair: the header as it is, except the fields that say where the voxels are."""
    size = header_class.template_dtype.itemsize
    header = header_class(block[:size], check=False)
    voxels = _voxels(header, data)[int(header["vox_offset"]) :]
    header["magic"] = b"n+2\0\r\n\x1a\n" if size == NIFTI_2_BYTES else b"n+1"
    header["vox_offset"] = size + 4
    return bytes(header.binaryblock) + bytes(4) + voxels


def _voxels(header: Any, data: Path) -> bytes:
    """The bytes of a pair's other file, up to the last voxel."""
    offset = float(header["vox_offset"])
    count = check_bytes(header.get_data_shape(), header.get_data_dtype())
    if not 0 <= offset <= HEADER_BYTES:  # also if it is NaN
        raise ValueError(f"vox_offset: {offset:g} is not a position near the start of {data.name}")
    with _open(data) as file:
        return file.read(int(offset) + count)


def _partner(path: Path) -> str:
    """The name of the other file of a pair: ``a.img`` of ``a.hdr``."""
    stem, ending = _without_ending(path), path.name[len(_without_ending(path)) :]
    swapped = {"hdr": "img", "img": "hdr", "HDR": "IMG", "IMG": "HDR"}
    return stem + re.sub("|".join(swapped), lambda match: swapped[match[0]], ending)


def _without_ending(path: Path) -> str:
    return re.sub(r"\.(hdr|img)(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def _damaged(path: Path) -> str:
    return f"damaged or cut short, or not a {path.suffix} file"


def _named(path: Path, text: str) -> str:
    line = " ".join(text.split())
    return line if line.startswith(str(path)) else f"{path}: {line}"

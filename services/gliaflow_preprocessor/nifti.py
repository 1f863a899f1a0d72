"""Read a volume from NIfTI bytes. The bytes are untrusted: every size is checked before memory is allocated."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from gliaflow_plugins.nibabel_alone import HeaderDataError, nib
from gliaflow_plugins.nifti_bytes import MAX_SIDE
from gliaflow_proto.geometry import MAX_VOXELS, Forms
from isal import isal_zlib  # unpacks 1.7 times as fast as zlib
from numpy.typing import NDArray

from gliaflow_preprocessor.file_kinds import name_kind
from gliaflow_preprocessor.placement import place

GZIP = b"\x1f\x8b"
GZIP_ERROR: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # its stub makes it an instance
MAX_VOLUME_BYTES = 2**30
MAX_MEMBERS = 2**15  # of a gzip file: bgzip makes so many from 2 GiB
MAX_HEADER_BYTES = 2**20  # extensions included
MAX_DIGITS = 6  # of a channel's number
HEADER_BYTES = 540  # of a NIfTI-2 header; NIfTI-1 has 348
_SILENT = logging.getLogger("gliaflow.nifti")  # nibabel's warnings about headers, which NiftiError replaces
_SILENT.disabled = True


class NiftiError(ValueError):
    """The bytes are not a usable NIfTI file. The text names the field and the expected value."""


class SeveralVolumes(NiftiError):
    """A 4-D file, and no channel was named."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(
            f"dim: 4-D image {list(shape)}: say which of its {shape[3]} volumes is FLAIR (--channel NUMBER, from 0; "
            "in a cohort, the column channel of a table)"
        )
        self.shape = shape


@dataclass(frozen=True)
class NiftiScan:
    """``volume`` [i, j, k] in stored order; ``affine`` [4, 4], voxel to mm; the header's ``forms``; ``warnings``."""

    volume: NDArray[Any]
    affine: NDArray[np.float64]
    forms: Forms
    warnings: list[str]

    @property
    def is_placed(self) -> bool:
        """Whether the header states where the scan is. Programs that do not know it write no form, or the identity."""
        stated = self.forms.sform_code > 0 or self.forms.qform_code > 0
        return stated and not np.array_equal(self.affine, np.eye(4))


def read_nifti(data: bytes, channel: str | None = None) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The volume and the affine of ``read_scan``."""
    scan = read_scan(data, channel)
    return scan.volume, scan.affine


def read_scan(data: bytes, channel: str | None = None, limit: int = MAX_VOLUME_BYTES) -> NiftiScan:
    """The FLAIR volume of a NIfTI file, and its place.

    Parameters
    ----------
    data: a single-file NIfTI-1 or NIfTI-2, gzipped or not, of any real dtype.
    channel: for a 4-D file, the number of the FLAIR volume, from 0.
    limit: the most bytes of the volume as it is stored.

    Raises
    ------
    NiftiError: not NIfTI, cut short, larger than MAX_VOXELS or ``limit``, complex or RGB, or 4-D without a channel.
    """
    if not data:
        raise NiftiError("the file is empty")
    header, stated = _header(bytes(_inflate(data, 0, HEADER_BYTES)))
    shape = _shape(header, channel)
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        kind = nib.nifti1.data_type_codes.label[int(header["datatype"])]
        raise NiftiError(f"datatype: {kind} is not an integer or floating-point image")
    smallest = header.template_dtype.itemsize
    offset = float(header["vox_offset"]) or smallest + 4  # 0: some writers leave it out
    if not smallest <= offset <= MAX_HEADER_BYTES:  # also if it is NaN
        raise NiftiError(f"vox_offset: {offset:g} is not a position after the header")
    start = int(offset)
    volume_bytes = int(np.prod(shape[:3], dtype=np.int64)) * dtype.itemsize
    index = int(channel or 0) if len(shape) == 4 else 0
    if volume_bytes > limit:
        raise NiftiError(f"dim: {list(shape[:3])} of {dtype} is over the limit of {limit} bytes")
    start += volume_bytes * index
    raw = _inflate(data, start, start + volume_bytes)
    if len(raw) < volume_bytes:
        raise NiftiError(f"the file is cut short: {len(raw)} of {volume_bytes} bytes of the image")
    volume = np.frombuffer(raw, dtype).reshape(shape[:3], order="F")
    try:
        slope, inter = header.get_slope_inter()
    except (HeaderDataError, ValueError) as error:
        raise NiftiError(f"scl_slope, scl_inter: {error}") from None
    if slope is not None and (slope, inter or 0.0) != (1.0, 0.0):
        volume = _scaled(volume, float(slope), float(inter or 0.0))
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # place treats fields that are not finite
            placement = place(stated, shape[:3])
    except ValueError as error:
        raise NiftiError(str(error)) from None
    return NiftiScan(volume, placement.affine, placement.forms, placement.warnings)


def _scaled(volume: NDArray[Any], slope: float, inter: float) -> NDArray[Any]:
    """The stored numbers times ``slope`` plus ``inter``, in float64 where float32 would round them."""
    exact = volume.dtype.itemsize <= 2 and abs(inter) <= 2**16 * abs(slope) and 1e-20 < abs(slope) < 1e20
    real = np.float32 if exact else np.float64
    with np.errstate(over="ignore", invalid="ignore"):  # prepare treats values that are not finite
        scaled: NDArray[Any] = np.multiply(volume, real(slope), dtype=real)
        np.add(scaled, real(inter), out=scaled)
    return scaled


def _header(raw: bytes) -> tuple[Any, Any]:
    """The NIfTI-1 or NIfTI-2 header at the start of ``raw``, as nibabel repairs it, and as it is."""
    for image in (nib.Nifti1Image, nib.Nifti2Image):
        header_class = image.header_class
        block = raw[: header_class.template_dtype.itemsize]
        if len(block) < header_class.template_dtype.itemsize or not header_class.may_contain_header(block):
            continue
        try:
            header = header_class(block, check=False)
            if header["magic"].item() not in (b"n+1", b"n+2"):
                raise NiftiError(
                    "magic: header and image in two files (.hdr/.img); convert them to one .nii file: "
                    "fslchfiletype NIFTI_GZ scan.hdr"
                )
            stated = header.copy()
            header.check_fix(logger=_SILENT, error_level=40)
            return header, stated
        except NiftiError:
            raise
        except Exception as error:  # nibabel raises many kinds for a broken header
            known = isinstance(error, HeaderDataError)  # its texts have only numbers; others may quote the file
            raise NiftiError(f"header: {error if known else type(error).__name__}") from None
    raise NiftiError(f"not a NIfTI file: {name_kind(raw)}")


def _shape(header: Any, channel: str | None) -> tuple[int, ...]:
    try:
        shape = tuple(int(n) for n in header.get_data_shape())
    except HeaderDataError as error:
        raise NiftiError(f"dim: {error}") from None
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (3, 4):
        raise NiftiError(f"dim: {len(shape)}-D image {list(shape)}; expected 3-D, or 4-D with a FLAIR channel")
    if not all(1 <= n <= MAX_SIDE for n in shape):
        raise NiftiError(f"dim: {list(shape)} has a side that is not between 1 and {MAX_SIDE}")
    if min(shape[:3]) < 2:
        raise NiftiError(f"dim: {list(shape)} is one plane, not a scan")
    if int(np.prod(shape, dtype=np.int64)) > MAX_VOXELS:
        raise NiftiError(f"dim: {list(shape)} is over the limit of {MAX_VOXELS} voxels")
    if len(shape) == 4:
        if channel is None:
            raise SeveralVolumes(shape)
        if len(channel) > MAX_DIGITS or not channel.isdecimal() or int(channel) >= shape[3]:
            raise NiftiError(f"channel: not a number from 0 to {shape[3] - 1}")
    return shape


def _inflate(data: bytes, start: int, stop: int) -> bytes | bytearray:
    """The bytes of the (gunzipped) file from ``start`` to ``stop``; fewer if it is cut short."""
    if not data.startswith(GZIP):
        return data[start:stop]
    result = bytearray()
    at = place = members = header = 0  # bytes read, and bytes unpacked from them
    member = None
    # one byte more than needed, so that the checksum of a file that ends there is verified, if it is there
    while place <= stop:
        if member is None or member.eof:  # a file may have several members (RFC 1952, 2.2)
            if not data.startswith(GZIP, at):
                break  # the end, or padding
            members += 1
            if members > MAX_MEMBERS:
                raise NiftiError(f"a gzip file of over {MAX_MEMBERS} members")
            member = isal_zlib.decompressobj(wbits=31)
            header = _gzip_header_end(data, at) - at  # isal reads it wrongly in two blocks
        block = memoryview(data)[at : at + header + 2**14]
        header = 0
        try:
            chunk = member.decompress(block, 2**20)
        except GZIP_ERROR as error:
            raise NiftiError(f"not a valid gzip file: {error}") from None
        if not block and not chunk:  # all is read, and isal keeps nothing back
            break
        at += len(block) - len(member.unconsumed_tail) - len(member.unused_data)
        result += chunk[max(0, start - place) : max(0, stop - place)]
        place += len(chunk)
    return result


def _gzip_header_end(data: bytes, at: int) -> int:
    """Where the header of the gzip member at ``at`` ends (RFC 1952, 2.3), or a place after the data."""
    flags, end = int.from_bytes(data[at + 3 : at + 4], "little"), at + 10
    if flags & 4:  # FEXTRA
        end += 2 + int.from_bytes(data[end : end + 2], "little")
    for text in (8, 16):  # FNAME, FCOMMENT
        if flags & text:
            end = data.find(b"\0", end) + 1 or len(data)
    return end + (flags & 2)  # FHCRC

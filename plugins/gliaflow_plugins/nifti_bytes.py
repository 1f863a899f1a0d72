"""NIfTI bytes from an image's voxels, and the limits of an untrusted image."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from gliaflow_proto.geometry import MAX_VOXELS
from numpy.typing import NDArray

MAX_FILE_BYTES = 2**30
MAX_SIDE = 4096
HEADER_ROOM = 1024  # a NIfTI header is shorter


def check_size(shape: Sequence[int], where: str = "") -> None:
    """Raise ValueError if an image of this shape could take too much memory."""
    if min(shape) < 1 or max(shape) > MAX_SIDE or prod(shape) > MAX_VOXELS:
        raise ValueError(f"{where}{tuple(shape)} is over the limit of {MAX_SIDE} a side or {MAX_VOXELS} voxels")


def check_bytes(shape: Sequence[int], dtype: Any) -> int:
    """How many bytes the voxels take. Raises ValueError if their number or their bytes are over the limit."""
    check_size(shape)
    count = prod(shape) * int(dtype.itemsize)
    if count > MAX_FILE_BYTES - HEADER_ROOM:
        raise ValueError(f"{tuple(shape)} of {dtype} is over the limit of {MAX_FILE_BYTES} bytes")
    return count


def as_nifti(voxels: NDArray[Any], affine: NDArray[Any], *, oriented: bool = True) -> bytes:
    """The bytes of a NIfTI file. ``oriented`` False: of the affine only the voxels' sides are known."""
    from gliaflow_plugins.nibabel_alone import nib

    voxels = voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
    header: Any = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype).header
    header.set_xyzt_units("mm")
    header["vox_offset"] = 352
    header["sform_code"] = 1 if oriented else 0  # nibabel would set another code if it saved the image
    return bytes(header.binaryblock) + bytes(4) + voxels.tobytes(order="F")

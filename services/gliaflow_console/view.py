"""A scan and its mask as the browser shows them.

The file of a scan is untrusted, so the browser never gets it. It gets a NIfTI file that is written here: one volume,
the FLAIR or another sequence on its grid, along canonical axes (RAS+), as int16 or float32. Its affine has no
rotation, so a plane of it is a slice as the stages number it.
"""

from __future__ import annotations

import gzip
import math
import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gliaflow.scans import Input
from gliaflow.sequences import SequenceInput
from gliaflow_plugins.nibabel_alone import nib, voxel_sizes
from gliaflow_plugins.nifti_bytes import MAX_FILE_BYTES
from gliaflow_plugins.regular_files import open_regular
from gliaflow_preprocessor.intensities import fit_float32
from gliaflow_preprocessor.nifti import MAX_VOLUME_BYTES, NiftiError, NiftiScan, read_scan
from gliaflow_preprocessor.scaling import UnusableScan
from gliaflow_preprocessor.sequences import on_grid
from gliaflow_proto.geometry import MAX_VOXELS
from gliaflow_runtime.errors import UsageError
from numpy.typing import NDArray

SHOWN_VOXELS = 2**25  # for the browser; of a larger scan, it gets every n-th pixel along x and y
SAMPLE = 2**18  # voxels for the range of grey
GREY = (1.0, 99.7)  # percentiles that are drawn black and white


@dataclass(frozen=True)
class ReadBounds:
    """What this process reads of one scan: bytes of the file and of the volume, and voxels for feature maps."""

    file_bytes: int
    volume_bytes: int
    voxels: int


WITH_STAGES = ReadBounds(MAX_FILE_BYTES, MAX_VOLUME_BYTES, MAX_VOXELS)  # stages in this process need that much anyway
ALONE = ReadBounds(2**26, 2**27, 12 * 2**20)  # a console beside a broker stays below 400 MB; 256 x 256 x 192 voxels


def read_image(item: Input | SequenceInput, bounds: ReadBounds) -> NiftiScan:
    """The FLAIR volume of an uploaded scan, or that of another sequence, within the bounds.

    Raises
    ------
    UsageError: it cannot be read, or is over a bound. The text does not name the server's folders.
    """
    try:
        return read_scan(_read(item, bounds), item.channel, bounds.volume_bytes)
    except NiftiError as error:
        raise UsageError(f"the image cannot be shown: {error}") from None
    except OSError as error:
        raise UsageError(f"the image cannot be read: {error.strerror or type(error).__name__}") from None
    except ValueError as error:
        text = str(error).replace(f"{item.path}{os.sep}", "").replace(f"{item.path.parent}{os.sep}", "")
        raise UsageError(f"the image cannot be read: {text}") from None


def read_sequence(item: Input, name: str, bounds: ReadBounds) -> NiftiScan:
    """The volume of another sequence of an uploaded scan, on its own grid.

    Raises
    ------
    UsageError: as ``read_image``, or it has too many voxels to be put onto the FLAIR's grid here.
    """
    try:
        scan = read_image(item.sequences[name], bounds)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    if (voxels := scan.volume.size) > bounds.voxels:
        raise UsageError(f"{name}: {voxels} voxels are over this console's limit of {bounds.voxels}")
    return scan


def read_on_flair(item: Input, name: str, bounds: ReadBounds) -> NiftiScan:
    """As ``read_sequence``, on the grid of the FLAIR. Raises UsageError also if the files do not say where they are."""
    flair = read_image(item, bounds)
    shape, grid, placed = flair.volume.shape, flair.affine, flair.is_placed
    del flair  # one volume is in memory at a time
    scan = read_sequence(item, name, bounds)
    try:
        placed = placed and scan.is_placed
        return replace(scan, volume=on_grid(scan.volume, scan.affine, shape, grid, placed=placed), affine=grid)
    except (UnusableScan, np.linalg.LinAlgError) as error:
        raise UsageError(f"{name}: the image cannot be shown: {error}") from None


def view_image(scan: NiftiScan) -> bytes:
    """The volume for the browser: a NIfTI-1 file, gzipped. Raises UsageError: the affine gives it no orientation."""
    voxels, affine = _canonical(scan.volume, scan.affine)
    if voxels.dtype.kind == "f" or voxels.dtype.itemsize > 2 or voxels.dtype == np.uint16:
        with np.errstate(over="ignore", invalid="ignore"):
            voxels = fit_float32(voxels).astype(np.float32)
        finite = np.isfinite(voxels)
        if not finite.all():
            voxels[~finite] = voxels[finite].min() if finite.any() else 0
    else:
        voxels = voxels.astype(np.int16)
    sample = voxels.ravel(order="K")[:: max(1, voxels.size // SAMPLE)]
    low, high = (float(value) for value in np.percentile(sample, GREY))
    return _nifti(voxels, affine, (low, high) if high > low else (low, low + 1))


def view_mask(mask: Any, affine: NDArray[np.float64] | None = None) -> bytes:
    """The mask, a nibabel image, on the grid of ``view_image``.

    ``affine``: the scan's, which decides where the header's forms contradict each other; None: the mask's own.
    """
    inside = (np.asarray(mask.dataobj) > 0).astype(np.uint8)
    return _nifti(*_canonical(inside, mask.affine if affine is None else affine), (0, 1))


def shown_step(shape: tuple[int, ...]) -> int:
    """Every how many pixels along x and y the browser gets one. It gets all slices."""
    return max(1, math.ceil(math.sqrt(math.prod(shape) / SHOWN_VOXELS)))


def _canonical(volume: NDArray[Any], affine: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The volume along canonical axes, and its affine without the rotation, about the same centre."""
    orientation = nib.io_orientation(affine)
    if np.isnan(orientation).any():
        raise UsageError("the image cannot be shown: sform, qform: the affine maps two of its axes onto one")
    turned = affine @ nib.orientations.inv_ornt_aff(orientation, volume.shape)
    canonical = nib.apply_orientation(volume, orientation)
    step = shown_step(volume.shape)
    shown = canonical[::step, ::step]
    middle = turned @ [*((np.array(canonical.shape) - 1) / 2), 1.0]
    straight = np.diag([*(voxel_sizes(turned) * (step, step, 1)), 1.0])
    straight[:3, 3] = middle[:3] - voxel_sizes(turned) * (np.array(canonical.shape) - 1) / 2
    return shown, straight


def _nifti(voxels: NDArray[Any], affine: NDArray[np.float64], grey: tuple[float, float]) -> bytes:
    """A NIfTI-1 file with nothing in its header but the grid, the affine and the range of grey; gzipped."""
    header = nib.Nifti1Header()
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header.set_zooms(voxel_sizes(affine))
    header.set_sform(affine, code=1)
    header.set_xyzt_units("mm")
    header["cal_min"], header["cal_max"] = grey
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    start = header.binaryblock + b"\0\0\0\0"  # no extensions
    return gzip.compress(start + voxels.tobytes(order="F"), compresslevel=1, mtime=0)


def _read(item: Input | SequenceInput, bounds: ReadBounds) -> bytes:
    if item.volume is not None:
        return item.volume.read()
    with open_regular(item.path) as file:
        if (size := os.fstat(file.fileno()).st_size) > bounds.file_bytes:
            raise NiftiError(f"a file of {size} bytes is over the limit of {bounds.file_bytes} bytes")
        return file.read(bounds.file_bytes)

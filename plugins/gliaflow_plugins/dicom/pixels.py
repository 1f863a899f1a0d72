"""The voxels of a series: pixel × slope + intercept, slice by slice.

Pixels that are not compressed are read here. Compressed ones are decoded in a child process (see ``decode``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gliaflow_plugins.dicom.compressed import CompressedFrames
from gliaflow_plugins.dicom.compression import ENCAPSULATED
from gliaflow_plugins.dicom.geometry import Name, names_of
from gliaflow_plugins.dicom.headers import Header, dataset_start, inflate, quiet, read_header
from gliaflow_plugins.dicom.images import PIXEL_FORMAT, DicomSlice, check_pixels
from gliaflow_plugins.nifti_bytes import MAX_FILE_BYTES, check_bytes
from gliaflow_plugins.regular_files import open_regular


@dataclass(frozen=True)
class PixelFormat:
    """How a pixel is stored: of ``allocated`` bits, ``stored`` ones up to ``high``, with a sign or without."""

    allocated: int
    stored: int
    high: int
    signed: bool

    @classmethod
    def of(cls, header: Header) -> PixelFormat:
        fields = header.fields
        allocated = fields.whole("BitsAllocated") or 0
        stored = fields.whole("BitsStored") or allocated
        high = fields.whole("HighBit")
        high = stored - 1 if high is None else high
        if not stored - 1 <= high < allocated:
            raise ValueError(f"HighBit: {high}; with BitsStored {stored} it must be {stored - 1}–{allocated - 1}")
        return cls(allocated, stored, high, fields.whole("PixelRepresentation") == 1)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"{'i' if self.signed else 'u'}{self.allocated // 8}")

    def values(self, raw: NDArray[Any]) -> NDArray[Any]:
        """The numbers in raw pixels of any byte order: other bits (overlays, say) are removed, the sign is extended."""
        bits = raw.astype(np.dtype(f"u{self.allocated // 8}"), copy=False)
        bits = bits << (self.allocated - 1 - self.high)
        return bits.view(self.dtype) >> (self.allocated - self.stored)


def read_voxels(slices: Sequence[DicomSlice]) -> NDArray[Any]:
    """The voxels [column, row, slice], as stored integers if no slice is rescaled, else as float32.

    Raises
    ------
    OSError, ValueError: a file cannot be read, is damaged or too large, or has changed. The text names the file.
    """
    name = names_of(slices)
    rows, columns = slices[0].shape
    headers, formats = _headers(slices, name)
    rescaled = any((each.slope, each.intercept) != (1.0, 0.0) for each in slices)
    dtype = np.dtype(np.float32) if rescaled else np.result_type(*(form.dtype for form in formats.values()))
    check_bytes((columns, rows, len(slices)), dtype)
    voxels = np.empty((columns, rows, len(slices)), dtype, order="F")
    native = NativeFrames()
    with CompressedFrames() as compressed:
        for index, each in enumerate(slices):
            header = headers[each.path]
            read = compressed.read if header.syntax in ENCAPSULATED else native.read
            try:
                pixels = formats[each.path].values(read(each, header))
                if rescaled:
                    pixels = _rescale(pixels, each)
            except ValueError as error:
                raise ValueError(f"{name(each)}: {error}") from None
            voxels[:, :, index] = pixels.T
    return voxels


def _headers(slices: Sequence[DicomSlice], name: Name) -> tuple[dict[Path, Header], dict[Path, PixelFormat]]:
    """The header and the format of each file. It must state what it stated when the file was found."""
    headers: dict[Path, Header] = {}
    formats: dict[Path, PixelFormat] = {}
    with quiet():
        for each in slices:
            if each.path in headers:
                continue
            try:
                header = read_header(each.path, (*PIXEL_FORMAT, "SOPInstanceUID"))
                shape = (header.fields.whole("Rows"), header.fields.whole("Columns"))
                if (header.fields.text("SOPInstanceUID"), shape) != (each.sop_uid, each.shape):
                    raise ValueError("the file has changed since it was found; try again")
                check_pixels(header)
                formats[each.path] = PixelFormat.of(header)
            except ValueError as error:
                raise ValueError(f"{name(each)}: {error}") from None
            headers[each.path] = header
    return headers, formats


class NativeFrames:
    """Reads frames that are not compressed. It keeps the last deflated file."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._inflated = b""

    def read(self, each: DicomSlice, header: Header) -> NDArray[Any]:
        """The raw pixels of the frame. Raises ValueError if they are cut short."""
        assert header.pixels is not None
        rows, columns = each.shape
        allocated = header.fields.whole("BitsAllocated") or 0
        dtype = np.dtype(f"{'<' if header.little_endian else '>'}u{allocated // 8}")
        size = rows * columns * dtype.itemsize
        start = header.pixels.start + each.frame * size
        with open_regular(each.path) as file:
            if header.deflated:
                if self._path != each.path:
                    _, begin = dataset_start(file)
                    end = header.pixels.start + (header.fields.whole("NumberOfFrames") or 1) * size
                    self._path, self._inflated = each.path, inflate(file, begin, min(end, MAX_FILE_BYTES))
                data = self._inflated[start : start + size]
            else:
                file.seek(start)
                data = file.read(size)
        if len(data) < size:
            raise ValueError(f"cut short: {len(data)} of {size} bytes of pixel data")
        raw = np.frombuffer(data, dtype)
        if allocated == 8 and not header.little_endian and header.pixels.vr == "OW":
            if size % 2:
                raise ValueError("an odd number of 8-bit pixels in big-endian words; convert it to little endian")
            raw = raw.reshape(-1, 2)[:, ::-1].reshape(-1)  # the bytes are in words (PS3.5, 8.1.1)
        return raw.reshape(rows, columns)


def _rescale(pixels: NDArray[Any], each: DicomSlice) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        values = pixels.astype(np.float32) * np.float32(each.slope) + np.float32(each.intercept)
    if not np.isfinite(values).all():
        raise ValueError(f"RescaleSlope, RescaleIntercept: {each.slope:g}, {each.intercept:g} give infinite values")
    return values

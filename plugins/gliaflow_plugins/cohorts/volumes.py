"""Images of a cohort as NIfTI bytes: an image file, a stack of .tif slices. ``gliaflow_plugins.dicom`` reads DICOM.

Image files are untrusted: every size is checked before memory is allocated.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gliaflow_plugins.cohorts.other_formats import convert, is_other_format
from gliaflow_plugins.nifti_bytes import MAX_FILE_BYTES, as_nifti, check_size
from gliaflow_plugins.regular_files import open_regular


@dataclass(frozen=True)
class NiftiFile:
    """A NIfTI file, or an image file of another format that is converted when it is read (see ``other_formats``)."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def read(self) -> bytes:
        """See ``Volume.read``."""
        try:
            file = open_regular(self.path)
        except OSError as error:
            raise OSError(f"{self.path}: {error.strerror}") from None
        with file:
            if is_other_format(self.path):
                return convert(self.path)
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise ValueError(f"{self.path}: {size} bytes, over the limit of {MAX_FILE_BYTES}")
            return file.read(MAX_FILE_BYTES)


@dataclass(frozen=True)
class TiffStack:
    """Axial slices, one .tif file for each, from the feet up; rows run to the back and columns to the patient's left.

    ``channel``: the channel of a colour image; None: the images are grey. A .tif file has no millimetres, so
    ``spacing`` is nominal.
    """

    paths: tuple[Path, ...]
    channel: int | None = None
    spacing: tuple[float, float, float] = (0.9375, 0.9375, 5.0)

    def __str__(self) -> str:
        return f"{self.paths[0]} and {len(self.paths) - 1} more"

    def read(self) -> bytes:
        """See ``Volume.read``. Needs Pillow."""
        try:
            from PIL import Image
        except ModuleNotFoundError:
            raise ValueError(f"{self}: .tif slices need Pillow: pip install 'gliaflow[train]'") from None
        planes: list[NDArray[Any]] = []
        for path in self.paths:
            try:
                with Image.open(path, formats=["TIFF"]) as image:
                    size = planes[0].shape[::-1] if planes else image.size
                    if image.size != size:
                        raise ValueError(f"{image.size} pixels; the slices before it have {size}")
                    check_size((*size, len(self.paths)))
                    planes.append(self._plane(np.asarray(image)))
            except Exception as error:  # Pillow raises many types for a broken file; warnings may be errors too
                raise ValueError(f"{path}: {error}") from None
        x, y, z = self.spacing
        return as_nifti(np.stack(planes, axis=-1).transpose(1, 0, 2), np.diag([-x, -y, z, 1]))

    def repeats(self, channel: int) -> bool:
        """Whether another channel has the same values on the middle slice, or cannot be read there."""
        try:
            from PIL import Image

            with Image.open(self.paths[len(self.paths) // 2], formats=["TIFF"]) as image:
                check_size((*image.size, 1))
                pixels = np.asarray(image)
        except Exception:  # Pillow raises many types; reading the scan reports them
            return True
        if pixels.ndim != 3 or max(channel, self.channel or 0) >= pixels.shape[2]:
            return True
        return bool((pixels[..., channel] == pixels[..., self.channel or 0]).all())

    def _plane(self, pixels: NDArray[Any]) -> NDArray[Any]:
        if self.channel is not None and pixels.ndim == 3 and self.channel < pixels.shape[2]:
            pixels = pixels[..., self.channel]
        elif self.channel is not None or pixels.ndim != 2:
            wanted = "a grey image" if self.channel is None else f"a colour image with a channel {self.channel}"
            raise ValueError(f"pixels {pixels.shape}, expected {wanted}")
        return pixels.astype(np.uint8) if pixels.dtype == bool else pixels

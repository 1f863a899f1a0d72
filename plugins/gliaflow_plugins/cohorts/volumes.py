"""Images of a cohort as NIfTI bytes: an image file, a stack of .tif slices, a DICOM series.

Image files are untrusted: every size is checked before memory is allocated.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gliaflow_plugins.cohorts.nifti_bytes import MAX_FILE_BYTES, as_nifti, check_size
from gliaflow_plugins.cohorts.other_formats import convert, is_other_format
from gliaflow_plugins.cohorts.regular_files import open_regular

MAX_FOLDERS = 1000  # under one patient's DICOM folder
DESCRIPTIONS = ("0008|103e", "0018|1030")  # DICOM PS3.6: Series Description, Protocol Name


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

    def _plane(self, pixels: NDArray[Any]) -> NDArray[Any]:
        if self.channel is not None and pixels.ndim == 3 and self.channel < pixels.shape[2]:
            pixels = pixels[..., self.channel]
        elif self.channel is not None or pixels.ndim != 2:
            wanted = "a grey image" if self.channel is None else f"a colour image with a channel {self.channel}"
            raise ValueError(f"pixels {pixels.shape}, expected {wanted}")
        return pixels.astype(np.uint8) if pixels.dtype == bool else pixels


@dataclass(frozen=True)
class DicomSeries:
    """The DICOM series under a folder; of several, the one whose description contains FLAIR."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def read(self) -> bytes:
        """See ``Volume.read``. Needs SimpleITK."""
        try:
            import SimpleITK as sitk
        except ModuleNotFoundError:
            raise ValueError(f"{self}: DICOM needs SimpleITK: pip install 'gliaflow[dicom]'") from None
        sitk.ProcessObject.SetGlobalWarningDisplay(False)  # it would write to the terminal, outside our logs
        try:
            return self._read(sitk)
        except RuntimeError as error:  # ITK's text begins with lines about its own code
            raise ValueError(f"{self}: {' '.join(str(error).rpartition('ERROR: ')[2].split())}") from None

    def _read(self, sitk: Any) -> bytes:
        files = self._flair(sitk)
        header = _dicom_header(sitk, files[0])
        if header.GetNumberOfComponents() != 1:
            raise ValueError(f"{files[0]}: a colour image, not a scan")
        check_size((*header.GetSize()[:2], len(files)), f"{self}: ")
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(files)
        image = reader.Execute()
        if image.HasMetaDataKey("ITK_non_uniform_sampling_deviation"):
            raise ValueError(f"{self}: slices are missing from the series, or not evenly spaced")
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        # DICOM's x and y run to the left and back, NIfTI's to the right and front
        return as_nifti(sitk.GetArrayViewFromImage(image).transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine)

    def _flair(self, sitk: Any) -> list[str]:
        """The files of the FLAIR series, in the order of their positions."""
        series: dict[str, list[str]] = {}
        for number, (folder, _, names) in enumerate(os.walk(self.folder)):
            if number >= MAX_FOLDERS:
                raise ValueError(f"{self}: over {MAX_FOLDERS} folders; a DICOM cohort has one folder for each patient")
            for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(folder) if names else ():
                files = list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(folder, uid))
                header = _dicom_header(sitk, files[0])
                texts = [header.GetMetaData(key).strip() for key in DESCRIPTIONS if header.HasMetaDataKey(key)]
                series[f"{' / '.join(dict.fromkeys(filter(None, texts))) or 'no description'} ({uid})"] = files
        if not series:
            raise ValueError(f"{self}: no DICOM series in it")
        flair = [name for name in series if "flair" in name.casefold()] if len(series) > 1 else list(series)
        if len(flair) != 1:
            which = "several series are FLAIR" if flair else "several series, and none is called FLAIR"
            raise ValueError(f"{self}: {which}; keep one of {', '.join(sorted(flair or series))}")
        return series[flair[0]]


def _dicom_header(sitk: Any, file: str) -> Any:
    header = sitk.ImageFileReader()
    header.SetFileName(file)
    header.ReadImageInformation()
    return header

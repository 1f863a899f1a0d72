"""A DICOM series of MR images that shows one volume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gliaflow_plugins.dicom.geometry import affine_of
from gliaflow_plugins.dicom.headers import full_dataset, quiet
from gliaflow_plugins.dicom.images import DicomSlice
from gliaflow_plugins.dicom.pixels import read_voxels
from gliaflow_plugins.nifti_bytes import as_nifti

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset


@dataclass(frozen=True)
class DicomSeries:
    """One volume: the slices of a series, or of one echo in it.

    Parameters
    ----------
    uid, study: SeriesInstanceUID and StudyInstanceUID. number: SeriesNumber.
    description: SeriesDescription and ProtocolName, for the terminal of the user alone: people write names into them.
    echo_ms: which echo, if the series has several.
    slices: in order along the normal (the cross product of ``row`` and ``column``), rising.
    problem: why the volume cannot be read rightly, with the files' names and the remedy; empty: it can.
    warnings: doubts, one sentence each.
    unusable: files of the series without a usable slice; then there is a ``problem``.
    patient_id: PatientID, only to compare, never to show.
    choices: if several series of the study may be FLAIR, the values of --series that choose; then there is a
        ``problem``.
    sequences: of a FLAIR series, the other sequences of its study (t1, t1ce, t2), as far as they were looked for.
    sequence_problems: why one is not used, though the study has series that may be it.
    """

    uid: str
    study: str
    number: int | None
    description: str
    echo_ms: float | None
    slices: tuple[DicomSlice, ...]
    problem: str = ""
    warnings: tuple[str, ...] = ()
    unusable: tuple[Path, ...] = ()
    choices: tuple[str, ...] = ()
    patient_id: str = field(default="", repr=False)
    sequences: Mapping[str, DicomSeries] = field(default_factory=dict, compare=False, repr=False)
    sequence_problems: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        first, *more = self.paths
        return f"{first} and {len(more)} more" if more else str(first)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, each once, in the order of ``slices``."""
        return tuple(dict.fromkeys([*(each.path for each in self.slices), *self.unusable]))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows and slices."""
        rows, columns = self.slices[0].shape
        return columns, rows, len(self.slices)

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel to mm, RAS. Only right if there is no ``problem``."""
        return affine_of(self.slices)

    def read(self) -> bytes:
        """See ``Volume.read``: the voxels [column, row, slice]. Raises ValueError also if there is a ``problem``."""
        if self.problem:
            raise ValueError(self.problem)
        voxels: NDArray[Any] = read_voxels(self.slices)
        return as_nifti(voxels, self.affine)

    def headers(self) -> list[Dataset]:
        """The whole header of each of ``paths``, without its pixel data.

        Raises
        ------
        OSError, ValueError: a file cannot be read any more. The text names it.
        """
        datasets: list[Dataset] = []
        with quiet():
            for path in self.paths:
                try:
                    datasets.append(full_dataset(path))
                except ValueError as error:
                    raise ValueError(f"{path}: {error}") from None
        return datasets

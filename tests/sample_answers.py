"""Answers to DICOM series, without a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lz4.block
import numpy as np
from gliaflow.answer import Answer, PackedMask
from gliaflow_plugins.dicom.choose import FlairRules, find_series
from gliaflow_plugins.dicom.series import DicomSeries
from numpy.typing import NDArray
from sample_dicom import write_flair

SHAPE = (30, 27, 12)  # columns, rows, slices


def voxels(shape: tuple[int, int, int] = SHAPE) -> NDArray[np.int16]:
    return np.random.default_rng(0).integers(0, 500, shape).astype(np.int16)


def lesion(shape: tuple[int, int, int] = SHAPE) -> NDArray[np.bool_]:
    """A mask without any symmetry, which touches an edge."""
    mask = np.zeros(shape, bool)
    mask[3:9, 20:26, 2:7] = np.random.default_rng(1).random((6, 6, 5)) > 0.5
    mask[shape[0] - 1, 2, shape[2] - 1] = True
    return mask


def flair_series(paths: list[Path], *wanted: str) -> DicomSeries:
    """The series in these files."""
    (series,) = find_series(paths, FlairRules(wanted=wanted)).flair
    return series


def small_series(folder: Path, **options: Any) -> DicomSeries:
    """A small series of single frames. ``options``: of ``sample_dicom.single_frames``."""
    return flair_series(write_flair(folder, voxels(), **options))


def answer_to(
    series: DicomSeries, mask: NDArray[Any] | None = None, affine: NDArray[Any] | None = None, **changes: Any
) -> Answer:
    """An answer with this mask (``lesion``, if none is given). ``changes``: of the answer's fields."""
    mask = np.ascontiguousarray(lesion() if mask is None else mask, np.uint8)
    affine = series.affine if affine is None else affine
    fields: dict[str, Any] = {
        "status": "ok",
        "grade": "HGG",
        "p_hgg": float(np.float32(0.934)),
        "tumour_ml": float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000),
        "bundle": "demo@0123456789ab",
        "trained_on": "phantoms",
        "_mask": PackedMask(lz4.block.compress(mask), mask.shape, mask.dtype.str, tuple(affine.ravel())),
    }
    return Answer("scan", "patient", str(series), **(fields | changes))


def no_tumour(series: DicomSeries) -> Answer:
    empty = np.zeros(series.shape, bool)
    return answer_to(series, empty, status="no tumour", grade=None, p_hgg=None)

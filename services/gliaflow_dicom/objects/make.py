"""From an answer to its DICOM objects."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

from gliaflow.answer import Answer
from gliaflow_plugins.dicom.headers import quiet
from gliaflow_plugins.dicom.series import DicomSeries
from pydicom.dataset import Dataset

from gliaflow_dicom.objects.graded_series import GradedSeries
from gliaflow_dicom.objects.report import make_report
from gliaflow_dicom.objects.segmentation import make_segmentation

logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)  # its messages quote headers


def make_objects(
    series: DicomSeries, answer: Answer, *, capture: bool = False, made_at: datetime | None = None
) -> dict[str, Dataset]:
    """The answer to ``series`` as DICOM objects, by the ending of their files: ``_seg.dcm``, ``_sr.dcm``, ``_sc.dcm``.

    Each is in a series of its own in the study of ``series``. The same series, bundle and ``made_at`` (now, by default)
    give the same bytes; the UIDs do not depend on ``made_at``.

    Parameters
    ----------
    capture: whether to make the secondary capture too. It needs matplotlib.

    Raises
    ------
    ValueError: an object cannot be made rightly: the answer has no mask, its mask is not on the grid of the series, or
        a header lacks what the objects need. The text names the file and the field. Or a file is gone.
    """
    try:
        return _make_objects(series, answer, capture, made_at or datetime.now())
    except OSError as error:
        raise ValueError(f"{Path(str(error.filename)).name}: {error.strerror or type(error).__name__}") from None


def _make_objects(series: DicomSeries, answer: Answer, capture: bool, made_at: datetime) -> dict[str, Dataset]:
    with quiet():
        graded = GradedSeries.of(series, answer, made_at)
        segmentation = make_segmentation(graded)
        objects = {"_seg.dcm": segmentation, "_sr.dcm": make_report(graded, segmentation)}
        if capture:
            from gliaflow_dicom.objects.capture import make_capture

            objects["_sc.dcm"] = make_capture(graded)
    return objects

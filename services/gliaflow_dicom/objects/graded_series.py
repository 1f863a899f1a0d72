"""A series with its answer: what all objects that are made of them share."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from gliaflow.answer import Answer
from gliaflow_plugins.dicom.images import DicomSlice
from gliaflow_plugins.dicom.series import DicomSeries
from gliaflow_proto import NO_TUMOUR
from gliaflow_runtime.version import VERSION
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.valuerep import DA, DT, TM

from gliaflow_dicom.objects.source_header import UIDS, checked_uid, patient_and_study
from gliaflow_dicom.objects.uids import derived_uid, object_uid, series_number

NAME = "gliaflow"
NOTICE = "Not a medical device"
SHIFT_MM = 0.01  # of a corner: NIfTI headers hold float32


@dataclass(frozen=True)
class SourceImage:
    """One file of the series: how objects refer to it. ``multi_frame``: also by the number of a frame."""

    sop_class: str
    sop_uid: str
    multi_frame: bool


@dataclass(frozen=True)
class GradedSeries:
    """A series, its answer, and what the objects take from both.

    Parameters
    ----------
    made_at: the date and time of the objects.
    mask: bool [columns, rows, slices], on the grid of the series.
    header: patient, study and frame of reference, in UTF-8.
    warnings: doubts about the answer, and about the header.
    images: the series' files.
    """

    series: DicomSeries
    answer: Answer
    made_at: datetime
    mask: NDArray[np.bool_]
    header: Dataset
    warnings: tuple[str, ...]
    images: dict[Path, SourceImage]

    @classmethod
    def of(cls, series: DicomSeries, answer: Answer, made_at: datetime) -> GradedSeries:
        """Read the headers of ``series``, and check that ``answer`` fits it.

        Raises
        ------
        ValueError: the series cannot be read rightly, there is no mask, the mask is on another grid, or the answer or
            a header lacks what the objects need.
        """
        if series.problem:
            raise ValueError(series.problem)
        mask = _fitting_mask(series, answer)
        needed = ("bundle", "tumour_ml") if answer.status == NO_TUMOUR else ("bundle", "tumour_ml", "grade", "p_hgg")
        if lacking := [name for name in needed if getattr(answer, name) is None]:
            raise ValueError(f"{answer.scan}: the answer has no {' and no '.join(lacking)}")
        headers = series.headers()
        header, doubts = patient_and_study(series, headers)
        by_path = dict(zip(series.paths, headers, strict=True))
        return cls(
            series=series,
            answer=answer,
            made_at=made_at,
            mask=mask,
            header=header,
            warnings=tuple(dict.fromkeys([*answer.warnings, *series.warnings, *doubts])),
            images={path: _source_image(path, each) for path, each in by_path.items()},
        )

    @property
    def bundle(self) -> str:
        """The bundle that answered: its name and digest."""
        return self.answer.bundle or ""

    def uid(self, kind: str) -> str:
        """The UID of the object, series or other thing of this kind."""
        return object_uid(self.series, self.bundle, kind)

    def image_of(self, each: DicomSlice) -> SourceImage:
        """The image in which a slice is."""
        return self.images[each.path]

    def references(self) -> list[Dataset]:
        """A reference to each image of the series."""
        items = []
        for image in self.images.values():
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.sop_class, image.sop_uid
            items.append(item)
        return items

    def headers_of(self, images: Iterable[SourceImage]) -> list[Dataset]:
        """Headers as highdicom reads them of these images of the series. The first has patient and study."""
        headers: list[Dataset] = []
        for image in images:
            header = Dataset() if headers else deepcopy(self.header)
            for keyword in UIDS:
                setattr(header, keyword, self.header[keyword].value)
            header.SOPClassUID, header.SOPInstanceUID = image.sop_class, image.sop_uid
            headers.append(header)
        return headers

    def describe(self, kind: str, title: str) -> dict[str, Any]:
        """The arguments of highdicom that are alike for objects of every kind."""
        return {
            "series_instance_uid": self.uid(f"{kind} series"),
            "series_number": series_number(self.series, kind),
            "series_description": f"{NAME} {title} ({NOTICE.lower()})",
            "sop_instance_uid": self.uid(kind),
            "instance_number": 1,
            "manufacturer": NAME,
            "manufacturer_model_name": NAME,
            "software_versions": VERSION,
            "device_serial_number": device_uid(self.bundle),
        }

    def stamped(self, dataset: Dataset) -> Dataset:
        """``dataset`` with ``made_at`` in the fields of its date and time, where highdicom writes the clock's."""
        date, time = DA(self.made_at.date()), TM(self.made_at.time())
        dataset.SeriesDate = dataset.ContentDate = dataset.InstanceCreationDate = date
        dataset.SeriesTime = dataset.ContentTime = dataset.InstanceCreationTime = time
        for equipment in dataset.get("ContributingEquipmentSequence", ()):
            if "ContributionDateTime" in equipment:
                equipment.ContributionDateTime = DT(self.made_at.replace(tzinfo=None))
        return dataset


def device_uid(bundle: str) -> str:
    """The UID of gliaflow with this bundle as an observing device."""
    return derived_uid("device", VERSION, bundle.rpartition("@")[2])


def _source_image(path: Path, header: Dataset) -> SourceImage:
    return SourceImage(
        sop_class=checked_uid(header, "SOPClassUID", str(path)),
        sop_uid=checked_uid(header, "SOPInstanceUID", str(path)),
        multi_frame="NumberOfFrames" in header,
    )


def _fitting_mask(series: DicomSeries, answer: Answer) -> NDArray[np.bool_]:
    """The answer's mask, if it is on the grid of the series."""
    image = answer.mask
    if image is None:
        raise ValueError(f"{answer.scan}: there is no mask to write as DICOM ({answer.reason or answer.status})")
    if tuple(image.shape) != tuple(series.shape):
        raise ValueError(
            f"{answer.scan}: the mask has {_times(image.shape)} voxels and the series {_times(series.shape)}: "
            "it is the answer to another scan"
        )
    corners = np.array(np.meshgrid(*([0, size - 1] for size in series.shape), [1], indexing="ij")).reshape(4, -1)
    shift = np.linalg.norm(((image.affine - series.affine) @ corners)[:3], axis=0).max()
    if not shift <= SHIFT_MM:
        raise ValueError(
            f"{answer.scan}: the mask is {shift:.2f} mm away from the series: it is the answer to another scan"
        )
    return np.asarray(image.dataobj) > 0


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))

"""The mask as a DICOM segmentation (SEG)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from gliaflow_runtime.version import VERSION
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pydicom.valuerep import format_number_as_ds

from gliaflow_dicom.objects.graded_series import NAME, GradedSeries, SourceImage

LABEL = "FLAIR abnormality"
COLOUR = CIELabColor(78.0, 15.0, 79.0)  # the orange of gliaflow's outlines
PLACE = "2.25."  # and the number of a slice: stands for the UID of its image until highdicom is done


def make_segmentation(graded: GradedSeries) -> Dataset:
    """A BINARY segmentation on the source's own grid: a frame for each slice, also for those without tumour."""
    algorithm = AlgorithmIdentificationSequence(
        name=NAME,
        family=codes.cid7162.ArtificialIntelligence,
        version=VERSION,
        parameters={"bundle": graded.bundle},
    )
    segment = SegmentDescription(
        segment_number=1,
        segment_label=LABEL,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Neoplasm,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=graded.uid("segment"),
        tracking_id=LABEL,
        anatomic_regions=[codes.SCT.Brain],
        display_color=COLOUR,
    )
    dataset = Segmentation(
        source_images=_slices(graded),
        pixel_array=graded.mask.transpose(2, 1, 0).astype(np.uint8),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        omit_empty_frames=False,  # without them, viewers draw the others in the wrong place
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_label="GLIAFLOW",
        content_description=LABEL,
        **graded.describe("SEG", "segmentation"),
    )
    _refer_to_images(dataset, graded)
    organization = graded.uid("dimensions")
    dataset.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for index in dataset.DimensionIndexSequence:
        index.DimensionOrganizationUID = organization
    return graded.stamped(dataset)


def _slices(graded: GradedSeries) -> list[Dataset]:
    """A header for each slice, as of a series of single frames.

    highdicom takes the geometry from these, so that it is the same for single-frame and multi-frame series, several
    files and a selection of a file's frames.
    """
    lps = np.diag([-1.0, -1, 1, 1]) @ graded.series.affine
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    cosines = lps[:3, :3] / steps
    columns, rows, count = graded.series.shape
    slices = graded.headers_of(SourceImage(MRImageStorage, f"{PLACE}{n}", multi_frame=False) for n in range(count))
    for number, header in enumerate(slices):
        header.Modality, header.Rows, header.Columns = "MR", rows, columns
        header.ImageOrientationPatient = _decimals([*cosines[:, 0], *cosines[:, 1]])
        header.ImagePositionPatient = _decimals((lps @ [0, 0, number, 1])[:3])
        header.PixelSpacing = _decimals([steps[1], steps[0]])  # rows first
        header.SliceThickness = header.SpacingBetweenSlices = _decimals([steps[2]])[0]
    return slices


def _decimals(values: Iterable[float]) -> list[str]:
    return [format_number_as_ds(float(value) + 0.0) for value in values]  # + 0.0: no negative zero


def _refer_to_images(dataset: Dataset, graded: GradedSeries) -> None:
    """Replace the references to the headers of ``_slices`` by those to the images, and to their frames."""
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
        each = graded.series.slices[int(reference.ReferencedSOPInstanceUID.removeprefix(PLACE))]
        image = graded.image_of(each)
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.sop_class, image.sop_uid
        if image.multi_frame:
            reference.ReferencedFrameNumber = each.frame + 1
    dataset.SourceImageSequence = graded.references()
    dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence = graded.references()

"""The answer as a DICOM structured report (SR, template TID 1500)."""

from __future__ import annotations

from gliaflow_proto import NO_TUMOUR
from gliaflow_runtime.version import VERSION
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ComprehensiveSR,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    ReferencedSegment,
    RelationshipTypeValues,
    SourceSeriesForSegmentation,
    TextContentItem,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from gliaflow_dicom.objects.graded_series import NAME, NOTICE, GradedSeries, device_uid
from gliaflow_dicom.objects.segmentation import LABEL

SCHEME = "99GLIAFLOW"


def _own(value: str, meaning: str) -> CodedConcept:
    return CodedConcept(value, SCHEME, meaning)


P_HGG = _own("P_HGG", "Probability of high-grade glioma")
GRADE = _own("GRADE", "Predicted glioma grade")
GRADES = {
    "HGG": _own("HGG", "High-grade glioma (HGG)"),
    "LGG": _own("LGG", "Low-grade glioma (LGG)"),
    NO_TUMOUR: _own("NO_TUMOUR", "No tumour"),
}
BUNDLE = _own("BUNDLE", "Model bundle")
TRAINED_ON = _own("TRAINED_ON", "Training data of the model")
WARNING = _own("WARNING", "Warning")
USE = _own("USE", "Intended use")
BRAIN_MR = CodedConcept("816077007", "SCT", "Magnetic resonance imaging of brain")
MILLILITRE = CodedConcept("ml", "UCUM", "milliliter")
EVALUATIONS = CodedConcept("C0034375", "UMLS", "Qualitative Evaluations")
TRAINED = {
    "phantoms": "phantoms (drawings of scans): the answer says nothing about a patient",
    "patients": "scans of patients",
    "": "not stated by the bundle",
}


def make_report(graded: GradedSeries, segmentation: Dataset) -> Dataset:
    """A report with the volume of the segment, p_hgg, the grade, and the doubts about them."""
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=_observer(graded)),
        procedure_reported=BRAIN_MR,
        imaging_measurements=[_measurements(graded, segmentation)],
    )
    content[0].ContentSequence.append(_texts(graded))
    dataset = ComprehensiveSR(
        evidence=[*graded.headers_of(graded.images.values()), segmentation],
        content=content[0],
        is_complete=True,
        is_final=False,
        is_verified=False,  # no person has checked it
        coding_schemes=[CodingSchemeIdentificationItem(SCHEME, name=f"Codes of {NAME}", responsible_organization=NAME)],
        **graded.describe("SR", "report"),
    )
    return graded.stamped(dataset)


def _observer(graded: GradedSeries) -> ObserverContext:
    return ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=device_uid(graded.bundle), name=NAME, manufacturer_name=NAME, model_name=f"{NAME} {VERSION}"
        ),
    )


def _measurements(graded: GradedSeries, segmentation: Dataset) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    """What was measured of the segment."""
    answer = graded.answer
    assert answer.tumour_ml is not None, "GradedSeries.of checks it"
    measurements = [Measurement(codes.SCT.Volume, answer.tumour_ml, MILLILITRE)]
    if answer.p_hgg is not None:  # None: no tumour
        measurements.append(Measurement(P_HGG, answer.p_hgg, codes.UCUM.NoUnits))
    grade = GRADES[answer.grade or NO_TUMOUR]
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=graded.uid("segment"), identifier=LABEL),
        referenced_segment=ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=1,
            source_series=SourceSeriesForSegmentation(graded.series.uid),
        ),
        finding_category=codes.SCT.MorphologicallyAbnormalStructure,
        finding_type=codes.SCT.Neoplasm,
        finding_sites=[FindingSite(codes.SCT.Brain)],
        algorithm_id=AlgorithmIdentification(NAME, VERSION, parameters=[f"bundle={graded.bundle}"]),
        measurements=measurements,
        qualitative_evaluations=[QualitativeEvaluation(GRADE, grade)],
    )


def _texts(graded: GradedSeries) -> ContainerContentItem:
    """What a reader must know about the measurements, as text."""
    contains = RelationshipTypeValues.CONTAINS
    texts = [
        (USE, f"{NOTICE}: it must not be used to diagnose or treat anybody."),
        (BUNDLE, graded.bundle),
        (TRAINED_ON, TRAINED.get(graded.answer.trained_on, graded.answer.trained_on)),
        *((WARNING, text) for text in graded.warnings),
    ]
    container = ContainerContentItem(name=EVALUATIONS, relationship_type=contains)
    container.ContentSequence = ContentSequence(
        [TextContentItem(name, text, relationship_type=contains) for name, text in texts]
    )
    return container

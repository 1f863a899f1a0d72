"""The answer as a structured report."""

from __future__ import annotations

from pathlib import Path

import pytest
from gliaflow_dicom.objects.make import make_objects
from highdicom.sr import ComprehensiveSR
from pydicom.dataset import Dataset
from sample_answers import answer_to, no_tumour, small_series


def content(item: Dataset) -> dict[str, list[str]]:
    """The values in a report by the names of their concepts."""
    values: dict[str, list[str]] = {}
    for each in item.ContentSequence:
        name = each.ConceptNameCodeSequence[0].CodeMeaning
        if "MeasuredValueSequence" in each:
            (measured,) = each.MeasuredValueSequence
            unit = measured.MeasurementUnitsCodeSequence[0].CodeValue
            values.setdefault(name, []).append(f"{float(measured.NumericValue):.6g} {unit}")
        elif "ConceptCodeSequence" in each:
            code = each.ConceptCodeSequence[0]
            values.setdefault(name, []).append(f"{code.CodeValue} {code.CodingSchemeDesignator}")
        elif "TextValue" in each:
            values.setdefault(name, []).append(each.TextValue)
        elif "ContentSequence" in each:
            for key, more in content(each).items():
                values.setdefault(key, []).extend(more)
    return values


def test_a_report_has_volume_probability_and_grade(tmp_path: Path) -> None:
    series = small_series(tmp_path)
    report = make_objects(series, answer_to(series, tumour_ml=12.25))["_sr.dcm"]
    values = content(report)
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert values["Volume"] == ["12.25 ml"]
    assert values["Probability of high-grade glioma"] == ["0.934 1"]
    assert values["Predicted glioma grade"] == ["HGG 99GLIAFLOW"]


def test_without_tumour_there_is_no_probability(tmp_path: Path) -> None:
    series = small_series(tmp_path)
    values = content(make_objects(series, no_tumour(series))["_sr.dcm"])
    assert values["Volume"] == ["0 ml"]
    assert values["Predicted glioma grade"] == ["NO_TUMOUR 99GLIAFLOW"]
    assert "Probability of high-grade glioma" not in values


def test_a_report_states_its_limits(tmp_path: Path) -> None:
    series = small_series(tmp_path)
    values = content(make_objects(series, answer_to(series, warnings=("noisy", "3 × 3 mm")))["_sr.dcm"])
    assert values["Model bundle"] == ["demo@0123456789ab"]
    assert values["Training data of the model"] == [
        "phantoms (drawings of scans): the answer says nothing about a patient"
    ]
    assert values["Warning"] == ["noisy", "3 × 3 mm"]
    assert values["Intended use"] == ["Not a medical device: it must not be used to diagnose or treat anybody."]


def test_no_person_has_verified_it(tmp_path: Path) -> None:
    series = small_series(tmp_path)
    report = make_objects(series, answer_to(series))["_sr.dcm"]
    assert (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    values = content(report)
    assert values["Observer Type"] == ["121007 DCM"]  # a device
    assert values["Device Observer Name"] == ["gliaflow"]


def test_the_measurements_are_those_of_the_segment(tmp_path: Path) -> None:
    series = small_series(tmp_path)
    made = make_objects(series, answer_to(series))
    report = ComprehensiveSR.from_dataset(made["_sr.dcm"])
    (group,) = report.content.get_volumetric_roi_measurement_groups()
    (segment,) = (item for item in group[0].ContentSequence if item.ValueType == "IMAGE")
    assert segment.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == made["_seg.dcm"].SOPInstanceUID
    assert segment.ReferencedSOPSequence[0].ReferencedSegmentNumber == 1
    evidence = [instance for _, _, instance, _ in report.get_evidence()]
    assert evidence == [*(each.sop_uid for each in series.slices), made["_seg.dcm"].SOPInstanceUID]


@pytest.mark.parametrize("field", ["tumour_ml", "p_hgg", "bundle"])
def test_an_answer_without_its_numbers_is_refused(field: str, tmp_path: Path) -> None:
    series = small_series(tmp_path)
    with pytest.raises(ValueError, match=f"scan: the answer has no {field}"):
        make_objects(series, answer_to(series, **{field: None}))

"""The answer for a scan: grade, P(HGG), mask and volume from its graded parts."""

import dataclasses

import numpy as np
import pytest
from assembler_by_hand import SHAPE, FakeBundle, assembler, changed, deliver, part, predictions, run
from gliaflow_classifier.spots import without_spots
from prometheus_client import REGISTRY
from sample_messages import FORMS


def test_the_prediction_has_the_mean_logit_of_slices_with_tumour_and_the_mask_on_the_scans_grid():
    (prediction,) = predictions(run(assembler(), [0, 1, 2]))
    assert prediction.p_hgg == pytest.approx(1 / (1 + np.exp(-(1.0 + 2.0 + 5.0) / 3)))
    assert prediction.grade == "HGG"
    assert (prediction.slices, prediction.tumour_slices) == (6, 3)
    assert prediction.mask.shape == tuple(SHAPE)
    assert prediction.mask.sum(axis=(0, 1)).tolist() == [4, 0, 4, 4, 0, 0]
    assert prediction.tumour_ml == pytest.approx(12 * 2 * 2 * 5 / 1000)


def test_the_prediction_names_each_slice_with_tumour_and_its_own_probability():
    (prediction,) = predictions(run(assembler(), [2, 1, 0]))
    assert prediction.slice_numbers == [0, 2, 3]
    assert prediction.slice_p_hgg == pytest.approx([1 / (1 + np.exp(-logit)) for logit in (1.0, 2.0, 5.0)])
    (prediction,) = deliver(assembler(), changed(part(2), part=[0, 1]))[1].publish
    assert (prediction.slice_numbers, prediction.slice_p_hgg) == ([], []), "no slice without tumour has a say"


def test_a_scan_without_tumour_has_no_grade_and_no_probability():
    before = REGISTRY.get_sample_value("gliaflow_answers_total", {"answer": "no tumour"}) or 0
    (prediction,) = deliver(assembler(), changed(part(2), part=[0, 1]))[1].publish
    assert (prediction.status, prediction.grade, prediction.tumour_ml) == ("no tumour", "", 0.0)
    assert prediction.p_hgg == 0.5, "a number, for readers of earlier versions"
    assert REGISTRY.get_sample_value("gliaflow_answers_total", {"answer": "no tumour"}) == before + 1


def test_spots_smaller_than_the_bundles_smallest_tumour_are_removed(monkeypatch):
    """The parts have a spot of 4 voxels (80 µl) in slice 0, and one of 8 in slices 2 and 3."""
    monkeypatch.setattr(FakeBundle.manifest, "min_tumour_ml", 0.1)
    (prediction,) = predictions(run(assembler(), [0, 1, 2]))
    assert prediction.mask.sum(axis=(0, 1)).tolist() == [0, 0, 4, 4, 0, 0]
    assert (prediction.tumour_slices, prediction.tumour_ml) == (2, pytest.approx(0.16))
    assert prediction.p_hgg == pytest.approx(1 / (1 + np.exp(-(2.0 + 5.0) / 2))), "slice 0 has no tumour now"
    monkeypatch.setattr(FakeBundle.manifest, "min_tumour_ml", 0.2)
    (prediction,) = predictions(run(assembler(), [0, 1, 2]))
    assert (prediction.status, int(prediction.mask.sum())) == ("no tumour", 0)


def test_parts_far_smaller_than_the_largest_are_removed_and_named_if_they_may_be_a_second_tumour(monkeypatch):
    """The parts have a spot of 4 voxels (80 µl) in slice 0, and one of 8 in slices 2 and 3."""
    monkeypatch.setattr(FakeBundle.manifest, "min_tumour_share", 0.4)
    (prediction,) = predictions(run(assembler(), [0, 1, 2]))
    assert (int(prediction.mask.sum()), prediction.warnings) == (12, [])
    monkeypatch.setattr(FakeBundle.manifest, "min_tumour_share", 0.6)
    (prediction,) = predictions(run(assembler(), [0, 1, 2]))
    assert prediction.mask.sum(axis=(0, 1)).tolist() == [0, 0, 4, 4, 0, 0]
    assert prediction.warnings == []
    monkeypatch.setattr("gliaflow_classifier.prediction.NOTED_ML", 0.05)
    (prediction,) = predictions(run(assembler(), [0, 1, 2]))
    (warning,) = prediction.warnings
    assert warning.startswith("the mask leaves out 0.1 ml that is apart from the largest part and has under 60% of its")


def test_pixels_that_touch_at_a_corner_are_one_tumour():
    masks = np.zeros((5, 5, 5), np.uint8)
    masks[0, 0, 0] = masks[1, 1, 1] = masks[4, 4, 4] = 1
    assert np.argwhere(without_spots(masks, pixels=2)).tolist() == [[0, 0, 0], [1, 1, 1]]


def test_parts_that_came_through_a_stage_of_an_earlier_version_lack_the_forms():
    stage, first, second = assembler(), part(0, count=2), part(1, count=2)
    first = changed(first, geometry=dataclasses.replace(first.geometry, forms=FORMS))
    (prediction,) = predictions([deliver(stage, each)[1] for each in (second, first)])
    assert prediction.forms == FORMS


def test_the_prediction_hands_on_the_warnings_of_all_parts_and_what_the_bundle_learned_from():
    stage = assembler()
    parts = [changed(part(0, count=2), warnings=["a", "b"]), changed(part(1, count=2), warnings=["b", "c"])]
    (prediction,) = predictions([deliver(stage, each)[1] for each in parts])
    assert prediction.warnings == ["a", "b", "c"]
    assert prediction.trained_on == "phantoms"

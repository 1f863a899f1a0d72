"""What the training scans set in a bundle: limits of a typical scan, and the smallest tumour."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from gliaflow_preprocessor.typical import statistics
from gliaflow_runtime.bundle.manifest import InputSpec
from gliaflow_trainer.calibration import Masks, spot_limits, typical_limits

SPEC = InputSpec(size=(48, 48), spacing=(4.0, 4.0))
RNG = np.random.default_rng(0)


def disc(noise):
    away = np.hypot(*(np.indices((48, 48)) - 23.5))
    planes = np.where(away < 18, 1 + 0.1 * np.sin(away), 0) + noise * RNG.standard_normal((10, 48, 48))
    return planes.clip(0).astype(np.float16)


def test_limits_are_above_the_training_scans_and_wider_for_few():
    pair = [disc(0.02), disc(0.03)]
    noisier = max(statistics(scan, SPEC)["noise"] for scan in pair)
    many, few = typical_limits(pair * 50, SPEC), typical_limits(pair * 2, SPEC)
    assert few.keys() == many.keys() >= {"filled", "noise", "flat", "bright_fluid", "bright_lines"}
    assert noisier < many["noise"] < few["noise"]
    assert typical_limits([disc(0.02)] * 3, SPEC) == {}


def test_without_anything_inside_a_head_there_is_no_limit():
    assert typical_limits([np.zeros((5, 48, 48), np.float16)] * 9, SPEC) == {}


def masks(spots=(), tumour=20):
    """A tumour of ``tumour``³ pixels of 0.001 ml that is found, and other spots, each of so many pixels."""
    true = np.zeros((24, 64, 64), bool)
    true[:tumour, :tumour, :tumour] = True
    found = true.astype(np.uint8)
    for row, pixels in enumerate(spots):
        found[: pixels // 10, 30 + 4 * row, 40:50] = 1
    return Masks("P1", true, found, 0.001)


def test_the_smallest_tumour_is_far_above_the_spots_that_are_removed():
    assert spot_limits([masks((400, 90)), masks((30,))])["min_tumour_ml"] == 0.5  # a tenth of 8 ml is 0.8
    assert spot_limits([masks((400, 90)), masks((30,), tumour=11)])["min_tumour_ml"] == 0.1  # of 1.3 ml, 0.13


def test_it_is_zero_where_removal_would_do_harm():
    part = masks()
    part.found[...] = 0
    part.found[:2, :5, :5] = 1  # all that was found of the tumour: 0.05 ml
    assert spot_limits([part])["min_tumour_ml"] == 0
    assert spot_limits([]) == {"min_tumour_ml": 0, "min_tumour_share": 0}


def test_parts_far_smaller_than_the_largest_are_removed_unless_they_are_tumour():
    assert spot_limits([masks((400, 90))])["min_tumour_share"] == 0.1
    second = masks((240,))
    second.true[second.found > 0] = True  # a second tumour of 3 % of the first
    assert spot_limits([second, second])["min_tumour_share"] == 0

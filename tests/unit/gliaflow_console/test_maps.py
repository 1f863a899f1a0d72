"""Feature maps as pixels: the strongest channels, each with its own grey scale, upright."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import gliaflow
import numpy as np
import pytest
from gliaflow_console.maps import MapsRequest, Scale, scan_maps, strongest_slice
from gliaflow_console.networks import Networks
from gliaflow_console.store import ScanStore
from gliaflow_console.stored_scan import StoredScan
from gliaflow_runtime.errors import UsageError
from sample_console import answer, send
from sample_scans import good_scan


@pytest.fixture
def scan(store: ScanStore, networks: Networks, tmp_path: Path) -> StoredScan:
    return answer(store, send(store, good_scan(tmp_path / "a_flair.nii.gz")), networks.bundle.id)


def pixels(maps: dict[str, Any]) -> np.ndarray:
    raw = np.frombuffer(base64.b64decode(maps["pixels"]), np.uint8)
    return raw.reshape(len(maps["channels"]), maps["height"], maps["width"])


def test_the_strongest_channels_come_first_and_those_without_response_are_left_out() -> None:
    features = np.array([1, 0, 3, 2, 0.001], np.float16)[None, :, None, None] * np.ones((2, 5, 4, 4), np.float16)
    scale = Scale.of(features, 25)
    assert scale.channels.tolist() == [2, 3, 0]
    assert scale.white.tolist() == [3, 2, 1]
    assert Scale.of(features, 2).channels.tolist() == [2, 3]
    assert len(Scale.of(np.zeros((1, 5, 4, 4)), 3).channels) == 3, "nothing responds: black maps, not an error"


def test_channels_that_only_the_synthetic_features_have_come_after_the_real_ones() -> None:
    real, synthetic = Scale(np.array([4, 1]), np.array([2.0, 1])), Scale(np.array([7, 4, 5]), np.array([9.0, 8, 7]))
    both = real.followed_by(synthetic, 3)
    assert both.channels.tolist() == [4, 1, 7]
    assert both.white.tolist() == [2, 1, 9]


def test_maps_are_upright_in_the_radiological_convention() -> None:
    sample = np.zeros((1, 3, 5), np.float32)
    sample[0, 0, 4] = 2  # the first row is the patient's left, the last column the front
    maps = Scale(np.array([0]), np.array([1.0])).draw(sample, "enc5", 7)
    assert (maps["tap"], maps["slice"], maps["height"], maps["width"]) == ("enc5", 7, 5, 3)
    drawn = pixels(maps)[0]
    assert drawn[0, 2] == 255, "left and front: at the right and at the top; above white is white"
    assert drawn.sum() == 255


@pytest.mark.parametrize("tap", ["enc5", "enc4", "dec1", "dec2", "dec3"])
def test_a_slice_has_maps_at_each_tap(tap: str, networks: Networks, store: ScanStore, scan: StoredScan) -> None:
    maps = scan_maps(networks, store, scan, MapsRequest(tap=tap, slice=5, count=9))
    channels, rows, columns = networks.bundle.manifest.taps[tap]
    assert (maps["tap"], maps["slice"], maps["height"], maps["width"]) == (tap, 5, columns, rows)
    assert len(maps["channels"]) <= min(9, channels)
    assert pixels(maps).max() == 255


def test_without_a_choice_the_maps_are_those_of_the_classifiers_tap_and_the_most_telling_slice(
    networks: Networks, store: ScanStore, scan: StoredScan
) -> None:
    maps = scan_maps(networks, store, scan, MapsRequest())
    assert (maps["tap"], maps["slice"]) == (networks.bundle.manifest.tap, 5)
    assert strongest_slice(scan, "LGG") == 6


def test_features_are_those_of_the_extractor(
    networks: Networks, store: ScanStore, scan: StoredScan, tmp_path: Path
) -> None:
    extracted = gliaflow.extract(tmp_path / "a_flair.nii.gz")
    slices, manifest = networks.slices(store, scan), networks.bundle.manifest
    assert slices.geometry.slices == extracted.slices.tolist()
    every = np.arange(len(extracted))
    assert (networks.features(slices, every, manifest.tap, cropped=manifest.cropped) == extracted.features).all()


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"tap": "<img>"}, "tap: '<img>' is not one of enc5, enc4, dec1, dec2, dec3"),
        ({"slice": 0}, "slice: 0 shows no head"),
        ({"slice": 999}, "slice: 999 is not one of this scan's, 0 to "),
        ({"count": 0}, "count: 0 is not from 1 to 64"),
    ],
)
def test_maps_that_there_are_not_are_refused_by_name(
    request_: dict[str, Any], why: str, networks: Networks, store: ScanStore, scan: StoredScan
) -> None:
    with pytest.raises(UsageError, match=why):
        scan_maps(networks, store, scan, MapsRequest(**request_))

"""Which real features stand beside synthetic ones, what is known of their class, and when there are distances."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from gliaflow_console import real_features
from gliaflow_console.networks import Networks
from gliaflow_console.real_features import NEEDED_PATIENTS, RealFeatures
from gliaflow_console.store import ScanStore
from gliaflow_console.stored_scan import StoredScan
from gliaflow_evaluation.generator_quality import DISTANCES
from gliaflow_generator.synthesis import request_rng
from sample_console import answer, send
from sample_scans import good_scan


@pytest.fixture
def real(networks: Networks, store: ScanStore) -> RealFeatures:
    return RealFeatures(networks, store)


@pytest.fixture
def synthetic(networks: Networks) -> np.ndarray:
    return networks.synthesizer("infogan").draw("HGG", 16, request_rng("HGG", 0))


class Scans:
    """Sends scans and answers them."""

    def __init__(self, store: ScanStore, networks: Networks, folder: Path) -> None:
        self._store, self._bundle, self._folder = store, networks.bundle.id, folder
        self._seed = 0

    def add(self, name: str, bundle: str = "", drawn: str = "", **changes: object) -> StoredScan:
        self._seed += 1
        scan = send(self._store, good_scan(self._folder / f"{name}.nii.gz", self._seed), drawn)
        return answer(self._store, scan, bundle or self._bundle, **changes)


@pytest.fixture
def scans(store: ScanStore, networks: Networks, tmp_path: Path) -> Scans:
    return Scans(store, networks, tmp_path)


def test_a_phantom_has_its_true_class_whatever_the_bundle_graded(scans: Scans, real: RealFeatures) -> None:
    phantom = scans.add("a", drawn="HGG", grade="LGG", p_hgg=0.3)
    found = real.example("HGG")
    assert found is not None
    assert found[0] == phantom
    assert real.example("LGG") is None


def test_a_file_that_is_named_like_a_phantom_is_none(scans: Scans, real: RealFeatures) -> None:
    """Any sender may choose a name."""
    scans.add("phantom_LGG_17")
    assert real.example("LGG") is None, "the bundle graded it HGG, and nothing else is known"


def test_the_example_is_the_newest_phantom_of_the_class_or_else_the_newest_scan(
    scans: Scans, real: RealFeatures, networks: Networks
) -> None:
    assert real.example("HGG") is None
    scans.add("patient_1")
    second = scans.add("patient_2")
    found = real.example("HGG")
    assert found is not None
    assert found[0] == second
    phantom = scans.add("p", drawn="HGG")
    scans.add("patient_3")
    scans.add("q", drawn="LGG")  # the bundle graded it HGG, which is known to be wrong
    found = real.example("HGG")
    assert found is not None
    scan, number, features = found
    assert scan == phantom
    assert number == 5, "the slice that says most for HGG"
    assert features.shape == networks.bundle.tap_shape, "cropped as the generators were fitted"


def test_scans_of_another_bundle_or_without_tumour_are_no_examples(scans: Scans, real: RealFeatures) -> None:
    scans.add("a", bundle="other@0123")
    scans.add("b", status="no tumour", slice_numbers=[], slice_p_hgg=[])
    assert real.example("HGG") is None


def test_distances_need_enough_patients(scans: Scans, real: RealFeatures, synthetic: np.ndarray) -> None:
    for number in range(NEEDED_PATIENTS - 1):
        scans.add(f"patient{number}")
    assert real.distances("HGG", synthetic) == (
        [],
        "Distances need scans of at least 6 patients with HGG that were sent through this page and answered by this "
        "console's bundle; there are 5. Send more scans or phantoms.",
    )


def test_distances_have_a_floor_and_say_what_was_compared(
    scans: Scans, real: RealFeatures, synthetic: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)  # the console's image has no scikit-learn
    for number in range(NEEDED_PATIENTS - 2):
        scans.add(f"patient{number}")
    scans.add("p", drawn="HGG")
    scans.add("q", drawn="HGG", grade="LGG", p_hgg=0.3)  # its class is known, whatever the answer says
    scans.add("r", drawn="LGG")
    rows, note = real.distances("HGG", synthetic)
    assert [row["name"] for row in rows] == [entry.title for entry in DISTANCES.values()]
    values = {row["name"]: row for row in rows}
    assert values["Fréchet distance"]["synthetic"] > values["Fréchet distance"]["floor"] > 0
    assert 0 <= values["precision"]["floor"] <= 1
    assert "18 slices with tumour of 6 scans of 6 patients" in note
    assert "2 of the scans are phantoms that were drawn as HGG and 4 of them have the grade that this bundle" in note


def test_no_patient_is_in_both_halves(
    scans: Scans, real: RealFeatures, synthetic: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = []
    compare = real_features._compare
    monkeypatch.setattr(real_features, "_compare", lambda *sides: halves.append(sides[:2]) or compare(*sides))
    for number in range(NEEDED_PATIENTS):
        for visit in (1, 2) if number % 2 else (1,):
            scans.add(f"sub-{number:02}_ses-{visit}_FLAIR")
    _, note = real.distances("HGG", synthetic)
    assert "of 9 scans of 6 patients" in note
    assert {len(side) for side in halves[0]} == {3 * 3, 3 * 6}, "one half has the patients with two scans"
    assert [len(side) for side in halves[1]] == [len(side) for side in halves[0]][::-1]


def test_a_scan_whose_file_is_gone_is_left_out(
    scans: Scans, store: ScanStore, real: RealFeatures, synthetic: np.ndarray
) -> None:
    for number in range(NEEDED_PATIENTS):
        gone = scans.add(f"patient{number}")
    item = store.item(gone.id)
    assert item is not None
    item.path.unlink()
    assert "there are 5" in real.distances("HGG", synthetic)[1]
    found = real.example("HGG")
    assert found is not None
    assert found[0].name == "patient4"

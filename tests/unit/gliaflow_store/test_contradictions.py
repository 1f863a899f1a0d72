"""Scans that contradict each other, or are copies of others, are named with the reason, and without the patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gliaflow_proto import Scan
from gliaflow_store.feature_store import FeatureStore
from gliaflow_store.part_file import FeatureOrigin, StoredPart, write_part

ORIGIN = FeatureOrigin("b@1", "enc5", (2, 3, 3))


def write(folder: Path, scan: str, patient: str, label: str, seed: int | None = None, parts: int = 1) -> None:
    """Write a scan of random features; the same ``seed``: the same features. Seed None: all are 0."""
    rng = np.random.default_rng(seed)
    for index in range(parts):
        features = (np.zeros if seed is None else rng.random)((2, *ORIGIN.shape)).astype(np.float16)
        about = Scan(id=scan, patient=patient, label=label)
        mask = np.ones((2, 4, 4), np.uint8)
        write_part(folder, StoredPart(about, (index, parts), ORIGIN, features, mask, (2 * index, 2 * index + 1)))


def test_scans_of_different_patients_do_not_contradict_each_other(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path, f"s{number}", f"p{number}", "HGG" if number else "LGG", seed=number, parts=2)
    write(tmp_path, "later", "p0", "LGG", seed=9)
    assert FeatureStore(tmp_path).contradicting == {}


def test_scans_of_one_patient_with_different_labels_contradict_each_other(tmp_path: Path) -> None:
    for number, (patient, label) in enumerate([("Jane", "HGG"), ("Jane", "LGG"), ("Jane", "LGG"), ("p", "LGG")]):
        write(tmp_path, f"s{number}", patient, label, seed=number)
    write(tmp_path, "nobody", "", "HGG", seed=8)
    write(tmp_path, "nobody else", "", "LGG", seed=9)
    reason = "scans of one patient have different labels: s0, s1, s2"
    assert FeatureStore(tmp_path).contradicting == dict.fromkeys(["s0", "s1", "s2"], reason)


def test_a_scan_that_is_stored_under_two_ids_with_another_label_or_patient_is_found(tmp_path: Path) -> None:
    write(tmp_path, "a", "p", "HGG", seed=1, parts=2)
    write(tmp_path, "b", "q", "LGG", seed=1, parts=2)
    write(tmp_path, "c", "r", "LGG", seed=2)
    write(tmp_path, "d", "s", "LGG", seed=2)
    reason = "scans with the same features have different labels or patients: "
    assert FeatureStore(tmp_path).contradicting == {
        **dict.fromkeys("ab", f"{reason}a, b"),
        **dict.fromkeys("cd", f"{reason}c, d"),
    }


def test_a_scan_that_is_stored_under_two_ids_counts_once(tmp_path: Path) -> None:
    for scan in ("a", "b", "c"):
        write(tmp_path, scan, "p", "HGG", seed=1)
    assert FeatureStore(tmp_path).contradicting == {"b": "a copy of scan a", "c": "a copy of scan a"}


def test_features_that_are_all_zero_are_no_copies(tmp_path: Path) -> None:
    """As in cropped features of slices without tumour."""
    write(tmp_path, "a", "p", "HGG")
    write(tmp_path, "b", "q", "LGG")
    assert FeatureStore(tmp_path).contradicting == {}

"""Leaks: the same voxels under two names. test_cohorts_read.py has those by name, file and grade."""

from __future__ import annotations

from gliaflow_plugins.cohorts.leaks import same_masks, same_voxels


def test_the_same_voxels_of_two_patients_are_a_leak_and_of_one_patient_a_problem() -> None:
    scans = [("d1", "P1", "P1_a"), ("d2", "P2", "P2"), ("d1", "P3", "P3"), ("d3", "P4", "P4_a"), ("d3", "P4", "P4_b")]
    leaks, problems = same_voxels(scans)
    assert leaks == ["the same voxels: P1_a (patient P1) and P3"]
    assert problems == ["the same voxels: P4_a (patient P4) and P4_b (patient P4)"]
    assert same_voxels([]) == ([], [])


def test_one_mask_of_two_patients_is_a_problem() -> None:
    masks = [
        ("d1", "P1", "P1"),
        ("d1", "P2", "P2"),
        ("", "P3", "P3"),
        ("", "P4", "P4"),
        ("d2", "P5", "a"),
        ("d2", "P5", "b"),
    ]
    assert same_masks(masks) == ["the same mask voxels: P1 and P2; one may have the other's mask"]

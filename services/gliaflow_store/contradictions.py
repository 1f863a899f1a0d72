"""Scans of a store that contradict each other, and copies of scans under other ids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from gliaflow_store.part_file import PartFile, PartMetadata

SHOWN = 3


def contradictions(parts: Iterable[PartFile]) -> dict[str, str]:
    """Why a scan must not be learnt from, by the scan's id.

    - Its patient has scans of several labels. A scan without a patient counts as a separate patient.
    - Another scan has exactly the same features, but another patient or label: one of the two is wrong.
    - It is a copy: a scan with a lower id has the same features, patient and label.

    The reasons name scans by their ids, and no patient.
    """
    scans: dict[str, PartMetadata] = {}
    patients: dict[str, set[str]] = defaultdict(set)
    same: dict[tuple[int, str], set[str]] = defaultdict(set)
    for part in parts:
        scans[part.about.scan] = part.about
        patients[part.about.patient or f"scan {part.about.scan}"].add(part.about.scan)
        if part.about.digest:
            same[part.about.part, part.about.digest].add(part.about.scan)
    reasons: dict[str, str] = {}
    for ids in patients.values():
        if len({scans[scan].label for scan in ids}) > 1:
            reasons |= dict.fromkeys(ids, f"scans of one patient have different labels: {_listed(ids)}")
    for ids in same.values():
        if len({(scans[scan].label, scans[scan].patient) for scan in ids}) > 1:
            reasons |= dict.fromkeys(
                ids, f"scans with the same features have different labels or patients: {_listed(ids)}"
            )
        for scan in sorted(ids)[1:]:
            reasons.setdefault(scan, f"a copy of scan {min(ids)}")
    return reasons


def _listed(ids: set[str]) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(sorted(ids)[:SHOWN]) + more

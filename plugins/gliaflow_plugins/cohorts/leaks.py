"""Leaks: one patient's data under two names, so that a network may be tested on what it was fitted on."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

from gliaflow_plugins.cohorts.patient_names import loose
from gliaflow_plugins.cohorts.tables import listed, quoted
from gliaflow_plugins.cohorts.volumes import TiffStack
from gliaflow_plugins.contracts import Case, Volume
from gliaflow_plugins.sequence_names import OTHERS


def leaks_by_name(cases: Sequence[Case]) -> list[str]:
    """Patients whose names differ only in case, spaces, separators or leading zeros."""
    alike = defaultdict(list)
    for patient in dict.fromkeys(case.patient for case in cases):
        if key := loose(patient):
            alike[key].append(patient)
    return [
        f"the patients {quoted(patients)} may be one: their names differ in spelling only"
        for patients in alike.values()
        if len(patients) > 1
    ]


def same_files(cases: Sequence[Case]) -> tuple[list[str], list[str]]:
    """Leaks: one file is the scan or the mask of several patients. Problems: of several scans of one patient."""
    leaks, problems = [], []
    for what in ("scan", "mask", *OTHERS):
        files = [(_volume(case, what), case) for case in cases]
        of_several, of_one = shared((_file(file), case.patient, case.id) for file, case in files if file is not None)
        leaks += [f"one file is the {what} of {names}" for names in of_several]
        problems += [f"one file is the {what} of {names}" for names in of_one]
    return leaks, problems


def _volume(case: Case, what: str) -> Volume | None:
    if what in OTHERS:
        return case.sequences[what].volume if what in case.sequences else None
    return case.mask if what == "mask" else case.scan


def same_headers(cases: Sequence[Case]) -> list[str]:
    """Leaks: DICOM scans of several patients whose headers have one StudyInstanceUID or one PatientID."""
    leaks: dict[str, str] = {}  # by the scans
    for field, attribute in (("StudyInstanceUID", "study"), ("PatientID", "patient_id")):
        keys = [(getattr(case.scan, attribute, ""), case) for case in cases]
        of_several, _ = shared((key, case.patient, case.id) for key, case in keys if key)
        for names in of_several:
            leaks.setdefault(names, f"one {field}: {names}; are they one patient?")
    return list(leaks.values())


def same_voxels(scans: Iterable[tuple[str, str, str]]) -> tuple[list[str], list[str]]:
    """Leaks and problems: scans of several patients, or of one, that have the same voxels.

    ``scans``: the digest of each scan's voxels, its patient and its name.
    """
    of_several, of_one = shared(scans)
    return [f"the same voxels: {names}" for names in of_several], [f"the same voxels: {names}" for names in of_one]


def same_masks(masks: Iterable[tuple[str, str, str]]) -> list[str]:
    """Problems: scans of several patients whose masks have the same tumour; one of them may be the wrong mask.

    ``masks``: the digest of each mask's tumour ("" is not compared), its patient and its scan's name.
    """
    of_several, _ = shared(mask for mask in masks if mask[0])
    return [f"the same mask voxels: {names}; one may have the other's mask" for names in of_several]


def shared(items: Iterable[tuple[Hashable, str, str]]) -> tuple[list[str], list[str]]:
    """The names of the scans with the same key: of several patients, and of one. ``items``: key, patient and scan."""
    by_key: dict[Hashable, list[tuple[str, str]]] = defaultdict(list)
    for key, patient, scan in items:
        by_key[key].append((patient, scan))
    leaks, problems = [], []
    for scans in by_key.values():
        names = listed([scan if scan == patient else f"{scan} (patient {patient})" for patient, scan in scans])
        if len({patient for patient, _ in scans}) > 1:
            leaks.append(names)
        elif len(scans) > 1:
            problems.append(names)
    return leaks, problems


def _file(volume: Volume) -> Hashable:
    """The same for all names of one file: links and hard links are followed. A DICOM series is known by its UID."""
    if uid := getattr(volume, "uid", ""):
        return uid
    path = Path(str(volume.paths[0] if isinstance(volume, TiffStack) else volume))
    try:
        about = path.stat()
    except (OSError, ValueError):  # a plugin's volume need not be a file
        return os.path.realpath(path) if path.is_absolute() else str(path)
    return about.st_dev, about.st_ino

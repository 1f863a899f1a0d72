"""Names and patients of DICOM series: by their folders, never by their headers, which identify the patient."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from gliaflow_plugins.cohorts.image_names import patient_folder
from gliaflow_plugins.cohorts.patients import PatientOf
from gliaflow_plugins.cohorts.scan_files import ScanFile

# folders of a study and of a series, as programs name them that write DICOM media: PA0/ST0/SE0/IM0
MEDIA = re.compile(r"(st|stu|se|ser)\d{1,8}", re.IGNORECASE)


def series_place(folder: PurePath) -> PurePath:
    """A path whose folders name the patient of a series."""
    while MEDIA.fullmatch(folder.name):
        folder = folder.parent
    return folder / "image"


def series_name(folder: PurePath) -> str:
    """The name of a series: the folders from the patient's folder down to the series' own."""
    place = series_place(folder)
    inside = [*patient_folder(place)[1], *folder.parts[len(place.parent.parts) :]]
    return "_".join(inside) or folder.name or "series"


def apart(scans: Sequence[ScanFile], patients: Sequence[PatientOf]) -> list[PatientOf]:
    """The patients, with a number for each DICOM series whose header states another patient than its folder's others.

    Only whether two PatientIDs are equal is used. Without them, several studies in one folder are of several patients.
    """
    folders: dict[PurePath, set[str]] = defaultdict(set)
    for scan in scans:
        if scan.series is not None:
            folders[scan.path].add(scan.series.study)
    keys: dict[str, list[str]] = defaultdict(list)
    found = []
    for scan, patient in zip(scans, patients, strict=True):
        if scan.series is not None:
            alone = len(folders[scan.path]) == 1
            key = _patient_id(scan.series.paths[0]) or ("" if alone else f"study {scan.series.study}")
            known = keys[patient.patient]
            if key not in known:
                known.append(key)
            if number := known.index(key):
                why = f"patient: the headers of the series in folders of {patient.patient} name several patients"
                patient = replace(patient, patient=f"{patient.patient}-{number + 1}", warnings=(*patient.warnings, why))
        found.append(patient)
    return found


def _patient_id(path: Path) -> str:
    from gliaflow_plugins.dicom.headers import quiet, read_header

    try:
        with quiet():
            return read_header(path, ("PatientID",)).fields.text("PatientID")
    except (OSError, ValueError):
        return ""

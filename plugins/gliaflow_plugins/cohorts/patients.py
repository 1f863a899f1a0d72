"""Which patient each scan of a submission or cohort belongs to.

To count two people as one is worse than to count one person as two: in doubt, scans are kept apart.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from gliaflow_plugins.cohorts.image_names import (
    folder_patient,
    is_noise,
    judge_text,
    name_patient,
    names_nothing,
    patient_folder,
    patient_of,
    stem,
)
from gliaflow_plugins.image_words import words

SERIES = re.compile(r"(s|se|ser|series|scan|i|im|img|image|slice|exam|v|vol|volume|acq|run)?\d+[a-z]?")
CASE = re.compile(
    r"(s|se|ser|series|scans?|i|im|ima?ge?s?|slice|exam|vol|volume|case|cases|sub|subj|subject|patients?|pat|pt|study|id|no|nr)?\d*"
)
SPLIT = re.compile(r"hgg|lgg|train(ing)?(set)?|val(id|idation)?(set)?|test(ing)?(set)?", re.IGNORECASE)
SHORT = re.compile(r"[^\W\d_]*[\W_]*\d{1,3}")  # P1, gli-0: two people may have it
GROUP = re.compile(
    r"(site|cent(er|re)|hospital|clinic|institut|batch|group|set|dataset|fold|part|study|cohort|scanner|trial|data)",
    re.IGNORECASE,
)
SEVERAL = re.compile(rf"{GROUP.pattern}|(19|20)\d\d$", re.IGNORECASE)
CONTAINER = re.compile(
    r"in|inputs?|data|dataset|cases|patients|subjects|cohort|images?(tr|ts|val)?|imgs", re.IGNORECASE
)
MANY = 12  # scans that differ by a number only: they are of several patients


@dataclass(frozen=True)
class PatientOf:
    """A scan's patient, and doubts about it."""

    patient: str
    warnings: tuple[str, ...] = ()


def find_patients(paths: Sequence[PurePath]) -> list[PatientOf]:
    """The patients of scans that are submitted or read together, in the order of ``paths``."""
    patients = [patient_of(path) for path in paths]
    warnings: list[list[str]] = [[] for _ in paths]
    _numbers_in_folders(paths, patients, warnings)
    _equal_in_other_places(paths, patients, warnings)
    return [PatientOf(patient, tuple(each)) for patient, each in zip(patients, warnings, strict=True)]


def _numbers_in_folders(paths: Sequence[PurePath], patients: list[str], warnings: list[list[str]]) -> None:
    """``PAT001/7_AX_FLAIR`` and ``PAT001/7/flair`` are of PAT001, unless only the number differs from other scans."""
    alike: dict[tuple[PurePath, str], dict[int, str]] = defaultdict(dict)  # the number's text, by the scan
    for scan, path in enumerate(paths):
        inside = patient_folder(path)[1]
        if _is_series(path):
            alike[path.parent, re.sub(r"\d+", "#", stem(path).casefold())][scan] = name_patient(path)
        elif inside and inside[0].isdecimal() and patients[scan] == inside[0]:
            place = path.parents[len(inside)]
            if not names_nothing(place.name):
                alike[place, ""][scan] = inside[0]
    for (place, masked), members in alike.items():
        folder, several = folder_patient(place / "image"), len(set(members.values())) > 1
        is_patients = not masked and not several and not GROUP.match(folder)
        if len(members) > MANY or not (is_patients or _is_patients(place)):
            continue
        for scan, text in members.items():
            patients[scan] = folder
            if several:
                patients[scan] = f"{folder}_{text}"
                warnings[scan].append(
                    f"patient: {len(members)} scans in {place.name} differ by a number only (patients, visits or "
                    f"series?); this one counts as the patient {patients[scan]}"
                )


def _equal_in_other_places(paths: Sequence[PurePath], patients: list[str], warnings: list[list[str]]) -> None:
    """``siteA/101`` and ``siteB/101`` are two patients; ``siteA/P1`` and ``siteB/P1`` are one, with a warning."""
    same: dict[str, list[int]] = defaultdict(list)
    for number, patient in enumerate(patients):
        same[patient.casefold()].append(number)
    for members in same.values():
        places = {number: _place(paths[number], patients[number]) for number in members}
        if len(set(places.values())) == 1:
            continue
        patient = patients[members[0]]
        if all(CASE.fullmatch(word) for word in words(patient)):
            base = _common(list(places.values()))
            for number, place in places.items():
                inside = [part for part in place.parts[len(base) :] if SPLIT.fullmatch(part) or not names_nothing(part)]
                patients[number] = "_".join([*inside, patient])
        elif SHORT.fullmatch(patient):
            base = _common([paths[number] for number in members])
            first = {place: number for number, place in reversed(places.items())}
            files = sorted("/".join(paths[number].parts[len(base) :]) for number in first.values())
            more = f" and {len(files) - 2} more" if len(files) > 2 else ""
            for number in members:
                text = f"patient: {files[0]} and {files[1]}{more} count as scans of one patient, {patient}"
                warnings[number].append(text)


def _is_series(path: PurePath) -> bool:
    """Whether the name has only a number beside words for the sequence: ``7_AX_FLAIR``, ``s7_FLAIR``."""
    own = [word for word in words(name_patient(path)) if not is_noise(word)]
    return bool(own) and all(map(SERIES.fullmatch, own)) and judge_text(stem(path)).kind == "FLAIR"


def _is_patients(place: PurePath) -> bool:
    """Whether a folder may be one patient's: it has a number, and is not called after a site, a data set or a year."""
    folder, inside = patient_folder(place / "image")
    several = any(SEVERAL.match(name) for name in words(folder)) or any(map(CONTAINER.fullmatch, inside))
    return any(character.isdigit() for character in folder) and not several


def _place(path: PurePath, patient: str) -> PurePath:
    """The nearest folder above the patient's own that may distinguish two patients of the same name."""
    own = next((up for up in path.parents if up.name.casefold() == patient.casefold()), path)
    return next((up for up in own.parents if SPLIT.fullmatch(up.name) or not names_nothing(up.name)), own.parents[-1])


def _common(places: Sequence[PurePath]) -> tuple[str, ...]:
    """The folders that all of these have in front."""
    shared = 0
    for parts in zip(*(place.parts for place in places), strict=False):
        if len(set(parts)) > 1:
            break
        shared += 1
    return places[0].parts[:shared]

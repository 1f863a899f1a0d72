"""Layouts with one folder for each case, as most public data sets have: ``CASE_FOLDERS`` lists them.

All readers ignore hidden files: archives made on a Mac are full of ``._`` twins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path

from gliaflow_proto import CLASSES

from gliaflow_plugins.cohorts.clinical_tables import with_grades
from gliaflow_plugins.cohorts.volumes import NiftiFile
from gliaflow_plugins.contracts import Case, Cohort

NIFTI = (".nii.gz", ".nii")  # where a folder has both, they are the same image
Graded = Callable[[Path, list[Case], list[str]], list[Case]]
"""Folder, cases, problems → the cases with the grades that the folder contains. It adds to the problems."""


def graded_by(table: Path, cases: list[Case], problems: list[str], *columns: str) -> list[Case]:
    """The cases with the grades of ``table``; ``columns``: of the patients and of the grades, if they are known."""
    try:
        cases, more = with_grades(cases, table, *columns)
    except (OSError, ValueError) as error:
        more = [f"no grades: {error}"]
    problems += more
    return cases


def participants(folder: Path, cases: list[Case], problems: list[str]) -> list[Case]:
    """The cases with the grades of BIDS's ``participants.tsv``, if it exists."""
    table = folder / "participants.tsv"
    return graded_by(table, cases, problems) if table.is_file() else cases


def _name_mapping(folder: Path, cases: list[Case], problems: list[str]) -> list[Case]:
    return graded_by(folder / "name_mapping.csv", cases, problems, "BraTS_2020_subject_ID", "Grade")


def _only_table(folder: Path, cases: list[Case], problems: list[str]) -> list[Case]:
    tables = [path for path in files_in(folder).values() if path.suffix.casefold() in (".csv", ".tsv")]
    if len(tables) > 1:
        problems.append(f"several tables ({', '.join(path.name for path in tables)}): name one with --grades")
    return graded_by(tables[0], cases, problems) if len(tables) == 1 else cases


@dataclass(frozen=True)
class CaseFolders:
    """Reads a layout with one folder for each case, in which the images are named after the case.

    Parameters
    ----------
    folder: pattern of the folders' names. The file names begin with its group ``id``; its group ``patient`` is the
        patient (default: ``id``).
    scan, mask: file names without ending, best first; ``{id}`` stands for that group, and ``*`` for anything.
    graded: finds the grades; None: the layout has no grades, or in a table elsewhere.
    any_name: any folder may be a case, so at least one scan must exist.
    """

    name: str
    layout: str
    folder: str
    scan: tuple[str, ...]
    mask: tuple[str, ...]
    graded: Graded | None = None
    any_name: bool = False

    def read(self, folder: Path) -> Cohort | None:
        """See ``Reader.read``."""
        matches = [(sub, re.fullmatch(self.folder, sub.name, re.DOTALL)) for sub in folders_in(folder)]
        if not any(match for _, match in matches):
            return None
        cases: list[Case] = []
        problems: list[str] = []
        for sub, match in matches:
            if match is None:
                problems.append(f"{sub.name}: not named as a case of this layout; ignored")
                continue
            patient = match.groupdict().get("patient", match["id"])
            cases += self.cases(sub, match["id"], patient, sub.name, problems)
        if self.any_name and not cases:
            return None
        cases = cases if self.graded is None else self.graded(folder, cases, problems)
        return Cohort(self.layout, cases, problems)

    def cases(self, folder: Path, name: str, patient: str, shown: str, problems: list[str]) -> list[Case]:
        """The case in ``folder``; none, and a problem with the folder ``shown``, if it has no scan."""
        files = files_in(folder)
        scan = image(files, self.scan, name)
        if scan is None:
            problems.append(f"{shown}: no {self.scan[0].replace('{id}', name)}.nii.gz or .nii")
            return []
        return [Case(name, scan, image(files, self.mask, name), patient, None)]


class Brats:
    """BraTS 2017–2019: ``HGG|LGG/<ID>/<ID>_flair.nii.gz`` and ``<ID>_seg.nii.gz``, or plain ``.nii``.

    The folder above gives the grade, and every ID is a patient of its own.
    """

    name = "brats"

    def read(self, folder: Path) -> Cohort | None:
        """See ``Reader.read``."""
        subs = folders_in(folder)
        if not any(sub.name in CLASSES for sub in subs):
            return None
        cases: list[Case] = []
        problems: list[str] = []
        for sub in subs:
            if sub.name not in CLASSES:
                problems.append(f"{sub.name}: beside HGG and LGG; ignored")
                continue
            for case in folders_in(sub):
                found = PATIENT_FOLDERS.cases(case, case.name, case.name, f"{sub.name}/{case.name}", problems)
                cases += [replace(each, grade=sub.name) for each in found]
        return Cohort("BraTS 2017–2019", cases, problems)


# Case 355's mask kept an older name, W39_1998.09.19_Segm.nii. The grades are in name_mapping.csv.
BRATS_2020 = CaseFolders(
    "brats2020", "BraTS 2020", r"(?P<id>BraTS20_\w+_\d+)", ("{id}_flair",), ("{id}_seg", "*_Segm"), _name_mapping
)
BRATS_2021 = CaseFolders("brats2021", "BraTS 2021", r"(?P<id>BraTS2021_\d+)", ("{id}_flair",), ("{id}_seg",))
# The last number counts the scans of a patient.
BRATS_2023 = CaseFolders(
    "brats2023", "BraTS 2023", r"(?P<id>(?P<patient>BraTS-[A-Z]+-\d{5})-\d{3})", ("{id}-t2f",), ("{id}-seg",)
)
# The NIfTI release: <patient>_<YYYY.MM.DD>. The grades are in a clinical table elsewhere.
REMBRANDT = CaseFolders(
    "rembrandt",
    "REMBRANDT",
    r"(?P<id>(?P<patient>900-00-\d+|HF\d+)_\d{4}\.\d\d\.\d\d)",
    ("{id}_flair_LPS_rSRI",),
    ("{id}_GlistrBoost_ManuallyCorrected", "{id}_GlistrBoost_out"),
)
# A second scan of a patient is UCSF-PDGM-0004_FU…. The metadata CSV writes the number with three digits.
UCSF = CaseFolders(
    "ucsf",
    "UCSF-PDGM",
    r"(?P<id>(?P<patient>UCSF-PDGM-\d+)(_FU\w*?)?)_nifti",
    ("{id}_FLAIR",),
    ("{id}_tumor_segmentation",),
    _only_table,
)
# <ID>/<ID>_flair.nii.gz and <ID>_seg.nii.gz, with any ID.
PATIENT_FOLDERS = CaseFolders(
    "folders", "one folder a patient", r"(?P<id>.+)", ("{id}_flair",), ("{id}_seg",), participants, any_name=True
)


def folders_in(folder: Path) -> list[Path]:
    """The visible folders in ``folder``, by name; none if it cannot be read: the caller then reports missing files."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())
    except OSError:
        return []


def files_in(folder: Path) -> dict[str, Path]:
    """The visible files in ``folder``, by name in small letters; none if it cannot be read."""
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    except OSError:
        return {}
    return {path.name.casefold(): path for path in paths}


def image(files: Mapping[str, Path], names: tuple[str, ...], case: str) -> NiftiFile | None:
    """The first of ``names`` that exists; ``{id}`` in them stands for ``case``."""
    for name in names:
        pattern = name.replace("{id}", escape(case)).casefold()
        for ending in NIFTI:
            if paths := [path for file, path in files.items() if fnmatchcase(file, pattern + ending)]:
                return NiftiFile(paths[0])
    return None


def stem_of(path: Path) -> str | None:
    """The name without the ending; None for a file that is not NIfTI."""
    return next((path.name[: -len(end)] for end in NIFTI if path.name.casefold().endswith(end)), None)

"""Layouts with a folder a case, which most public sets are: a class each, with the tree it knows.

Hidden files are passed over everywhere: archives made on a Mac are full of ``._`` twins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path

from gliaflow_proto import CLASSES

from gliaflow_plugins.cohorts.clinical_tables import with_grades
from gliaflow_plugins.cohorts.volumes import NiftiFile
from gliaflow_plugins.contracts import Case, Cohort

NIFTI = (".nii.gz", ".nii")  # where both are there they are the same image


class CaseFolders:
    """A folder a case, and in it images named after the case: so most public sets are.

    ``folder`` is matched with the names of the folders; its group ``id`` is how the files begin, ``patient`` (``id``
    where there is none) whose they are. ``scan`` and ``mask`` are names of files without ending, best first; in them
    ``{id}`` stands for that group, and ``*`` for anything.
    """

    name = ""
    layout = ""
    folder = re.compile("")
    scan: tuple[str, ...] = ()
    mask: tuple[str, ...] = ()

    def read(self, folder: Path) -> Cohort | None:
        """See ``Reader.read``."""
        matches = [(sub, self.folder.fullmatch(sub.name)) for sub in folders_in(folder)]
        if not any(match for _, match in matches):
            return None
        cases: list[Case] = []
        problems: list[str] = []
        for sub, match in matches:
            if match is None:
                problems.append(f"{sub.name}: not named as a case of this layout; passed over")
                continue
            name = match["id"]
            patient = match["patient"] if "patient" in match.groupdict() else name
            cases += _case(sub, name, self.scan, self.mask, problems, patient=patient)
        cases = self.graded(folder, cases, problems)
        return Cohort(self.layout, cases, problems)

    def graded(self, folder: Path, cases: list[Case], problems: list[str]) -> list[Case]:
        """The cases with the grades that the folder tells; here: none."""
        return cases


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
                problems.append(f"{sub.name}: beside HGG and LGG; passed over")
                continue
            for case in folders_in(sub):
                cases += _case(case, case.name, ("{id}_flair",), ("{id}_seg",), problems, grade=sub.name)
        return Cohort("BraTS 2017–2019", cases, problems)


class Brats2020(CaseFolders):
    """BraTS 2020: ``BraTS20_Training_001/BraTS20_Training_001_{flair,seg}.nii[.gz]`` and ``name_mapping.csv``.

    Case 355's mask kept an older name, ``W39_1998.09.19_Segm.nii``.
    """

    name = "brats2020"
    layout = "BraTS 2020"
    folder = re.compile(r"(?P<id>BraTS20_\w+_\d+)")
    scan = ("{id}_flair",)
    mask = ("{id}_seg", "*_Segm")

    def graded(self, folder: Path, cases: list[Case], problems: list[str]) -> list[Case]:
        """From ``Grade`` of ``name_mapping.csv``."""
        columns = {"patient_column": "BraTS_2020_subject_ID", "grade_column": "Grade"}
        return graded_by(folder / "name_mapping.csv", cases, problems, **columns)


class Brats2021(CaseFolders):
    """BraTS 2021: ``BraTS2021_00030/BraTS2021_00030_{flair,seg}.nii.gz``. No grades."""

    name = "brats2021"
    layout = "BraTS 2021"
    folder = re.compile(r"(?P<id>BraTS2021_\d+)")
    scan = ("{id}_flair",)
    mask = ("{id}_seg",)


class Brats2023(CaseFolders):
    """BraTS 2023: ``BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t2f,seg}.nii.gz``. No grades.

    The last number counts the scans of a patient.
    """

    name = "brats2023"
    layout = "BraTS 2023"
    folder = re.compile(r"(?P<id>(?P<patient>BraTS-[A-Z]+-\d{5})-\d{3})")
    scan = ("{id}-t2f",)
    mask = ("{id}-seg",)


class Rembrandt(CaseFolders):
    """REMBRANDT, NIfTI release: ``<patient>_<YYYY.MM.DD>/<same>_flair_LPS_rSRI.nii.gz``, ``_GlistrBoost_out.nii.gz``.

    Patients are ``900-00-<number>`` or ``HF<number>``. Grades are in a clinical table elsewhere.
    """

    name = "rembrandt"
    layout = "REMBRANDT"
    folder = re.compile(r"(?P<id>(?P<patient>900-00-\d+|HF\d+)_\d{4}\.\d\d\.\d\d)")
    scan = ("{id}_flair_LPS_rSRI",)
    mask = ("{id}_GlistrBoost_ManuallyCorrected", "{id}_GlistrBoost_out")


class Ucsf(CaseFolders):
    """UCSF-PDGM: ``UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_{FLAIR,tumor_segmentation}.nii.gz`` and a metadata CSV.

    A second scan of a patient is ``UCSF-PDGM-0004_FU…``. The CSV writes the number with three digits.
    """

    name = "ucsf"
    layout = "UCSF-PDGM"
    folder = re.compile(r"(?P<id>(?P<patient>UCSF-PDGM-\d+)(_FU\w*?)?)_nifti")
    scan = ("{id}_FLAIR",)
    mask = ("{id}_tumor_segmentation",)

    def graded(self, folder: Path, cases: list[Case], problems: list[str]) -> list[Case]:
        """From the only table in the folder, if there is one."""
        tables = [path for path in files_in(folder).values() if path.suffix.casefold() in (".csv", ".tsv")]
        if len(tables) > 1:
            problems.append(f"several tables ({', '.join(path.name for path in tables)}): name one with --grades")
        return graded_by(tables[0], cases, problems) if len(tables) == 1 else cases


class Plain(CaseFolders):
    """A folder a patient: ``<ID>/<ID>_flair.nii.gz``, ``<ID>_seg.nii.gz``; grades in ``participants.tsv``, if any."""

    name = "folders"
    layout = "one folder a patient"
    folder = re.compile(r"(?P<id>.+)", re.DOTALL)
    scan = ("{id}_flair",)
    mask = ("{id}_seg",)

    def read(self, folder: Path) -> Cohort | None:
        """See ``Reader.read``. Any name of a folder may be a case's, so one scan at least must be there."""
        cohort = super().read(folder)
        return cohort if cohort is not None and cohort.cases else None

    def graded(self, folder: Path, cases: list[Case], problems: list[str]) -> list[Case]:
        """From ``participants.tsv``."""
        return participants(folder, cases, problems)


def _case(
    folder: Path,
    name: str,
    scan: tuple[str, ...],
    mask: tuple[str, ...],
    problems: list[str],
    *,
    patient: str | None = None,
    grade: str | None = None,
) -> list[Case]:
    """The case in a folder; none, and a problem, where it has no scan."""
    files = files_in(folder)
    found = image(files, scan, name)
    if found is None:
        where = f"{grade}/{folder.name}" if grade else folder.name
        problems.append(f"{where}: no {scan[0].replace('{id}', name)}.nii.gz or .nii")
        return []
    return [Case(name, found, image(files, mask, name), patient or name, grade)]


def graded_by(table: Path, cases: list[Case], problems: list[str], **columns: str) -> list[Case]:
    """``with_grades``; what is wrong with the table becomes a problem."""
    try:
        cases, odd = with_grades(cases, table, **columns)
    except (OSError, ValueError) as error:
        odd = [f"no grades: {error}"]
    problems += odd
    return cases


def participants(folder: Path, cases: list[Case], problems: list[str]) -> list[Case]:
    """``graded_by`` the ``participants.tsv`` of BIDS, if it is there."""
    table = folder / "participants.tsv"
    return graded_by(table, cases, problems) if table.is_file() else cases


def folders_in(folder: Path) -> list[Path]:
    """The visible folders in it, by name; none where it cannot be read: then what should be there is missed."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())
    except OSError:
        return []


def files_in(folder: Path) -> dict[str, Path]:
    """The visible files in it, by name in small letters; like ``folders_in``."""
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    except OSError:
        return {}
    return {path.name.casefold(): path for path in paths}


def image(files: Mapping[str, Path], names: tuple[str, ...], case: str) -> NiftiFile | None:
    """The first of ``names`` that is there; ``{id}`` in them stands for ``case``."""
    for name in names:
        pattern = name.replace("{id}", escape(case)).casefold()
        for ending in NIFTI:
            if found := [path for file, path in files.items() if fnmatchcase(file, pattern + ending)]:
                return NiftiFile(found[0])
    return None


def stem_of(path: Path) -> str | None:
    """The name without the ending; None where it is not NIfTI."""
    return next((path.name[: -len(end)] for end in NIFTI if path.name.casefold().endswith(end)), None)

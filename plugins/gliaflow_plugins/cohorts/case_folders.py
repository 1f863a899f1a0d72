"""Layouts with one folder for each case, as most public data sets have.

All readers ignore hidden files: archives made on a Mac are full of ``._`` twins.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path

from gliaflow_proto import CLASSES

from gliaflow_plugins.cohorts.clinical_tables import with_grades
from gliaflow_plugins.cohorts.image_names import (
    case_key,
    is_image,
    judge,
    name_patient,
    names_nothing,
    simplicity,
    stem,
)
from gliaflow_plugins.cohorts.patient_names import names_another
from gliaflow_plugins.cohorts.patients import find_patients
from gliaflow_plugins.cohorts.scan_files import REMARKABLE, Chooser, with_sequences
from gliaflow_plugins.cohorts.tables import few
from gliaflow_plugins.cohorts.volumes import NiftiFile
from gliaflow_plugins.contracts import Case, Cohort
from gliaflow_plugins.sequence_names import OTHERS

TUMOUR = re.compile(r"tumou?r|lesion|glioma|gtv|wmh", re.IGNORECASE)
TISSUE = re.compile(
    r"brain|skull|head|aseg|aparc|wmparc|pve|tissue|ventric|(^|[_-])(gm|wm|csf)([_.-]|$)", re.IGNORECASE
)
Graded = Callable[[Path, Cohort], Cohort]
"""Folder, cohort → the cohort with the grades that the folder contains."""


def graded_by(table: Path, cohort: Cohort, *columns: str) -> Cohort:
    """The cohort with the grades of ``table``; ``columns``: of the patients and of the grades, if they are known."""
    try:
        return with_grades(cohort, table, *columns)
    except (OSError, ValueError) as error:
        remedy = f" (with --grades {table})" if "-column" in str(error) else ""
        return replace(cohort, problems=[*cohort.problems, f"no grades: {error}{remedy}"])


def participants(folder: Path, cohort: Cohort) -> Cohort:
    """The cohort with the grades of BIDS's ``participants.tsv``, if it exists."""
    table = folder / "participants.tsv"
    return graded_by(table, cohort) if table.is_file() else cohort


def _name_mapping(folder: Path, cohort: Cohort) -> Cohort:
    return graded_by(folder / "name_mapping.csv", cohort, "BraTS_2020_subject_ID", "Grade")


def _only_table(folder: Path, cohort: Cohort) -> Cohort:
    tables = [path for path in files_in(folder).values() if path.suffix.casefold() in (".csv", ".tsv")]
    if len(tables) > 1:
        several = f"several tables ({', '.join(path.name for path in tables)}): name one with --grades"
        return replace(cohort, problems=[*cohort.problems, several])
    return graded_by(tables[0], cohort) if tables else cohort


@dataclass(frozen=True)
class CaseFolders:
    """Reads a layout with one folder for each case, in which the images are named after the case.

    Parameters
    ----------
    folder: pattern of the folders' names. The file names begin with its group ``id``; its group ``patient`` is the
        patient (default: ``id``).
    scan, mask: file names without ending, best first; ``{id}`` stands for that group, and ``*`` for anything. Where no
        file is called so, the FLAIR scans are found as ``submit`` finds them.
    graded: finds the grades; None: the layout has no grades, or in a table elsewhere.
    """

    name: str
    layout: str
    folder: str
    scan: tuple[str, ...]
    mask: tuple[str, ...]
    graded: Graded | None = None

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
        cohort = Cohort(self.layout, cases, problems)
        return cohort if self.graded is None else self.graded(folder, cohort)

    def cases(self, folder: Path, name: str, patient: str, shown: str, problems: list[str]) -> list[Case]:
        """The cases in ``folder``; none, and a problem with the folder ``shown``, if it has no scan."""
        files = files_in(folder)
        scan = image(files, self.scan, name)
        if scan is not None:
            mask = image(files, self.mask, name)
            if mask is None:  # name the masks of other cases
                masks = [path for path in files.values() if is_image(path.name) and judge(path).kind == "mask"]
                masks_of_case(masks, folder, [Path(str(scan))], [], problems)
            beside = Chooser(sequences=OTHERS).beside(scan.path)
            return [with_sequences(Case(name, scan, mask, patient, None), beside, problems)]
        chooser = Chooser(sequences=OTHERS)
        chosen = chooser.folder(folder)
        scans = [Path(each.path) for each in chosen]
        if not scans:
            problems.append(f"{shown}: no {self.scan[0].replace('{id}', name)}.nii.gz or .nii")
            problems += _remarkable(chooser, folder, shown)
        masks = [Path(each.path) for each in chooser.left_out if each.kind == "mask"]
        masks = masks_of_case(masks, folder, scans, [], problems) if scans else []
        cases = [replace(case, patient=patient) for case in cases_of(folder, name, scans, masks, problems)]
        return [with_sequences(case, each.sequences, problems) for case, each in zip(cases, chosen, strict=True)]


class PatientFolders:
    """One folder for each patient, with any name: ``ID/ID_flair.nii.gz``, ``ID/FLAIR.nii.gz``, ``ID/visit/flair.nii``.

    The scans are those that ``submit`` finds. A folder whose name is not a patient's (``images``, ``T1``, ``test``) is
    ignored, unless its scan is called after it.
    """

    name = "folders"

    def read(self, folder: Path) -> Cohort | None:
        """See ``Reader.read``."""
        if not folder.is_dir():
            return None
        chooser = Chooser(sequences=OTHERS)
        scans: dict[Path, list[Path]] = defaultdict(list)
        sequences = {Path(scan.path): scan.sequences for scan in chooser.folder(folder)}
        for path in sequences:
            if path.parent != folder:
                sub = folder / path.relative_to(folder).parts[0]
                scans[sub] += [path] if not names_nothing(sub.name) or stem(path).startswith(sub.name) else []
        passed_over = {each.path for each in chooser.left_out if each.kind.endswith("folder")}
        masks = [Path(each.path) for each in chooser.left_out if each.kind == "mask"]
        cases: list[Case] = []
        problems: list[str] = []
        paths = [path for each in scans.values() for path in each]
        patients = dict(zip(paths, find_patients(paths), strict=True))
        problems += dict.fromkeys(warning for each in patients.values() for warning in each.warnings)
        names = [sub.name for sub in folders_in(folder) if not names_nothing(sub.name)]
        for sub in (sub for sub in folders_in(folder) if sub not in passed_over):
            if scans[sub]:
                own = [mask for mask in masks if sub in mask.parents]
                own = masks_of_case(own, sub, scans[sub], names, problems)
                found = cases_of(sub, sub.name, scans[sub], own, problems)
                several = sorted({patients[path].patient for path in scans[sub]})
                if len(several) > 1:
                    problems.append(f"{sub.name}: scans of {len(several)} patients ({few(several)}), not of one")
                for case, path in zip(found, scans[sub], strict=True):
                    case = replace(case, patient=patients[path].patient)
                    cases.append(with_sequences(case, sequences[path], problems))
            elif names_nothing(sub.name):
                problems.append(f"{sub.name}: a folder of this name is no patient's; ignored")
            else:
                problems.append(f"{sub.name}: no {sub.name}_flair.nii.gz or .nii")
                problems += _remarkable(chooser, sub, sub.name)
        return participants(folder, Cohort("one folder a patient", cases, problems)) if cases else None


def cases_of(folder: Path, name: str, scans: Sequence[Path], masks: Sequence[Path], problems: list[str]) -> list[Case]:
    """A case for each scan under a patient's folder, with its mask: ``name_seg``, or else the only one of a tumour."""
    cases = []
    for path in scans:
        inside = [*path.parent.relative_to(folder).parts, stem(path)]
        alone = sum(each.parent == path.parent for each in scans) == 1
        case = name if len(scans) == 1 else "_".join([name, *(inside[:-1] if alone else inside)])
        near = [mask for mask in masks if mask.parent == path.parent]
        if not near and len(scans) == 1:
            near = list(masks)
        if not alone:
            near = [mask for mask in near if case_key(mask) == case_key(path)]
        mask = image(files_in(path.parent), ("{id}_seg",), name) if alone else None
        cases.append(Case(case, NiftiFile(path), mask or tumour_mask(near, case, problems), name, None))
    return cases


def masks_of_case(
    masks: Sequence[Path], folder: Path, scans: Sequence[Path], others: Sequence[str], problems: list[str]
) -> list[Path]:
    """The masks without those that are named after another case, which are problems.

    ``others``: the names of the cohort's cases. Without them too, ``P13_seg`` in ``P14`` is not the mask of P14.
    """
    own = {folder.name, name_patient(folder), *map(stem, scans), *map(name_patient, scans)} - {""}
    taken = []
    for mask in masks:
        if names_another(stem(mask), name_patient(mask), sorted(own), others):
            where = f"{mask.name} in {folder.name}"
            problems.append(f"{where}: named after another case, so not its mask; rename it if it is {folder.name}'s")
        else:
            taken.append(mask)
    return taken


def _remarkable(chooser: Chooser, folder: Path, shown: str) -> list[str]:
    """What was left out under a folder without a scan, and what the user can do about it."""
    left_out = [each for each in chooser.left_out if folder in each.path.parents and each.kind in REMARKABLE]
    return [f"{shown}: {each.path.name}: {each.why}" for each in left_out]


class Brats:
    """BraTS 2017–2019: ``HGG|LGG/<ID>/<ID>_flair.nii.gz`` and ``<ID>_seg.nii.gz``, or plain ``.nii``.

    The folder above gives the grade, and every ID is a patient of its own.
    """

    name = "brats"

    def read(self, folder: Path) -> Cohort | None:
        """See ``Reader.read``."""
        subs = folders_in(folder)
        if not any(sub.name.upper() in CLASSES for sub in subs):
            return None
        cases: list[Case] = []
        problems: list[str] = []
        for sub in subs:
            if sub.name.upper() not in CLASSES:
                problems.append(f"{sub.name}: beside HGG and LGG; ignored")
                continue
            for case in folders_in(sub):
                found = _BRATS_CASE.cases(case, case.name, case.name, f"{sub.name}/{case.name}", problems)
                cases += [replace(each, grade=sub.name.upper()) for each in found]
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
_BRATS_CASE = CaseFolders("brats", "BraTS 2017–2019", r"(?P<id>.+)", ("{id}_flair",), ("{id}_seg",))


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
        images = (
            path for path in files.values() if is_image(path.name) and fnmatchcase(stem(path).casefold(), pattern)
        )
        if best := min(images, key=simplicity, default=None):
            return NiftiFile(best)
    return None


def tumour_mask(masks: Sequence[Path], case: str, problems: list[str]) -> NiftiFile | None:
    """The mask of the tumour among masks; none, and a problem, if several may be it."""
    images = {(path.parent, stem(path).casefold()): path for path in sorted(masks, key=simplicity, reverse=True)}
    tumour = [path for path in images.values() if TUMOUR.search(path.name)]
    best = tumour or [path for path in images.values() if not TISSUE.search(path.name)]
    if len(best) > 1:
        problems.append(f"{case}: several files may be its mask: {', '.join(sorted(path.name for path in best))}")
    return NiftiFile(best[0]) if len(best) == 1 else None

"""The other layouts, one class for each; and ``SHIPPED``, all shipped readers in the order in which they are tried."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gliaflow_plugins.cohorts.case_folders import (
    BRATS_2020,
    BRATS_2021,
    BRATS_2023,
    REMBRANDT,
    UCSF,
    Brats,
    PatientFolders,
    files_in,
    folders_in,
    graded_by,
    image,
    masks_of_case,
    participants,
)
from gliaflow_plugins.cohorts.clinical_tables import grade_column_of, is_grade
from gliaflow_plugins.cohorts.decathlon import DATASET, parse_channels
from gliaflow_plugins.cohorts.dicom_scans import DicomScans, dicom_in, only_scan, require_matches, scans_of_patient
from gliaflow_plugins.cohorts.image_names import is_image, judge, judge_text, stem
from gliaflow_plugins.cohorts.patient_rows import names_patients
from gliaflow_plugins.cohorts.scan_files import REMARKABLE, Chooser, LocalFiles
from gliaflow_plugins.cohorts.tables import Table, few, quoted, read_table
from gliaflow_plugins.cohorts.volumes import NiftiFile, TiffStack
from gliaflow_plugins.contracts import Case, Cohort, Reader, Volume

if TYPE_CHECKING:
    from gliaflow_plugins.dicom.choose import FlairRules


class Msd:
    """MSD Task01: 4-D ``imagesTr/BRATS_306.nii.gz``, ``labelsTr/BRATS_306.nii.gz``, ``dataset.json``. No grades.

    ``modality`` in ``dataset.json`` says which volume is FLAIR. nnU-Net's copy has one file for each volume
    (``BRATS_306_0000.nii.gz``) and may name the field ``channel_names``.
    """

    name = "msd"

    def read(self, folder: Path) -> Cohort | None:
        """See ``Reader.read``."""
        if not ((folder / "imagesTr").is_dir() and (folder / "dataset.json").is_file()):
            return None
        cases: list[Case] = []
        try:
            channels = parse_channels(LocalFiles().read(folder / DATASET) or b"")
        except ValueError as error:
            return Cohort("MSD", [], [f"{DATASET}: {error}"])
        chooser = Chooser()
        masks = files_in(folder / "labelsTr")
        for scan in chooser.folder(folder / "imagesTr"):
            mask = image(masks, ("{id}",), scan.case)
            cases.append(Case(scan.case, NiftiFile(Path(scan.path)), mask, scan.case, None, channel=scan.channel))
        problems = [f"{each.path.name}: {each.why}" for each in chooser.left_out if each.kind in REMARKABLE]
        if not any(judge_text(channel).kind == "FLAIR" for channel in channels.values()):
            problems.append(f"{DATASET}: no FLAIR among its channels ({', '.join(channels.values())[:200]})")
        known = {case.id for case in cases}
        without = [stem(path) for path in masks.values() if is_image(path.name) and stem(path) not in known]
        problems += [f"{name}: a mask in labelsTr, and no FLAIR scan in imagesTr" for name in without]
        return Cohort("MSD", cases, problems)


class Kaggle:
    """Kaggle's LGG set: ``kaggle_3m/TCGA_CS_4938_19970222/TCGA_CS_4938_19970222_{1,1_mask}.tif`` and ``data.csv``.

    One file for each slice, 256 × 256 × 3; channel 1 is FLAIR. Grades 1 and 2 in ``neoplasm_histologic_grade`` are WHO
    II and III. The spacing is unknown, so volumes in millilitres are meaningless.
    """

    name = "kaggle"
    folder = re.compile(r"(TCGA_\w\w_\w+)_\d{8}")
    slice = re.compile(r".+_(\d{1,4})(_mask)?\.tif", re.IGNORECASE)

    def read(self, folder: Path) -> Cohort | None:
        """See ``Reader.read``."""
        matches = [(sub, match) for sub in folders_in(folder) if (match := self.folder.fullmatch(sub.name))]
        if not matches:
            return None
        cases: list[Case] = []
        problems: list[str] = []
        for sub, match in matches:
            slices: dict[bool, dict[int, Path]] = {False: {}, True: {}}
            for path in files_in(sub).values():
                if parts := self.slice.fullmatch(path.name):
                    slices[bool(parts[2])][int(parts[1])] = path
            images, masks = slices[False], slices[True]
            if not images:
                problems.append(f"{sub.name}: no slices (*.tif)")
                continue
            numbers = sorted(images)
            if gaps := sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers)):
                problems.append(f"{sub.name}: no slice {', '.join(map(str, gaps))}")
            if unmasked := sorted(set(numbers) - set(masks)):
                problems.append(f"{sub.name}: slice {', '.join(map(str, unmasked))} without a mask")
            scan = TiffStack(tuple(images[number] for number in numbers), channel=1)
            mask = None if unmasked else TiffStack(tuple(masks[number] for number in numbers))
            cases.append(Case(sub.name, scan, mask, match[1], None))
        return graded_by(folder / "data.csv", Cohort("Kaggle LGG", cases, problems))


class Bids:
    """BIDS: ``sub-*/[ses-*/]anat/sub-*_FLAIR.nii.gz``; grades in ``participants.tsv``, if any.

    A mask is a ``_mask``, ``_seg``, ``_dseg`` or ``_roi`` of the same subject, session, run … beside the scan or under
    ``derivatives/*/``. Masks of the brain, of tissues or in a template's space are ignored. Of several, those are
    preferred whose names contain tumour, lesion or glioma. If more than one is left, the scan gets no mask.
    """

    name = "bids"
    mask = re.compile(r".+_(mask|seg|dseg|roi)")
    scan = ("sub", "ses", "acq", "run")  # the entities that a mask shares with its scan, if it has them
    tissue = re.compile(r"brain|aseg|aparc|label-(gm|wm|csf)")
    tumour = re.compile(r"tumou?r|lesion|glioma")
    spaces = ("flair", "orig", "native", "scanner", "individual")

    def read(self, folder: Path) -> Cohort | None:
        """See ``Reader.read``."""
        subjects = [sub for sub in folders_in(folder) if sub.name.startswith("sub-")]
        if not subjects or not any(anat.is_dir() for sub in subjects for anat in _anats(sub)):
            return None
        cases: list[Case] = []
        problems: list[str] = []
        pipelines = folders_in(folder / "derivatives")
        for sub in subjects:
            chooser = Chooser()
            scans = [Path(scan.path) for anat in _anats(sub) if anat.is_dir() for scan in chooser.folder(anat)]
            if not scans:
                problems.append(f"{sub.name}: no *_FLAIR.nii.gz in anat")
            problems += [
                f"{sub.name}: {each.path.name}: {each.why}" for each in chooser.left_out if each.kind in REMARKABLE
            ]
            places = [*_anats(sub), *(place for p in pipelines for place in _places(p / sub.name))]
            files = [path for place in places for path in files_in(place).values()]
            for path in scans:
                mask = self._mask(folder, stem(path), files, problems)
                case = re.sub("_flair$", "", stem(path), flags=re.IGNORECASE)
                cases.append(Case(case, NiftiFile(path), mask, sub.name, None))
        return participants(folder, Cohort("BIDS", cases, problems))

    def _mask(self, folder: Path, scan: str, files: list[Path], problems: list[str]) -> Volume | None:
        known = _entities(scan.casefold())
        candidates = []
        for path in files:
            name = stem(path).casefold()
            own = _entities(name)
            same = all(known.get(key, value) == value for key, value in own.items() if key in self.scan)
            subject, _, rest = name.partition("_")  # a subject may be called sub-brain01
            if not self.mask.fullmatch(name) or self.tissue.search(rest) or not same:
                continue
            where = str(path.relative_to(folder)).casefold().replace(subject, "")
            named = self.tumour.search(where) is not None
            if own.get("space", "orig") in self.spaces and (named or not name.endswith("_dseg")):
                candidates.append((named, path))
        best = [path for named, path in candidates if named] or [path for _, path in candidates]
        if len(best) == 1:
            return NiftiFile(best[0])
        if best:
            several = ", ".join(str(path.relative_to(folder)) for path in best)
            problems.append(f"{scan[: -len('_FLAIR')]}: several files may be its mask: {several}")
        return None


@dataclass(frozen=True)
class Csv:
    """A table, or a folder with ``cohort.csv`` in it: columns ``scan``, ``mask``, ``patient``, ``grade``, ``channel``.

    Only ``scan`` is required: a NIfTI file, or a folder of DICOM. Paths are relative to the table. A relative path must
    stay inside the table's folder, links followed: the table may come from someone else, and point anywhere.

    ``rules``: which DICOM series are FLAIR; None: the default rules.
    """

    rules: FlairRules | None = None
    name = "csv"

    def read(self, folder: Path) -> Cohort | None:
        """See ``Reader.read``."""
        candidates = (folder, folder / "cohort.csv", folder / "cohort.tsv")
        path = next((path for path in candidates if path.is_file()), None)
        if path is None or path.suffix.casefold() not in (".csv", ".tsv", ".txt"):
            return None
        try:
            table = read_table(path)
        except (OSError, ValueError) as error:
            return Cohort("CSV", [], [str(error)])
        problems = list(table.problems)
        try:
            columns = _columns(table, problems)
        except ValueError as error:
            return Cohort("CSV", [], [str(error)])
        cases: list[Case] = []
        searched: list[DicomScans] = []
        for row in table.rows:
            cell = {known: row.cells[column] for known, column in columns.items()}
            where = f"{path.name} line {row.line}"
            try:
                scan = _located(path.parent, cell["scan"])
            except (OSError, ValueError) as error:
                problems.append(f"{where}: scan {error}; ignored")
                continue
            name = stem(scan)
            if not (patient := cell.get("patient", name)):
                problems.append(f"{where}: no patient; ignored")
                continue
            mask = None
            try:
                mask = NiftiFile(_located(path.parent, cell["mask"])) if cell.get("mask") else None
            except (OSError, ValueError) as error:
                problems.append(f"{where}: mask {error}")
            volume: Volume = NiftiFile(scan)
            if scan.is_dir():
                try:
                    volume = only_scan(scan, self.rules, searched)
                except ValueError as error:
                    problems.append(f"{where}: scan {error}; ignored")
                    continue
            cases.append(Case(name, volume, mask, patient, cell.get("grade"), channel=cell.get("channel") or None))
        if searched:
            require_matches(self.rules, searched)
        used = ", ".join(f"{known}s by {column!r}" for known, column in columns.items())
        unused = [column for column in table.columns if column not in columns.values()]
        how = f"{path.name}: {used}" + (f"; not used: {few(unused)}" if unused else "")
        left_out = [left for each in searched for left in each.left_out]
        return Cohort("CSV", cases, problems, tables=[how], left_out=left_out)


@dataclass(frozen=True)
class Dicom:
    """DICOM: one folder for each patient, series at any depth; ``*_seg.nii.gz`` or ``*_mask.nii.gz`` beside them.

    The mask of a patient with one scan is in the patient's folder, or in any folder from there to the series. Of
    several scans, each has its mask in the folder of its series, or between that and the patient's folder.

    ``rules``: which series are FLAIR; None: the default rules.
    """

    rules: FlairRules | None = None
    name = "dicom"

    def read(self, folder: Path) -> Cohort | None:
        """See ``Reader.read``."""
        subs = folders_in(folder)
        patients = {sub: files for sub in subs if (files := dicom_in(sub))}
        if not patients:
            return None
        cases: list[Case] = []
        problems = [f"{sub.name}: no DICOM in it; ignored" for sub in subs if sub not in patients]
        found = {sub: scans_of_patient(files, sub.name, self.rules, problems) for sub, files in patients.items()}
        require_matches(self.rules, list(found.values()))
        for sub, scans in ((sub, each.scans) for sub, each in found.items()):
            for number, scan in enumerate(scans, 1):
                places = [Path(up) for up in (scan.path, *scan.path.parents) if up.is_relative_to(sub)]
                places = places if len(scans) == 1 else [place for place in places if place != sub]
                masks = [path for place in places for path in files_in(place).values() if is_image(path.name)]
                masks = [path for path in masks if judge(path).kind == "mask"]
                masks = masks_of_case(masks, sub, [], [each.name for each in subs], problems)
                name = sub.name if len(scans) == 1 else f"{sub.name}_{number}"
                if len(masks) > 1:
                    problems.append(f"{name}: several masks: {', '.join(path.name for path in masks)}")
                mask = NiftiFile(masks[0]) if len(masks) == 1 else None
                assert scan.series is not None
                cases.append(Case(name, scan.series, mask, sub.name, None))
        left_out = [left for each in found.values() for left in each.left_out]
        return Cohort("DICOM", cases, problems, left_out=left_out)


def _anats(subject: Path) -> list[Path]:
    sessions = [path for path in folders_in(subject) if path.name.startswith("ses-")]
    return [folder / "anat" for folder in (subject, *sessions)]


def _places(subject: Path) -> Iterator[Path]:
    """The folders in which a pipeline may store an image: not all pipelines use ``anat``."""
    for anat in _anats(subject):
        yield anat
        yield anat.parent


def _entities(stem: str) -> dict[str, str]:
    """The entities of a BIDS file name, such as ``run-1``."""
    return {key: value for key, dash, value in (part.partition("-") for part in stem.split("_")) if dash}


def _columns(table: Table, problems: list[str]) -> dict[str, str]:
    """The columns of a table of scans, by the names above: ``patient`` may be called ``Patient ID``.

    Raises
    ------
    ValueError: there is no column ``scan``, or several columns would do. The text names them.
    """
    names = ("scan", "mask", "patient", "grade", "channel")
    columns = {name: column for name in names if (column := table.find(name))}
    if "scan" not in columns:
        raise ValueError(f"{table.path.name}: no column 'scan'; there is: {', '.join(table.columns)}")
    patients = [column for column in table.columns if names_patients(column)]
    if "patient" not in columns and len(patients) > 1:
        raise ValueError(f"{table.path}: several columns may be the patient: {quoted(patients)}; call one 'patient'")
    if "patient" not in columns and patients:
        columns["patient"] = patients[0]
    elif "patient" not in columns:
        problems.append(f"{table.path.name}: no column 'patient', so every scan counts as a patient of its own")
    if "grade" not in columns and any(map(is_grade, table.columns)):
        columns["grade"] = grade_column_of(table)
    return columns


def _located(base: Path, text: str) -> Path:
    """The file or folder that a table names. Raises OSError or ValueError if it does not exist or is not allowed."""
    if not text:
        raise ValueError("is missing")
    path = Path(text)
    if not path.is_absolute():
        path = base / path
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(base)):
            raise ValueError(f"{text} is outside the table's folder; if this is intended, write an absolute path")
    if not path.exists():
        raise FileNotFoundError(f"{text} does not exist")
    return path


# From the most specific to the most general: PatientFolders would read several of the others, but less well.
SHIPPED: tuple[Reader, ...] = (
    *(Csv(), Brats(), BRATS_2020, BRATS_2021, BRATS_2023, Msd(), REMBRANDT),
    *(UCSF, Kaggle(), Bids(), PatientFolders(), Dicom()),
)

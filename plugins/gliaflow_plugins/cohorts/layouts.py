"""The other layouts, one class for each; and ``SHIPPED``, all shipped readers in the order in which they are tried."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gliaflow_plugins.cohorts.case_folders import (
    BRATS_2020,
    BRATS_2021,
    BRATS_2023,
    PATIENT_FOLDERS,
    REMBRANDT,
    UCSF,
    Brats,
    files_in,
    folders_in,
    graded_by,
    image,
    participants,
    stem_of,
)
from gliaflow_plugins.cohorts.clinical_tables import read_table
from gliaflow_plugins.cohorts.volumes import DicomSeries, NiftiFile, TiffStack
from gliaflow_plugins.contracts import Case, Cohort, Reader, Volume

MAX_JSON_BYTES = 16 * 2**20
MAX_FOLDERS = 200  # folders under one patient that are searched for DICOM


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
            channel = _flair_channel(folder / "dataset.json")
        except (OSError, ValueError) as error:
            return Cohort("MSD", [], [f"dataset.json: {error}"])
        masks = files_in(folder / "labelsTr")
        for path in files_in(folder / "imagesTr").values():
            name = stem_of(path)
            if name is None:
                continue
            own = re.fullmatch(r"(.+)_(\d{4})", name)
            if own and int(own[2]) != int(channel):
                continue
            name = own[1] if own else name
            mask = image(masks, ("{id}",), name)
            cases.append(Case(name, NiftiFile(path), mask, name, None, channel=None if own else channel))
        return Cohort("MSD", cases)


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
        return Cohort("Kaggle LGG", graded_by(folder / "data.csv", cases, problems), problems)


class Bids:
    """BIDS: ``sub-*/[ses-*/]anat/sub-*_FLAIR.nii.gz``; grades in ``participants.tsv``, if any.

    A mask is a ``_mask``, ``_seg``, ``_dseg`` or ``_roi`` of the same subject, session, run … beside the scan or under
    ``derivatives/*/``. Masks of the brain, of tissues or in a template's space are ignored. Of several, those are
    preferred whose names contain tumour, lesion or glioma. If more than one is left, the scan gets no mask.
    """

    name = "bids"
    mask = re.compile(r".+_(mask|seg|dseg|roi)")
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
            images = {path: stem_of(path) or "" for anat in _anats(sub) for path in files_in(anat).values()}
            scans = {path: stem for path, stem in images.items() if stem.endswith("_FLAIR")}
            if not scans:
                problems.append(f"{sub.name}: no *_FLAIR.nii.gz in anat")
            places = [*_anats(sub), *(place for p in pipelines for place in _places(p / sub.name))]
            files = [path for place in places for path in files_in(place).values()]
            for path, stem in scans.items():
                mask = self._mask(folder, stem, files, problems)
                cases.append(Case(stem.removesuffix("_FLAIR"), NiftiFile(path), mask, sub.name, None))
        return Cohort("BIDS", participants(folder, cases, problems), problems)

    def _mask(self, folder: Path, scan: str, files: list[Path], problems: list[str]) -> Volume | None:
        known = _entities(scan.casefold())
        candidates = []
        for path in files:
            stem = (stem_of(path) or "").casefold()
            own = _entities(stem)
            same = all(known.get(key, value) == value for key, value in own.items() if key in ("ses", "acq", "run"))
            subject, _, rest = stem.partition("_")  # a subject may be called sub-brain01
            if not self.mask.fullmatch(stem) or self.tissue.search(rest) or not same:
                continue
            where = str(path.relative_to(folder)).casefold().replace(subject, "")
            named = self.tumour.search(where) is not None
            if own.get("space", "orig") in self.spaces and (named or not stem.endswith("_dseg")):
                candidates.append((named, path))
        best = [path for named, path in candidates if named] or [path for _, path in candidates]
        if len(best) == 1:
            return NiftiFile(best[0])
        if best:
            several = ", ".join(str(path.relative_to(folder)) for path in best)
            problems.append(f"{scan.removesuffix('_FLAIR')}: several files may be its mask: {several}")
        return None


class Csv:
    """A table, or a folder with ``cohort.csv`` in it: columns ``scan``, ``mask``, ``patient``, ``grade``, ``channel``.

    Only ``scan`` is required: a NIfTI file, or a folder of DICOM. Paths are relative to the table. A relative path must
    stay inside the table's folder, links followed: the table may come from someone else, and point anywhere.
    """

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
        columns = {column.casefold(): column for column in table.columns}
        cases: list[Case] = []
        problems = list(table.problems)
        if "scan" not in columns:
            return Cohort("CSV", [], [f"{path.name}: no column 'scan'; there is: {', '.join(table.columns)}"])
        if "patient" not in columns:
            problems.append(f"{path.name}: no column 'patient', so every scan counts as a patient of its own")
        for line, row in table.rows:
            cell = {known: row[columns[known]] for known in columns}
            where = f"{path.name} line {line}"
            try:
                scan = _located(path.parent, cell["scan"])
            except (OSError, ValueError) as error:
                problems.append(f"{where}: scan {error}; ignored")
                continue
            name = stem_of(scan) or scan.name
            if not (patient := cell.get("patient", name)):
                problems.append(f"{where}: no patient; ignored")
                continue
            mask = None
            try:
                mask = NiftiFile(_located(path.parent, cell["mask"])) if cell.get("mask") else None
            except (OSError, ValueError) as error:
                problems.append(f"{where}: mask {error}")
            volume: Volume = DicomSeries(scan) if scan.is_dir() else NiftiFile(scan)
            cases.append(Case(name, volume, mask, patient, cell.get("grade"), channel=cell.get("channel") or None))
        return Cohort("CSV", cases, problems)


class Dicom:
    """DICOM: one folder for each patient, series at any depth; ``*_seg.nii.gz`` or ``*_mask.nii.gz`` beside them."""

    name = "dicom"

    def read(self, folder: Path) -> Cohort | None:
        """See ``Reader.read``."""
        subs = folders_in(folder)
        patients = [sub for sub in subs if _has_dicom(sub)]
        if not patients:
            return None
        cases: list[Case] = []
        problems = [f"{sub.name}: no DICOM in it; ignored" for sub in subs if sub not in patients]
        for sub in patients:
            masks = [path for path in files_in(sub).values() if (stem_of(path) or "").endswith(("_seg", "_mask"))]
            if len(masks) > 1:
                problems.append(f"{sub.name}: several masks: {', '.join(path.name for path in masks)}")
            mask = NiftiFile(masks[0]) if len(masks) == 1 else None
            cases.append(Case(sub.name, DicomSeries(sub), mask, sub.name, None))
        return Cohort("DICOM", cases, problems)


def _flair_channel(path: Path) -> str:
    """The number of the FLAIR volume, from ``dataset.json``. Raises OSError or ValueError if the file has none."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"over {MAX_JSON_BYTES} bytes")
    try:
        described: Any = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    volumes = described.get("modality", described.get("channel_names")) if isinstance(described, dict) else None
    if not isinstance(volumes, dict):
        raise ValueError("no 'modality' that says which volume is FLAIR")
    for number, modality in volumes.items():
        if re.fullmatch("[0-9]{1,4}", number) and "flair" in str(modality).casefold():
            return str(int(number))
    raise ValueError(f"no FLAIR among its modalities ({', '.join(map(str, volumes.values()))[:200]})")


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


def _has_dicom(folder: Path) -> bool:
    """Whether a file below has DICOM's ending or, without an ending, begins as DICOM does (PS3.10, section 7.1)."""
    for number, (where, _, names) in enumerate(os.walk(folder)):
        if number >= MAX_FOLDERS:
            return False
        if any(name.casefold().endswith((".dcm", ".ima")) for name in names):
            return True
        plain = next((Path(where, name) for name in sorted(names) if "." not in name), None)
        if plain is not None and plain.is_file() and _begins_as_dicom(plain):
            return True
    return False


def _begins_as_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


# From the most specific to the most general: PATIENT_FOLDERS would read several of the others, but less well.
SHIPPED: tuple[Reader, ...] = (
    *(Csv(), Brats(), BRATS_2020, BRATS_2021, BRATS_2023, Msd(), REMBRANDT),
    *(UCSF, Kaggle(), Bids(), PATIENT_FOLDERS, Dicom()),
)

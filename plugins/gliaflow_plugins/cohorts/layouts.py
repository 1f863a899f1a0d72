"""The other layouts, one class for each; and ``SHIPPED``, all shipped readers in the order in which they are tried."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
from gliaflow_plugins.cohorts.decathlon import DATASET, parse_channels
from gliaflow_plugins.cohorts.dicom_scans import dicom_in, require_matches, scans_of_patient, with_series
from gliaflow_plugins.cohorts.image_names import is_image, judge, judge_text, stem
from gliaflow_plugins.cohorts.scan_files import REMARKABLE, Chooser, LocalFiles, with_sequences
from gliaflow_plugins.cohorts.scan_tables import Csv
from gliaflow_plugins.cohorts.volumes import NiftiFile, TiffStack
from gliaflow_plugins.contracts import Case, Cohort, Reader, SequenceFile, Volume
from gliaflow_plugins.sequence_names import OTHERS

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
        problems: list[str] = []
        chooser = Chooser(sequences=OTHERS)
        masks = files_in(folder / "labelsTr")
        for scan in chooser.folder(folder / "imagesTr"):
            mask = image(masks, ("{id}",), scan.case)
            case = Case(scan.case, NiftiFile(Path(scan.path)), mask, scan.case, None, channel=scan.channel)
            cases.append(with_sequences(case, scan.sequences, problems))
        problems = list(dict.fromkeys(problems))
        problems += [f"{each.path.name}: {each.why}" for each in chooser.left_out if each.kind in REMARKABLE]
        if not any(judge_text(channel).kind == "FLAIR" for channel in channels.values()):
            problems.append(f"{DATASET}: no FLAIR among its channels ({', '.join(channels.values())[:200]})")
        known = {case.id for case in cases}
        without = [stem(path) for path in masks.values() if is_image(path.name) and stem(path) not in known]
        problems += [f"{name}: a mask in labelsTr, and no FLAIR scan in imagesTr" for name in without]
        return Cohort("MSD", cases, problems)


class Kaggle:
    """Kaggle's LGG set: ``kaggle_3m/TCGA_CS_4938_19970222/TCGA_CS_4938_19970222_{1,1_mask}.tif`` and ``data.csv``.

    One file for each slice, 256 × 256 × 3: T1 before contrast, FLAIR, T1 after contrast. Where one of the two is
    missing, the set has a copy of FLAIR in its place, which is not used. Grades 1 and 2 in
    ``neoplasm_histologic_grade`` are WHO II and III. The spacing is unknown, so volumes in millilitres are meaningless.
    """

    name = "kaggle"
    flair, others = 1, {"t1": 0, "t1ce": 2}
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
            scan = TiffStack(tuple(images[number] for number in numbers), channel=self.flair)
            mask = None if unmasked else TiffStack(tuple(masks[number] for number in numbers))
            sequences = {
                name: SequenceFile(replace(scan, channel=channel))
                for name, channel in self.others.items()
                if not scan.repeats(channel)
            }
            cases.append(Case(sub.name, scan, mask, match[1], None, sequences=sequences))
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
            chooser = Chooser(sequences=OTHERS)
            scans = [scan for anat in _anats(sub) if anat.is_dir() for scan in chooser.folder(anat)]
            if not scans:
                problems.append(f"{sub.name}: no *_FLAIR.nii.gz in anat")
            problems += [
                f"{sub.name}: {each.path.name}: {each.why}" for each in chooser.left_out if each.kind in REMARKABLE
            ]
            places = [*_anats(sub), *(place for p in pipelines for place in _places(p / sub.name))]
            files = [path for place in places for path in files_in(place).values()]
            for scan in scans:
                mask = self._mask(folder, stem(scan.path), files, problems)
                name = re.sub("_flair$", "", stem(scan.path), flags=re.IGNORECASE)
                case = Case(name, NiftiFile(Path(scan.path)), mask, sub.name, None)
                cases.append(with_sequences(case, scan.sequences, problems))
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
                case = Case(name, scan.series, mask, sub.name, None)
                cases.append(with_series(case, scan.series, problems))
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


# From the most specific to the most general: PatientFolders would read several of the others, but less well.
SHIPPED: tuple[Reader, ...] = (
    *(Csv(), Brats(), BRATS_2020, BRATS_2021, BRATS_2023, Msd(), REMBRANDT),
    *(UCSF, Kaggle(), Bids(), PatientFolders(), Dicom()),
)

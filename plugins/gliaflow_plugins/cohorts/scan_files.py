"""Which files are FLAIR scans to submit or to learn from, and why the others are left out.

All commands and readers share it. A file that its name calls FLAIR is a scan. A file whose name says nothing is a scan
unless the files beside it leave a doubt.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from gliaflow_plugins.cohorts import image_names
from gliaflow_plugins.cohorts.case_sequences import CaseSequences, SequenceFinder, SequencePath
from gliaflow_plugins.cohorts.decathlon import MAX_JSON_BYTES, Datasets, Files
from gliaflow_plugins.cohorts.doubts import doubts
from gliaflow_plugins.cohorts.image_names import (
    COPY,
    NameSays,
    case_key,
    case_place,
    is_image,
    is_visit,
    simplicity,
    stem,
)
from gliaflow_plugins.cohorts.volumes import NiftiFile
from gliaflow_plugins.cohorts.walk import by_ending, is_dicom, once, unusable, walk
from gliaflow_plugins.contracts import Case, Cohort, SequenceFile, Volume
from gliaflow_plugins.image_words import words
from gliaflow_plugins.left_out import NO_FLAIR, LeftOut

if TYPE_CHECKING:
    from gliaflow_plugins.dicom.series import DicomSeries

PLURALS = {"DICOM series": "DICOM series", NO_FLAIR: "DICOM studies without FLAIR"}
SHOWN = 3  # names or words in one line of a summary
HEADER, VOXELS = (re.compile(rf"\.{ending}(\.gz)?$", re.IGNORECASE) for ending in ("hdr", "img"))  # of one image
REMARKABLE = (
    "unfetched file",
    "broken link",
    "unreadable file",
    "unreadable folder",
    "doubtful file",
    "DICOM file",
    "DICOM folder",
    NO_FLAIR,
    "unread scan",
    "repeated file",
)


@dataclass(frozen=True)
class ScanFile:
    """A FLAIR scan.

    Parameters
    ----------
    path: its file; of a DICOM series, the folder that contains all its files.
    channel: the number of the FLAIR volume, if ``dataset.json`` says it. case: the case's name in such a dataset.
    warnings: doubts whether it is a FLAIR scan.
    series: the DICOM series, which has its own ``sequences``.
    sequences: the other sequences of the study, as far as the chooser looked for them.
    """

    path: PurePath
    channel: str | None = None
    case: str = ""
    warnings: tuple[str, ...] = ()
    series: DicomSeries | None = None
    sequences: CaseSequences = field(default_factory=CaseSequences)


def with_sequences(case: Case, sequences: CaseSequences, problems: list[str]) -> Case:
    """The case with these sequences. ``problems`` gets a line for each that is not used though it may be there."""
    problems += [f"{case.id}: {name} is not used: {why}" for name, why in sequences.problems.items()]
    files = {name: SequenceFile(NiftiFile(Path(each.path)), each.channel) for name, each in sequences.found.items()}
    return replace(case, sequences=files, unused=sequences.problems)


class LocalFiles:
    """The files of this machine, for ``dataset.json``."""

    def names(self, folder: PurePath) -> list[str]:
        """See ``Files.names``."""
        try:
            return [path.name for path in Path(folder).iterdir()]
        except OSError:  # it does not exist, say
            return []

    def read(self, path: PurePath) -> bytes | None:
        """See ``Files.read``."""
        try:
            if not Path(path).is_file():  # opening a pipe would block for ever
                return None
            with Path(path).open("rb") as file:
                return file.read(MAX_JSON_BYTES + 1)
        except OSError:
            return None


class Chooser:
    """Chooses the FLAIR scans among files.

    Parameters
    ----------
    files: where the files are. wanted: the name or number of the channel to take in place of FLAIR.
    sequences: the other sequences to look for: of ``t1``, ``t1ce`` and ``t2``. Their files are no scans.

    Attributes
    ----------
    left_out: the files that are no scans. dicom: the DICOM files, of which ``dicom_scans`` makes scans.
    """

    def __init__(self, files: Files | None = None, wanted: str | None = None, sequences: Sequence[str] = ()) -> None:
        self._files = files or LocalFiles()
        self._datasets, self._wanted = Datasets(self._files), wanted
        self._sequences = SequenceFinder(self._files, sequences)
        self.left_out: list[LeftOut] = []
        self.dicom: list[Path] = []

    def beside(self, path: Path) -> CaseSequences:
        """The other sequences of a FLAIR scan that is the only one in its folder."""
        return self._with_sequences([ScanFile(path)])[0].sequences

    def folder(self, folder: Path) -> list[ScanFile]:
        """The scans under a folder of this machine."""
        return self.of(self.usable(walk(folder, self.left_out)), folder)

    def usable(self, files: Mapping[Path, os.stat_result | None]) -> list[Path]:
        """The files that may be scans; those of other formats and what was not fetched are left out.

        What the name alone leaves out is left out for that reason. DICOM files are added to ``dicom``. ``files``: with
        their status, as of ``walk``.
        """
        images: dict[Path, os.stat_result] = {}
        broken = []
        for path, status in files.items():
            if is_dicom(path, status):
                self.dicom.append(path)
                continue
            image = is_image(path.name)
            reason = unusable(path, status) if not image or self._may_be_scan(path) else by_ending(path)
            if reason is not None and (reason.kind == "unsupported file" or self._may_be_scan(path)):
                self.left_out.append(reason)
            elif image and status is not None:
                images[path] = status
            elif image:
                broken.append(path)
        return sorted([*once(images, self.left_out), *broken])

    def _may_be_scan(self, path: Path) -> bool:
        return self.judge(path).kind in ("FLAIR", "unknown")

    def one(self, path: PurePath) -> ScanFile:
        """The scan that a user named alone. It is taken in any case, with a warning if its name says otherwise."""
        verdict = self.judge(path)
        doubt = () if verdict.kind in ("FLAIR", "unknown") else (f"{verdict.why}; is it a FLAIR scan?",)
        return self._with_sequences([self._scan(path, doubt)])[0]

    def judge(self, path: PurePath, root: PurePath | None = None) -> NameSays:
        """What a file is, by its dataset, or else by its name and folders."""
        dataset = self._datasets.of(path)
        return dataset.judge(path, self._wanted) if dataset else image_names.judge(path, root)

    def of(self, paths: Sequence[PurePath], root: PurePath | None) -> list[ScanFile]:
        """The scans among image files, which are all under ``root``, if it is given."""
        headers = {path.with_name(stem(path)) for path in paths if HEADER.search(path.name)}
        paths = [path for path in paths if not VOXELS.search(path.name) or path.with_name(stem(path)) not in headers]
        by_dataset: list[PurePath] = []
        scans: list[PurePath] = []
        unknown: list[PurePath] = []
        named: dict[PurePath, NameSays] = {}
        for path in paths:
            verdict = self.judge(path, root)
            if verdict.kind == "FLAIR":
                (scans if self._datasets.of(path) is None else by_dataset).append(path)
            elif verdict.kind == "unknown":
                unknown.append(path)
            else:
                self.left_out.append(LeftOut(path, verdict.why, verdict.kind, verdict.word))
                named[path] = verdict
        scans = self._one_of_each(scans)
        unknown = self._one_of_each(unknown)
        in_doubt = doubts(unknown, [*by_dataset, *scans], named)
        self.left_out += [LeftOut(path, why, "doubtful file", path.name) for path, why in in_doubt.items()]
        taken = [path for path in sorted([*by_dataset, *scans, *unknown]) if path not in in_doubt]
        return self._with_sequences([self._scan(path) for path in taken])

    def _with_sequences(self, scans: Sequence[ScanFile]) -> list[ScanFile]:
        """The scans with the sequences that are looked for, whose files are no longer left out."""
        if not self._sequences.wanted:
            return list(scans)
        plain = [scan.path for scan in scans if self._datasets.of(scan.path) is None]
        beside = self._sequences.beside(plain)
        found = []
        for scan in scans:
            dataset = self._datasets.of(scan.path)
            of = self._sequences.in_dataset(scan.path, dataset) if dataset else beside.get(scan.path, CaseSequences())
            found.append(replace(scan, sequences=self._usable_sequences(of)))
        used = {each.path for scan in found for each in scan.sequences.found.values()}
        versions = {each.path: each for each in self._sequences.left_out}
        self._sequences.left_out.clear()
        self.left_out[:] = [versions.get(each.path, each) for each in self.left_out if each.path not in used]
        return found

    def _usable_sequences(self, of: CaseSequences) -> CaseSequences:
        """The sequences without those that are links to nothing, or not fetched: these are problems."""
        found: dict[str, SequencePath] = {}
        problems = dict(of.problems)
        for name, each in of.found.items():
            reason = unusable(Path(each.path)) if isinstance(self._files, LocalFiles) else None
            if reason is None:
                found[name] = each
            else:
                problems[name] = f"{each.path.name}: {reason.why}"
        return CaseSequences(found, problems)

    def _one_of_each(self, paths: Sequence[PurePath]) -> list[PurePath]:
        """One image of each case: of several versions, the one with the simplest name."""
        cases: dict[tuple[object, ...], list[PurePath]] = defaultdict(list)
        for path in sorted(paths, key=lambda path: len(words(stem(path)))):
            if image_names.judge(path).kind == "FLAIR":
                place, key = case_place(path), case_key(path)
                whole = (key[:count] for count in range(len(key)) if (place, key[:count]) in cases)
                case = next((short for short in whole if not any(map(_tells_apart, key[len(short) :]))), key)
                cases[place, case].append(path)
            else:
                cases[path.parent, COPY.sub("", stem(path))].append(path)
        chosen = []
        for versions in cases.values():
            best, *others = sorted(versions, key=simplicity) if versions[1:] else versions
            chosen.append(best)
            for path in others:
                same = path.parent == best.parent and stem(path) == stem(best)
                what = "the same image" if same else "another version of the same scan"
                where = "" if path.parent == best.parent else f" in {best.parent}"
                self.left_out.append(LeftOut(path, f"{what}: {best.name}{where} is taken", "other version"))
        return chosen

    def _scan(self, path: PurePath, warnings: tuple[str, ...] = ()) -> ScanFile:
        dataset = self._datasets.of(path)
        if dataset is None:
            return ScanFile(path, warnings=warnings)
        case, number = dataset.case(path)
        flair = dataset.flair(self._wanted)
        channel = self._wanted if flair is None else str(flair)
        return ScanFile(path, None if number is not None else channel, case, warnings)


def _tells_apart(word: str) -> bool:
    """Whether a further word in a name may name another case or visit: not ``anna`` in ``P1_flair_anna``."""
    return any(character.isdigit() for character in word) or is_visit(word)


def not_read(cohort: Cohort, folder: Path) -> list[LeftOut]:
    """What is under a cohort's folder and belongs to no case: what ``submit`` leaves out, and unread scans."""
    used = {str(path) for case in cohort.cases for volume in _volumes(case) for path in _paths(volume)}
    parents = {str(up) for path in used for up in Path(path).parents}
    chooser = Chooser()
    scans = chooser.folder(folder)
    why = f"the reader {cohort.reader} does not read it"
    unread = [LeftOut(scan.path, why, "unread scan") for scan in scans]
    known = {str(each.path) for each in cohort.left_out}
    folders: Counter[Path] = Counter()
    for path in chooser.dicom:
        if not {str(path), *map(str, path.parents)} & known and str(path) not in used:
            folders[path.parent] += 1
    dicom = [
        LeftOut(path, f"DICOM files ({count}): the reader {cohort.reader} does not read them", "DICOM folder")
        for path, count in folders.items()
    ]
    return [
        *cohort.left_out,
        *dicom,
        *(
            each
            for each in [*unread, *chooser.left_out]
            if not used & {str(each.path), *map(str, each.path.parents)} and str(each.path) not in parents
        ),
    ]


def _volumes(case: Case) -> list[Volume | None]:
    return [case.scan, case.mask, *(each.volume for each in case.sequences.values())]


def _paths(volume: Volume | None) -> list[Path]:
    """The files of an image."""
    return [] if volume is None else list(getattr(volume, "paths", (Path(str(volume)),)))


def summary(left_out: Sequence[LeftOut]) -> list[str]:
    """What was left out: a line with counts by kind, and a line for each kind that the user can do something about."""
    if not left_out:
        return []
    kinds: dict[str, list[LeftOut]] = defaultdict(list)
    for each in left_out:
        kinds[each.kind].append(each)
    counts = []
    for kind, members in sorted(kinds.items(), key=lambda item: -len(item[1])):
        details = [
            detail for detail, _ in Counter(each.detail.split(" (")[0] for each in members if each.detail).most_common()
        ]
        shown = f" ({', '.join(details[:SHOWN])}{', …' if len(details) > SHOWN else ''})" if details else ""
        counts.append(f"{len(members)} {PLURALS.get(kind, f'{kind}s') if len(members) > 1 else kind}{shown}")
    lines = [", ".join(counts)]
    for kind in REMARKABLE:
        if members := kinds.get(kind, []):
            more = f" (and {len(members) - 1} more)" if len(members) > 1 else ""
            lines.append(f"{members[0].path}: {members[0].why}{more}")
    return lines

"""From the paths that a user gives to the scans to submit."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike, fspath
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any

from gliaflow_plugins.cohorts.dicom_scans import as_series, dicom_in, dicom_scans, folder_of
from gliaflow_plugins.cohorts.image_names import name_of, stem
from gliaflow_plugins.cohorts.other_formats import is_other_format
from gliaflow_plugins.cohorts.patients import PatientOf, find_patients
from gliaflow_plugins.cohorts.scan_files import SHOWN, ScanFile, summary
from gliaflow_plugins.cohorts.scan_tables import Csv
from gliaflow_plugins.cohorts.volumes import NiftiFile
from gliaflow_plugins.contracts import Cohort, Volume
from gliaflow_plugins.left_out import NO_FLAIR, LeftOut
from gliaflow_plugins.sequence_names import OTHERS
from gliaflow_proto import CLASSES
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.visible import visible

from gliaflow.dicom_names import apart, series_name, series_place
from gliaflow.flair_rules import flair_rules
from gliaflow.places import search
from gliaflow.sequences import (
    UNUSED,
    GivenSequences,
    SequenceInput,
    case_sequences,
    scan_sequences,
)

if TYPE_CHECKING:
    from gliaflow_plugins.dicom.choose import KnownImages

MAX_NAME_BYTES = 160  # file systems allow 255; endings and numbers are appended to the name


@dataclass(frozen=True)
class Input:
    """One scan to submit.

    Parameters
    ----------
    path: the file, or with ``uri`` its place in the store; of a DICOM series, the folder that contains all its files.
    name: unique within the submission; answers and mask files carry it.
    grade: the known class (HGG or LGG), if there is one.
    channel: of a 4-D file, the number of the FLAIR volume.
    cohort: a scan of a cohort has the same id in every submission, so that a feature store keeps it once.
    volume: gives the NIfTI bytes where ``path`` is not a NIfTI file.
    uri: the preprocessor reads the scan from here.
    relative: its path, relative to the folder that was submitted.
    warnings: doubts about the file, from its name and its folder, for its answer.
    series: the SeriesInstanceUID of a DICOM series, which is then in ``volume``.
    sequences: the other sequences of the study that are sent with it, by name.
    id: the scan's id in messages, unique in the pipeline. Default: derived from the submission and the name.
    """

    path: Path
    name: str
    patient: str
    grade: str | None = None
    channel: str | None = None
    cohort: str = ""
    volume: Volume | None = None
    uri: str = ""
    relative: str = ""
    warnings: tuple[str, ...] = ()
    series: str = ""
    id: str = ""
    sequences: Mapping[str, SequenceInput] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Its URI or path, for messages."""
        return self.uri or str(self.path)

    @property
    def root(self) -> str:
        """The folder or URL under which it is: a preprocessor reads nothing outside the roots that are allowed."""
        return self.uri.rpartition("/")[0] or str(Path(os.path.realpath(self.path)).parent)


ScanPath = str | PathLike[str] | Input


@dataclass(frozen=True)
class ScanRequest:
    """What a user says of the scans at the paths. Each field may be left out.

    Parameters
    ----------
    grade: the known class of all of them, HGG or LGG.
    channel: of 4-D files, the FLAIR volume: its number, or its name in ``dataset.json``.
    series: the DICOM series to take: a SeriesInstanceUID, a SeriesNumber, or a part of the description. Default: by the
        settings ``dicom_*``.
    sequences: the other sequences to look for, of ``t1``, ``t1ce`` and ``t2`` (``wanted_sequences``).
    given: other sequences that the user named, of the only scan.
    """

    grade: str | None = None
    channel: str | None = None
    series: Sequence[str] = ()
    sequences: Sequence[str] = ()
    given: GivenSequences = field(default_factory=GivenSequences)


NOTHING_SAID = ScanRequest()


@dataclass(frozen=True)
class Found:
    """The scans at the paths that a user gave, what was left out, and problems of a table of scans."""

    inputs: list[Input]
    left_out: list[LeftOut]
    problems: list[str] = field(default_factory=list)


class NoScanError(UsageError):
    """There is no scan at the paths. ``left_out``: the files that are there."""

    def __init__(self, message: str, left_out: list[LeftOut]) -> None:
        super().__init__(message)
        self.left_out = left_out


def find_inputs(
    paths: Iterable[str | PathLike[str]],
    request: ScanRequest = NOTHING_SAID,
    *,
    describe: bool = False,
    known: KnownImages | None = None,
    root: Path | None = None,
) -> Found:
    """The scans at these paths (files, folders, globs, or URLs of them), each with a unique name, in a fixed order.

    A file that is named alone is always a scan, with a warning if its name says something else. Of a folder, a glob or
    several files, the FLAIR scans are taken (``gliaflow_plugins.cohorts.scan_files``), and the rest is left out. Of
    DICOM files, the FLAIR series of each study is one scan (``gliaflow_plugins.dicom.choose``).

    Parameters
    ----------
    describe: what is left out is described in the words of DICOM headers: for the user's own terminal alone.
    known: the DICOM images of an earlier search (``gliaflow_plugins.dicom.choose.find_series``).
    root: the folder of ours in which a client's files are. Its own name and its parents' name no patient.

    Raises
    ------
    UsageError: a path does not exist, a path is empty, a glob or a value of ``series`` matches nothing, the grade is
        unknown, or ``given`` has a file and there are several scans, or one image for two sequences.
    NoScanError: there is no scan.
    """
    if request.grade is not None:
        request = replace(request, grade=check_grade(request.grade))
    texts = [fspath(path) for path in paths]
    if not all(text.strip() for text in texts):
        raise UsageError("PATH is empty (an unset shell variable?): name a scan or a folder; for this folder, write .")
    if len(texts) == 1 and is_table(texts[0]):
        return _of_table(Path(texts[0]), request)
    named = request.given.series
    wanted = [name for name in OTHERS if name in (*request.sequences, *named)]
    rules = partial(flair_rules, request.series, describe=describe, sequences=wanted, sequence_series=named)
    places = search(texts, request.channel, rules, request.sequences, known)
    if named and not places.dicom:
        name, text = next(iter(named.items()))
        raise UsageError(f"--{name} {text}: no such file, and there is no DICOM of which it may be a series")
    if not places.scans:
        raise NoScanError(f"no FLAIR scan in {', '.join(texts)}{_why_none(places.left_out)}", places.left_out)
    relative = places.relative()
    absolute = any(Path(text).is_absolute() for text in texts)
    names, patients = _names(_below(root, places.scans), relative)
    inputs = []
    for scan, name, patient, where in zip(places.scans, names, patients, relative, strict=True):
        uri = places.uris.get(scan.path, "")
        path = Path(scan.path)
        if not uri and not absolute:
            path = Path(os.path.relpath(path))  # as the user writes paths
        chosen = None if scan.series else _channel(scan, request.channel)
        beside, doubts = scan_sequences(scan, path, places.uris)
        volume = scan.series or (NiftiFile(path) if is_other_format(path) and not uri else None)
        inputs.append(
            Input(
                path,
                name,
                _short(patient.patient),
                request.grade,
                chosen,
                "",
                volume,
                uri=uri,
                relative=where,
                warnings=(*scan.warnings, *patient.warnings, *doubts),
                series=scan.series.uid if scan.series else "",
                sequences=beside,
            )
        )
    return Found(_with_given(inputs, request.given), places.left_out)


def is_table(text: str) -> bool:
    """Whether a path is that of a table of scans."""
    return "://" not in text and Path(text).suffix.casefold() in (".csv", ".tsv") and Path(text).is_file()


def _of_table(path: Path, request: ScanRequest) -> Found:
    """The scans of a table, without its grades."""
    cohort = Csv(flair_rules(request.series)).read(path)
    assert cohort is not None
    if not cohort.cases:
        raise NoScanError(f"no scan in {path}: {'; '.join(cohort.problems[:SHOWN])}", cohort.left_out)
    items = [
        replace(item, grade=request.grade, relative=os.path.relpath(item.path, path.parent))
        for item in _inputs_of(cohort, "", request.channel, request.sequences)
    ]
    return Found(_with_given(items, request.given), cohort.left_out, cohort.problems)


def _with_given(inputs: list[Input], given: GivenSequences) -> list[Input]:
    """The scans with the files that the user named for their other sequences."""
    if not given.files:
        return inputs
    if len(inputs) > 1:
        flags = ", ".join(f"--{name}" for name in given.files)
        raise UsageError(
            f"{flags}: a file of one scan, but there are {len(inputs)}: name one scan, or write a table with a column "
            "for each sequence (docs/cohorts.md)"
        )
    (item,) = inputs
    flair = SequenceInput(item.path, item.channel, item.volume, item.uri)
    doubts = tuple(text for text in item.warnings if text.split(" ")[0].rstrip(":") not in given.files)
    return [replace(item, sequences=given.beside(flair, item.sequences), warnings=doubts)]


def as_inputs(scans: ScanPath | Iterable[ScanPath], request: ScanRequest = NOTHING_SAID) -> list[Input]:
    """The scans at these paths, or these Inputs. A Python warning counts what is left out.

    Raises
    ------
    UsageError: as ``find_inputs`` does, or paths and Inputs are mixed.
    """
    each: list[Any] = [scans] if isinstance(scans, str | PathLike | Input) else list(scans)
    if all(isinstance(scan, Input) for scan in each):
        return each
    if any(isinstance(scan, Input) for scan in each):
        raise UsageError("scans: give paths or Inputs, not both")
    found = find_inputs(each, request)
    for line in (*found.problems, *(f"left out: {line}" for line in summary(found.left_out))):
        warnings.warn(visible(line), stacklevel=3)
    return found.inputs


def find_one(path: str | PathLike[str], request: ScanRequest = NOTHING_SAID) -> Input:
    """The one scan at this path. Raises UsageError as ``find_inputs`` does, and if there are several."""
    found = find_inputs([path], request).inputs
    if len(found) > 1:
        raise UsageError(f"{path}: {len(found)} scans, where one is expected")
    return found[0]


def find_series(folder: Path, uid: str) -> Input | None:
    """The DICOM series with this SeriesInstanceUID under a folder, with the folder's name; None: there is none."""
    scans = dicom_scans(dicom_in(folder), flair_rules([uid])).scans
    series = next((scan.series for scan in scans if scan.series and scan.series.uid == uid), None)
    return Input(folder, folder.name, "", volume=series, series=uid) if series else None


def cohort_inputs(cohort: Cohort, name: str, channel: str | None = None, sequences: Sequence[str] = ()) -> list[Input]:
    """Every scan of a cohort with its patient and, if known, its label.

    Parameters
    ----------
    name: the cohort's name. channel: the FLAIR volume of 4-D scans for which the cohort does not state it.
    sequences: the other sequences to send.

    Raises
    ------
    UsageError: no scan has a label.
    """
    if not any(case.label for case in cohort.cases):
        raise UsageError(f"{name}: no scan has a label (--grades TABLE gives grades; see `gliaflow cohort`)")
    return _inputs_of(cohort, name, channel, sequences)


def _inputs_of(cohort: Cohort, name: str, channel: str | None, sequences: Sequence[str]) -> list[Input]:
    names = _unique([_short(re.sub(r"[/\\]|^\.", "_", case.id)) for case in cohort.cases])
    inputs = []
    for case, unique in zip(cohort.cases, names, strict=True):
        if series := as_series(case.scan):
            path, doubts = folder_of(series), series.warnings
            item = Input(path, unique, case.patient, case.label, None, name, series, warnings=doubts, series=series.uid)
        else:
            path = case.scan.path if isinstance(case.scan, NiftiFile) else Path(str(case.scan))
            volume = None if isinstance(case.scan, NiftiFile) and not is_other_format(path) else case.scan
            item = Input(path, unique, case.patient, case.label, case.channel or channel, name, volume)
        unused = (f"{each}{UNUSED}{case.unused[each]}" for each in sequences if each in case.unused)
        found = case_sequences(case.sequences, sequences)
        inputs.append(replace(item, sequences=found, warnings=(*item.warnings, *unused)))
    return inputs


def check_grade(grade: str) -> str:
    """The class of this name, in any case. Raises UsageError: there is none."""
    name = grade.strip().upper()
    if name not in CLASSES:
        raise UsageError(f"grade: {grade!r} is not one of {', '.join(CLASSES)}")
    return name


def _why_none(left_out: Sequence[LeftOut]) -> str:
    """Why nothing is left, for an error."""
    if not left_out:
        return " (no file ends in .nii, .nii.gz or another ending of an image)"
    by_reason: dict[str, list[LeftOut]] = defaultdict(list)
    for each in (each for each in left_out if each.kind != NO_FLAIR):
        by_reason[each.why].append(each)
    reasons = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    lines = [
        f"{each[0].path}{f' and {len(each) - 1} more' if each[1:] else ''}: {why}" for why, each in reasons[:SHOWN]
    ]
    more = f"; {len(reasons) - SHOWN} more reasons" if len(reasons) > SHOWN else ""
    remedy = "A file that is named alone is always submitted"
    if any(each.kind == "DICOM series" for each in left_out):
        remedy = "--series takes a DICOM series by its number, description or SeriesInstanceUID"
    return f": {'; '.join(lines)}{more}. {remedy}"


def _channel(scan: ScanFile, channel: str | None) -> str | None:
    """The number of the FLAIR volume: as given, or by the name in ``dataset.json``.

    Raises
    ------
    UsageError: ``channel`` is a name that no ``dataset.json`` has.
    """
    chosen = scan.channel if scan.case else channel
    if chosen is not None and not chosen.isdecimal():
        raise UsageError(f"channel: {channel!r} is not a number, and no dataset.json beside {scan.path} names it")
    return chosen


def _below(root: Path | None, scans: Sequence[ScanFile]) -> Sequence[ScanFile]:
    """The scans with paths as if ``root`` were the root of the file system."""
    if root is None:
        return scans
    return [replace(scan, path=PurePosixPath("/", PurePath(scan.path).relative_to(root))) for scan in scans]


def _names(scans: Sequence[ScanFile], relative: Sequence[str]) -> tuple[list[str], list[PatientOf]]:
    """The scans' names, by their own paths, and patients. Equal names get the folders in front, or else a number."""
    names = [series_name(scan.path) if scan.series else name_of(scan.path) for scan in scans]
    common = Counter(name.casefold() for name in names)
    for number, (scan, where) in enumerate(zip(scans, relative, strict=True)):
        if common[names[number].casefold()] > 1:
            own = scan.path.name if scan.series else stem(scan.path)
            names[number] = "_".join([*PurePosixPath(where).parts[:-1], own])
    return _unique(map(_short, names)), apart(scans, find_patients(list(map(_place, scans))))


def _place(scan: ScanFile) -> PurePath:
    """The path that names the scan's patient."""
    if scan.series:
        return series_place(scan.path)
    return scan.path.parent / scan.case if scan.case else scan.path


def _unique(names: Iterable[str]) -> list[str]:
    """The names, with a number appended to each that repeats an earlier one."""
    taken: set[str] = set()
    found = []
    for name in names:
        unique, number = name, 2
        while unique.casefold() in taken:
            unique, number = f"{name}-{number}", number + 1
        taken.add(unique.casefold())
        found.append(unique)
    return found


def _short(name: str) -> str:
    """A name that fits into file names and messages: cut to MAX_NAME_BYTES, with bytes that are not UTF-8 replaced."""
    return name.encode("utf-8", "replace")[:MAX_NAME_BYTES].decode("utf-8", "ignore")

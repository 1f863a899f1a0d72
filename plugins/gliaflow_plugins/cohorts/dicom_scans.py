"""The FLAIR series among DICOM files, as scans of a submission or a cohort."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gliaflow_plugins.cohorts.scan_files import SHOWN, Chooser, LocalFiles, ScanFile
from gliaflow_plugins.cohorts.walk import status_of, walk
from gliaflow_plugins.contracts import Case, PluginError, SequenceFile
from gliaflow_plugins.left_out import NO_FLAIR, LeftOut
from gliaflow_plugins.sequence_names import OTHERS

if TYPE_CHECKING:
    from gliaflow_plugins.dicom.choose import FlairRules, KnownImages
    from gliaflow_plugins.dicom.series import DicomSeries

NOT_FLAIR = "neither the description nor the timing of the series says FLAIR; is it a FLAIR scan?"
INSTALL = "pip install 'gliaflow[dicom]'"
LISTED = 20  # series in an error


class UnmatchedSeriesError(PluginError):
    """``--series`` names a series that no study has."""


@dataclass(frozen=True)
class DicomScans:
    """The FLAIR series among DICOM files, one for each study, by folder.

    ``matched``, ``every``: see ``FoundSeries``.
    """

    scans: list[ScanFile] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    matched: set[str] = field(default_factory=set)
    every: list[str] = field(default_factory=list)


def has_dicom() -> bool:
    """Whether the libraries of the extra ``dicom`` are installed."""
    try:
        import pydicom  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def dicom_scans(
    paths: Sequence[Path], rules: FlairRules | None = None, known: KnownImages | None = None, *, part: bool = False
) -> DicomScans:
    """Choose the series. ``rules``: None: the default rules, without other sequences. ``known``, ``part``: as for
    ``find_series``.
    """
    if not paths:
        return DicomScans()
    if not has_dicom():
        return DicomScans([], [LeftOut(path, f"reading DICOM needs: {INSTALL}", "DICOM file") for path in paths])
    from gliaflow_plugins.dicom.choose import FlairRules, find_series

    found = find_series(paths, rules or FlairRules(describe=False), known, part=part)
    scans = [ScanFile(folder_of(series), warnings=series.warnings, series=series) for series in found.flair]
    return DicomScans(sorted(scans, key=lambda scan: scan.path), found.left_out, found.matched, found.every)


def require_matches(rules: FlairRules | None, found: Sequence[DicomScans]) -> None:
    """Raise UnmatchedSeriesError if a value of ``--series``, ``--t1ce`` and so on matches in none of these."""
    matched = {value for each in found for value in each.matched}
    named = [("series", value) for value in rules.wanted] + [*rules.sequence_series.items()] if rules else []
    for flag, value in named:
        if value not in matched:
            every = list(dict.fromkeys(text for each in found for text in each.every))
            more = f"; {len(every) - LISTED} more" if len(every) > LISTED else ""
            listing = f"{'; '.join(every[:LISTED])}{more}" if every else "none"
            raise UnmatchedSeriesError(f"--{flag} {value} matches no series that can be taken; there is: {listing}")


def scans_of_patient(paths: Sequence[Path], patient: str, rules: FlairRules | None, problems: list[str]) -> DicomScans:
    """The FLAIR series of one patient of a cohort, with the other sequences of their studies.

    ``problems`` gets a line if there is none, or one that is refused. A patient's only series is taken although nothing
    in it says FLAIR: the folder was named as a cohort of FLAIR.
    """
    found = dicom_scans(paths, _with_sequences(rules), part=True)
    if not found.scans and has_dicom() and (only := _only_series(paths)) is not None:
        problems.append(f"{patient}: {NOT_FLAIR}")
        return replace(found, scans=[only], left_out=[])
    scans, left_out = [], list(found.left_out)
    for scan in found.scans:
        if scan.series and scan.series.problem:
            problems.append(f"{patient}: {scan.series.problem}")
            place = Path(os.path.commonpath([path.parent for path in paths])) if scan.series.choices else scan.path
            left_out.append(LeftOut(place, scan.series.problem, "DICOM series"))
        else:
            problems += [f"{patient}: {doubt}" for doubt in scan.warnings]
            scans.append(scan)
    if not found.scans:
        reasons = [f"{each.path.name}: {each.why}" for each in left_out if each.kind != NO_FLAIR]
        more = f"; {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
        problems.append(f"{patient}: no FLAIR series: {'; '.join(reasons[:SHOWN])}{more}")
    return replace(found, scans=scans, left_out=left_out)


def _with_sequences(rules: FlairRules | None) -> FlairRules | None:
    """The rules, for all sequences beside the FLAIR."""
    if not has_dicom():
        return None
    from gliaflow_plugins.dicom.choose import FlairRules

    return replace(rules or FlairRules(describe=False), sequences=OTHERS)


def with_series(case: Case, series: DicomSeries, problems: list[str]) -> Case:
    """The case with the other sequences of its FLAIR series' study. ``problems`` gets what is doubtful about them."""
    problems += [f"{case.id}: {name} is not used: {why}" for name, why in series.sequence_problems.items()]
    problems += [f"{case.id}: {name}: {doubt}" for name, each in series.sequences.items() for doubt in each.warnings]
    sequences = {name: SequenceFile(each) for name, each in series.sequences.items()}
    return replace(case, sequences=sequences, unused=series.sequence_problems)


def only_series(folder: Path) -> DicomSeries:
    """The only series under a folder, whatever it shows. Raises ValueError: there is none, or there are several."""
    only = _only_series(dicom_in(folder)) if has_dicom() else None
    if only is None or only.series is None:
        raise ValueError(f"{folder.name}: not a folder with one DICOM series that can be read")
    return only.series


def _only_series(paths: Sequence[Path]) -> ScanFile | None:
    """The series, if the files are of one series only, and it is one that can be read."""
    from gliaflow_plugins.dicom.choose import FlairRules

    found = dicom_scans(paths, FlairRules(pattern="^", describe=False))
    alone = len(found.scans) == 1 and not any(each.kind == "DICOM series" for each in found.left_out)
    return found.scans[0] if alone and found.scans[0].series and not found.scans[0].series.problem else None


def only_scan(folder: Path, rules: FlairRules | None, searched: list[DicomScans]) -> DicomSeries:
    """The only FLAIR series under a folder. ``searched`` gets all that was found.

    Raises
    ------
    ValueError: there is none, there are several, or it is refused.
    """
    problems: list[str] = []
    if not (files := dicom_in(folder)):
        raise ValueError(f"{folder.name}: no DICOM in it")
    searched.append(scans_of_patient(files, folder.name, rules, problems))
    scans = searched[-1].scans
    if len(scans) > 1:
        raise ValueError(f"{folder.name}: {len(scans)} FLAIR series, of several studies: name the folder of one")
    if not scans or scans[0].series is None:
        raise ValueError(problems[-1])
    return scans[0].series


def series_of(path: Path, rules: FlairRules | None = None) -> DicomScans:
    """The series of a DICOM file that the user named alone, with its other files in the same folder.

    It is taken also if it is not FLAIR, with a warning.
    """
    uid = _series_uid(path) if has_dicom() else ""
    if not uid:
        return dicom_scans([path])
    from gliaflow_plugins.dicom.choose import FlairRules

    chooser = Chooser()
    beside = [path.with_name(name) for name in sorted(LocalFiles().names(path.parent))] or [path]
    chooser.usable({each: status_of(each) for each in beside})
    files = [each for each in chooser.dicom if _series_uid(each) == uid]
    found = dicom_scans(files, rules)
    if found.scans or (rules and rules.wanted):
        return found
    found = dicom_scans(files, FlairRules(wanted=(uid,), describe=False))
    return replace(found, scans=[replace(scan, warnings=(*scan.warnings, NOT_FLAIR)) for scan in found.scans])


def _series_uid(path: Path) -> str:
    from gliaflow_plugins.dicom.headers import quiet, read_header

    try:
        with quiet():
            return read_header(path, ("SeriesInstanceUID",)).fields.text("SeriesInstanceUID")
    except (OSError, ValueError):  # ``dicom_scans`` names the file with the reason
        return ""


def dicom_in(folder: Path) -> list[Path]:
    """The DICOM files under a folder, at any depth."""
    chooser = Chooser()
    chooser.usable(walk(folder, []))
    return chooser.dicom


def as_series(volume: object) -> DicomSeries | None:
    """The volume, if it is a DICOM series."""
    module = sys.modules.get("gliaflow_plugins.dicom.series")  # not loaded: no volume is one
    return volume if module is not None and isinstance(volume, module.DicomSeries) else None


def volume_key(volume: object, channel: str | None) -> tuple[str, str]:
    """Equal for one image under two names: by its series, or by its file (or URI) and channel; none means 0."""
    series = as_series(volume)
    place = str(volume)
    key = f"{series.uid} {series.echo_ms}" if series else place if "://" in place else os.path.realpath(place)
    return key, (channel or "").strip().lstrip("0") or "0"


def folder_of(series: DicomSeries) -> Path:
    """The folder that contains all files of a series. They are at any depth below it."""
    return Path(os.path.commonpath([path.parent for path in series.paths]))

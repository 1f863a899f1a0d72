"""The FLAIR series among DICOM files, as scans of a submission or a cohort."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gliaflow_plugins.cohorts.scan_files import SHOWN, Chooser, LocalFiles, ScanFile
from gliaflow_plugins.cohorts.walk import status_of, walk
from gliaflow_plugins.left_out import LeftOut

if TYPE_CHECKING:
    from gliaflow_plugins.dicom.choose import FlairRules, KnownImages
    from gliaflow_plugins.dicom.series import DicomSeries

NOT_FLAIR = "neither the description nor the timing of the series says FLAIR; is it a FLAIR scan?"
INSTALL = "pip install 'gliaflow[dicom]'"


def has_dicom() -> bool:
    """Whether the libraries of the extra ``dicom`` are installed."""
    try:
        import pydicom  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def dicom_scans(
    paths: Sequence[Path], rules: FlairRules | None = None, known: KnownImages | None = None
) -> tuple[list[ScanFile], list[LeftOut]]:
    """The FLAIR series among DICOM files, one for each study, by folder; and what is left out.

    ``rules``: None: the default rules. ``known``: as for ``find_series``.
    """
    if not paths:
        return [], []
    if not has_dicom():
        return [], [LeftOut(path, f"reading DICOM needs: {INSTALL}", "DICOM file") for path in paths]
    from gliaflow_plugins.dicom.choose import FlairRules, find_series

    found = find_series(paths, rules or FlairRules(describe=False), known)
    scans = [ScanFile(folder_of(series), warnings=series.warnings, series=series) for series in found.flair]
    return sorted(scans, key=lambda scan: scan.path), found.left_out


def scans_of_patient(
    paths: Sequence[Path], patient: str, rules: FlairRules | None, problems: list[str]
) -> list[ScanFile]:
    """The FLAIR series of one patient of a cohort. ``problems`` gets a line if there is none, or one that is refused.

    A patient's only series is taken although nothing in it says FLAIR: the folder was named as a cohort of FLAIR.
    """
    scans, left_out = dicom_scans(paths, rules)
    chosen = rules is not None and rules.wanted
    if not scans and not chosen and has_dicom() and (only := _only_series(paths)) is not None:
        problems.append(f"{patient}: {NOT_FLAIR}")
        return [only]
    for scan in scans:
        doubts = [scan.series.problem] if scan.series and scan.series.problem else scan.warnings
        problems += [f"{patient}: {doubt}" for doubt in doubts]
    if not scans:
        shown = [f"{each.path.name}: {each.why}" for each in left_out[:SHOWN]]
        more = f"; {len(left_out) - SHOWN} more" if len(left_out) > SHOWN else ""
        problems.append(f"{patient}: no FLAIR series: {'; '.join(shown)}{more}")
    return [scan for scan in scans if scan.series and not scan.series.problem]


def _only_series(paths: Sequence[Path]) -> ScanFile | None:
    """The series, if the files are of one series only, and it is one that can be read."""
    from gliaflow_plugins.dicom.choose import FlairRules

    scans, left_out = dicom_scans(paths, FlairRules(pattern="^", describe=False))
    alone = len(scans) == 1 and not any(each.kind == "DICOM series" for each in left_out)
    return scans[0] if alone and scans[0].series and not scans[0].series.problem else None


def only_scan(folder: Path, rules: FlairRules | None) -> DicomSeries:
    """The only FLAIR series under a folder. Raises ValueError if there is none, several, or one that is refused."""
    problems: list[str] = []
    if not (files := dicom_in(folder)):
        raise ValueError(f"{folder.name}: no DICOM in it")
    scans = scans_of_patient(files, folder.name, rules, problems)
    if len(scans) > 1:
        raise ValueError(f"{folder.name}: {len(scans)} FLAIR series, of several studies: name the folder of one")
    if not scans or scans[0].series is None:
        raise ValueError(problems[-1])
    return scans[0].series


def series_of(path: Path, rules: FlairRules | None = None) -> tuple[list[ScanFile], list[LeftOut]]:
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
    if found[0] or (rules and rules.wanted):
        return found
    scans, left_out = dicom_scans(files, FlairRules(wanted=(uid,), describe=False))
    return [replace(scan, warnings=(*scan.warnings, NOT_FLAIR)) for scan in scans], left_out


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


def folder_of(series: DicomSeries) -> Path:
    """The folder that contains all files of a series. They are at any depth below it."""
    return Path(os.path.commonpath([path.parent for path in series.paths]))

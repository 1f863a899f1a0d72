"""A table of scans as a cohort."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gliaflow_plugins.cohorts.clinical_tables import grade_column_of, is_grade
from gliaflow_plugins.cohorts.dicom_scans import (
    DicomScans,
    as_series,
    only_scan,
    only_series,
    require_matches,
    volume_key,
    with_series,
)
from gliaflow_plugins.cohorts.image_names import stem
from gliaflow_plugins.cohorts.patient_rows import names_patients
from gliaflow_plugins.cohorts.tables import Table, few, quoted, read_table
from gliaflow_plugins.cohorts.volumes import NiftiFile
from gliaflow_plugins.contracts import Case, Cohort, SequenceFile, Volume
from gliaflow_plugins.sequence_names import OTHERS, is_sequence_name, sequences_of

if TYPE_CHECKING:
    from gliaflow_plugins.dicom.choose import FlairRules


@dataclass(frozen=True)
class Csv:
    """A table, or a folder with ``cohort.csv`` in it: columns ``scan``, ``mask``, ``patient``, ``grade``, ``channel``.

    Only ``scan`` is required: a NIfTI file, or a folder of DICOM. ``t1``, ``t1ce`` and ``t2`` name the other sequences;
    ``t1_channel`` and so on, the volume in a 4-D file, by default in the file of ``scan``. Paths are relative to the
    table. A relative path must stay inside the table's folder, links followed: the table may come from someone else,
    and point anywhere.

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
            case = Case(name, volume, mask, patient, cell.get("grade"), channel=cell.get("channel") or None)
            if series := as_series(volume):
                case = with_series(case, series, problems)
            named, refused = _sequences(path.parent, cell, volume)
            problems += [f"{where}: {name} is not used: {why}" for name, why in refused.items()]
            found = {name: each for name, each in case.sequences.items() if name not in refused}
            reasons = {name: why for name, why in case.unused.items() if name not in named}
            cases.append(replace(case, sequences={**found, **named}, unused=reasons | refused))
        if searched:
            require_matches(self.rules, searched)
        used = ", ".join(f"{_shown(known)} by {column!r}" for known, column in columns.items())
        unused = [column for column in table.columns if column not in columns.values()]
        how = f"{path.name}: {used}" + (f"; not used: {few(unused)}" if unused else "")
        left_out = [left for each in searched for left in each.left_out]
        return Cohort("CSV", cases, problems, tables=[how], left_out=left_out)


def _shown(column: str) -> str:
    return column if column in OTHERS else f"{column}s"


def _columns(table: Table, problems: list[str]) -> dict[str, str]:
    """The columns of a table of scans, by the names above: ``patient`` may be called ``Patient ID``.

    Raises
    ------
    ValueError: there is no column ``scan``, or several columns would do. The text names them.
    """
    channels = [f"{name}_channel" for name in OTHERS]
    names = ["scan", "mask", "patient", "grade", "channel", *OTHERS, *channels]
    columns = {name: column for name in names if (column := table.find(name))}
    for name in (name for name in OTHERS if name not in columns):
        alike = [column for column in table.columns if is_sequence_name(column) and sequences_of(column) == (name,)]
        if len(alike) > 1:
            raise ValueError(f"{table.path}: several columns may be {name}: {quoted(alike)}; call one {name!r}")
        if alike and alike[0] not in columns.values():
            columns[name] = alike[0]
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


def _sequences(base: Path, cell: Mapping[str, str], scan: Volume) -> tuple[dict[str, SequenceFile], dict[str, str]]:
    """The other sequences that a row names, and why it names one that is not used."""
    named: dict[str, SequenceFile] = {}
    unused: dict[str, str] = {}
    for name in OTHERS:
        text, channel = cell.get(name, ""), cell.get(f"{name}_channel") or None
        try:
            if text:
                path = _located(base, text)
                named[name] = SequenceFile(only_series(path) if path.is_dir() else NiftiFile(path), channel)
            elif channel:
                named[name] = SequenceFile(scan, channel)
        except (OSError, ValueError) as error:
            unused[name] = str(error)
    keys = {name: volume_key(each.volume, each.channel) for name, each in named.items()}
    keys["scan"] = volume_key(scan, cell.get("channel"))
    for name in [*named]:
        if same := [other for other, key in keys.items() if other != name and key == keys[name]]:
            unused[name] = f"it is the same image as {same[0]}"
            del named[name]
    return named, unused


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

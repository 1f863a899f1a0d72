"""Reads a cohort: chooses the reader that knows the folder's layout, and labels each scan by its grade."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gliaflow_proto import CLASSES

from gliaflow_plugins.cohorts.clinical_tables import normal_grade, with_grades
from gliaflow_plugins.cohorts.dicom_scans import UnmatchedSeriesError
from gliaflow_plugins.cohorts.layouts import Dicom
from gliaflow_plugins.cohorts.leaks import leaks_by_name, same_files, same_headers
from gliaflow_plugins.cohorts.scan_tables import Csv
from gliaflow_plugins.contracts import Case, Cohort, PluginError, Reader
from gliaflow_plugins.registry import Registry

if TYPE_CHECKING:
    from gliaflow_plugins.dicom.choose import FlairRules

HIGH = ("III", "IV")  # the convention of work on REMBRANDT; BraTS counts III as low


@dataclass(frozen=True)
class CohortRequest:
    """Which cohort to read, and how.

    Parameters
    ----------
    folder: a folder, or a table of scans.
    reader: the name of a reader. None: the first reader that knows the folder; installed ones before those that ship.
    high: the WHO grades that are labelled HGG, with commas between them; other grades are LGG. None: ``HIGH``. What the
        folder calls HGG or LGG stays HGG or LGG.
    grades: a CSV or TSV table whose grades replace the folder's.
    patient_column, grade_column: the columns of that table. None: found by their names and content (``with_grades``).
    rules: which DICOM series are FLAIR. None: the default rules.
    """

    folder: Path
    reader: str | None = None
    high: str | None = None
    grades: Path | None = None
    patient_column: str | None = None
    grade_column: str | None = None
    rules: FlairRules | None = None

    @property
    def high_grades(self) -> tuple[str, ...]:
        """The grades that are labelled HGG, as the request writes them."""
        return HIGH if self.high is None else tuple(grade.strip() for grade in self.high.split(",") if grade.strip())

    def read(self, registry: Registry) -> Cohort:
        """The cohort's cases, with unique ids, normal grades and labels; and its problems and leaks.

        A patient with scans of both labels gets neither: one patient has one class, and must not be in two.

        Raises
        ------
        PluginError: no reader knows the layout, the folder or table does not exist or cannot be read, or the request
            contradicts itself.
        """
        high = _normal(self.high_grades)
        if self.grades is None and (self.patient_column or self.grade_column):
            raise PluginError("--patient-column and --grade-column are of a table: name it with --grades")
        if not self.folder.is_dir() and not self.folder.is_file():
            raise PluginError(f"{self.folder}: no such folder or table")
        if self.folder.is_dir():
            try:
                next(self.folder.iterdir(), None)
            except OSError as error:
                raise PluginError(f"{self.folder}: cannot be read: {error.strerror}") from None
        cohort = _read(self, registry)
        problems = list(cohort.problems)
        cases = []
        for case in cohort.cases:
            try:
                case = replace(case, grade=normal_grade(case.grade or ""))
            except ValueError as error:
                case = replace(case, grade=None)
                problems.append(f"{case.id}: {error}")
            cases.append(case)
        cohort = replace(cohort, cases=cases, problems=problems)
        if self.grades is not None:
            try:
                cohort = with_grades(cohort, self.grades, self.patient_column, self.grade_column)
            except OSError as error:
                why = f"{self.grades}: {error.strerror}" if error.strerror else error
                raise PluginError(f"--grades {why}") from None
            except ValueError as error:
                raise PluginError(str(error)) from None
        cases = _labelled(_unique(cohort.cases), high)
        file_leaks, file_problems = same_files(cases)
        leaks = [*cohort.leaks, *leaks_by_name(cases), *file_leaks, *same_headers(cases), *_two_grades(cases)]
        problems = [*cohort.problems, *file_problems, *_about(cases, high)]
        return replace(
            cohort,
            cases=cases,
            problems=[*map(_plain, problems)],
            leaks=[*map(_plain, leaks)],
            tables=[*map(_plain, cohort.tables)],
        )


def _normal(grades: Sequence[str]) -> list[str]:
    normal = []
    for text in grades:
        try:
            grade = normal_grade(text)
        except ValueError as error:
            raise PluginError(f"high: {error}") from None
        if grade is None or grade in CLASSES:
            raise PluginError(f"high: {text!r} is not a WHO grade; give I to IV (HGG is always high, LGG always low)")
        normal.append(grade)
    return normal


def _read(request: CohortRequest, registry: Registry) -> Cohort:
    folder, reader = request.folder, request.reader
    if reader is not None:
        chosen = _with_rules(registry.reader(reader), request.rules)
        try:
            cohort = chosen.read(folder)
        except UnmatchedSeriesError:
            raise
        except Exception as error:  # a plugin's
            raise PluginError(f"reader {reader} failed on {folder}: {type(error).__name__}: {error}") from error
        if cohort is None:
            raise PluginError(f"{folder}: reader {reader} does not know this layout")
        return replace(cohort, reader=reader)
    failed = []
    shipped = {name for kind, name in registry.origins if kind == "reader" and registry.ships(kind, name)}
    for name in sorted(registry.readers, key=shipped.__contains__):  # installed readers first
        try:
            cohort = _with_rules(registry.readers[name], request.rules).read(folder)
        except UnmatchedSeriesError:
            raise
        except Exception as error:  # a plugin's; the other readers still run
            failed.append(f"reader {name} failed: {type(error).__name__}: {error}")
            continue
        if cohort is not None:
            return replace(cohort, reader=name, problems=[*cohort.problems, *failed])
    known = "; ".join([f"readers: {', '.join(registry.readers)}", *failed])
    raise PluginError(f"{folder}: no reader knows this layout ({known}; see `gliaflow plugins`)")


def _with_rules(reader: Reader, rules: FlairRules | None) -> Reader:
    """The reader, with the rules if it is one that reads DICOM."""
    return replace(reader, rules=rules) if isinstance(reader, Csv | Dicom) else reader


def _unique(cases: Sequence[Case]) -> list[Case]:
    """The cases, with ids that are unique even on a file system that ignores case."""
    taken: set[str] = set()
    named = []
    for case in cases:
        name = unique = _plain(case.id)
        number = 2
        while unique.casefold() in taken:
            unique, number = f"{name}-{number}", number + 1
        taken.add(unique.casefold())
        named.append(replace(case, id=unique, patient=_plain(case.patient)))
    return named


def _labelled(cases: Sequence[Case], high: Sequence[str]) -> list[Case]:
    """The cases with the class of their grade; a patient with scans of both classes gets neither."""
    labels: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        if case.grade is not None:
            labels[case.patient].add(case.grade if case.grade in CLASSES else "HGG" if case.grade in high else "LGG")
    known = {patient: next(iter(of_patient)) for patient, of_patient in labels.items() if len(of_patient) == 1}
    return [replace(case, label=known.get(case.patient) if case.grade else None) for case in cases]


def _two_grades(cases: Sequence[Case]) -> list[str]:
    """The patients whose scans have different grades."""
    grades: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        if case.grade is not None:
            grades[case.patient].add(case.grade)
    both = {case.patient for case in cases if case.grade and not case.label}
    return [
        f"{patient}: scans of grade {' and '.join(sorted(of_patient))}"
        + ("; both high and low, so left out of both" if patient in both else "")
        for patient, of_patient in grades.items()
        if len(of_patient) > 1
    ]


def _about(cases: Sequence[Case], high: Sequence[str]) -> list[str]:
    """Problems of the whole: patients with several scans, one class only, no mask, no grade."""
    scans = Counter(case.patient for case in cases)
    problems = [f"{patient}: {count} scans" for patient, count in scans.items() if count > 1]
    every = {case.label for case in cases if case.label}
    if len(every) == 1:
        problems.append(f"every scan with a class is {every.pop()} (high: {', '.join(high) or 'none'})")
    problems += _missing(cases, "mask", [case.mask is None for case in cases])
    return problems + _missing(cases, "grade", [case.grade is None for case in cases])


def _missing(cases: Sequence[Case], what: str, missing: Sequence[bool]) -> list[str]:
    """A line for each case, or one line if all cases miss it: a thousand lines would hide the rest."""
    if len(cases) > 1 and all(missing):
        how = " (--grades TABLE gives them)" if what == "grade" else ""
        return [f"no scan has a {what}{how}"]
    return [f"{case.id}: no {what}" for case, absent in zip(cases, missing, strict=True) if absent]


def _plain(text: str) -> str:
    """``text`` without unprintable characters: a file name may contain line ends and commands to the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)

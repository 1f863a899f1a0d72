"""Labelled scans, read by whichever registered reader knows how they lie, and the class of each."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gliaflow_proto import CLASSES

from gliaflow_plugins.cohorts.clinical_tables import normal_grade, with_grades
from gliaflow_plugins.contracts import Case, Cohort, PluginError
from gliaflow_plugins.registry import Registry

HIGH = ("III", "IV")  # as work on REMBRANDT has it; BraTS counts III as low


def read_cohort(
    folder: Path,
    registry: Registry,
    *,
    reader: str | None = None,
    high: Sequence[str] = HIGH,
    grades: Path | None = None,
    patient_column: str | None = None,
    grade_column: str | None = None,
) -> Cohort:
    """The cases in ``folder``, or in a table of scans, with unique ids, normal grades and labels.

    Parameters
    ----------
    reader: its name. None: installed readers are asked first, then those that ship, the most particular first; the
        first that knows the folder reads it.
    high: the WHO grades that are labelled HGG; other grades are LGG. What the folder calls HGG or LGG stays that.
    grades: a CSV or TSV table whose grades go over the folder's.
    patient_column, grade_column: of that table; None: found by what is in them (``clinical.with_grades``).

    A patient with scans of both labels gets neither: one patient has one class, and must not be in two.

    Raises
    ------
    PluginError: no reader knows the layout, or what was asked for makes no sense.
    OSError: there is no such folder or table, or it cannot be read.
    """
    high = _high(high)
    if not folder.is_dir() and not folder.is_file():
        raise FileNotFoundError(f"{folder}: no such folder or table")
    if folder.is_dir():
        next(folder.iterdir(), None)  # raises what is wrong with it
    cohort = _read(folder, registry, reader)
    problems = list(cohort.problems)
    cases = []
    for case in _named(cohort.cases):
        try:
            case = replace(case, grade=normal_grade(case.grade or ""))
        except ValueError as error:
            case = replace(case, grade=None)
            problems.append(f"{case.id}: {error}")
        cases.append(case)
    if grades is not None:
        try:
            cases, odd = with_grades(cases, grades, patient_column=patient_column, grade_column=grade_column)
        except ValueError as error:
            raise PluginError(f"{error} (--patient-column and --grade-column name them)") from None
        problems += odd
    cases, odd = _labelled(cases, high)
    problems += odd
    problems += _missing(cases, "mask", [case.mask is None for case in cases])
    problems += _missing(cases, "grade", [case.grade is None for case in cases])
    return replace(cohort, cases=cases, problems=[_plain(problem) for problem in problems])


def _high(grades: Sequence[str]) -> list[str]:
    normal = []
    for text in grades:
        try:
            grade = normal_grade(text)
        except ValueError as error:
            raise PluginError(f"high: {error}") from None
        if grade is None or grade in CLASSES:
            raise PluginError(f"high: {text!r} is no WHO grade; give I to IV (HGG is always high, LGG always low)")
        normal.append(grade)
    return normal


def _read(folder: Path, registry: Registry, reader: str | None) -> Cohort:
    if reader is not None:
        chosen = registry.reader(reader)
        try:
            cohort = chosen.read(folder)
        except Exception as error:  # a plugin's
            raise PluginError(f"reader {reader} failed on {folder}: {type(error).__name__}: {error}") from error
        if cohort is None:
            raise PluginError(f"{folder}: reader {reader} does not know this layout")
        return replace(cohort, reader=reader)
    failed = []
    for name in sorted(registry.readers, key=lambda name: _ships(registry, name)):
        try:
            cohort = registry.readers[name].read(folder)
        except Exception as error:  # a plugin's; it takes nothing down but itself
            failed.append(f"reader {name} failed: {type(error).__name__}: {error}")
            continue
        if cohort is not None:
            return replace(cohort, reader=name, problems=[*cohort.problems, *failed])
    known = "; ".join([f"readers: {', '.join(registry.readers)}", *failed])
    raise PluginError(f"{folder}: no reader knows this layout ({known}; see `gliaflow plugins`)")


def _ships(registry: Registry, name: str) -> bool:
    origin = registry.origins.get(("reader", name))
    return origin is not None and origin.plugin == "shipped"


def _named(cases: Sequence[Case]) -> list[Case]:
    """The cases, with ids that are unique even where a file system takes capitals for small letters."""
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


def _labelled(cases: Sequence[Case], high: Sequence[str]) -> tuple[list[Case], list[str]]:
    scans = Counter(case.patient for case in cases)
    grades: dict[str, set[str]] = defaultdict(set)
    labels: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        if case.grade is not None:
            grades[case.patient].add(case.grade)
            labels[case.patient].add(case.grade if case.grade in CLASSES else "HGG" if case.grade in high else "LGG")
    problems = [f"{patient}: {count} scans" for patient, count in scans.items() if count > 1]
    problems += [
        f"{patient}: grades {' and '.join(sorted(grades[patient]))} are both high and low; left out of both"
        for patient in scans
        if len(labels[patient]) > 1
    ]
    known = {patient: next(iter(its)) for patient, its in labels.items() if len(its) == 1}
    if len(every := set(known.values())) == 1:
        problems.append(f"every scan with a class is {every.pop()} (high: {', '.join(high) or 'none'})")
    return [replace(case, label=known.get(case.patient) if case.grade else None) for case in cases], problems


def _missing(cases: Sequence[Case], what: str, missing: Sequence[bool]) -> list[str]:
    """A line for each, but one for all where the layout has none: a thousand would hide the rest."""
    if len(cases) > 1 and all(missing):
        how = " (--grades TABLE gives them)" if what == "grade" else ""
        return [f"no scan has a {what}{how}"]
    return [f"{case.id}: no {what}" for case, absent in zip(cases, missing, strict=True) if absent]


def _plain(text: str) -> str:
    """Names of files may hold anything: line ends, commands to a terminal, bytes that are no text."""
    return "".join(char if char.isprintable() else "?" for char in text)

"""``gliaflow cohort``: what gliaflow reads from a folder of scans, and with ``--check``, from each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gliaflow_cli import flags
from gliaflow_cli.terminal import console, print_problems, progress_bar

if TYPE_CHECKING:
    from gliaflow_plugins.contracts import Case, Volume


def cohort(
    folder: Annotated[Path, typer.Argument(help="A folder of labelled scans, or a CSV of them.", metavar="DIR")],
    reader: flags.Reader = None,
    high: flags.High = None,
    grades: flags.Grades = None,
    patient_column: flags.PatientColumn = None,
    grade_column: flags.GradeColumn = None,
    check: Annotated[bool, typer.Option("--check", help="Open every scan and mask too.")] = False,
) -> None:
    """Print what is read from a folder: layout, scans, patients, grades, masks, problems.

    Exit code 1: no scan can be used.
    """
    from gliaflow_plugins.cohorts.read import CohortRequest
    from gliaflow_plugins.registry import load_registry
    from gliaflow_runtime.errors import UsageError

    if grades is None and (patient_column or grade_column):
        raise UsageError("--patient-column and --grade-column are of a table: name it with --grades")
    found = CohortRequest(folder, reader, high, grades, patient_column, grade_column).read(load_registry())
    cases = found.cases
    console.print(f"layout    {found.layout} (reader {found.reader})")
    console.print(f"scans     {len(cases)}")
    console.print(f"patients  {len({case.patient for case in cases})}")
    console.print(f"grades    {_counts([case.grade for case in cases])}")
    console.print(f"classes   {_classes(cases)}", soft_wrap=True)
    console.print(f"masks     {sum(case.mask is not None for case in cases)}")
    print_problems(found)
    usable = len(cases)
    if check:
        with progress_bar() as bar:
            task = bar.add_task("opening images", total=len(cases))
            for case in cases:
                faults = list(_faults(case))
                for fault in faults:
                    console.print(f"bad       {fault}", style="red", soft_wrap=True)
                usable -= any(faults)
                bar.advance(task)
        console.print(f"checked   {usable} of {len(cases)} scans are good")
    raise typer.Exit(0 if usable else 1)


def _counts(grades: Sequence[str | None]) -> str:
    counts = sorted(Counter(grade or "not known" for grade in grades).items())
    return ", ".join(f"{grade} {count}" for grade, count in counts) or "none"


def _classes(cases: Sequence[Case]) -> str:
    """The number of scans of each class, and their grades: ``HGG 37 (III → HGG), LGG 33 (II → LGG), none 1``."""
    from gliaflow_proto import CLASSES

    texts = []
    for label in CLASSES:
        grades = [str(case.grade) for case in cases if case.label == label]
        how = f" ({', '.join(sorted(set(grades)))} → {label})" if set(grades) - {label} else ""
        texts.append(f"{label} {len(grades)}{how}")
    without = sum(case.label is None for case in cases)
    return ", ".join(texts + ([f"none {without}"] if without else []))


def _faults(case: Case) -> Iterator[str]:
    """The faults of a case's images: they do not open, do not fit each other, or are empty."""
    from gliaflow_preprocessor.nifti import read_nifti

    shape = None
    for volume, channel in ((case.scan, case.channel), (case.mask, None)):
        if volume is None:
            continue
        try:
            voxels, _ = read_nifti(volume.read(), channel)
        except (OSError, ValueError) as error:
            yield _fault(volume, str(error))
            continue
        if volume is case.scan:
            shape = voxels.shape
            if voxels.min() == voxels.max():
                yield _fault(volume, "every voxel has the same value")
            continue
        if shape is not None and voxels.shape != shape:
            yield _fault(volume, f"shape {list(voxels.shape)}, but its scan has {list(shape)}")
        if not voxels.any():
            yield _fault(volume, "the mask is empty")


def _fault(volume: Volume, error: str) -> str:
    text = error if str(volume) in error else f"{volume}: {error}"
    return "".join(char if char.isprintable() else "?" for char in text)

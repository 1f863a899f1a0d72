"""``gliaflow cohort``: what is understood of a folder of scans, and with ``--check``, of the images in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from gliaflow_plugins.cohorts.read import HIGH, read_cohort
from gliaflow_plugins.contracts import Case, Volume
from gliaflow_plugins.registry import load_registry
from gliaflow_preprocessor.nifti import read_nifti
from gliaflow_proto import CLASSES
from gliaflow_runtime.errors import UsageError
from rich.console import Console

from gliaflow_cli.commands.run import progress_bar


def show_cohort(
    folder: Path,
    console: Console,
    *,
    reader: str | None = None,
    high: str | None = None,
    grades: Path | None = None,
    patient_column: str | None = None,
    grade_column: str | None = None,
    check: bool = False,
) -> int:
    """``gliaflow cohort``: 0 if there is a scan that can be used, as far as was looked.

    Parameters
    ----------
    high: WHO grades with commas between them; None: ``gliaflow_plugins.cohorts.read.HIGH``.
    check: open every scan and mask.
    """
    if grades is None and (patient_column or grade_column):
        raise UsageError("--patient-column and --grade-column are of a table: name it with --grades")
    cohort = read_cohort(
        folder,
        load_registry(),
        reader=reader,
        high=HIGH if high is None else [grade for grade in high.split(",") if grade.strip()],
        grades=grades,
        patient_column=patient_column,
        grade_column=grade_column,
    )
    cases = cohort.cases
    console.print(f"layout    {cohort.layout} (reader {cohort.reader})")
    console.print(f"scans     {len(cases)}")
    console.print(f"patients  {len({case.patient for case in cases})}")
    console.print(f"grades    {_counts([case.grade for case in cases])}")
    console.print(f"classes   {_classes(cases)}", soft_wrap=True)
    console.print(f"masks     {sum(case.mask is not None for case in cases)}")
    for problem in cohort.problems:
        console.print(f"problem   {problem}", style="yellow", soft_wrap=True)
    usable = len(cases)
    if check:
        with progress_bar(console) as bar:
            task = bar.add_task("opening images", total=len(cases))
            for case in cases:
                faults = list(_faults(case))
                for fault in faults:
                    console.print(f"bad       {fault}", style="red", soft_wrap=True)
                usable -= any(faults)
                bar.advance(task)
        console.print(f"checked   {usable} of {len(cases)} scans are well")
    return 0 if usable else 1


def _counts(grades: Sequence[str | None]) -> str:
    counts = sorted(Counter(grade or "not known" for grade in grades).items())
    return ", ".join(f"{grade} {count}" for grade, count in counts) or "none"


def _classes(cases: Sequence[Case]) -> str:
    """Scans of each class, and of which grades they are: ``HGG 37 (III → HGG), LGG 33 (II → LGG), none 1``."""
    told = []
    for label in CLASSES:
        grades = [str(case.grade) for case in cases if case.label == label]
        how = f" ({', '.join(sorted(set(grades)))} → {label})" if set(grades) - {label} else ""
        told.append(f"{label} {len(grades)}{how}")
    without = sum(case.label is None for case in cases)
    return ", ".join(told + ([f"none {without}"] if without else []))


def _faults(case: Case) -> Iterator[str]:
    """What is wrong with the images of a case: they do not open, do not fit, or hold nothing."""
    shape = None
    for volume, channel in ((case.scan, case.channel), (case.mask, None)):
        if volume is None:
            continue
        try:
            voxels, _ = read_nifti(volume.read(), channel)
        except (OSError, ValueError) as error:
            yield _told(volume, str(error))
            continue
        if volume is case.scan:
            shape = voxels.shape
            if voxels.min() == voxels.max():
                yield _told(volume, "every voxel has the same value")
            continue
        if shape is not None and voxels.shape != shape:
            yield _told(volume, f"shape {list(voxels.shape)}, but its scan has {list(shape)}")
        if not voxels.any():
            yield _told(volume, "the mask is empty")


def _told(volume: Volume, error: str) -> str:
    text = error if str(volume) in error else f"{volume}: {error}"
    return "".join(char if char.isprintable() else "?" for char in text)

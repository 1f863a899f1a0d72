"""``gliaflow cohort``: what gliaflow reads from a folder of scans, and with ``--check``, from each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from gliaflow_cli import flags
from gliaflow_cli.terminal import (
    console,
    print_leaks,
    print_left_out,
    print_problems,
    print_sequences,
    progress_bar,
    searching,
)

if TYPE_CHECKING:
    from gliaflow_plugins.contracts import Case


def cohort(
    folder: Annotated[
        Path, typer.Argument(help="A folder of labelled scans, or a CSV of them.", parser=flags.given, metavar="DIR")
    ],
    reader: flags.Reader = None,
    high: flags.High = None,
    grades: flags.Grades = None,
    patient_column: flags.PatientColumn = None,
    grade_column: flags.GradeColumn = None,
    series: flags.Series = None,
    check: Annotated[bool, typer.Option("--check", help="Cut every scan and mask as training does too.")] = False,
    channels: Annotated[
        str | None,
        typer.Option("--channels", help="With --check: the sequences to cut, as for `gliaflow train`; default: flair."),
    ] = None,
    drop: Annotated[
        float | None,
        typer.Option(
            "--drop",
            metavar="<float>",
            help="With --channels, as for `gliaflow train`: 0: a scan without one of the sequences is bad.",
            min=0,
            max=0.9,
        ),
    ] = None,
    verbose: flags.Verbose = False,
) -> None:
    """Print what is read from a folder: layout, scans, patients, grades, masks, problems.

    Exit code 1: there is no scan. With --check also: a scan or mask is bad, or two patients have the same data.
    """
    if (channels is not None or drop is not None) and not check:
        raise typer.BadParameter("--channels and --drop need --check: they say what is cut")
    from gliaflow.flair_rules import flair_rules
    from gliaflow_plugins.cohorts.read import CohortRequest
    from gliaflow_plugins.cohorts.scan_files import not_read
    from gliaflow_plugins.registry import load_registry

    rules = flair_rules(series or (), describe=True)
    with searching():
        found = CohortRequest(folder, reader, high, grades, patient_column, grade_column, rules).read(load_registry())
    cases = found.cases
    console.print(f"layout    {found.layout} (reader {found.reader})")
    console.print(f"scans     {len(cases)}")
    console.print(f"patients  {len({case.patient for case in cases})}")
    console.print(f"grades    {_counts([case.grade for case in cases])}")
    console.print(f"classes   {_classes(cases)}", soft_wrap=True)
    console.print(f"masks     {sum(case.mask is not None for case in cases)}")
    if any(case.sequences for case in cases):
        print_sequences({case.id: case.sequences for case in cases})
    if verbose:
        for case in cases:
            console.print(f"scan      {case.id}: {', '.join(['flair', *case.sequences])}", soft_wrap=True)
    print_problems(found)
    print_leaks(found.leaks)
    if folder.is_dir():
        print_left_out(not_read(found, folder), verbose)
    good = bool(cases)
    if check:
        good &= _check(cases, channels, drop) and not found.leaks
    raise typer.Exit(0 if good else 1)


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


def _check(cases: Sequence[Case], channels: str | None, drop: float | None) -> bool:
    """Cut every scan and mask as ``gliaflow train`` does, and print what it would refuse. True: all are good."""
    from gliaflow_plugins.cohorts.leaks import same_masks, same_voxels
    from gliaflow_plugins.contracts import PluginError
    from gliaflow_trainer.profiles import PROFILES
    from gliaflow_trainer.sequences import refuse_absent
    from gliaflow_trainer.slices import blank_bundle, cut_each

    from gliaflow_cli.learning import choose_sequences

    profile = choose_sequences(PROFILES["demo"], channels, drop)
    absent = ""
    try:
        refuse_absent([case for case in cases if case.mask is not None], profile.input)
    except PluginError as error:
        absent = str(error)
        console.print(f"bad       {absent}", style="red", soft_wrap=True)
    voxels, masks = [], []
    with progress_bar() as bar, TemporaryDirectory() as folder:
        task = bar.add_task("scans and masks", total=len(cases))
        for result in cut_each(cases, blank_bundle(profile, Path(folder))):
            if result.scan is None:
                console.print(f"bad       {result.reason}", style="red", soft_wrap=True)
            else:
                voxels.append((result.scan.voxels, result.case.patient, result.case.id))
                masks.append((result.scan.tumour, result.case.patient, result.case.id))
            for doubt in result.doubts:
                console.print(f"doubtful  {doubt}", style="yellow", soft_wrap=True)
            bar.advance(task)
    leaks, problems = same_voxels(voxels)
    for problem in problems + same_masks(masks):
        console.print(f"problem   {problem}", style="yellow", soft_wrap=True)
    print_leaks(leaks)
    console.print(f"checked   {len(voxels)} of {len(cases)} scans are good")
    return len(voxels) == len(cases) and not leaks and not absent

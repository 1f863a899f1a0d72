"""``gliaflow submit``: scans in; predictions.csv and masks out."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from gliaflow_runtime.ending import INTERRUPTED

from gliaflow_cli import flags
from gliaflow_cli.interrupted import interruptible
from gliaflow_cli.terminal import (
    console,
    print_leaks,
    print_left_out,
    print_problem_lines,
    print_problems,
    print_sequences,
    progress_bar,
    searching,
    waiting_printer,
)

if TYPE_CHECKING:
    from gliaflow.answer import Answer
    from gliaflow_client.out_folder import Target
    from gliaflow_client.table import ScanRow

beside = partial(typer.Option, metavar="FILE|SERIES")


@interruptible("the answers so far are in predictions.csv of --out; the same command with --resume continues")
def submit(
    paths: Annotated[
        list[str],
        typer.Argument(help="Scans (NIfTI, DICOM), folders, globs or s3://… of scans; or a cohort.", metavar="PATH"),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for predictions.csv and <scan>_seg.nii.gz.")],
    grade: Annotated[str | None, typer.Option("--grade", help="The known grade of these scans: HGG or LGG.")] = None,
    channel: flags.Channel = None,
    series: flags.Series = None,
    sequences: flags.Sequences = None,
    t1: Annotated[str | None, beside("--t1", help="The T1 of the only scan, before contrast; as --t1ce.")] = None,
    t1ce: Annotated[
        str | None,
        beside(
            "--t1ce",
            help="The T1 after contrast of the only scan, if the bundle reads it: a file, FILE:N for volume N of a 4-D "
            "file (:N: of the scan's own), or a DICOM series as for --series. Default: what is found beside it.",
        ),
    ] = None,
    t2: Annotated[str | None, beside("--t2", help="The T2 of the only scan; as --t1ce.")] = None,
    capture: flags.Capture = False,
    resume: Annotated[bool, typer.Option("--resume", help="Skip scans that are answered in OUT.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write OUT/report.html, with a picture of each scan.")
    ] = False,
    verbose: flags.Verbose = False,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Give up after so many seconds without an answer.")
    ] = 1800,
    labelled: Annotated[
        bool, typer.Option("--labelled", help="PATH is one cohort (see `gliaflow cohort`): send its labels too.")
    ] = False,
    reader: flags.Reader = None,
    high: flags.High = None,
    grades: flags.Grades = None,
    patient_column: flags.PatientColumn = None,
    grade_column: flags.GradeColumn = None,
    broker: flags.Broker = None,
    bundle: flags.Bundle = None,
    device: flags.Device = None,
    threads: flags.Threads = None,
) -> None:
    """Send scans through the pipeline; get a grade, a mask and a row of predictions.csv for each.

    What no flag says is read from settings: GLIAFLOW_BROKER, GLIAFLOW_BUNDLE and others in the environment, or
    gliaflow.toml (docs/operations.md; `gliaflow serve extractor --show-settings` lists them).
    """
    if labelled and (len(paths) != 1 or grade is not None):
        raise typer.BadParameter("--labelled takes one cohort, which has the grades: no other PATH, no --grade")
    for path in paths:
        flags.given(path)
    reading = (reader, high, grades, patient_column, grade_column)
    if not labelled and any(flag is not None for flag in reading):
        raise typer.BadParameter("--reader, --high, --grades, --patient-column and --grade-column need --labelled")
    from gliaflow.flair_rules import flair_rules
    from gliaflow.opening import open_flow
    from gliaflow.scans import ScanRequest, cohort_inputs, find_inputs
    from gliaflow.sequences import GivenSequences, wanted_sequences
    from gliaflow_client.out_folder import OutFolder
    from gliaflow_client.summary import ON_PHANTOMS, attention, counts, is_on_phantoms, true_grades
    from gliaflow_plugins.cohorts.read import CohortRequest
    from gliaflow_plugins.registry import load_registry
    from gliaflow_runtime.settings import load_settings

    if report or capture:
        from gliaflow_pages.drawing import require_matplotlib

        require_matplotlib()
    settings = load_settings(
        {"broker": broker, "bundle": bundle, "device": device, "threads": threads, "sequences": sequences}
    )
    named = {name: text for name, text in (("t1", t1), ("t1ce", t1ce), ("t2", t2)) if text is not None}
    if labelled and named:
        raise typer.BadParameter("--t1, --t1ce and --t2 are of one scan; a cohort has its own sequences")
    given = GivenSequences.of(named)
    wanted = wanted_sequences(settings)
    if unread := [f"--{name}" for name in named if name not in wanted and settings.broker.startswith("memory:")]:
        reads = ", ".join(["flair", *wanted])
        raise typer.BadParameter(f"{', '.join(unread)}: the bundle reads {reads}; choose another with --bundle")
    if labelled:
        request = CohortRequest(Path(paths[0]), *reading, rules=flair_rules(series or ()))
        with searching():
            cohort = request.read(load_registry())
        print_problems(cohort)
        print_leaks(cohort.leaks)
        root = Path(paths[0]) if Path(paths[0]).is_dir() else Path(paths[0]).parent
        inputs = [
            replace(item, relative=os.path.relpath(item.path, root))
            for item in cohort_inputs(cohort, Path(paths[0]).resolve().name, channel, wanted)
        ]
    else:
        asked = ScanRequest(grade=grade, channel=channel, series=series or (), sequences=wanted, given=given)
        with searching():
            found = find_inputs(paths, asked, describe=True)
        print_problem_lines(found.problems)
        print_left_out(found.left_out, verbose)
        inputs = found.inputs
    if wanted or named:
        print_sequences({item.name: item.sequences for item in inputs}, wanted)
    with OutFolder(out, capture=capture) as folder:
        targets = folder.assign(inputs)
        for note in folder.notes:
            console.print(f"{'restored':<10} {note}", style="yellow", soft_wrap=True)
        for target in targets:
            if target.note:
                console.print(f"{'renamed':<10} {target.place}: {target.note}", style="yellow", soft_wrap=True)
        kept = {target.scan: target for target in targets if resume and folder.is_answered(target)}
        todo = [target for target in targets if target.scan not in kept]
        if resume:
            console.print(f"{len(kept)} of {len(targets)} scans have an answer in {out}", soft_wrap=True)
            folder.keep(kept.values())
        failures: dict[str, ScanRow] = {}  # also of scans whose earlier answer the table keeps
        if todo:
            with progress_bar() as bar, open_flow(settings, timeout, waiting_printer(bar)) as flow:
                task = bar.add_task("scans", total=len(todo))

                def show(target: Target, answer: Answer, row: ScanRow) -> None:
                    if row.status == "failed":
                        failures[target.scan] = row
                    if line := attention(row, target.place):
                        style = "red" if row.status == "failed" else "yellow"
                        bar.console.print(line, style=style, soft_wrap=True)
                    bar.advance(task)

                try:
                    folder.answer(flow, todo, show)
                except KeyboardInterrupt:
                    done = int(bar.tasks[task].completed)
                    bar.console.print(
                        f"interrupted: {done} of {len(todo)} scans answered; the same command with --resume continues",
                        style="yellow",
                        soft_wrap=True,
                    )
                    raise typer.Exit(INTERRUPTED) from None
        rows = [failures.get(each.scan) or folder.rows[each.scan] for each in targets if each.scan in folder.rows]
        if report:
            from gliaflow_cli.commands.answers_report import write_report

            console.print(f"report: {write_report(folder, targets)}", soft_wrap=True)
    if is_on_phantoms(rows):
        console.print(ON_PHANTOMS, style="yellow", soft_wrap=True)
    if text := true_grades(rows):
        console.print(text, soft_wrap=True)
    if any(target.state.undecided and target.scan in failures for target in targets):
        console.print("To choose a series, repeat the command with --resume and that --series.", style="yellow")
    console.print(f"{counts(rows)}: {folder.table}", soft_wrap=True)
    raise typer.Exit(1 if any(row.status == "failed" for row in rows) else 0)

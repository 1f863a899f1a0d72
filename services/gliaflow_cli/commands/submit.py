"""``gliaflow submit``: scans in; predictions.csv and masks out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gliaflow_cli import flags
from gliaflow_cli.terminal import console, print_problems, progress_bar

if TYPE_CHECKING:
    from gliaflow.answer import Answer


def submit(
    paths: Annotated[
        list[str],
        typer.Argument(help="Scans (NIfTI), folders, globs or s3://… of scans; or a cohort.", metavar="PATH…"),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for predictions.csv and <scan>_seg.nii.gz.")],
    grade: Annotated[str | None, typer.Option("--grade", help="The known grade of these scans: HGG or LGG.")] = None,
    channel: flags.Channel = None,
    resume: Annotated[bool, typer.Option("--resume", help="Skip scans that are answered in OUT.")] = False,
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
    """Send scans through the pipeline; get a grade, a mask and a row of predictions.csv for each."""
    if labelled and (len(paths) != 1 or grade is not None):
        raise typer.BadParameter("--labelled takes one cohort, which has the grades: no other PATH, no --grade")
    reading = (reader, high, grades, patient_column, grade_column)
    if not labelled and any(flag is not None for flag in reading):
        raise typer.BadParameter("--reader, --high, --grades, --patient-column and --grade-column need --labelled")
    from gliaflow.flow import open_flow
    from gliaflow.scans import cohort_inputs, find_inputs
    from gliaflow_plugins.cohorts.read import CohortRequest
    from gliaflow_plugins.registry import load_registry
    from gliaflow_runtime.settings import load_settings

    from gliaflow_cli.client.table import TABLE, read_table, save_answers

    settings = load_settings({"broker": broker, "bundle": bundle, "device": device, "threads": threads})
    if labelled:
        folder = Path(paths[0])
        cohort = CohortRequest(folder, *reading).read(load_registry())
        print_problems(cohort)
        inputs = cohort_inputs(cohort, folder.resolve().name, channel)
    else:
        inputs = find_inputs(paths, grade=grade, channel=channel).inputs
    before = {n: r for n, r in read_table(out / TABLE).items() if r.status == "ok"} if resume else {}
    todo = [item for item in inputs if item.name not in before]
    if before:
        console.print(f"{len(inputs) - len(todo)} of {len(inputs)} scans have an answer in {out}")
    with open_flow(settings, timeout) as flow, progress_bar() as bar:
        task = bar.add_task("scans", total=len(todo))

        def show(answer: Answer) -> None:
            if answer.status == "failed":
                path = answer.source.encode("utf-8", "replace").decode()
                bar.console.print(f"failed  {path}: {answer.reason}", style="red", soft_wrap=True)
            bar.advance(task)

        rows = save_answers(flow, todo, out, known=before, answered=show)
    rows += before.values()
    failed = sum(row.status == "failed" for row in rows)
    console.print(f"{len(rows) - failed} of {len(rows)} scans answered: {out / TABLE}", soft_wrap=True)
    raise typer.Exit(1 if failed else 0)

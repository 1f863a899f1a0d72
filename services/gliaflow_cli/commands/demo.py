"""``gliaflow demo``: phantom patients through the whole pipeline, and a page that shows the results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gliaflow_cli import flags
from gliaflow_cli.interrupted import interruptible
from gliaflow_cli.terminal import console, progress_bar, waiting_printer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from gliaflow.answer import Answer
    from gliaflow.scans import Input
    from gliaflow_client.out_folder import Target
    from gliaflow_client.table import ScanRow
    from gliaflow_runtime.broker.interface import Consumer
    from numpy.typing import NDArray

    from gliaflow_cli.commands.answers_report import Shown

SYNTHETIC = 8  # features of each class
TIMEOUT_S = 600.0


@interruptible("run the same command again")
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the scans, answers and report.html.")],
    patients: Annotated[
        int, typer.Option("--patients", metavar="<int>", help="Number of phantom patients, 2 or more.", min=2)
    ] = 6,
    seed: flags.PhantomSeed = 20_26,
    broker: flags.Broker = None,
    bundle: flags.Bundle = None,
) -> None:
    """Make phantom scans, stream them through all four stages, and write a report with pictures."""
    import time
    from uuid import uuid4

    from gliaflow.opening import open_flow
    from gliaflow_client.out_folder import OutFolder
    from gliaflow_client.summary import counts, true_grades
    from gliaflow_pages.drawing import INSTALL, has_matplotlib
    from gliaflow_phantoms.cohort import image_file, write_cohort
    from gliaflow_proto import Queue
    from gliaflow_runtime.broker.interface import BrokerError
    from gliaflow_runtime.bundle.load import load_bundle
    from gliaflow_runtime.errors import UsageError
    from gliaflow_runtime.settings import load_settings

    from gliaflow_cli.commands.answers_report import DemoParts, Shown, answers_page

    started = time.monotonic()
    settings = load_settings({"broker": broker, "bundle": bundle})
    chosen = load_bundle(settings.bundle, state=settings.state, bundles=settings.bundles)
    channels = chosen.manifest.input.channels
    if any(seen.get("seed") == seed for seen in chosen.phantoms):
        raise UsageError(f"--seed: the bundle was trained on the phantoms of seed {seed}; choose another")
    cohort = out / "phantoms"
    with OutFolder(out) as folder, progress_bar() as bar:
        task = bar.add_task("making phantom scans", total=patients)
        drawn = write_cohort(
            cohort, patients, seed, 0.5, channels, progress=lambda done, _: bar.update(task, completed=done)
        )
        paths = sorted(drawn)  # an earlier run may have drawn more
        inputs = [phantom_input(path, channels) for path in paths]
        targets = folder.assign(inputs)

        failures: dict[str, ScanRow] = {}

        def answered(target: Target, answer: Answer, row: ScanRow) -> None:
            if row.status == "failed":
                failures[target.scan] = row
            bar.advance(task)

        with open_flow(settings, TIMEOUT_S, waiting_printer(bar)) as flow:
            features = Queue(f"gliaflow.demo.{uuid4().hex}", ("features.labelled",), expires_s=600)
            flow.broker.declare(features)  # a new consumer is a new queue: no stage knows about it
            with flow.broker.consume(features, prefetch=16) as consumer:
                task = bar.add_task("segmenting and grading", total=len(inputs))
                folder.answer(flow, targets, answered)
                real = _fullest(consumer)
            flow.broker.delete(features.name)
            task = bar.add_task("making synthetic features", total=1)
            try:
                synthetic = {grade: flow.generate(grade, SYNTHETIC, seed=seed) for grade in sorted(real)}
            except UsageError as error:  # the bundle's generator fails; the command was used correctly
                raise BrokerError(str(error)) from None
            bar.advance(task)
        rows = [failures.get(target.scan) or folder.rows[target.scan] for target in targets]
        truths = [image_file(path, "seg") for path in paths]
        shown = [Shown.of(row, item, out, truth) for row, item, truth in zip(rows, inputs, truths, strict=True)]
        page = answers_page(shown, DemoParts(real, synthetic, chosen.manifest.metrics))
        report = out / folder.save("", "report", ".html", lambda part: part.write_text(page, encoding="utf-8"))
    _print_table(shown)
    console.print(counts(rows), true_grades(rows), sep="\n", soft_wrap=True)
    if not has_matplotlib():
        console.print(f"the report has no pictures, for lack of matplotlib: {INSTALL}", style="yellow", soft_wrap=True)
    console.print(f"report: {report} ({time.monotonic() - started:.0f} s; phantoms are not patients)", soft_wrap=True)
    raise typer.Exit(1 if any(row.status == "failed" for row in rows) else 0)


def phantom_input(folder: Path, channels: Sequence[str]) -> Input:
    """A phantom of ``write_cohort`` as it is sent: with its grade, and with the sequences that the bundle reads."""
    from gliaflow.scans import Input
    from gliaflow.sequences import SequenceInput
    from gliaflow_phantoms.cohort import image_file

    file, *others = (image_file(folder, sequence) for sequence in channels)
    return Input(
        file,
        f"{folder.name}_flair",
        folder.name,
        folder.parent.name,
        relative=str(file.relative_to(folder.parents[1])),
        sequences={sequence: SequenceInput(other) for sequence, other in zip(channels[1:], others, strict=True)},
    )


def _fullest(consumer: Consumer) -> dict[str, NDArray[np.float16]]:
    """By class, the features [C, H, W] of the slice with most tumour."""
    from gliaflow_proto import FeaturesMessage, decode, expect

    fullest: dict[str, tuple[int, NDArray[np.float16]]] = {}
    while (delivery := consumer.next(timeout=0.2)) is not None:
        part = expect(decode(delivery.body), FeaturesMessage)
        consumer.ack(delivery)
        tumour = part.mask.sum(axis=(1, 2))
        label = part.scan.label or ""
        if label not in fullest or tumour.max() > fullest[label][0]:
            fullest[label] = int(tumour.max()), part.features[int(tumour.argmax())]
    return {label: features for label, (_, features) in fullest.items()}


def _print_table(shown: list[Shown]) -> None:
    from rich.table import Table

    table = Table("patient", "true grade", "grade", "P(HGG)", "tumour ml", "Dice", "seconds", box=None)
    for each in shown:
        row = each.row
        numbers = (row.error, "", "")
        if row.status != "failed":
            p_hgg = "" if row.p_hgg is None else f"{row.p_hgg:.3f}"
            numbers = (p_hgg, f"{row.tumour_ml:.1f}", f"{each.dice:.2f}")
        table.add_row(row.patient, row.true_grade, row.grade or row.status, *numbers, f"{row.seconds}")
    console.print(table)

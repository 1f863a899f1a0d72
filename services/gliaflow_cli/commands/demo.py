"""``gliaflow demo``: phantom patients through the whole pipeline, and a page that shows the results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gliaflow_cli import flags
from gliaflow_cli.terminal import console, progress_bar

if TYPE_CHECKING:
    import numpy as np
    from gliaflow.answer import Answer
    from gliaflow_runtime.broker.interface import Consumer
    from numpy.typing import NDArray

    from gliaflow_cli.client.table import ScanRow
    from gliaflow_cli.commands.demo_report import Shown

SYNTHETIC = 8  # features of each class
TIMEOUT_S = 600.0


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the scans, answers and report.html.")],
    patients: Annotated[int, typer.Option("--patients", help="Number of phantom patients.", min=2)] = 6,
    seed: flags.Seed = 20_26,
    broker: flags.Broker = None,
    bundle: flags.Bundle = None,
) -> None:
    """Make phantom scans, stream them through all four stages, and write a report with pictures."""
    import time
    from uuid import uuid4

    from gliaflow.flow import open_flow
    from gliaflow.scans import Input
    from gliaflow_pages.drawing import require_matplotlib
    from gliaflow_phantoms.phantom import write_cohort
    from gliaflow_plugins.cohorts.case_folders import Brats
    from gliaflow_proto import Queue
    from gliaflow_runtime.broker.interface import BrokerError
    from gliaflow_runtime.bundle.load import load_bundle
    from gliaflow_runtime.errors import UsageError
    from gliaflow_runtime.settings import load_settings

    from gliaflow_cli.client.table import save_answers
    from gliaflow_cli.commands.demo_report import write_report

    require_matplotlib()
    started = time.monotonic()
    settings = load_settings({"broker": broker, "bundle": bundle})
    manifest = load_bundle(settings.bundle, state=settings.state).manifest
    if seed == manifest.training.get("cohort", {}).get("made_by", {}).get("seed"):
        raise UsageError(f"--seed: the bundle was trained on the phantoms of seed {seed}; choose another")
    cohort = out / "phantoms"
    with progress_bar() as bar:
        task = bar.add_task("making phantom scans", total=patients)
        write_cohort(cohort, patients, seed, hgg_share=0.5, progress=lambda done, _: bar.update(task, completed=done))
        found = Brats().read(cohort)
        assert found is not None, "write_cohort writes the layout that Brats reads"
        paths = [cohort / str(case.grade) / case.patient for case in found.cases]
        inputs = [
            Input(path / f"{path.name}_flair.nii.gz", f"{path.name}_flair", case.patient, case.grade)
            for path, case in zip(paths, found.cases, strict=True)
        ]
        answers: dict[str, Answer] = {}

        def answered(answer: Answer) -> None:
            answers[answer.scan] = answer
            bar.advance(task)

        with open_flow(settings, TIMEOUT_S) as flow:
            features = Queue(f"gliaflow.demo.{uuid4().hex}", ("features.labelled",), expires_s=600)
            flow.broker.declare(features)  # a new consumer is a new queue: no stage knows about it
            with flow.broker.consume(features, prefetch=16) as consumer:
                task = bar.add_task("segmenting and grading", total=len(inputs))
                rows = save_answers(flow, inputs, out, answered=answered)
                real = _fullest(consumer)
            flow.broker.delete(features.name)
            task = bar.add_task("making synthetic features", total=1)
            try:
                synthetic = {grade: flow.generate(grade, SYNTHETIC, seed=seed) for grade in sorted(real)}
            except UsageError as error:  # the bundle's generator fails; the command was used correctly
                raise BrokerError(str(error)) from None
            bar.advance(task)
    shown = [_shown(path, answers[item.name], row) for path, item, row in zip(paths, inputs, rows, strict=True)]
    _print_table(shown)
    report = out / "report.html"
    write_report(report, shown, real, synthetic, manifest.metrics)
    console.print(f"report: {report} ({time.monotonic() - started:.0f} s; phantoms are not patients)", soft_wrap=True)
    raise typer.Exit(1 if any(row.status == "failed" for row in rows) else 0)


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


def _shown(folder: Path, answer: Answer, row: ScanRow) -> Shown:
    import nibabel as nib
    import numpy as np

    from gliaflow_cli.commands.demo_report import Shown

    def canonical(image: Any) -> NDArray[Any]:
        return np.asarray(nib.as_closest_canonical(image).dataobj)

    scan = nib.as_closest_canonical(nib.load(folder / f"{folder.name}_flair.nii.gz"))
    flair, truth = canonical(scan), canonical(nib.load(folder / f"{folder.name}_seg.nii.gz"))
    spacing = scan.header.get_zooms()
    mask = canonical(answer.mask) if answer.mask is not None else np.zeros_like(truth)
    dice = 2 * int(((mask > 0) & (truth > 0)).sum()) / max(1, int((mask > 0).sum() + (truth > 0).sum()))
    return Shown(
        row=row,
        grade=folder.parent.name,
        dice=dice,
        flair=flair,
        mask=(mask > 0).astype(np.uint8),
        truth=(truth > 0).astype(np.uint8),
        spacing=(float(spacing[0]), float(spacing[1])),
    )


def _print_table(shown: list[Shown]) -> None:
    from rich.table import Table

    table = Table("scan", "true grade", "grade", "P(HGG)", "tumour ml", "Dice", "seconds", box=None)
    for each in shown:
        row = each.row
        numbers = (row.error, "", "")
        if row.status == "ok":
            numbers = (f"{row.p_hgg:.3f}", f"{row.tumour_ml:.1f}", f"{each.dice:.2f}")
        table.add_row(row.scan, each.grade, row.grade, *numbers, f"{row.seconds}")
    console.print(table)

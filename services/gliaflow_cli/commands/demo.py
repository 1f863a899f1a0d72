"""``gliaflow demo``: phantom patients through the whole pipeline, and a page that shows what came out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import nibabel as nib
import numpy as np
from gliaflow.submission import Input, Submission
from gliaflow_phantoms.phantom import write_cohort
from gliaflow_plugins.cohorts.case_folders import Brats
from gliaflow_proto import FailureMessage, FeaturesMessage, PredictionMessage, Queue, SyntheticMessage, decode, expect
from gliaflow_runner.pipeline import open_broker
from gliaflow_runtime.broker.interface import Broker, BrokerError, Consumer
from gliaflow_runtime.bundle.load import load_bundle
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.settings import Settings
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from gliaflow_cli.client.table import Row, submit
from gliaflow_cli.commands.run import embedded, is_embedded, progress_bar

SYNTHETIC = 8  # features of each class
TIMEOUT_S = 600.0


def run_demo(out: Path, patients: int, seed: int, settings: Settings, console: Console) -> None:
    """Make the phantoms, stream them, print the table, write ``report.html``."""
    from gliaflow_cli.commands.demo_report import Shown, write_report  # matplotlib takes a second to import

    started = time.monotonic()
    manifest = load_bundle(settings.bundle, state=settings.state).manifest
    trained_on = manifest.training.get("cohort", {}).get("made_by", {})
    if seed == trained_on.get("seed"):
        raise UsageError(f"--seed: the bundle was trained on the phantoms of seed {seed}; take another")
    cohort = out / "phantoms"
    with progress_bar(console) as bar:
        task = bar.add_task("making phantom scans", total=patients)
        write_cohort(cohort, patients, seed, hgg_share=0.5, progress=lambda done, _: bar.update(task, completed=done))
        found = Brats().read(cohort)
        assert found is not None, "write_cohort writes what the reader reads"
        paths = [cohort / str(case.grade) / case.patient for case in found.cases]
        inputs = [
            Input(path / f"{path.name}_flair.nii.gz", f"{path.name}_flair", case.patient, case.grade)
            for path, case in zip(paths, found.cases, strict=True)
        ]
        masks: dict[str, PredictionMessage] = {}

        def answered(item: Input, row: Row, prediction: PredictionMessage | None) -> None:
            if prediction is not None:
                masks[item.name] = prediction
            bar.advance(task)

        with embedded(settings, inputs) as alive, open_broker(settings) as broker:
            features = Queue(f"gliaflow.demo.{uuid4().hex}", ("features.labelled",), expires_s=600)
            broker.declare(features)  # a new consumer is a new queue: no stage knows of it
            with broker.consume(features, prefetch=16) as consumer:
                task = bar.add_task("segmenting and grading", total=len(inputs))
                by_uri = is_embedded(settings)
                rows = submit(inputs, out, broker, by_uri=by_uri, timeout_s=TIMEOUT_S, alive=alive, answered=answered)
                real = _strongest(consumer)
            broker.delete(features.name)
            task = bar.add_task("making synthetic features", total=1)
            synthetic = _synthetic(broker, by_uri, seed, sorted(real))
            bar.advance(task)
    shown = []
    for path, row in zip(paths, rows, strict=True):
        flair, truth = (_canonical(nib.load(path / f"{path.name}_{kind}.nii.gz")) for kind in ("flair", "seg"))
        mask = np.zeros_like(truth)
        if prediction := masks.get(row.scan):
            mask = _canonical(nib.Nifti1Image(prediction.mask, np.reshape(prediction.affine, (4, 4))))
        dice = 2 * int(((mask > 0) & (truth > 0)).sum()) / max(1, int((mask > 0).sum() + (truth > 0).sum()))
        shown.append(
            Shown(row, path.parent.name, dice, flair, (mask > 0).astype(np.uint8), (truth > 0).astype(np.uint8))
        )
    table = Table("scan", "true grade", "grade", "P(HGG)", "tumour ml", "Dice", "seconds", box=None)
    for each in shown:
        r = each.row
        ok = r.status == "ok"
        numbers = (f"{r.p_hgg:.3f}", f"{r.tumour_ml:.1f}", f"{each.dice:.2f}") if ok else (r.error, "", "")
        table.add_row(r.scan, each.grade, r.grade, *numbers, f"{r.seconds}")
    console.print(table)
    write_report(out / "report.html", shown, real, {k: v.features for k, v in synthetic.items()}, manifest.metrics)
    console.print(
        f"report: {out / 'report.html'} ({time.monotonic() - started:.0f} s; phantoms are not patients)", soft_wrap=True
    )
    if any(row.status == "failed" for row in rows):
        raise SystemExit(1)


def _strongest(consumer: Consumer) -> dict[str, NDArray[np.float16]]:
    """By class, the features [C, H, W] of the slice with most tumour among those that passed."""
    found: dict[str, tuple[int, NDArray[np.float16]]] = {}
    while (delivery := consumer.next(timeout=0.2)) is not None:
        part = expect(decode(delivery.body), FeaturesMessage)
        consumer.ack(delivery)
        tumour = part.mask.sum(axis=(1, 2))
        label = part.scan.label or ""
        if label not in found or tumour.max() > found[label][0]:
            found[label] = int(tumour.max()), part.features[int(tumour.argmax())]
    return {label: features for label, (_, features) in found.items()}


def _synthetic(broker: Broker, by_uri: bool, seed: int, classes: list[str]) -> dict[str, SyntheticMessage]:
    found: dict[str, SyntheticMessage] = {}
    with Submission(broker, by_uri=by_uri) as submission:
        for label in classes:
            submission.generate(label, SYNTHETIC, seed)
        while len(found) < len(classes):
            answer = submission.answer(TIMEOUT_S)
            if not isinstance(answer, SyntheticMessage):
                why = answer.reason if isinstance(answer, FailureMessage) else "no generator answered"
                raise BrokerError(f"no synthetic features: {why}")
            found[answer.label] = answer
    return found


def _canonical(image: Any) -> NDArray[Any]:
    return np.asarray(nib.as_closest_canonical(image).dataobj)

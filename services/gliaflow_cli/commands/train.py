"""``gliaflow train``: a cohort becomes a model bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from gliaflow_cli import flags
from gliaflow_cli.interrupted import interruptible
from gliaflow_cli.terminal import console, progress_bar, starting

SYNTHETIC = 1600  # samples that the classifier learns from, of another cohort's features (docs/results.md)


def train(
    cohort: flags.Cohort,
    out: Annotated[Path, typer.Option("--out", help="Folder for the new bundle.")],
    profile: flags.Profile = "demo",
    generator: Annotated[
        str | None,
        flags.fitting(
            "--generator",
            help="Generator variants (see `gliaflow plugins`), separated by commas; the first is the bundle's own. "
            "Default: infogan; with --source, adapted.",
        ),
    ] = None,
    option: flags.Options = None,
    augmentation: Annotated[
        list[str] | None,
        flags.fitting(
            "--augmentation",
            help="Replaces the profile's: a name, name:option=value,…, a TOML file, scanner (all that a scanner does) "
            "or paper (Table 1); repeatable.",
        ),
    ] = None,
    epochs: flags.Epochs = None,
    folds: Annotated[
        int | None,
        flags.fitting(
            "--folds",
            metavar="<int>",
            help="Measure every patient, by N U-Nets and classifiers, each fitted without an Nth of the patients; then "
            "fit the bundle's own on all patients. N + 1 fits take N + 1 times as long. 0: one fit, on 70 % of the "
            "patients, measured on 15 %. Default: the profile's (small: 5, others: 0).",
            min=0,
        ),
    ] = None,
    unlabelled: flags.Unlabelled = None,
    source: flags.Source = None,
    synthetic: Annotated[
        int | None,
        flags.fitting(
            "--synthetic",
            metavar="<int>",
            help="Samples of the first generator that the classifier learns from beside the real ones; `gliaflow "
            "evaluate` says whether they help. Default: 0; with --source, 1600.",
            min=0,
        ),
    ] = None,
    init: flags.Init = None,
    tap: flags.Tap = None,
    crop: flags.Crop = None,
    classifier: flags.Classifier = None,
    preprocess: flags.Preprocess = None,
    channels: flags.Channels = None,
    drop: flags.Drop = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the bundle; default: the folder's.")] = None,
    seed: flags.Seed = 0,
    device: flags.TorchDevice = "cpu",
    reader: flags.Reader = None,
    high: flags.High = None,
    grades: flags.Grades = None,
    patient_column: flags.PatientColumn = None,
    grade_column: flags.GradeColumn = None,
    series: flags.Series = None,
    allow: flags.Allow = False,
) -> None:
    """Fit U-Net, generator and classifier on a cohort and write a bundle. Needs the extra "train".

    OUT.work keeps the work so far: after an interruption, the same command resumes. Of the settings of
    docs/operations.md, only GLIAFLOW_BUNDLES (where bundles are found) and GLIAFLOW_DICOM_* (which series is FLAIR)
    matter here.
    """
    with starting("loading PyTorch and the plugins"):
        from gliaflow_cli.learning import (
            choose_sequences,
            find_unet,
            prepare,
            read_cohort,
            read_options,
            read_other_cohort,
            read_profile,
            read_unlabelled,
        )

        prepare()
        from gliaflow.flair_rules import flair_rules
        from gliaflow_plugins.augmentations.pipeline import parse_augmentations
        from gliaflow_plugins.cohorts.read import CohortRequest
        from gliaflow_plugins.registry import load_registry
        from gliaflow_trainer.distributed import process_group
        from gliaflow_trainer.kept_work import how_to_go_on
        from gliaflow_trainer.out_of_fold import TABLE_FILE, worst_patients
        from gliaflow_trainer.report import REPORT_FILE, summary, write_report
        from gliaflow_trainer.request import TrainRequest
        from gliaflow_trainer.train import train as train_bundle
        from gliaflow_trainer.train import work_folder
        from gliaflow_trainer.variants import choose, learns_from_source

        registry = load_registry()
    reading = CohortRequest(cohort, reader, high, grades, patient_column, grade_column, flair_rules(series or ()))
    chosen = choose_sequences(read_profile(profile, tap, crop, classifier, preprocess, epochs, folds), channels, drop)
    init_bundle = find_unet("init", init, chosen)
    work = work_folder(out)
    if generator is None:
        generator = "infogan" if source is None else "adapted"
    variants = choose(registry, generator, chosen, read_options(option))
    if synthetic is None:
        first = [registry.generator(name) for name in list(variants.generators)[:1]]
        synthetic = SYNTHETIC if any(map(learns_from_source, first)) else 0
    with (
        interruptible(lambda: how_to_go_on(work)),
        progress_bar() as bar,
        process_group(device, console, bar.console),
    ):
        cases = read_cohort(reading, registry, bar)
        request = TrainRequest(
            cohort=cases,
            folder=cohort,
            out=out,
            name=name or out.resolve().name,
            profile=chosen,
            variants=replace(variants, synthetic=synthetic),
            augmentations=parse_augmentations(augmentation or ()),
            init=init_bundle,
            unlabelled=read_unlabelled(unlabelled, chosen.input.channels, series or ()),
            source=read_other_cohort(source, reading, registry, bar),
            source_folder=source,
            high=reading.high_grades,
            allow=allow,
            seed=seed,
            device=device,
        )
        bundle = train_bundle(request, bar)
    if bundle is None:  # in the other processes of torchrun
        return
    console.print(f"bundle {bundle.id}: {out}", soft_wrap=True)
    lines = list(summary(bundle))
    width = max(len(title) for title, _ in lines)
    for title, text in lines:
        console.print(f"  {title:<{width}}  {text}", soft_wrap=True)
    if chosen.folds:
        table = work / TABLE_FILE
        console.print(f"patients: {table} has each one's scores, by name", soft_wrap=True)
        console.print(f"  lowest Dice: {worst_patients(table)}", soft_wrap=True)
    write_report(bundle, out / REPORT_FILE)
    console.print(f"report: {out / REPORT_FILE}", soft_wrap=True)
    console.print(f"next:   gliaflow submit SCANS --bundle {out} --out answers", soft_wrap=True)

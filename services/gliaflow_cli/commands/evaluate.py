"""``gliaflow evaluate``: whether synthetic features help on a cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gliaflow_cli import flags
from gliaflow_cli.interrupted import interruptible
from gliaflow_cli.terminal import console, progress_bar, starting


def evaluate(
    cohort: flags.Cohort,
    out: Annotated[Path, typer.Option("--out", help="Folder for report.html and metrics.json.")],
    profile: flags.Profile = "demo",
    protocol: Annotated[
        str, typer.Option("--protocol", help="grouped: folds by patient. paper: one split, with the paper's shares.")
    ] = "grouped",
    task: Annotated[
        str,
        typer.Option(
            "--task",
            help="grade: HGG or LGG. tumour: slices with tumour or without, by default by whole features of enc5.",
        ),
    ] = "grade",
    folds: Annotated[int, typer.Option("--folds", metavar="<int>", help="Folds of the protocol grouped.", min=2)] = 5,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds",
            metavar="<int>",
            help="How often everything but the U-Net is fitted, each time with another seed.",
            min=1,
        ),
    ] = 5,
    generators: Annotated[
        str | None,
        typer.Option(
            "--generators",
            help='Variants to compare, separated by commas; "": comparators only. Default: infogan; with --source, '
            "adapted.",
        ),
    ] = None,
    option: flags.Options = None,
    counts: Annotated[
        str | None,
        typer.Option(
            "--counts",
            help="Numbers of synthetic samples, separated by commas; the rare class comes first. Default: 100,400; "
            "with --source, 400,1600.",
        ),
    ] = None,
    scarce: Annotated[
        str,
        typer.Option(
            "--scarce",
            help="Patients of the rare class to learn from, separated by commas: one series for each number.",
        ),
    ] = "",
    unlabelled: flags.Unlabelled = None,
    source: flags.Source = None,
    epochs: flags.Epochs = None,
    init: flags.Init = None,
    unet: Annotated[
        str | None,
        flags.fitting(
            "--unet", help="Bundle (or demo) whose U-Net is used unchanged. It must not have seen this cohort."
        ),
    ] = None,
    tap: flags.Tap = None,
    crop: flags.Crop = None,
    classifier: flags.Classifier = None,
    preprocess: flags.Preprocess = None,
    channels: flags.Channels = None,
    drop: flags.Drop = None,
    shuffle_labels: Annotated[
        bool,
        typer.Option(
            "--shuffle-labels/--no-shuffle-labels",
            help="Repeat the run on shuffled labels, which must give chance.",
            rich_help_panel="Control",
        ),
    ] = True,
    seed: flags.Seed = 0,
    device: flags.TorchDevice = "cpu",
    jobs: Annotated[
        int, flags.runtime("--jobs", metavar="<int>", help="Processes of this machine; 0: cores / threads.", min=0)
    ] = 0,
    threads: Annotated[
        int,
        flags.runtime(
            "--threads",
            metavar="<int>",
            help="Threads of each fit; another number gives other last digits. 0: 1, on a GPU one per core.",
            min=0,
        ),
    ] = 0,
    scheduler: Annotated[
        str,
        flags.runtime(
            "--scheduler",
            help="A Dask scheduler, tcp://HOST:PORT or tls://HOST:PORT, whose workers fit instead of this machine; "
            "COHORT and OUT must be on storage that all share. Needs the extra dask.",
        ),
    ] = "",
    deadline: Annotated[
        float,
        flags.fitting(
            "--deadline",
            metavar="<float>",
            help="Seconds after which the fit of an installed generator is ended.",
            min=1,
        ),
    ] = 86400,
    memory: Annotated[
        float | None,
        flags.fitting(
            "--memory",
            metavar="<float>",
            help="GiB of memory beyond which the fit of an installed generator is ended; default: no limit.",
            min=0.25,
        ),
    ] = None,
    reader: flags.Reader = None,
    high: flags.High = None,
    grades: flags.Grades = None,
    patient_column: flags.PatientColumn = None,
    grade_column: flags.GradeColumn = None,
    series: flags.Series = None,
    allow: flags.Allow = False,
) -> None:
    """Find out whether synthetic features help to grade this cohort, on patients that nothing was fitted on.

    OUT/work keeps the work so far: after an interruption, the same command resumes. Needs the extra "train". Of
    the settings of docs/operations.md, only GLIAFLOW_BUNDLES (where bundles are found) and GLIAFLOW_DICOM_* (which
    series is FLAIR) matter here.
    """
    with starting("loading PyTorch and the plugins"):
        from gliaflow_cli.learning import (
            channels_of,
            choose_sequences,
            find_unet,
            prepare,
            read_cohort,
            read_options,
            read_other_cohort,
            read_profile,
            read_unlabelled,
        )

        prepare(*([("distributed", "dask")] if scheduler else []))
        from gliaflow.flair_rules import flair_rules
        from gliaflow_evaluation.own_process import can_measure_memory
        from gliaflow_evaluation.protocol import Design
        from gliaflow_evaluation.report.verdict import verdict
        from gliaflow_evaluation.request import EvaluateRequest
        from gliaflow_evaluation.run import evaluate as evaluate_cohort
        from gliaflow_plugins.cohorts.read import CohortRequest
        from gliaflow_plugins.registry import load_registry
        from gliaflow_runtime.errors import UsageError
        from gliaflow_trainer.kept_work import how_to_go_on
        from gliaflow_trainer.variants import choose

    for flag, value, known in (("protocol", protocol, ("grouped", "paper")), ("task", task, ("grade", "tumour"))):
        if value not in known:
            raise UsageError(f"--{flag}: {value!r} is not one of {', '.join(known)}")
    if memory is not None and not can_measure_memory():
        raise UsageError("--memory: this system does not report the memory of a process (/proc); leave it out")
    if scheduler and jobs:
        raise UsageError("--jobs counts processes of this machine: leave it out, or leave out --scheduler")
    if scheduler:  # the paths are read on other machines
        cohort = cohort.resolve()
    design = Design(
        protocol=protocol,  # type: ignore[arg-type]  # checked above
        task=task,  # type: ignore[arg-type]
        folds=folds,
        seeds=seeds,
        seed=seed,
        counts=_numbers("counts", counts if counts is not None else "100,400" if source is None else "400,1600"),
        scarce=_numbers("scarce", scarce),
        shuffle=shuffle_labels,
    )
    if task == "tumour":  # cropped to the mask, a slice without tumour has no features
        tap, crop = tap or "enc5", bool(crop)
    registry = load_registry()
    reading = CohortRequest(cohort, reader, high, grades, patient_column, grade_column, flair_rules(series or ()))
    chosen = choose_sequences(read_profile(profile, tap, crop, classifier, preprocess, epochs), channels, drop)
    if init and unet:
        raise UsageError("--init fine-tunes a U-Net and --unet keeps one as it is: choose one of them")
    if unet and epochs:
        raise UsageError("--epochs: the U-Net of --unet is not fitted; leave out one of the two")
    if unet and preprocess:
        raise UsageError("--preprocess: the U-Net of --unet has its own steps; leave out one of the two")
    if unet and channels:
        raise UsageError("--channels: the U-Net of --unet has its own sequences; leave out one of the two")
    names = generators if generators is not None else "infogan" if source is None else "adapted"
    unet_bundle = find_unet("unet", unet, chosen)
    init_bundle = None if unet else find_unet("init", init, chosen)
    with interruptible(lambda: how_to_go_on(out / "work")), progress_bar() as bar:
        cases = read_cohort(reading, registry, bar)
        request = EvaluateRequest(
            cohort=cases,
            folder=cohort,
            out=out,
            profile=chosen,
            variants=choose(registry, names, chosen, read_options(option)),
            design=design,
            init=init_bundle,
            unet=unet_bundle,
            high=reading.high_grades,
            unlabelled=read_unlabelled(unlabelled, channels_of(chosen, unet_bundle), series or ()),
            source=read_other_cohort(source, reading, registry, bar),
            allow=allow,
            device=device,
            jobs=jobs,
            threads=threads,
            scheduler=scheduler,
            deadline_s=deadline,
            memory_gib=memory,
        )
        metrics = evaluate_cohort(request, bar)
    found = verdict(metrics)
    for sentence in (found.sentence, *found.more, *found.warnings):
        console.print(sentence, soft_wrap=True)
    console.print(f"{out / 'report.html'}", soft_wrap=True)
    if metrics.made.failed and not metrics.made.generators:
        names = ", ".join(metrics.made.failed)
        console.print(
            f"Every generator failed ({names}): synthetic features were not evaluated.", style="red", soft_wrap=True
        )
        raise typer.Exit(1)


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    from gliaflow_runtime.errors import UsageError

    try:
        numbers = tuple(int(number) for number in text.split(",") if number.strip())
    except ValueError:
        raise UsageError(f"--{flag}: {text!r} is not a list of numbers separated by commas") from None
    if any(number < 0 for number in numbers):
        raise UsageError(f"--{flag}: {text!r} has a number below 0")
    return numbers
